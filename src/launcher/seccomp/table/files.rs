//! Calls on paths and on what the file system knows of a file.

use libc::*;

use super::{Row, calls};

pub const ROWS: &[Row] = &[
    Row {
        calls: calls![SYS_open, SYS_openat, SYS_creat],
        why: "every runtime opens files; glibc before 2.26 and Go before 1.5 by open",
    },
    Row { calls: calls![SYS_openat2], why: "Rust's cap-std (wasmtime) and Go libraries stay below a directory" },
    Row { calls: calls![SYS_stat, SYS_lstat, SYS_fstat], why: "glibc before 2.33, libuv before statx, the JVM's class path" },
    Row { calls: calls![SYS_newfstatat, SYS_statx], why: "glibc 2.33 and later, Node's libuv, Rust's std::fs::metadata" },
    Row {
        calls: calls![SYS_access, SYS_faccessat, SYS_faccessat2],
        why: "glibc's loader looks for ld.so.preload; bash's test -x; Node's fs.access",
    },
    Row {
        calls: calls![SYS_statfs, SYS_fstatfs],
        why: "Python's os.statvfs, .NET's DriveInfo, coreutils' df; the JVM looks for cgroups",
    },
    Row { calls: calls![SYS_getdents, SYS_getdents64], why: "Python's os.scandir, Node's require, Go's os.ReadDir" },
    Row {
        calls: calls![SYS_getcwd, SYS_chdir, SYS_fchdir],
        why: "Node's process.cwd, bash's cd, Python's os.chdir, coreutils' find and rm walk",
    },
    Row { calls: calls![SYS_readlink, SYS_readlinkat], why: "the JVM, .NET and Go read /proc/self/exe; Node's realpath" },
    Row { calls: calls![SYS_rename, SYS_renameat, SYS_renameat2], why: "Node's fs.rename, Python's os.replace, coreutils' mv" },
    Row { calls: calls![SYS_mkdir, SYS_mkdirat, SYS_rmdir], why: "Python's tempfile, Node's fs.mkdir, coreutils' mkdir and rm" },
    Row { calls: calls![SYS_unlink, SYS_unlinkat], why: "SQLite's journal, Python's tempfile, coreutils' rm" },
    Row { calls: calls![SYS_link, SYS_linkat], why: "git's objects, coreutils' ln, Python's os.link" },
    Row { calls: calls![SYS_symlink, SYS_symlinkat], why: "coreutils' ln -s, tar, npm's bin links under Node" },
    Row {
        calls: calls![SYS_mknod, SYS_mknodat],
        why: "coreutils' mkfifo and glibc's; a device needs a capability that nobody has",
    },
    Row { calls: calls![SYS_chmod, SYS_fchmod, SYS_fchmodat], why: "Python's shutil, Node's fs.chmod, unzip and tar" },
    Row { calls: calls![SYS_fchmodat2], why: "glibc 2.39 and later for AT_SYMLINK_NOFOLLOW, tar" },
    Row {
        calls: calls![SYS_chown, SYS_fchown, SYS_lchown],
        why: "tar and coreutils' cp -p keep the owner, who is the only one they can name",
    },
    Row { calls: calls![SYS_fchownat], why: "coreutils' chown and Node's fs.lchown" },
    Row { calls: calls![SYS_umask], why: "tar, git, the .NET host and Python's os.umask" },
    Row { calls: calls![SYS_utime, SYS_utimes, SYS_futimesat], why: "unzip and older Ruby and Python set times" },
    Row { calls: calls![SYS_utimensat], why: "tar, coreutils' touch, Node's fs.utimes" },
    Row { calls: calls![SYS_getxattr, SYS_lgetxattr, SYS_fgetxattr], why: "coreutils' ls -l and cp -a, Python's shutil.copy2" },
    Row {
        calls: calls![SYS_listxattr, SYS_llistxattr, SYS_flistxattr],
        why: "Python's shutil.copystat lists what it will copy; tar --xattrs",
    },
    Row {
        calls: calls![SYS_setxattr, SYS_lsetxattr, SYS_fsetxattr],
        why: "cp -a of coreutils and Python's shutil.copystat, onto /tmp",
    },
    Row { calls: calls![SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr], why: "Python's os.removexattr, tar" },
];

//! Calls on descriptors: bytes through them, waiting for them, positions and copies.

use libc::*;

use super::{Row, calls};

pub const ROWS: &[Row] = &[
    Row { calls: calls![SYS_read, SYS_write, SYS_close], why: "glibc's stdio and every runtime: bytes to and from descriptors" },
    Row {
        calls: calls![SYS_readv, SYS_writev, SYS_lseek],
        why: "Node's libuv writes several buffers at once; Python's io seeks",
    },
    Row { calls: calls![SYS_pread64, SYS_pwrite64], why: "Node's libuv (fs.read at a position), SQLite, the JVM reading jars" },
    Row { calls: calls![SYS_preadv, SYS_pwritev], why: "Node's libuv (fs.readv, fs.writev at a position)" },
    Row { calls: calls![SYS_preadv2, SYS_pwritev2], why: "Python's os.preadv with flags, RocksDB" },
    Row {
        calls: calls![SYS_dup, SYS_dup2, SYS_dup3],
        why: "bash redirections; Python's subprocess and glibc's posix_spawn place 0, 1 and 2",
    },
    Row { calls: calls![SYS_pipe, SYS_pipe2], why: "bash pipelines; Python's subprocess, libuv and Go's os/exec make pipes" },
    Row {
        calls: calls![SYS_close_range],
        why: "Python's subprocess, Go's os/exec and Rust programs close what a child must not inherit",
    },
    Row {
        calls: calls![SYS_poll, SYS_ppoll],
        why: "glibc's resolver, the JVM's sockets, Python's subprocess.communicate, Rust's start-up",
    },
    Row { calls: calls![SYS_select, SYS_pselect6], why: "Python's select, Ruby's IO.select, bash's read -t" },
    Row {
        calls: calls![SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl],
        why: "event loops: libuv, tokio, Go's netpoller, NIO of the JVM",
    },
    Row {
        calls: calls![SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_pwait2],
        why: "event loops wait: tokio, libuv and Go, libevent 2.2",
    },
    Row { calls: calls![SYS_eventfd, SYS_eventfd2], why: "libuv, tokio and Go wake their own loops" },
    Row {
        calls: calls![SYS_signalfd, SYS_signalfd4],
        why: "kiln-init reads its children's ends as bytes; GLib programs, supervisors in Python",
    },
    Row {
        calls: calls![SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime],
        why: "Python's os.timerfd_*, Boost.Asio's timers",
    },
    Row {
        calls: calls![SYS_sendfile, SYS_copy_file_range],
        why: "Python's shutil and libuv's fs.copyFile copy inside the kernel; coreutils' cp",
    },
    Row { calls: calls![SYS_splice], why: "Go's io.Copy between sockets, Rust's std::io::copy, coreutils' cat" },
    Row {
        calls: calls![SYS_fsync, SYS_fdatasync, SYS_sync_file_range],
        why: "SQLite, RocksDB and dpkg make their files durable",
    },
    Row { calls: calls![SYS_fadvise64, SYS_readahead], why: "coreutils' cp and sort, RocksDB tell how they will read" },
    Row { calls: calls![SYS_flock], why: "Python's fcntl.flock, .NET's FileShare, Ruby's File#flock" },
    Row {
        calls: calls![SYS_fallocate, SYS_ftruncate, SYS_truncate],
        why: "glibc's posix_fallocate, .NET's file creation, libuv's fs.truncate",
    },
    Row {
        calls: calls![SYS_inotify_init, SYS_inotify_init1, SYS_inotify_add_watch],
        why: "Node's fs.watch, .NET's reload of appsettings.json, tail -f of coreutils",
    },
    Row { calls: calls![SYS_inotify_rm_watch], why: "Node's fs.watch stops" },
];

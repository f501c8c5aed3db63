//! Takes from this process whatever unpacking does not need. Nothing here can be taken back.
//!
//! Landlock: no file but below the staging directory, and there only new ones. On a kernel without it the other
//! walls stand: a user id that owns nothing else, and a filter without sockets, processes, and programs.

use std::os::fd::BorrowedFd;

use landlock::{ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr};
use nix::sys::prctl;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::UnpackError;

/// Some calls, and who makes them.
struct Row {
    calls: &'static [libc::c_long],
    #[cfg_attr(not(test), expect(dead_code, reason = "for people; a test asks that there is one"))]
    why: &'static str,
}

macro_rules! calls {
    ($($name:ident),+) => { &[$(libc::$name),+] };
}

/// All that this process may do from here on; anything else kills it.
const ALLOWED: &[Row] = &[
    Row { calls: calls![SYS_pread64, SYS_fstat, SYS_statx], why: "extract reads the zip, and asks for its length" },
    Row { calls: calls![SYS_openat2, SYS_mkdirat, SYS_symlinkat], why: "extract makes files, directories and links" },
    Row { calls: calls![SYS_write], why: "extract writes files, run tells the size, eprintln an error" },
    Row { calls: calls![SYS_fstatfs], why: "extract asks how much room the disk has" },
    Row { calls: calls![SYS_close], why: "OwnedFd closes itself" },
    Row { calls: calls![SYS_fcntl], why: "OwnedFd asks for its flags before it closes, in a debug build of std" },
    Row { calls: calls![SYS_brk, SYS_mremap, SYS_madvise], why: "malloc" },
    Row { calls: calls![SYS_munmap], why: "malloc; the end of main gives its signal stack back" },
    Row { calls: calls![SYS_futex], why: "std's locks: stderr, Once" },
    Row { calls: calls![SYS_getrandom], why: "std seeds a HashMap" },
    Row { calls: calls![SYS_sigaltstack], why: "std puts the signal stack back at the end of main" },
    Row {
        calls: calls![SYS_rt_sigreturn, SYS_rt_sigaction],
        why: "std's handler of a stack overflow puts the default back, and returns",
    },
    Row { calls: calls![SYS_rt_sigprocmask, SYS_tgkill], why: "abort(3), so that a bug ends with its own signal" },
    Row { calls: calls![SYS_gettid, SYS_getpid], why: "abort(3) asks whom to end" },
    Row { calls: calls![SYS_exit, SYS_exit_group], why: "the end" },
];

/// Memory, but none that can be executed.
const NOT_EXECUTABLE: Row = Row { calls: calls![SYS_mmap, SYS_mprotect], why: "malloc, with new pages and old" };

/// Third argument of both: the protection.
const PROTECTION: u8 = 2;

/// The numbers of all calls that are allowed, some of them with conditions. For people and for tests.
pub fn allowed() -> impl Iterator<Item = libc::c_long> {
    ALLOWED.iter().chain([&NOT_EXECUTABLE]).flat_map(|row| row.calls).copied()
}

pub fn this_process(staging: BorrowedFd<'_>) -> Result<(), UnpackError> {
    // No core with somebody's code in it, no ptrace by a process of the same id.
    prctl::set_dumpable(false).map_err(UnpackError::ours("become undumpable"))?;
    prctl::set_no_new_privs().map_err(UnpackError::ours("refuse new privileges"))?;
    // Modes are exactly what is asked for.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    landlock(staging)?;
    // Last, so that it need not allow anything above.
    install(&filter(SeccompAction::KillProcess)?)
}

/// Best effort is the library's default: a kernel that knows fewer rights enforces those.
fn landlock(staging: BorrowedFd<'_>) -> Result<(), UnpackError> {
    let newest = ABI::V5;
    let here = AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::MakeSym | AccessFs::WriteFile;
    let confine = || -> Result<(), landlock::RulesetError> {
        Ruleset::default()
            .handle_access(AccessFs::from_all(newest))?
            .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
            .create()?
            .add_rule(PathBeneath::new(staging, here))?
            .restrict_self()
            .map(drop)
    };
    confine().map_err(std::io::Error::other).map_err(UnpackError::ours("confine to the staging directory"))
}

/// The program for the kernel; `otherwise` is done to whoever makes any other call.
pub fn filter(otherwise: SeccompAction) -> Result<BpfProgram, UnpackError> {
    let compile = || -> Result<BpfProgram, seccompiler::BackendError> {
        let always = ALLOWED.iter().flat_map(|row| row.calls.iter().map(|call| (*call, vec![])));
        let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        let mut not_executable = Vec::new();
        for call in NOT_EXECUTABLE.calls {
            let condition = SeccompCondition::new(PROTECTION, SeccompCmpArgLen::Dword, executable.clone(), 0)?;
            not_executable.push((*call, vec![SeccompRule::new(vec![condition])?]));
        }
        let rules = always.chain(not_executable).collect();
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)?.try_into()
    };
    compile().map_err(std::io::Error::other).map_err(UnpackError::ours("compile the filter"))
}

fn install(program: &BpfProgram) -> Result<(), UnpackError> {
    seccompiler::apply_filter(program).map_err(std::io::Error::other).map_err(UnpackError::ours("install the filter"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::io;
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

    use super::*;

    #[test]
    fn every_call_stands_once_and_every_row_has_a_reason() {
        let mut seen = BTreeSet::new();
        for row in ALLOWED.iter().chain([&NOT_EXECUTABLE]) {
            assert!(row.why.len() > 3 && row.calls.len() <= 3, "{}", row.why);
            assert!(row.calls.iter().all(|call| seen.insert(*call)), "{}", row.why);
        }
        assert!(!seen.contains(&libc::SYS_clone) && !seen.contains(&libc::SYS_execve) && !seen.contains(&libc::SYS_socket));
    }

    /// Both walls bind a thread only, so a test can stand behind them. What would kill is an error here.
    fn confined<T: Send>(test: impl FnOnce(BorrowedFd<'_>) -> T + Send) -> T {
        let directory = tempfile::tempdir().unwrap();
        let staging = File::open(directory.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                landlock(staging.as_fd()).unwrap();
                install(&filter(SeccompAction::Errno(libc::EDOM as u32)).unwrap()).unwrap();
                test(staging.as_fd())
            });
            thread.join().unwrap()
        })
    }

    fn is_filtered<T>(result: io::Result<T>) -> bool {
        result.err().and_then(|error| error.raw_os_error()) == Some(libc::EDOM)
    }

    #[test]
    fn no_file_outside_of_staging_can_be_opened_even_by_the_call_that_is_allowed() {
        let passwd = confined(|_| {
            openat2(CWD, "/etc/passwd", OFlags::RDONLY, Mode::empty(), ResolveFlags::empty()).map(drop).map_err(io::Error::from)
        });
        assert_eq!(passwd.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(confined(|_| is_filtered(File::open("/etc/passwd"))));
    }

    #[test]
    fn files_can_be_made_in_staging_and_not_read_back() {
        let (made, read) = confined(|staging| {
            let how = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let made = openat2(staging, "new", how, Mode::RUSR, ResolveFlags::BENEATH);
            (made.is_ok(), openat2(staging, "new", OFlags::RDONLY, Mode::empty(), ResolveFlags::BENEATH).is_ok())
        });
        assert_eq!((made, read), (true, false));
    }

    #[test]
    fn no_socket_no_process_no_executable_memory() {
        let results = confined(|_| {
            let executable = rustix::fs::memfd_create(c"x", rustix::fs::MemfdFlags::empty());
            [
                is_filtered(std::net::TcpListener::bind("127.0.0.1:0")),
                is_filtered(std::os::unix::net::UnixDatagram::unbound()),
                is_filtered(std::process::Command::new("/bin/true").spawn()),
                is_filtered(executable.map_err(io::Error::from)),
                is_filtered(std::fs::remove_file("/nowhere")),
            ]
        });
        assert_eq!(results, [true; 5]);
    }
}

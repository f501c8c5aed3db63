//! Calls whose arguments decide.
//!
//! A test sees the low 32 bits of an argument, and each call below has an argument of 32 bits there: the kernel does
//! not look at the rest either (clone(2) takes `lower_32_bits(clone_flags)`), so nothing can hide in it.

use libc::*;

use super::{Call, calls};

/// A call that is allowed if all tests of one of `any` hold, and else answers `otherwise`.
#[derive(Debug)]
pub struct Condition {
    pub call: Call,
    pub any: &'static [&'static [Test]],
    /// An errno that the call's callers expect.
    pub otherwise: i32,
    pub why: &'static str,
}

/// One argument, counted from 0, and what it has to be.
#[derive(Clone, Copy, Debug)]
pub struct Test(pub u32, pub Arg);

#[derive(Clone, Copy, Debug)]
pub enum Arg {
    OneOf(&'static [u32]),
    NoneOf(&'static [u32]),
    WithoutBits(u32),
}

use Arg::{NoneOf, OneOf, WithoutBits};

/// All that make a namespace. (CLONE_NEWTIME shares its bit with the exit signal; only clone3 knows it.)
const NEW_NAMESPACES: u32 =
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET) as u32;

const INTERNET: &[u32] = &[AF_INET as u32, AF_INET6 as u32];
/// The others load kernel modules on request (SCTP, DCCP) or are young (MPTCP: Go tries it and goes on).
const TCP_AND_UDP: &[u32] = &[0, IPPROTO_TCP as u32, IPPROTO_UDP as u32];
/// In every type beyond SOCK_RAW: 0 means a protocol that the type decides, and SOCK_DCCP (6) loads DCCP so (CVE-2017-6074).
const RARE_TYPES: u32 = 0b1100;

/// Each with its caller; the others are securebits, capabilities, filters, and what checkpoints need.
const PRCTL_OPTIONS: &[u32] = &[
    PR_SET_PDEATHSIG as u32,       // Python's and Go's children that die with their parent
    PR_GET_PDEATHSIG as u32,       // the same, looking
    PR_GET_DUMPABLE as u32,        // .NET's createdump
    PR_SET_DUMPABLE as u32,        // kiln-init, so that the function cannot trace it; ssh-agent
    PR_SET_NAME as u32,            // thread names: libuv, the JVM, .NET, glibc's pthread_setname_np
    PR_GET_NAME as u32,            // the same, looking
    PR_CAPBSET_READ as u32,        // libcap's start
    PR_GET_SECUREBITS as u32,      // libcap; our own probe
    PR_SET_CHILD_SUBREAPER as u32, // tini and other supervisors inside a function
    PR_GET_CHILD_SUBREAPER as u32, // the same, looking
    PR_SET_NO_NEW_PRIVS as u32,    // xz, bubblewrap: already so
    PR_GET_NO_NEW_PRIVS as u32,    // the same, looking
    PR_SET_THP_DISABLE as u32,     // Go 1.21 with disablethp, Redis
    PR_GET_THP_DISABLE as u32,     // the JVM's choice of huge pages
    PR_SET_VMA as u32,             // Go 1.25 and glibc's tunable name their maps
];

/// What forges a terminal's input (CVE-2017-5226, and for TIOCLINUX CVE-2023-28100), and what loads a kernel module for
/// whoever asks: for any line discipline (CVE-2017-2636, CVE-2023-6546), and by any socket for bridges and VLANs.
const TRICKS: &[u32] = &[
    TIOCSTI as u32,
    TIOCLINUX as u32,
    TIOCSETD,
    SIOCGIFBR,
    SIOCGIFBR + 1, // SIOCSIFBR
    SIOCGIFVLAN,
    SIOCGIFVLAN + 1, // SIOCSIFVLAN
    SIOCBRADDBR,
    SIOCBRADDBR + 1, // SIOCBRDELBR
    SIOCBRADDBR + 2, // SIOCBRADDIF
    SIOCBRADDBR + 3, // SIOCBRDELIF
];
/// asm-generic/ioctls.h and linux/sockios.h; missing in `libc`.
const TIOCSETD: u32 = 0x5423;
const SIOCGIFBR: u32 = 0x8940;
const SIOCGIFVLAN: u32 = 0x8982;
const SIOCBRADDBR: u32 = 0x89a0;

/// A lease makes everybody wait who opens the file, up to 45 s each time. Only its owner may have one; and what root inside owns
/// (`kiln container exec --root`) are trees that many containers have. Only file servers (Samba) ask for leases.
const LEASES: &[u32] = &[F_SETLEASE as u32, F_SETDELEG];
/// linux/fcntl.h since Linux 6.19; missing in `libc`.
const F_SETDELEG: u32 = 1024 + 16;

/// Pages that the administrator has set aside for somebody; no limit of ours counts them, and anybody may map them.
const HUGE_MAP: u32 = MAP_HUGETLB as u32;
const HUGE_FILE: u32 = MFD_HUGETLB;

const fn call(one: &'static [Call]) -> Call {
    one[0]
}

pub const CONDITIONS: &[Condition] = &[
    Condition {
        call: call(calls![SYS_clone]),
        any: &[&[Test(0, WithoutBits(NEW_NAMESPACES))]],
        otherwise: EPERM,
        why: "glibc's fork, posix_spawn and pthread_create, Go's threads; none makes a namespace",
    },
    Condition {
        call: call(calls![SYS_clone3]),
        any: &[],
        otherwise: ENOSYS,
        why: "glibc 2.34 and later tries it first and falls back to clone; its flags are in memory, out of a filter's sight",
    },
    Condition {
        call: call(calls![SYS_socket]),
        any: &[
            &[Test(0, OneOf(INTERNET)), Test(1, WithoutBits(RARE_TYPES)), Test(2, OneOf(TCP_AND_UDP))],
            &[Test(0, OneOf(&[AF_UNIX as u32])), Test(2, OneOf(&[0]))],
            // NETLINK_ROUTE alone; the others are doors of the firewall, of audit, of crypto modules.
            &[Test(0, OneOf(&[AF_NETLINK as u32])), Test(2, OneOf(&[NETLINK_ROUTE as u32]))],
        ],
        otherwise: EAFNOSUPPORT,
        why: "HTTP clients and servers of every runtime; netlink for glibc's getifaddrs and Go's net.Interfaces",
    },
    Condition {
        call: call(calls![SYS_socketpair]),
        any: &[&[Test(0, OneOf(&[AF_UNIX as u32]))]],
        otherwise: EAFNOSUPPORT,
        why: "libuv's stdio of a child process, Python's asyncio self-pipe, tokio's signals",
    },
    Condition {
        call: call(calls![SYS_prctl]),
        any: &[&[Test(0, OneOf(PRCTL_OPTIONS))]],
        otherwise: EINVAL,
        why: "kiln-init makes itself not dumpable; libuv, the JVM and .NET name threads. No securebits, no seccomp, no PR_SET_MM",
    },
    Condition {
        call: call(calls![SYS_ioctl]),
        any: &[&[Test(1, NoneOf(TRICKS))]],
        otherwise: EPERM,
        why: "glibc's isatty, libuv's FIONBIO and FIOCLEX, Python's fcntl.ioctl; not what forges a terminal's input or loads modules",
    },
    Condition {
        call: call(calls![SYS_fcntl]),
        any: &[&[Test(1, NoneOf(LEASES))]],
        otherwise: EACCES,
        why: "every runtime: close-on-exec, non-blocking, record locks (SQLite); no leases",
    },
    Condition {
        call: call(calls![SYS_mmap]),
        any: &[&[Test(3, WithoutBits(HUGE_MAP))]],
        otherwise: ENOMEM,
        why: "glibc's loader and malloc, every runtime; but not of huge pages, where the JVM goes on with small ones",
    },
    Condition {
        call: call(calls![SYS_memfd_create]),
        any: &[&[Test(1, WithoutBits(HUGE_FILE))]],
        otherwise: EINVAL,
        why: ".NET 7 and later map code pages twice; libffi's closures for Python's ctypes",
    },
    Condition {
        call: call(calls![SYS_personality]),
        any: &[&[Test(0, OneOf(&[0, u32::MAX]))]],
        otherwise: EPERM,
        why: "the JVM and Ruby builds ask (0xffffffff) or set what is (0); READ_IMPLIES_EXEC and no randomisation are refused",
    },
];

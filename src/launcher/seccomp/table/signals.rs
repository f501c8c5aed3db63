//! Signals and timers.

use libc::*;

use super::{Row, calls};

pub const ROWS: &[Row] = &[
    Row {
        calls: calls![SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn],
        why: "glibc's handlers; the JVM's safepoint polling page; Go's preemption",
    },
    Row { calls: calls![SYS_sigaltstack], why: "Go's, Rust's and the JVM's handlers of stack overflow run on their own stack" },
    Row {
        calls: calls![SYS_kill, SYS_tgkill, SYS_tkill],
        why: "glibc's raise and abort, Go's sysmon preempts threads, bash's kill",
    },
    Row {
        calls: calls![SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo],
        why: "glibc's sigqueue and pthread_sigqueue, coreutils' timeout",
    },
    Row {
        calls: calls![SYS_rt_sigsuspend, SYS_rt_sigpending, SYS_pause],
        why: "bash's wait, Python's signal.pause and sigpending, the JVM's old suspend",
    },
    Row { calls: calls![SYS_rt_sigtimedwait], why: "glibc's sigwait, which Python's signal.sigwait is" },
    Row {
        calls: calls![SYS_restart_syscall],
        why: "the kernel's own: a sleep goes on after a stop or a freeze, in every runtime",
    },
    Row { calls: calls![SYS_nanosleep, SYS_clock_nanosleep], why: "glibc's sleeps, Go's usleep in sysmon, Python's time.sleep" },
    Row {
        calls: calls![SYS_clock_gettime, SYS_gettimeofday, SYS_time],
        why: "every runtime where the vDSO gives up (a virtual machine without a stable TSC)",
    },
    Row { calls: calls![SYS_clock_getres], why: "libuv chooses its clock; Python's time.get_clock_info" },
    Row {
        calls: calls![SYS_alarm, SYS_setitimer, SYS_getitimer],
        why: "Python's signal.alarm and setitimer, Go's and Ruby's profilers",
    },
    Row {
        calls: calls![SYS_timer_create, SYS_timer_settime, SYS_timer_delete],
        why: "Ruby's time slices, coreutils' timeout, Go's profiler for each thread",
    },
    Row {
        calls: calls![SYS_timer_gettime, SYS_timer_getoverrun],
        why: "glibc's SIGEV_THREAD timers and whoever asks what is left of one",
    },
];

//! Processes, threads, who they are, their limits and their order.

use libc::*;

use super::{Row, calls};

pub const ROWS: &[Row] = &[
    Row {
        calls: calls![SYS_execveat],
        why: "the launcher's child executes kiln-init by descriptor, after this filter; glibc's fexecve",
    },
    Row {
        calls: calls![SYS_execve, SYS_vfork, SYS_wait4],
        why: "kiln-init starts the runtime and reaps; bash; glibc before posix_spawn by clone",
    },
    Row { calls: calls![SYS_fork], why: "bash and Ruby built on older C libraries, static programs" },
    Row { calls: calls![SYS_waitid], why: "Go's os.Process.Wait, Rust's and Python's waits on a pidfd" },
    Row {
        calls: calls![SYS_exit, SYS_exit_group],
        why: "glibc ends threads and processes; the launcher's child when execveat fails",
    },
    Row {
        calls: calls![SYS_pidfd_open, SYS_pidfd_send_signal],
        why: "kiln-init passes the runtime's pidfd; Go 1.23 and Python 3.9 signal by it",
    },
    Row {
        calls: calls![SYS_getpid, SYS_getppid, SYS_gettid],
        why: "every runtime names itself: Node's process.pid, the JVM's and Go's threads",
    },
    Row { calls: calls![SYS_setsid, SYS_getsid], why: "Python's start_new_session, Node's detached children" },
    Row {
        calls: calls![SYS_setpgid, SYS_getpgid, SYS_getpgrp],
        why: "bash's job control, Go's SysProcAttr.Setpgid, Ruby's pgroup",
    },
    // Who we are. All of them may be set only to what they already are.
    Row {
        calls: calls![SYS_getuid, SYS_geteuid, SYS_getgid],
        why: "glibc's secure mode, bash's start, Python's site and the JVM's hsperfdata",
    },
    Row { calls: calls![SYS_getegid, SYS_getgroups, SYS_getresuid], why: "bash's start, Node's process.getegid, coreutils' id" },
    Row {
        calls: calls![SYS_getresgid, SYS_capget],
        why: "Node reads its capabilities before it trusts NODE_OPTIONS; Ruby's Process::GID",
    },
    Row {
        calls: calls![SYS_setuid, SYS_setgid, SYS_setgroups],
        why: "libuv and Python's subprocess with a user; servers that drop root, and find it dropped",
    },
    Row {
        calls: calls![SYS_setreuid, SYS_setregid, SYS_capset],
        why: "bash when its ids differ, Python's os.setreuid, libcap's users giving up what they lack",
    },
    Row {
        calls: calls![SYS_setresuid, SYS_setresgid],
        why: "Ruby's Process::UID.change_privilege, git's and ssh's set-id guards",
    },
    Row { calls: calls![SYS_setfsuid, SYS_setfsgid], why: ".NET's impersonation shim and Java's NFS clients" },
    // Threads.
    Row { calls: calls![SYS_futex, SYS_set_robust_list], why: "glibc's mutexes and condition variables, Go's and .NET's locks" },
    Row { calls: calls![SYS_set_tid_address, SYS_rseq, SYS_arch_prctl], why: "glibc's start of every process (rseq since 2.35)" },
    Row {
        calls: calls![SYS_sched_yield, SYS_getcpu],
        why: "spinning locks of the JVM, Go and .NET; .NET's GC asks on which CPU it is",
    },
    Row {
        calls: calls![SYS_sched_getaffinity, SYS_sched_setaffinity],
        why: "glibc's CPU count for Node, Go, the JVM and Python; .NET pins GC threads",
    },
    Row {
        calls: calls![SYS_sched_getparam, SYS_sched_getscheduler],
        why: "glibc's pthread_getattr_np, which the JVM and V8 ask for the stack",
    },
    Row {
        calls: calls![SYS_sched_setparam, SYS_sched_setscheduler],
        why: "glibc's pthread_setschedparam (Ruby, ffmpeg); real time is refused by RLIMIT_RTPRIO",
    },
    Row {
        calls: calls![SYS_sched_get_priority_max, SYS_sched_get_priority_min],
        why: "the JVM and .NET read the bounds of thread priorities",
    },
    Row { calls: calls![SYS_sched_rr_get_interval], why: "Python's os.sched_rr_get_interval" },
    Row {
        calls: calls![SYS_getpriority, SYS_setpriority],
        why: "Node's os.setPriority, the JVM's ThreadPriorityPolicy, coreutils' nice; up only",
    },
    // Limits and usage.
    Row {
        calls: calls![SYS_getrlimit, SYS_setrlimit, SYS_prlimit64],
        why: "Node and the JVM raise their descriptors to the hard limit; glibc asks for the stack; bash's ulimit",
    },
    Row {
        calls: calls![SYS_getrusage, SYS_times, SYS_sysinfo],
        why: "Node's process.resourceUsage, bash's time, Python's os.times, libuv's free memory",
    },
    Row { calls: calls![SYS_uname], why: "Node's os.release, Python's platform, glibc's static programs" },
];

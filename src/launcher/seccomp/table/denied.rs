//! Calls that answer ENOSYS, and why. This list is for readers and for the test that none is forgotten: the filter
//! refuses what it does not allow.

use libc::*;

use super::{Call, calls};

/// Calls that are refused whatever their arguments.
#[derive(Debug)]
pub struct Denied {
    pub calls: &'static [Call],
    pub why: &'static str,
}

/// A call that `libc` does not name (yet).
const fn unnamed(name: &'static str, number: c_long) -> Call {
    Call::new(name, number)
}

/// Linux lets these pass every filter (since 6.14 and 6.18), so that probes of the host's work everywhere. Called by
/// anyone but the kernel's own trampoline they do nothing, or end the caller by SIGILL.
pub const PAST_EVERY_FILTER: &[Call] = &[unnamed("uretprobe", 335), unnamed("uprobe", 336)];

pub const DENIED: &[Denied] = &[
    // Ways out of the container, if the kernel has a hole.
    Denied {
        calls: calls![SYS_add_key, SYS_request_key, SYS_keyctl],
        why: "keyrings outlive and cross our containers (CVE-2016-0728)",
    },
    Denied {
        calls: calls![SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register],
        why: "its operations pass this filter by unseen; libuv, tokio and Java fall back to epoll",
    },
    Denied { calls: calls![SYS_bpf], why: "programs in the kernel; verifier holes gave root (CVE-2021-3490)" },
    Denied { calls: calls![SYS_perf_event_open], why: "measures what other containers do; long list of holes (CVE-2013-2094)" },
    Denied {
        calls: calls![SYS_userfaultfd],
        why: "stops the kernel in the middle of a copy, the exploit writer's clock; no runtime needs it",
    },
    Denied {
        calls: calls![SYS_ptrace],
        why: "reads and steers a process; debuggers are not functions, and init shares the function's uid",
    },
    Denied { calls: calls![SYS_process_vm_readv, SYS_process_vm_writev], why: "ptrace by another name" },
    Denied { calls: calls![SYS_process_madvise, SYS_process_mrelease], why: "reach into the memory of another process" },
    Denied { calls: calls![SYS_pidfd_getfd], why: "takes descriptors out of another process: init holds the control socket" },
    Denied { calls: calls![SYS_kcmp], why: "compares addresses inside the kernel; for checkpoints only" },
    Denied { calls: calls![SYS_get_robust_list], why: "tells another process's addresses; for checkpoints only" },
    Denied {
        calls: calls![SYS_open_by_handle_at, SYS_name_to_handle_at],
        why: "opens files by number, past the mount namespace (CVE-2014-3519; Docker's `shocker`)",
    },
    Denied {
        calls: calls![SYS_vmsplice, SYS_tee],
        why: "pages shared between pipes, as CVE-2022-0847 had it; whoever copies uses splice",
    },
    Denied { calls: calls![SYS_remap_file_pages], why: "deprecated since Linux 3.16, emulated, and wrong more than once" },
    Denied { calls: calls![SYS_modify_ldt], why: "16-bit segments for Wine; a rich source of kernel holes (CVE-2017-17053)" },
    Denied {
        calls: calls![SYS_seccomp],
        why: "a filter more slows every later call and can have a listener; xz and Chromium do without",
    },
    Denied {
        calls: calls![SYS_landlock_create_ruleset, SYS_landlock_add_rule, SYS_landlock_restrict_self],
        why: "sandboxes in the sandbox; xz, the one common caller, goes on without",
    },
    Denied { calls: calls![SYS_memfd_secret], why: "memory that nobody can reclaim or look into; off in most kernels" },
    // Namespaces and mounts.
    Denied {
        calls: calls![SYS_unshare, SYS_setns],
        why: "a namespace of one's own has capabilities, and with them most of the kernel's holes",
    },
    Denied { calls: calls![SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot], why: "the container's tree is the launcher's" },
    Denied {
        calls: calls![SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_mount_setattr,],
        why: "the same by the newer mount API (CVE-2022-0185: fsconfig)",
    },
    Denied {
        calls: &[unnamed("statmount", 457), unnamed("listmount", 458), unnamed("open_tree_attr", 467), unnamed("listns", 470)],
        why: "looks at mounts and namespaces, the host's among them where a check fails",
    },
    // The host's: time, names, power, modules, disks, log.
    Denied {
        calls: calls![SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_kexec_file_load],
        why: "the host's kernel itself",
    },
    Denied { calls: calls![SYS_reboot, SYS_swapon, SYS_swapoff, SYS_acct], why: "the host's power, swap and accounting" },
    Denied { calls: calls![SYS_syslog], why: "the host's kernel log, with its addresses" },
    Denied { calls: calls![SYS_iopl, SYS_ioperm], why: "the host's devices" },
    Denied { calls: calls![SYS_settimeofday, SYS_clock_settime, SYS_adjtimex, SYS_clock_adjtime], why: "the host's clock" },
    Denied {
        calls: calls![SYS_sethostname, SYS_setdomainname],
        why: "the container's name is the launcher's; log lines carry it",
    },
    Denied { calls: calls![SYS_quotactl, SYS_quotactl_fd], why: "the host's disk quotas" },
    Denied {
        calls: calls![SYS_sync, SYS_syncfs],
        why: "makes everybody wait for the host's disk; fsync of one's own file is there",
    },
    Denied { calls: calls![SYS_vhangup], why: "hangs up the host's terminal" },
    Denied {
        calls: calls![SYS_lookup_dcookie, SYS_sysfs, SYS_ustat],
        why: "profilers' and file systems' old ways to look at the host",
    },
    Denied {
        calls: calls![SYS_fanotify_init, SYS_fanotify_mark],
        why: "watches a whole mount, other containers' reads of a shared tree among them",
    },
    Denied {
        calls: &[unnamed("cachestat", 451)],
        why: "tells which pages of a shared tree are in the host's cache: who else runs it",
    },
    // Shared with the other containers.
    Denied {
        calls: calls![SYS_io_setup, SYS_io_destroy, SYS_io_submit, SYS_io_cancel, SYS_io_getevents],
        why: "its contexts count against one limit for the whole host (fs.aio-max-nr); databases fall back to threads",
    },
    Denied { calls: &[unnamed("io_pgetevents", 333)], why: "the same contexts: waits for their completions" },
    Denied { calls: calls![SYS_ioprio_set, SYS_ioprio_get], why: "order at a disk that others use too" },
    Denied {
        calls: calls![
            SYS_mbind,
            SYS_set_mempolicy,
            SYS_get_mempolicy,
            SYS_set_mempolicy_home_node,
            SYS_migrate_pages,
            SYS_move_pages,
        ],
        why: "placement on the host's nodes; libnuma, the JVM and .NET read ENOSYS as a machine without nodes",
    },
    Denied {
        calls: calls![SYS_sched_setattr, SYS_sched_getattr],
        why: "deadline class and utilisation clamps; only chrt calls them",
    },
    // Nobody has called them for long, or the kernel has never had them.
    Denied {
        calls: calls![
            SYS_uselib,
            SYS__sysctl,
            SYS_nfsservctl,
            SYS_getpmsg,
            SYS_putpmsg,
            SYS_afs_syscall,
            SYS_tuxcall,
            SYS_security
        ],
        why: "removed from Linux, or never there on x86_64",
    },
    Denied {
        calls: calls![SYS_set_thread_area, SYS_get_thread_area, SYS_epoll_ctl_old, SYS_epoll_wait_old, SYS_vserver],
        why: "reserved on x86_64, never there",
    },
    Denied {
        calls: &[unnamed("create_module", 174), unnamed("get_kernel_syms", 177), unnamed("query_module", 178)],
        why: "modules as Linux 2.4 had them",
    },
    // Young: no C library of our runtimes calls them, or it falls back.
    Denied {
        calls: &[
            unnamed("futex_waitv", SYS_futex_waitv),
            unnamed("futex_wake", 454),
            unnamed("futex_wait", 455),
            unnamed("futex_requeue", 456),
        ],
        why: "Wine's; glibc uses futex",
    },
    Denied {
        calls: &[
            unnamed("setxattrat", 463),
            unnamed("getxattrat", 464),
            unnamed("listxattrat", 465),
            unnamed("removexattrat", 466),
        ],
        why: "Linux 6.13; coreutils and tar fall back to the older twelve",
    },
    Denied {
        calls: &[unnamed("file_getattr", 468), unnamed("file_setattr", 469)],
        why: "Linux 6.17; flags of host file systems",
    },
    Denied {
        calls: &[unnamed("lsm_get_self_attr", 459), unnamed("lsm_set_self_attr", 460), unnamed("lsm_list_modules", 461)],
        why: "security labels are the host's",
    },
    Denied {
        calls: &[unnamed("map_shadow_stack", 453)],
        why: "only after arch_prctl has turned shadow stacks on, which glibc 2.41 does not by itself",
    },
    Denied { calls: calls![SYS_mseal], why: "Linux 6.10; glibc goes on without" },
    Denied {
        calls: PAST_EVERY_FILTER,
        why: "only the kernel's own trampolines call them; newer kernels let them pass every filter, and they do nothing",
    },
];

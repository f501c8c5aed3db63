//! Sockets, once made ([`super::CONDITIONS`] says which may be made), and messages between processes.

use libc::*;

use super::{Row, calls};

pub const ROWS: &[Row] = &[
    Row {
        calls: calls![SYS_connect, SYS_getsockname, SYS_getpeername],
        why: "HTTP clients of Node, Python, Go and the JVM; all of them at the Runtime API",
    },
    Row {
        calls: calls![SYS_bind, SYS_listen, SYS_shutdown],
        why: "Node's and Go's http servers on loopback, between a function and its children",
    },
    Row { calls: calls![SYS_accept, SYS_accept4], why: "Node's, Go's and Python's servers on loopback and Unix sockets" },
    Row { calls: calls![SYS_sendto, SYS_recvfrom], why: "glibc's resolver, Python's and Go's datagrams, curl" },
    Row {
        calls: calls![SYS_sendmsg, SYS_recvmsg],
        why: "kiln-init passes the runtime's pidfd; glibc's getifaddrs reads netlink; libuv's IPC",
    },
    Row { calls: calls![SYS_sendmmsg, SYS_recvmmsg], why: "glibc's resolver asks for A and AAAA at once; libuv's datagrams" },
    Row {
        calls: calls![SYS_setsockopt, SYS_getsockopt],
        why: "every HTTP client: TCP_NODELAY, SO_ERROR after a connect (libuv, Go)",
    },
    // System V and POSIX messages: namespaced, charged to the container, gone with it.
    Row {
        calls: calls![SYS_semget, SYS_semop, SYS_semctl],
        why: "Perl's and Ruby's SysV semaphores, fakeroot, older PostgreSQL",
    },
    Row { calls: calls![SYS_semtimedop], why: "Python's sysv_ipc waits with a limit; APR's locks" },
    Row { calls: calls![SYS_msgget, SYS_msgsnd, SYS_msgrcv], why: "fakeroot's faked, Python's sysv_ipc" },
    Row { calls: calls![SYS_msgctl], why: "fakeroot removes its queues" },
    Row { calls: calls![SYS_mq_open, SYS_mq_unlink, SYS_mq_getsetattr], why: "Python's posix_ipc makes and removes queues" },
    Row {
        calls: calls![SYS_mq_timedsend, SYS_mq_timedreceive, SYS_mq_notify],
        why: "Python's posix_ipc sends, receives, is told",
    },
    Row { calls: calls![SYS_getrandom], why: "Python's hash seed, Go's maps, OpenSSL, glibc malloc's tcache key" },
];

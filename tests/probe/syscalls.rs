//! Tries every system-call number, by the 64-bit entry, and some by the 32-bit and the x32 entry.
//!
//! Each try is a forked child that makes one call and leaves its result in shared memory. The arguments are -1
//! throughout, which is no descriptor, no address, no signal and no flag set that exists, so that an allowed call fails
//! without doing anything; the few that would do something, or that answer ENOSYS themselves, have their own.
//!
//! A child makes its call in one frame of assembly: a call may come back twice (fork), share our memory (vfork), or
//! never come back (exit), and none of that may reach Rust code.

use std::arch::asm;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use std::{io, mem, ptr};

use serde_json::{Map, Value, json};

use crate::tell;

const NUMBERS: u32 = 471;
const X32_BIT: u32 = 0x4000_0000;
const BATCH: usize = 24;
/// A call that has not come back by then waits for something: pause(2) does.
const PATIENCE: Duration = Duration::from_millis(200);
/// On the second try, in case that the machine was merely slow.
const MORE_PATIENCE: Duration = Duration::from_millis(600);

const NOTHING: u64 = u64::MAX;
const BOGUS: [u64; 6] = [NOTHING; 6];
/// What a slot holds until its child has an answer; no call returns it.
const PENDING: i64 = i64::MIN;

#[derive(Clone, Copy)]
enum Entry {
    Native,
    /// `int 0x80`: another table of numbers.
    I386,
}

#[derive(Clone, Copy)]
struct Try {
    entry: Entry,
    number: u32,
    arguments: [u64; 6],
}

/// Calls of the 32-bit table. getpid is the one that must work wherever the entry works.
const I386: &[(u32, &str)] = &[
    (20, "getpid"),
    (3, "read"),
    (5, "open"),
    (11, "execve"),
    (21, "mount"),
    (26, "ptrace"),
    (102, "socketcall"),
    (117, "ipc"),
    (120, "clone"),
    (123, "modify_ldt"),
    (128, "init_module"),
    (172, "prctl"),
    (192, "mmap2"),
    (288, "keyctl"),
    (310, "unshare"),
    (336, "perf_event_open"),
    (356, "memfd_create"),
    (357, "bpf"),
    (359, "socket"),
    (425, "io_uring_setup"),
    (435, "clone3"),
];

/// Calls whose arguments decide, on both sides of the decision. `tests/seccomp.rs` asks the table what it says to each.
const ARGUMENTS: &[(&str, i64, [u64; 3])] = &[
    // A user namespace, and in it any other, is what the kernel itself grants to everybody.
    ("clone with a user namespace", libc::SYS_clone, [libc::CLONE_NEWUSER as u64 | 17, 0, 0]),
    ("clone with a network namespace", libc::SYS_clone, [libc::CLONE_NEWNET as u64 | 17, 0, 0]),
    ("clone as fork", libc::SYS_clone, [17, 0, 0]),
    ("clone3", libc::SYS_clone3, [0, 88, 0]),
    ("socket AF_UNIX", libc::SYS_socket, [libc::AF_UNIX as u64, 1, 0]),
    ("socket AF_INET", libc::SYS_socket, [libc::AF_INET as u64, 1, 0]),
    ("socket AF_INET6", libc::SYS_socket, [libc::AF_INET6 as u64, 2, 17]),
    ("socket NETLINK_ROUTE", libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0]),
    ("socket NETLINK_NETFILTER", libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 12]),
    ("socket AF_INET, SCTP", libc::SYS_socket, [libc::AF_INET as u64, 1, 132]),
    ("socket AF_PACKET", libc::SYS_socket, [libc::AF_PACKET as u64, 3, 0]),
    ("socket AF_VSOCK", libc::SYS_socket, [libc::AF_VSOCK as u64, 1, 0]),
    ("socket AF_ALG", libc::SYS_socket, [libc::AF_ALG as u64, 5, 0]),
    ("prctl PR_GET_SECUREBITS", libc::SYS_prctl, [libc::PR_GET_SECUREBITS as u64, 0, 0]),
    ("prctl PR_GET_KEEPCAPS", libc::SYS_prctl, [libc::PR_GET_KEEPCAPS as u64, 0, 0]),
    ("prctl PR_GET_SECCOMP", libc::SYS_prctl, [libc::PR_GET_SECCOMP as u64, 0, 0]),
    ("prctl PR_SET_SECUREBITS", libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, 0, 0]),
    ("prctl PR_CAP_AMBIENT, clear all", libc::SYS_prctl, [libc::PR_CAP_AMBIENT as u64, 4, 0]),
    ("ioctl TIOCSTI", libc::SYS_ioctl, [NOTHING, libc::TIOCSTI, 0]),
    ("ioctl TIOCSTI under garbage", libc::SYS_ioctl, [NOTHING, 1 << 40 | libc::TIOCSTI, 0]),
    ("ioctl TCGETS", libc::SYS_ioctl, [NOTHING, libc::TCGETS, 0]),
    ("personality, asking", libc::SYS_personality, [0xffff_ffff, 0, 0]),
    ("personality ADDR_NO_RANDOMIZE", libc::SYS_personality, [0x4_0000, 0, 0]),
];

/// `allowed` is every native number that did not answer ENOSYS.
pub fn every_number() -> Value {
    let begin = Instant::now();
    let native = |number| Try { entry: Entry::Native, number, arguments: arguments(number) };
    let numbers: Vec<Try> = (0..NUMBERS).map(native).collect();
    let x32: Vec<Try> = [0, 1, 39, 57, 59, 101, 165, 250, 425].into_iter().chain(512..548).map(|n| native(n | X32_BIT)).collect();
    let i386: Vec<Try> = I386.iter().map(|&(number, _)| Try { entry: Entry::I386, number, arguments: BOGUS }).collect();
    let chosen: Vec<Try> = ARGUMENTS
        .iter()
        .map(|&(_, number, [a, b, c])| Try { entry: Entry::Native, number: number as u32, arguments: [a, b, c, 0, 0, 0] })
        .collect();

    let tries: Vec<Try> = [numbers.as_slice(), &x32, &i386, &chosen].concat();
    let results = match try_all(&tries) {
        Ok(results) => results,
        Err(error) => return json!({ "error": tell::errno(&error) }),
    };
    let (numbers_told, rest) = results.split_at(numbers.len());
    let (x32_told, rest) = rest.split_at(x32.len());
    let (i386_told, chosen_told) = rest.split_at(i386.len());

    let allowed: Vec<usize> = (0..numbers_told.len()).filter(|&number| numbers_told[number] != "ENOSYS").collect();
    let by_number: Map<String, Value> = numbers_told.iter().enumerate().map(|(n, told)| (n.to_string(), json!(told))).collect();
    let by_x32: Map<String, Value> =
        x32.iter().zip(x32_told).map(|(one, told)| ((one.number ^ X32_BIT).to_string(), json!(told))).collect();
    let by_i386: Map<String, Value> =
        I386.iter().zip(i386_told).map(|((_, name), told)| ((*name).to_owned(), json!(told))).collect();
    let by_arguments: Vec<Value> = ARGUMENTS
        .iter()
        .zip(chosen_told)
        .map(
            |((case, number, arguments), told)| json!({ "case": case, "number": number, "arguments": arguments, "result": told }),
        )
        .collect();
    json!({
        "allowed": allowed,
        "numbers": by_number,
        "x32": by_x32,
        "i386": by_i386,
        "arguments": by_arguments,
        "took_ms": begin.elapsed().as_millis() as u64,
    })
}

/// Where -1 would do something, or would be answered ENOSYS by the call itself.
fn arguments(number: u32) -> [u64; 6] {
    const NOBODY: u64 = 0x3fff_fffe; // above pid_max
    match i64::from(number) {
        libc::SYS_kill | libc::SYS_tkill => [NOBODY, 0, 0, 0, 0, 0],
        libc::SYS_tgkill => [NOBODY, NOBODY, 0, 0, 0, 0],
        // FUTEX_WAKE of an address that is not aligned.
        libc::SYS_futex => [1, 1, 0, 0, 0, 0],
        // With all flags it would make a queue.
        libc::SYS_msgget | libc::SYS_semget | libc::SYS_shmget => [0x6b69_6c6e, 0, 0, 0, 0, 0],
        // Reads nothing into nothing.
        libc::SYS_modify_ldt => [0; 6],
        libc::SYS_exit | libc::SYS_exit_group | libc::SYS_alarm => [0; 6],
        _ => BOGUS,
    }
}

fn try_all(tries: &[Try]) -> io::Result<Vec<String>> {
    let mut results = Vec::new();
    for batch in tries.chunks(BATCH) {
        results.extend(try_batch(batch, PATIENCE)?);
    }
    for (one, result) in tries.iter().zip(&mut results) {
        if result == "blocked" {
            *result = try_batch(&[*one], MORE_PATIENCE)?.remove(0);
        }
    }
    Ok(results)
}

/// Children side by side; those that have not ended when patience has are killed.
fn try_batch(batch: &[Try], patience: Duration) -> io::Result<Vec<String>> {
    let slots = Slots::new(batch.len())?;
    let child_ended = only_child_signal();
    // SAFETY: blocks SIGCHLD in this thread (the only one), so that it stays pending until awaited below.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &child_ended, ptr::null_mut()) };
    let mut children = Vec::new();
    for (one, slot) in batch.iter().zip(slots.all()) {
        // SAFETY: this process has one thread, and the child runs `child` only, which does not return.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => child(one, slot),
            pid => children.push(pid),
        }
    }
    let deadline = Instant::now() + patience;
    let mut ends: Vec<Option<i32>> = vec![None; children.len()];
    while ends.contains(&None) {
        for (&pid, end) in children.iter().zip(&mut ends) {
            if end.is_none() {
                *end = reap(pid, libc::WNOHANG);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if ends.contains(&None) {
            let left = libc::timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            // SAFETY: waits for the signal blocked above; both structures live through the call.
            unsafe { libc::sigtimedwait(&child_ended, ptr::null_mut(), &left) };
        }
    }
    let told = children.iter().zip(ends).zip(slots.all()).map(|((&pid, end), slot)| {
        let end = end.or_else(|| {
            // SAFETY: our own child, not reaped yet, so the number is still its.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            reap(pid, 0).map(|status| if status == libc::SIGKILL { BLOCKED } else { status })
        });
        describe(slot.load(Ordering::Relaxed), end.unwrap_or(BLOCKED))
    });
    Ok(told.collect())
}

/// In place of a wait status, which has 16 bits.
const BLOCKED: i32 = -1;

fn describe(result: i64, end: i32) -> String {
    match result {
        PENDING if end == BLOCKED => "blocked".to_owned(),
        PENDING if libc::WIFSIGNALED(end) => format!("signal {}", libc::WTERMSIG(end)),
        PENDING => "exited".to_owned(),
        -4095..=-1 => tell::errno_name(-result as i32),
        _ => "ok".to_owned(),
    }
}

fn reap(pid: libc::pid_t, options: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: our own child, one integer for its status.
    let reaped = unsafe { libc::waitpid(pid, &mut status, options) };
    (reaped == pid).then_some(status)
}

fn only_child_signal() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises what zeroes began.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        set
    }
}

/// One answer for each child, in memory that they share with us.
struct Slots {
    start: *mut AtomicI64,
    count: usize,
}

impl Slots {
    fn new(count: usize) -> io::Result<Self> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous mapping where the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), count * size_of::<AtomicI64>(), access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let slots = Self { start: start.cast(), count };
        slots.all().iter().for_each(|slot| slot.store(PENDING, Ordering::Relaxed));
        Ok(slots)
    }

    fn all(&self) -> &[AtomicI64] {
        // SAFETY: mapped for so many, zeroed by the kernel, aligned to a page; atomics may be shared between processes.
        unsafe { std::slice::from_raw_parts(self.start, self.count) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; `all` borrows from self, so no reference is left.
        unsafe { libc::munmap(self.start.cast(), self.count * size_of::<AtomicI64>()) };
    }
}

fn child(one: &Try, slot: &AtomicI64) -> ! {
    let [a, b, c, d, e, f] = one.arguments;
    // SAFETY: the arguments name nothing of this process (see `arguments`), and it ends right after. `call` and its
    // neighbours keep what the compiler relies on.
    let result = unsafe {
        match (one.entry, i64::from(one.number & !X32_BIT)) {
            (Entry::I386, _) => call_i386(one.number),
            (Entry::Native, libc::SYS_rt_sigreturn) => call_without_stack(one.number),
            _ => call(one.number, a, b, c, d, e, f),
        }
    };
    slot.store(result, Ordering::Relaxed);
    // SAFETY: ends the child without the parent's exit handlers.
    unsafe { libc::_exit(0) }
}

/// One call. Whoever comes back as the child of a forking call ends at once, in registers only: after vfork(2) the stack is
/// still its parent's.
unsafe fn call(number: u32, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> i64 {
    let mut result = i64::from(number);
    let forks = matches!(i64::from(number & !X32_BIT), libc::SYS_clone | libc::SYS_fork | libc::SYS_vfork | libc::SYS_clone3);
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "test r12, r12",
            "jz 2f",
            "mov eax, 231", // exit_group
            "xor edi, edi",
            "syscall",
            "2:",
            inlateout("rax") result,
            inlateout("rdi") a => _, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            in("r12") u64::from(forks),
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// rt_sigreturn(2) takes its registers from the stack. Without one it ends the process by SIGSEGV, and cannot go astray.
unsafe fn call_without_stack(number: u32) -> i64 {
    let mut result = i64::from(number);
    unsafe {
        asm!(
            "mov r12, rsp",
            "xor esp, esp",
            "syscall",
            "mov rsp, r12",
            inlateout("rax") result,
            lateout("r12") _, lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// The 32-bit entry, which a 64-bit process has too. The arguments are -1.
unsafe fn call_i386(number: u32) -> i64 {
    let mut result = u64::from(number);
    unsafe {
        asm!(
            "xchg r12, rbx", // the compiler's own
            "int 0x80",
            "xchg r12, rbx",
            inlateout("rax") result,
            inlateout("r12") NOTHING => _,
            in("rcx") NOTHING, in("rdx") NOTHING, in("rsi") NOTHING, in("rdi") NOTHING,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    i64::from(result as i32)
}

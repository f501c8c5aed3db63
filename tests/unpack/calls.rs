//! What an unpack that was taken over can still ask of the kernel: its own filter, tried with every number.
//!
//! Each try is a child that installs the filter, makes one call, and exits. A call outside of the list ends it with
//! SIGSYS. The arguments are -1 throughout: no descriptor, no address, no process that exists, so that an allowed
//! call fails without doing anything.

use std::arch::asm;
use std::collections::BTreeSet;
use std::ffi::c_long;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use kiln::inside::unpack::confine::{allowed, filter};
use kiln::launcher::seccomp::table::PAST_EVERY_FILTER;
use seccompiler::{BpfProgram, SeccompAction, apply_filter};

/// One past the newest call that these tests know.
const NUMBERS: c_long = 471;
/// Set in the number of a call by the x32 entry.
const X32: c_long = 0x4000_0000;

fn program() -> BpfProgram {
    filter(SeccompAction::KillProcess).expect("the filter of unpack")
}

/// How a child ends that makes one call behind the filter, or (`None`) without any.
fn end_of(program: Option<&BpfProgram>, call: impl FnOnce()) -> ExitStatus {
    // SAFETY: until it exits the child makes system calls only, and allocates nothing: other threads of this program
    // may have held any lock at the fork.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let confined = program.is_none_or(|program| apply_filter(program).is_ok());
        if confined {
            call();
        }
        // SAFETY: ends the child, without its parent's exit handlers.
        unsafe { libc::_exit(if confined { 0 } else { 77 }) }
    }
    let mut status = 0;
    // SAFETY: waits for the child that was just made.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    let status = ExitStatus::from_raw(status);
    assert_ne!(status.code(), Some(77), "the filter could not be installed");
    status
}

fn is_refused(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGSYS)
}

fn call(number: c_long, arguments: [c_long; 6]) -> impl FnOnce() {
    let [a, b, c, d, e, f] = arguments;
    move || {
        // SAFETY: whatever the call does, it does to a child that exits after it.
        let _ = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    }
}

#[test]
fn every_other_call_ends_the_process() {
    let program = program();
    // These the kernel lets past every filter.
    let past = |number: &c_long| PAST_EVERY_FILTER.iter().any(|call| c_long::from(call.number) == *number);
    let tried = (0..NUMBERS).filter(|number| !past(number));
    let seen: BTreeSet<c_long> = tried.filter(|number| !is_refused(end_of(Some(&program), call(*number, [-1; 6])))).collect();
    // With -1 as their protection these two ask for executable memory; the next test asks for less.
    let listed: BTreeSet<c_long> = allowed().filter(|number| ![libc::SYS_mmap, libc::SYS_mprotect].contains(number)).collect();
    assert_eq!(seen, listed, "tried on the left, listed on the right");
}

#[test]
fn memory_is_had_but_none_that_can_be_executed() {
    let program = program();
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        let refused = |protection: i32| is_refused(end_of(Some(&program), call(number, [-1, -1, protection.into(), -1, -1, -1])));
        assert!(!refused(libc::PROT_READ | libc::PROT_WRITE), "{number}");
        assert!(refused(libc::PROT_EXEC) && refused(libc::PROT_READ | libc::PROT_EXEC), "{number}");
    }
}

#[test]
fn the_32_bit_and_the_x32_entry_end_the_process() {
    let program = program();
    for number in allowed() {
        assert!(is_refused(end_of(Some(&program), call(number | X32, [-1; 6]))), "x32 {number}");
    }
    let getpid = || {
        // SAFETY: getpid(2) in the 32-bit table; it touches the registers named here, in a child that exits next.
        unsafe { asm!("int 0x80", inlateout("rax") 20_i64 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _) }
    };
    if end_of(None, getpid).success() {
        assert!(is_refused(end_of(Some(&program), getpid)), "int 0x80");
    } else {
        println!("SKIP: this kernel has no 32-bit entry");
    }
}

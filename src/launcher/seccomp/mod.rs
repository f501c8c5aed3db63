//! The system-call filter of every container, as plain data; installing it is `sys`'s.
//!
//! Made once in a launcher, installed by each child as the last step before it executes kiln-init. It stays on for
//! kiln-init and for everything that the function starts. What it says is [`table`]; how that becomes a short program is
//! [`compile`].
//!
//! ```text
//! architecture other than x86_64 (the 32-bit entry)  →  ENOSYS
//! number with the x32 bit                            →  ENOSYS
//! number in the table                                →  allowed
//! number with conditions                             →  its arguments decide, else an errno its callers expect
//! every other number                                 →  ENOSYS
//! ```
//!
//! ENOSYS, not EPERM and not a kill: C libraries and runtimes know it from older kernels and fall back.

mod compile;
pub mod table;

#[cfg(test)]
mod tests;

pub use crate::sys::seccomp::Instruction;
use compile::{Place, Program};
use table::{Arg, CONDITIONS, Condition, Test};

// Offsets in `seccomp_data`, seccomp(2).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// linux/audit.h: EM_X86_64, 64 bits, little-endian.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Linux adds it to numbers of the x32 entry, which shares the 64-bit one's architecture.
const X32_BIT: u32 = 0x4000_0000;

/// The program for [`table`].
pub fn filter() -> Vec<Instruction> {
    let mut program = Program::default();
    let allow = program.answer(libc::SECCOMP_RET_ALLOW);
    let unknown = program.answer(refusal(libc::ENOSYS));
    let mut special: Vec<(u32, Place)> = table::allowed().map(|call| (call.number, allow)).collect();
    for condition in CONDITIONS {
        special.push((condition.call.number, decide(&mut program, condition, allow, unknown)));
    }
    let by_number = program.choose(&special, unknown);
    let not_x32 = program.if_at_least(X32_BIT, unknown, by_number);
    let number = program.load(NUMBER, not_x32);
    let native = program.if_equal(AUDIT_ARCH_X86_64, number, unknown);
    program.load(ARCHITECTURE, native);
    program.finish()
}

/// Tries the alternatives of a condition in turn.
fn decide(program: &mut Program, condition: &Condition, allow: Place, unknown: Place) -> Place {
    let refuse = match condition.otherwise {
        libc::ENOSYS => unknown,
        errno => program.answer(refusal(errno)),
    };
    condition.any.iter().rev().fold(refuse, |otherwise, tests| {
        tests.iter().rev().fold(allow, |then, Test(argument, expected)| {
            let tested = match expected {
                Arg::OneOf(values) => choose_all(program, values, then, otherwise),
                Arg::NoneOf(values) => choose_all(program, values, otherwise, then),
                Arg::WithoutBits(mask) => program.if_any_bit(*mask, otherwise, then),
            };
            program.load(ARGUMENTS + 8 * argument, tested)
        })
    })
}

fn choose_all(program: &mut Program, values: &[u32], listed: Place, others: Place) -> Place {
    let special: Vec<(u32, Place)> = values.iter().map(|&value| (value, listed)).collect();
    program.choose(&special, others)
}

fn refusal(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

//! Placeholder until the filter's own room is merged: everything is allowed.

pub use crate::sys::seccomp::Instruction;

/// BPF_RET | BPF_K with SECCOMP_RET_ALLOW.
const ALLOW_ALL: [Instruction; 1] = [Instruction { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 }];

pub fn filter() -> &'static [Instruction] {
    &ALLOW_ALL
}

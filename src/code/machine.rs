//! For which machine a program was built, by its first bytes. Pure.

use std::fmt;

/// As many bytes of a file as it takes to tell.
pub const ENOUGH: usize = 20;

/// What a program needs to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Linux's own: bits, and the number of the processor (`e_machine`).
    Elf {
        bits: u8,
        number: u16,
    },
    MacOs,
    Windows,
}

/// What this program itself was built for.
#[cfg(target_arch = "x86_64")]
pub const HOST: Machine = Machine::Elf { bits: 64, number: 62 };
#[cfg(target_arch = "aarch64")]
pub const HOST: Machine = Machine::Elf { bits: 64, number: 183 };

/// <https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html>
const ELF: &[u8] = b"\x7fELF";
/// Of 64 and 32 bits and of two machines in one; the last is Java's, too, but those are not started as programs.
const MAC: [&[u8]; 3] = [b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];

impl Machine {
    /// `None`: a script, or what nobody knows.
    pub fn of(first: &[u8]) -> Option<Self> {
        if MAC.iter().any(|magic| first.starts_with(magic)) {
            return Some(Self::MacOs);
        }
        if first.starts_with(b"MZ") {
            return Some(Self::Windows);
        }
        let header = first.get(..ENOUGH).filter(|header| header.starts_with(ELF))?;
        let number = [header[18], header[19]];
        let number = if header[5] == 2 { u16::from_be_bytes(number) } else { u16::from_le_bytes(number) };
        Some(Self::Elf { bits: if header[4] == 1 { 32 } else { 64 }, number })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MacOs => f.write_str("macOS"),
            Self::Windows => f.write_str("Windows"),
            Self::Elf { number: 183, .. } => f.write_str("arm64 (aarch64)"),
            Self::Elf { bits: 64, number: 62 } => f.write_str("x86_64"),
            Self::Elf { number: 62, .. } => f.write_str("x32"),
            Self::Elf { number: 3, .. } => f.write_str("i386"),
            Self::Elf { number: 40, .. } => f.write_str("32-bit arm"),
            Self::Elf { number: 243, .. } => f.write_str("riscv"),
            Self::Elf { bits, number } => write!(f, "another machine ({bits}-bit ELF, number {number})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(class: u8, order: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut header = ELF.to_vec();
        header.extend([class, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        header.extend(machine);
        header
    }

    #[test]
    fn programs_are_told_apart() {
        let of = |first: &[u8]| Machine::of(first).map(|machine| machine.to_string());
        assert_eq!(of(&elf(2, 1, [62, 0])).as_deref(), Some("x86_64"));
        assert_eq!(of(&elf(1, 1, [62, 0])).as_deref(), Some("x32"));
        assert_eq!(of(&elf(2, 1, [183, 0])).as_deref(), Some("arm64 (aarch64)"));
        assert_eq!(of(&elf(2, 2, [0, 22])).as_deref(), Some("another machine (64-bit ELF, number 22)"));
        assert_eq!(of(b"\xcf\xfa\xed\xfe\x0c\0\0\x01").as_deref(), Some("macOS"));
        assert_eq!(of(b"MZ\x90\0").as_deref(), Some("Windows"));
        assert_eq!([of(b"#!/bin/sh\necho hello, world"), of(b""), of(b"\x7fELF\x02\x01")], [None, None, None]);
    }

    #[test]
    fn this_test_was_built_for_this_host() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(Machine::of(&own), Some(HOST));
    }
}

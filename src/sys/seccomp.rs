//! seccomp(2): installing a filter that somebody else has written.

use std::io;

/// One instruction of a filter, as the kernel reads it: `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    /// How many instructions to skip when a comparison holds, and when not.
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Puts this thread and all it becomes behind `filter`, for ever. Needs no_new_privs. Spectre mitigations stay as
/// they are: the filter protects the host from the function, not the function from itself.
pub fn install(filter: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: `Instruction` has the layout of `sock_filter` (checked below); the kernel only reads `len` of them, and
    // `filter` and `program` outlive the call.
    let installed = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, &raw const program)
    };
    if installed == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());

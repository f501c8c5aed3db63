//! Bytes that nobody can change any more, as a descriptor: memfd_create(2) and its seals.
//!
//! How one process hands another what both must see alike: the supervisor its configuration, the server a zip.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// `name` is for people who read /proc/self/fd.
pub fn sealed(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_sealed_is_whole_and_cannot_be_changed() {
        let file = File::from(sealed(c"test", b"zip").unwrap());
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err() && file.set_len(9).is_err());
        assert!(fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).is_err(), "nor its seals");
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes, file.metadata().unwrap().len()), (b"zip", 3));
    }
}

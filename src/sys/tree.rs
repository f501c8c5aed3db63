//! Removing a tree of files that a hostile hand may have made: as deep as you like, with links to anywhere.
//!
//! Nothing is followed, and depth costs neither stack nor descriptors (`std::fs::remove_dir_all` takes both): a directory found
//! inside is moved up beside the tree's own entries and emptied in its turn.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

/// Removes `name` in `parent`, if it is there: a file, a link itself, or a directory with all that is in it.
pub fn remove(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Ok(remove_below(parent, name)?)
}

fn remove_below(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: &OwnedFd, name: &CStr| openat(at, name, flags, Mode::empty());
    let top = match openat(parent, name, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return unlinkat(parent, name, AtFlags::empty()),
        Err(errno) => return Err(errno),
    };
    let mut moved: u64 = 0;
    // Each round empties the directories that the tree's top holds now; what was in them moves up.
    loop {
        let directories = unlink_files(&top)?;
        if directories.is_empty() {
            return unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
        for directory in &directories {
            let inner = open(&top, directory)?;
            for deeper in unlink_files(&inner)? {
                // A name of the tree's own is in the way: the next number is not.
                while {
                    moved += 1;
                    let to = format!(".{moved}");
                    match renameat_with(&inner, &deeper, &top, to, RenameFlags::NOREPLACE) {
                        Err(Errno::EXIST) => true,
                        done => done.map(|()| false)?,
                    }
                } {}
            }
            match unlinkat(&top, directory, AtFlags::REMOVEDIR) {
                // readdir(3) may skip a name while others are unlinked; the next round sees it.
                Err(Errno::NOTEMPTY) => {}
                done => done?,
            }
        }
    }
}

/// Unlinks all but directories, and names those.
fn unlink_files(directory: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut directories = Vec::new();
    for entry in Dir::read_from(directory.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => directories.push(name.to_owned()),
            Err(Errno::NOENT) | Ok(()) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_stack_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let parent = openat(rustix::fs::CWD, directory.path(), OFlags::PATH, Mode::empty()).unwrap();
        let mut at = parent.try_clone().unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/", &at, "link").unwrap();
            at = openat(&at, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        for name in ["d", "link", "neither"] {
            remove(parent.as_fd(), name).unwrap();
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

//! Takes over the tree that `unpack` left in `staging/<id>/tree`: checks it, owns it, renames it to `code/<sha256>`.
//!
//! Runs in a launcher's helper ([`super::errand`]), which has nothing open but the two directories and the zip.
//!
//! Root handles a hostile tree here, so nothing in it is ever followed, and everything is checked before the first change.
//! `unpack` is dead by now: only then does the supervisor make `staging/<id>` root's. So nothing changes between the two. The last rename is what makes
//! the code exist; whatever is cut short before it leaves files in `staging/` only, which the supervisor sweeps.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AtFlags as NixAtFlags, FcntlArg, SealFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown, fchownat, syncfs};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, fchmod, fsync, openat, openat2, readlinkat, renameat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::code::Digest;
use crate::kill_point;
use crate::launcher::store::beneath;
use crate::sys::tree;
use crate::wire::launcher::{StagingId, workbench};

/// Where code lies, and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Shelves<'a> {
    pub code: BorrowedFd<'a>,
    pub staging: BorrowedFd<'a>,
    /// R, who owns every tree.
    pub owner: u32,
    /// The launcher's number.
    pub launcher: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The order breaks a rule.
    #[error("{0}")]
    Refused(Refusal),
    #[error("{call} {path}", path = path.display())]
    Call { call: &'static str, path: PathBuf, source: io::Error },
}

/// What is wrong with a zip or a tree.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no staged tree {0}")]
    NoTree(StagingId),
    #[error("unpack may still be at work in {0}")]
    NotHandedOver(StagingId),
    #[error("the zip is not sealed")]
    NotSealed,
    #[error("the zip has {0} bytes: at most {MAX_ZIP} are allowed")]
    ZipTooLarge(u64),
    #[error("the zip is {found}, not {wanted}")]
    OtherZip { found: Digest, wanted: Digest },
    #[error("more than {MAX_ENTRIES} files")]
    TooManyEntries,
    #[error("{path}: nested deeper than {MAX_DEPTH} directories", path = .0.display())]
    TooDeep(PathBuf),
    #[error("{path}: neither file, directory nor link", path = .0.display())]
    Kind(PathBuf),
    #[error("{path}: a setuid, setgid or sticky bit", path = .0.display())]
    Bits(PathBuf),
    #[error("{path}: a second name of another file", path = .0.display())]
    HardLink(PathBuf),
    #[error("{path}: belongs to somebody else than its tree", path = .0.display())]
    Foreign(PathBuf),
    #[error("{path}: a link that leaves the tree", path = .0.display())]
    Leaves(PathBuf),
}

/// Lambda's limit on unpacked code; a zip is smaller.
const MAX_ZIP: u64 = 262_144_000;
const MAX_ENTRIES: usize = 200_000;
const MAX_DEPTH: usize = 128;

const TREE: &str = "tree";
const ZIP: &str = "zip";

fn failed(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> AdoptError {
    let path = path.into();
    move |errno| AdoptError::Call { call, path, source: errno.into() }
}

fn failed_io(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> AdoptError {
    let path = path.into();
    move |source| AdoptError::Call { call, path, source }
}

/// The name below `staging/` of what is being adopted.
pub fn taken(launcher: u32, staging: StagingId) -> String {
    format!("{}{staging}", workbench(launcher))
}

/// The name below `staging/` of what is being removed.
pub fn forgotten(launcher: u32, code: Digest) -> String {
    format!("{}{code}", workbench(launcher))
}

/// Whatever comes of it, `staging/<staging>` is gone afterwards, unless `unpack` may still be at work in it.
pub fn adopt(store: &Shelves<'_>, staging: StagingId, code: Digest, zip: File) -> Result<(), AdoptError> {
    let name = staging.to_string();
    let directory = match beneath(store.staging, &name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(AdoptError::Refused(Refusal::NoTree(staging))),
        Err(error) => return Err(failed_io("open staging", name)(error)),
    };
    if rustix::fs::fstat(&directory).map_err(failed("stat", &name))?.st_uid != 0 {
        return Err(AdoptError::Refused(Refusal::NotHandedOver(staging)));
    }
    // Ours alone: another launcher that was told to adopt the same finds nothing. It would remove what we adopt.
    let taken = taken(store.launcher, staging);
    match renameat(store.staging, &*name, store.staging, &*taken) {
        Err(Errno::NOENT) => return Err(AdoptError::Refused(Refusal::NoTree(staging))),
        renamed => renamed.map_err(failed("rename", &name))?,
    }
    let adopted = adopt_from(store, &directory, staging, code, zip);
    // What is left was refused, or has been adopted before under this digest.
    let removed = clear(store, &taken);
    adopted.and(removed)
}

fn adopt_from(store: &Shelves<'_>, staging: &OwnedFd, id: StagingId, code: Digest, zip: File) -> Result<(), AdoptError> {
    let zip = Zip::check(zip, code)?;
    let tree = match beneath(staging, TREE, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC) {
        Ok(tree) => tree,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(AdoptError::Refused(Refusal::NoTree(id))),
        Err(error) => return Err(failed_io("open", TREE)(error)),
    };
    let walk = Walk::new(&tree)?;
    walk.check()?;
    let name = code.to_string();
    if statat(store.code, &*name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        // Another function has the same zip. What is there is never replaced; but whoever brought it may have been killed
        // before the name was on the disk.
        return fsync(store.code).map_err(failed("fsync", "code"));
    }
    kill_point!("adopt-before-chown");
    walk.own(store.owner)?;
    zip.copy_to(staging)?;
    // One call for many small files; and the names below must not outlive what they name.
    syncfs(&tree).map_err(|errno| failed_io("syncfs", TREE)(errno.into()))?;
    kill_point!("adopt-before-rename");
    let zip_name = format!("{code}.zip");
    renameat(staging, ZIP, store.code, &*zip_name).map_err(failed("rename", &zip_name))?;
    kill_point!("adopt-after-zip");
    match renameat_with(staging, TREE, store.code, &*name, RenameFlags::NOREPLACE) {
        // Another helper has brought the same meanwhile.
        Err(Errno::EXIST) => {}
        renamed => renamed.map_err(failed("rename", &name))?,
    }
    fsync(store.code).map_err(failed("fsync", "code"))
}

/// Removes `code/<code>` and its zip. Renamed first, so that a tree half removed never bears its name.
pub fn forget(store: &Shelves<'_>, code: Digest) -> Result<(), AdoptError> {
    let (name, gone) = (code.to_string(), forgotten(store.launcher, code));
    // What an earlier one could not remove would be in the way.
    clear(store, &gone)?;
    let absent = |done: Result<(), Errno>| if done == Err(Errno::NOENT) { Ok(()) } else { done };
    kill_point!("forget-before-rename");
    absent(renameat(store.code, &*name, store.staging, &*gone)).map_err(failed("rename", &name))?;
    kill_point!("forget-after-rename");
    let zip = format!("{code}.zip");
    absent(unlinkat(store.code, &*zip, AtFlags::empty())).map_err(failed("unlink", &zip))?;
    fsync(store.code).map_err(failed("fsync", "code"))?;
    kill_point!("forget-before-remove");
    clear(store, &gone)
}

/// Removes what lies below `staging/` under this name, if anything does.
pub fn clear(store: &Shelves<'_>, taken: &str) -> Result<(), AdoptError> {
    tree::remove(store.staging, taken).map_err(failed_io("remove staging", taken))
}

/// A zip whose content is what its name says and cannot change any more. Read by position: the offset is the server's to
/// move, as long as it holds the same file.
struct Zip {
    file: File,
    length: u64,
}

impl Zip {
    fn check(file: File, wanted: Digest) -> Result<Self, AdoptError> {
        let needed = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        // Anything but a memfd answers EINVAL.
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
        if !seals.is_ok_and(|seals| seals.contains(needed)) {
            return Err(AdoptError::Refused(Refusal::NotSealed));
        }
        let length = file.metadata().map_err(failed_io("stat", ZIP))?.len();
        if length > MAX_ZIP {
            return Err(AdoptError::Refused(Refusal::ZipTooLarge(length)));
        }
        let (zip, mut hash) = (Self { file, length }, Sha256::new());
        zip.each_piece(|piece| {
            hash.update(piece);
            Ok(())
        })?;
        let found = Digest::from_bytes(hash.finalize().into());
        if found == wanted { Ok(zip) } else { Err(AdoptError::Refused(Refusal::OtherZip { found, wanted })) }
    }

    fn each_piece(&self, mut act: impl FnMut(&[u8]) -> Result<(), AdoptError>) -> Result<(), AdoptError> {
        const PIECE: u64 = 256 << 10;
        let mut piece = vec![0; PIECE as usize];
        for at in (0..self.length).step_by(PIECE as usize) {
            let piece = &mut piece[..PIECE.min(self.length - at) as usize];
            self.file.read_exact_at(piece, at).map_err(failed_io("read", ZIP))?;
            act(piece)?;
        }
        Ok(())
    }

    fn copy_to(self, staging: &OwnedFd) -> Result<(), AdoptError> {
        match unlinkat(staging, ZIP, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("unlink", ZIP)(errno)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = openat(staging, ZIP, flags, Mode::from_raw_mode(0o600)).map_err(failed("create", ZIP))?;
        let mut copy = File::from(copy);
        self.each_piece(|piece| copy.write_all(piece).map_err(failed_io("copy", ZIP)))?;
        // Readable for the server (GetFunction).
        fchmod(&copy, Mode::from_raw_mode(0o644)).map_err(failed("chmod", ZIP))?;
        fchown(&copy, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).map_err(|errno| failed_io("chown", ZIP)(errno.into()))
    }
}

/// A tree, walked twice: to check all, then to own all.
struct Walk<'a> {
    tree: &'a OwnedFd,
    /// Who unpacked it.
    unpacker: u32,
}

/// One thing in the tree.
struct Entry<'a> {
    directory: &'a OwnedFd,
    name: &'a CStr,
    /// From the tree's root.
    path: &'a Path,
    stat: &'a Stat,
}

impl<'a> Walk<'a> {
    fn new(tree: &'a OwnedFd) -> Result<Self, AdoptError> {
        let unpacker = rustix::fs::fstat(tree).map_err(failed("stat", TREE))?.st_uid;
        Ok(Self { tree, unpacker })
    }

    fn check(&self) -> Result<(), AdoptError> {
        // Root's own files among them would be somebody's hard link, or a mount.
        if self.unpacker == 0 {
            return Err(AdoptError::Refused(Refusal::Foreign(TREE.into())));
        }
        let mut seen = 0;
        self.each(&mut |entry| {
            seen += 1;
            if seen > MAX_ENTRIES {
                return Err(AdoptError::Refused(Refusal::TooManyEntries));
            }
            self.check_entry(entry)
        })
    }

    fn check_entry(&self, entry: &Entry<'_>) -> Result<(), AdoptError> {
        let refuse = |why: fn(PathBuf) -> Refusal| Err(AdoptError::Refused(why(entry.path.to_owned())));
        let kind = FileType::from_raw_mode(entry.stat.st_mode);
        if entry.stat.st_uid != self.unpacker {
            return refuse(Refusal::Foreign);
        }
        if kind != FileType::Symlink && entry.stat.st_mode & 0o7000 != 0 {
            return refuse(Refusal::Bits);
        }
        match kind {
            FileType::Directory if entry.path.components().count() > MAX_DEPTH => refuse(Refusal::TooDeep),
            FileType::Directory => Ok(()),
            FileType::RegularFile | FileType::Symlink if entry.stat.st_nlink != 1 => refuse(Refusal::HardLink),
            FileType::RegularFile => Ok(()),
            FileType::Symlink if self.stays_inside(entry)? => Ok(()),
            FileType::Symlink => refuse(Refusal::Leaves),
            _ => refuse(Refusal::Kind),
        }
    }

    /// Both as text and as the kernel resolves it: the text alone is fooled by links to directories, and the kernel alone
    /// says nothing about a link to what is not there.
    fn stays_inside(&self, link: &Entry<'_>) -> Result<bool, AdoptError> {
        let target = readlinkat(link.directory, link.name, Vec::new()).map_err(failed("readlink", link.path))?;
        let from = link.path.parent().unwrap_or(Path::new(""));
        if !stays_below(from, Path::new(OsStr::from_bytes(target.as_bytes()))) {
            return Ok(false);
        }
        // No NO_MAGICLINKS: it would say LOOP too, and there are none outside of proc, where NO_XDEV does not let us.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
        match openat2(self.tree, link.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Dangling, through a file, round, or longer than the kernel follows for anybody: no way out either.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(true),
            Err(Errno::XDEV) => Ok(false),
            Err(errno) => Err(failed("resolve", link.path)(errno)),
        }
    }

    /// Readable for everybody, writable for nobody else: the function is "others", and its author may have forgotten.
    fn own(&self, owner: u32) -> Result<(), AdoptError> {
        own_opened(self.tree, Path::new(TREE), 0o755, owner)?;
        self.each(&mut |entry| {
            let mode = entry.stat.st_mode & 0o755 | 0o444;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match FileType::from_raw_mode(entry.stat.st_mode) {
                FileType::Symlink => {
                    let (uid, gid) = (Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)));
                    fchownat(entry.directory, entry.name, uid, gid, NixAtFlags::AT_SYMLINK_NOFOLLOW)
                        .map_err(|errno| failed_io("chown", entry.path)(errno.into()))
                }
                kind => {
                    let file = openat(entry.directory, entry.name, flags, Mode::empty()).map_err(failed("open", entry.path))?;
                    let mode = if kind == FileType::Directory { mode | 0o111 } else { mode };
                    own_opened(&file, entry.path, mode, owner)
                }
            }
        })
    }

    /// Calls `act` for everything below the root, a directory before what is in it.
    fn each(&self, act: &mut dyn FnMut(&Entry<'_>) -> Result<(), AdoptError>) -> Result<(), AdoptError> {
        let root = self.tree.try_clone().map_err(failed_io("dup", TREE))?;
        descend(&root, Path::new(""), act)
    }
}

/// As deep as [`MAX_DEPTH`], which the first walk has checked.
fn descend(
    directory: &OwnedFd,
    path: &Path,
    act: &mut dyn FnMut(&Entry<'_>) -> Result<(), AdoptError>,
) -> Result<(), AdoptError> {
    for name in names(directory, path)? {
        let path = path.join(OsStr::from_bytes(name.as_bytes()));
        let stat = statat(directory, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat", &path))?;
        act(&Entry { directory, name: &name, path: &path, stat: &stat })?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = openat(directory, &*name, flags, Mode::empty()).map_err(failed("open", &path))?;
            descend(&below, &path, act)?;
        }
    }
    Ok(())
}

/// Read to the end first: what is done to the entries must not disturb the reading.
fn names(directory: &OwnedFd, path: &Path) -> Result<Vec<CString>, AdoptError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory.as_fd()).map_err(failed("read", path))? {
        let entry = entry.map_err(failed("read", path))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
        if names.len() > MAX_ENTRIES {
            return Err(AdoptError::Refused(Refusal::TooManyEntries));
        }
    }
    Ok(names)
}

fn own_opened(file: &OwnedFd, path: &Path, mode: u32, owner: u32) -> Result<(), AdoptError> {
    fchown(file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
        .map_err(|errno| failed_io("chown", path)(errno.into()))?;
    fchmod(file, Mode::from_raw_mode(mode)).map_err(failed("chmod", path))
}

/// Whether `target`, read as text from directory `from`, never climbs above the root.
fn stays_below(from: &Path, target: &Path) -> bool {
    let mut depth = from.components().count();
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_climb_as_far_as_the_root_of_its_tree() {
        let stays = |from: &str, target: &str| stays_below(Path::new(from), Path::new(target));
        assert!(stays("node_modules/.bin", "../x/cli.js") && stays("a/b", "../..") && stays("", "./y"));
        assert!(!stays("a/b", "../../..") && !stays("", "/etc/passwd") && !stays("a", "../../a/b") && !stays("", ".."));
    }
}

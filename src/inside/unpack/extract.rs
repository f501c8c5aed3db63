//! The loop over the entries: bytes in, files out, nothing believed.
//!
//! Every limit is counted on what is written, not on what the zip says about itself. Files are created, never opened:
//! no entry can write into, or through, what another one made.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatvfs, mkdirat, openat2, symlinkat};
use rustix::io::Errno;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::directory::claimed_entries;
use super::name::{Ending, Place};
use super::{UnpackError, local};
use crate::code::room::Disk;
use crate::wire::supervisor::ZipRefusal;

/// Lambda's limit on an unpacked function, which "must be smaller":
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
const TOO_LARGE: u64 = 262_144_000;
/// Files, links and directories, also those that only a name mentions. Ours, not Lambda's: the largest functions in
/// the wild are node_modules of some 30,000 files, and each costs an inode, which no other limit counts.
const MAX_NODES: u64 = 50_000;
/// PATH_MAX.
const LONGEST_TARGET: u64 = 4096;

/// Between two looks at the disk's room; also on a tmpfs of 32 MB there are several.
const LOOK_EVERY: u64 = 1 << 20;
/// What a file, link or directory takes beside its bytes.
const NODE: u64 = 4096;

const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

type Archive = ZipArchive<BufReader<Positioned>>;

/// Unpacks into `staging/tree`. Returns the number of bytes in all files.
pub fn extract(zip: File, staging: BorrowedFd<'_>) -> Result<u64, UnpackError> {
    let claimed = claimed_entries(&zip).map_err(UnpackError::ours("read the zip"))?.ok_or(ZipRefusal::Unreadable)?;
    if claimed > MAX_NODES {
        return Err(ZipRefusal::TooManyEntries.into());
    }
    let zip_length = zip.metadata().map_err(UnpackError::ours("ask for the zip's length"))?.len();
    let headers = zip.try_clone().map_err(UnpackError::ours("share the zip"))?;
    // For headers, which the library seeks to one by one, throwing the buffer away; data is read past it in larger pieces.
    let reader = BufReader::with_capacity(4096, Positioned { file: zip, at: 0 });
    let mut archive = ZipArchive::new(reader).map_err(|_| ZipRefusal::Unreadable)?;
    match (archive.len() as u64).cmp(&claimed) {
        std::cmp::Ordering::Equal => {}
        // The library keeps one of each name.
        std::cmp::Ordering::Less => return Err(ZipRefusal::Overlapping.into()),
        std::cmp::Ordering::Greater => return Err(ZipRefusal::Unreadable.into()),
    }
    let claimed_bytes = refuse_two_readings(&mut archive, &headers)?;

    mkdirat(staging, "tree", DIRECTORY_MODE).map_err(UnpackError::ours("make the tree"))?;
    let root = open_directory(staging, "tree").map_err(UnpackError::ours("open the tree"))?;
    let mut tree = Tree { root, zip: zip_length, bytes: 0, nodes: 0, unlooked: 0, links: vec![] };
    // What it says about itself first, so that an honest zip is refused before it is written; then what is really written.
    tree.has_room(claimed_bytes.min(TOO_LARGE), claimed)?;
    for index in 0..archive.len() {
        tree.add(&mut archive, index)?;
    }
    tree.refuse_links_that_leave()?;
    if tree.nodes == 0 { Err(ZipRefusal::Empty.into()) } else { Ok(tree.bytes) }
}

/// Entries that share bytes are a bomb (one megabyte of data under ten thousand names), or two readings of one zip; and so
/// is a local header that says something else than the central directory, which is what we go by. Returns how large all
/// say that they are.
fn refuse_two_readings(archive: &mut Archive, headers: &File) -> Result<u64, ZipRefusal> {
    let mut ranges = Vec::with_capacity(archive.len());
    let mut claimed: u64 = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|_| ZipRefusal::Unreadable)?;
        let data = entry.data_start().ok_or(ZipRefusal::Unreadable)?;
        let end = data.checked_add(entry.compressed_size()).ok_or(ZipRefusal::Unreadable)?;
        local::check(headers, &entry)?;
        ranges.push((entry.header_start(), end));
        claimed = claimed.saturating_add(entry.size());
    }
    ranges.sort_unstable();
    if ranges.windows(2).any(|pair| pair[1].0 < pair[0].1) { Err(ZipRefusal::Overlapping) } else { Ok(claimed) }
}

/// What has been made so far.
struct Tree {
    root: OwnedFd,
    /// Bytes of the zip, which is kept beside the tree.
    zip: u64,
    bytes: u64,
    nodes: u64,
    /// What was made since the last look at the disk: bytes, and a page for each node.
    unlooked: u64,
    links: Vec<Place>,
}

/// What an entry is, by its Unix mode and its name.
enum Kind {
    Directory,
    File(Mode),
    Link,
}

impl Tree {
    fn add(&mut self, archive: &mut Archive, index: usize) -> Result<(), UnpackError> {
        let entry = archive.by_index_raw(index).map_err(|_| ZipRefusal::Unreadable)?;
        let known = matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated);
        if entry.encrypted() || !known {
            return Err(ZipRefusal::BadMethod.into());
        }
        let Some((place, ending)) = Place::parse(entry.name_raw())? else { return Ok(()) };
        let kind = kind(entry.unix_mode(), ending)?;
        drop(entry);
        if let Kind::Directory = kind {
            return self.directory(&place).map(drop);
        }
        let mut data = archive.by_index(index).map_err(|error| match error {
            ZipError::UnsupportedArchive(_) => ZipRefusal::BadMethod,
            _ => ZipRefusal::Unreadable,
        })?;
        let (before, claimed) = (self.bytes, data.size());
        match kind {
            Kind::File(mode) => self.file(&place, mode, &mut data)?,
            _ => self.link(place, &mut data)?,
        }
        // What was written is what counts; but who lies about it to us lies to somebody.
        if self.bytes - before == claimed { Ok(()) } else { Err(ZipRefusal::Unreadable.into()) }
    }

    fn file(&mut self, place: &Place, mode: Mode, data: &mut impl Read) -> Result<(), UnpackError> {
        let (directory, name) = self.parent(place)?;
        self.one_more()?;
        let how = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = openat2(&directory, name, how, mode, INSIDE).map_err(refusal_or("create a file"))?;
        let mut file = File::from(made);
        let mut buffer = vec![0; 64 << 10];
        loop {
            // A bad checksum is an error of the last read.
            let length = data.read(&mut buffer).map_err(|_| ZipRefusal::Unreadable)?;
            if length == 0 {
                return Ok(());
            }
            self.more_bytes(length)?;
            file.write_all(&buffer[..length]).map_err(UnpackError::ours("write a file"))?;
        }
    }

    fn link(&mut self, place: Place, data: &mut impl Read) -> Result<(), UnpackError> {
        let mut target = Vec::new();
        data.take(LONGEST_TARGET).read_to_end(&mut target).map_err(|_| ZipRefusal::Unreadable)?;
        if target.len() as u64 == LONGEST_TARGET || !place.may_point_at(&target) {
            return Err(ZipRefusal::BadLink.into());
        }
        let (directory, name) = self.parent(&place)?;
        self.one_more()?;
        self.more_bytes(target.len())?;
        symlinkat(target.as_slice(), &directory, name).map_err(refusal_or("make a link"))?;
        self.links.push(place);
        Ok(())
    }

    fn parent<'a>(&mut self, place: &'a Place) -> Result<(OwnedFd, &'a str), UnpackError> {
        let (directory, name) = place.split();
        let directory = match directory {
            Some(directory) => self.directory(&directory)?,
            None => self.root.try_clone().map_err(UnpackError::ours("open a directory"))?,
        };
        Ok((directory, name))
    }

    /// The directory at `place`, made with all that lead to it where they are missing.
    fn directory(&mut self, place: &Place) -> Result<OwnedFd, UnpackError> {
        match open_directory(&self.root, place.as_str()) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(refusal_or("open a directory")),
        }
        // As deep as a name may be, which `Place` bounds.
        let (parent, name) = self.parent(place)?;
        self.one_more()?;
        mkdirat(&parent, name, DIRECTORY_MODE).map_err(refusal_or("make a directory"))?;
        open_directory(&parent, name).map_err(refusal_or("open a directory"))
    }

    fn one_more(&mut self) -> Result<(), UnpackError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES { Err(ZipRefusal::TooManyEntries.into()) } else { self.look_after(NODE) }
    }

    fn more_bytes(&mut self, length: usize) -> Result<(), UnpackError> {
        self.bytes += length as u64;
        if self.bytes >= TOO_LARGE { Err(ZipRefusal::TooLarge.into()) } else { self.look_after(length as u64) }
    }

    fn look_after(&mut self, made: u64) -> Result<(), UnpackError> {
        self.unlooked += made;
        if self.unlooked < LOOK_EVERY {
            return Ok(());
        }
        self.unlooked = 0;
        self.has_room(LOOK_EVERY, LOOK_EVERY / NODE)
    }

    /// Whether the disk has room for so much more, and for the zip.
    fn has_room(&self, bytes: u64, files: u64) -> Result<(), UnpackError> {
        let seen = fstatvfs(&self.root).map_err(UnpackError::ours("look at the disk"))?;
        if Disk::from(seen).has_room(self.zip.saturating_add(bytes), files) { Ok(()) } else { Err(UnpackError::NoRoom) }
    }

    /// Words cannot tell where a link leads that goes by way of another one. The kernel can: EXDEV.
    fn refuse_links_that_leave(&self) -> Result<(), UnpackError> {
        for link in &self.links {
            let how = OFlags::PATH | OFlags::CLOEXEC;
            let followed = openat2(&self.root, link.as_str(), how, Mode::empty(), ResolveFlags::BENEATH);
            match followed {
                // Dangling, round, or through a file: no way out either.
                Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NAMETOOLONG) => {}
                Err(Errno::XDEV) => return Err(ZipRefusal::BadLink.into()),
                Err(errno) => return Err(UnpackError::ours("follow a link")(errno)),
            }
        }
        Ok(())
    }
}

/// Never out of the tree, never through a link.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

fn open_directory(at: impl std::os::fd::AsFd, path: &str) -> Result<OwnedFd, Errno> {
    openat2(at, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), INSIDE)
}

/// What the tree says to an entry that does not fit with an earlier one is the zip's fault.
fn refusal_or(what: &'static str) -> impl FnOnce(Errno) -> UnpackError {
    move |errno| match errno {
        Errno::EXIST | Errno::NOTDIR | Errno::ISDIR => ZipRefusal::Overlapping.into(),
        Errno::LOOP | Errno::XDEV => ZipRefusal::BadLink.into(),
        Errno::NAMETOOLONG | Errno::ILSEQ => ZipRefusal::BadName.into(),
        _ => UnpackError::ours(what)(errno),
    }
}

/// Of a mode only the x bits are kept: everybody may read, the owner write, and nothing is setuid.
fn kind(mode: Option<u32>, ending: Ending) -> Result<Kind, ZipRefusal> {
    let mode = mode.unwrap_or(0);
    match (mode & libc::S_IFMT, ending) {
        (libc::S_IFDIR, _) | (0 | libc::S_IFREG, Ending::Slash) => Ok(Kind::Directory),
        (0 | libc::S_IFREG, Ending::Plain) => Ok(Kind::File(Mode::from_raw_mode(0o644 | mode & 0o111))),
        (libc::S_IFLNK, Ending::Plain) => Ok(Kind::Link),
        _ => Err(ZipRefusal::BadKind),
    }
}

/// Reads by position: the offset of a descriptor that others hold too is theirs to move.
struct Positioned {
    file: File,
    at: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Positioned {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

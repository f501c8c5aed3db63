//! One instance, one run_dir, one state_dir, one range of ids: held by locks that end with their holder.
//!
//! run_dir and state_dir are held by flock(2) on a file `lock` in each. The range of ids is held by a byte-range lock
//! ([first_id, first_id + id_count)) on one file for the whole host. That file's text lists the instances started since
//! boot, one a line, so that `scripts/leftovers` knows where a killed one lived:
//!
//! ```text
//! <instance> <first_id> <id_count> <run_dir> <state_dir>
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::fs::{FlockOperation, flock};

use crate::config::Config;

/// On a tmpfs on every distribution, so that no boot inherits it.
pub const IDS: &str = "/run/lock/kiln-ids.lock";

/// Guards the text of [`IDS`]. No id: ranges start at 65536 (`config`).
const TEXT: Range<u64> = 0..1;

/// Names are bytes above every id.
const NAMES: u64 = 1 << 40;

/// More instances than one host ever has; a longer text is somebody's mistake.
const LONGEST_TEXT: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} must be a file of root's that nobody else can write")]
    Foreign { path: PathBuf },
    #[error("lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error(
        "{what} is in use by {holder}: stop that instance, or give this one an `instance`, `run_dir`, `state_dir` and `first_id` of its \
         own (`kiln config check FILE` says what overlaps, and proposes a free first_id)"
    )]
    Held { what: String, holder: Holder },
    #[error("write the list of instances {path}")]
    List { path: PathBuf, source: io::Error },
}

/// Who holds a lock, as far as /proc tells.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder(Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "the process {pid}"),
            None => f.write_str("a process that /proc does not show"),
        }
    }
}

/// Everything that this instance holds. Dropping it lets go.
#[derive(Debug)]
pub struct Locks {
    _run: File,
    _state: File,
    ids: File,
    run_dir: PathBuf,
}

impl Locks {
    /// Both directories must exist.
    pub fn take(config: &Config) -> Result<Self, LockError> {
        let run = directory(&config.run_dir)?;
        let state = directory(&config.state_dir)?;
        let ids = ids(config)?;
        Ok(Self { _run: run, _state: state, ids, run_dir: config.run_dir.clone() })
    }

    /// After a clean stop: no list names this instance any more, and its run_dir holds no lock file.
    pub fn remove(self) -> Result<(), LockError> {
        list(&self.ids, &self.run_dir, None)?;
        let path = self.run_dir.join("lock");
        match fs::remove_file(&path) {
            // Somebody has removed the whole run_dir; that is no failure of this stop.
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LockError::Open { path, source }),
            _ => Ok(()),
        }
    }
}

fn directory(directory: &Path) -> Result<File, LockError> {
    let path = directory.join("lock");
    loop {
        let file = open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held { what: directory.display().to_string(), holder: holder(&file, 0..u64::MAX) });
            }
            Err(errno) => return Err(LockError::Lock { path, source: errno.into() }),
        }
        // A predecessor that stops removes its lock file: between our open and our lock it may have.
        let same = |there: fs::Metadata, ours: fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if let (Ok(there), Ok(ours)) = (fs::metadata(&path), file.metadata()) {
            if same(there, ours) {
                return Ok(file);
            }
        }
    }
}

fn ids(config: &Config) -> Result<File, LockError> {
    let path = Path::new(IDS);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|source| LockError::Open { path: parent.to_owned(), source })?;
    }
    let file = open(path)?;
    let ids = u64::from(config.first_id)..u64::from(config.first_id) + u64::from(config.id_count);
    let name = name_byte(&config.instance);
    for (what, range) in [
        (format!("a part of the ids {} to {}", ids.start, ids.end - 1), ids),
        (format!("the instance's name {:?}", config.instance), name),
    ] {
        if !lock(&file, &range).map_err(|source| LockError::Lock { path: path.to_owned(), source })? {
            return Err(LockError::Held { what, holder: holder(&file, range) });
        }
    }
    let line = format!(
        "{} {} {} {} {}\n",
        config.instance,
        config.first_id,
        config.id_count,
        config.run_dir.display(),
        config.state_dir.display()
    );
    list(&file, &config.run_dir, Some(&line))?;
    Ok(file)
}

/// A byte of its own for each name: FNV-1a, whose values for 16 letters do not meet by chance.
fn name_byte(name: &str) -> Range<u64> {
    let hash =
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let at = NAMES + hash % NAMES;
    at..at + 1
}

/// A lock file of root's. Directories of locks are writable for all on some hosts: nobody else's file is believed.
fn open(path: &Path) -> Result<File, LockError> {
    let failed = |source| LockError::Open { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = options.open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.is_file() && about.uid() == 0 && about.mode() & 0o022 == 0 {
        Ok(file)
    } else {
        Err(LockError::Foreign { path: path.to_owned() })
    }
}

/// Open-file-description locks: a classic one is lost as soon as the process closes *any* descriptor of the file.
/// `false`: somebody else holds a part of the range.
fn lock(file: &File, range: &Range<u64>) -> io::Result<bool> {
    set(file, range, libc::F_WRLCK)
}

fn set(file: &File, range: &Range<u64>, kind: libc::c_int) -> io::Result<bool> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start as libc::off_t,
        l_len: (range.end - range.start) as libc::off_t,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Rewrites the list of instances: without the one of this run_dir and those that left nothing, with `line`.
fn list(mut file: &File, run_dir: &Path, line: Option<&str>) -> Result<(), LockError> {
    let failed = |source| LockError::List { path: IDS.into(), source };
    // Held by others for microseconds only; a second is a stopped process.
    let until = Instant::now() + Duration::from_secs(1);
    while !lock(file, &TEXT).map_err(failed)? {
        if Instant::now() > until {
            return Err(LockError::Held { what: format!("the text of {IDS}"), holder: holder(file, TEXT) });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut rewrite = || {
        let mut text = String::new();
        file.rewind()?;
        file.take(LONGEST_TEXT).read_to_string(&mut text)?;
        let others: String = text.lines().filter(|line| is_another(line, run_dir)).map(|line| format!("{line}\n")).collect();
        file.rewind()?;
        file.set_len(0)?;
        file.write_all((others + line.unwrap_or_default()).as_bytes())
    };
    let written = rewrite();
    set(file, &TEXT, libc::F_UNLCK).map_err(failed)?;
    written.map_err(failed)
}

fn is_another(line: &str, run_dir: &Path) -> bool {
    let mut directories = line.split(' ').skip(3).map(Path::new);
    match (directories.next(), directories.next()) {
        (Some(run), Some(state)) => run != run_dir && (run.exists() || state.exists()),
        _ => false,
    }
}

/// Byte-range locks of open file descriptions name no process; their holder is found among all open files.
fn holder(file: &File, range: Range<u64>) -> Holder {
    let Ok(inode) = file.metadata().map(|about| about.ino()) else { return Holder(None) };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    let ours = std::process::id();
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_to_string(file.path()).ok()).any(|text| has_lock(&text, inode, &range))
    };
    Holder(pids.filter(|pid| *pid != ours).find(holds))
}

/// Whether this `/proc/<pid>/fdinfo/<fd>` has a lock on `inode` that touches `range`:
/// `lock: 1: OFDLCK ADVISORY WRITE -1 fe:00:8123 1883000000 1883065535`.
fn has_lock(fdinfo: &str, inode: u64, range: &Range<u64>) -> bool {
    let touches = |line: &str| {
        let mut fields = line.strip_prefix("lock:")?.split_whitespace().skip(5);
        let found: u64 = fields.next()?.rsplit(':').next()?.parse().ok()?;
        let first: u64 = fields.next()?.parse().ok()?;
        let last: u64 = fields.next().map(|last| last.parse().unwrap_or(u64::MAX))?;
        Some(found == inode && first < range.end && last >= range.start)
    };
    fdinfo.lines().any(|line| touches(line).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_recognised_by_inode_and_range() {
        let text = "pos:\t0\nflags:\t02100002\nlock:\t1: OFDLCK  ADVISORY  WRITE -1 fe:00:8123 100000 165535\n";
        assert!(has_lock(text, 8123, &(165_535..200_000)));
        assert!(!has_lock(text, 8123, &(165_536..200_000)), "the next id is free");
        assert!(!has_lock(text, 8124, &(100_000..100_001)), "another file");
        assert!(has_lock("lock:\t1: FLOCK  ADVISORY  WRITE 77 00:1a:5 0 EOF\n", 5, &(0..1)));
    }

    #[test]
    fn names_have_bytes_of_their_own_beyond_every_id() {
        assert_ne!(name_byte("a"), name_byte("b"));
        assert!(name_byte("default").start > u32::MAX.into());
    }

    #[test]
    fn overlapping_ranges_exclude_each_other_and_neighbours_do_not() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(path.path()).unwrap();
        let (a, b) = (open(), open());
        assert!(lock(&a, &(70_000..80_000)).unwrap());
        assert!(!lock(&b, &(79_999..90_000)).unwrap());
        assert!(lock(&b, &(80_000..90_000)).unwrap());
        drop(a);
        assert!(lock(&b, &(70_000..80_000)).unwrap(), "a lock ends with its holder");
    }
}

//! Reads what every start of a runtime reads, so that it is in the page cache before any function needs it.
//!
//! Server process, a thread of its own at the lowest priority: it waits for the disk, and nobody waits for it. The page cache is
//! charged to the memory cgroup that touches a page first. Read here, it is charged to kilnd's own group; read by the first container,
//! a Node is 96 MiB of that function's memory, and its start takes three times as long. Trees are readable for all; nothing is
//! followed out of them, and nothing but reading is done.
//!
//! Looks for new runtimes every [`LOOK`], and reads everything again every [`AGAIN`], for what was evicted meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};
use std::{iter, thread};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use tracing::{debug, info, warn};

use crate::runtime::{Recipe, TreeId};

const LOOK: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(600);
/// Of all runtimes together; the runtimes of today have 230 MiB.
const MOST: u64 = 1 << 30;
/// A page cache that is read into a full memory pushes out what somebody works with.
const SHARE_OF_AVAILABLE: u64 = 4;

/// Ends the thread when dropped, after the file that it reads.
pub struct Warming {
    _stop: SyncSender<()>,
}

impl Warming {
    pub fn start(runtimes_dir: PathBuf) -> io::Result<Self> {
        let (stop, stopped) = mpsc::sync_channel(0);
        thread::Builder::new().name("warming".into()).spawn(move || run(&runtimes_dir, &stopped))?;
        Ok(Self { _stop: stop })
    }
}

fn run(runtimes_dir: &Path, stopped: &Receiver<()>) {
    // Of this thread only: PRIO_PROCESS with 0 (setpriority(2), notes).
    if let Err(errno) = rustix::process::setpriority_process(None, 19) {
        debug!(%errno, "reading hot files at normal priority");
    }
    let is_over = || !matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty));
    let mut known = BTreeSet::new();
    let mut all_read = Instant::now();
    loop {
        if all_read.elapsed() > AGAIN {
            known.clear();
            all_read = Instant::now();
        }
        let began = Instant::now();
        let read = warm(runtimes_dir, &mut known, budget(), &is_over);
        if read.runtimes > 0 {
            let Round { runtimes, files, bytes, .. } = read;
            let took_ms = began.elapsed().as_millis() as u64;
            info!(runtimes, files, mib = bytes >> 20, took_ms, "hot files are in the page cache");
        }
        for (name, why) in read.trouble {
            warn!(runtime = name, why, "hot files are left to the first function that needs them");
        }
        match stopped.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}

/// What one round has read.
#[derive(Debug, Default)]
struct Round {
    runtimes: usize,
    files: u64,
    bytes: u64,
    /// Runtime, and what kept it from being read whole.
    trouble: Vec<(String, String)>,
}

/// Reads the runtimes that are not known yet. Each is tried once until the next full round.
fn warm(runtimes_dir: &Path, known: &mut BTreeSet<(TreeId, Vec<String>)>, budget: u64, is_over: &dyn Fn() -> bool) -> Round {
    let mut round = Round::default();
    for name in Recipe::installed(runtimes_dir).unwrap_or_default() {
        // A recipe that cannot be read is the door's to complain about, when somebody asks for it.
        let Ok(Some(recipe)) = Recipe::read(runtimes_dir, &name) else { continue };
        if !known.insert((recipe.tree, recipe.hot.clone())) {
            continue;
        }
        round.runtimes += 1;
        if let Err(why) = warm_one(runtimes_dir, &recipe, budget, is_over, &mut round) {
            round.trouble.push((name.to_string(), why));
        }
        if is_over() {
            break;
        }
    }
    round
}

fn warm_one(
    runtimes_dir: &Path,
    recipe: &Recipe,
    budget: u64,
    is_over: &dyn Fn() -> bool,
    round: &mut Round,
) -> Result<(), String> {
    let trees = recipe.trees(runtimes_dir).map_err(|error| error.to_string())?;
    let trees: Result<Vec<OwnedFd>, _> =
        trees.iter().map(|tree| open_tree(&runtimes_dir.join("trees").join(tree.to_string()))).collect();
    let trees = trees.map_err(|error| format!("open its trees: {error}"))?;
    for path in &recipe.hot {
        // A directory may be in several trees; a file is that of the topmost.
        for tree in &trees {
            let Ok(found) = open_inside(tree, path) else { continue };
            let is_directory = found.metadata().is_ok_and(|about| about.is_dir());
            read_all(found, budget, is_over, round).map_err(|error| format!("read {path}: {error}"))?;
            if !is_directory {
                break;
            }
        }
    }
    Ok(())
}

fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// As if the tree were the root: a link of the tree's cannot lead to a file of the host's.
fn open_inside(tree: &OwnedFd, path: &str) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(tree, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty(), resolve)?.into())
}

/// A file, or all files below a directory; links in it are not followed. Python's sources are left: what runs is beside them.
fn read_all(found: File, budget: u64, is_over: &dyn Fn() -> bool, round: &mut Round) -> io::Result<()> {
    let about = found.metadata()?;
    if about.is_file() {
        return read_file(found, about.len(), budget, round);
    }
    // By its descriptor, so that the path cannot have become another.
    for path in files_below(PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()))) {
        if is_over() {
            return Ok(());
        }
        let path = path?;
        if path.extension().is_none_or(|extension| extension != "py") {
            let file = File::open(&path)?;
            let length = file.metadata()?.len();
            read_file(file, length, budget, round)?;
        }
    }
    Ok(())
}

fn files_below(directory: PathBuf) -> impl Iterator<Item = io::Result<PathBuf>> {
    let (mut directories, mut files) = (vec![directory], Vec::new());
    iter::from_fn(move || {
        while files.is_empty() {
            let entries = match fs::read_dir(directories.pop()?) {
                Ok(entries) => entries,
                Err(error) => return Some(Err(error)),
            };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                    Ok(kind) if kind.is_file() => files.push(entry.path()),
                    _ => {}
                }
            }
        }
        files.pop().map(Ok)
    })
}

fn read_file(mut file: File, length: u64, budget: u64, round: &mut Round) -> io::Result<()> {
    if round.bytes + length > budget {
        return Err(io::Error::other(format!("the {} MiB that may be read are used up", budget >> 20)));
    }
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => round.bytes += read as u64,
        }
    }
    round.files += 1;
    Ok(())
}

fn budget() -> u64 {
    // Where nothing is known of the host's memory, the bound of ours alone holds.
    fs::read_to_string("/proc/meminfo").ok().and_then(|text| share_of(&text)).unwrap_or(MOST)
}

/// proc_meminfo(5).
fn share_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((kib.saturating_mul(1024) / SHARE_OF_AVAILABLE).min(MOST))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::code::Digest;

    /// A runtimes_dir with one runtime over a base.
    fn house(hot: &str) -> tempfile::TempDir {
        let house = tempfile::tempdir().unwrap();
        let (top, base) = (Digest::of(b"top"), Digest::of(b"base"));
        let write = |tree: Digest, path: &str, bytes: usize| {
            let path = house.path().join("trees").join(tree.to_string()).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![b'x'; bytes]).unwrap();
        };
        write(top, "var/lang/bin/node", 1000);
        write(top, "usr/lib/same.so", 10);
        write(base, "usr/lib/same.so", 100_000);
        write(base, "usr/lib/deep/libc.so", 200);
        write(base, "usr/lib/module.py", 50_000);
        symlink("/etc/passwd", house.path().join("trees").join(base.to_string()).join("usr/lib/out")).unwrap();
        let set = format!("{top}\n{base}\n");
        fs::create_dir_all(house.path().join("sets")).unwrap();
        fs::write(house.path().join("sets").join(Digest::of(set.as_bytes()).to_string()), &set).unwrap();
        let recipe = format!("name = 'a'\ntree = '{}'\nstart = [['/x']]\nhot = {hot}\n", Digest::of(set.as_bytes()));
        fs::write(house.path().join("a.toml"), recipe).unwrap();
        house
    }

    fn round(house: &tempfile::TempDir, budget: u64) -> Round {
        warm(house.path(), &mut BTreeSet::new(), budget, &|| false)
    }

    #[test]
    fn hot_files_are_read_once_each_and_links_out_never() {
        let house = house("['/var/lang/bin/node', '/usr/lib/same.so', '/usr/lib/out']");
        let read = round(&house, MOST);
        assert_eq!((read.runtimes, read.files, read.bytes, read.trouble), (1, 2, 1010, vec![]));
    }

    #[test]
    fn a_directory_is_read_in_every_tree_but_for_python_sources() {
        let house = house("['/usr/lib']");
        let read = round(&house, MOST);
        assert_eq!((read.files, read.bytes), (3, 10 + 100_000 + 200));
    }

    #[test]
    fn what_is_known_is_not_read_again_and_what_is_new_is() {
        let house = house("['/var/lang/bin/node']");
        let mut known = BTreeSet::new();
        assert_eq!(warm(house.path(), &mut known, MOST, &|| false).runtimes, 1);
        assert_eq!(warm(house.path(), &mut known, MOST, &|| false).runtimes, 0);
        let text = fs::read_to_string(house.path().join("a.toml")).unwrap();
        fs::write(
            house.path().join("b.toml"),
            text.replace("name = 'a'", "name = 'b'").replace("/var/lang/bin/node", "/usr/lib/same.so"),
        )
        .unwrap();
        assert_eq!(warm(house.path(), &mut known, MOST, &|| false).bytes, 10);
    }

    #[test]
    fn no_more_is_read_than_the_budget_and_it_is_said() {
        let house = house("['/var/lang/bin/node', '/usr/lib']");
        let read = round(&house, 2000);
        assert!(read.bytes <= 2000 && read.trouble.len() == 1, "{read:?}");
        assert_eq!(share_of("MemTotal: 1 kB\nMemAvailable:    8192 kB\n"), Some(2 << 20));
    }
}

//! Removes what the dead have left: cgroups, staging directories, code half stored.
//!
//! A SIGKILL leaves nothing else (processes die with their parents, mounts and network namespaces with the processes).
//! Only what bears this instance's name, or lies in a directory that it has locked, is ever touched.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};

use crate::code::Digest;
use crate::sys::tree;
use crate::wire::launcher::workbench as workbench_of;

/// Killing some hundred processes that hold gigabytes takes seconds on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// A group whose last process has just died is busy for a moment.
const RETRY: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error("list {path}")]
    List { path: PathBuf, source: io::Error },
    #[error("kill what runs in {group}")]
    Kill { group: PathBuf, source: io::Error },
    #[error("processes in {group} do not die")]
    Immortal { group: PathBuf },
    #[error("remove {path}")]
    Remove { path: PathBuf, source: io::Error },
}

/// Kills and removes every group below `parents` whose name begins with `prefix`. Returns how many there were.
pub fn groups<'a>(parents: impl IntoIterator<Item = &'a Path>, prefix: &str) -> Result<usize, SweepError> {
    let mut groups = Vec::new();
    for parent in parents {
        groups.extend(children(parent)?.into_iter().filter(|path| named(path, prefix)));
    }
    end(groups)
}

/// The same with the groups of this very name.
pub fn groups_named<'a>(parents: impl IntoIterator<Item = &'a Path>, name: &str) -> Result<usize, SweepError> {
    end(parents.into_iter().map(|parent| parent.join(name)).filter(|path| path.is_dir()).collect())
}

type Step = fn(&Path, Instant) -> Result<(), SweepError>;

fn end(groups: Vec<PathBuf>) -> Result<usize, SweepError> {
    let until = Instant::now() + DEADLINE;
    let mut first = None;
    // All at once, then wait: they die side by side. One that does not keeps no other.
    for step in [kill as Step, wait_until_empty, remove_group] {
        for group in &groups {
            if let Err(error) = step(group, until) {
                first.get_or_insert(error);
            }
        }
    }
    first.map_or(Ok(groups.len()), Err)
}

fn named(path: &Path, prefix: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
}

/// The groups in a group. One that is gone has none.
fn children(group: &Path) -> Result<Vec<PathBuf>, SweepError> {
    let failed = |source| SweepError::List { path: group.to_owned(), source };
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// cgroup2 only, with everything below, frozen or not. In v1 there is nothing to kill that is not in cgroup2 too.
fn kill(group: &Path, _: Instant) -> Result<(), SweepError> {
    // Not `fs::write`: it would create the file where there is none.
    let file = fs::OpenOptions::new().write(true).open(group.join("cgroup.kill"));
    match file.and_then(|mut file| file.write_all(b"1")) {
        Err(error) if !gone(&error) => Err(SweepError::Kill { group: group.to_owned(), source: error }),
        _ => Ok(()),
    }
}

/// ENODEV: the group went away under an open file.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn wait_until_empty(group: &Path, until: Instant) -> Result<(), SweepError> {
    let Ok(events) = File::open(group.join("cgroup.events")) else { return Ok(()) };
    loop {
        // Read at 0 again after each wake-up: that also re-arms POLLPRI.
        let mut text = [0; 256];
        let populated = std::os::unix::fs::FileExt::read_at(&events, &mut text, 0)
            .is_ok_and(|length| text[..length].windows(11).any(|word| word == b"populated 1"));
        if !populated {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SweepError::Immortal { group: group.to_owned() });
        }
        let left = Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], left.as_ref());
    }
}

fn remove_group(group: &Path, until: Instant) -> Result<(), SweepError> {
    for child in children(group)? {
        remove_group(&child, until)?;
    }
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => std::thread::sleep(RETRY),
            Err(error) if !gone(&error) => return Err(SweepError::Remove { path: group.to_owned(), source: error }),
            _ => return Ok(()),
        }
    }
}

/// Names of the groups below `parents` that would be a dead launcher's, by `lives`: `<prefix><launcher>-<number>`.
pub fn strays<'a>(
    parents: impl IntoIterator<Item = &'a Path>,
    prefix: &str,
    lives: impl Fn(u32) -> bool,
) -> Result<BTreeSet<String>, SweepError> {
    let mut found = BTreeSet::new();
    for parent in parents {
        for path in children(parent)? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Some((launcher, number)) = name.strip_prefix(prefix).and_then(|rest| rest.split_once('-')) else { continue };
            let numbers = (launcher.parse::<u32>(), number.parse::<u64>());
            if matches!(numbers, (Ok(launcher), Ok(_)) if !lives(launcher)) {
                found.insert(name.to_owned());
            }
        }
    }
    Ok(found)
}

/// Removes from `staging/` what nobody has touched for `age`.
pub fn forgotten(directory: &Path, age: Duration) -> Result<usize, SweepError> {
    let mut names = names(directory)?;
    let old = |name: &str| {
        let changed = fs::symlink_metadata(directory.join(name)).and_then(|about| about.modified());
        changed.is_ok_and(|at| at.elapsed().is_ok_and(|since| since >= age))
    };
    names.retain(|name| old(name));
    names.iter().try_for_each(|name| remove_tree(directory, name)).map(|()| names.len())
}

/// Empties `staging/`: no unpack runs, and nobody will adopt what is there.
pub fn staging(directory: &Path) -> Result<usize, SweepError> {
    let names = names(directory)?;
    names.iter().try_for_each(|name| remove_tree(directory, name)).map(|()| names.len())
}

/// Removes from `staging/` what a dead launcher was at work on. The others still are.
pub fn workbench(directory: &Path, launcher: u32) -> Result<usize, SweepError> {
    let mut names = names(directory)?;
    names.retain(|name| name.starts_with(&workbench_of(launcher)));
    names.iter().try_for_each(|name| remove_tree(directory, name)).map(|()| names.len())
}

/// Removes from `code/` what is not a tree and its zip: temporary names, and one without the other.
pub fn code(directory: &Path) -> Result<usize, SweepError> {
    let names = names(directory)?;
    let whole = |name: &String| {
        let digest = name.strip_suffix(".zip").unwrap_or(name);
        digest.parse::<Digest>().is_ok() && names.contains(digest) && names.contains(&format!("{digest}.zip"))
    };
    let half: Vec<&String> = names.iter().filter(|name| !whole(name)).collect();
    half.iter().try_for_each(|name| remove_tree(directory, name)).map(|()| half.len())
}

fn names(directory: &Path) -> Result<BTreeSet<String>, SweepError> {
    let failed = |source| SweepError::List { path: directory.to_owned(), source };
    let names = fs::read_dir(directory).map_err(failed)?;
    names.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Removes one file or tree, which may have been made by a hostile hand ([`crate::sys::tree`]).
pub fn remove_tree(directory: &Path, name: &str) -> Result<(), SweepError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::PATH;
    let parent = openat(rustix::fs::CWD, directory, flags, Mode::empty()).map_err(io::Error::from);
    let removed = parent.and_then(|parent| tree::remove(parent.as_fd(), name));
    removed.map_err(|source| SweepError::Remove { path: directory.join(name), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_this_instances_groups_are_removed_and_inner_ones_first() {
        let parent = tempfile::tempdir().unwrap();
        for group in ["kiln-a-1-1/inner", "kiln-a-2-7", "kiln-ab-1-1", "other"] {
            fs::create_dir_all(parent.path().join(group)).unwrap();
        }
        let missing = parent.path().join("no-such-parent");
        assert_eq!(groups([parent.path(), &missing], "kiln-a-").unwrap(), 2);
        let left: Vec<_> = names(parent.path()).unwrap().into_iter().collect();
        assert_eq!(left, ["kiln-ab-1-1", "other"]);
    }

    #[test]
    fn a_group_that_cannot_be_removed_keeps_no_other() {
        let parent = tempfile::tempdir().unwrap();
        for group in ["kiln-a-1-1", "kiln-a-1-2", "kiln-a-1-3"] {
            fs::create_dir_all(parent.path().join(group)).unwrap();
        }
        // Which no cgroup has.
        fs::write(parent.path().join("kiln-a-1-2/file"), "").unwrap();
        let error = groups([parent.path()], "kiln-a-").unwrap_err();
        assert!(matches!(&error, SweepError::Remove { path, .. } if path.ends_with("kiln-a-1-2")), "{error:?}");
        assert_eq!(names(parent.path()).unwrap().into_iter().collect::<Vec<_>>(), ["kiln-a-1-2"]);
    }

    #[test]
    fn code_that_is_half_stored_is_removed_and_whole_code_stays() {
        let code_dir = tempfile::tempdir().unwrap();
        let (whole, no_zip, no_tree) = (Digest::of(b"1"), Digest::of(b"2"), Digest::of(b"3"));
        for tree in [whole, no_zip] {
            fs::create_dir_all(code_dir.path().join(format!("{tree}/deep"))).unwrap();
        }
        for zip in [format!("{whole}.zip"), format!("{no_tree}.zip"), ".tmp-17".into()] {
            fs::write(code_dir.path().join(zip), "").unwrap();
        }
        assert_eq!(code(code_dir.path()).unwrap(), 3);
        let mut left: Vec<_> = names(code_dir.path()).unwrap().into_iter().collect();
        left.sort();
        assert_eq!(left, [whole.to_string(), format!("{whole}.zip")]);
    }

    #[test]
    fn of_staging_a_dead_launchers_work_is_removed_and_nobody_elses() {
        let staging_dir = tempfile::tempdir().unwrap();
        for name in ["launcher-1-a/tree", "launcher-1-b", "launcher-11-a", "0123"] {
            fs::create_dir_all(staging_dir.path().join(name)).unwrap();
        }
        assert_eq!(workbench(staging_dir.path(), 1).unwrap(), 2);
        let left: Vec<_> = names(staging_dir.path()).unwrap().into_iter().collect();
        assert_eq!(left, ["0123", "launcher-11-a"]);
    }

    #[test]
    fn a_group_of_no_living_launcher_is_a_stray_and_no_other_is() {
        let parent = tempfile::tempdir().unwrap();
        for group in ["kiln-a-1-1", "kiln-a-2-7", "kiln-a-2-8", "kiln-a-check", "kiln-a-2-x", "kiln-ab-9-1", "other-2-7"] {
            fs::create_dir_all(parent.path().join(group)).unwrap();
        }
        let missing = parent.path().join("no-such-parent");
        let found = strays([parent.path(), &missing], "kiln-a-", |launcher| launcher == 1).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["kiln-a-2-7", "kiln-a-2-8"]);
    }

    #[test]
    fn of_staging_only_what_is_old_is_forgotten() {
        let staging_dir = tempfile::tempdir().unwrap();
        for name in ["old", "new"] {
            fs::create_dir(staging_dir.path().join(name)).unwrap();
        }
        let hours_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
        File::open(staging_dir.path().join("old")).unwrap().set_modified(hours_ago).unwrap();
        assert_eq!(forgotten(staging_dir.path(), Duration::from_secs(3600)).unwrap(), 1);
        assert_eq!(names(staging_dir.path()).unwrap().into_iter().collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn a_link_is_removed_and_what_it_points_to_is_not() {
        let (staging_dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("kept"), "").unwrap();
        fs::create_dir(staging_dir.path().join("1")).unwrap();
        for link in ["1/link", "2"] {
            symlink(outside.path(), staging_dir.path().join(link)).unwrap();
        }
        assert_eq!(staging(staging_dir.path()).unwrap(), 2);
        assert!(outside.path().join("kept").exists());
    }
}

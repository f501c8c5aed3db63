//! What can be Kiln's on a machine with systemd. Two pictures make a diff.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use super::eyes::processes::{Process, process, processes};

/// A line for each thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture(BTreeSet<String>);

/// User ids of a container or a tree begin here; nobody else in the machine has such.
const FIRST_ID: u32 = 1_879_048_192;

impl Picture {
    pub fn take() -> Self {
        let mut found = BTreeSet::new();
        for process in processes() {
            let Process { pid, uid, comm, cmdline, .. } = process;
            if comm.starts_with("kilnd") || comm.starts_with("kiln-init") || uid >= FIRST_ID {
                found.insert(format!("process {pid} uid {uid} {comm} {cmdline:?}"));
            }
        }
        mounts(&mut found);
        for hierarchy in super::eyes::cgroup_mounts() {
            groups(&hierarchy, &mut found);
        }
        namespaces(&mut found);
        for directory in ["/run/kiln", "/run/kiln-two"] {
            files(Path::new(directory), &mut found);
        }
        for state in ["/var/lib/kiln", "/var/lib/kiln-two"] {
            files(&Path::new(state).join("staging"), &mut found);
        }
        // One set counts things; so that one more is a line of its own.
        for number in 0..descriptors_of_systemd() {
            found.insert(format!("descriptor of systemd's, the {number}th"));
        }
        Self(found)
    }

    /// What is here and was not there.
    pub fn since(&self, earlier: &Self) -> Vec<String> {
        self.0.difference(&earlier.0).cloned().collect()
    }
}

/// Of the host, which is systemd's mount namespace.
fn mounts(found: &mut BTreeSet<String>) {
    for line in fs::read_to_string("/proc/1/mountinfo").expect("read systemd's mounts").lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        found.insert(format!("mount {point} {}", line.split(" - ").nth(1).unwrap_or_default()));
    }
}

/// All cgroups whose name begins so, in every hierarchy.
pub fn cgroups(prefix: &str) -> Vec<PathBuf> {
    super::eyes::cgroups(prefix)
}

/// Of kiln.slice and below it, and by our own name anywhere. systemd itself keeps the slice while a unit of it is loaded.
fn groups(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path: PathBuf = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.components().any(|part| part.as_os_str() == "kiln.slice") && name != "kiln.slice" || name.starts_with("kiln-") {
            found.insert(format!("cgroup {}", path.display()));
        }
        groups(&path, found);
    }
}

/// Namespaces that processes live in or hold open.
fn namespaces(found: &mut BTreeSet<String>) {
    for process in processes() {
        let mut links = Vec::new();
        for kind in ["net", "mnt", "pid", "user"] {
            links.push((kind, fs::read_link(format!("/proc/{}/ns/{kind}", process.pid))));
        }
        for entry in fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten() {
            links.push(("net", fs::read_link(entry.path())));
        }
        for (kind, link) in links {
            let Ok(link) = link else { continue };
            let link = link.display().to_string();
            // Other services of the machine come and go with mount namespaces of their own.
            if link.starts_with(&format!("{kind}:[")) && (kind != "mnt" || process.comm.starts_with("kiln")) {
                found.insert(format!("namespace {link}"));
            }
        }
    }
}

fn files(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        found.insert(format!("file {} uid {} mode {:o}", entry.path().display(), metadata.uid(), metadata.mode()));
        if metadata.is_dir() {
            files(&entry.path(), found);
        }
    }
}

fn descriptors_of_systemd() -> usize {
    fs::read_dir("/proc/1/fd").map_or(0, Iterator::count)
}

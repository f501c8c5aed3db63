//! What is on the host: processes, mounts, cgroups, network namespaces, files. Two of them make a diff.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[allow(unused_imports)] // serves several test programs; each uses its part
pub use super::eyes::processes::{Process, process, processes};

/// One line for each thing found. Only what can be Kiln's is looked at: other programs on the machine come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Everything of an instance that could be left behind: its processes, mounts in the host's namespace,
    /// cgroups, network namespaces held by anyone, and (with their content) its run_dir and state_dir.
    pub fn of(instance: &super::Instance) -> Self {
        let mut found = BTreeSet::new();
        let ids = instance.first_id..instance.first_id + 4096;
        let ours = super::program("kilnd").parent().expect("target directory").display().to_string();
        for process in processes() {
            let program = process.exe.strip_prefix(&format!("{ours}/")).unwrap_or_default().to_owned();
            let bears_mark = ids.contains(&process.uid) || program.starts_with("kilnd") || program.starts_with("kiln-init");
            if bears_mark {
                found.insert(format!("process {} {} {:?}", process.pid, process.comm, process.cmdline));
            }
        }
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            if point.contains("kiln") || line.contains(&instance.name) {
                found.insert(format!("mount {line}"));
            }
        }
        for group in cgroups(&format!("kiln-{}-", instance.name)) {
            found.insert(format!("cgroup {group}"));
        }
        for (namespace, holder) in network_namespaces() {
            found.insert(format!("netns {namespace} held by {holder}"));
        }
        for dir in [instance.run_dir(), instance.state_dir()] {
            list(&dir, &mut found);
        }
        Self(found)
    }

    /// What is here and was not there.
    pub fn since(&self, earlier: &Self) -> Vec<String> {
        self.0.difference(&earlier.0).cloned().collect()
    }
}

/// Paths of cgroups whose name begins so, in every mounted hierarchy.
pub fn cgroups(prefix: &str) -> Vec<String> {
    super::eyes::cgroups(prefix).into_iter().map(|group| group.display().to_string()).collect()
}

/// Network namespaces that processes live in or hold open, other than this test's own.
fn network_namespaces() -> BTreeMap<String, String> {
    let own = fs::read_link("/proc/self/ns/net").map(|link| link.display().to_string()).unwrap_or_default();
    let mut found = BTreeMap::new();
    for process in processes() {
        let mut links = vec![fs::read_link(format!("/proc/{}/ns/net", process.pid))];
        for entry in fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten() {
            links.push(fs::read_link(entry.path()));
        }
        for link in links.into_iter().flatten() {
            let link = link.display().to_string();
            if link.starts_with("net:[") && link != own {
                found.entry(link).or_insert(process.comm.clone());
            }
        }
    }
    found
}

fn list(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else { continue };
        // The database's own files grow and shrink; what they hold is asked through the API.
        if path.components().any(|part| part.as_os_str() == "db") {
            continue;
        }
        found.insert(format!("file {} uid {} mode {:o}", path.display(), metadata.uid(), metadata.mode()));
        if metadata.is_dir() {
            list(&path, found);
        }
    }
}

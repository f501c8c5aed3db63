//! What can be written: each directory below / gets a file created in it (and removed), each other file is opened
//! for writing (and nothing written). /proc is walked without processes; links are not followed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use serde_json::{Value, json};

/// A walk ends here, so that the probe ends on any host.
const MOST_ENTRIES: usize = 2_000_000;

/// Null as root of a host, who can write everywhere and would arm watchdogs.
pub fn writable() -> Value {
    // SAFETY: returns a number.
    if unsafe { libc::geteuid() } == 0 {
        return Value::Null;
    }
    let mut found = Found::default();
    found.walk(PathBuf::from("/"));
    json!({
        "directories": found.directories,
        "files": found.files,
        "devices": found.devices,
        "proc": found.proc,
        "entries": found.entries,
    })
}

#[derive(Default)]
struct Found {
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
    devices: Vec<PathBuf>,
    proc: Vec<PathBuf>,
    entries: usize,
}

impl Found {
    fn walk(&mut self, root: PathBuf) {
        let mut ahead = vec![root];
        while let Some(directory) = ahead.pop() {
            if takes_a_file(&directory) {
                self.directories.push(directory.clone());
            }
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                self.entries += 1;
                if self.entries > MOST_ENTRIES {
                    return;
                }
                let Ok(kind) = entry.file_type() else { continue };
                let path = entry.path();
                if kind.is_dir() {
                    if !is_a_process(&path) {
                        ahead.push(path);
                    }
                } else if !kind.is_symlink() && opens_for_writing(&path) {
                    let list = match () {
                        () if path.starts_with("/proc") => &mut self.proc,
                        () if kind.is_char_device() || kind.is_block_device() => &mut self.devices,
                        () => &mut self.files,
                    };
                    list.push(path);
                }
            }
        }
        for list in [&mut self.directories, &mut self.files, &mut self.devices, &mut self.proc] {
            list.sort();
        }
    }
}

/// /proc/PID is the process's own; /proc/self and thread-self are links.
fn is_a_process(path: &Path) -> bool {
    path.parent() == Some(Path::new("/proc")) && path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit())
}

fn takes_a_file(directory: &Path) -> bool {
    let file = directory.join(format!(".probe-{}", process::id()));
    let created = File::create_new(&file).is_ok();
    if created {
        let _ = fs::remove_file(&file);
    }
    created
}

/// Without waiting for a pipe's reader or a line's carrier, and without taking a terminal.
fn opens_for_writing(path: &Path) -> bool {
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW).open(path).is_ok()
}

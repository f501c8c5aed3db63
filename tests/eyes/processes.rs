//! Processes of the host, as /proc shows them.

use std::fs;
use std::os::unix::fs::MetadataExt;

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub uid: u32,
    pub comm: String,
    pub exe: String,
    pub cmdline: Vec<String>,
}

/// All processes that can be read right now; one that ends meanwhile is left out.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

pub fn process(pid: u32) -> Option<Process> {
    let dir = format!("/proc/{pid}");
    let stat = fs::read_to_string(format!("{dir}/stat")).ok()?;
    // The name is in parentheses and may hold anything, parentheses too.
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    // A zombie holds nothing but its pid; its parent will reap it.
    if fields.first() == Some(&"Z") {
        return None;
    }
    let cmdline = fs::read(format!("{dir}/cmdline")).unwrap_or_default();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        uid: fs::metadata(&dir).ok()?.uid(),
        comm: head.split_once('(')?.1.to_owned(),
        exe: fs::read_link(format!("{dir}/exe")).map(|path| path.display().to_string()).unwrap_or_default(),
        cmdline: cmdline.split(|b| *b == 0).filter(|w| !w.is_empty()).map(|w| String::from_utf8_lossy(w).into_owned()).collect(),
    })
}

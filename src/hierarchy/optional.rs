//! What Kiln uses where a kernel has it, and what is so without: a table, for readers and for `kiln doctor`.
//!
//! The oldest kernel that serves is 5.14 (`cgroup.kill`). Everything else that Kiln needs of a host is older than that, and is refused
//! by name at the start if it is missing. Nothing here is assumed by a version: whoever uses a row looks for its file, since a kernel may be
//! built or booted without it.

use crate::wire::launcher::CgroupLayout;

#[derive(Clone, Copy, Debug)]
pub struct Optional {
    pub what: &'static str,
    /// The first kernel that has it, in either hierarchy.
    pub since: (u32, u32),
    /// Its file in a container's group, by which it is found: on unified hosts, and on others. Empty: there is none.
    unified: &'static str,
    split: &'static str,
    /// A file of the host, and the word in it, for what has no group; without a word the file itself is the sign.
    pub host: Option<(&'static str, &'static str)>,
    pub used: &'static str,
    pub without: &'static str,
}

impl Optional {
    /// The file in a group with limits that says whether it is there.
    pub fn file(&self, layout: CgroupLayout) -> Option<&'static str> {
        let file = match layout {
            CgroupLayout::Unified => self.unified,
            CgroupLayout::Split => self.split,
        };
        (!file.is_empty()).then_some(file)
    }
}

pub const OPTIONAL: [Optional; 5] = [
    Optional {
        what: "CPU burst",
        since: (5, 14),
        unified: "cpu.max.burst",
        split: "cpu.cfs_burst_us",
        host: None,
        used: "what a function left of one period's CPU time it may use in the next: launcher/cgroup, server/environment/freeze",
        without: "the quota alone: short work after a wait takes longer",
    },
    Optional {
        what: "swap accounting",
        since: (4, 5),
        unified: "memory.swap.max",
        split: "memory.memsw.limit_in_bytes",
        host: None,
        used: "no function swaps (and so none gets into zswap, which needs swap's room): launcher/cgroup",
        without: "without swap on the host nothing is lost; with it, unified hosts are refused, version 1 is told swappiness 0",
    },
    Optional {
        what: "group kill at the memory wall",
        since: (4, 19),
        unified: "memory.oom.group",
        split: "",
        host: None,
        used: "all processes of a function go at once: launcher/cgroup",
        without: "version 1 has none: the server counts the kernel's kills and kills the rest",
    },
    Optional {
        what: "pressure",
        since: (4, 20),
        unified: "",
        split: "",
        host: Some(("/proc/pressure/memory", "")),
        used: "`kiln doctor` says how long processes wait for memory and CPU",
        without: "it says that the kernel does not tell (CONFIG_PSI, psi=1)",
    },
    Optional {
        what: "Landlock",
        since: (5, 13),
        unified: "",
        split: "",
        host: Some(("/sys/kernel/security/lsm", "landlock")),
        used: "unpack may write below its staging directory only, and reach no network: inside/unpack/confine",
        without: "seccomp and a user id of its own keep an unpack apart, as they do with it",
    },
];

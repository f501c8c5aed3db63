//! Server ⇄ supervisor.

use serde::{Deserialize, Serialize};

use super::launcher::{OrderId, StagingId};
use crate::config::Config;

/// Server → supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// Both doors are served.
    Ready,
    /// Sent every [`HEARTBEAT_S`] seconds from the server's own event loop.
    Heartbeat,
    /// [`ToServer::Reload`] is done.
    Reloaded,
    /// Make `staging/<staging>/` and start `unpack` on it. One descriptor: the zip (a sealed memfd).
    Unpack { order: OrderId, staging: StagingId },
}

/// Seconds between two heartbeats; after five missed ones the supervisor replaces the server.
pub const HEARTBEAT_S: u64 = 2;

/// Supervisor → server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// A launcher is ready; one descriptor: the server's end of its socket pair. Sent at start for each, and
    /// again for each that replaces a dead one.
    Launcher {
        launcher: u32,
    },
    /// A launcher has died; its containers are dead too and their cgroups removed.
    LauncherGone {
        launcher: u32,
    },
    Unpacked {
        order: OrderId,
        result: Unpacked,
    },
    /// Go by this configuration from now on. The keys in `waiting` have another value in the file, for the next start.
    Reload {
        config: Box<Config>,
        waiting: Vec<String>,
    },
    /// Take no new callers, let running invocations finish within the limit, then exit 0.
    Drain,
    /// The drain's limit is now.
    Cut,
    /// Serve the metrics on this listening socket (one descriptor) from now on, or, `None`, nowhere but on control.sock. The
    /// text is the address as the configuration has it.
    Metrics {
        listen: Option<String>,
    },
    Upkeep(Upkeep),
}

/// What the supervisor had to do so far. Totals since its own start, which outlive servers, and are no less right if told twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upkeep {
    /// What a kilnd that was killed had left when this one started.
    pub at_start: Swept,
    /// What processes of this one's left that died while it ran.
    pub after_deaths: Swept,
    /// What belonged to nobody although nobody had died: there is never any, unless Kiln has a bug.
    pub while_running: Swept,
    pub servers_restarted: u64,
    pub launchers_restarted: u64,
    pub reloads: u64,
    /// Files that were not taken: the configuration of before still holds.
    pub reloads_refused: u64,
    /// Whether the last one was.
    pub reload_refused: bool,
}

/// How many things a sweep has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    pub cgroups: u64,
    pub staging: u64,
    pub code: u64,
}

impl Swept {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    pub fn add(&mut self, other: Self) {
        self.cgroups += other.cgroups;
        self.staging += other.staging;
        self.code += other.code;
    }
}

/// How `unpack` ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unpacked {
    /// The tree rests in `staging/<staging>/tree`.
    Done { bytes: u64 },
    /// The zip is at fault.
    Refused(ZipRefusal),
    /// The disk is full, or would be fuller than [`crate::code::room`] allows.
    NoRoom,
    /// We are at fault (killed, too slow, …).
    Failed { what: String },
}

/// `unpack`'s exit code for [`Unpacked::NoRoom`].
pub const NO_ROOM: u8 = 2;

/// What is wrong with a zip. `unpack`'s exit code is 64 plus the variant's place in this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZipRefusal {
    /// Not a zip, or damaged.
    Unreadable,
    /// At or over the limit of 250 MB unpacked.
    TooLarge,
    TooManyEntries,
    /// An entry's name leaves the tree: absolute, `..`, NUL, or not UTF-8.
    BadName,
    /// A symbolic link that leaves the tree.
    BadLink,
    /// A device, a socket, a pipe.
    BadKind,
    /// Two entries of one name, overlapping data, or two readings of one entry.
    Overlapping,
    /// Compressed with a method that Lambda does not take, or encrypted.
    BadMethod,
    /// No file, no link, no directory.
    Empty,
}

impl ZipRefusal {
    pub const ALL: [Self; 9] = [
        Self::Unreadable,
        Self::TooLarge,
        Self::TooManyEntries,
        Self::BadName,
        Self::BadLink,
        Self::BadKind,
        Self::Overlapping,
        Self::BadMethod,
        Self::Empty,
    ];
}

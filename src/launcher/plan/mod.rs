//! What one launch will do, decided before it does anything.
//!
//! Pure: made from a checked order and a seat's ids. [`super::launch`] executes this value and nothing else, and [`oci`]
//! shows the same value as an OCI runtime configuration.

pub mod oci;

use nix::sys::resource::Resource;

use crate::code::Digest;
use crate::function::TmpSize;
use crate::launcher::cgroup::Limits;
use crate::launcher::identity::{GID_INSIDE, Maps, UID_INSIDE};
use crate::runtime::TreeId;
use crate::sys::mount::MountAttributes;
use crate::wire::launcher::{Build, ContainerId};

/// One container, as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub container: ContainerId,
    /// Its group's name, below our parent in each hierarchy.
    pub cgroup: String,
    pub limits: Limits,
    pub maps: Maps,
    pub uid: u32,
    pub gid: u32,
    pub host_name: &'static str,
    /// The root first, then each below the ones before it.
    pub mounts: Vec<Mount>,
    pub rlimits: Vec<Rlimit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub at: &'static str,
    pub content: Content,
    pub attributes: MountAttributes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The runtime's trees. Mounted once in a launcher, together with /dev.
    Root(TreeId),
    /// A few devices, part of the root's template.
    Devices,
    Code(Digest),
    /// The bottom one first: of two layers with the same file, the later one's is seen.
    Layers(Vec<Digest>),
    /// Size, and as many inodes as a disk of it would have.
    Tmp(TmpSize),
    /// Made by the child, since it shows the processes of the namespace it is made in.
    Processes,
}

/// `None` is no limit, or as much as the launcher itself may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rlimit {
    pub resource: Resource,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

const LOCKED: MountAttributes = MountAttributes::NO_SUID.and(MountAttributes::NO_DEV);
const READ_ONLY: MountAttributes = LOCKED.and(MountAttributes::READ_ONLY);

/// Lambda's `/etc/hosts` names it so.
const HOST_NAME: &str = "sandbox";

impl Mount {
    pub const ROOT: &str = "/";
    pub const TMP: &str = "/tmp";

    pub fn root(tree: TreeId) -> Self {
        Self { at: Self::ROOT, content: Content::Root(tree), attributes: READ_ONLY }
    }

    /// Devices must be devices here, and nothing shall be executed.
    pub fn devices() -> Self {
        let attributes = MountAttributes::READ_ONLY.and(MountAttributes::NO_SUID).and(MountAttributes::NO_EXEC);
        Self { at: "/dev", content: Content::Devices, attributes }
    }
}

impl Plan {
    pub fn new(order: &Build, container: ContainerId, cgroup: String, maps: Maps) -> Self {
        let mut mounts = vec![
            Mount::root(order.tree),
            Mount::devices(),
            Mount { at: "/var/task", content: Content::Code(order.code), attributes: READ_ONLY },
        ];
        if !order.layers.is_empty() {
            let content = Content::Layers(order.layers.clone());
            mounts.push(Mount { at: "/opt", content, attributes: READ_ONLY });
        }
        mounts.push(Mount { at: Mount::TMP, content: Content::Tmp(order.tmp), attributes: LOCKED });
        // Read-only: else /proc/pressure and a few sysctls take what an ordinary user writes, and act on the host.
        let attributes = READ_ONLY.and(MountAttributes::NO_EXEC);
        mounts.push(Mount { at: "/proc", content: Content::Processes, attributes });
        Self {
            container,
            cgroup,
            limits: Limits::of(order.memory, order.tmp),
            maps,
            uid: UID_INSIDE,
            gid: GID_INSIDE,
            host_name: HOST_NAME,
            mounts,
            rlimits: rlimits(),
        }
    }

    pub fn code(&self) -> Option<Digest> {
        self.mounts.iter().find_map(|mount| match mount.content {
            Content::Code(code) => Some(code),
            _ => None,
        })
    }

    pub fn uses(&self, digest: Digest) -> bool {
        let layer = |mount: &Mount| matches!(&mount.content, Content::Layers(layers) if layers.contains(&digest));
        self.code() == Some(digest) || self.mounts.iter().any(layer)
    }
}

/// Lambda's, as seen inside; but no core files, which would fill /tmp. Processes are `pids.max`'s business.
fn rlimits() -> Vec<Rlimit> {
    const STACK: u64 = 8 << 20;
    let both = |resource, value| Rlimit { resource, soft: Some(value), hard: Some(value) };
    vec![
        both(Resource::RLIMIT_NOFILE, 1024),
        Rlimit { resource: Resource::RLIMIT_STACK, soft: Some(STACK), hard: None },
        // Not 0, which counts for files only: where the host's core_pattern names a program, as under systemd, each crash would
        // start that as the host's root, with the function's memory to read. Of 1 the kernel gives nothing to anybody.
        both(Resource::RLIMIT_CORE, 1),
        both(Resource::RLIMIT_MEMLOCK, 65_536),
        // Whoever started us may have more (a unit's LimitRTPRIO=, a shell's limits.conf): no function outruns the host.
        both(Resource::RLIMIT_RTPRIO, 0),
        both(Resource::RLIMIT_NICE, 0),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::function::Memory;
    use crate::wire::launcher::OrderId;

    pub fn plan(layers: usize) -> Plan {
        let order = Build {
            order: OrderId(1),
            tree: TreeId(Digest::of(b"tree")),
            code: Digest::of(b"code"),
            layers: (0..layers).map(|i| Digest::of(&[i as u8])).collect(),
            memory: Memory::from_mib(512).unwrap(),
            tmp: TmpSize::DEFAULT,
        };
        let container = ContainerId { launcher: 3, number: 17 };
        Plan::new(&order, container, "kiln-test-3-17".into(), Maps::of(1_879_048_192, 1_879_113_728))
    }

    #[test]
    fn only_tmp_can_be_written_and_only_dev_has_devices() {
        for mount in &plan(1).mounts {
            let writable = !mount.attributes.contains(MountAttributes::READ_ONLY);
            assert_eq!(writable, mount.at == "/tmp", "{}", mount.at);
            assert_eq!(!mount.attributes.contains(MountAttributes::NO_DEV), mount.at == "/dev", "{}", mount.at);
            assert!(mount.attributes.contains(MountAttributes::NO_SUID), "{}", mount.at);
        }
    }

    #[test]
    fn opt_is_mounted_only_for_layers() {
        assert!(plan(0).mounts.iter().all(|mount| mount.at != "/opt"));
        assert!(plan(2).uses(Digest::of(&[1])) && plan(2).uses(Digest::of(b"code")) && !plan(0).uses(Digest::of(&[1])));
    }
}

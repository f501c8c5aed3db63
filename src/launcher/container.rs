//! A container's file system: a root prepared once in this launcher, and what is attached to each container's copy of it.
//!
//! A *template* is a mount namespace that nobody lives in: the runtime's trees as a read-only overlay at its root, a few devices
//! at /dev, and nothing of the host's. The launcher holds it by descriptor. A child enters it and takes a copy for itself, so
//! it has neither to pivot nor to unmount the host's files: an unmount waits for a grace period of the kernel's (50 µs on an idle
//! machine, 25 ms and more on a busy one, measured).
//!
//! Everything else (code, layers, /tmp) the launcher makes detached, known by descriptor only, and the child attaches it.
//! `run_dir/trees` is a tmpfs that only this launcher sees, for the mount points that every root must have.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode as NixMode, SFlag, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchdir, fchownat, pivot_root};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use rustix::io::Errno;

use crate::function::TmpSize;
use crate::launcher::plan::{Content, Mount, Plan};
use crate::launcher::store::{Store, StoreError};
use crate::runtime::TreeId;
use crate::sys::mount::{MountAttributes, mount_setattr};

#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("{call} for {object}")]
    Mount { call: &'static str, object: String, source: io::Error },
    #[error("make {path}")]
    Make { path: String, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn failed(call: &'static str, object: impl Display) -> impl FnOnce(Errno) -> ContainerError {
    let object = object.to_string();
    move |errno| ContainerError::Mount { call, object, source: errno.into() }
}

/// The templates of this launcher.
#[derive(Debug)]
pub struct Trees {
    /// The mount namespace that the launcher lives in.
    home: File,
    /// Where a template is attached while it is being made: a directory of the launcher's own tmpfs.
    workbench: PathBuf,
    /// The mount points that every root must have, the lowest layer of each.
    skeleton: OwnedFd,
    owner: u32,
    templates: Vec<(TreeId, File)>,
    /// The trees of every template ever made, locked: containers may outlive their template.
    held: BTreeMap<TreeId, Vec<OwnedFd>>,
}

/// Runtimes that one launcher keeps mounted; the one mounted first goes first.
const MAX_TEMPLATES: usize = 64;
/// Directories, and kiln-init.
const BENCH_OPTIONS: [(&str, &str); 3] = [("size", "4m"), ("nr_inodes", "64"), ("mode", "0700")];
/// Directories that a root needs whatever its trees bring, as Lambda has them.
const SKELETON: [&str; 6] = ["dev", "proc", "tmp", "opt", "var", "var/task"];
const OWN: &str = "/proc/self/ns/mnt";

impl Trees {
    /// `path` is an empty directory; the launcher is already in a mount namespace of its own.
    pub fn open(path: &Path, owner: u32) -> Result<Self, ContainerError> {
        let bench = tmpfs(&BENCH_OPTIONS, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
        attach(bench.as_fd(), CWD, path)?;
        make_directory(bench.as_fd(), "root")?;
        make_directory(bench.as_fd(), "skeleton")?;
        let skeleton = open_directory(bench.as_fd(), "skeleton")?;
        own(skeleton.as_fd(), owner)?;
        for directory in SKELETON {
            make_directory(skeleton.as_fd(), directory)?;
            own(open_directory(skeleton.as_fd(), directory)?.as_fd(), owner)?;
        }
        Ok(Self {
            home: open_own()?,
            workbench: path.join("root"),
            skeleton,
            owner,
            templates: Vec::new(),
            held: BTreeMap::new(),
        })
    }

    /// Everything that `plan` mounts; what only the child can make is left to it.
    pub fn prepare(&mut self, store: &Store, plan: &Plan) -> Result<Prepared, ContainerError> {
        let missing = |at: &'static str| failed("plan", at)(Errno::NOENT);
        let (mut template, mut mounts, mut tmp) = (None, Vec::new(), None);
        for mount in &plan.mounts {
            let prepared = match &mount.content {
                Content::Root(tree) => {
                    template = Some(self.template(store, *tree)?);
                    continue;
                }
                Content::Devices => continue,
                Content::Code(code) => Some(bind(store.code(*code)?.as_fd(), mount)?),
                Content::Layers(layers) => Some(layers_at(store, layers, mount)?),
                Content::Tmp(size) => {
                    let made = self.tmp(*size, mount)?;
                    tmp = Some(made.try_clone().map_err(|source| dup("/tmp", source))?);
                    Some(made)
                }
                Content::Processes => None,
            };
            mounts.push((mount.clone(), prepared));
        }
        Ok(Prepared { template: template.ok_or_else(|| missing("/"))?, mounts, tmp: tmp.ok_or_else(|| missing("/tmp"))? })
    }

    fn template(&mut self, store: &Store, tree: TreeId) -> Result<File, ContainerError> {
        if let Some((_, template)) = self.templates.iter().find(|(made, _)| *made == tree) {
            return template.try_clone().map_err(|source| dup("/", source));
        }
        if self.templates.len() == MAX_TEMPLATES {
            // Containers have their copies.
            self.templates.remove(0);
        }
        let layers = store.trees(tree)?;
        let template = self.make_template(&layers, tree)?;
        self.held.insert(tree, layers);
        let copy = template.try_clone().map_err(|source| dup("/", source));
        self.templates.push((tree, template));
        copy
    }

    /// Always an overlay, with the skeleton at the bottom: so no tree has to bring its mount points.
    fn make_template(&self, layers: &[OwnedFd], tree: TreeId) -> Result<File, ContainerError> {
        let layers: Vec<_> = layers.iter().chain([&self.skeleton]).map(AsFd::as_fd).collect();
        let root = overlay(&layers, Mount::root(tree).attributes, tree)?;
        let devices = self.devices()?;

        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| failed_nix("unshare", "mounts", errno))?;
        let made = open_own().and_then(|namespace| {
            attach(root.as_fd(), CWD, &self.workbench)?;
            attach(devices.as_fd(), root.as_fd(), Path::new("dev"))?;
            become_root(&root)?;
            Ok(namespace)
        });
        self.go_home();
        made
    }

    /// A launcher without the host's files could neither find code nor make a group: better none at all.
    fn go_home(&self) {
        if let Err(errno) = setns(&self.home, CloneFlags::CLONE_NEWNS) {
            tracing::error!(%errno, "cannot return to the launcher's own mount namespace");
            std::process::abort();
        }
    }

    fn devices(&self) -> Result<OwnedFd, ContainerError> {
        let directory = tmpfs(&[("size", "64k"), ("nr_inodes", "32"), ("mode", "0755")], MountAttrFlags::empty())?;
        own(directory.as_fd(), self.owner)?;
        for (name, major, minor) in DEVICES {
            let mode = NixMode::from_bits_truncate(0o666);
            mknodat(&directory, name, SFlag::S_IFCHR, mode, makedev(major, minor))
                .and_then(|()| nix::sys::stat::fchmodat(&directory, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink))
                .and_then(|()| {
                    fchownat(&directory, name, Some(Uid::from_raw(self.owner)), Some(Gid::from_raw(self.owner)), AtFlags::empty())
                })
                .map_err(|errno| ContainerError::Make { path: format!("/dev/{name}"), source: errno.into() })?;
        }
        for (name, target) in LINKS {
            symlinkat(target, &directory, name)
                .map_err(|errno| ContainerError::Make { path: format!("/dev/{name}"), source: errno.into() })?;
        }
        // Only now: it could not have been filled read-only.
        mount_setattr(directory.as_fd(), Mount::devices().attributes).map_err(|source| attributes_of("/dev", source))?;
        Ok(directory)
    }

    fn tmp(&self, size: TmpSize, mount: &Mount) -> Result<OwnedFd, ContainerError> {
        let owner = self.owner.to_string();
        let (bytes, inodes) = (size.bytes().to_string(), size.inodes().to_string());
        let options = [("size", &*bytes), ("nr_inodes", &*inodes), ("mode", "1777"), ("uid", &*owner), ("gid", &*owner)];
        let tmp = tmpfs(&options, MountAttrFlags::empty())?;
        mount_setattr(tmp.as_fd(), mount.attributes).map_err(|source| attributes_of(mount.at, source))?;
        Ok(tmp)
    }
}

/// Minor and major numbers: null(4), full(4), random(4), tty(4).
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 4] =
    [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")];

/// A container's mounts, held by the launcher until the child has taken them.
#[derive(Debug)]
pub struct Prepared {
    template: File,
    mounts: Vec<(Mount, Option<OwnedFd>)>,
    /// For fstatfs; it keeps the pages of /tmp alive as long as it is open.
    pub tmp: OwnedFd,
}

/// Child: into a copy of the template. The host's files are gone.
pub fn enter_root(prepared: &Prepared) -> Result<(), ContainerError> {
    setns(&prepared.template, CloneFlags::CLONE_NEWNS).map_err(|errno| failed_nix("setns", "the template", errno))?;
    // Before anything is attached: the template is everybody's.
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| failed_nix("unshare", "the template", errno))
}

/// Child: attaches what was prepared, and makes what shows its own namespaces.
pub fn attach_trees(prepared: &Prepared) -> Result<(), ContainerError> {
    prepared.mounts.iter().try_for_each(|(mount, made)| match made {
        Some(made) => attach(made.as_fd(), CWD, Path::new(mount.at)),
        None => attach(processes(mount)?.as_fd(), CWD, Path::new(mount.at)),
    })
}

/// Child: what the function reads from, by a descriptor that nobody else has.
pub fn open_null() -> Result<File, ContainerError> {
    let open = File::options().read(true).write(true).open("/dev/null");
    open.map_err(|source| ContainerError::Make { path: "an open /dev/null".into(), source })
}

/// Makes `root` the only file system of this namespace: the old root comes to lie upon it, and is taken off
/// (pivot_root(2), `.` `.`).
fn become_root(root: &OwnedFd) -> Result<(), ContainerError> {
    fchdir(root).map_err(|errno| failed_nix("fchdir", "/", errno))?;
    pivot_root(".", ".").map_err(|errno| failed_nix("pivot_root", "/", errno))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|errno| failed_nix("umount2", "the host's files", errno))
}

fn open_own() -> Result<File, ContainerError> {
    File::open(OWN).map_err(|source| ContainerError::Mount { call: "open", object: OWN.into(), source })
}

fn processes(mount: &Mount) -> Result<OwnedFd, ContainerError> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen", "proc"))?;
    fsconfig_create(&context).map_err(failed("fsconfig", "proc"))?;
    let made = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(failed("fsmount", "proc"))?;
    mount_setattr(made.as_fd(), mount.attributes).map_err(|source| attributes_of(mount.at, source))?;
    Ok(made)
}

fn layers_at(store: &Store, layers: &[crate::code::Digest], mount: &Mount) -> Result<OwnedFd, ContainerError> {
    // Overlayfs names the upper one first; it wants two, so one is a clone like the code.
    let opened = layers.iter().rev().map(|layer| store.code(*layer)).collect::<Result<Vec<_>, _>>()?;
    match &opened[..] {
        [one] => bind(one.as_fd(), mount),
        several => overlay(&several.iter().map(AsFd::as_fd).collect::<Vec<_>>(), mount.attributes, mount.at),
    }
}

fn bind(tree: BorrowedFd<'_>, mount: &Mount) -> Result<OwnedFd, ContainerError> {
    let clone = clone_tree(tree, mount.at)?;
    mount_setattr(clone.as_fd(), mount.attributes).map_err(|source| attributes_of(mount.at, source))?;
    Ok(clone)
}

/// Overlayfs resolves its layers by path while it is being made, and a string option has at most 255 bytes: so they are
/// named by descriptor.
fn overlay(
    layers: &[BorrowedFd<'_>],
    attributes: MountAttributes,
    object: impl Display + Copy,
) -> Result<OwnedFd, ContainerError> {
    let lower = layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect::<Vec<_>>().join(":");
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen overlay", object))?;
    fsconfig_set_string(&context, "source", "kiln").map_err(failed("fsconfig source", object))?;
    fsconfig_set_string(&context, "lowerdir", &*lower).map_err(failed("fsconfig lowerdir", object))?;
    fsconfig_set_flag(&context, "ro").map_err(failed("fsconfig ro", object))?;
    fsconfig_create(&context).map_err(failed("fsconfig create overlay", object))?;
    let made = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(failed("fsmount", object))?;
    mount_setattr(made.as_fd(), attributes).map_err(|source| attributes_of(object, source))?;
    Ok(made)
}

fn tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, ContainerError> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen", "tmpfs"))?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value).map_err(failed("fsconfig", format!("tmpfs {key}={value}")))?;
    }
    fsconfig_create(&context).map_err(failed("fsconfig create", "tmpfs"))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("fsmount", "tmpfs"))
}

fn clone_tree(tree: BorrowedFd<'_>, object: impl Display) -> Result<OwnedFd, ContainerError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(tree, "", flags).map_err(failed("open_tree", object))
}

fn attach(mount: BorrowedFd<'_>, below: BorrowedFd<'_>, at: &Path) -> Result<(), ContainerError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", below, at, flags).map_err(failed("move_mount", at.display()))
}

fn make_directory(below: BorrowedFd<'_>, name: &str) -> Result<(), ContainerError> {
    mkdirat(below, name, Mode::from_raw_mode(0o755))
        .map_err(|errno| ContainerError::Make { path: name.to_owned(), source: errno.into() })
}

fn open_directory(below: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, ContainerError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(below, name, flags, Mode::empty())
        .map_err(|errno| ContainerError::Make { path: name.to_owned(), source: errno.into() })
}

fn own(file: BorrowedFd<'_>, owner: u32) -> Result<(), ContainerError> {
    fchownat(file, "", Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)), AtFlags::AT_EMPTY_PATH)
        .map_err(|errno| ContainerError::Make { path: "an owner".into(), source: errno.into() })
}

fn attributes_of(object: impl Display, source: io::Error) -> ContainerError {
    ContainerError::Mount { call: "mount_setattr", object: object.to_string(), source }
}

fn failed_nix(call: &'static str, object: impl Display, errno: nix::Error) -> ContainerError {
    ContainerError::Mount { call, object: object.to_string(), source: errno.into() }
}

fn dup(object: impl Display, source: io::Error) -> ContainerError {
    ContainerError::Mount { call: "dup", object: object.to_string(), source }
}

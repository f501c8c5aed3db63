//! A container's file system: trees mounted once in this launcher, cloned for each container, attached by its child.
//!
//! The launcher's mount namespace is its own, a slave of the host's. In it, `run_dir/trees` is a tmpfs that nobody else sees:
//!
//! ```text
//! trees/skeleton/          the mount points that every root must have, the lowest layer of each template
//! trees/<tree id>/         a template: the runtime's trees as a read-only overlay, a few devices at /dev
//! trees/root/              where a child attaches its clone before it pivots there
//! ```
//!
//! Templates are attached, since before Linux 6.15 a detached tree cannot be cloned; clones are detached and exist only by
//! descriptor, so that a launcher's death takes them along.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode as NixMode, SFlag, makedev, mknodat};
use nix::unistd::{Gid, Uid, chdir, fchdir, fchownat, pivot_root};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

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

fn failed(call: &'static str, object: impl std::fmt::Display) -> impl FnOnce(rustix::io::Errno) -> ContainerError {
    let object = object.to_string();
    move |errno| ContainerError::Mount { call, object, source: errno.into() }
}

/// The templates of this launcher.
#[derive(Debug)]
pub struct Trees {
    /// `run_dir/trees`, and the root of the tmpfs on it.
    path: PathBuf,
    base: OwnedFd,
    skeleton: OwnedFd,
    owner: u32,
    mounted: Vec<(TreeId, OwnedFd)>,
}

/// Runtimes that one launcher keeps mounted; the one mounted first goes first.
const MAX_TEMPLATES: usize = 64;
/// Only directories and mount points are in it.
const BASE_OPTIONS: [(&str, &str); 3] = [("size", "1m"), ("nr_inodes", "1024"), ("mode", "0700")];
/// Directories that a root needs whatever its trees bring, as Lambda has them.
const SKELETON: [&str; 6] = ["dev", "proc", "tmp", "opt", "var", "var/task"];
/// Where a child attaches its root.
const ROOT: &str = "root";

impl Trees {
    /// `path` is an empty directory; the launcher is already in a mount namespace of its own.
    pub fn open(path: PathBuf, owner: u32) -> Result<Self, ContainerError> {
        let base = tmpfs(&BASE_OPTIONS, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
        attach(base.as_fd(), CWD, &path)?;
        make_directory(base.as_fd(), ROOT)?;
        make_directory(base.as_fd(), "skeleton")?;
        let skeleton = open_directory(base.as_fd(), "skeleton")?;
        own(skeleton.as_fd(), owner)?;
        for directory in SKELETON {
            make_directory(skeleton.as_fd(), directory)?;
            own(open_directory(skeleton.as_fd(), directory)?.as_fd(), owner)?;
        }
        Ok(Self { path, base, skeleton, owner, mounted: Vec::new() })
    }

    /// Where [`enter`] attaches; named by path, since a descriptor would name the launcher's own mount.
    pub fn root_path(&self) -> PathBuf {
        self.path.join(ROOT)
    }

    /// Everything that `plan` mounts, detached, in its order; but not what only the child can make.
    pub fn prepare(&mut self, store: &Store, plan: &Plan) -> Result<Prepared, ContainerError> {
        let mut mounts = Vec::new();
        let mut tmp = None;
        for mount in &plan.mounts {
            let prepared = match &mount.content {
                Content::Root(tree) => Some(self.root(store, *tree)?),
                Content::Code(code) => Some(bind(store.code(*code)?.as_fd(), mount)?),
                Content::Layers(layers) => Some(layers_at(store, layers, mount)?),
                Content::Tmp(size) => Some(self.tmp(*size, mount)?),
                Content::Devices | Content::Processes => None,
            };
            if let (Content::Tmp(_), Some(mount)) = (&mount.content, &prepared) {
                let copy = mount.try_clone();
                tmp = Some(copy.map_err(|source| ContainerError::Mount { call: "dup", object: "/tmp".into(), source })?);
            }
            mounts.push((mount.clone(), prepared));
        }
        let missing = || ContainerError::Mount { call: "plan", object: "/tmp".into(), source: io::ErrorKind::NotFound.into() };
        Ok(Prepared { mounts, tmp: tmp.ok_or_else(missing)?, root_path: self.root_path() })
    }

    fn root(&mut self, store: &Store, tree: TreeId) -> Result<OwnedFd, ContainerError> {
        if let Some((_, template)) = self.mounted.iter().find(|(mounted, _)| *mounted == tree) {
            return clone_tree(template.as_fd(), OpenTreeFlags::AT_RECURSIVE, tree);
        }
        if self.mounted.len() == MAX_TEMPLATES {
            self.unmount_oldest()?;
        }
        let template = self.mount_template(store, tree)?;
        let root = clone_tree(template.as_fd(), OpenTreeFlags::AT_RECURSIVE, tree);
        self.mounted.push((tree, template));
        root
    }

    /// Containers keep their clones.
    fn unmount_oldest(&mut self) -> Result<(), ContainerError> {
        let (oldest, _) = self.mounted.remove(0);
        let path = self.path.join(oldest.to_string());
        umount2(&path, MntFlags::MNT_DETACH).map_err(|errno| failed_nix("umount2", &path, errno))?;
        std::fs::remove_dir(&path).map_err(|source| ContainerError::Mount { call: "rmdir", object: oldest.to_string(), source })
    }

    /// Always an overlay, with the skeleton at the bottom: so no tree has to bring its mount points.
    fn mount_template(&self, store: &Store, tree: TreeId) -> Result<OwnedFd, ContainerError> {
        let mut layers = store.trees(tree)?;
        layers.push(self.skeleton.try_clone().map_err(|source| ContainerError::Make { path: "skeleton".into(), source })?);
        let layers: Vec<_> = layers.iter().map(AsFd::as_fd).collect();
        let template = overlay(&layers, Mount::root(tree).attributes, tree)?;
        let name = tree.to_string();
        make_directory(self.base.as_fd(), &name)?;
        attach(template.as_fd(), self.base.as_fd(), Path::new(&name))?;
        let devices = self.devices()?;
        attach(devices.as_fd(), template.as_fd(), Path::new("dev"))?;
        Ok(template)
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

/// A container's mounts, detached, held by the launcher until the child has attached them.
#[derive(Debug)]
pub struct Prepared {
    mounts: Vec<(Mount, Option<OwnedFd>)>,
    /// For fstatfs; it keeps the pages of /tmp alive as long as it is open.
    pub tmp: OwnedFd,
    root_path: PathBuf,
}

/// Child: attaches everything below the root's clone, makes what shows its own namespaces, and makes it the only
/// file system there is.
pub fn attach_trees(prepared: &Prepared) -> Result<OwnedFd, ContainerError> {
    let root = prepared.mounts.iter().find_map(|(mount, fd)| fd.as_ref().filter(|_| mount.at == Mount::ROOT));
    let root = root.ok_or_else(|| failed("plan", "/")(rustix::io::Errno::NOENT))?;
    attach(root.as_fd(), CWD, &prepared.root_path)?;
    for (mount, fd) in &prepared.mounts {
        let below = Path::new(mount.at.trim_start_matches('/'));
        match (&mount.content, fd) {
            (Content::Processes, _) => attach(processes(mount)?.as_fd(), root.as_fd(), below)?,
            (Content::Root(_), _) | (_, None) => {}
            (_, Some(fd)) => attach(fd.as_fd(), root.as_fd(), below)?,
        }
    }
    root.try_clone().map_err(|source| ContainerError::Mount { call: "dup", object: "/".into(), source })
}

/// Child: the host's files go away. The old root comes to lie upon the new one, and is taken off (pivot_root(2), `.` `.`).
pub fn enter_root(root: OwnedFd) -> Result<(), ContainerError> {
    fchdir(&root).map_err(|errno| failed_nix("fchdir", Path::new("/"), errno))?;
    pivot_root(".", ".").map_err(|errno| failed_nix("pivot_root", Path::new("."), errno))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|errno| failed_nix("umount2", Path::new("."), errno))?;
    chdir("/").map_err(|errno| failed_nix("chdir", Path::new("/"), errno))
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
    let clone = clone_tree(tree, OpenTreeFlags::empty(), mount.at)?;
    mount_setattr(clone.as_fd(), mount.attributes).map_err(|source| attributes_of(mount.at, source))?;
    Ok(clone)
}

/// Overlayfs resolves its layers by path while it is being made, and a string option has at most 255 bytes: so they are
/// named by descriptor.
fn overlay(
    layers: &[BorrowedFd<'_>],
    attributes: MountAttributes,
    object: impl std::fmt::Display + Copy,
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

fn clone_tree(tree: BorrowedFd<'_>, how: OpenTreeFlags, object: impl std::fmt::Display) -> Result<OwnedFd, ContainerError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH | how;
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

fn attributes_of(object: impl std::fmt::Display, source: io::Error) -> ContainerError {
    ContainerError::Mount { call: "mount_setattr", object: object.to_string(), source }
}

fn failed_nix(call: &'static str, object: &Path, errno: nix::Error) -> ContainerError {
    ContainerError::Mount { call, object: object.display().to_string(), source: errno.into() }
}

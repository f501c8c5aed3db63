//! A server that was taken over: everything it could send, refused, by a launcher that goes on.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use kiln::code::Digest;
use kiln::runtime::TreeId;
use kiln::wire;
use kiln::wire::launcher::{Build, ContainerId, Order, OrderId, Report, StagingId};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::host::{Host, Launcher, privileged, sealed};

/// What one bad order is, and what the answer must speak of.
type Row = (&'static str, fn(&Host, &mut Launcher) -> OrderId, &'static str);

const ZIP: &[u8] = b"the bytes of a zip";

const ROWS: &[Row] = &[
    ("garbage", |_, launcher| unreadable(launcher, &[0xff; 40], 0), "decode"),
    (
        "an order with bytes behind it",
        |_, launcher| {
            let mut bytes = wire::encode(&Order::Build(launcher.build_order())).unwrap();
            bytes.push(0);
            unreadable(launcher, &bytes, 0)
        },
        "follow",
    ),
    ("a packet of 65 KiB", |_, launcher| unreadable(launcher, &[0; 65 << 10], 0), "64 KiB"),
    (
        "17 descriptors",
        |_, launcher| {
            let order = wire::encode(&Order::Build(launcher.build_order())).unwrap();
            unreadable(launcher, &order, 17)
        },
        "descriptors",
    ),
    (
        "more descriptors than there is room for",
        |_, launcher| {
            let order = wire::encode(&Order::Build(launcher.build_order())).unwrap();
            unreadable(launcher, &order, 100)
        },
        "descriptors",
    ),
    ("memory below the least", |_, launcher| with_memory(launcher, 127), "decode"),
    ("memory beyond all bounds", |_, launcher| with_memory(launcher, u32::MAX), "decode"),
    (
        "a tree that is not installed",
        |_, launcher| build(launcher, |build| build.tree = TreeId(Digest::of(b"elsewhere"))),
        "sets/",
    ),
    ("code that nobody adopted", |_, launcher| build(launcher, |build| build.code = Digest::of(b"foreign")), "code/"),
    ("a tree's digest for code's", |_, launcher| build(launcher, |build| build.code = build.tree.0), "code/"),
    ("a layer that nobody adopted", |_, launcher| build(launcher, |build| build.layers.push(Digest::of(b"foreign"))), "code/"),
    ("six layers", |_, launcher| build(launcher, |build| build.layers = (0..6).map(|i| Digest::of(&[i])).collect()), "layers"),
    ("one layer twice", |_, launcher| build(launcher, |build| build.layers = vec![build.code; 2]), "twice"),
    (
        "code that belongs to root",
        |host, launcher| {
            let code = Digest::of(b"root's");
            host.install_code(code, &[]);
            lchown(host.path(&format!("state/code/{code}")), Some(0), Some(0)).unwrap();
            build(launcher, |build| build.code = code)
        },
        "belongs to 0",
    ),
    (
        "code that is a link to the host's files",
        |host, launcher| {
            let code = Digest::of(b"a link");
            symlink("/etc", host.path(&format!("state/code/{code}"))).unwrap();
            build(launcher, |build| build.code = code)
        },
        "code/",
    ),
    (
        "a build with a descriptor",
        |_, launcher| {
            let order = launcher.build_order();
            launcher.send(&Order::Build(order.clone()), &[fs::File::open("/dev/null").unwrap().as_fd()]);
            order.order
        },
        "descriptors",
    ),
    (
        "the end of somebody else's container",
        |_, launcher| {
            let order = launcher.next_order();
            launcher.send(&Order::End { order, container: ContainerId { launcher: 1, number: 4_000_000 } }, &[]);
            order
        },
        "no container",
    ),
    (
        "the description of another launcher's container",
        |_, launcher| {
            let order = launcher.next_order();
            launcher.send(&Order::Describe { order, container: ContainerId { launcher: 2, number: 1 } }, &[]);
            order
        },
        "no container",
    ),
    (
        "an adoption without a zip",
        |host, launcher| {
            stage(host, 1, |_| ());
            let order = launcher.next_order();
            launcher.send(&Order::AdoptCode { order, staging: StagingId(1), code: Digest::of(ZIP) }, &[]);
            order
        },
        "descriptors",
    ),
    (
        "an adoption of what was never staged",
        |_, launcher| adopt(launcher, 99, Digest::of(ZIP), sealed(ZIP).as_fd()),
        "no staged tree",
    ),
    (
        "an adoption under another digest",
        |host, launcher| {
            stage(host, 2, |_| ());
            adopt(launcher, 2, Digest::of(b"wanted"), sealed(ZIP).as_fd())
        },
        "not",
    ),
    (
        "a zip that can still be changed",
        |host, launcher| {
            stage(host, 3, |_| ());
            let open = nix::sys::memfd::memfd_create(c"zip", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING).unwrap();
            nix::unistd::write(&open, ZIP).unwrap();
            adopt(launcher, 3, Digest::of(ZIP), open.as_fd())
        },
        "sealed",
    ),
    (
        "a zip that is a file on disk",
        |host, launcher| {
            stage(host, 4, |_| ());
            fs::write(host.path("zip"), ZIP).unwrap();
            adopt(launcher, 4, Digest::of(ZIP), fs::File::open(host.path("zip")).unwrap().as_fd())
        },
        "sealed",
    ),
    (
        "a link that leaves the tree",
        |host, launcher| staged(host, launcher, 5, |tree| link("../../../etc", &tree.join("x"))),
        "leaves",
    ),
    ("an absolute link", |host, launcher| staged(host, launcher, 6, |tree| link("/etc/passwd", &tree.join("x"))), "leaves"),
    (
        "a link that leaves by way of another",
        |host, launcher| {
            staged(host, launcher, 7, |tree| {
                fs::create_dir_all(tree.join("a/b")).unwrap();
                link("..", &tree.join("a/b/up"));
                link("a/b/up/../../..", &tree.join("x"));
            })
        },
        "leaves",
    ),
    (
        "a setuid program",
        |host, launcher| {
            staged(host, launcher, 8, |tree| {
                fs::write(tree.join("su"), "").unwrap();
                fs::set_permissions(tree.join("su"), fs::Permissions::from_mode(0o4755)).unwrap();
            })
        },
        "setuid",
    ),
    (
        "a named pipe",
        |host, launcher| {
            staged(host, launcher, 9, |tree| {
                nix::unistd::mkfifo(&tree.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
            })
        },
        "neither",
    ),
    (
        "a device",
        |host, launcher| {
            staged(host, launcher, 10, |tree| {
                use nix::sys::stat::{Mode, SFlag, makedev, mknod};
                mknod(&tree.join("mem"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 1)).unwrap();
            })
        },
        "neither",
    ),
    (
        "a second name of a file",
        |host, launcher| {
            staged(host, launcher, 11, |tree| {
                fs::write(tree.join("one"), "").unwrap();
                fs::hard_link(tree.join("one"), tree.join("two")).unwrap();
            })
        },
        "second name",
    ),
    (
        "a file that is root's",
        |host, launcher| {
            stage(host, 12, |_| ());
            let staging = host.path(&format!("state/staging/{}/tree", StagingId(12)));
            fs::write(staging.join("shadow"), "").unwrap();
            adopt(launcher, 12, Digest::of(ZIP), sealed(ZIP).as_fd())
        },
        "belongs to somebody else",
    ),
];

#[test]
fn bad_orders_are_refused_one_by_one_and_the_launcher_goes_on() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let mut refused = 0;
    for (name, send, why) in ROWS {
        let order = send(&host, &mut launcher);
        let text = match launcher.answer(order).0 {
            Report::Refused { why, .. } => why,
            Report::Failed { failure, .. } => failure.to_string(),
            other => panic!("{name}: {other:?}"),
        };
        assert!(text.contains(why), "{name}: {text}");
        assert!(
            fs::read_dir(host.path("state/code"))
                .unwrap()
                .flatten()
                .all(|entry| !entry.file_name().to_string_lossy().ends_with("zip"))
        );
        refused += 1;
    }
    println!("{refused} bad orders refused");
    assert!(refused >= 20);
    // Whatever was staged for an adoption is gone; only the one that was never tried is left.
    let staged: Vec<_> = fs::read_dir(host.path("state/staging")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(staged, [StagingId(1).to_string().as_str()]);

    let container = launcher.build();
    launcher.end(container.id);
    assert!(launcher.close().success());
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn a_container_that_is_being_ended_is_not_ended_twice() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    let orders = [launcher.next_order(), launcher.next_order()];
    for order in orders {
        launcher.send(&Order::End { order, container: container.id }, &[]);
    }
    assert!(matches!(launcher.answer(orders[0]).0, Report::Ended { .. }));
    assert!(matches!(launcher.answer(orders[1]).0, Report::Refused { .. }));
}

#[test]
fn there_are_never_more_containers_than_the_configuration_allows() {
    let Some(()) = privileged() else { return };
    let mut host = Host::new();
    host.settings = "concurrency = 1";
    let mut launcher = host.launcher(1);
    let first = launcher.build();
    launcher.build();
    let order = build(&mut launcher, |_| ());
    assert!(matches!(launcher.answer(order).0, Report::Refused { .. }));
    launcher.end(first.id);
    launcher.build();
}

/// Bytes that are no order, with so many descriptors; `packet::send` would refuse both.
fn unreadable(launcher: &Launcher, bytes: &[u8], descriptors: usize) -> OrderId {
    let null = fs::File::open("/dev/null").unwrap();
    let raw: Vec<RawFd> = vec![null.as_raw_fd(); descriptors];
    let rights = [ControlMessage::ScmRights(&raw)];
    let server: &OwnedFd = launcher.server.as_ref().unwrap();
    let rights = if descriptors == 0 { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(server.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None).unwrap();
    OrderId::UNREADABLE
}

/// As it would be encoded if `Memory` let it.
fn with_memory(launcher: &mut Launcher, mib: u32) -> OrderId {
    let Build { order, tree, code, layers, tmp, .. } = launcher.build_order();
    let bytes = postcard::to_stdvec(&(0u32, order, tree, code, layers, mib, tmp)).unwrap();
    unreadable(launcher, &bytes, 0)
}

fn build(launcher: &mut Launcher, spoil: impl FnOnce(&mut Build)) -> OrderId {
    let mut build = launcher.build_order();
    spoil(&mut build);
    let order = build.order;
    launcher.send(&Order::Build(build), &[]);
    order
}

fn adopt(launcher: &mut Launcher, staging: u128, code: Digest, zip: BorrowedFd<'_>) -> OrderId {
    let order = launcher.next_order();
    launcher.send(&Order::AdoptCode { order, staging: StagingId(staging), code }, &[zip]);
    order
}

/// What `unpack` would leave, were it taken over: the tree belongs to its uid.
pub fn stage(host: &Host, staging: u128, fill: impl FnOnce(&Path)) {
    let directory = host.path(&format!("state/staging/{}", StagingId(staging)));
    let tree = directory.join("tree");
    fs::create_dir_all(&tree).unwrap();
    fill(&tree);
    own_as(&directory, host.unpacker());
    // As the supervisor does, when unpack has ended.
    lchown(&directory, Some(0), Some(0)).unwrap();
}

fn staged(host: &Host, launcher: &mut Launcher, staging: u128, fill: impl FnOnce(&Path)) -> OrderId {
    stage(host, staging, fill);
    adopt(launcher, staging, Digest::of(ZIP), sealed(ZIP).as_fd())
}

fn link(target: &str, at: &Path) {
    symlink(target, at).unwrap();
}

fn own_as(path: &Path, user: u32) {
    let metadata = path.symlink_metadata().unwrap();
    lchown(path, Some(user), Some(user)).unwrap();
    if metadata.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| own_as(&entry.unwrap().path(), user));
    } else if metadata.is_file() {
        // A change of owner takes the setuid bit; the unpacker would have set it itself.
        fs::set_permissions(path, metadata.permissions()).unwrap();
    }
}

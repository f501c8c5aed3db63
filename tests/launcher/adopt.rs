//! Code on its way from staging into a container, and out again.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use kiln::code::Digest;
use kiln::wire::init::STARTED;
use kiln::wire::launcher::{Order, Report, StagingId};

use crate::host::{Host, OWNER, privileged, sealed};
use crate::orders::stage;

const ZIP: &[u8] = b"a zip that unpack has read";

#[test]
fn adopted_code_is_the_owners_readable_for_all_and_can_be_run() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    stage(&host, 1, |tree| {
        fs::create_dir_all(tree.join("lib")).unwrap();
        fs::write(tree.join("lib/secret"), "no longer secret\n").unwrap();
        symlink("lib/secret", tree.join("link")).unwrap();
        // A zip made on the author's machine: readable for nobody else, writable for all.
        fs::set_permissions(tree.join("lib/secret"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(tree.join("lib"), fs::Permissions::from_mode(0o777)).unwrap();
    });
    let (code, order) = (Digest::of(ZIP), launcher.next_order());
    launcher.send(&Order::AdoptCode { order, staging: StagingId(1), code }, &[sealed(ZIP).as_fd()]);
    assert_eq!(launcher.answer(order).0, Report::Adopted { order });

    let tree = host.path(&format!("state/code/{code}"));
    let seen = |name: &str| fs::symlink_metadata(tree.join(name)).map(|meta| (meta.uid(), meta.mode() & 0o7777)).unwrap();
    assert_eq!([seen("lib"), seen("lib/secret")], [(OWNER, 0o755), (OWNER, 0o644)]);
    assert_eq!(seen("link").0, OWNER);
    assert_eq!(fs::read(host.path(&format!("state/code/{code}.zip"))).unwrap(), ZIP);
    assert_eq!(fs::read_dir(host.path("state/staging")).unwrap().count(), 0);

    let mut build = launcher.build_order();
    build.code = code;
    let container = launcher.build_as(build);
    container.run("cat link; sleep 1000");
    assert_eq!((container.init_says().0, container.line()), (STARTED, "no longer secret".into()));

    // In use: not forgotten. Ended: forgotten.
    let order = launcher.next_order();
    launcher.send(&Order::ForgetCode { order, code }, &[]);
    assert!(matches!(launcher.answer(order).0, Report::Refused { .. }));
    launcher.end(container.id);
    // As if an earlier removal had been cut short, and the code had come again.
    fs::create_dir_all(host.path(&format!("state/staging/launcher-1-{code}/rest"))).unwrap();
    let order = launcher.next_order();
    launcher.send(&Order::ForgetCode { order, code }, &[]);
    assert_eq!(launcher.answer(order).0, Report::Forgotten { order });
    let left = fs::read_dir(host.path("state/code"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.path() != host.path(&format!("state/code/{}", host.code)));
    assert_eq!(left.count() + fs::read_dir(host.path("state/staging")).unwrap().count(), 0);
}

/// A server that was taken over may order it while unpack still writes.
#[test]
fn what_unpack_may_still_write_to_is_not_adopted() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    stage(&host, 1, |_| ());
    let staging = host.path(&format!("state/staging/{}", StagingId(1)));
    lchown(&staging, Some(host.unpacker()), Some(host.unpacker())).unwrap();
    for handed_over in [false, true] {
        if handed_over {
            lchown(&staging, Some(0), Some(0)).unwrap();
        }
        let (code, order) = (Digest::of(ZIP), launcher.next_order());
        launcher.send(&Order::AdoptCode { order, staging: StagingId(1), code }, &[sealed(ZIP).as_fd()]);
        let adopted = launcher.answer(order).0 == Report::Adopted { order };
        assert_eq!((adopted, staging.exists()), (handed_over, !handed_over));
    }
}

/// A server that was taken over may order it of all launchers at once.
#[test]
fn one_tree_is_adopted_by_one_launcher() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launchers = [host.launcher(1), host.launcher(2)];
    for round in 0..20 {
        stage(&host, round, |tree| (0..200).for_each(|file| fs::write(tree.join(file.to_string()), "").unwrap()));
        let zips = [1, 2].map(|zip| format!("zip {zip} of {round}"));
        let orders = launchers.each_mut().map(|launcher| launcher.next_order());
        for ((launcher, zip), order) in launchers.iter().zip(&zips).zip(orders) {
            let code = Digest::of(zip.as_bytes());
            launcher.send(&Order::AdoptCode { order, staging: StagingId(round), code }, &[sealed(zip.as_bytes()).as_fd()]);
        }
        let mut adopted = 0;
        for ((launcher, zip), order) in launchers.iter_mut().zip(&zips).zip(orders) {
            if launcher.answer(order).0 == (Report::Adopted { order }) {
                adopted += 1;
                let tree = host.path(&format!("state/code/{}", Digest::of(zip.as_bytes())));
                assert_eq!(fs::read_dir(tree).unwrap().count(), 200, "round {round}");
            }
        }
        assert_eq!(adopted, 1, "round {round}");
    }
}

#[test]
fn code_that_is_there_is_never_replaced() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let code = Digest::of(ZIP);
    for (staging, content) in [(1, "first"), (2, "second")] {
        stage(&host, staging, |tree| fs::write(tree.join("file"), content).unwrap());
        let order = launcher.next_order();
        launcher.send(&Order::AdoptCode { order, staging: StagingId(staging), code }, &[sealed(ZIP).as_fd()]);
        assert_eq!(launcher.answer(order).0, Report::Adopted { order });
    }
    assert_eq!(fs::read_to_string(host.path(&format!("state/code/{code}/file"))).unwrap(), "first");
    assert_eq!(fs::read_dir(host.path("state/staging")).unwrap().count(), 0);
}

/// A server that was taken over holds the zip too: what is hashed must be what is stored, and reading it must end.
#[test]
fn a_zip_whose_offset_is_moved_all_the_time_is_adopted_as_it_is() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    stage(&host, 1, |tree| fs::write(tree.join("file"), "").unwrap());
    let content: Vec<u8> = (0..4 << 20).map(|at: u32| (at >> 8) as u8).collect();
    let (zip, code, order) = (sealed(&content), Digest::of(&content), launcher.next_order());
    let done = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                (&zip).seek(SeekFrom::Start(7)).unwrap();
            }
        });
        launcher.send(&Order::AdoptCode { order, staging: StagingId(1), code }, &[zip.as_fd()]);
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| launcher.answer(order).0));
        done.store(true, Ordering::Relaxed);
        answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert_eq!(report, Report::Adopted { order });
    assert!(fs::read(host.path(&format!("state/code/{code}.zip"))).unwrap() == content);
}

#[test]
fn of_two_layers_the_later_one_is_seen() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let layers = [Digest::of(b"lower"), Digest::of(b"upper")];
    host.install_code(layers[0], &[("both", "lower\n"), ("only-lower", "lower\n")]);
    host.install_code(layers[1], &[("both", "upper\n")]);
    for (layers, both) in [(&layers[..1], "lower"), (&layers[..], "upper")] {
        let mut build = launcher.build_order();
        build.layers = layers.to_vec();
        let container = launcher.build_as(build);
        container.run("cat /opt/both /opt/only-lower; echo x > /opt/x");
        assert_eq!((container.init_says().0, container.line(), container.line()), (STARTED, both.into(), "lower".into()));
        assert!(container.line().contains("Read-only file system"));
    }
}

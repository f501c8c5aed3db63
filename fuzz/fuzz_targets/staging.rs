//! A staging directory, unpacked into and looked at from outside. Shared by both zip targets.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use kiln::inside::unpack::{self, UnpackError};
use kiln::wire::supervisor::ZipRefusal;

static OUTSIDE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    // As the process does before it reads the first byte (`confine`).
    rustix::process::umask(rustix::fs::Mode::empty());
    let directory = tempfile::tempdir().expect("make a directory");
    fs::write(directory.path().join("victim"), SECRET).expect("write the victim");
    directory
});
const SECRET: &str = "nobody may write here";

/// Unpacks, and looks whether what came out keeps the promises. Any refusal is one; a failure of our own is not.
pub fn extract(zip: &[u8]) -> Result<u64, ZipRefusal> {
    let outside = OUTSIDE.path();
    let (staging, tree) = (outside.join("staging"), outside.join("staging/tree"));
    fs::create_dir(&staging).expect("make staging");
    let memory = rustix::fs::memfd_create("zip", rustix::fs::MemfdFlags::CLOEXEC).expect("make a memfd");
    let mut file = File::from(memory);
    file.write_all(zip).expect("write the zip");

    let result = unpack::extract(file, File::open(&staging).expect("open staging").as_fd());
    let mut found = Found::default();
    if tree.exists() {
        found.look(&tree, &tree);
    }
    fs::remove_dir_all(&staging).expect("remove staging");
    assert_eq!(fs::read_to_string(outside.join("victim")).ok().as_deref(), Some(SECRET), "written outside of the tree");
    assert_eq!(fs::read_dir(outside).expect("list").count(), 1, "made something outside of the tree");
    match result {
        Ok(bytes) => {
            assert_eq!(found.escapes, Vec::<PathBuf>::new(), "links that leave the tree");
            assert_eq!(bytes, found.bytes, "the size that is told");
            Ok(bytes)
        }
        Err(UnpackError::Refused(why)) => Err(why),
        Err(UnpackError::NoRoom) => panic!("no room for what is smaller than the limit: let there be some in TMPDIR"),
        Err(UnpackError::Ours { what, source }) => panic!("{what}: {source}: a zip must not make us fail"),
    }
}

#[derive(Default)]
struct Found {
    bytes: u64,
    nodes: u64,
    escapes: Vec<PathBuf>,
}

impl Found {
    fn look(&mut self, directory: &Path, tree: &Path) {
        for entry in fs::read_dir(directory).expect("list the tree") {
            let path = entry.expect("list the tree").path();
            let met = path.symlink_metadata().expect("look at what was made");
            let kind = met.file_type();
            assert!(!(kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device()), "{path:?}");
            self.nodes += 1;
            assert!(self.nodes <= 50_000, "more files than are allowed");
            if kind.is_symlink() {
                self.bytes += met.len();
                // The kernel's own view of where it leads, also by way of other links.
                if path.canonicalize().is_ok_and(|to| !to.starts_with(tree)) {
                    self.escapes.push(path);
                }
                continue;
            }
            let mode = met.mode() & 0o7777;
            if kind.is_dir() {
                assert_eq!(mode, 0o755, "{path:?}");
                self.look(&path, tree);
            } else {
                assert_eq!(mode & !0o111, 0o644, "{path:?}");
                assert_eq!(met.nlink(), 1, "{path:?} has two names");
                self.bytes += met.len();
            }
        }
    }
}

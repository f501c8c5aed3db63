//! `kiln metrics`: what kilnd counts, as Prometheus reads it.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hyper::Method;

use super::args::Metrics;
use super::client::{Client, Socket};
use super::failure::Failure;
use super::output;

pub async fn execute(client: &Client, asked: Metrics) -> Result<(), Failure> {
    let text = client.request(Socket::Control, Method::GET, "/v1/metrics", &[], "").await?.body;
    let Some(path) = asked.output else { return output::print(&text) };
    put(&path, &text).map_err(|error| Failure::Failed(format!("{} cannot be written: {error}", path.display())))
}

/// Whole or not at all: as `.NAME.<pid>` first, which no collector of `*.prom` reads.
fn put(path: &Path, text: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let beside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(text)?;
        // The collector runs as a user of its own.
        file.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        // What could not be made need not be removed.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_what_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.prom");
        for text in ["first\n", "second, which is longer\n", "3\n"] {
            put(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        let taken = directory.path().join("directory.prom");
        fs::create_dir(&taken).unwrap();
        assert!(put(&taken, b"x").is_err());
        assert!(put(Path::new("/no/such/directory/kiln.prom"), b"x").is_err());
        let mut names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["directory.prom", "kiln.prom"]);
    }
}

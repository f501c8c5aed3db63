//! A function's zip: read as it is, or made from a directory or from one file.

use std::fs;
use std::io::{self, Cursor};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::args::Code;
use super::failure::Failure;

/// Lambda's limit on an uploaded zip.
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_ZIP: usize = 52_428_800;

/// Lambda's limit on what is in it.
const MAX_UNPACKED: u64 = 262_144_000;

/// From here on zipping takes long enough to be watched.
const WORTH_A_BAR: u64 = 8 << 20;

pub fn read(code: &Code) -> Result<Option<Vec<u8>>, Failure> {
    let bytes = match (&code.zip, &code.dir, &code.file) {
        (Some(path), ..) => fs::read(path).map_err(|error| unreadable(path, &error))?,
        (_, Some(path), _) => pack(path)?,
        (.., Some(path)) => pack_one(path)?,
        (None, None, None) => return Ok(None),
    };
    if bytes.len() >= MAX_ZIP {
        let mib = bytes.len() >> 20;
        return Err(Failure::Failed(format!(
            "the zip has {mib} MB: Lambda takes less than 50. Leave out what the function does not need"
        )));
    }
    Ok(Some(bytes))
}

/// One file, by its own name.
fn pack_one(path: &Path) -> Result<Vec<u8>, Failure> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        return Err(Failure::Failed(format!("{} is no file: give a directory with --dir", path.display())));
    }
    let mut packing = Packing::new(path.parent().unwrap_or(Path::new("")), metadata.len())?;
    packing.add(path, &metadata)?;
    packing.finish()
}

/// The directory's contents. The same files give the same bytes: sorted names, and no times.
fn pack(root: &Path) -> Result<Vec<u8>, Failure> {
    let mut waiting = vec![root.to_owned()];
    let (mut found, mut bytes, mut files) = (Vec::new(), 0, 0);
    while let Some(path) = waiting.pop() {
        let mut entries = fs::read_dir(&path)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>())
            .map_err(|error| unreadable(&path, &error))?;
        entries.sort();
        for entry in entries {
            let metadata = fs::symlink_metadata(&entry).map_err(|error| unreadable(&entry, &error))?;
            if metadata.is_dir() {
                waiting.push(entry.clone());
            } else if metadata.is_file() {
                bytes += metadata.len();
                files += 1;
            }
            found.push((entry, metadata));
        }
    }
    if files == 0 {
        return Err(Failure::Failed(format!("{} holds no file: there is nothing to run", root.display())));
    }
    let mut packing = Packing::new(root, bytes)?;
    for (path, metadata) in &found {
        packing.add(path, metadata)?;
    }
    packing.finish()
}

/// A zip that grows, and on a terminal a bar that does.
struct Packing<'a> {
    root: &'a Path,
    zip: ZipWriter<Cursor<Vec<u8>>>,
    bar: ProgressBar,
}

impl<'a> Packing<'a> {
    /// `bytes` will be added. What Lambda would not take is refused before it is zipped for half a minute.
    fn new(root: &'a Path, bytes: u64) -> Result<Self, Failure> {
        if bytes > MAX_UNPACKED {
            let mib = bytes >> 20;
            return Err(Failure::Failed(format!(
                "{} holds {mib} MB: Lambda takes at most 250 unpacked. Leave out what the function does not need",
                root.display()
            )));
        }
        // On stderr, and on a terminal only.
        let bar = if bytes < WORTH_A_BAR { ProgressBar::hidden() } else { ProgressBar::new(bytes) };
        if let Ok(style) = ProgressStyle::with_template("Zipping {wide_bar} {bytes}/{total_bytes}") {
            bar.set_style(style);
        }
        Ok(Self { root, zip: ZipWriter::new(Cursor::new(Vec::new())), bar })
    }

    fn add(&mut self, path: &Path, metadata: &fs::Metadata) -> Result<(), Failure> {
        let name = name_in_zip(self.root, path)?;
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated)
            .unix_permissions(metadata.permissions().mode() & 0o777);
        let failed = |error: zip::result::ZipError| Failure::Failed(format!("{} cannot be zipped: {error}", path.display()));
        if metadata.is_dir() {
            self.zip.add_directory(name, options).map_err(failed)
        } else if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(|error| unreadable(path, &error))?;
            self.zip.add_symlink(name, target.to_string_lossy(), options).map_err(failed)
        } else if metadata.is_file() {
            let mut file = fs::File::open(path).map_err(|error| unreadable(path, &error))?;
            self.zip.start_file(name, options).map_err(failed)?;
            let mut watched = self.bar.wrap_read(&mut file);
            io::copy(&mut watched, &mut self.zip).map(drop).map_err(|error| unreadable(path, &error))
        } else {
            Err(Failure::Failed(format!("{} is neither a file nor a directory nor a link", path.display())))
        }
    }

    fn finish(self) -> Result<Vec<u8>, Failure> {
        self.bar.finish_and_clear();
        let failed = |error| Failure::Failed(format!("{} cannot be zipped: {error}", self.root.display()));
        Ok(self.zip.finish().map_err(failed)?.into_inner())
    }
}

fn name_in_zip(root: &Path, entry: &Path) -> Result<String, Failure> {
    let name = entry.strip_prefix(root).ok().and_then(Path::to_str);
    name.map(str::to_owned).ok_or_else(|| Failure::Failed(format!("the name of {} is not UTF-8", entry.display())))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{} cannot be read: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_becomes_a_zip_with_its_modes_and_links() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir_all(path.join("lib/empty")).unwrap();
        fs::write(path.join("bootstrap"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(path.join("bootstrap"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path.join("lib/a.js"), "1").unwrap();
        symlink("lib/a.js", path.join("link")).unwrap();

        let bytes = pack(path).unwrap();
        assert_eq!(bytes, pack(path).unwrap(), "the same files give the same zip");
        let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
        let mut names: Vec<String> = zip.file_names().map(Into::into).collect();
        names.sort();
        assert_eq!(names, ["bootstrap", "lib/", "lib/a.js", "lib/empty/", "link"]);
        assert_eq!(zip.by_name("bootstrap").unwrap().unix_mode().unwrap() & 0o777, 0o755);
        let mut target = String::new();
        zip.by_name("link").unwrap().read_to_string(&mut target).unwrap();
        assert_eq!(target, "lib/a.js");
    }

    #[test]
    fn one_file_is_zipped_by_its_own_name_and_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bootstrap");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut zip = zip::ZipArchive::new(Cursor::new(pack_one(&path).unwrap())).unwrap();
        assert_eq!((zip.len(), zip.by_name("bootstrap").unwrap().unix_mode().unwrap() & 0o777), (1, 0o755));
        assert!(matches!(pack_one(directory.path()), Err(Failure::Failed(text)) if text.contains("--dir")));
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        // Sparse: nobody writes 251 MB for this.
        fs::File::create(directory.path().join("big")).unwrap().set_len(MAX_UNPACKED + 1).unwrap();
        assert!(matches!(pack(directory.path()), Err(Failure::Failed(text)) if text.contains("at most 250 unpacked")));
    }

    #[test]
    fn an_empty_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("empty")).unwrap();
        assert!(matches!(pack(directory.path()), Err(Failure::Failed(text)) if text.contains("nothing to run")));
    }
}

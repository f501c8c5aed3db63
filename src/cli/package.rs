//! A function's zip: read as it is, or made from a directory.

use std::fs;
use std::io::{self, Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::failure::Failure;

/// Lambda's limit on an uploaded zip.
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_ZIP: usize = 52_428_800;

pub fn read(zip: Option<&Path>, dir: Option<&Path>) -> Result<Option<Vec<u8>>, Failure> {
    let bytes = match (zip, dir) {
        (Some(path), _) => fs::read(path).map_err(|error| unreadable(path, &error))?,
        (None, Some(path)) => pack(path)?,
        (None, None) => return Ok(None),
    };
    if bytes.len() >= MAX_ZIP {
        let mib = bytes.len() >> 20;
        return Err(Failure::Failed(format!(
            "the zip has {mib} MB: Lambda takes less than 50. Leave out what the function does not need"
        )));
    }
    Ok(Some(bytes))
}

/// The directory's contents. The same files give the same bytes: sorted names, and no times.
fn pack(root: &Path) -> Result<Vec<u8>, Failure> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut waiting = vec![root.to_owned()];
    let mut files = 0;
    while let Some(path) = waiting.pop() {
        let mut entries = fs::read_dir(&path)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>())
            .map_err(|error| unreadable(&path, &error))?;
        entries.sort();
        for entry in entries {
            let metadata = fs::symlink_metadata(&entry).map_err(|error| unreadable(&entry, &error))?;
            let name = name_in_zip(root, &entry)?;
            let options = SimpleFileOptions::default()
                .compression_method(zip::CompressionMethod::Deflated)
                .unix_permissions(metadata.permissions().mode() & 0o777);
            let failed = |error: zip::result::ZipError| Failure::Failed(format!("{} cannot be zipped: {error}", entry.display()));
            if metadata.is_dir() {
                zip.add_directory(name, options).map_err(failed)?;
                waiting.push(entry);
            } else if metadata.is_symlink() {
                let target = fs::read_link(&entry).map_err(|error| unreadable(&entry, &error))?;
                zip.add_symlink(name, target.to_string_lossy(), options).map_err(failed)?;
            } else if metadata.is_file() {
                let bytes = fs::read(&entry).map_err(|error| unreadable(&entry, &error))?;
                zip.start_file(name, options).map_err(failed)?;
                zip.write_all(&bytes).map_err(|error| failed(error.into()))?;
                files += 1;
            } else {
                return Err(Failure::Failed(format!("{} is neither a file nor a directory nor a link", entry.display())));
            }
        }
    }
    if files == 0 {
        return Err(Failure::Failed(format!("{} holds no file: there is nothing to run", root.display())));
    }
    let zip = zip.finish().map_err(|error| Failure::Failed(format!("{} cannot be zipped: {error}", root.display())))?;
    Ok(zip.into_inner())
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
    fn an_empty_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("empty")).unwrap();
        assert!(matches!(pack(directory.path()), Err(Failure::Failed(text)) if text.contains("nothing to run")));
    }
}

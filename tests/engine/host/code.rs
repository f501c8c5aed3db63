//! Zips of test functions.

use std::io::{Cursor, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use base64::Engine as _;
use zip::write::SimpleFileOptions;

pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A zip of these files, with their modes.
pub fn zip(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, mode, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default().unix_permissions(*mode)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The probe (`tests/probe`) as a `provided` function.
pub fn probe_zip() -> Vec<u8> {
    static ZIP: OnceLock<Vec<u8>> = OnceLock::new();
    ZIP.get_or_init(|| zip(&[("bootstrap", 0o755, &probe_program())])).clone()
}

/// The probe without its debug information, which is nine tenths of it and would be sent through every test.
pub fn probe_program() -> Vec<u8> {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    let strip = || {
        let file = tempfile::NamedTempFile::new().expect("make a file for the stripped probe");
        match Command::new("strip").arg("-o").arg(file.path()).arg(probe()).status() {
            Ok(status) => assert!(status.success(), "strip: {status}"),
            // In a test machine, which was given it stripped.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return std::fs::read(probe()).expect("read the probe"),
            Err(error) => panic!("run strip (binutils): {error}"),
        }
        std::fs::read(file.path()).expect("read the stripped probe")
    };
    PROGRAM.get_or_init(strip).clone()
}

/// Examples are built beside the test programs: target/<profile>/examples.
pub fn probe() -> PathBuf {
    super::program("examples/probe")
}

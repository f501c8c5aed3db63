//! kiln.toml: any text is a configuration that holds, or is refused with words.
//!
//! Read by the supervisor, as root; written by people, so this is about clear refusals more than about attacks.

#![no_main]

use std::io::Write;
use std::sync::LazyLock;

use kiln::config::Config;
use libfuzzer_sys::fuzz_target;

static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("make a directory"));

fn read(text: &str) -> Result<Config, String> {
    let path = DIRECTORY.path().join("kiln.toml");
    std::fs::File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).expect("write kiln.toml");
    Config::read(&path).map_err(|error| error.to_string())
}

fuzz_target!(|text: &str| {
    match read(text) {
        Ok(config) => {
            // What holds can be written down, and means the same when it is read again.
            let written = toml::to_string(&config).expect("a configuration can be written as TOML");
            assert_eq!(read(&written).as_ref(), Ok(&config), "{written}");
            // What its numbers promise to those who calculate with them.
            assert!(config.first_id.checked_add(config.id_count).is_some_and(|end| end <= i32::MAX as u32));
            assert!((1..=64).contains(&config.launcher_count()));
            let _ = (config.capacity_wait(), config.idle(), config.drain());
        }
        Err(why) => assert!(why.contains("kiln.toml"), "a refusal names the file: {why}"),
    }
});

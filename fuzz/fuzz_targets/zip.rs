//! Zips as they come, read by `unpack`: any bytes are a tree inside of the staging directory, or a refusal.

#![no_main]

mod staging;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|zip: &[u8]| {
    let _ = staging::extract(zip);
});

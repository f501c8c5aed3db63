//! What the server and kiln-init say to each other.
//!
//! START comes by way of a socket that the function may have tried to write to; kiln-init's packets come from a process
//! of the function's own user. Neither side may believe what it has not counted.

#![no_main]

use std::ffi::CStr;

use kiln::inside::init_start::Start;
use kiln::server::environment::{Ended, Word, encode_start, word};
use kiln::sys::packet::Packet;
use kiln::wire::{MAX_MESSAGE, init};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// Bytes, read by kiln-init.
    Start(&'a [u8]),
    /// A start that the server wants, sent and read.
    Sent { candidates: Vec<Vec<String>>, vars: Vec<(String, String)> },
    /// Bytes of kiln-init, read by the server.
    Word(&'a [u8]),
}

fuzz_target!(|input: Input| {
    match input {
        Input::Start(message) => {
            let Some(start) = Start::parse(message) else { return };
            let (lines, vars) = read(&start);
            let candidates = usize::from(message[1]);
            assert_eq!(lines.len(), candidates);
            assert!(lines.iter().all(|line| !line.is_empty()), "a candidate has a program");
            // Every byte is read once, and none beyond the end.
            let words = lines.iter().flatten().chain(&vars);
            assert_eq!(4 + candidates + words.map(|word| word.len() + 1).sum::<usize>(), message.len());
            assert!(lines.iter().map(Vec::len).sum::<usize>() + vars.len() <= init::MAX_WORDS);
        }
        Input::Sent { candidates, vars } => {
            let Some(message) = encode_start(&candidates, &vars) else { return };
            assert!(message.len() <= MAX_MESSAGE);
            // With no candidate there is nothing to start: kiln-init refuses, the server says so to the caller.
            let Some(start) = Start::parse(&message) else { return assert!(candidates.is_empty()) };
            let (lines, read_vars) = read(&start);
            assert!(lines.iter().flatten().copied().eq(candidates.iter().flatten().map(String::as_bytes)), "other command lines");
            assert!(lines.iter().map(Vec::len).eq(candidates.iter().map(Vec::len)), "cut elsewhere");
            let sent: Vec<String> = vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert!(read_vars.iter().copied().eq(sent.iter().map(String::as_bytes)), "other variables");
        }
        Input::Word(bytes) => {
            let word = word(Packet { bytes: bytes.to_vec(), descriptors: Vec::new() });
            // Only what has the form and a known kind goes on; anything else ends the environment.
            let known = bytes.len() == init::MESSAGE && (init::RESTING..=init::BROKEN).contains(&bytes[0]);
            assert!(known || matches!(word, Word::Ended(Ended::Broken { errno: libc::EPROTO })), "{bytes:?}: {word:?}");
        }
    }
});

type Words<'a> = Vec<&'a [u8]>;

fn read<'a>(start: &Start<'a>) -> (Vec<Words<'a>>, Words<'a>) {
    let lines = start.candidates().map(|line| line.words().map(CStr::to_bytes).collect()).collect();
    (lines, start.vars().map(CStr::to_bytes).collect())
}

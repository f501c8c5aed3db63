//! The last output of each function, kept in memory for the people on duty.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::LogSink;
use crate::function::FunctionName;

/// Kept for each function.
const KEPT: usize = 64 << 10;

#[derive(Default)]
pub struct Recent {
    /// Taken for each piece of output, for one copy of at most [`KEPT`] bytes; no other lock is taken inside.
    functions: Mutex<HashMap<FunctionName, VecDeque<u8>>>,
}

impl Recent {
    /// What is kept of a function, from the beginning of a line.
    pub fn of(&self, function: &FunctionName) -> Vec<u8> {
        let bytes: Vec<u8> = self.lock().get(function).map(|kept| kept.iter().copied().collect()).unwrap_or_default();
        // A full ring most likely begins inside of a line.
        let whole = if bytes.len() < KEPT { None } else { bytes.iter().position(|byte| *byte == b'\n') };
        whole.map_or(bytes.clone(), |end| bytes[end + 1..].to_vec())
    }

    /// The function is gone.
    pub fn forget(&self, function: &FunctionName) {
        self.lock().remove(function);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, VecDeque<u8>>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogSink for Recent {
    fn append(&self, function: &FunctionName, lines: &[u8]) {
        let lines = &lines[lines.len().saturating_sub(KEPT)..];
        let mut functions = self.lock();
        let kept = functions.entry(function.clone()).or_default();
        let over = (kept.len() + lines.len()).saturating_sub(KEPT);
        kept.drain(..over.min(kept.len()));
        kept.extend(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_in_whole_lines() {
        let (recent, name) = (Recent::default(), FunctionName::parse("f").unwrap());
        for n in 0..20_000 {
            recent.append(&name, format!("line {n}\n").as_bytes());
        }
        let kept = String::from_utf8(recent.of(&name)).unwrap();
        assert!(kept.len() <= KEPT && kept.len() > KEPT - 20);
        assert!(kept.starts_with("line ") && kept.ends_with("\nline 19999\n"));
    }
}

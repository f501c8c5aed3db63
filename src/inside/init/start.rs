//! Reads the START message ([`crate::wire::init`]): what to run, and with which variables.
//!
//! It comes from the server, but by way of a socket that the function might have tried to write to, so nothing
//! in it is believed before it is counted. Pure: also compiled into the library, for its tests.

use core::ffi::CStr;

use crate::wire::init::{MAX_WORDS, START};

/// The message, checked: as many words as it announces, each ended by NUL, and nothing behind them.
pub struct Start<'a> {
    candidates: &'a [u8],
    words: &'a [u8],
}

impl<'a> Start<'a> {
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let [START, candidates, low, high, rest @ ..] = message else { return None };
        let candidates = rest.get(..usize::from(*candidates))?;
        let words = &rest[candidates.len()..];
        if candidates.is_empty() || candidates.contains(&0) {
            return None;
        }
        let arguments: usize = candidates.iter().map(|argc| usize::from(*argc)).sum();
        let announced = arguments + usize::from(u16::from_le_bytes([*low, *high]));
        let found = words.iter().filter(|byte| **byte == 0).count();
        let whole = announced == found && announced <= MAX_WORDS && words.last() == Some(&0);
        whole.then_some(Self { candidates, words })
    }

    /// The command lines in order, the program's path first in each.
    pub fn candidates(&self) -> impl Iterator<Item = Line<'a>> + use<'a> {
        let mut words = CStrings(self.words);
        self.candidates.iter().map(move |argc| {
            let line = Line { words: words.0, argc: usize::from(*argc) };
            words.nth(usize::from(*argc) - 1);
            line
        })
    }

    /// The variables, each `NAME=value`.
    pub fn vars(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        let arguments = self.candidates.iter().map(|argc| usize::from(*argc)).sum();
        CStrings(self.words).skip(arguments)
    }
}

/// One candidate's command line; never empty.
pub struct Line<'a> {
    words: &'a [u8],
    argc: usize,
}

impl<'a> Line<'a> {
    pub fn words(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        CStrings(self.words).take(self.argc)
    }
}

/// NUL-terminated strings, one behind the other.
struct CStrings<'a>(&'a [u8]);

impl<'a> Iterator for CStrings<'a> {
    type Item = &'a CStr;

    fn next(&mut self) -> Option<&'a CStr> {
        let word = CStr::from_bytes_until_nul(self.0).ok()?;
        self.0 = &self.0[word.count_bytes() + 1..];
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Laid out by hand, as [`crate::wire::init`] says; empty words included.
        #[test]
        fn what_is_laid_out_so_is_read_so(
            lines in vec(vec(vec(1..=255u8, 0..9), 1..6), 1..5),
            vars in vec(vec(1..=255u8, 0..20), 0..30),
        ) {
            let mut message = vec![START, lines.len() as u8, vars.len() as u8, 0];
            message.extend(lines.iter().map(|line| line.len() as u8));
            for word in lines.iter().flatten().chain(&vars) {
                message.extend(word);
                message.push(0);
            }
            let start = Start::parse(&message).unwrap();
            let bytes = |word: &CStr| word.to_bytes().to_vec();
            let read: Vec<Vec<_>> = start.candidates().map(|line| line.words().map(bytes).collect()).collect();
            prop_assert_eq!(read, lines);
            prop_assert_eq!(start.vars().map(bytes).collect::<Vec<_>>(), vars);
        }

        /// Whatever comes in, what is read of it is in it: no more words than there are, each candidate with its program.
        #[test]
        fn no_bytes_are_read_twice_or_beyond_the_end(tail in vec(0..6u8, 0..60), candidates in 0..4u8, vars in 0..6u8) {
            let message = [&[START, candidates, vars, 0][..], &tail].concat();
            if let Some(start) = Start::parse(&message) {
                let words = start.candidates().flat_map(|line| line.words().collect::<Vec<_>>()).chain(start.vars());
                let read: usize = words.map(|word| word.to_bytes_with_nul().len()).sum();
                prop_assert_eq!(4 + usize::from(candidates) + read, message.len());
                prop_assert!(start.candidates().all(|line| line.words().next().is_some()));
            }
        }
    }

    const GOOD: &[u8] = b"\x01\x02\x01\x00\x02\x01/a\0x\0/b\0K=v\0";

    #[test]
    fn a_start_message_gives_its_lines_and_vars() {
        let start = Start::parse(GOOD).unwrap();
        let lines: Vec<Vec<_>> = start.candidates().map(|line| line.words().collect()).collect();
        assert_eq!(lines, [vec![c"/a", c"x"], vec![c"/b"]]);
        assert_eq!(start.vars().collect::<Vec<_>>(), [c"K=v"]);
    }

    #[test]
    fn a_message_cut_or_grown_anywhere_is_refused() {
        for end in 0..GOOD.len() {
            assert!(Start::parse(&GOOD[..end]).is_none(), "cut at {end}");
        }
        assert!(Start::parse(&[GOOD, b"more\0"].concat()).is_none());
        assert!(Start::parse(&[GOOD, b"x"].concat()).is_none());
    }

    #[test]
    fn a_candidate_without_a_program_is_refused() {
        assert!(Start::parse(b"\x01\x01\x00\x00\x00").is_none());
        assert!(Start::parse(b"\x01\x00\x00\x00").is_none());
    }

    #[test]
    fn more_words_than_fit_are_refused() {
        let message = [&[START, 1, 0, 4, 1][..], &b"x\0".repeat(1025)].concat();
        assert!(Start::parse(&message).is_none());
    }
}

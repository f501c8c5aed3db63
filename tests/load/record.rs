//! What was seen: every request and its answer, every change, every loss. Judges nothing; [`crate::checks`] does.
//!
//! All times are since one moment, of one clock that never jumps. What has no end yet is not in here: a call is written down when
//! its fate is known, a change when it is answered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::kinds::{KINDS, Kind};

#[derive(Clone, Debug)]
pub struct Record {
    pub origin: Instant,
    /// The same moment, in milliseconds since 1970.
    pub origin_ms: u64,
    /// By index, which everything else uses.
    pub functions: Vec<Function>,
    pub calls: Vec<Call>,
    pub changes: Vec<Change>,
    pub kills: Vec<Kill>,
    pub losses: Vec<Loss>,
    /// What looks at the pool meanwhile found wrong, and how often somebody looked.
    pub looks: u64,
    pub contradictions: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    /// Of [`KINDS`].
    pub kind: usize,
}

impl Function {
    pub fn kind(&self) -> &'static Kind {
        &KINDS[self.kind]
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    pub function: usize,
    pub nonce: u64,
    /// Bytes sent along, to come back.
    pub pad: usize,
    pub sent: Duration,
    pub ended: Duration,
    pub fate: Fate,
    /// Once more, when all had become calm.
    pub roll_call: bool,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // most are answers
pub enum Fate {
    Answered(Reply),
    /// The caller went away before an answer.
    HungUp,
    /// The connection ended before a whole answer was there.
    Cut(String),
    /// What came is no answer, or more than one.
    Garbled(String),
    /// Nothing came for longer than anything may take.
    Silent,
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub request: String,
    /// `x-amzn-errortype`, of what is no invocation's end.
    pub refusal: Option<String>,
    /// `errorType` of a function that failed.
    pub error: Option<String>,
    /// And its `errorMessage`.
    pub message: String,
    /// `Reason` of a refusal.
    pub reason: Option<String>,
    /// What the function says of itself.
    pub told: Option<Told>,
}

/// The probe's `marked`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Told {
    pub nonce: u64,
    pub function: String,
    pub container: String,
    /// Of the process.
    pub start: String,
    /// Invocations of that process so far, this one included.
    pub count: u64,
    /// Marks of others in /tmp.
    pub found: Vec<String>,
    pub began_us: u64,
    pub done_us: u64,
    pub code: Option<u64>,
    pub round: Option<u64>,
    /// How many bytes came back of those that were sent along: the bytes themselves of 30 minutes are hundreds of megabytes.
    #[serde(default, deserialize_with = "length")]
    pub pad: usize,
}

/// One that is not of what is sent is as long as none can be.
fn length<'de, D: serde::Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let pad = Option::<String>::deserialize(from)?.unwrap_or_default();
    Ok(if pad.bytes().all(|byte| byte == b'x') { pad.len() } else { usize::MAX })
}

/// What a function is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    /// Which package it has.
    pub code: u64,
    /// Which configuration.
    pub round: u64,
}

/// A function became something else, or was deleted. Changes of one function come one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub function: usize,
    pub begun: Duration,
    /// Answered, or found to be so.
    pub ended: Duration,
    pub to: Option<State>,
}

/// A container was killed by hand.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    pub function: usize,
    pub begun: Duration,
    pub ended: Duration,
}

/// One of Kiln's own processes was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    pub what: Victim,
    pub begun: Duration,
    /// Its successor works.
    pub ended: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Launcher,
    Server,
    Supervisor,
}

impl Victim {
    /// Callers' connections end with it.
    pub fn cuts(self) -> bool {
        self != Self::Launcher
    }
}

impl Record {
    pub fn new(functions: Vec<Function>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            origin: Instant::now(),
            origin_ms: since.as_millis() as u64,
            functions,
            calls: Vec::new(),
            changes: Vec::new(),
            kills: Vec::new(),
            losses: Vec::new(),
            looks: 0,
            contradictions: Vec::new(),
        }
    }

    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// By function, in order.
    pub fn changes_by_function(&self) -> BTreeMap<usize, Vec<Change>> {
        let mut by: BTreeMap<usize, Vec<Change>> = BTreeMap::new();
        for change in &self.changes {
            by.entry(change.function).or_default().push(*change);
        }
        by
    }

    /// Requests that a loss like this may have touched.
    pub fn overlaps(&self, call: &Call, of: impl Fn(Victim) -> bool) -> bool {
        self.losses.iter().any(|loss| of(loss.what) && loss.begun <= call.ended && call.sent <= loss.ended)
    }
}

impl Reply {
    /// The function ran, or tried to: it is in the books.
    pub fn is_invocation(&self) -> bool {
        self.status == 200
    }

    pub fn is_success(&self) -> bool {
        self.status == 200 && self.error.is_none()
    }
}

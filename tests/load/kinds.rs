//! The kinds of functions that there are under load, and how each may end.
//!
//! All are the probe (`tests/probe`), told by events and variables what to be. How often each is called is in proportion to what
//! it costs: an init that hangs holds its memory for twelve seconds.

use rand::Rng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

pub struct Kind {
    pub name: &'static str,
    /// Of 200 functions.
    pub share: usize,
    /// How often a function is called, beside others.
    pub weight: u32,
    /// `Timeout`, `MemorySize` and the like.
    pub settings: fn() -> Value,
    /// PROBE_INIT.
    pub init: &'static str,
    /// What an invocation does before it answers, and what else is in its event.
    pub event: fn(&mut SmallRng) -> Value,
    /// It can succeed.
    pub succeeds: bool,
    /// Errors that it may end with.
    pub errors: &'static [&'static str],
    pub reserve: Option<usize>,
    pub once: bool,
}

impl Kind {
    pub fn init_fails(&self) -> bool {
        !self.init.starts_with("ok") && !self.init.starts_with("slow")
    }
}

/// Bytes that a large one's event may have.
pub const LARGEST: usize = 300_000;

/// No limit of time: whoever has it must not be ended by a slow host.
fn patient() -> Value {
    json!({ "Timeout": 300 })
}

fn hasty() -> Value {
    json!({ "Timeout": 1 })
}

fn nothing(_: &mut SmallRng) -> Value {
    json!({})
}

fn some_ms(rng: &mut SmallRng, from: u64, to: u64) -> Value {
    json!({ "steps": [{ "sleep": rng.random_range(from..to) }] })
}

const PLAIN: Kind = Kind {
    name: "",
    share: 0,
    weight: 4,
    settings: patient,
    init: "ok",
    event: nothing,
    succeeds: true,
    errors: &[],
    reserve: None,
    once: false,
};

pub const KINDS: &[Kind] = &[
    Kind { name: "fast", share: 50, weight: 10, ..PLAIN },
    Kind { name: "slow", share: 16, weight: 3, event: |rng| some_ms(rng, 200, 1500), ..PLAIN },
    Kind { name: "large", share: 8, event: |rng| json!({ "pad": "x".repeat(rng.random_range(20_000..LARGEST)) }), ..PLAIN },
    Kind { name: "slow-init", share: 8, init: "slow:600", ..PLAIN },
    Kind { name: "failing", share: 14, event: |_| json!({ "fail": true }), succeeds: false, errors: &["Load.Error"], ..PLAIN },
    Kind {
        name: "crashing",
        share: 12,
        event: |rng| json!({ "steps": [if rng.random() { json!({ "exit": 7 }) } else { json!({ "signal": 11 }) }] }),
        succeeds: false,
        errors: &["Runtime.ExitError"],
        ..PLAIN
    },
    Kind { name: "init-exits", share: 6, init: "exit:3", succeeds: false, errors: &["Runtime.ExitError"], ..PLAIN },
    Kind { name: "init-fails", share: 6, init: "error", succeeds: false, errors: &["Probe.Init"], ..PLAIN },
    Kind {
        name: "init-hangs",
        share: 4,
        weight: 1,
        settings: hasty,
        init: "hang",
        succeeds: false,
        errors: &["Sandbox.Timedout"],
        ..PLAIN
    },
    Kind {
        name: "timing-out",
        share: 10,
        weight: 2,
        settings: hasty,
        event: |_| json!({ "steps": [{ "sleep": 600_000 }] }),
        succeeds: false,
        errors: &["Sandbox.Timedout"],
        ..PLAIN
    },
    // Out of memory at the fifth invocation or so of each container; to the caller that looks like any other kill.
    Kind {
        name: "leaking",
        share: 10,
        event: |_| json!({ "steps": [{ "hold_mib": 24 }, { "sleep": 30 }] }),
        errors: &["Runtime.ExitError"],
        ..PLAIN
    },
    // Up to the last block, which the function is told; the host's budget may be used up before.
    Kind {
        name: "tmp-filling",
        share: 6,
        weight: 2,
        event: |_| json!({ "steps": [{ "fill_tmp_mib": 48 }] }),
        errors: &["Sandbox.Failure"],
        ..PLAIN
    },
    Kind { name: "fd-leaking", share: 8, event: |_| json!({ "steps": [{ "leak_fds": 150 }] }), ..PLAIN },
    Kind { name: "chatty", share: 8, weight: 2, event: |_| json!({ "steps": [{ "print_ms": 60 }] }), ..PLAIN },
    Kind { name: "forking", share: 10, event: |_| json!({ "steps": [{ "do": "daemon" }] }), ..PLAIN },
    Kind { name: "once", share: 14, once: true, ..PLAIN },
    Kind { name: "reserved", share: 10, event: |rng| some_ms(rng, 5, 200), reserve: Some(2), ..PLAIN },
];

/// So many functions, of each kind in proportion and at least one.
pub fn mixed(count: usize) -> Vec<usize> {
    let all: usize = KINDS.iter().map(|kind| kind.share).sum();
    let mut kinds: Vec<usize> = (0..KINDS.len()).collect();
    // The rest by largest share first, so that the plain ones are most.
    let mut left = count.saturating_sub(kinds.len());
    for (index, kind) in KINDS.iter().enumerate().rev() {
        let more = (count * kind.share / all).saturating_sub(1).min(left);
        kinds.extend(std::iter::repeat_n(index, more));
        left -= more;
    }
    kinds.extend(std::iter::repeat_n(0, left));
    kinds.sort_unstable();
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_two_hundred_and_every_kind_is_there_among_few() {
        assert_eq!(KINDS.iter().map(|kind| kind.share).sum::<usize>(), 200);
        for count in [KINDS.len(), 40, 200, 333] {
            let mixed = mixed(count);
            assert_eq!(mixed.len(), count);
            assert!((0..KINDS.len()).all(|kind| mixed.contains(&kind)), "{count}");
        }
        assert!(KINDS.iter().enumerate().all(|(at, kind)| mixed(200).iter().filter(|of| **of == at).count() == kind.share));
    }
}

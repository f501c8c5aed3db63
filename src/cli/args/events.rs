//! The words of `kiln events` and `kiln history`: what happens, and what has ended.

use clap::Args;

pub(super) const EVENTS_HELP: &str = help!(
    "  kiln events                                  the last 100
  kiln events -f                               and what happens from now on, over restarts of kilnd too
  kiln events --function hello --kind starting why hello was cold
  kiln events --kind throttled --since 1h      who was refused, and for what
  kiln events --container 3-17                 the life of one container
  kiln events -f --kind retired --json | jq -r .why

starting says why no warm environment could serve the request, throttled what was short and how much of it there is, retired
why an environment ended; kiln history has the ends of before, too. Some thousand events are kept in memory, those of
invocations (invoked, taken_back, thawed, frozen, ended, throttled) apart from the others; after a restart of kilnd there are none.
-f misses nothing when kilnd is restarted; where it was killed, or could not wait for a slow reader, what it did in its last
moments may be missing, which is said.",
    json: "  One object a line: seq, time_ms, function, version, container, request (null where there is none), event, and of
  starting: why (first, busy, once, again; retired with last_end, the reason of the last one's end)
  ready: build_us, init_us  init_failed: cause, text, by (who killed it), again (it is tried
  once more), init_us, peak_mib
  invoked: cold, waited_us (for capacity)
  ended: duration_us, billed_ms, memory_mib, max_memory_mib, init_us, cold, cause (null: success)
  throttled: reason (memory, starts, concurrency, reserved, queue, payloads), waited_us, in_use, limit
  entered, left: by (who looked into the container)
  retired: why (as kiln pool --help has it), cause, text, by, needed_by, age_s, invocations, peak_mib
  swept: when (start: left by a kilnd that was killed; death: of a process of kilnd's; running: a leak), cgroups, staging, code
  launcher_started, launcher_lost: launcher  lost: lost (so many were missed, as they came too fast; no other names)
  taken_back, thawed, frozen and draining have no more"
);

pub(super) const HISTORY_HELP: &str = help!(
    "  kiln history                                 the last 50 environments that ended
  kiln history --function hello --since 2h
  kiln history --container 3-17                why it ended
  kiln history --living                        those that live, too
  kiln history --json | jq -r '.environments[] | select(.why == \"failed\") | [.function, .cause] | @tsv'

COLD is why it was started: the reason of the last one's end, or first (of this kilnd), busy (all others were), once (the
function reuses none), again (the first init failed). START is the container's build and the init. Kept as long as the books
(books_days), of one function the last 1000, in all 100000; what lived when kilnd was killed ended with_kilnd.",
    json: "  environments: a list of { function, version, container (null: none could be built), request (for which it was
  started), cold, started_ms, build_us, init_us, ended_ms (null: it lives), why (as kiln pool --help has it, or with_kilnd),
  cause and text (how its last invocation, its init or its processes ended), by (who ended it by hand), needed_by (the
  function that its memory was needed for), invocations, peak_mib (null: not known) }"
);

/// As kilnd's door names them.
pub const KINDS: [&str; 16] = [
    "starting",
    "ready",
    "init_failed",
    "invoked",
    "taken_back",
    "frozen",
    "thawed",
    "ended",
    "throttled",
    "entered",
    "left",
    "retired",
    "launcher_started",
    "launcher_lost",
    "swept",
    "draining",
];

#[derive(Debug, Args)]
pub struct Events {
    /// Go on with what happens from now on
    #[arg(short, long)]
    pub follow: bool,
    /// The last so many [default: 100; all that are kept with --since]
    #[arg(short = 'n', long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub lines: Option<u32>,
    /// Of this function; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub function: Vec<String>,
    /// Of one container
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// Of one invocation, by its request id
    #[arg(long, value_name = "ID")]
    pub request: Option<String>,
    /// Of this kind; may be given more than once
    #[arg(long, value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(KINDS))]
    pub kind: Vec<String>,
    /// From so long ago (90s, 10m, 2h, 3d), or from a time of RFC 3339
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
}

#[derive(Debug, Args)]
pub struct History {
    /// Of this function only
    #[arg(long, value_name = "NAME")]
    pub function: Option<String>,
    /// Of one container, be it alive or not
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// That ended since so long ago (90s, 10m, 2h, 3d), or since a time of RFC 3339
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// The latest so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// Those that live, too
    #[arg(long)]
    pub living: bool,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kinds_are_those_that_kilnd_knows() {
        assert_eq!(super::KINDS, crate::server::events::What::NAMES);
    }
}

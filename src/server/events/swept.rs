//! What the supervisor has removed that nobody had any more, as events: it tells totals, and what is new of them is told here.

use super::what::{What, When};
use crate::wire::supervisor::{Swept, Upkeep};

/// What was removed since the last word. Of what was removed before the first one, only what a kilnd before this one had left; the
/// rest was done while there was no server to tell, and is in the totals.
pub fn swept(last: Option<Upkeep>, now: &Upkeep) -> impl Iterator<Item = What> {
    let last = match last {
        Some(last) => last,
        None if now.servers_restarted == 0 => Upkeep { at_start: Swept::default(), ..*now },
        None => *now,
    };
    let each = [
        (When::Start, last.at_start, now.at_start),
        (When::Death, last.after_deaths, now.after_deaths),
        (When::Running, last.while_running, now.while_running),
    ];
    each.into_iter().filter(|(_, last, now)| last != now).map(|(when, last, now)| What::Swept {
        when,
        cgroups: now.cgroups.saturating_sub(last.cgroups),
        staging: now.staging.saturating_sub(last.staging),
        code: now.code.saturating_sub(last.code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_swept_is_told_once_and_a_new_server_does_not_tell_its_predecessors() {
        let some = |cgroups, staging, code| Swept { cgroups, staging, code };
        let told = |last: Option<Upkeep>, now: Upkeep| swept(last, &now).collect::<Vec<_>>();
        let start = Upkeep { at_start: some(2, 1, 0), ..Upkeep::default() };
        assert_eq!(told(None, Upkeep::default()), []);
        assert_eq!(told(None, start), [What::Swept { when: When::Start, cgroups: 2, staging: 1, code: 0 }]);
        assert_eq!(told(Some(start), Upkeep { reloads: 1, ..start }), []);
        let leak = Upkeep { after_deaths: some(5, 0, 0), while_running: some(1, 0, 0), ..start };
        let more = Upkeep { while_running: some(3, 0, 0), launchers_restarted: 1, ..leak };
        assert_eq!(told(Some(leak), more), [What::Swept { when: When::Running, cgroups: 2, staging: 0, code: 0 }]);
        assert_eq!(told(None, Upkeep { servers_restarted: 1, ..leak }), []);
    }
}

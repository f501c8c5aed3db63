//! `kiln pool --watch`: the same again and again. On a terminal in place, over what it drew last; into a pipe or a file table
//! after table, and with `--json` a snapshot per line.
//!
//! A kilnd that goes away is waited for. Ctrl-C ends it, and so does the end of whoever reads.

use std::time::Duration;

use hyper::Method;

use super::{Pool, Sort, parts, read, shown, sort};
use crate::cli::client::{Client, Reply, Socket};
use crate::cli::failure::Failure;
use crate::cli::output;

pub async fn execute(client: &Client, by: Sort, every: Duration, as_json: bool) -> Result<(), Failure> {
    // Where there is none in the beginning, nobody promised one.
    let mut look = Ok(ask(client).await?);
    let mut place = (!as_json).then(Place::default);
    let mut was_there = true;
    loop {
        match look {
            Ok(reply) => {
                let bytes = match (&mut place, output::terminal_size()) {
                    (None, _) => format!("{}\n", reply.json()?),
                    (Some(place), Some(size)) => {
                        let (table, below) = parts(&sorted(&reply, by)?);
                        place.over(&table, &below, size)
                    }
                    // A line between two tables, where nothing else parts them.
                    (Some(_), None) => format!("{}\n\n", shown(&sorted(&reply, by)?)),
                };
                if !output::write(bytes.as_bytes())? {
                    return Ok(());
                }
                was_there = true;
            }
            // What was not understood now will not be, either.
            Err(failure @ Failure::Unreachable(_)) => {
                if std::mem::take(&mut was_there) {
                    output::say(&format!("kilnd is not reachable, trying again ({failure})"));
                    place = place.map(|_| Place::default());
                }
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(every).await;
        look = ask(client).await;
    }
}

async fn ask(client: &Client) -> Result<Reply, Failure> {
    client.request(Socket::Control, Method::GET, "/v1/pool", &[], "").await
}

fn sorted(reply: &Reply, by: Sort) -> Result<Pool, Failure> {
    let mut pool = read(reply)?;
    sort(&mut pool.environments, by);
    Ok(pool)
}

/// Where the last table is on the terminal.
#[derive(Default)]
struct Place {
    /// Lines that it took, and the terminal's columns and rows then.
    last: Option<(usize, (usize, usize))>,
}

impl Place {
    /// Draws over the last one: nothing flickers, and what stood above it stays. Lines of the table are cut, so that none becomes
    /// two. `below` is what sums it up, and wrapped: where there is no room for all, the table gives way, down to half of the rows.
    fn over(&mut self, table: &str, below: &str, (columns, rows): (usize, usize)) -> String {
        let room = rows.saturating_sub(1).max(1);
        let cut = |line: &str| line.chars().take(columns).collect::<String>();
        let mut below: Vec<String> =
            below.lines().flat_map(|line| output::wrapped(line, columns)).map(|line| cut(&line)).collect();
        let mut lines: Vec<String> = table.lines().map(cut).collect();
        // The first of them is of all functions.
        below.truncate((room - (room / 2).min(lines.len())).max(1));
        if lines.len() + below.len() > room {
            let kept = room.saturating_sub(below.len() + 1);
            let hidden = lines.len() - kept;
            lines.truncate(kept);
            if kept + below.len() < room {
                lines.push(cut(&format!("... {hidden} more: `kiln top` scrolls")));
            }
        }
        lines.extend(below);
        let begin = match self.last {
            // Terminals wrap long lines anew when their width changes: nobody knows where the old ones are now.
            Some((_, size)) if size != (columns, rows) => "\x1b[H\x1b[2J".to_owned(),
            Some((above, _)) => format!("\r\x1b[{above}A"),
            None => String::new(),
        };
        self.last = Some((lines.len(), (columns, rows)));
        let drawn: String = lines.iter().map(|line| format!("{line}\x1b[K\n")).collect();
        format!("{begin}{drawn}\x1b[J")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_table_is_drawn_over_the_last_and_what_it_left_is_cleared() {
        let mut place = Place::default();
        assert_eq!(place.over("a\nb", "c", (80, 24)), "a\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J");
        assert_eq!(place.over("", "d", (80, 24)), "\r\x1b[3Ad\x1b[K\n\x1b[J");
        assert_eq!(place.over("", "e", (80, 24)), "\r\x1b[1Ae\x1b[K\n\x1b[J");
        assert_eq!(place.over("", "f", (40, 24)), "\x1b[H\x1b[2Jf\x1b[K\n\x1b[J", "another width wraps what is there");
    }

    fn lines(drawn: &str) -> Vec<&str> {
        drawn.trim_end_matches("\x1b[J").lines().map(|line| line.trim_end_matches("\x1b[K")).collect()
    }

    #[test]
    fn a_table_never_takes_more_than_the_terminal_has() {
        let table: String = (0..50).map(|n| format!("line {n} is long\n")).collect();
        let below: String = (0..20).map(|n| format!("and below it {n} more words\n")).collect();
        for (columns, rows) in [(80, 24), (10, 5), (7, 3), (3, 2), (1, 1)] {
            for (table, below) in [(table.as_str(), below.as_str()), (&table, "x"), ("", &below), ("x", &below)] {
                let drawn = Place::default().over(table, below, (columns, rows));
                let lines = lines(&drawn);
                assert!(lines.len() <= rows.saturating_sub(1).max(1), "{lines:?}");
                assert!(lines.iter().all(|line| line.len() <= columns), "{lines:?}");
            }
        }
        let drawn = Place::default().over(&table, "all in all", (80, 24));
        assert_eq!(lines(&drawn)[20..], ["line 20 is long", "... 29 more: `kiln top` scrolls", "all in all"]);
    }

    #[test]
    fn what_sums_it_up_is_wrapped_and_comes_before_the_rows_that_have_no_room() {
        let table: String = (0..50).map(|n| format!("line {n}\n")).collect();
        let reserves: String = (0..50).map(|n| format!("\nfunction-{n}: 0 of its 2 reserved")).collect();
        let drawn = Place::default().over(&table, &format!("1 busy, 2 initialising, 3 idle{reserves}"), (20, 12));
        let expected = [
            "line 0",
            "line 1",
            "line 2",
            "line 3",
            "... 46 more: `kiln t",
            "1 busy, 2",
            "initialising, 3 idle",
            "function-0: 0 of its",
            "2 reserved",
            "function-1: 0 of its",
            "2 reserved",
        ];
        assert_eq!(lines(&drawn), expected);
    }
}

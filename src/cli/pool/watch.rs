//! `kiln pool --watch`: the same again and again. On a terminal in place, over what it drew last; into a pipe or a file table
//! after table, and with `--json` a snapshot per line.
//!
//! A kilnd that goes away is waited for. Ctrl-C ends it, and so does the end of whoever reads.

use std::time::Duration;

use hyper::Method;

use super::{Sort, read, shown, sort};
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
                let text = if as_json { format!("{}\n", reply.json()?) } else { table(&reply, by)? };
                let size = output::terminal_size();
                let bytes = match (&mut place, size) {
                    (Some(place), Some(size)) => place.over(&text, size),
                    // A line between two tables, where nothing else parts them.
                    (Some(_), None) => text + "\n",
                    (None, _) => text,
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

fn table(reply: &Reply, by: Sort) -> Result<String, Failure> {
    let mut pool = read(reply)?;
    sort(&mut pool.environments, by);
    Ok(shown(&pool) + "\n")
}

/// Where the last table is on the terminal.
#[derive(Default)]
struct Place {
    /// Lines that it took, and the terminal's columns and rows then.
    last: Option<(usize, (usize, usize))>,
}

impl Place {
    /// Draws over the last one: nothing flickers, and what stood above it stays. Lines are cut, so that none becomes two.
    fn over(&mut self, text: &str, (columns, rows): (usize, usize)) -> String {
        let room = rows.saturating_sub(1).max(1);
        let mut lines: Vec<String> = text.lines().map(|line| line.chars().take(columns).collect()).collect();
        if lines.len() > room {
            // The last ones sum up what is left out.
            let summary = lines.split_off(lines.len() - 1);
            let hidden = lines.len() + 2 - room;
            lines.truncate(room.saturating_sub(2));
            lines.push(format!("... {hidden} more: `kiln top` scrolls").chars().take(columns).collect());
            lines.extend(summary);
            lines.truncate(room);
        }
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
        assert_eq!(place.over("a\nb\nc\n", (80, 24)), "a\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J");
        assert_eq!(place.over("d\n", (80, 24)), "\r\x1b[3Ad\x1b[K\n\x1b[J");
        assert_eq!(place.over("e\n", (80, 24)), "\r\x1b[1Ae\x1b[K\n\x1b[J");
        assert_eq!(place.over("f\n", (40, 24)), "\x1b[H\x1b[2Jf\x1b[K\n\x1b[J", "another width wraps what is there");
    }

    #[test]
    fn a_table_never_takes_more_than_the_terminal_has() {
        let text: String = (0..50).map(|n| format!("line {n} is long\n")).collect();
        for (columns, rows) in [(80, 24), (10, 5), (7, 3), (3, 2), (1, 1)] {
            let drawn = Place::default().over(&text, (columns, rows));
            let lines: Vec<&str> = drawn.trim_end_matches("\x1b[J").lines().map(|line| line.trim_end_matches("\x1b[K")).collect();
            assert!(lines.len() <= rows.saturating_sub(1).max(1), "{lines:?}");
            assert!(lines.iter().all(|line| line.len() <= columns), "{lines:?}");
        }
        let drawn = Place::default().over(&text, (80, 24));
        assert!(drawn.contains("line 20 is long\x1b[K\n... 28 more: `kiln top` scrolls\x1b[K\nline 49 is long"), "{drawn}");
    }
}

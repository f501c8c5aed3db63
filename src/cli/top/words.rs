//! Numbers, names and bars in few columns.

use std::time::Duration;

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

use crate::cli::output;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    pub colour: bool,
    /// Nothing but ASCII.
    pub plain: bool,
}

impl Terminal {
    pub fn style(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// What matters less.
    pub fn faint(self) -> Style {
        if self.colour { Style::new().fg(Color::DarkGray) } else { Style::new().add_modifier(Modifier::DIM) }
    }

    /// What somebody should look at.
    pub fn alarm(self) -> Style {
        let style = Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD);
        if self.colour { style.fg(Color::Red) } else { style }
    }

    pub fn none(self) -> &'static str {
        "-"
    }

    /// `now` of `whole` in so many columns, and up to where it has been.
    pub fn bar(self, now: f64, peak: f64, whole: f64, width: u16) -> Vec<Span<'static>> {
        let share = |part: f64| if whole > 0.0 { (part / whole).clamp(0.0, 1.0) } else { 0.0 };
        let columns = usize::from(width);
        let eighths = (share(now) * columns as f64 * 8.0).round() as usize;
        let (mut full, part) = (eighths / 8, eighths % 8);
        let mut filled = if self.plain { "#" } else { "█" }.repeat(full);
        if part > 0 {
            // In ASCII to the nearest column, but something is never nothing.
            match (self.plain, part) {
                (true, 4..) => filled.push('#'),
                (true, _) if full == 0 => filled.push('#'),
                (true, _) => full -= 1,
                (false, part) => filled.push(['▏', '▎', '▍', '▌', '▋', '▊', '▉'][part - 1]),
            }
            full += 1;
        }
        let upto = ((share(peak) * columns as f64).round() as usize).clamp(full, columns);
        let colour = match share(now) {
            ..0.7 => Color::Green,
            ..0.9 => Color::Yellow,
            _ => Color::Red,
        };
        let (been, rest) = if self.plain { ("+", ".") } else { ("▒", "·") };
        vec![
            Span::styled(filled, self.style(colour)),
            Span::styled(been.repeat(upto - full), self.style(colour)),
            Span::styled(rest.repeat(columns - upto), self.faint()),
        ]
    }

    /// In so many columns; what does not fit is said to be missing. Without what could command a terminal.
    pub fn fit(self, text: &str, columns: usize) -> String {
        let text = output::plain(&output::careful(text.as_bytes()));
        let text = if self.plain { text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect() } else { text };
        if width(&text) <= columns {
            return text;
        }
        let mut left = columns.saturating_sub(1);
        let mut kept = String::new();
        let mut buffer = [0; 4];
        for c in text.chars() {
            match left.checked_sub(width(c.encode_utf8(&mut buffer))) {
                Some(rest) => left = rest,
                None => break,
            }
            kept.push(c);
        }
        if columns > 0 {
            kept.push(if self.plain { '~' } else { '…' });
        }
        kept
    }
}

/// Columns on a terminal: wide characters take two.
pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// For a second, in at most five columns.
pub fn rate(rate: f64) -> String {
    match rate {
        ..0.0005 => "0".into(),
        ..0.995 => format!("{rate:.2}"),
        ..99.95 => format!("{rate:.1}"),
        ..9999.5 => format!("{rate:.0}"),
        ..999_500.0 => format!("{:.0}k", rate / 1e3),
        _ => format!("{:.1}M", (rate / 1e6).min(99.9)),
    }
}

/// A count in at most five columns.
pub fn count(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        100_000..1_000_000 => format!("{}k", count / 1000),
        1_000_000..100_000_000 => format!("{:.1}M", count as f64 / 1e6),
        _ => format!("{:.0}M", (count as f64 / 1e6).min(9999.0)),
    }
}

/// A short one, in at most six columns.
pub fn time(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ..9.95 => format!("{ms:.1}ms"),
        ..999.5 => format!("{ms:.0}ms"),
        ..99_950.0 => format!("{:.1}s", ms / 1e3),
        _ => output::duration(time),
    }
}

pub fn seconds(secs: f64) -> String {
    output::duration(Duration::try_from_secs_f64(secs).unwrap_or_default())
}

/// Memory in at most six columns.
pub fn memory(mib: u64) -> String {
    match mib {
        0..100_000 => format!("{mib}M"),
        _ => format!("{:.0}G", mib as f64 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COLOURS: Terminal = Terminal { colour: true, plain: false };
    const ASCII: Terminal = Terminal { colour: false, plain: true };

    fn bar(terminal: Terminal, now: f64, peak: f64) -> String {
        terminal.bar(now, peak, 100.0, 10).iter().map(|span| span.content.as_ref()).collect()
    }

    #[test]
    fn a_bar_shows_now_and_the_most_so_far() {
        assert_eq!(bar(COLOURS, 36.0, 60.0), "███▋▒▒····");
        assert_eq!(bar(ASCII, 36.0, 60.0), "####++....");
        assert_eq!(
            [bar(ASCII, 0.0, 0.0), bar(ASCII, 1.0, 0.0), bar(ASCII, 250.0, 300.0)],
            ["..........", "#.........", "##########"]
        );
        assert_eq!(bar(COLOURS, 2.0, 100.0), "▎▒▒▒▒▒▒▒▒▒");
    }

    #[test]
    fn names_that_do_not_fit_say_so_and_wide_characters_count_twice() {
        assert_eq!(COLOURS.fit("abcdef", 6), "abcdef");
        assert_eq!(COLOURS.fit("abcdefg", 6), "abcde…");
        assert_eq!(COLOURS.fit("日本語の関数", 7), "日本語…");
        assert_eq!(ASCII.fit("grün\u{1b}[2J", 20), "gr?n\\x1b[2J");
        assert_eq!(COLOURS.fit("x", 0), "");
    }

    proptest! {
        /// Whatever comes, a row stays a row.
        #[test]
        fn nothing_is_wider_than_its_columns(text: String, columns in 0..30_usize, plain: bool) {
            let terminal = Terminal { colour: false, plain };
            prop_assert!(width(&terminal.fit(&text, columns)) <= columns);
        }

        #[test]
        fn a_bar_has_exactly_its_width(now in 0.0..1e9_f64, peak in 0.0..1e9_f64, whole in 0.0..1e9_f64, columns in 0..40_u16, plain: bool) {
            let spans = Terminal { colour: false, plain }.bar(now, peak, whole, columns);
            prop_assert_eq!(spans.iter().map(Span::width).sum::<usize>(), usize::from(columns));
        }

        #[test]
        fn numbers_keep_to_their_columns(of in 0.0..1e9_f64, whole: u64, ms in 0..u64::from(u32::MAX)) {
            prop_assert!(rate(of).len() <= 5, "{}", rate(of));
            prop_assert!(count(whole).len() <= 5, "{}", count(whole));
            prop_assert!(time(Duration::from_millis(ms)).len() <= 6, "{}", time(Duration::from_millis(ms)));
        }
    }
}

//! The whole screen, as a function of what is known, what was chosen, and the terminal's size.
//!
//! ```text
//! kiln top /run/kiln                     every 2 s      or why nothing new is seen
//! memory   ████▌···········  …                          the host: what bounds all functions
//! running  ▏···············  …
//! 120/s invocations  …
//!   FUNCTIONS …                                         ▸ marks the table that the keys are for
//!   FUNCTION  BUSY …
//! ▸ ENVIRONMENTS …
//!   FUNCTION  STATE …
//! q quit  ? help …
//! ```
//!
//! With fewer rows the less important goes first, down to the one table that the keys are for.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::columns::{self, Column};
use super::model::{EnvironmentRow, FunctionRow, Known, Rates};
use super::settings::{ByFunction, Settings, Table, words};
use super::words::{Terminal, count, memory, rate, seconds, time, width};
use crate::cli::args::Sort;

/// See the module docs.
pub struct Screen<'a> {
    pub known: &'a Known,
    pub settings: &'a Settings,
    pub terminal: Terminal,
    /// Which instance.
    pub run_dir: &'a str,
    /// On the clock of the looks.
    pub now: Duration,
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

impl Screen<'_> {
    pub fn draw(&self, buffer: &mut Buffer) {
        let mut rest = buffer.area;
        let height = rest.height;
        self.title(buffer, take(&mut rest, 1));
        if self.settings.help {
            return self.help(buffer, rest);
        }
        let header = match height {
            12.. => 3,
            4.. => 1,
            _ => 0,
        };
        self.host(buffer, take(&mut rest, header));
        if height >= 8 {
            let status = Rect { y: rest.bottom() - 1, height: 1, ..rest };
            rest.height -= 1;
            self.status(buffer, status);
        }
        let (functions, of_functions) = self.known.functions(self.settings);
        let (environments, of_environments) = self.known.environments(self.settings);
        let (first, second) = match (self.settings.alone || rest.height < 10, self.settings.table) {
            (true, Table::Functions) => (rest.height, 0),
            (true, Table::Environments) => (0, rest.height),
            (false, _) => {
                // Title and headings; an empty table says so in a row.
                let needs = |rows: usize| u16::try_from(rows.max(1) + 2).unwrap_or(u16::MAX);
                let spare = rest.height.saturating_sub(needs(environments.len()));
                let first = needs(functions.len()).min(spare.max(rest.height * 2 / 5));
                (first, rest.height - first)
            }
        };
        self.functions(buffer, take(&mut rest, first), &functions, of_functions);
        self.environments(buffer, take(&mut rest, second), &environments, of_environments);
    }

    fn title(&self, buffer: &mut Buffer, area: Rect) {
        if let Some(why) = &self.known.lost {
            let ago = seconds(self.now.saturating_sub(self.known.last.at).as_secs_f64());
            let text = format!(" kilnd is not reachable, trying again; last seen {ago} ago. {why}");
            let text = self.terminal.fit(&text, area.width.into());
            buffer.set_style(area, self.terminal.alarm());
            return put(buffer, area, Line::styled(text, self.terminal.alarm()));
        }
        let right = if self.settings.paused {
            Span::styled(" PAUSED ", Style::new().add_modifier(Modifier::REVERSED))
        } else {
            Span::raw(format!("every {} s", self.settings.every.as_secs_f64()))
        };
        let room = usize::from(area.width).saturating_sub(right.width() + "kiln top  ".len());
        let where_ = self.terminal.fit(self.run_dir, room);
        let left = Line::from(vec![Span::styled("kiln top ", BOLD), Span::styled(where_, self.terminal.faint())]);
        put(buffer, area, left);
        put_right(buffer, area, Line::from(right));
    }

    /// What bounds all functions.
    fn host(&self, buffer: &mut Buffer, area: Rect) {
        let pool = &self.known.last.pool;
        // On 80 columns all of the numbers beside it fit.
        let wide = if area.width < 100 { 12 } else { (area.width / 4).min(50) };
        let bar = |name: &'static str, now: u64, whole: u64, text: String| {
            let mut spans = vec![Span::styled(name, BOLD)];
            // Where there is little room, the numbers count.
            if area.width >= 50 {
                spans.extend(self.terminal.bar(now as f64, 0.0, whole as f64, wide));
                spans.push(Span::raw("  "));
            }
            spans.push(Span::raw(text));
            spans
        };
        // The name and the numbers, and between them the bar, which is four.
        let least = if area.width >= 50 { 6 } else { 2 };
        let share = (pool.charged_mib * 100).checked_div(pool.budget_mib).unwrap_or(0);
        let text = format!("{} of {} MB", pool.charged_mib, pool.budget_mib);
        let mut memory = bar("memory  ", pool.charged_mib, pool.budget_mib, text);
        memory.push(Span::raw(format!(" ({share}%)")));

        let mut running =
            bar("running ", pool.in_flight, pool.concurrency, format!("{} of {}", pool.in_flight, pool.concurrency));
        running.push(Span::raw(format!("  starting {} of {}", pool.starting, pool.parallel_starts)));
        let notable = |number: u64, text: String| {
            let style = if number > 0 { self.terminal.style(Color::Yellow).add_modifier(Modifier::BOLD) } else { Style::new() };
            Span::styled(text, style)
        };
        running.push(notable(pool.waiting, format!("  waiting {}", pool.waiting)));
        if pool.failing > 0 {
            running.push(notable(pool.failing, format!("  failing inits {}", pool.failing)));
        }

        let rates = self.known.rates();
        // Without counts of functions only the refusals are known.
        let counted = rates.filter(|_| pool.functions.is_some());
        let shown = |of: Option<f64>| of.map_or_else(|| self.terminal.none().to_owned(), rate);
        let per_second = |of: Option<f64>, what: &str, alarming: bool| {
            let style = match of {
                Some(0.0005..) if alarming => self.terminal.style(Color::Red).add_modifier(Modifier::BOLD),
                _ => Style::new(),
            };
            Span::styled(format!("{}/s {what}   ", shown(of)), style)
        };
        let rates = vec![
            per_second(counted.map(|rates| rates.invocations), "invoked", false),
            per_second(counted.map(|rates| rates.errors), "failed", true),
            per_second(counted.map(|rates| rates.cold_starts), "cold", false),
            per_second(rates.map(|rates| rates.throttles), "throttled", true),
            Span::raw(format!("{} CPUs", self.known.cpu().map_or_else(|| "-".into(), |cpu| format!("{cpu:.2}")))),
        ];
        let lines = [(memory, least), (running, least), (rates, 1)];
        for (at, (spans, least)) in lines.into_iter().enumerate().take(area.height.into()) {
            let line = self.whole(spans, least, area.width);
            put(buffer, Rect { y: area.y + at as u16, height: 1, ..area }, line);
        }
    }

    fn status(&self, buffer: &mut Buffer, area: Rect) {
        if self.settings.typing.is_some() {
            let text = format!("filter: {}_   Enter: keep it   Esc: as before", self.settings.filter);
            return put(buffer, area, Line::styled(self.terminal.fit(&text, area.width.into()), BOLD));
        }
        let keys = [
            ("q", "quit"),
            ("?", "help"),
            ("Tab", "other table"),
            ("s", "sort"),
            ("r", "reverse"),
            ("/", "filter"),
            ("p", "pause"),
            ("z", "alone"),
        ];
        let mut spans = Vec::new();
        for (key, does) in keys {
            spans.push(Span::styled(key, BOLD));
            spans.push(Span::styled(format!(" {does}  "), self.terminal.faint()));
        }
        let mut line = self.whole(spans, 2, area.width);
        // A key says nothing without what it does.
        line.spans.truncate(line.spans.len() / 2 * 2);
        put(buffer, area, line);
    }

    fn functions(&self, buffer: &mut Buffer, mut area: Rect, rows: &[FunctionRow], all: usize) {
        let by = self.settings.by_function;
        let title = format!("FUNCTIONS {}, by {}", self.of(rows.len(), all), by.words());
        self.heading(buffer, take(&mut area, 1), Table::Functions, title);
        let longest = rows.iter().map(|row| width(&row.name)).max().unwrap_or(0);
        let columns = [
            Column::text("FUNCTION", longest.clamp(8, 14), longest.clamp(8, 64)).sorted(by == ByFunction::Name),
            Column::number("BUSY", 4).rank(1).sorted(by == ByFunction::States),
            Column::number("INIT", 4).rank(10),
            Column::number("IDLE", 4).rank(5),
            Column::number("INV/S", 5).rank(2).sorted(by == ByFunction::Invocations),
            Column::number("MEAN", 6).rank(8).sorted(by == ByFunction::Duration),
            Column::number("ERR/S", 5).rank(4).sorted(by == ByFunction::Errors),
            Column::number("COLD/S", 6).rank(7).sorted(by == ByFunction::ColdStarts),
            Column::number("THR/S", 5).rank(6).sorted(by == ByFunction::Throttles),
            Column::number("CPUS", 5).rank(9).sorted(by == ByFunction::Cpu),
            Column { most: 40, right: false, ..Column::number("MEMORY", 6) }.rank(3).sorted(by == ByFunction::Memory),
        ];
        let widths = columns::widths(&columns, area.width);
        let counted = self.known.last.pool.functions.is_some();
        let cells = rows.iter().map(|row| {
            let rates = row.rates.filter(|_| counted);
            let per_second = |of: fn(&Rates) -> f64, colour: Option<Color>| match rates.as_ref().map(of) {
                Some(some @ 0.0005..) => {
                    Line::styled(rate(some), colour.map_or_else(Style::new, |colour| self.terminal.style(colour)))
                }
                Some(_) => Line::styled("0", self.terminal.faint()),
                None => Line::styled(self.terminal.none(), self.terminal.faint()),
            };
            let some = |number: usize, style: Style| {
                let style = if number > 0 { style } else { self.terminal.faint() };
                Line::styled(number.to_string(), style)
            };
            let mean = rates.and_then(|rates| rates.mean).map_or_else(|| self.terminal.none().to_owned(), time);
            vec![
                Line::raw(self.terminal.fit(&row.name, widths[0].into())),
                some(row.busy, self.busy()),
                some(row.initialising, self.terminal.style(Color::Yellow)),
                some(row.idle, Style::new()),
                per_second(|rates| rates.invocations, None),
                Line::raw(mean),
                per_second(|rates| rates.errors, Some(Color::Red)),
                per_second(|rates| rates.cold_starts, Some(Color::Yellow)),
                per_second(|rates| rates.throttles, Some(Color::Red)),
                Line::raw(row.cpu.map_or_else(|| self.terminal.none().to_owned(), |cpu| format!("{cpu:.2}"))),
                self.memory_of(row, widths[10]),
            ]
        });
        self.table(buffer, area, &columns, &widths, &cells.collect::<Vec<_>>(), Table::Functions, |chosen| {
            rows.iter().position(|row| row.name == chosen)
        });
    }

    /// What all of its environments use, of the host's budget.
    fn memory_of(&self, row: &FunctionRow, width: u16) -> Line<'static> {
        let mut spans = vec![Span::raw(format!("{:>6}", memory(row.charged_mib)))];
        if width >= 12 {
            spans.push(Span::raw(" "));
            spans.extend(self.terminal.bar(row.charged_mib as f64, 0.0, self.known.last.pool.budget_mib as f64, width - 7));
        }
        Line::from(spans)
    }

    fn environments(&self, buffer: &mut Buffer, mut area: Rect, rows: &[EnvironmentRow<'_>], all: usize) {
        let by = self.settings.by_environment;
        let state = |state: &str| rows.iter().filter(|row| row.seen.state == state).count();
        let held = match state("held") {
            0 => String::new(),
            held => format!("{held} held, "),
        };
        let title = format!(
            "ENVIRONMENTS {}: {} busy, {} initialising, {held}{} idle, by {}",
            self.of(rows.len(), all),
            state("busy"),
            state("initialising"),
            state("idle"),
            words(by)
        );
        self.heading(buffer, take(&mut area, 1), Table::Environments, title);
        let longest = |of: fn(&EnvironmentRow<'_>) -> usize| rows.iter().map(of).max().unwrap_or(0);
        let name = longest(|row| width(&row.seen.function));
        let container = longest(|row| row.seen.container.as_deref().map_or(1, width)).clamp(9, 16);
        let digits = longest(|row| used(row).len()).clamp(6, 13);
        let columns = [
            Column::text("FUNCTION", name.clamp(8, 14), name.clamp(8, 64)).sorted(by == Sort::Function),
            Column::text("STATE", 5, 5).rank(1),
            Column::text("CONTAINER", container, container).rank(4),
            Column::number("AGE", 6).rank(6).sorted(by == Sort::Age),
            Column::number("IDLE/END", 8).rank(5).sorted(by == Sort::Idle),
            Column::text("MEMORY (MB)", digits + 6, digits + 31).rank(2).sorted(by == Sort::Memory),
            Column::number("PEAK", 5).rank(8).sorted(by == Sort::Peak),
            Column::text("CPU", 10, 26).rank(3).sorted(by == Sort::Cpu),
            Column::number("INVOC", 5).rank(7).sorted(by == Sort::Invocations),
        ];
        let widths = columns::widths(&columns, area.width);
        let cells = rows.iter().map(|row| {
            let seen = row.seen;
            let none = || self.terminal.none().to_owned();
            let (state, style) = match seen.state.as_str() {
                "busy" => ("busy", self.busy()),
                "initialising" => ("init", self.terminal.style(Color::Yellow)),
                "held" => ("held", self.terminal.style(Color::Cyan)),
                "idle" => ("idle", self.terminal.faint()),
                other => (other, Style::new()),
            };
            let idle = match (&seen.leaving, seen.idle_s) {
                // Only what is at work can be about to leave.
                (Some(why), _) => Line::styled(self.terminal.fit(why, 8), self.terminal.style(Color::Yellow)),
                (None, idle) => Line::raw(idle.map_or_else(none, seconds)),
            };
            vec![
                Line::raw(self.terminal.fit(&seen.function, widths[0].into())),
                Line::styled(self.terminal.fit(state, 5), style),
                Line::raw(seen.container.as_ref().map_or_else(none, |id| self.terminal.fit(id, container))),
                Line::raw(seconds(seen.age_s)),
                idle,
                self.memory_now(row, widths[5], digits),
                Line::raw(seen.peak_mib.to_string()),
                self.cpu_now(row, widths[7]),
                Line::raw(count(seen.invocations)),
            ]
        });
        self.table(buffer, area, &columns, &widths, &cells.collect::<Vec<_>>(), Table::Environments, |chosen| {
            rows.iter().position(|row| row.key == chosen)
        });
    }

    /// Now, and the most so far, of what it may.
    fn memory_now(&self, row: &EnvironmentRow<'_>, width: u16, digits: usize) -> Line<'static> {
        let (seen, room) = (row.seen, width.saturating_sub(digits as u16 + 1));
        let mut spans = self.terminal.bar(seen.used_mib as f64, seen.peak_mib as f64, seen.memory_mib as f64, room);
        spans.push(Span::raw(format!(" {:>digits$}", used(row))));
        Line::from(spans)
    }

    /// Of its quota. A burst may be more than that.
    fn cpu_now(&self, row: &EnvironmentRow<'_>, width: u16) -> Line<'static> {
        let room = width.saturating_sub(5);
        let share = row.cpu_share();
        let mut spans = self.terminal.bar(share.unwrap_or(0.0), 0.0, 1.0, room);
        let text = share.map_or_else(|| self.terminal.none().to_owned(), |share| format!("{:.0}%", (share * 100.0).min(999.0)));
        spans.push(Span::raw(format!(" {text:>4}")));
        Line::from(spans)
    }

    /// So many of these, from the first on, as have room, and `least` of them in any case: cut, which is said.
    fn whole(&self, mut spans: Vec<Span<'static>>, least: usize, columns: u16) -> Line<'static> {
        let before = |spans: &[Span<'static>]| spans.iter().rev().skip(1).map(Span::width).sum::<usize>();
        let wide = |spans: &[Span<'static>]| before(spans) + spans.last().map_or(0, |last| width(last.content.trim_end()));
        while spans.len() > least && wide(&spans) > columns.into() {
            spans.pop();
        }
        let left = usize::from(columns).saturating_sub(before(&spans));
        if let Some(last) = spans.last_mut() {
            last.content = self.terminal.fit(last.content.trim_end(), left).into();
        }
        Line::from(spans)
    }

    fn busy(&self) -> Style {
        self.terminal.style(Color::Green).add_modifier(Modifier::BOLD)
    }

    /// `34`, or `3 of 34 with "abc"`.
    fn of(&self, shown: usize, all: usize) -> String {
        match self.settings.filter.as_str() {
            "" => all.to_string(),
            filter => format!("{shown} of {all} with {:?}", self.terminal.fit(filter, 20)),
        }
    }

    fn heading(&self, buffer: &mut Buffer, area: Rect, table: Table, title: String) {
        let mine = self.settings.table == table;
        let style = if mine { self.terminal.style(Color::Cyan).add_modifier(Modifier::BOLD) } else { BOLD };
        let mark = match (mine, self.terminal.plain) {
            (true, true) => "> ",
            (true, false) => "▸ ",
            (false, _) => "  ",
        };
        let reversed = if self.settings.reversed[table as usize] { ", reversed" } else { "" };
        let text = self.terminal.fit(&format!("{title}{reversed}"), usize::from(area.width).saturating_sub(2));
        put(buffer, area, Line::styled(format!("{mark}{text}"), style));
    }

    #[allow(clippy::too_many_arguments, reason = "one table of two")]
    fn table(
        &self,
        buffer: &mut Buffer,
        area: Rect,
        columns: &[Column],
        widths: &[u16],
        rows: &[Vec<Line<'static>>],
        table: Table,
        find: impl Fn(&str) -> Option<usize>,
    ) {
        let chosen = self.settings.chosen[table as usize].as_deref().filter(|_| self.settings.table == table).and_then(find);
        columns::draw(buffer, area, columns, widths, rows, chosen, self.terminal.faint());
        if rows.is_empty() && area.height > 1 {
            let text = match (self.settings.filter.is_empty(), table) {
                (false, _) => "none with this filter: Esc clears it",
                (true, Table::Functions) => "no function has run",
                (true, Table::Environments) => "none: the next invocation is a cold start",
            };
            let place = Rect { y: area.y + 1, height: 1, ..area };
            put(buffer, place, Line::styled(self.terminal.fit(text, area.width.into()), self.terminal.faint()));
        }
    }

    fn help(&self, buffer: &mut Buffer, area: Rect) {
        for (at, line) in HELP.lines().enumerate().take(area.height.into()) {
            let text = self.terminal.fit(line, area.width.into());
            put(buffer, Rect { y: area.y + at as u16, height: 1, ..area }, Line::raw(text));
        }
    }
}

const HELP: &str = "
  q, Ctrl-C     quit                       p, space   pause
  Tab           the other table            + -        look less, more often
  up down j k   choose a row               z          this table alone, or both
  PgUp PgDn Home End  likewise             Ctrl-L     draw everything anew
  s S           the next, the last order   Ctrl-Z     suspend
  r             the order reversed         Enter      of this function only
  /             filter by name             Esc        no filter

  Rates are those between the last two looks.

  memory     what environments are charged, of memory_budget_mib
  running    invocations that run or wait, of concurrency
  starting   inits under way, of parallel_starts; a long one gives its place up
  CPUS       CPUs in use, now
  IDLE/END   since when it is idle; or why it ends when its invocation does
  MEMORY     of a function: what its environments are charged; of an
             environment: used now, the most so far, what is configured
  CPU        of what its memory buys: 1769 MB are one, init has one at least
  INVOC      invocations that it has served; held: somebody is inside

  Looking wakes no frozen container. For programs: kiln pool --watch --json
  Any key goes back.";

fn used(row: &EnvironmentRow<'_>) -> String {
    format!("{}/{}", row.seen.used_mib, row.seen.memory_mib)
}

/// So many rows from the top of `rest`.
fn take(rest: &mut Rect, rows: u16) -> Rect {
    let taken = Rect { height: rows.min(rest.height), ..*rest };
    rest.y += taken.height;
    rest.height -= taken.height;
    taken
}

fn put(buffer: &mut Buffer, area: Rect, line: Line<'_>) {
    if area.height > 0 {
        buffer.set_line(area.x, area.y, &line, area.width);
    }
}

fn put_right(buffer: &mut Buffer, area: Rect, line: Line<'_>) {
    let width = u16::try_from(line.width()).unwrap_or(u16::MAX).min(area.width);
    put(buffer, Rect { x: area.right() - width, width, ..area }, line);
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;

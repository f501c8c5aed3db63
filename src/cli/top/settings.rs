//! What whoever looks has chosen, and what each key changes about it. Pure.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::Known;
use crate::cli::args::Sort;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Which table the keys are for.
    pub table: Table,
    /// Only that table.
    pub alone: bool,
    pub by_function: ByFunction,
    pub by_environment: Sort,
    /// Of functions, of environments: the smallest first.
    pub reversed: [bool; 2],
    /// Only functions whose name has this in it.
    pub filter: String,
    /// The filter as it was, while a new one is typed.
    pub typing: Option<String>,
    pub paused: bool,
    pub every: Duration,
    pub help: bool,
    /// The chosen row of each table, by its name or container.
    pub chosen: [Option<String>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Functions = 0,
    Environments = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByFunction {
    Name,
    States,
    Invocations,
    Duration,
    Errors,
    ColdStarts,
    Throttles,
    Cpu,
    Memory,
}

impl ByFunction {
    /// In the order of the columns.
    const ALL: [Self; 9] = [
        Self::Name,
        Self::States,
        Self::Invocations,
        Self::Duration,
        Self::Errors,
        Self::ColdStarts,
        Self::Throttles,
        Self::Cpu,
        Self::Memory,
    ];

    pub fn words(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::States => "how many are busy",
            Self::Invocations => "invocations",
            Self::Duration => "duration",
            Self::Errors => "errors",
            Self::ColdStarts => "cold starts",
            Self::Throttles => "throttles",
            Self::Cpu => "CPU",
            Self::Memory => "memory",
        }
    }
}

/// Likewise.
const BY_ENVIRONMENT: [Sort; 7] = [Sort::Function, Sort::Age, Sort::Idle, Sort::Memory, Sort::Peak, Sort::Cpu, Sort::Invocations];

pub fn words(by: Sort) -> &'static str {
    match by {
        Sort::Function => "function",
        Sort::Memory => "memory",
        Sort::Peak => "peak memory",
        Sort::Cpu => "CPU",
        Sort::Age => "age",
        Sort::Idle => "idle time",
        Sort::Invocations => "invocations",
    }
}

/// Between two looks.
const INTERVALS: [Duration; 8] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// So many rows are a page: tables have no height here, and it need not be exact.
const PAGE: isize = 10;
/// A function's name has at most 64 characters.
const MAX_FILTER: usize = 64;

/// What a key asks for beside other settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Nothing,
    Quit,
    Suspend,
    Redraw,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            table: Table::Environments,
            alone: false,
            by_function: ByFunction::Invocations,
            by_environment: Sort::Function,
            reversed: [false; 2],
            filter: String::new(),
            typing: None,
            paused: false,
            every: Duration::from_secs(2),
            help: false,
            chosen: [None, None],
        }
    }
}

impl Settings {
    pub fn press(&mut self, key: KeyEvent, known: &Known) -> Wish {
        if key.kind == KeyEventKind::Release {
            return Wish::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Wish::Quit,
                KeyCode::Char('z') => Wish::Suspend,
                KeyCode::Char('l') => Wish::Redraw,
                _ => Wish::Nothing,
            };
        }
        if self.typing.is_some() {
            self.type_filter(key.code);
            return Wish::Nothing;
        }
        if self.help {
            // Whatever it is, it closes the help.
            self.help = false;
            return if key.code == KeyCode::Char('q') { Wish::Quit } else { Wish::Nothing };
        }
        match key.code {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s') => self.sort(1),
            KeyCode::Char('S') => self.sort(-1),
            KeyCode::Char('r') => self.reversed[self.table as usize] ^= true,
            KeyCode::Char('+' | '=') => self.look_every(1),
            KeyCode::Char('-') => self.look_every(-1),
            KeyCode::Char('/') => self.typing = Some(self.filter.clone()),
            KeyCode::Char('z') => self.alone = !self.alone,
            KeyCode::Tab | KeyCode::BackTab => self.other_table(),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Enter => self.follow(),
            KeyCode::Down | KeyCode::Char('j') => self.choose(1, known),
            KeyCode::Up | KeyCode::Char('k') => self.choose(-1, known),
            KeyCode::PageDown => self.choose(PAGE, known),
            KeyCode::PageUp => self.choose(-PAGE, known),
            KeyCode::Home | KeyCode::Char('g') => self.choose(isize::MIN, known),
            KeyCode::End | KeyCode::Char('G') => self.choose(isize::MAX, known),
            _ => {}
        }
        Wish::Nothing
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.typing = None,
            KeyCode::Esc => self.filter = self.typing.take().unwrap_or_default(),
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if !c.is_control() && self.filter.chars().count() < MAX_FILTER => self.filter.push(c),
            _ => {}
        }
    }

    fn sort(&mut self, by: isize) {
        match self.table {
            Table::Functions => self.by_function = step(&ByFunction::ALL, self.by_function, by),
            Table::Environments => self.by_environment = step(&BY_ENVIRONMENT, self.by_environment, by),
        }
    }

    fn look_every(&mut self, by: isize) {
        // `--interval` may have given one between them.
        let next = if by > 0 {
            INTERVALS.into_iter().find(|every| *every > self.every)
        } else {
            INTERVALS.into_iter().rev().find(|every| *every < self.every)
        };
        self.every = next.unwrap_or(self.every);
    }

    fn other_table(&mut self) {
        self.table = if self.table == Table::Functions { Table::Environments } else { Table::Functions };
    }

    /// From a function to its environments.
    fn follow(&mut self) {
        if let (Table::Functions, Some(function)) = (self.table, &self.chosen[0]) {
            self.filter = function.clone();
            self.table = Table::Environments;
        }
    }

    fn choose(&mut self, by: isize, known: &Known) {
        let keys: Vec<String> = match self.table {
            Table::Functions => known.functions(self).0.into_iter().map(|row| row.name).collect(),
            Table::Environments => known.environments(self).0.into_iter().map(|row| row.key).collect(),
        };
        let chosen = &mut self.chosen[self.table as usize];
        let at = chosen.as_ref().and_then(|chosen| keys.iter().position(|key| key == chosen));
        let last = keys.len().saturating_sub(1);
        let next = match at {
            Some(at) => at.saturating_add_signed(by).min(last),
            // Nothing was chosen: the first, or for whoever went to the end the last.
            None if by == isize::MAX => last,
            None => 0,
        };
        *chosen = keys.into_iter().nth(next);
    }
}

/// The next one, round and round.
fn step<T: Copy + PartialEq>(all: &[T], now: T, by: isize) -> T {
    let at = all.iter().position(|one| *one == now).unwrap_or(0);
    all[(at as isize + by).rem_euclid(all.len() as isize) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::pool::{Environment, Pool};
    use crate::cli::top::model::Look;

    fn three() -> Known {
        let environment = |function: &str, container: &str, used_mib| Environment {
            function: function.into(),
            container: Some(container.into()),
            used_mib,
            ..Environment::default()
        };
        let environments = vec![environment("a", "1-1", 1), environment("b", "1-2", 3), environment("c", "1-3", 2)];
        Known::new(Look { at: Duration::ZERO, pool: Pool { environments, ..Pool::default() } })
    }

    fn press(settings: &mut Settings, keys: &str) -> Wish {
        let mut wish = Wish::Nothing;
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '\u{1b}' => KeyCode::Esc,
                '\u{8}' => KeyCode::Backspace,
                key => KeyCode::Char(key),
            };
            wish = settings.press(KeyEvent::new(code, KeyModifiers::NONE), &three());
        }
        wish
    }

    fn chosen(settings: &Settings) -> [Option<&str>; 2] {
        settings.chosen.each_ref().map(Option::as_deref)
    }

    #[test]
    fn q_and_control_c_end_it_and_a_q_in_a_filter_does_not() {
        let mut settings = Settings::default();
        assert_eq!([press(&mut settings, "?q"), press(&mut settings, "q")], [Wish::Quit; 2]);
        assert_eq!(press(&mut settings, "/q"), Wish::Nothing);
        assert_eq!(settings.filter, "q");
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(settings.press(interrupt, &three()), Wish::Quit, "that one always");
    }

    #[test]
    fn a_filter_is_kept_by_enter_and_forgotten_by_escape() {
        let mut settings = Settings::default();
        press(&mut settings, "/abx\u{8}\n");
        assert_eq!((settings.filter.as_str(), &settings.typing), ("ab", &None));
        press(&mut settings, "/cd\u{1b}");
        assert_eq!((settings.filter.as_str(), &settings.typing), ("ab", &None), "as before");
        press(&mut settings, "\u{1b}");
        assert_eq!(settings.filter, "");
        press(&mut settings, &format!("/{}\n", "x".repeat(100)));
        assert_eq!(settings.filter.len(), MAX_FILTER);
    }

    #[test]
    fn the_chosen_row_is_one_of_the_table_and_stays_itself_in_another_order() {
        let mut settings = Settings::default();
        press(&mut settings, "jj");
        assert_eq!(chosen(&settings), [None, Some("1-2")]);
        settings.by_environment = Sort::Memory;
        press(&mut settings, "j");
        assert_eq!(chosen(&settings), [None, Some("1-3")], "the one below it in the new order");
        press(&mut settings, "jjjjG");
        assert_eq!(chosen(&settings), [None, Some("1-1")], "the last one stays the last");
        press(&mut settings, "gk");
        assert_eq!(chosen(&settings), [None, Some("1-2")], "and the first one the first");
    }

    #[test]
    fn enter_goes_from_a_function_to_its_environments() {
        let mut settings = Settings::default();
        press(&mut settings, "\n");
        assert_eq!((settings.filter.as_str(), settings.table), ("", Table::Environments), "it is for functions");
        press(&mut settings, "\tG\n");
        assert_eq!((settings.filter.as_str(), settings.table), ("c", Table::Environments));
        let seen = three();
        assert_eq!(seen.environments(&settings).0.len(), 1);
    }

    #[test]
    fn orders_go_round_and_intervals_have_ends() {
        let mut settings = Settings::default();
        let first = settings.by_environment;
        press(&mut settings, &"s".repeat(BY_ENVIRONMENT.len()));
        assert_eq!(settings.by_environment, first);
        press(&mut settings, "S");
        assert_eq!(settings.by_environment, Sort::Invocations);
        settings.every = Duration::from_millis(2500);
        press(&mut settings, "+");
        assert_eq!(settings.every.as_secs(), 3);
        press(&mut settings, &"+".repeat(20));
        assert_eq!(settings.every.as_secs(), 60);
        press(&mut settings, &"-".repeat(20));
        assert_eq!(settings.every.as_millis(), 500);
    }
}

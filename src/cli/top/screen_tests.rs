//! Whole screens, as they are stored in `screens/`: read them there. After a change that is meant, KILN_NEW_SCREENS=1 stores
//! them anew, and `git diff` shows what has changed.

use std::path::PathBuf;
use std::{env, fs};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::backend::TestBackend;

use super::*;
use crate::cli::pool::{Counts, Environment, Pool};
use crate::cli::top::model::Look;

const COLOURS: Terminal = Terminal { colour: true, plain: false };

fn environment(function: &str, container: &str, state: &str, memory_mib: u64, used_mib: u64) -> Environment {
    Environment {
        function: function.into(),
        version: "$LATEST".into(),
        state: state.into(),
        age_s: 75.0,
        idle_s: (state == "idle").then_some(12.0),
        memory_mib,
        used_mib,
        charged_mib: if state == "idle" { used_mib } else { memory_mib },
        peak_mib: (used_mib + used_mib / 4).min(memory_mib),
        cpu_ms: Some(300),
        invocations: 12,
        container: (!container.is_empty()).then(|| container.into()),
        leaving: None,
    }
}

fn counts(function: &str, invocations: u64) -> Counts {
    let duration_ms = invocations as f64 * 23.0;
    Counts { function: function.into(), invocations, errors: 0, throttles: 0, cold_starts: 1, duration_ms }
}

/// Two seconds later: each environment has used the CPU for so long, each function served as many invocations as it had.
fn known(before: Pool, cpu_ms: impl Fn(usize) -> u64) -> Known {
    let mut after = before.clone();
    for (at, environment) in after.environments.iter_mut().enumerate() {
        environment.age_s += 2.0;
        environment.cpu_ms = environment.cpu_ms.map(|ms| ms + cpu_ms(at));
    }
    for counts in after.functions.iter_mut().flatten() {
        (counts.invocations, counts.duration_ms) = (counts.invocations * 2, counts.duration_ms * 2.0);
    }
    let mut known = Known::new(Look { at: Duration::from_secs(10), pool: before });
    known.saw(Look { at: Duration::from_secs(12), pool: after });
    known
}

/// A usual day: all states, an error, throttles, one that leaves, one that is being built.
fn usual() -> Known {
    let mut orders = environment("orders", "1-17", "busy", 1769, 1203);
    orders.leaving = Some("updated".into());
    let pool = Pool {
        budget_mib: 12_800,
        charged_mib: 10_585,
        in_flight: 6,
        concurrency: 1000,
        starting: 2,
        parallel_starts: 8,
        waiting: 1,
        failing: 1,
        refused: [("memory".to_owned(), 4)].into(),
        environments: vec![
            environment("hello", "1-2", "idle", 128, 36),
            environment("hello", "2-4", "busy", 128, 41),
            orders,
            environment("orders", "2-11", "busy", 1769, 640),
            environment("orders", "2-12", "idle", 1769, 355),
            environment("thumbnails-of-pictures", "1-20", "busy", 3008, 2950),
            environment("thumbnails-of-pictures", "", "initialising", 3008, 0),
            environment("nightly_report", "2-13", "initialising", 512, 92),
        ],
        functions: Some(vec![
            counts("hello", 480),
            counts("orders", 31),
            counts("thumbnails-of-pictures", 2),
            counts("seldom", 0),
        ]),
        ..Pool::default()
    };
    let mut known = known(pool, |at| [0, 140, 1800, 950, 0, 3390, 700, 1400][at]);
    let functions = known.last.pool.functions.as_mut().unwrap();
    (functions[1].errors, functions[1].cold_starts, functions[2].throttles) = (3, 2, 2);
    known.last.pool.refused.insert("memory".into(), 6);
    known
}

/// 500 environments of 40 functions.
fn crowd() -> Known {
    let states = ["busy", "idle", "idle", "idle", "initialising"];
    let environments = (0..500).map(|at| {
        let function = format!("function-{:02}", at % 40);
        environment(&function, &format!("{}-{at}", at % 4 + 1), states[at % 5], 256, 30 + at as u64 % 200)
    });
    let pool = Pool {
        budget_mib: 64_000,
        charged_mib: 63_900,
        in_flight: 100,
        concurrency: 1000,
        parallel_starts: 8,
        environments: environments.collect(),
        functions: Some((0..40).map(|at| counts(&format!("function-{at:02}"), 100_000 + at * 1000)).collect()),
        ..Pool::default()
    };
    known(pool, |at| (at as u64 * 37) % 400)
}

/// What no door lets through today, and a screen has to bear.
fn odd_names() -> Known {
    let long = "a".repeat(64);
    let names = [
        long.as_str(),
        "関数の名前がとても長いのですがどうしましょうか",
        "grün-und-groß",
        "evil\u{1b}[2J\u{202e}\nname",
        "e\u{301}a",
        "",
    ];
    let environments = names.iter().enumerate().map(|(at, name)| {
        let mut one = environment(name, &format!("1-{at}"), "busy", 10_240, 10_000);
        (one.age_s, one.invocations, one.leaving) = (1e9, u64::MAX, Some("for a reason that is long".into()));
        one
    });
    let pool = Pool {
        environments: environments.collect(),
        functions: Some(names.iter().map(|name| counts(name, 1 << 50)).collect()),
        ..Pool::default()
    };
    known(pool, |_| 1 << 40)
}

fn press(settings: &mut Settings, known: &Known, keys: &[KeyCode]) {
    for key in keys {
        settings.press(KeyEvent::new(*key, KeyModifiers::NONE), known);
    }
}

fn drawn(known: &Known, settings: &Settings, terminal: Terminal, (columns, rows): (u16, u16)) -> Buffer {
    let mut backend = ratatui::Terminal::new(TestBackend::new(columns, rows)).unwrap();
    let now = Duration::from_secs(27);
    let screen = Screen { known, settings, terminal, run_dir: "/run/kiln", now };
    backend.draw(|frame| screen.draw(frame.buffer_mut())).unwrap();
    backend.backend().buffer().clone()
}

/// As it looks, without what stands behind the last character of a line.
fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let mut line = String::new();
        let mut x = 0;
        while x < buffer.area.width {
            let symbol = buffer[(x, y)].symbol();
            line += symbol;
            // A wide one stands in the next cell, too.
            x += u16::try_from(width(symbol).max(1)).unwrap();
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[track_caller]
fn stored(name: &str, known: &Known, settings: &Settings, terminal: Terminal, size: (u16, u16)) -> String {
    let found = text(&drawn(known, settings, terminal, size));
    let file = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"))
        .join(format!("src/cli/top/screens/{name}-{}x{}.txt", size.0, size.1));
    if env::var_os("KILN_NEW_SCREENS").is_some() {
        fs::write(&file, &found).unwrap();
    }
    let stored = fs::read_to_string(&file).unwrap_or_default();
    assert!(found == stored, "{} is now (KILN_NEW_SCREENS=1 stores it, if that is right):\n{found}", file.display());
    found
}

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (200, 50);

#[test]
fn a_usual_day_on_terminals_of_each_size() {
    for size in [SMALL, LARGE, (40, 12), (20, 5)] {
        stored("usual", &usual(), &Settings::default(), COLOURS, size);
    }
}

#[test]
fn nothing_runs() {
    let pool = Pool { budget_mib: 3200, concurrency: 1000, parallel_starts: 8, functions: Some(vec![]), ..Pool::default() };
    for size in [SMALL, LARGE, (20, 5)] {
        stored("empty", &known(pool.clone(), |_| 0), &Settings::default(), COLOURS, size);
    }
}

#[test]
fn five_hundred_environments_and_the_chosen_one_is_seen() {
    let known = crowd();
    let mut settings = Settings { by_environment: Sort::Memory, ..Settings::default() };
    press(&mut settings, &known, &[KeyCode::PageDown, KeyCode::PageDown, KeyCode::PageDown, KeyCode::Up]);
    let chosen = settings.chosen[1].clone().unwrap();
    for size in [SMALL, LARGE, (20, 5)] {
        let screen = stored("crowd", &known, &settings, COLOURS, size);
        assert!(size.0 < 80 || screen.contains(&format!(" {chosen} ")), "{chosen}:\n{screen}");
    }
    let buffer = drawn(&known, &settings, COLOURS, SMALL);
    let reversed = |y: u16| buffer[(0, y)].modifier.contains(Modifier::REVERSED);
    assert_eq!((0..24).filter(|y| reversed(*y)).count(), 1, "one row is marked");
}

#[test]
fn names_that_are_long_wide_or_hostile_stay_in_their_column() {
    for size in [SMALL, LARGE, (20, 5)] {
        let screen = stored("names", &odd_names(), &Settings::default(), COLOURS, size);
        assert!(screen.lines().all(|line| width(line) <= size.0.into()) && !screen.contains(['\u{1b}', '\u{202e}']), "{screen}");
    }
}

#[test]
fn a_kilnd_that_is_away_is_told_over_what_was_last_seen() {
    let mut known = usual();
    known.lost("nobody answers at /run/kiln/control.sock: kilnd has ended. Start it again".into());
    for size in [SMALL, LARGE] {
        let screen = stored("lost", &known, &Settings::default(), COLOURS, size);
        assert!(screen.starts_with(" kilnd is not reachable, trying again; last seen 15s ago"), "{screen}");
    }
}

#[test]
fn the_help_names_every_key() {
    let settings = Settings { help: true, ..Settings::default() };
    for size in [SMALL, LARGE] {
        let screen = stored("help", &usual(), &settings, COLOURS, size);
        for key in ["q,", "?", "Tab", "Enter", "Esc", "/", "s S", "r ", "p,", "+ -", "z ", "Ctrl-L", "Ctrl-Z", "any key"] {
            assert!(key == "?" || screen.to_lowercase().contains(&key.to_lowercase()), "{key}:\n{screen}");
        }
        assert!(screen.contains("Any key goes back."), "all of it fits");
    }
}

#[test]
fn who_is_inside_of_one_is_told_between_those_at_work_and_the_idle_ones() {
    let mut known = usual();
    known.last.pool.environments[1].state = "held".into();
    known.last.pool.environments.push(environment("hello", "1-3", "idle", 128, 36));
    let screen = stored("held", &known, &Settings::default(), COLOURS, SMALL);
    assert!(screen.contains("ENVIRONMENTS 9: 3 busy, 2 initialising, 1 held, 3 idle"), "{screen}");
}

#[test]
fn a_filter_is_typed_and_narrows_both_tables() {
    let known = usual();
    let mut settings = Settings::default();
    press(&mut settings, &known, &[KeyCode::Char('/'), KeyCode::Char('o'), KeyCode::Char('r')]);
    stored("filter", &known, &settings, COLOURS, SMALL);
    press(&mut settings, &known, &[KeyCode::Char('x'), KeyCode::Char('x'), KeyCode::Enter, KeyCode::Char('p')]);
    stored("filter-of-none", &known, &settings, COLOURS, SMALL);
}

#[test]
fn one_table_alone_has_all_the_room() {
    let known = crowd();
    let mut settings = Settings::default();
    press(&mut settings, &known, &[KeyCode::Tab, KeyCode::Char('z'), KeyCode::Char('s'), KeyCode::Char('r'), KeyCode::End]);
    stored("alone", &known, &settings, COLOURS, SMALL);
}

#[test]
fn a_kilnd_that_counts_no_functions_shows_what_it_has() {
    let mut known = usual();
    known.last.pool.functions = None;
    known.last.pool.environments.iter_mut().for_each(|environment| environment.cpu_ms = None);
    stored("uncounted", &known, &Settings::default(), COLOURS, SMALL);
}

#[test]
fn without_colours_there_are_none_and_without_unicode_only_ascii() {
    let terminal = Terminal { colour: false, plain: true };
    for known in [usual(), crowd(), odd_names()] {
        let buffer = drawn(&known, &Settings::default(), terminal, SMALL);
        let coloured = buffer.content.iter().filter(|cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset)).count();
        assert_eq!(coloured, 0);
        assert!(text(&buffer).is_ascii(), "{}", text(&buffer));
        let buffer = drawn(&known, &Settings::default(), COLOURS, SMALL);
        assert!(buffer.content.iter().any(|cell| cell.fg == Color::Red), "with colours there are some");
    }
    stored("ascii", &usual(), &Settings::default(), terminal, SMALL);
}

#[test]
fn no_size_is_too_small() {
    let (mut lost, help) = (usual(), Settings { help: true, ..Settings::default() });
    lost.lost("gone".into());
    for columns in (1..90).step_by(4) {
        for rows in (1..26).step_by(2) {
            for known in [&odd_names(), &lost] {
                drawn(known, &Settings::default(), COLOURS, (columns, rows));
            }
            drawn(&lost, &help, COLOURS, (columns, rows));
        }
    }
}

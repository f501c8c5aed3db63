//! `kiln top` and `kiln pool --watch` before a house that can go away and come back, on a terminal and without one.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::doors::{House, snapshot};
use crate::seat::Seat;
use crate::{ended, kiln};

const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// A house behind a path that stays the same when another one moves in.
struct Address {
    directory: tempfile::TempDir,
    house: Option<House>,
}

impl Address {
    fn new() -> Self {
        let mut address = Self { directory: tempfile::tempdir().unwrap(), house: None };
        address.moves_in();
        address
    }

    fn moves_in(&mut self) {
        let house = House::open();
        *house.fakes.snapshot.lock().unwrap() = snapshot();
        symlink(house.run_dir(), self.run_dir()).unwrap();
        self.house = Some(house);
    }

    fn moves_out(&mut self) {
        self.house = None;
        std::fs::remove_file(self.run_dir()).unwrap();
    }

    fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// The memory that `hello` uses.
    fn uses(&self, mib: u64) {
        let fakes = &self.house.as_ref().unwrap().fakes;
        fakes.snapshot.lock().unwrap().environments[0].used_mib = mib;
    }

    fn seat(&self, words: &[&str], size: (u16, u16), variables: &[(&str, &str)]) -> Seat {
        let run_dir = self.run_dir();
        Seat::new(&[&[KILN, "--run", run_dir.to_str().unwrap()], words].concat(), size, variables)
    }
}

#[test]
fn top_shows_the_pool_live_obeys_its_keys_and_follows_the_terminals_size() {
    let address = Address::new();
    let mut seat = address.seat(&["top", "--interval", "0.5"], (80, 24), &[]);
    let screen = seat.until_has("36/128");
    assert!(screen.contains("36 of 3200 MB (1%)") && screen.contains("q quit"), "{screen}");
    assert!(seat.is_raw());
    address.uses(77);
    seat.until_has("77/128");

    seat.resize((200, 50));
    seat.until_screen("it is drawn on all of the larger screen", |screen| {
        let lines: Vec<String> = screen.rows(0, 200).collect();
        lines[0].ends_with("every 0.5 s") && lines[0].chars().count() == 200 && lines[49].starts_with("q quit")
    });
    seat.resize((20, 5));
    seat.until("it is drawn on the small one", |screen| {
        let lines: Vec<&str> = screen.lines().collect();
        lines.len() == 5 && lines[0].starts_with("kiln top") && lines[0].ends_with("every 0.5 s") && lines[4].starts_with("hello")
    });
    seat.resize((80, 24));
    seat.until_has("q quit");

    seat.press("/nobody");
    seat.until_has("filter: nobody_");
    seat.press("\r");
    seat.until("nobody is left", |screen| screen.contains("0 of 1 with \"nobody\"") && !screen.contains("77/128"));
    seat.press("\x1b");
    seat.until_has("77/128");
    seat.press("?");
    seat.until_has("Any key goes back");
    seat.press("x");
    seat.until_has("77/128");
    seat.press("p");
    seat.until_has("PAUSED");
    seat.press("p");
    seat.until("it goes on", |screen| !screen.contains("PAUSED"));
    address.uses(99);
    seat.until_has("99/128");
    seat.press("q");
    seat.ended_with(0);
}

#[test]
fn top_waits_for_a_kilnd_that_went_away_and_goes_on_when_it_is_back() {
    let mut address = Address::new();
    let mut seat = address.seat(&["top", "--interval", "0.5"], (80, 24), &[]);
    seat.until_has("36/128");
    address.moves_out();
    let screen = seat.until_has("kilnd is not reachable, trying again");
    assert!(screen.contains("36/128"), "what was last seen stays: {screen}");
    address.moves_in();
    address.uses(55);
    seat.until("it goes on", |screen| screen.contains("55/128") && !screen.contains("not reachable"));
    seat.press("q");
    seat.ended_with(0);
}

#[test]
fn top_gives_the_terminal_back_however_it_ends() {
    let address = Address::new();
    type End<'a> = (&'a str, &'a dyn Fn(&mut Seat));
    let ends: [End; 5] = [
        ("q", &|seat| seat.press("q")),
        ("Ctrl-C", &|seat| seat.press("\x03")),
        ("SIGTERM", &|seat| seat.signal(Signal::SIGTERM)),
        ("SIGHUP", &|seat| seat.signal(Signal::SIGHUP)),
        ("SIGINT", &|seat| seat.signal(Signal::SIGINT)),
    ];
    for (name, end) in ends {
        let mut seat = address.seat(&["top"], (80, 24), &[]);
        seat.until_screen(name, |screen| {
            screen.alternate_screen() && screen.hide_cursor() && screen.contents().contains("36/128")
        });
        assert!(seat.is_raw(), "{name}");
        end(&mut seat);
        seat.ended_with(0);
    }
}

#[test]
fn top_without_colours_writes_none() {
    let address = Address::new();
    let has_colours = |screen: &vt100::Screen| {
        let cells = (0..24).flat_map(|row| (0..80).filter_map(move |column| screen.cell(row, column)));
        let mut colours = cells.map(|cell| (cell.fgcolor(), cell.bgcolor()));
        colours.any(|colours| colours != (vt100::Color::Default, vt100::Color::Default))
    };
    for (variable, coloured) in [(("NO_COLOR", "1"), false), (("TERM", "vt100"), false), (("TERM", "screen"), true)] {
        let seat = address.seat(&["top"], (80, 24), &[variable]);
        seat.until_screen("it is drawn", |screen| screen.contents().contains("q quit") && has_colours(screen) == coloured);
    }
}

#[test]
fn top_says_what_to_do_where_it_cannot_draw() {
    let address = Address::new();
    let (out, err) = ended(&kiln(&address.run_dir(), &["top"]), 2);
    assert_eq!(out, "");
    assert!(err.contains("needs a terminal") && err.contains("`kiln pool --json`"), "{err}");
    let seat = address.seat(&["top"], (80, 24), &[("TERM", "dumb")]);
    assert!(seat.ended_with(2).contains("TERM is \"dumb\""));
    let seat = address.seat(&["top", "--json"], (80, 24), &[]);
    assert!(seat.ended_with(2).contains("has no JSON"));
    let nowhere = address.directory.path().join("nowhere");
    let seat = Seat::new(&[KILN, "--run", nowhere.to_str().unwrap(), "top"], (200, 24), &[]);
    assert!(seat.ended_with(3).contains("Kiln is not running"), "in plain words, and not on a screen that goes away");
}

#[test]
fn a_watched_pool_is_drawn_in_place_on_a_terminal() {
    let mut address = Address::new();
    let mut seat = address.seat(&["pool", "--watch", "0.5"], (120, 24), &[]);
    seat.until_has("36/128 MB");
    address.uses(77);
    let screen = seat.until("the next is drawn over it", |screen| screen.contains("77/128") && !screen.contains("36/128"));
    assert_eq!(screen.matches("FUNCTION").count(), 1, "{screen}");
    address.moves_out();
    seat.until_has("kilnd is not reachable, trying again");
    address.moves_in();
    address.uses(55);
    seat.until_has("55/128");
    seat.press("\x03");
    seat.until_has("ended with 130");
}

#[test]
fn a_watched_pool_is_table_after_table_in_a_pipe_and_ends_with_its_reader() {
    let address = Address::new();
    let watch = |words: &[&str]| {
        let mut command = Command::new(KILN);
        command.args(["pool", "--watch", "0.5"]).args(words).env("KILN_RUN_DIR", address.run_dir());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = watch(&[]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    assert!(first[0].starts_with("FUNCTION ") && first[1].contains("36/128 MB") && first.len() == 3, "{first:?}");
    address.uses(77);
    assert!(lines.any(|line| line.contains("77/128 MB")), "and again");
    drop(lines);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""), "its reader had what it wanted");

    let mut child = watch(&["--json"]);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    for line in lines.take(3) {
        let pool: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(pool["environments"][0]["used_mib"], 77, "a snapshot on each line");
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let (_, err) = ended(&kiln(&address.run_dir(), &["pool", "--watch", "0.1"]), 2);
    assert!(err.contains("from 0.5 to 60 seconds"), "{err}");
}

//! `kiln top`: who runs, who waits and what they use, live on the whole terminal.
//!
//! Runs as whoever called it, asks the operators' door for the pool every so many seconds, and draws what it was told:
//!
//! ```text
//! looks (asks kilnd) ──▶ model (two looks: rates) ──┐
//! keys ──▶ settings ────────────────────────────────┴─▶ screen: a pure function of both and the size
//! ```
//!
//! A kilnd that goes away is waited for. The terminal is put back as it was however this ends: by a key, a signal, an error
//! or a panic.

mod columns;
mod model;
mod screen;
mod settings;
mod words;

use std::convert::Infallible;
use std::env;
use std::io::{self, IsTerminal, Stdout};
use std::panic;
use std::pin::pin;
use std::thread;
use std::time::Duration;

use crossterm::event::{self, Event};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use crossterm::{cursor, style};
use nix::sys::signal::{Signal, raise};
use ratatui::Terminal as Drawn;
use ratatui::backend::CrosstermBackend;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use self::model::{Known, Look};
use self::screen::Screen;
use self::settings::{Settings, Wish};
use self::words::Terminal;
use super::args::Top as Arguments;
use super::client::Client;
use super::failure::Failure;
use super::pool::{self, Pool};

/// kilnd measures for half a second at most; one that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn execute(client: &Client, run_dir: &str, arguments: Arguments, as_json: bool) -> Result<(), Failure> {
    let instead = "`kiln pool --json` prints the same once, `kiln pool --watch --json` again and again";
    if as_json {
        return Err(Failure::Usage(format!("kiln top has no JSON: {instead}")));
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("kiln top needs a terminal to draw on and to read keys from: {instead}")));
    }
    let variables = |name: &str| env::var(name).ok();
    let terminal = terminal(variables)?;
    let began = Instant::now();
    // What is wrong in the beginning is told in plain words, before anything is drawn.
    let first = Look { pool: pool::look(client).await?, at: began.elapsed() };

    let settings =
        Settings { every: arguments.interval, by_environment: arguments.sort, filter: arguments.filter, ..Settings::default() };
    let (tell, looks) = mpsc::channel(1);
    let (wish, wished) = watch::channel((settings.every, settings.paused));
    let keys = keys()?;
    let mut asking = pin!(ask(client, wished, tell));
    let shown = show(run_dir, terminal, began, Known::new(first), settings, keys, looks, wish);
    tokio::select! {
        never = &mut asking => match never {},
        shown = shown => shown,
    }
}

/// Asks for the pool every so often, as long as nobody has paused it.
async fn ask(
    client: &Client,
    mut wished: watch::Receiver<(Duration, bool)>,
    tell: mpsc::Sender<(Instant, Result<Pool, Failure>)>,
) -> Infallible {
    let mut last = Instant::now();
    loop {
        let (every, paused) = *wished.borrow_and_update();
        tokio::select! {
            () = sleep_until(last + every), if !paused => {}
            // Whoever shows it has gone: so will this.
            changed = wished.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            }
        }
        let asked = timeout(PATIENCE, pool::look(client)).await;
        let looked = asked.unwrap_or_else(|_| Err(Failure::Unreachable("It takes connections, and does not answer".into())));
        last = Instant::now();
        // Whoever shows it has gone, likewise.
        let _ = tell.send((last, looked)).await;
    }
}

/// Draws whenever something has changed, until somebody wants it to end.
#[allow(clippy::too_many_arguments, reason = "the two ends of three channels, and what they begin with")]
async fn show(
    run_dir: &str,
    terminal: Terminal,
    began: Instant,
    mut known: Known,
    mut settings: Settings,
    mut keys: mpsc::Receiver<Event>,
    mut looks: mpsc::Receiver<(Instant, Result<Pool, Failure>)>,
    wish: watch::Sender<(Duration, bool)>,
) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Failed(format!("the terminal cannot be used any more: {error}"));
    let handle = |kind| signal(kind).map_err(|error| Failure::Failed(format!("signals cannot be handled: {error}")));
    let mut ends = [handle(SignalKind::terminate())?, handle(SignalKind::hangup())?, handle(SignalKind::interrupt())?];
    let mut woken = handle(SignalKind::from_raw(libc::SIGCONT))?;
    // Only so that it says for how long kilnd has been away.
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);

    let mut place = Place::take().map_err(failed)?;
    loop {
        let now = began.elapsed();
        let screen = Screen { known: &known, settings: &settings, terminal, run_dir, now };
        place.0.draw(|frame| screen.draw(frame.buffer_mut())).map_err(failed)?;
        let [terminate, hangup, interrupt] = &mut ends;
        tokio::select! {
            event = keys.recv() => {
                let Some(event) = event else { return Err(failed(io::ErrorKind::UnexpectedEof.into())) };
                // A key that is held down is drawn once for all that has come.
                let mut next = Some(event);
                while let Some(event) = next {
                    match pressed(event, &mut settings, &known) {
                        Wish::Nothing => {}
                        Wish::Quit => return Ok(()),
                        Wish::Redraw => place.0.clear().map_err(failed)?,
                        Wish::Suspend => place.suspend().map_err(failed)?,
                    }
                    next = keys.try_recv().ok();
                }
                wish.send_if_modified(|wish| std::mem::replace(wish, (settings.every, settings.paused)) != *wish);
            }
            Some((at, looked)) = looks.recv() => match looked {
                Ok(pool) => known.saw(Look { pool, at: at - began }),
                Err(failure) => known.lost(failure.to_string()),
            },
            _ = seconds.tick(), if known.lost.is_some() => {}
            // Stopped and woken by others: the shell has drawn meanwhile.
            _ = woken.recv() => place.again().map_err(failed)?,
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

fn pressed(event: Event, settings: &mut Settings, known: &Known) -> Wish {
    match event {
        Event::Key(key) => settings.press(key, known),
        // The next drawing asks for the size by itself.
        _ => Wish::Nothing,
    }
}

/// Keys and changes of size, as they come. The thread ends with the process: nothing can wake it from its read.
fn keys() -> Result<mpsc::Receiver<Event>, Failure> {
    let (tell, keys) = mpsc::channel(64);
    let read = move || {
        while let Ok(event) = event::read() {
            if tell.blocking_send(event).is_err() {
                break;
            }
        }
    };
    let thread = thread::Builder::new().name("keys".into()).spawn(read);
    thread.map_err(|error| Failure::Failed(format!("a thread for the keys cannot be started: {error}")))?;
    Ok(keys)
}

/// The terminal, taken. Dropping it gives it back.
struct Place(Drawn<CrosstermBackend<Stdout>>);

impl Place {
    fn take() -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |why| {
            // First, or its words would be on the screen that goes away.
            give_back();
            before(why);
        }));
        let place = Self(Drawn::new(CrosstermBackend::new(io::stdout()))?);
        enter()?;
        Ok(place)
    }

    /// As after fg.
    fn again(&mut self) -> io::Result<()> {
        enter()?;
        self.0.clear()
    }

    fn suspend(&mut self) -> io::Result<()> {
        give_back();
        raise(Signal::SIGTSTP)?;
        self.again()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        give_back();
    }
}

fn enter() -> io::Result<()> {
    // A shell may have changed it, and what is on already would not be done again.
    disable_raw_mode()?;
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)
}

/// There is nobody to tell if it fails.
fn give_back() {
    let _ = execute!(io::stdout(), style::ResetColor, LeaveAlternateScreen, cursor::Show);
    let _ = disable_raw_mode();
}

/// What this terminal can show, by the variables that say so.
fn terminal(variable: impl Fn(&str) -> Option<String>) -> Result<Terminal, Failure> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let kind = set("TERM").unwrap_or_default();
    if kind.is_empty() || kind == "dumb" {
        return Err(Failure::Usage(format!(
            "kiln top needs a terminal that can move its cursor, and TERM is {kind:?}: set TERM, or use `kiln pool --watch`"
        )));
    }
    // As terminfo has them: no colours.
    let grey = kind.starts_with("vt") || ["-m", "-mono", "-nocolor"].iter().any(|end| kind.ends_with(end));
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| set(name)).unwrap_or_default().to_lowercase();
    let unicode = ["utf-8", "utf8"].iter().any(|name| locale.contains(name));
    Ok(Terminal { colour: set("NO_COLOR").is_none() && !grey, plain: !unicode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_say_what_the_terminal_can_show() {
        let of = |variables: &[(&str, &str)]| {
            terminal(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        let colours = Terminal { colour: true, plain: false };
        assert_eq!(of(&[("TERM", "xterm-256color"), ("LANG", "de_DE.UTF-8")]), Ok(colours));
        assert_eq!(of(&[("TERM", "xterm"), ("LANG", "C.utf8"), ("NO_COLOR", "")]), Ok(colours), "empty is not set");
        assert_eq!(of(&[("TERM", "xterm"), ("LANG", "C.utf8"), ("NO_COLOR", "1")]), Ok(Terminal { colour: false, plain: false }));
        assert_eq!(of(&[("TERM", "vt220"), ("LC_ALL", "C"), ("LANG", "C.UTF-8")]), Ok(Terminal { colour: false, plain: true }));
        assert_eq!(of(&[("TERM", "xterm-mono")]), Ok(Terminal { colour: false, plain: true }));
        for none in [&[("TERM", "dumb")][..], &[]] {
            let Err(Failure::Usage(text)) = of(none) else { panic!("{none:?}") };
            assert!(text.contains("TERM is") && text.contains("kiln pool --watch"), "{text}");
        }
    }
}

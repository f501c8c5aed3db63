//! Somebody at a terminal: a program on a pty, what its screen shows, and a keyboard.
//!
//! A shell is between, as for people: when the program has ended, it says with what, and the terminal is as it was left.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::eyes::{PATIENCE, eventually, processes, slower};

pub struct Seat {
    shell: Child,
    /// The keyboard and the screen's cable.
    terminal: File,
    shown: Arc<Shown>,
    reader: Option<JoinHandle<()>>,
}

struct Shown {
    /// Taken by the reader for each piece of output, and by whoever looks.
    screen: Mutex<vt100::Parser>,
    changed: Condvar,
}

impl Seat {
    /// `columns`, `rows`; `variables` besides a usual terminal's.
    pub fn new(program: &[&str], (columns, rows): (u16, u16), variables: &[(&str, &str)]) -> Self {
        let pty = openpty(None, None).expect("make a pty");
        let shown = Arc::new(Shown { screen: Mutex::new(vt100::Parser::new(rows, columns, 0)), changed: Condvar::new() });
        let terminal = File::from(pty.master);
        resize(&terminal, (columns, rows));
        let own = |slave: &OwnedFd| Stdio::from(slave.try_clone().expect("duplicate the terminal"));
        let mut command = Command::new("setsid");
        command.args(["--ctty", "sh", "-c", r#"trap : INT; "$@"; echo "ended with $?"; read _"#, "sh"]).args(program);
        command.stdin(own(&pty.slave)).stdout(own(&pty.slave)).stderr(own(&pty.slave));
        command.env("TERM", "xterm-256color").env("LANG", "C.UTF-8").env_remove("LC_ALL").env_remove("LC_CTYPE");
        command.env_remove("NO_COLOR").envs(variables.iter().copied());
        let shell = command.spawn().expect("run a shell on the pty");
        let (mut from, into) = (terminal.try_clone().expect("duplicate the terminal"), shown.clone());
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // EIO when the last one has left the terminal.
            while let Ok(length @ 1..) = from.read(&mut piece) {
                into.screen.lock().unwrap().process(&piece[..length]);
                into.changed.notify_all();
            }
        });
        Self { shell, terminal, shown, reader: Some(reader) }
    }

    /// Waits until the screen is as wanted, and returns its text.
    #[track_caller]
    pub fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.until_screen(what, |screen| wanted(&screen.contents()))
    }

    #[track_caller]
    pub fn until_screen(&self, what: &str, wanted: impl Fn(&vt100::Screen) -> bool) -> String {
        let patience = PATIENCE * slower();
        let end = Instant::now() + patience;
        let mut screen = self.screen();
        loop {
            if wanted(screen.screen()) {
                return screen.screen().contents();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {patience:?} in vain: {what}\n{}", screen.screen().contents());
            screen = self.shown.changed.wait_timeout(screen, left).unwrap().0;
        }
    }

    #[track_caller]
    pub fn until_has(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text))
    }

    pub fn press(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).expect("press keys");
    }

    /// As whoever pulls at a window's corner: the program is told by the kernel.
    pub fn resize(&self, (columns, rows): (u16, u16)) {
        self.screen().set_size(rows, columns);
        resize(&self.terminal, (columns, rows));
    }

    /// The program, as soon as the shell has started it.
    pub fn program(&self) -> u32 {
        let mut found = None;
        eventually("the shell has started the program", || {
            found = processes::processes().into_iter().find(|process| process.parent == self.shell.id()).map(|one| one.pid);
            found.is_some()
        });
        found.unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.program() as i32), signal).expect("signal the program");
    }

    /// Keys arrive one by one and are not shown: so programs that draw want it, and no shell.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("ask the terminal").local_flags;
        assert_eq!(modes.contains(LocalFlags::ICANON), modes.contains(LocalFlags::ECHO), "{modes:?}");
        !modes.contains(LocalFlags::ICANON)
    }

    /// Waits for its end, and that it has left the terminal as it was.
    #[track_caller]
    pub fn ended_with(&self, code: i32) -> String {
        let text = self.until_has("ended with ");
        assert!(text.contains(&format!("ended with {code}")), "{text}");
        assert!(!self.is_raw(), "the terminal's modes are as they were");
        let screen = self.screen();
        let screen = screen.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor(), "and so are its screen and its cursor");
        text
    }

    fn screen(&self) -> MutexGuard<'_, vt100::Parser> {
        self.shown.screen.lock().unwrap()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // The hang-up that ends the session's leader reaches the others on its terminal, too.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn resize(terminal: &File, (columns, rows): (u16, u16)) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).expect("resize the terminal");
}

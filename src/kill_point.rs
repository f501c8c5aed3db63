//! Named places where a test can kill a process of ours (feature `kill-points`, never in a release build).
//!
//! `KILN_KILL_POINT=name@process` chooses one place and one victim. The process that reaches the place connects to
//! the Unix socket `KILN_KILL_SOCKET`, writes the place's name and its own pid, and waits for one byte: the test kills
//! the victim (which may be the one that waits) and then answers. Only the first to arrive is served; once the
//! socket is gone, everybody passes.

/// A place where a test may kill. Without the feature it is nothing at all.
#[macro_export]
macro_rules! kill_point {
    ($name:literal) => {
        #[cfg(feature = "kill-points")]
        $crate::kill_point::reached($name);
    };
}

#[cfg(feature = "kill-points")]
pub fn reached(name: &str) {
    Carried::connect(name).reached();
}

/// For a place behind which (or at which) the socket's path is gone: a container's child connects while it still
/// sees the host's files, and carries the connection to the place.
#[derive(Debug)]
pub struct Carried {
    #[cfg(feature = "kill-points")]
    test: Option<(std::os::unix::net::UnixStream, String)>,
}

#[cfg(not(feature = "kill-points"))]
impl Carried {
    pub fn connect(_: &str) -> Self {
        Self {}
    }

    pub fn reached(self) {}
}

#[cfg(feature = "kill-points")]
impl Carried {
    pub fn connect(name: &str) -> Self {
        let connect = || {
            let chosen = std::env::var("KILN_KILL_POINT").ok()?;
            let test = std::env::var_os("KILN_KILL_SOCKET").filter(|_| chosen.split('@').next() == Some(name))?;
            // The pid as the host sees it, whatever namespace we are in.
            let pid = std::fs::read_link("/proc/self").ok()?;
            let line = format!("{name} {}\n", pid.display());
            Some((std::os::unix::net::UnixStream::connect(test).ok()?, line))
        };
        Self { test: connect() }
    }

    pub fn reached(self) {
        use std::io::{Read, Write};

        if let Some((mut test, line)) = self.test {
            let _ = test.write_all(line.as_bytes());
            let _ = test.read(&mut [0]);
        }
    }
}

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
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    let chosen = std::env::var("KILN_KILL_POINT").unwrap_or_default();
    if chosen.split('@').next() != Some(name) {
        return;
    }
    let Some(mut test) = std::env::var_os("KILN_KILL_SOCKET").and_then(|path| UnixStream::connect(path).ok()) else {
        return;
    };
    let _ = writeln!(test, "{name} {}", std::process::id());
    let _ = test.read(&mut [0]);
}

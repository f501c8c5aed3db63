//! The probe: our own function, and our eyes inside a container.
//!
//! Runs as `bootstrap` of a `provided.al2023` function, where events choose what it does (`behave`), or as a plain
//! program: `probe tell` (everything it sees, as one JSON object) and `probe syscalls` (every system call tried). It trusts
//! nothing of Kiln: only libc, the standard library and JSON, no HTTP library, so that it can misbehave exactly.
//!
//! ```text
//! probe.rs      which of the three, and how init goes (PROBE_INIT)
//! client.rs     Runtime API over one TCP connection, kept alive
//! behave.rs     one event → one behaviour → its answer; heavy.rs: those that take memory, processes, time
//! marked.rs     who serves this invocation, and what it finds of those before it
//! hostile.rs    HTTP as no client should speak it
//! tell.rs       ids, capabilities, namespaces, mounts, descriptors …; places.rs: what can be written
//! syscalls.rs   every number of the three entries
//! ```
//!
//! PROBE_INIT: `ok`, `exit:N`, `signal:N`, `hang`, `error` (posts init/error, exits 1), `slow:MS`, `spin:MS` (the
//! iterations are in `global`), `once-fail` (fails while /tmp/probe-started is not there, which is always in a new container).

mod behave;
mod client;
mod heavy;
mod hostile;
mod marked;
mod places;
mod syscalls;
mod tell;

use std::process::exit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{env, fs, thread};

use client::RuntimeApi;

/// Goes up about once a millisecond as long as the container is not frozen.
pub static TICKS: AtomicU64 = AtomicU64::new(0);

fn main() {
    match env::args().nth(1).as_deref() {
        Some("tell") => println!("{}", tell::everything()),
        Some("syscalls") => println!("{}", syscalls::every_number()),
        Some(other) => {
            eprintln!("probe: {other:?} is neither \"tell\" nor \"syscalls\"; without an argument it is a function's bootstrap");
            exit(2);
        }
        None => be_a_function(),
    }
}

fn be_a_function() {
    let Ok(address) = env::var("AWS_LAMBDA_RUNTIME_API") else {
        eprintln!("probe: AWS_LAMBDA_RUNTIME_API is not set");
        exit(2);
    };
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_millis(1));
            TICKS.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut api = RuntimeApi::new(address);
    let spun = init(&mut api);
    let mut function = behave::Function::new(spun);
    loop {
        match api.next() {
            Ok(invocation) => function.invoke(&mut api, &invocation),
            Err(error) => {
                eprintln!("probe: next: {error}");
                exit(3);
            }
        }
    }
}

/// The init phase, as PROBE_INIT wants it. Returns the iterations of `spin`.
fn init(api: &mut RuntimeApi) -> u64 {
    let wanted = env::var("PROBE_INIT").unwrap_or_default();
    let (what, number) = wanted.split_once(':').unwrap_or((&wanted, "0"));
    let number: u64 = number.parse().unwrap_or(0);
    match what {
        "exit" => exit(number as i32),
        "signal" => heavy::die_by(number as i32),
        "hang" => behave::hang(),
        "slow" => thread::sleep(Duration::from_millis(number)),
        "spin" => return heavy::spin(Duration::from_millis(number)),
        "error" => {
            eprintln!("probe: fails its init, as it was told");
            let status = api.init_error("Probe.Init", "the probe was told to fail its init");
            eprintln!("probe: init/error was answered {status:?}");
            exit(1);
        }
        "once-fail" if fs::File::create_new("/tmp/probe-started").is_ok() => exit(1),
        _ => {}
    }
    0
}

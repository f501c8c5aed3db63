//! The filter in the real kernel: the probe tries every number under it, and real runtimes do real work under it.
//!
//! Needs no root. As root the probe runs as `nobody`, since a capability would change what calls answer.

#[path = "probe/built.rs"]
mod built;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use built::built_probe;
use kiln::launcher::seccomp::table::{self, Arg, CONDITIONS, PAST_EVERY_FILTER, Test};
use kiln::launcher::seccomp::{Instruction, filter};
use serde_json::Value;
use tempfile::TempDir;

/// `nobody` on every distribution.
const NOBODY: u32 = 65_534;

#[test]
fn every_number_answers_as_the_table_says() {
    let (without, with) = syscalls();
    let mut wrong = Vec::new();
    let mut lacking = Vec::new();
    for number in 0..=470 {
        let call = table::allowed().find(|call| call.number == number);
        let conditional = CONDITIONS.iter().any(|condition| condition.call.number == number && !condition.any.is_empty());
        let key = number.to_string();
        let (free, filtered) = (&without["numbers"][&key], &with["numbers"][&key]);
        if let Some(call) = call.filter(|_| free == "ENOSYS") {
            lacking.push(call.name());
        }
        // An allowed call answers exactly as it does without a filter; -1 as an argument is tried below.
        let right = match call {
            Some(_) => filtered == free,
            None if PAST_EVERY_FILTER.iter().any(|call| call.number == number) => filtered == "ENOSYS" || filtered == free,
            None => conditional || filtered == "ENOSYS",
        };
        if !right {
            let name = call.map_or("not in the table", |call| call.name());
            wrong.push(format!("{number} ({name}): {filtered} under the filter, {free} without"));
        }
    }
    println!("the running kernel lacks: {lacking:?}; {} ms under the filter", with["took_ms"]);
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The baseline is one: without a filter much more than the table's calls answers.
    let open = (0..=470).filter(|number| without["numbers"][number.to_string()] != "ENOSYS").count();
    assert!(open > table::allowed().count() + 20, "{open} calls without a filter");
}

#[test]
fn the_32_bit_and_the_x32_entry_are_shut() {
    let (without, with) = syscalls();
    if without["i386"]["getpid"] != "ok" {
        println!("SKIP: this kernel has no 32-bit entry (getpid by int 0x80: {})", without["i386"]["getpid"]);
    } else {
        for (call, answer) in with["i386"].as_object().expect("an object") {
            assert_eq!(answer, "ENOSYS", "32-bit {call}");
        }
    }
    let x32 = with["x32"].as_object().expect("an object");
    assert!(x32.len() > 40);
    for (number, answer) in x32 {
        assert_eq!(answer, "ENOSYS", "x32 {number}");
    }
}

#[test]
fn arguments_decide_as_the_table_says() {
    let (without, with) = syscalls();
    let cases = |told: &Value| told["arguments"].as_array().cloned().expect("a list");
    let mut refused = 0;
    for (free, filtered) in cases(without).iter().zip(cases(with)) {
        let case = &free["case"];
        let condition = CONDITIONS.iter().find(|condition| free["number"] == condition.call.number).expect("a conditional call");
        let argument = |i: u32| free["arguments"][i as usize].as_u64().expect("an argument") as u32;
        let holds = |Test(i, expected): &Test| match expected {
            Arg::OneOf(values) => values.contains(&argument(*i)),
            Arg::NoneOf(values) => !values.contains(&argument(*i)),
            Arg::WithoutBits(mask) => argument(*i) & mask == 0,
        };
        if condition.any.iter().any(|tests| tests.iter().all(holds)) {
            assert_eq!(filtered["result"], free["result"], "{case} is allowed");
        } else {
            assert_eq!(filtered["result"], errno_name(condition.otherwise), "{case} is refused");
            refused += usize::from(filtered["result"] != free["result"]);
        }
    }
    assert!(refused >= 8, "the kernel itself refuses all but {refused} cases, so that they prove nothing");
}

#[test]
fn the_filter_is_on_and_alone() {
    let told = probe("tell", Filter::On);
    assert_eq!((&told["seccomp"], &told["seccomp_filters"], &told["no_new_privs"]), (&2.into(), &1.into(), &1.into()));
}

/// Each does what functions do: threads, a child process, a server and a client on loopback, timers, files.
#[test]
fn real_runtimes_do_real_work_under_the_filter() {
    let directory = TempDir::new().expect("a directory");
    let mut skipped = Vec::new();
    // Java's is a source file: its compiler runs under the filter too.
    let programs = [
        ("bash", "work.bash"),
        ("node", "work.js"),
        ("python3", "work.py"),
        ("python2", "work.py"),
        ("ruby", "work.rb"),
        ("java", "Work.java"),
    ];
    for (interpreter, program) in programs {
        let place = directory.path().join(interpreter);
        fs::create_dir(&place).expect("a directory");
        let mut command = Command::new("timeout");
        command.arg("120").arg(interpreter).arg(source(program)).current_dir(place);
        works(interpreter, command, &mut skipped);
    }
    let built = directory.path().join("work-go");
    match Command::new("go").args(["build", "-o"]).arg(&built).arg(source("work.go")).output() {
        Ok(output) if output.status.success() => works("go", Command::new(&built), &mut skipped),
        _ => skipped.push("go"),
    }
    if !skipped.is_empty() {
        println!("SKIP: not on this machine, so not tried under the filter: {}", skipped.join(", "));
    }
    for everywhere in ["bash", "python3"] {
        assert!(!skipped.contains(&everywhere), "scripts/check and scripts/test need {everywhere} themselves, so it is there");
    }
}

fn source(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seccomp").join(program)
}

#[track_caller]
fn works(name: &'static str, mut command: Command, skipped: &mut Vec<&'static str>) {
    let version = if name == "java" { "-version" } else { "--version" };
    let there = name == "go" || Command::new(name).arg(version).output().is_ok_and(|output| output.status.success());
    if !there {
        skipped.push(name);
        return;
    }
    let output = run(&mut command, Filter::On);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("work done\n"), "{name}: {}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    println!("{name} works under the filter");
}

#[derive(Clone, Copy, PartialEq)]
enum Filter {
    On,
    Off,
}

/// Everything tried once without and once with the filter, for all tests.
fn syscalls() -> &'static (Value, Value) {
    static TRIED: OnceLock<(Value, Value)> = OnceLock::new();
    TRIED.get_or_init(|| (probe("syscalls", Filter::Off), probe("syscalls", Filter::On)))
}

#[track_caller]
fn probe(what: &str, filter: Filter) -> Value {
    // By descriptor: `nobody` need not get through the directories, and nothing is copied (a copy that another thread's
    // child still holds open for writing is ETXTBSY).
    let program = File::open(built_probe()).expect("open the probe");
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg(what);
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = run(&mut command, filter);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Runs with no_new_privs, and with the filter or without, so that the two differ in nothing else.
fn run(command: &mut Command, wanted: Filter) -> Output {
    let program: Vec<libc::sock_filter> =
        filter().into_iter().map(|Instruction { code, jt, jf, k }| libc::sock_filter { code, jt, jf, k }).collect();
    // SAFETY: between fork and exec, two system calls and no allocation; the program was made before the fork.
    unsafe {
        command.pre_exec(move || {
            let all = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
            let done = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && (wanted == Filter::Off || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &all) == 0);
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
    command.stdin(Stdio::null()).output().expect("start")
}

fn errno_name(errno: i32) -> &'static str {
    let names = BTreeMap::from([
        (libc::EPERM, "EPERM"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
    ]);
    names[&errno]
}

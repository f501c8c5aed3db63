//! People on duty who look at a container, and into it: what they are told, against what the host itself says; what they may do
//! inside; and that nothing waits for them and nothing of them stays.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::host::{self, Instance, code, kiln, snapshot};

/// The only environment that there is, once it is in this state.
#[track_caller]
fn the_container(instance: &Instance, state: &str) -> String {
    let mut found = String::new();
    host::eventually("it is there", || {
        let pool = instance.pool();
        let all = pool["environments"].as_array().expect("a list");
        assert!(all.len() <= 1, "{pool}");
        let seen = all.first().filter(|one| one["state"] == state).and_then(|one| one["container"].as_str());
        found = seen.unwrap_or_default().to_owned();
        !found.is_empty()
    });
    found
}

#[track_caller]
fn inspect(instance: &Instance, container: &str) -> Value {
    let (code, out, said) = kiln(instance, &["container", "inspect", container, "--json"]);
    assert_eq!(code, 0, "{said}");
    serde_json::from_str(&out).expect("JSON")
}

/// `kiln container exec`, which goes on.
struct Inside {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Inside {
    /// Runs this in a shell there, which first says that it does.
    #[track_caller]
    fn enter(instance: &Instance, container: &str, script: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("--run").arg(instance.run_dir()).args(["container", "exec", container, "--", "sh", "-c"]);
        command.arg(format!("echo inside; {script}")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run kiln");
        let mut out = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        out.read_line(&mut line).expect("read its output");
        let mut inside = Self { child, out };
        if line != "inside\n" {
            panic!("not inside: {line} {:?}", inside.end());
        }
        inside
    }

    /// Its exit code, and what it has said on stdout and stderr.
    fn end(&mut self) -> (Option<i32>, String, String) {
        drop(self.child.stdin.take());
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).expect("read its output");
        self.child.stderr.take().expect("its errors").read_to_string(&mut err).expect("read its errors");
        (self.child.wait().expect("wait for kiln").code(), out, err)
    }

    fn kill(mut self) {
        self.child.kill().expect("kill kiln");
        self.child.wait().expect("wait for kiln");
    }
}

/// Where the host's /proc says that the process is, in each hierarchy that Kiln uses.
fn groups(pid: u64) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    let line = |line: &str| {
        let (names, path) = line.split_once(':')?.1.split_once(':')?;
        Some((if names.is_empty() { "unified" } else { names }.to_owned(), path.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// The container's directories, wherever the hierarchies are mounted.
fn directories(instance: &Instance, container: &str) -> Vec<PathBuf> {
    let name = format!("kiln-{}-{container}", instance.name);
    snapshot::cgroups(&name).into_iter().map(PathBuf::from).filter(|group| group.ends_with(&name)).collect()
}

fn file(directories: &[PathBuf], names: &[&str]) -> String {
    let found = directories.iter().flat_map(|directory| names.iter().map(move |name| directory.join(name)));
    found.filter_map(|path| fs::read_to_string(path).ok()).next().unwrap_or_else(|| panic!("none of {names:?}")).trim().to_owned()
}

/// What is told of a container is what the host says of it.
#[track_caller]
fn compare(instance: &Instance, container: &str, told: &Value) {
    let (init, runtime) = (told["init_pid"].as_u64().expect("a pid"), told["runtime_pid"].as_u64().expect("a pid"));
    assert_eq!(instance.processes("init"), [init as u32]);
    let process = snapshot::processes().into_iter().find(|one| u64::from(one.pid) == runtime).expect("the runtime lives");
    assert_eq!((u64::from(process.parent), process.comm.as_str()), (init, "bootstrap"));
    let namespaces = told["namespaces"].as_object().expect("namespaces");
    assert_eq!(namespaces.len(), 7, "{namespaces:?}");
    for (kind, inode) in namespaces {
        for pid in [init, runtime] {
            let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
            assert_eq!(link.display().to_string(), format!("{kind}:[{inode}]"));
        }
    }
    let ids = told["ids"].as_array().expect("ids");
    assert!(ids.iter().any(|id| id["uid"] == 993 && id["gid"] == 990 && id["host_id"] == process.uid), "{ids:?} {}", process.uid);
    let host = groups(runtime);
    let cgroups = told["cgroups"].as_array().expect("groups");
    for group in cgroups {
        let (hierarchy, path) = (group["hierarchy"].as_str().unwrap(), group["path"].as_str().unwrap());
        assert!(host.contains(&(hierarchy.to_owned(), path.to_owned())), "{group}: {host:?}");
    }
    assert!(cgroups.iter().any(|group| group["hierarchy"] == "unified"));
    let directories = directories(instance, container);
    let number = |names: &[&str]| file(&directories, names).split_whitespace().next().unwrap().parse::<u64>().expect("a number");
    assert_eq!(told["memory"]["kernel_limit_bytes"], number(&["memory.max", "memory.limit_in_bytes"]));
    assert_eq!(told["tasks"]["limit"], number(&["pids.max"]));
    assert_eq!(told["tasks"]["now"], number(&["pids.current"]));
    assert_eq!(told["cpu"]["quota_us"], number(&["cpu.max", "cpu.cfs_quota_us"]));
    let open = fs::read_dir(format!("/proc/{runtime}/fd")).expect("its descriptors").count() as u64;
    assert!(told["open_files"]["most"].as_u64() >= Some(open) && told["open_files"]["limit"] == 1024, "{open}: {told}");
    let mountinfo = fs::read_to_string(format!("/proc/{runtime}/mountinfo")).expect("its mounts");
    let mounts: Vec<&str> = told["mounts"].as_array().unwrap().iter().map(|mount| mount["at"].as_str().unwrap()).collect();
    let mut points: Vec<&str> = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    points.sort_unstable();
    let mut sorted = mounts.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, points);
}

#[test]
fn what_is_told_of_an_idle_container_and_of_a_busy_one_is_what_the_host_says_and_nobody_is_woken() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 300, "MemorySize": 256 }));
    instance.call("f", &json!({ "do": "write", "path": "/tmp/left", "text": "x" }));
    let container = the_container(&instance, "idle");
    let told = inspect(&instance, &container);
    compare(&instance, &container, &told);
    assert_eq!((&told["state"], &told["frozen"], &told["invocations"]), (&json!("idle"), &json!(true), &json!(1)));
    assert_eq!(
        (&told["function"], &told["runtime"], &told["handler"]),
        (&json!("f"), &json!("provided.al2023"), &json!("bootstrap"))
    );
    assert_eq!((&told["why_cold"]["why"], &told["memory"]["limit_mib"]), (&json!("first"), &json!(256)));
    assert!(told["tmp"]["used_bytes"].as_u64() > Some(0) && told["tmp"]["size_bytes"] == 512 << 20, "{}", told["tmp"]);
    let life: Vec<&str> = told["timeline"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(life, ["starting", "ready", "invoked", "frozen", "ended"]);
    let frozen = || file(&directories(&instance, &container), &["cgroup.events"]);
    assert!(frozen().contains("frozen 1"), "{}", frozen());

    // As an OCI configuration: well formed, and the same container.
    let (exit, out, said) = kiln(&instance, &["container", "inspect", &container, "--oci"]);
    assert_eq!(exit, 0, "{said}");
    let spec: oci_spec::runtime::Spec = serde_json::from_str(&out).expect("a configuration");
    let linux = spec.linux().as_ref().expect("of Linux");
    let unified = told["cgroups"].as_array().unwrap().iter().find(|group| group["hierarchy"] == "unified").unwrap();
    assert_eq!(linux.cgroups_path().as_ref().unwrap().to_str(), unified["path"].as_str());
    let resources = linux.resources().as_ref().unwrap();
    assert_eq!(json!(resources.memory().as_ref().unwrap().limit()), told["memory"]["kernel_limit_bytes"]);
    assert_eq!(json!(resources.cpu().as_ref().unwrap().quota()), told["cpu"]["quota_us"], "as it is since its init is over");
    let outside: Vec<_> = linux.uid_mappings().as_ref().unwrap().iter().map(|id| json!(id.host_id())).collect();
    assert_eq!(json!(outside), json!(told["ids"].as_array().unwrap().iter().map(|id| &id["host_id"]).collect::<Vec<_>>()));
    assert!(frozen().contains("frozen 1"), "looking has woken it: {}", frozen());
    let (_, page, _) = kiln(&instance, &["container", "inspect", &container]);
    assert!(page.contains("idle for ") && page.contains(", frozen\n") && page.contains("invoked ×1, then frozen"), "{page}");

    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("f", &json!({ "sleep": 200_000 })));
        let container = the_container(&instance, "busy");
        let told = inspect(&instance, &container);
        compare(&instance, &container, &told);
        assert_eq!((&told["state"], &told["frozen"], &told["invocations"]), (&json!("busy"), &json!(false), &json!(2)));
        assert_eq!(kiln(&instance, &["container", "kill", &container]).0, 0);
        running.join().expect("the caller's thread");
        let (exit, _, said) = kiln(&instance, &["container", "inspect", &container]);
        assert!(exit == 4 && said.contains("`kiln container list`"), "{said}");
    });
}

#[test]
fn who_enters_sees_what_the_function_sees_and_the_container_is_nobody_elses() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60, "Environment": { "Variables": { "MINE": "yes" } } }));
    let first =
        instance.call("f", &json!({ "steps": [{ "do": "write", "path": "/tmp/left", "text": "here" }, { "do": "tell" }] }));
    let container = the_container(&instance, "idle");
    let script = "id -u; id -g; cat /tmp/left; echo; cat /proc/sys/kernel/hostname; pwd; echo $MINE $AWS_LAMBDA_FUNCTION_NAME; \
                  exec cat /proc/self/status /proc/[0-9]*/comm -";
    let mut inside = Inside::enter(&instance, &container, script);
    assert_eq!(instance.pool()["environments"][0]["state"], "held");
    assert_eq!(inspect(&instance, &container)["state"], "held");
    let second = instance.call("f", &json!({ "do": "global" }));
    assert_ne!(first[1]["start"], second["start"]);
    let other = kiln(&instance, &["container", "exec", &container, "--", "sh"]);
    assert!(other.0 == 1 && other.2.contains("somebody is in it already"), "{}", other.2);
    inside.child.stdin.as_mut().unwrap().write_all(b"typed\n").expect("type");
    let (exit, out, err) = inside.end();
    assert_eq!((exit, err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = out.lines().collect();
    let hostname = first[1]["hostname"].as_str().unwrap();
    assert_eq!(lines[..6], ["993", "990", "here", hostname, "/var/task", "yes f"]);
    for wanted in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(lines.contains(&wanted), "{wanted}: {lines:#?}");
    }
    // Both kiln-inits, the function, and what the shell has become: no process of the host's.
    let mut processes: Vec<&str> = lines.iter().copied().filter(|line| !line.contains(':')).skip(6).collect();
    assert_eq!(processes.pop(), Some("typed"));
    processes.sort_unstable();
    assert_eq!(processes, ["bootstrap", "cat", "kiln-init", "kiln-init"]);

    host::eventually("it has ended", || directories(&instance, &container).is_empty());
    assert_eq!(instance.pool()["retired"]["entered"], 1);
    let log = instance.log();
    let audit =
        format!("audit: a container was entered by hand uid=0 container=\"{container}\" function=f root=false beside=false");
    assert!(log.contains(&audit) && log.contains("was left uid=0"), "{log}");
    let (_, own, _) = kiln(&instance, &["logs", "f"]);
    assert!(own.contains(&format!("KILN: container {container} was entered by uid 0 (kiln container exec)")), "{own}");
}

/// Calls that no function has, each by its number, and what came of it.
const TRIES: &str = "\
import ctypes, fcntl
call = ctypes.CDLL(None, use_errno=True).syscall
tries = dict(mount=165, umount2=166, pivot_root=155, reboot=169, ptrace=101, setns=308, unshare=272, bpf=321, init_module=175,
             pidfd_getfd=438, process_vm_writev=311, open_by_handle_at=304, keyctl=250, sethostname=170)
print(' '.join(f'{name}={call(number, 0, 0, 0, 0, 0) and ctypes.get_errno()}' for name, number in tries.items()))
def tried(what):
    try:
        what()
        return 'done'
    except OSError as error:
        return error.errno
print(tried(lambda: open('/proc/1/mem', 'wb')), tried(lambda: open('/etc/new', 'w')), tried(lambda: open('/proc/sys/kernel/core_pattern', 'w')),
      tried(lambda: fcntl.fcntl(open('/var/task/m.py'), fcntl.F_SETLEASE, fcntl.F_RDLCK)))
";

fn python(instance: &Instance, memory: u32) -> String {
    let zip = code::zip(&[("m.py", 0o644, b"def handler(event, context):\n    return 1\n")]);
    instance.create("p", "python3.13", "m.handler", &zip, json!({ "Timeout": 60, "MemorySize": memory }));
    instance.call("p", &json!({}));
    the_container(instance, "idle")
}

#[test]
fn who_enters_can_do_nothing_that_the_function_cannot_as_root_either() {
    if !host::ready() || !host::has(host::runtimes_dir().join("python3.13.toml").exists(), "the runtime python3.13") {
        return;
    }
    let instance = Instance::start();
    let container = python(&instance, 512);
    let (exit, out, err) = kiln(&instance, &["container", "exec", &container, "--", "python3", "-c", TRIES]);
    assert_eq!((exit, err.as_str()), (0, ""));
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].split(' ').all(|tried| tried.ends_with("=38")), "a call is there: {}", lines[0]);
    refused(lines[1]);

    instance.call("p", &json!({}));
    let container = the_container(&instance, "idle");
    let (exit, out, err) = kiln(&instance, &["container", "exec", &container, "--root", "--", "python3", "-c", TRIES]);
    assert_eq!((exit, err.as_str()), (0, ""));
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].split(' ').all(|tried| tried.ends_with("=38")), "a call is there: {}", lines[0]);
    refused(lines[1]);
}

/// EACCES or EROFS, whichever comes first.
#[track_caller]
fn refused(tries: &str) {
    assert!(tries.split(' ').count() == 4 && tries.split(' ').all(|tried| ["13", "30"].contains(&tried)), "{tries}");
}

#[test]
fn a_program_that_cannot_be_started_costs_an_idle_container_nothing() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let first = instance.call("f", &json!({ "steps": [{ "do": "write", "path": "/tmp/x", "text": "x" }, { "do": "global" }] }));
    let container = the_container(&instance, "idle");
    for (program, code) in [("no-such-program", 127), ("/no/such/program", 127), ("/tmp/x", 126)] {
        let (exit, out, said) = kiln(&instance, &["container", "exec", &container, "--", program]);
        assert_eq!((exit, out.as_str()), (code, ""), "{said}");
        assert!(said.contains(program), "{said}");
        assert_eq!(the_container(&instance, "idle"), container);
        let groups = directories(&instance, &container);
        host::eventually("it is frozen", || file(&groups, &["cgroup.events"]).contains("frozen 1"));
    }
    let second = instance.call("f", &json!({ "do": "global" }));
    assert_eq!(first[1]["start"], second["start"], "the same process");
    assert_eq!(instance.pool()["retired"]["entered"].as_u64().unwrap_or(0), 0);
    // And one that could be ends it.
    assert_eq!(kiln(&instance, &["container", "exec", &the_container(&instance, "idle"), "--", "true"]).0, 0);
    host::eventually("it has ended", || instance.pool()["retired"]["entered"] == 1);
}

/// Its author would choose what runs as root.
#[test]
fn root_enters_with_no_variable_of_the_functions() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Environment": { "Variables": { "MINE": "yes", "PATH": "/tmp:/bin:/usr/bin" } } }));
    instance.call("f", &json!({ "do": "echo" }));
    let container = the_container(&instance, "idle");
    let (exit, out, err) =
        kiln(&instance, &["container", "exec", &container, "--root", "--", "sh", "-c", "echo \"$MINE $LD_LIBRARY_PATH $PATH\""]);
    assert_eq!((exit, out.as_str(), err.as_str()), (0, "  /var/lang/bin:/usr/local/bin:/usr/bin:/bin\n", ""));
}

#[test]
fn who_enters_shares_the_functions_memory_and_no_more() {
    if !host::ready() || !host::has(host::runtimes_dir().join("python3.13.toml").exists(), "the runtime python3.13") {
        return;
    }
    let instance = Instance::start();
    let container = python(&instance, 128);
    let script = "import time; held = b'x' * (300 << 20); time.sleep(1000)";
    let (exit, _, err) = kiln(&instance, &["container", "exec", &container, "--", "python3", "-c", script]);
    let said = format!(
        "kiln: container {container} has ended, and with it what ran in it: more memory was used than the function may\n"
    );
    assert_eq!((exit, err), (1, said));
    host::eventually("it is gone", || directories(&instance, &container).is_empty());
}

#[test]
fn nothing_is_left_inside_when_kiln_is_killed() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 300 }));
    instance.call("f", &json!({ "do": "echo" }));
    let container = the_container(&instance, "idle");
    let uid =
        inspect(&instance, &container)["ids"].as_array().unwrap().iter().find(|id| id["uid"] == 993).unwrap()["host_id"].clone();
    let own = || snapshot::processes().into_iter().filter(|one| json!(one.uid) == uid).count();
    // What it leaves running has nothing to do with any terminal or pipe.
    let inside = Inside::enter(&instance, &container, "(sleep 1000 </dev/null >/dev/null 2>&1 &); exec sleep 1000");
    host::eventually("both run", || {
        snapshot::processes().iter().filter(|one| json!(one.uid) == uid && one.comm == "sleep").count() == 2
    });
    inside.kill();
    host::eventually("all is gone", || own() == 0 && directories(&instance, &container).is_empty());
    assert_eq!(instance.pool()["environments"], json!([]));
    assert!(instance.log().contains("its reader went away"), "{}", instance.log());

    // Beside an invocation, only what was brought in goes.
    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("f", &json!({ "until": "/tmp/go" })));
        let container = the_container(&instance, "busy");
        let uid =
            inspect(&instance, &container)["ids"].as_array().unwrap().iter().find(|id| id["uid"] == 993).unwrap()["host_id"]
                .clone();
        let sleeping = || snapshot::processes().iter().filter(|one| json!(one.uid) == uid && one.comm == "sleep").count();
        let inside = Inside::enter(&instance, &container, "exec sleep 1000");
        host::eventually("it runs", || sleeping() == 1);
        inside.kill();
        host::eventually("it is gone", || sleeping() == 0);
        assert_eq!(instance.busy(), 1, "the invocation goes on");
        let (exit, _, said) = kiln(&instance, &["container", "exec", &container, "--", "sh", "-c", ": > /tmp/go"]);
        assert!(exit == 0 || exit == 1, "{said}");
        let answer = running.join().expect("the caller's thread");
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, None), "{}", answer.text());
        host::eventually("it is not used again", || directories(&instance, &container).is_empty());
    });
}

#[test]
fn who_entered_beside_an_invocation_goes_when_it_ends_and_says_so() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 300 }));
    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("f", &json!({ "until": "/tmp/go" })));
        let container = the_container(&instance, "busy");
        let mut inside = Inside::enter(&instance, &container, "read line; : > /tmp/go; exec sleep 1000");
        assert_eq!(instance.pool()["environments"][0]["leaving"], "entered");
        inside.child.stdin.as_mut().unwrap().write_all(b"go\n").expect("type");
        let answer = running.join().expect("the caller's thread");
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, None), "{}", answer.text());
        let (exit, _, said) = inside.end();
        assert_eq!(exit, Some(1), "{said}");
        assert!(
            said.starts_with(&format!("container {container} runs an invocation, and ends with it: so will this\n")),
            "{said}"
        );
        assert!(said.ends_with("what ran in it: it ended with the invocation that it ran\n"), "{said}");
    });
    assert_eq!(instance.pool()["retired"]["entered"], 1);
}

#[test]
fn neither_a_drain_nor_a_stop_nor_a_dead_launcher_waits_for_who_is_inside() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let enter = |instance: &Instance| {
        instance.call("f", &json!({ "do": "echo" }));
        Inside::enter(instance, &the_container(instance, "idle"), "exec sleep 1000")
    };
    let mut inside = enter(&instance);
    assert_eq!(kiln(&instance, &["function", "drain", "f"]).0, 0);
    let (exit, _, said) = inside.end();
    assert!(exit == Some(1) && said.ends_with("its function was drained by hand\n"), "{exit:?} {said}");

    // Its containers die with it, and what was brought into them.
    let mut inside = enter(&instance);
    let init = inspect(&instance, &the_container(&instance, "held"))["init_pid"].as_u64().unwrap();
    let launcher = snapshot::processes().into_iter().find(|one| u64::from(one.pid) == init).expect("it lives").parent;
    let launchers = instance.processes("launcher").len();
    host::kill(launcher);
    let (exit, _, said) = inside.end();
    assert!(exit == Some(1) && said.contains("has ended, and with it what ran in it"), "{exit:?} {said}");
    host::eventually("nothing is left", || snapshot::processes().iter().all(|one| u64::from(one.pid) != init));
    host::eventually("another launcher is there", || {
        let there = instance.processes("launcher");
        there.len() == launchers && !there.contains(&launcher)
    });

    let mut inside = enter(&instance);
    let stopped = instance.stop();
    assert!(stopped.success(), "{stopped}");
    let (exit, _, said) = inside.end();
    assert!(exit == Some(1) && said.ends_with("what ran in it: kilnd stops\n"), "{exit:?} {said}");
    assert!(snapshot::cgroups(&format!("kiln-{}-", instance.name)).is_empty());
}

#[test]
fn a_server_that_is_killed_takes_who_is_inside_with_it() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    instance.call("f", &json!({ "do": "echo" }));
    let container = the_container(&instance, "idle");
    let mut inside = Inside::enter(&instance, &container, "exec sleep 1000");
    host::kill(instance.processes("server")[0]);
    let (exit, _, said) = inside.end();
    assert!(exit == Some(3) && said.contains("kilnd went away, and with it what ran in the container"), "{exit:?} {said}");
    host::eventually("it is gone", || directories(&instance, &container).is_empty());
    instance.await_ready();
    instance.call("f", &json!({ "do": "echo" }));
}

//! What a function sees from inside, told by the probe; the outside is compared where it matters.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::host::{self, Instance, code};

fn list<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn a_function_sees_nothing_of_the_host_and_holds_no_privilege() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let extra =
        code::zip(&[("bootstrap", 0o755, &code::probe_program()), ("setuid", 0o4755, b"x"), ("group-writable", 0o666, b"x")]);
    instance.create("f", "provided.al2023", "x", &extra, json!({ "Timeout": 60, "MemorySize": 512 }));
    let seen = instance.call("f", &json!({ "do": "tell" }));

    // Identity: unprivileged, no groups, no way back.
    assert_eq!(
        (&seen["uids"], &seen["gids"], &seen["groups"]),
        (&json!([993, 993, 993, 993]), &json!([990, 990, 990, 990]), &json!([]))
    );
    for set in ["inheritable", "permitted", "effective", "bounding", "ambient"] {
        assert_eq!(seen["capabilities"][set], 0, "{set}");
    }
    // NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE with their locks, KEEP_CAPS locked off: capabilities(7).
    assert_eq!(seen["securebits"].as_u64().map(|bits| bits & 0b1110_1111), Some(0b1110_1111), "{:?}", seen["securebits"]);
    assert_eq!((&seen["no_new_privs"], &seen["seccomp"]), (&json!(1), &json!(2)));

    // Namespaces: none is the host's. The two extents of ids, and no more.
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let host = std::fs::read_link(format!("/proc/self/ns/{name}")).expect("the host's namespace").display().to_string();
        assert!(!host.contains(&format!("[{}]", seen["namespaces"][name])), "{name} is the host's");
    }
    assert_eq!(seen["uid_map"].as_array().map(Vec::len), Some(2));
    assert!(
        seen["uid_map"][1].as_str().is_some_and(|line| line.starts_with("993 ") && line.ends_with(" 1")),
        "{}",
        seen["uid_map"]
    );
    let limits = seen["sysctls"].as_object().expect("limits");
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        assert_eq!(limits[&format!("max_{kind}_namespaces")], 0, "{kind}");
    }

    // Mounts: read-only but /tmp, no set-user-id, no device files but /dev's.
    let mounts = seen["mounts"].as_array().expect("mounts");
    let points: BTreeSet<_> = mounts.iter().filter_map(|mount| mount["point"].as_str()).collect();
    assert_eq!(points, ["/", "/dev", "/proc", "/tmp", "/var/task"].into(), "{mounts:#?}");
    for mount in mounts {
        let (point, options) = (mount["point"].as_str().unwrap(), list(mount, "options"));
        assert!(options.contains(&"nosuid"), "{point}: {options:?}");
        assert_eq!(options.contains(&"ro"), point != "/tmp", "{point}: {options:?}");
        assert_eq!(options.contains(&"nodev"), point != "/dev", "{point}: {options:?}");
        assert!(!list(mount, "propagation").iter().any(|p| p.starts_with("shared")), "{point} tells others of its mounts");
    }
    assert_eq!(list(&seen["writable"], "directories"), ["/tmp"]);
    for kind in ["files", "proc"] {
        assert_eq!(list(&seen["writable"], kind), Vec::<&str>::new(), "{kind}");
    }
    let devices: BTreeSet<_> = list(&seen["writable"], "devices").into_iter().collect();
    assert!(
        devices.is_subset(&["/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"].into()),
        "{devices:?}"
    );

    // Descriptors: stdin, the log, the Runtime API's connection; nothing of ours.
    for descriptor in seen["descriptors"].as_array().expect("descriptors") {
        let (fd, target) = (descriptor["fd"].as_u64().unwrap(), descriptor["target"].as_str().unwrap());
        let right = match fd {
            0 => target == "/dev/null",
            1 | 2 => target.starts_with("pipe:"),
            _ => target.starts_with("socket:") || target.starts_with("/proc/"),
        };
        assert!(right, "descriptor {fd} is {target}");
    }

    // Processes and network: its own.
    let processes: Vec<_> = seen["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["pid"].as_u64().unwrap(), one["comm"].as_str().unwrap()))
        .collect();
    assert_eq!(processes.len(), 2, "{processes:?}");
    assert_eq!(processes[0], (1, "kiln-init"));
    assert_eq!((&seen["interfaces"], &seen["listening"]), (&json!(["lo"]), &json!(["127.0.0.1:9001"])));
    for name in ["fd", "mem", "mem for writing", "environ", "maps", "root", "cwd", "exe"] {
        assert!(["EACCES", "EPERM"].contains(&seen["init"][name].as_str().unwrap()), "/proc/1/{name}: {}", seen["init"][name]);
    }

    // Limits and surroundings as Lambda's.
    assert_eq!((&seen["rlimits"]["nofile"], &seen["rlimits"]["core"]), (&json!([1024, 1024]), &json!([1, 1])));
    assert_eq!(seen["cwd"], "/var/task");
    let names = ["LANG", "TZ", "LAMBDA_TASK_ROOT", "AWS_LAMBDA_RUNTIME_API", "_HANDLER", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"];
    let values: Vec<_> = names.iter().map(|name| seen["env"][name].as_str().unwrap_or_default()).collect();
    assert_eq!(values, ["en_US.UTF-8", ":UTC", "/var/task", "127.0.0.1:9001", "x", "512"]);
    let inherited: Vec<_> =
        seen["env"].as_object().unwrap().keys().filter(|name| name.starts_with("KILN") || name.starts_with("CARGO")).collect();
    assert!(inherited.is_empty(), "of kilnd's own environment: {inherited:?}");
    assert_ne!(seen["hostname"], json!(nix::unistd::gethostname().unwrap().to_string_lossy()));
    assert!(!seen["cgroup"].to_string().contains("kiln-"), "the cgroup's own path is hidden: {}", seen["cgroup"]);
}

#[test]
fn low_ports_raw_sockets_and_other_networks_are_out_of_reach() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({}));
    assert_eq!(instance.call("f", &json!({ "listen": 8080 }))["listening"], 8080);
    assert_eq!(instance.call("f", &json!({ "listen": 80 }))["error"], "EACCES");
    assert_eq!(instance.call("f", &json!({ "connect": "192.0.2.1:80" }))["error"], "ENETUNREACH");
    // The host's loopback is another one: a server there is not reached.
    let outside = std::net::TcpListener::bind("127.0.0.1:0").expect("listen on the host");
    let address = outside.local_addr().unwrap().to_string();
    assert_eq!(instance.call("f", &json!({ "connect": address }))["error"], "ECONNREFUSED");
}

#[test]
fn inside_a_container_only_the_tables_calls_exist() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60, "MemorySize": 1792 }));
    let tried = instance.call("f", &json!({ "do": "syscalls" }));
    let seen: BTreeSet<u64> = tried["allowed"].as_array().expect("numbers").iter().filter_map(Value::as_u64).collect();
    let table: BTreeSet<u64> = kiln::launcher::seccomp::table::allowed().map(|call| call.number.into()).collect();
    let conditional: BTreeSet<u64> =
        kiln::launcher::seccomp::table::CONDITIONS.iter().map(|one| one.call.number.into()).collect();
    // Whether these two are seen is the running kernel's matter.
    let past: BTreeSet<u64> = kiln::launcher::seccomp::table::PAST_EVERY_FILTER.iter().map(|call| call.number.into()).collect();
    let beyond: Vec<_> =
        seen.difference(&table).filter(|number| !conditional.contains(number) && !past.contains(number)).collect();
    assert!(beyond.is_empty(), "allowed, but in no row: {beyond:?}");
    // The running kernel may lack a few that the table allows; the exact comparison, with a baseline, is tests/seccomp.rs.
    let missing = table.difference(&seen).count();
    assert!(missing <= 12, "{missing} rows do not work inside: {:?}", table.difference(&seen).collect::<Vec<_>>());
    for entry in ["i386", "x32"] {
        let through: Vec<_> = tried[entry].as_object().expect("tries").iter().filter(|(_, result)| *result != "ENOSYS").collect();
        assert!(through.is_empty() && !tried[entry].as_object().unwrap().is_empty(), "{entry}: {through:?}");
    }
}

#[test]
fn tmp_and_globals_live_as_long_as_the_container_and_nowhere_else() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 10 }));
    instance.call("f", &json!({ "do": "write", "path": "/tmp/mark", "text": "mine" }));
    assert_eq!(instance.call("f", &json!({ "read": "/tmp/mark" })), json!("mine"), "warm: the same /tmp");
    assert_eq!(instance.call("f", &json!({ "do": "global" }))["invocations"], 3, "warm: the same process, init once");
    instance.invoke("f", &json!({ "exit": 1 }));
    assert_eq!(instance.call("f", &json!({ "list": "/tmp" })), json!([]), "a new container has an empty /tmp");
    assert_eq!(instance.call("f", &json!({ "do": "write", "path": "/var/task/x", "text": "" }))["error"], "EROFS");
}

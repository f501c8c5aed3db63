//! A made-up host on which all is well, and one row for each way to break it: exactly that check must say so, with its cure.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use kiln::cli::doctor::{Account, Finding, Host, Kilnd, Probe, State, Status, Systemd, Unit, examine};
use kiln::code::Digest;
use kiln::config::Config;
use rustix::fs::{XattrFlags, removexattr, setxattr};
use serde::Deserialize;
use serde_json::json;

use super::root;

const R: u32 = 1_879_048_192;
const INVOKE: u32 = 994;
const ADMIN: u32 = 993;

const UNIT: &str = "sys/fs/cgroup/system.slice/kilnd.service";
const PRESSURE: &str = "some avg10=0.00 avg60=1.25 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

/// kilnd's units as systemd tells them when all is well.
fn installed() -> Systemd {
    let unit =
        |text: &str| Unit(text.split(' ').map(|pair| pair.split_once('=').unwrap()).map(|(k, v)| (k.into(), v.into())).collect());
    let active = "LoadState=loaded ActiveState=active SubState=running Result=success NRestarts=0 UnitFileState=enabled NeedDaemonReload=no";
    let service = format!(
        "{active} FragmentPath=/usr/local/lib/systemd/system/kilnd.service Type=notify NotifyAccess=main Delegate=yes KillMode=mixed \
         OOMPolicy=continue ProtectControlGroups=no Slice=kiln.slice MemoryMax=infinity TasksMax=infinity LimitNOFILE=524288"
    );
    let units =
        [("kilnd.service", &*service), ("kilnd.socket", active), ("kilnd-control.socket", active), ("kiln.slice", active)];
    Systemd {
        version: Some(257),
        service: "kilnd.service".into(),
        sockets: ["kilnd.socket".into(), "kilnd-control.socket".into()],
        units: units.into_iter().map(|(name, text)| (name.to_owned(), unit(text))).collect(),
    }
}

struct World {
    root: tempfile::TempDir,
    host: Host,
    config: Config,
}

impl World {
    /// A unified host where kilnd runs as a service, seen by root. Root makes it, for its files have owners.
    fn well() -> Self {
        let root = tempfile::Builder::new().prefix("kiln-doctor-").tempdir_in("/var/tmp").unwrap();
        let account = |name: &str, id| Account { name: name.into(), id };
        let config = Config::default();
        let in_force = Config { launchers: config.launcher_count(), ..config.clone() };
        let status = json!({ "version": env!("CARGO_PKG_VERSION"), "server_pid": 77, "descriptors": 65_536, "config": in_force });
        let host = Host {
            root: root.path().to_owned(),
            release: "6.1.0-18-amd64".into(),
            machine: "x86_64".into(),
            uid: 0,
            gids: vec![0],
            users: vec![account("kiln", 990)],
            groups: vec![account("kiln-invoke", INVOKE), account("kiln-admin", ADMIN), account("kiln", 990)],
            descriptors: 1024,
            user_namespaces: Probe::Works,
            mounting: Probe::Works,
            systemd: Some(installed()),
            kilnd: Kilnd { status: Some(Status::deserialize(&status).unwrap()), ..Kilnd::default() },
        };
        let world = Self { root, host, config };
        for kind in ["user", "pid", "net", "ipc", "uts", "cgroup", "mnt"] {
            world.write(&format!("proc/self/ns/{kind}"), "");
            world.write(&format!("proc/sys/user/max_{kind}_namespaces"), "15000\n");
        }
        for (path, text) in [
            ("proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap errno user_notif trace log allow\n"),
            ("proc/sys/fs/nr_open", "1048576\n"),
            ("proc/filesystems", "nodev\ttmpfs\nnodev\toverlay\n"),
            ("proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 1 kB\n"),
            ("proc/self/mountinfo", "26 22 0:24 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"),
            ("proc/self/cgroup", "0::/user.slice/session-1.scope\n"),
            ("proc/77/cgroup", "0::/system.slice/kilnd.service/supervisor\n"),
            ("proc/77/status", "Name:\tkilnd\nState:\tS (sleeping)\nPPid:\t76\n"),
            ("proc/76/status", "Name:\tkilnd\nState:\tS (sleeping)\nPPid:\t1\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids io\n"),
            ("sys/fs/cgroup/system.slice/kilnd.service/cgroup.controllers", "cpu memory pids\n"),
            ("sys/fs/cgroup/system.slice/kilnd.service/cgroup.subtree_control", "cpu memory pids\n"),
            ("sys/fs/cgroup/system.slice/kilnd.service/cgroup.type", "domain\n"),
            ("sys/fs/cgroup/system.slice/kilnd.service/kiln-default-1-1/cgroup.procs", ""),
            ("sys/fs/cgroup/system.slice/kilnd.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/kilnd.service/memory.swap.max", "max\n"),
            ("sys/fs/cgroup/system.slice/kilnd.service/memory.oom.group", "0\n"),
            ("sys/fs/cgroup/system.slice/kilnd.service/memory.pressure", PRESSURE),
            ("sys/fs/cgroup/system.slice/kilnd.service/cpu.pressure", PRESSURE),
            ("sys/fs/cgroup/system.slice/kilnd.service/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/system.slice/kilnd.service/cpu.max.burst", "0\n"),
            ("proc/pressure/memory", PRESSURE),
            ("proc/pressure/cpu", PRESSURE),
            ("proc/swaps", "Filename Type Size Used Priority\n"),
            ("sys/kernel/security/lsm", "lockdown,capability,landlock,yama\n"),
            ("sys/fs/cgroup/user.slice/session-1.scope/cgroup.type", "domain\n"),
            ("sys/fs/cgroup/user.slice/session-1.scope/cgroup.procs", "300\n301\n"),
            ("etc/subuid", "alice:100000:65536\n"),
            ("etc/subgid", "alice:100000:65536\n"),
            ("run/kiln/kiln.sock", ""),
            ("run/kiln/control.sock", ""),
            ("run/kiln/lock", ""),
            ("run/lock/kiln-ids.lock", "default 1879113728 65536 /run/kiln /var/lib/kiln\n"),
            ("var/lib/kiln/runtimes/owner", &format!("{R}\n")),
            ("var/lib/kiln/runtimes/trees/base/bin/sh", "x"),
        ] {
            world.write(path, text);
        }
        for (socket, group) in [("kiln.sock", INVOKE), ("control.sock", ADMIN)] {
            let path = world.path(&format!("run/kiln/{socket}"));
            chown(&path, None, Some(group)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o660)).unwrap();
        }
        for path in ["base", "base/bin"] {
            chown(world.path("var/lib/kiln/runtimes/trees").join(path), Some(R), Some(R)).unwrap();
        }
        setxattr(world.path(UNIT), "user.delegate", b"1", XattrFlags::empty()).unwrap();
        let set = "base\n";
        world.write(&format!("var/lib/kiln/runtimes/sets/{}", Digest::of(set.as_bytes())), set);
        let recipe = format!("name = 'r1'\ntree = '{}'\nstart = [['/x']]\n", Digest::of(set.as_bytes()));
        world.write("var/lib/kiln/runtimes/r1.toml", &recipe);
        let inode = fs::metadata(world.path("run/kiln/lock")).unwrap().ino();
        world.write("proc/locks", &format!("1: FLOCK  ADVISORY  WRITE 76 00:1a:{inode} 0 EOF\n"));
        world
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    /// One more instance, which holds the lock in its run_dir.
    fn runs(&self, name: &str, run_dir: &str, state_dir: &str) {
        self.write("run/lock/kiln-ids.lock", &format!("{name} 1900000000 4096 {run_dir} {state_dir}\n"));
        let lock = format!("{}/lock", run_dir.trim_start_matches('/'));
        self.write(&lock, "");
        let inode = fs::metadata(self.path(&lock)).unwrap().ino();
        let others = fs::read_to_string(self.path("proc/locks")).unwrap();
        self.write("proc/locks", &format!("{others}2: FLOCK  ADVISORY  WRITE 80 00:1a:{inode} 0 EOF\n"));
    }

    fn overlay_is_a_module(&mut self) {
        self.write("proc/filesystems", "nodev\ttmpfs\n");
        self.write("lib/modules/6.1.0-18-amd64/modules.dep", "kernel/fs/overlayfs/overlay.ko.xz:\n");
    }

    /// One property otherwise.
    fn unit(&mut self, name: &str, property: &str, value: &str) {
        let units = &mut self.host.systemd.as_mut().unwrap().units;
        units.get_mut(name).unwrap().0.insert(property.into(), value.into());
    }

    fn service(&mut self, property: &str, value: &str) {
        self.unit("kilnd.service", property, value);
    }

    /// And served nowhere.
    fn metrics_are_wanted(&mut self) {
        self.config.metrics_listen = "127.0.0.1:9150".into();
        let in_force = Config { launchers: self.config.launcher_count(), ..self.config.clone() };
        let status = json!({ "version": env!("CARGO_PKG_VERSION"), "server_pid": 77, "descriptors": 65_536, "config": in_force });
        self.host.kilnd.status = Some(Status::deserialize(&status).unwrap());
    }

    fn not_running(&mut self) {
        let absent = Some(io::ErrorKind::NotFound);
        self.host.kilnd = Kilnd { api: absent, control: absent, ..Kilnd::default() };
    }

    fn findings(&self) -> Vec<Finding> {
        examine(&self.host, &self.config, Some(&self.config))
    }
}

#[test]
fn on_a_host_where_all_is_well_nothing_is_said_against_it() {
    if !root() {
        return;
    }
    let findings = World::well().findings();
    let bad: Vec<&Finding> = findings.iter().filter(|finding| finding.state != State::Ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(findings.len() >= 24, "{}", findings.len());
    assert!(findings.iter().all(|finding| finding.cure.is_none()));
}

/// What is broken, which check must say it, how bad it is, and words of its finding and of its cure.
type Row = (fn(&mut World), &'static str, State, &'static str, &'static str);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    (|w| w.host.release = "5.10.0-28-amd64".into(), "kernel", State::Broken, "5.10.0", "boot a newer kernel"),
    (|w| w.host.release = "strange".into(), "kernel", State::Broken, "strange", "boot a newer kernel"),
    (|w| w.host.machine = "aarch64".into(), "architecture", State::Broken, "aarch64", "x86_64 machine"),
    (|w| w.remove("proc/self/ns/user"), "namespaces", State::Broken, "CONFIG_USER_NS", "built with CONFIG_USER_NS"),
    (|w| w.write("proc/sys/user/max_net_namespaces", "0\n"), "namespaces", State::Broken, "user.max_net_namespaces = 0", "sysctl -w user.max_net_namespaces=15000"),
    (|w| w.host.user_namespaces = Probe::Refused("Operation not permitted".into()), "user-namespaces", State::Broken, "not permitted", "pivot_root"),
    (|w| w.host.user_namespaces = Probe::NotTried("no unshare".into()), "user-namespaces", State::Warn, "no unshare", "util-linux"),
    (|w| w.remove("proc/sys/kernel/seccomp/actions_avail"), "seccomp", State::Broken, "no filters", "CONFIG_SECCOMP_FILTER"),
    (|w| w.write("proc/filesystems", "nodev\ttmpfs\n"), "overlayfs", State::Broken, "neither", "modprobe overlay"),
    (|w| { w.overlay_is_a_module(); w.write("run/systemd/container", "docker\n") }, "overlayfs", State::Warn, "not loaded", "modprobe overlay"),
    (|w| { w.overlay_is_a_module(); w.write("proc/sys/kernel/modules_disabled", "1\n") }, "overlayfs", State::Warn, "not loaded", "modprobe overlay"),
    (|w| w.host.mounting = Probe::Refused("fsopen: Function not implemented".into()), "mounting", State::Broken, "fsopen", "CAP_SYS_ADMIN"),
    (|w| w.write("proc/self/mountinfo", ""), "cgroups", State::Broken, "none are mounted", "mount -t cgroup2"),
    (|w| w.write("proc/self/mountinfo", "1 1 0:1 / /c/m rw - cgroup c rw,memory\n1 1 0:2 / /c/u rw - cgroup2 c rw\n"),
        "cgroups", State::Broken, "cpu is not mounted", "cgroup_disable="),
    (|w| w.write("proc/self/mountinfo", "1 1 0:1 / /c/m rw - cgroup c rw,memory\n"), "cgroups", State::Broken, "without cpu", "unified_cgroup_hierarchy"),
    (|w| w.write("proc/77/cgroup", "0::/../elsewhere\n"), "cgroups", State::Broken, "not visible", "cgroup namespace of its own"),
    (|w| w.write("sys/fs/cgroup/cgroup.controllers", "cpu pids\n"), "controllers", State::Broken, "offers no memory", "cgroup_disable="),
    (|w| w.write("sys/fs/cgroup/system.slice/kilnd.service/cgroup.subtree_control", "cpu\n"), "delegation", State::Broken, "memory, pids", "Delegate=yes"),
    (|w| w.write("proc/self/mountinfo", "26 22 0:24 / /sys/fs/cgroup ro shared:4 - cgroup2 cgroup2 rw\n"),
        "cgroups", State::Broken, "cgroup2 is mounted read-only at /sys/fs/cgroup", "no ProtectControlGroups="),
    (|w| w.write(&format!("{UNIT}/cgroup.type"), "domain threaded\n"), "delegation", State::Broken, "is \"domain threaded\"", "Delegate=yes"),
    (|w| removexattr(w.path(UNIT), "user.delegate").unwrap(), "delegation", State::Broken, "systemd does not leave", "Delegate=yes"),
    (|w| { w.write("proc/swaps", "Filename\n/dev/vdb partition 1 0 -2\n"); w.remove(&format!("{UNIT}/memory.swap.max")) },
        "swap", State::Broken, "could use more memory than it has", "boot without swapaccount=0, or swapoff -a"),
    (|w| w.remove(&format!("{UNIT}/cpu.max.burst")), "optional", State::Warn, "no CPU burst (the quota alone", "CPU burst (5.14)"),
    (|w| w.write("sys/kernel/security/lsm", "capability\n"), "optional", State::Warn, "no Landlock (seccomp", "Landlock (5.13)"),
    (|w| w.write(&format!("{UNIT}/memory.pressure"), "some avg10=9.00 avg60=25.00 avg300=5.00 total=7\n"),
        "pressure", State::Warn, "in kilnd's group somebody waits for memory 25.0 %", "a lower memory_budget_mib"),
    (|w| { w.service("ActiveState", "failed"); w.service("Result", "exit-code") }, "unit", State::Broken, "kilnd.service has failed (exit-code", "systemctl reset-failed kilnd.service"),
    (|w| w.service("LoadState", "masked"), "unit", State::Broken, "cannot be loaded (masked)", "systemctl unmask kilnd.service"),
    (|w| { w.service("ActiveState", "activating"); w.service("SubState", "auto-restart") }, "unit", State::Warn, "is started again", "journalctl -u kilnd.service"),
    (|w| { w.service("ActiveState", "activating"); w.service("NRestarts", "3") }, "unit", State::Warn, "3 times so far", "journalctl -u kilnd.service"),
    (|w| w.service("UnitFileState", "disabled"), "unit", State::Warn, "is not started at boot", "systemctl enable kilnd.service"),
    (|w| w.unit("kilnd.socket", "NeedDaemonReload", "yes"), "unit-file", State::Warn, "kilnd.socket changed on disk", "systemctl daemon-reload"),
    (|w| w.service("Delegate", "no"), "unit-settings", State::Broken, "Delegate=no: systemd would take the limits", "Delegate=yes in [Service]"),
    (|w| w.service("ProtectControlGroups", "yes"), "unit-settings", State::Broken, "can make no group", "ProtectControlGroups=no"),
    (|w| w.service("OOMPolicy", "stop"), "unit-settings", State::Broken, "systemd ends kilnd and all others", "OOMPolicy=continue"),
    (|w| w.service("KillMode", "process"), "unit-settings", State::Broken, "is never ended", "KillMode=mixed"),
    (|w| w.service("KillMode", "control-group"), "unit-settings", State::Warn, "are cut at once", "KillMode=mixed"),
    (|w| w.service("Type", "simple"), "unit-settings", State::Warn, "does not wait", "Type=notify"),
    (|w| w.service("NotifyAccess", "all"), "unit-settings", State::Warn, "could speak for it", "NotifyAccess=main"),
    (|w| w.service("TasksMax", "4915"), "unit-settings", State::Warn, "share that many processes", "TasksMax=infinity"),
    (|w| w.unit("kilnd.socket", "ActiveState", "inactive"), "sockets", State::Warn, "kilnd.socket not active", "systemctl enable --now kilnd.socket"),
    (|w| w.unit("kilnd-control.socket", "ActiveState", "failed"), "sockets", State::Broken, "callers are refused", "systemctl reset-failed kilnd-control.socket"),
    (|w| { w.config.memory_budget_mib = 2000; w.write(&format!("{UNIT}/memory.max"), "1073741824\n") },
        "memory", State::Warn, "2000 of the 1024 MiB that /sys/fs/cgroup/system.slice/kilnd.service/memory.max allows", "at most 816"),
    (|w| { w.not_running(); w.config.memory_budget_mib = 2000; w.unit("kiln.slice", "MemoryMax", "1073741824") },
        "memory", State::Warn, "the 1024 MiB that MemoryMax= of kiln.slice allows", "at most 816"),
    (|w| { w.not_running(); w.config.concurrency = 40_000; w.service("LimitNOFILE", "4096") }, "descriptors", State::Warn, "65536 descriptors", "LimitNOFILE="),
    (|w| w.host.users.clear(), "user", State::Broken, "no user \"kiln\"", "useradd --system"),
    (|w| w.host.users[0].id = 0, "user", State::Broken, "which is root", "set user"),
    (|w| w.config.invoke_group = "others".into(), "invoke-group", State::Broken, "\"others\"", "groupadd --system others"),
    (|w| w.host.users.push(Account { name: "eve".into(), id: 1_879_120_000 }), "ids", State::Broken, "the user eve (1879120000)", "set first_id = 1879179264"),
    (|w| w.write("etc/subgid", "bob:1879100000:70000\n"), "ids", State::Broken, "/etc/subgid promises bob", "take that line out of /etc/subgid"),
    (|w| w.write("etc/kiln/b.toml", "instance = 'b'\nrun_dir = '/run/b'\n"), "ids", State::Warn, "those of /etc/kiln/b.toml", "set first_id = 1879179264"),
    (|w| { w.write("etc/kiln/b.toml", "instance = 'b'\nrun_dir = '/run/b'\nfirst_id = 1879179264\n"); w.write("etc/subuid", "bob:1879113728:1\n") },
        "ids", State::Broken, "/etc/subuid promises bob", "set first_id = 1879244800"),
    (|w| w.host.systemd.as_mut().unwrap().version = Some(249), "systemd", State::Broken, "249, and Kiln's units are for 252", "Ubuntu 24.04"),
    (|w| w.write("run/lock/kiln-ids.lock", "other 1879179263 4096 /run/other /srv\n"), "ids", State::Broken, "instance \"other\"", "set first_id = "),
    (|w| w.runs("other", "/run/other", "/var/lib/kiln"), "instances", State::Broken, "state_dir is also that of the instance \"other\" of Kiln, which runs in /run/other", "set state_dir in"),
    (|w| w.runs("default", "/run/other", "/srv"), "instances", State::Broken, "instance is also that", "set instance in"),
    (|w| { w.write("var/lib/kiln/runtimes/owner", "1879113730\n"); w.remove("var/lib/kiln/runtimes/r1.toml") },
        "ids", State::Broken, "1879113730, the owner of all trees", "set first_id = 1879179264"),
    (|w| w.host.users.push(Account { name: "eve".into(), id: R }), "owner", State::Broken, "is also the user eve", "usermod -u"),
    (|w| { fs::remove_dir_all(w.path("var/lib/kiln")).unwrap(); w.write("var/lib/kiln", "") }, "state-dir", State::Broken, "/var/lib/kiln is no directory", "move it away"),
    (|w| w.config.concurrency = 5000, "descriptors", State::Warn, "concurrency is 5000", "LimitNOFILE=82304"),
    (|w| { w.not_running(); w.write("proc/sys/fs/nr_open", "2400\n") }, "descriptors", State::Broken, "room for 6", "fs.nr_open"),
    (|w| w.config.memory_budget_mib = 9000, "memory", State::Warn, "9000 of the host's 7812 MiB", "at most 6248"),
    (|w| w.write("proc/meminfo", "MemTotal: 250000 kB\n"), "memory", State::Warn, "195 of", "more memory"),
    (|w| fs::remove_dir_all(w.path("var/lib/kiln/runtimes")).unwrap(), "runtimes", State::Broken, "there is no /var/lib/kiln/runtimes", "scripts/build-runtimes"),
    (|w| w.remove("var/lib/kiln/runtimes/r1.toml"), "runtimes", State::Warn, "holds none", "scripts/build-runtimes"),
    (|w| w.write("var/lib/kiln/runtimes/r1.toml", "name = 'r1'\n"), "runtime", State::Broken, "its recipe is wrong", "scripts/build-runtimes"),
    (|w| fs::remove_dir_all(w.path("var/lib/kiln/runtimes/trees/base")).unwrap(), "runtime", State::Broken, "trees/base is missing", "scripts/build-runtimes"),
    (|w| fs::remove_dir_all(w.path("var/lib/kiln/runtimes/trees/base/bin")).unwrap(), "runtime", State::Broken, "trees/base is empty", "scripts/build-runtimes"),
    (|w| w.not_running(), "kilnd", State::Warn, "not running", "systemctl start kilnd.service"),
    (|w| w.host.kilnd.api = Some(io::ErrorKind::ConnectionRefused), "kiln.sock", State::Broken, "nobody listens", "start kilnd again"),
    (|w| w.host.kilnd.control = Some(io::ErrorKind::NotFound), "control.sock", State::Broken, "there is no /run/kiln/control.sock", "restart kilnd"),
    (|w| w.host.kilnd.api = Some(io::ErrorKind::PermissionDenied), "kiln.sock", State::Warn, "belongs to kiln-invoke", "usermod -aG kiln-invoke"),
    (|w| w.host.groups[0].id += 1, "kiln.sock", State::Broken, "not to kiln-invoke", "correct invoke_group"),
    (|w| fs::set_permissions(w.path("run/kiln/kiln.sock"), fs::Permissions::from_mode(0o666)).unwrap(), "kiln.sock", State::Broken, "open to everybody", "0660"),
    (|w| { w.host.kilnd.trouble = Some("it has not answered within 5 s".into()); w.host.kilnd.status = None }, "kilnd", State::Broken, "has not answered", "journalctl"),
    (|w| w.host.kilnd.status.as_mut().unwrap().version = "0.0.1".into(), "versions", State::Warn, "0.0.1", "restart kilnd after an upgrade"),
    (|w| { w.write("proc/77/x", ""); symlink("/usr/lib/kiln/kilnd (deleted)", w.path("proc/77/exe")).unwrap() }, "versions", State::Warn, "another file than the one that is /usr/lib/kiln/kilnd", "systemctl restart"),
    (|w| w.host.kilnd.status.as_mut().unwrap().draining = true, "kilnd", State::Warn, "waits for running invocations", "wait until it has ended"),
    (|w| w.metrics_are_wanted(), "metrics", State::Broken, "could not listen there", "ss -ltnp 'sport = :9150'"),
    (|w| w.config.idle_max_s = 1, "in-force", State::Warn, "idle_max_s", "systemctl reload kilnd"),
    (|w| w.config.region = "eu-west-1".into(), "in-force", State::Warn, "region", "restart kilnd"),
    (|w| { w.host.uid = 1000; w.host.gids = vec![] }, "caller", State::Warn, "neither in kiln-invoke nor in kiln-admin", "usermod -aG kiln-invoke"),
    (|w| w.write("sys/fs/cgroup/kiln-dead-1-7/cgroup.procs", ""), "leftovers", State::Warn, "cgroups: 1", "scripts/leftovers"),
    (|w| w.write("proc/90/status", "Name:\tkiln-init\nState:\tS\nPPid:\t1\n"), "leftovers", State::Warn, "processes: 1", "scripts/leftovers"),
    (|w| { w.write("run/lock/kiln-ids.lock", "old 1900000000 4096 /run/old /var/old\n"); w.write("run/old/kiln.sock", "") }, "leftovers", State::Warn, "files: 1", "scripts/leftovers"),
];

#[test]
fn what_is_broken_is_said_by_its_own_check_with_its_cure() {
    if !root() {
        return;
    }
    let well = World::well().findings();
    for (number, (damage, check, state, found, cure)) in ROWS.iter().enumerate() {
        let mut world = World::well();
        damage(&mut world);
        let findings = world.findings();
        let told = findings.iter().find(|finding| finding.check == *check && finding.state == *state);
        let told = told.unwrap_or_else(|| panic!("row {number}: {check} is not {state:?}: {findings:#?}"));
        assert!(told.found.contains(found), "row {number}: {told:?}");
        assert!(told.cure.as_ref().is_some_and(|told| told.contains(cure)), "row {number}: {told:?}");
        // Nobody else becomes broken by it.
        let broken = findings.iter().filter(|finding| finding.state == State::Broken && finding.check != *check);
        let follows = |finding: &&Finding| well.iter().any(|other| other.check == finding.check);
        let others: Vec<&Finding> = broken.filter(follows).collect();
        assert!(others.is_empty() || *check == "state-dir", "row {number}: {others:#?}");
    }
}

/// No row of its own: there the other checks look at other groups, so that "nobody else" means nothing.
#[test]
fn a_quota_that_version_1_would_refuse_each_container_by_is_named() {
    if !root() {
        return;
    }
    let world = World::well();
    let v1 = |name: &str| format!("1 1 0:1 / /cg/{name} rw - cgroup c rw,{name}\n");
    let mounts = ["memory", "cpu", "cpuacct", "pids"].map(v1).concat() + "1 1 0:2 / /cg/unified rw - cgroup2 c rw\n";
    world.write("proc/self/mountinfo", &mounts);
    world.write("proc/77/cgroup", "2:cpu:/kiln.slice/kilnd.service\n0::/\n");
    world.write("cg/cpu/kiln.slice/cpu.cfs_quota_us", "50000\n");
    world.write("cg/cpu/kiln.slice/cpu.cfs_period_us", "100000\n");
    let told = |world: &World| world.findings().into_iter().find(|finding| finding.check == "cpu-quota");
    let quota = told(&world).unwrap();
    assert_eq!(quota.state, State::Broken);
    assert!(quota.found.contains("/cg/cpu/kiln.slice leaves less than one CPU"), "{quota:?}");
    assert!(quota.cure.as_ref().unwrap().contains("100% at least"), "{quota:?}");
    world.write("cg/cpu/kiln.slice/cpu.cfs_quota_us", "100000\n");
    assert_eq!(told(&world), None);

    // The same where cgroup2 is kilnd's own mount, that nobody else sees; and limits on memory are found there, too.
    world.write("cg/cpu/kiln.slice/cpu.cfs_quota_us", "50000\n");
    world.write("proc/self/mountinfo", &["memory", "cpu", "cpuacct", "pids"].map(v1).concat());
    world.write("proc/77/cgroup", "3:memory:/kiln.slice/kilnd.service\n2:cpu:/kiln.slice/kilnd.service\n0::/\n");
    world.write("cg/memory/kiln.slice/memory.limit_in_bytes", "1073741824\n");
    assert_eq!(told(&world), Some(quota));
    let memory = world.findings().into_iter().find(|finding| finding.check == "memory").unwrap();
    assert!(
        memory.found.starts_with("819 of the 1024 MiB that /cg/memory/kiln.slice/memory.limit_in_bytes allows"),
        "{memory:?}"
    );
}

#[test]
fn a_service_that_waits_for_its_first_caller_is_no_trouble_and_is_not_woken() {
    if !root() {
        return;
    }
    let mut world = World::well();
    world.not_running();
    world.host.kilnd.waits = true;
    world.service("ActiveState", "inactive");
    let findings = world.findings();
    assert!(findings.iter().all(|finding| finding.state == State::Ok), "{findings:#?}");
    let told = findings.iter().find(|finding| finding.check == "kilnd").unwrap();
    assert!(told.found.contains("starts kilnd.service with the first caller"), "{told:?}");
    assert!(world.host.systemd.as_ref().unwrap().waits_for_callers());
    // Nobody holds the lock of one that does not run: the doors are systemd's all the same, and no leftovers.
    world.write("proc/locks", "");
    let listens = |name: &str| format!("0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/kiln/{name}.sock\n");
    world.write("proc/net/unix", &["kiln", "control"].map(listens).concat());
    for file in ["run/kiln/lock", "proc/76/status", "proc/77/status"] {
        world.remove(file);
    }
    fs::remove_dir_all(world.path(&format!("{UNIT}/kiln-default-1-1"))).unwrap();
    let findings = world.findings();
    assert!(findings.iter().all(|finding| finding.state == State::Ok), "{findings:#?}");
    world.remove("run/kiln/kiln.sock");
    let told = world.findings().into_iter().find(|finding| finding.check == "kiln.sock").unwrap();
    assert!(told.state == State::Broken && told.found.contains("although systemd listens"), "{told:?}");
    assert_eq!(told.cure.unwrap(), "systemctl restart kilnd.socket kilnd-control.socket");
}

#[test]
fn units_that_were_never_started_and_a_module_that_the_first_mount_loads_are_no_trouble() {
    if !root() {
        return;
    }
    let mut world = World::well();
    world.not_running();
    world.overlay_is_a_module();
    for unit in ["kilnd.service", "kilnd.socket", "kilnd-control.socket"] {
        world.unit(unit, "ActiveState", "inactive");
    }
    let trouble: Vec<_> = world.findings().into_iter().filter(|finding| finding.state != State::Ok).collect();
    assert!(matches!(&trouble[..], [only] if only.check == "kilnd" && only.state == State::Warn), "{trouble:#?}");
}

#[test]
fn a_host_without_units_or_without_systemd_has_no_finding_against_it() {
    if !root() {
        return;
    }
    // An old one, too: there is no unit that it could misread.
    for systemd in [None, Some(Systemd { service: "kilnd.service".into(), version: Some(249), ..Systemd::default() })] {
        let mut world = World::well();
        world.host.systemd = systemd;
        let findings = world.findings();
        assert!(findings.iter().all(|finding| finding.state == State::Ok), "{findings:#?}");
    }
}

#[test]
fn every_check_has_a_row_that_breaks_it() {
    if !root() {
        return;
    }
    let never = ["run-dir", "admin-group"]; // their neighbours' code with other words
    let findings = World::well().findings();
    for finding in findings.iter().filter(|finding| !never.contains(&&*finding.check)) {
        assert!(ROWS.iter().any(|row| row.1 == finding.check), "nothing breaks {}", finding.check);
    }
}

#[test]
fn switches_that_hinder_other_users_only_are_named_and_held_against_nobody() {
    if !root() {
        return;
    }
    let world = World::well();
    world.write("proc/sys/kernel/unprivileged_userns_clone", "0\n");
    world.write("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
    let findings = world.findings();
    let told = findings.iter().find(|finding| finding.check == "user-namespaces").unwrap();
    assert_eq!(told.state, State::Ok);
    assert!(told.found.contains("unprivileged_userns_clone") && told.found.contains("apparmor_restrict"), "{told:?}");
}

#[test]
fn doors_that_systemd_keeps_open_are_not_left_over() {
    if !root() {
        return;
    }
    let world = World::well();
    world.write("run/lock/kiln-ids.lock", "old 1900000000 4096 /run/old /var/old\n");
    world.write("run/old/kiln.sock", "");
    let state = |world: &World| world.findings().into_iter().find(|finding| finding.check == "leftovers").unwrap().state;
    assert_eq!(state(&world), State::Warn);
    world.write("proc/net/unix", "0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/old/kiln.sock\n");
    assert_eq!(state(&world), State::Ok);
}

#[test]
fn where_kilnd_can_be_started_from_is_asked_when_none_runs() {
    if !root() {
        return;
    }
    let mut world = World::well();
    world.not_running();
    world.host.systemd = None;
    let delegation = |world: &World| world.findings().into_iter().find(|finding| finding.check == "delegation").unwrap();
    let told = delegation(&world);
    assert_eq!((told.state, told.cure.unwrap().contains("systemd-run --scope -p Delegate=yes")), (State::Warn, true));
    // A delegated scope, with nobody else in it.
    world.write("sys/fs/cgroup/user.slice/session-1.scope/cgroup.controllers", "cpu memory pids\n");
    world.write("sys/fs/cgroup/user.slice/session-1.scope/cgroup.procs", "300\n");
    assert_eq!(delegation(&world).state, State::Ok);
}

/// A file is checked for the next start, while the instance that it is for may run.
#[test]
fn an_instance_whose_name_or_directory_is_about_to_change_does_not_stand_in_its_own_way() {
    if !root() {
        return;
    }
    let state = |world: &World| world.findings().into_iter().find(|finding| finding.check == "instances").unwrap().state;
    let mut world = World::well();
    world.runs("other", "/run/other", "/srv/other");
    assert_eq!(state(&world), State::Ok, "a stranger");
    for changed in ["name", "run_dir", "state_dir"] {
        (world.config.instance, world.config.run_dir, world.config.state_dir) =
            ("other".into(), "/run/other".into(), "/srv/other".into());
        match changed {
            "name" => world.config.instance = "renamed".into(),
            "run_dir" => world.config.run_dir = "/run/moved".into(),
            _ => world.config.state_dir = "/srv/moved".into(),
        }
        assert_eq!(state(&world), State::Ok, "{changed}");
    }
    // Two that are one's own, one that is another's: but nobody holds that one's lock.
    world.write("proc/locks", "");
    (world.config.instance, world.config.run_dir) = ("mine".into(), "/run/mine".into());
    world.config.state_dir = "/srv/other".into();
    assert_eq!(state(&world), State::Ok, "it has ended");
}

#[test]
fn the_range_that_is_proposed_is_nobodys() {
    if !root() {
        return;
    }
    let mut world = World::well();
    world.host.users.push(Account { name: "eve".into(), id: 1_879_120_000 });
    world.write("etc/subuid", "bob:1879179264:1000000\n");
    let told = |world: &World| world.findings().into_iter().find(|finding| finding.check == "ids").unwrap();
    let cure = told(&world).cure.unwrap();
    let first = cure.split("first_id = ").nth(1).unwrap().split(' ').next().unwrap().trim_end_matches(',').parse().unwrap();
    assert!(first >= 1_880_179_264, "{cure}");
    world.config.first_id = first;
    assert_eq!(told(&world).state, State::Ok, "the cure cures");
}

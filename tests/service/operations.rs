//! README's "Operations by hand", followed line by line in a machine with a fresh Debian: what is run is taken from the page itself.
//!
//! [`CHAPTER`] has a line for each row of the page's table, with all that the row has between backticks, and what somebody does with it.
//! A row or a word that is new, gone or different is an error on every host; in the machine each command is run (only `sudo` and names are
//! filled in, and the programs, which are not built there), and what the row promises is looked for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use super::install::{as_user, copy_runtime, enter, told};
use super::machine::{self, Api, CONFIG, command, eventually, property, repository, run};

/// What the page has between backticks.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// To be run.
    Do(&'static str),
    /// To be read, or a part of something else.
    Word(&'static str),
}
use Said::{Do, Word};

struct Line {
    to: &'static str,
    says: &'static [Said],
    follow: fn(&Row),
}

const CHAPTER: &[Line] = &[
    Line {
        to: "install",
        says: &[Do("sudo scripts/install"), Word("--prefix P"), Do("DESTDIR=DIR scripts/install --prefix /usr --binaries DIR")],
        follow: install,
    },
    Line {
        to: "start, look",
        says: &[Do("systemctl start kilnd"), Do("systemctl status kilnd"), Do("sudo kiln doctor")],
        follow: start,
    },
    Line {
        to: "stop",
        says: &[
            Do("systemctl stop kilnd.socket kilnd-control.socket kilnd"),
            Word("drain_s"),
            Do("systemctl kill kilnd --kill-whom=main"),
        ],
        follow: stop,
    },
    Line {
        to: "change the configuration",
        says: &[
            Do("systemctl reload kilnd"),
            Do("systemctl restart kilnd"),
            Word("state_dir"),
            Word("run_dir"),
            Do("systemctl edit kilnd"),
            Word("ReadWritePaths=DIR"),
            Word("[Service]"),
            Word("run_dir"),
        ],
        follow: change,
    },
    Line { to: "upgrade", says: &[Do("sudo scripts/install"), Do("kiln doctor")], follow: upgrade },
    Line { to: "let somebody in", says: &[Do("usermod -aG kiln-invoke NAME"), Word("kiln-admin")], follow: let_in },
    Line {
        to: "limit Kiln as a whole",
        says: &[Do("systemctl set-property kiln.slice MemoryMax=8G CPUWeight=50"), Word("memory_budget_mib")],
        follow: limit,
    },
    Line { to: "read a function's log", says: &[Do("kiln logs NAME"), Word("STATE_DIR/logs/NAME/*.jsonl")], follow: read_log },
    Line {
        to: "read kilnd's log",
        says: &[
            Do("journalctl -u kilnd"),
            Word("KILN_FUNCTION=hello"),
            Word("KILN_REQUEST=ID"),
            Word("KILN_CONTAINER=ID"),
            Word("KILN_CAUSE=Runtime.OutOfMemory"),
            Word("-t kilnd"),
            Word("-p warning"),
            Do("kiln logs"),
            Word("KILN_LOG=debug"),
            Word("kiln::server=trace"),
            Do("systemctl edit kilnd"),
            Word("Environment=KILN_LOG=debug"),
            Word("[Service]"),
        ],
        follow: read_journal,
    },
    Line {
        to: "look into a container",
        says: &[
            Do("kiln container list"),
            Do("kiln container inspect ID"),
            Do("kiln container exec ID -- bash"),
            Word("cat"),
            Word("ls"),
        ],
        follow: look_into,
    },
    Line {
        to: "read the books",
        says: &[Do("kiln usage"), Do("sqlite3 STATE_DIR/db/kiln.db 'SELECT * FROM invocations'")],
        follow: read_books,
    },
    Line { to: "back up", says: &[Word("systemctl stop"), Word("state_dir")], follow: back_up },
    Line {
        to: "run a second instance",
        says: &[
            Do("sudo scripts/install --instance NAME"),
            Word("kilnd@NAME"),
            Do("kiln --run /run/kiln-NAME"),
            Do("kiln config check FILE"),
        ],
        follow: second,
    },
    Line { to: "do without systemd", says: &[Do("sudo scripts/install"), Do("kilnd --config FILE")], follow: without_systemd },
    Line { to: "get rid of it", says: &[Do("sudo scripts/uninstall"), Word("--purge")], follow: get_rid },
];

/// A row of the page, as it is there.
struct Row {
    says: Vec<String>,
    run: RefCell<BTreeSet<usize>>,
}

/// The page's rows: what to do, and what stands between backticks in how.
fn page() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(repository().join("README.md")).expect("read README.md");
    let chapter = text.split("\n## Operations by hand\n").nth(1).expect("README has this chapter");
    let rows = chapter.lines().skip_while(|line| !line.starts_with("| To")).skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let (to, how) = row.trim_matches('|').split_once('|').expect("two cells");
        (to.trim().to_owned(), how.split('`').skip(1).step_by(2).map(str::to_owned).collect())
    })
    .collect()
}

#[test]
fn each_row_of_the_operations_chapter_is_followed_word_by_word() {
    let followed: Vec<(String, Vec<String>)> = CHAPTER
        .iter()
        .map(|line| {
            let words = line.says.iter().map(|said| match said {
                Do(text) | Word(text) => (*text).to_owned(),
            });
            (line.to.to_owned(), words.collect())
        })
        .collect();
    let page = page();
    let differs = |one: &[(String, Vec<String>)], other: &[(String, Vec<String>)]| {
        one.iter().filter(|row| !other.contains(row)).map(|row| format!("{row:?}")).collect::<Vec<_>>().join("\n")
    };
    let (new, gone) = (differs(&page, &followed), differs(&followed, &page));
    assert!(
        page == followed,
        "CHAPTER here is to follow README's \"Operations by hand\" row by row. README has:\n{new}\nand CHAPTER:\n{gone}"
    );
}

#[test]
fn the_operations_chapter_is_followed_line_by_line_in_a_fresh_machine() {
    let Some(before) = enter() else { return };
    for ((to, says), line) in page().into_iter().zip(CHAPTER) {
        eprintln!("to {to}");
        assert_eq!(to, line.to);
        let row = Row { says, run: RefCell::default() };
        (line.follow)(&row);
        let commands = line.says.iter().enumerate().filter(|(_, said)| matches!(said, Do(_))).map(|(at, _)| at);
        assert_eq!(*row.run.borrow(), commands.collect(), "to {to}: every command was run: {:?}", row.says);
    }
    before.leave();
}

// ---- How a row is read ------------------------------------------------------------------------------------------------------

impl Row {
    /// The text, with these names filled in.
    fn text(&self, at: usize, names: &[(&str, &str)]) -> String {
        names.iter().fold(self.says[at].clone(), |text, (name, value)| {
            assert!(text.contains(name), "{text} has no {name}");
            text.replace(name, value)
        })
    }

    /// What root's shell does with it, in the checkout, and with more words behind.
    fn try_with(&self, at: usize, names: &[(&str, &str)], more: &str) -> Output {
        self.run.borrow_mut().insert(at);
        let text = self.text(at, names);
        // Nobody else works at this machine.
        let text = format!("{} {more}", text.trim_start_matches("sudo "));
        Command::new("bash").args(["-c", &text]).current_dir(repository()).stdin(Stdio::null()).output().expect("run bash")
    }

    #[track_caller]
    fn with(&self, at: usize, names: &[(&str, &str)], more: &str) -> String {
        let output = self.try_with(at, names, more);
        assert!(output.status.success(), "{} {more}: {}\n{}", self.says[at], output.status, told(&output));
        told(&output)
    }

    #[track_caller]
    fn run(&self, at: usize) -> String {
        self.with(at, &[], "")
    }

    /// `systemctl edit`, with somebody at the terminal who writes these lines and saves.
    #[track_caller]
    fn edit(&self, at: usize, lines: &str) {
        let editor = "/run/kiln-editor";
        let script = format!(
            "#!/bin/bash\nprintf '{}\\n' > /run/kiln-edited\nsed -i '/^### Anything between/r /run/kiln-edited' \"${{!#}}\"\n",
            lines.replace('\n', "\\n")
        );
        fs::write(editor, script).unwrap();
        fs::set_permissions(editor, fs::Permissions::from_mode(0o755)).unwrap();
        self.run.borrow_mut().insert(at);
        run(
            "env",
            &["SYSTEMD_EDITOR=/run/kiln-editor", "script", "--quiet", "--return", "--command", &self.says[at], "/dev/null"],
        );
        for file in [editor, "/run/kiln-edited"] {
            fs::remove_file(file).unwrap();
        }
    }
}

/// `scripts/install`, with programs and runtimes that come ready.
fn ready() -> (&'static str, String) {
    ("scripts/install", format!("scripts/install --binaries {} --runtimes none", machine::binaries().display()))
}

fn write_config(lines: &str) {
    fs::write(CONFIG, lines).unwrap();
}

/// What kilnd has in its configuration now.
fn configured(key: &str) -> Value {
    let answer = Api::new("/run/kiln/control.sock".into()).request("GET", "/v1/status", &[], b"");
    answer.json()["config"][key].clone()
}

#[track_caller]
fn hello(event: Value) -> Value {
    let said = run("kiln", &["invoke", "hello", "--payload", &event.to_string()]);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[track_caller]
fn assert_it_works() {
    assert_eq!(hello(json!({ "do": "echo", "n": 1 }))["n"], 1);
}

/// An invocation that is under way.
fn sleeping() -> Child {
    let event = json!({ "do": "sleep", "ms": 800_000 }).to_string();
    let child =
        Command::new("kiln").args(["invoke", "hello", "--payload", &event]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("run kiln");
    eventually("it runs", || Api::new("/run/kiln/control.sock".into()).environments("busy") == 1);
    child
}

// ---- The rows ------------------------------------------------------------------------------------------------------------------

fn install(row: &Row) {
    let said = row.with(0, &[(ready().0, &ready().1)], "");
    assert!(said.contains("kilnd.service is running"), "without a runtime, too: {said}");
    copy_runtime("provided.al2023");
    let said = row.with(0, &[(ready().0, &ready().1)], "");
    assert!(said.contains("Nothing has changed") && said.contains("kilnd.service is running"), "{said}");
    let binaries = machine::binaries().display().to_string();
    row.with(2, &[("DESTDIR=DIR", "DESTDIR=/run/kiln-package"), ("--binaries DIR", &format!("--binaries {binaries}"))], "");
    assert!(Path::new("/run/kiln-package/usr/lib/kiln/kilnd").exists());
    fs::remove_dir_all("/run/kiln-package").unwrap();
}

fn start(row: &Row) {
    run("systemctl", &["stop", "kilnd"]);
    row.run(0);
    let status = row.run(1);
    assert!(status.contains("active (running)") && status.contains("20"), "{status}");
    assert!(row.run(2).contains("Everything that Kiln needs is there"));
    let zip = machine::save(&machine::probe_zip(), "/run/kiln-probe.zip");
    let settings = ["--runtime", "provided.al2023", "--handler", "bootstrap", "--zip", &zip, "--timeout", "900"];
    run("kiln", &[&["function", "create", "hello"], &settings[..]].concat());
    fs::remove_file(zip).unwrap();
    assert_it_works();
}

fn stop(row: &Row) {
    // Longer than anybody waits here.
    write_config("drain_s = 800\n");
    run("systemctl", &["reload", "kilnd"]);
    eventually("kilnd drains for longer", || configured("drain_s") == 800);
    let caller = sleeping();
    let cursor = machine::journal_cursor();
    let stopping = {
        row.run.borrow_mut().insert(0);
        Command::new("bash").args(["-c", &row.says[0]]).spawn().expect("run bash")
    };
    eventually("running invocations are waited for", || {
        run("journalctl", &["--quiet", "--output=cat", "--after-cursor", &cursor, "-u", "kilnd"]).contains("draining")
    });
    // The second SIGTERM; systemd has sent the first.
    row.run(2);
    let cut = caller.wait_with_output().unwrap();
    assert!(!cut.status.success() && told(&cut).contains("Sandbox.Stopped"), "{}", told(&cut));
    assert!(stopping.wait_with_output().unwrap().status.success());
    for unit in ["kilnd.service", "kilnd.socket", "kilnd-control.socket"] {
        assert_eq!(property(unit, "ActiveState"), "inactive", "{unit}");
    }
    assert_eq!(command("kiln", &["pool"]).status.code(), Some(3), "nobody is called, and nobody starts");
    assert_eq!((machine::leftovers(), Path::new("/var/lib/kiln/db/kiln.db").exists()), (String::new(), true));
    run("systemctl", &["start", "kilnd"]);
    assert_it_works();
}

fn change(row: &Row) {
    let pid = || property("kilnd", "MainPID");
    let first = pid();
    write_config("idle_max_s = 700\n");
    row.run(0);
    eventually("kilnd has the new value", || configured("idle_max_s") == 700);
    write_config("idle_max_s = 'long'\n");
    assert!(!row.try_with(0, &[], "").status.success(), "a file with a mistake is refused");
    assert_it_works();
    assert_eq!((configured("idle_max_s"), pid()), (json!(700), first), "what runs goes on");
    write_config("account = '111122223333'\n");
    row.run(1);
    assert!(run("kiln", &["function", "get", "hello"]).contains("111122223333"));

    let other = "/srv/kiln";
    write_config(&format!("state_dir = '{other}/state'\nrun_dir = '{other}/run'\nruntimes_dir = '/var/lib/kiln/runtimes'\n"));
    fs::create_dir_all(other).unwrap();
    row.edit(4, &format!("{}\n{}", row.says[6], row.says[5].replace("DIR", other)));
    for (socket, name) in [("kilnd.socket", "kiln.sock"), ("kilnd-control.socket", "control.sock")] {
        let directory = format!("/etc/systemd/system/{socket}.d");
        fs::create_dir_all(&directory).unwrap();
        fs::write(format!("{directory}/override.conf"), format!("[Socket]\nListenStream=\nListenStream={other}/run/{name}\n"))
            .unwrap();
    }
    run("systemctl", &["daemon-reload"]);
    run("systemctl", &["stop", "kilnd.socket", "kilnd-control.socket", "kilnd"]);
    run("systemctl", &["start", "kilnd"]);
    assert!(Path::new(other).join("state/db/kiln.db").exists());
    let listed = run("kiln", &["--run", &format!("{other}/run"), "function", "list"]);
    assert!(!listed.contains("hello"), "another state: {listed}");
    // And back, as systemctl says it.
    run("systemctl", &["stop", "kilnd.socket", "kilnd-control.socket", "kilnd"]);
    run("systemctl", &["revert", "kilnd.service", "kilnd.socket", "kilnd-control.socket"]);
    fs::remove_dir_all(other).unwrap();
    write_config("");
    run("systemctl", &["start", "kilnd"]);
    assert_it_works();
}

fn upgrade(row: &Row) {
    let new = Path::new("/run/kiln-new");
    fs::create_dir(new).unwrap();
    for program in ["kilnd", "kiln", "kiln-init"] {
        fs::copy(machine::binaries().join(program), new.join(program)).unwrap();
    }
    // Another file as far as anybody can see; a few bytes behind its end do nothing.
    let kilnd = new.join("kilnd");
    fs::write(&kilnd, [fs::read(&kilnd).unwrap(), b"\0new".to_vec()].concat()).unwrap();
    let pid = property("kilnd", "MainPID");
    // Somebody who has put the new file there, and not restarted.
    run("install", &["-m", "755", "/run/kiln-new/kilnd", "/usr/local/lib/kiln/kilnd.new"]);
    fs::rename("/usr/local/lib/kiln/kilnd.new", "/usr/local/lib/kiln/kilnd").unwrap();
    let said = told(&row.try_with(1, &[], ""));
    assert!(said.lines().any(|line| line.contains("versions") && !line.starts_with("ok")), "{said}");
    // Back again, and the way of the page.
    run("install", &["-m", "755", &machine::binaries().join("kilnd").display().to_string(), "/usr/local/lib/kiln/kilnd.new"]);
    fs::rename("/usr/local/lib/kiln/kilnd.new", "/usr/local/lib/kiln/kilnd").unwrap();
    let said = row.with(0, &[("scripts/install", "scripts/install --binaries /run/kiln-new --runtimes none")], "");
    assert!(said.contains("Restarting kilnd.service"), "{said}");
    assert_ne!(property("kilnd", "MainPID"), pid);
    row.run(1);
    fs::remove_dir_all(new).unwrap();
    assert_it_works();
}

fn let_in(row: &Row) {
    run("useradd", &["--no-create-home", "--user-group", "ada"]);
    let invoke = || as_user("ada", &["invoke", "hello", "--payload", "{}"]).status.code();
    let manage = || as_user("ada", &["pool"]).status.code();
    assert_eq!((invoke(), manage()), (Some(3), Some(3)));
    row.with(0, &[("NAME", "ada")], "");
    assert_eq!((invoke(), manage()), (Some(0), Some(3)));
    row.with(0, &[("kiln-invoke", &row.says[1]), ("NAME", "ada")], "");
    assert_eq!((invoke(), manage()), (Some(0), Some(0)));
    run("userdel", &["ada"]);
}

fn limit(row: &Row) {
    // Less than this machine has.
    row.with(0, &[("8G", "2G")], "");
    run("systemctl", &["restart", "kilnd"]);
    assert_eq!(Api::new("/run/kiln/control.sock".into()).pool()["budget_mib"], 2048 * 4 / 5);
    assert_it_works();
    row.with(0, &[("8G", "infinity"), ("CPUWeight=50", "CPUWeight=")], "");
    run("systemctl", &["restart", "kilnd"]);
}

fn read_log(row: &Row) {
    hello(json!({ "do": "print", "text": "a line of the function's", "to": "stdout" }));
    let said = row.with(0, &[("NAME", "hello")], "");
    assert!(said.contains("a line of the function's") && said.contains("REPORT "), "{said}");
    let pattern = row.text(1, &[("STATE_DIR", "/var/lib/kiln"), ("NAME", "hello")]);
    let lines = run("bash", &["-c", &format!("cat {pattern}")]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("a JSON object on each line")).collect();
    assert!(lines.iter().any(|line| line.to_string().contains("a line of the function's")), "{lines:?}");
}

fn read_journal(row: &Row) {
    // Ended for its memory; and its end has a cause, a request and a container.
    run("kiln", &["function", "update", "hello", "--memory", "128"]);
    let _ = command("kiln", &["invoke", "hello", "--payload", &json!({ "hold_mib": 300 }).to_string()]);
    run("journalctl", &["--sync"]);
    let find = |at: usize, names: &[(&str, &str)]| row.with(0, &[], &format!("--output=json {}", row.text(at, names)));
    let cause: Value =
        find(4, &[]).lines().last().map(|line| serde_json::from_str(line).unwrap()).expect("an end with this cause");
    assert_eq!(cause["KILN_FUNCTION"], "hello");
    assert!(find(1, &[]).contains("REPORT "));
    for (at, field) in [(2, "KILN_REQUEST"), (3, "KILN_CONTAINER")] {
        let value = cause[field].as_str().unwrap();
        assert!(find(at, &[("ID", value)]).contains("REPORT "), "{field}={value}");
    }
    assert!(find(5, &[]).contains("launcher ready") && !find(5, &[]).contains("REPORT "), "kilnd's own words");
    let warnings = find(6, &[]);
    assert!(
        warnings.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["PRIORITY"].as_str() <= Some("4")),
        "{warnings}"
    );
    assert!(warnings.contains("Runtime.OutOfMemory"), "{warnings}");
    assert!(row.with(7, &[], "hello").contains("REPORT "));
    assert_eq!(row.says[11], format!("Environment={}", row.says[8]));
    for filter in [&row.says[8], &format!("KILN_LOG={}", row.says[9])] {
        row.edit(10, &format!("{}\nEnvironment={filter}", row.says[12]));
        let cursor = machine::journal_cursor();
        run("systemctl", &["restart", "kilnd"]);
        assert_it_works();
        // Its end takes the container along, which is worth such a line.
        run("systemctl", &["restart", "kilnd"]);
        run("journalctl", &["--sync"]);
        // Not --after-cursor: of what is wanted, systemd 252 leaves out the first.
        let found = run("journalctl", &["--quiet", "--output=json", "-p", "7..7", "-u", "kilnd", "--cursor", &cursor]);
        let mut debug = found.lines().map(|line| serde_json::from_str::<Value>(line).expect("an entry is JSON"));
        assert!(debug.any(|entry| entry["__CURSOR"] != json!(cursor)), "{filter} says more");
        run("systemctl", &["revert", "kilnd.service"]);
    }
    run("systemctl", &["restart", "kilnd"]);
}

fn look_into(row: &Row) {
    // Afterwards it ends, so each look is into another.
    let container = || {
        assert_it_works();
        row.with(0, &[], "--quiet --function hello").lines().next().expect("a warm container").to_owned()
    };
    let id = container();
    assert!(row.run(0).contains(&id), "{id}");
    assert!(row.with(1, &[("ID", &container())], "").contains("hello"));
    row.with(2, &[("ID", &container())], "");
    let said = row.with(2, &[("ID", &container()), ("bash", &row.says[3])], "/etc/os-release");
    assert!(said.contains("VERSION"), "{said}");
    let said = row.with(2, &[("ID", &container()), ("bash", &row.says[4])], "/var/task");
    assert!(said.contains("bootstrap"), "{said}");
}

fn read_books(row: &Row) {
    assert!(row.run(0).contains("hello"));
    // No sqlite3 in this machine; its file and its words.
    let text = row.text(1, &[("STATE_DIR", "/var/lib/kiln")]);
    row.run.borrow_mut().insert(1);
    let (file, query) = text.strip_prefix("sqlite3 ").and_then(|rest| rest.split_once(' ')).expect("a file and a query");
    let books = rusqlite::Connection::open_with_flags(file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).expect("open the books");
    let mut rows = books.prepare(query.trim_matches('\'')).unwrap();
    let count = rows.query_map([], |_| Ok(())).unwrap().count();
    assert!(count > 5, "{count} invocations so far");
}

fn back_up(row: &Row) {
    assert!("systemctl stop kilnd.socket kilnd-control.socket kilnd".starts_with(&row.says[0]));
    let stop = || run("systemctl", &["stop", "kilnd.socket", "kilnd-control.socket", "kilnd"]);
    stop();
    run("bash", &["-c", "mkdir /srv/backup && cd /var/lib/kiln && cp -a $(ls | grep -v runtimes) /srv/backup"]);
    run("systemctl", &["start", "kilnd"]);
    run("kiln", &["function", "delete", "hello"]);
    stop();
    run("bash", &["-c", "cd /var/lib/kiln && rm -r $(ls | grep -v runtimes) && cp -a /srv/backup/* . && rm -r /srv/backup"]);
    run("systemctl", &["start", "kilnd"]);
    assert_it_works();
}

fn second(row: &Row) {
    row.with(0, &[(ready().0, &ready().1), ("NAME", "two")], "");
    assert_eq!(property(&row.text(1, &[("NAME", "two")]), "ActiveState"), "active");
    assert!(!row.with(2, &[("NAME", "two")], "function list").contains("hello"), "it has functions of its own");
    assert!(run("kiln", &["function", "list"]).contains("hello"));
    let text = fs::read_to_string("/etc/kiln/two.toml").unwrap();
    let taken: String = text
        .lines()
        .map(|line| if line.starts_with("first_id") { "first_id = 1879113728\n".into() } else { format!("{line}\n") })
        .collect();
    fs::write("/run/overlapping.toml", taken.replace("two", "three")).unwrap();
    let refused = row.try_with(3, &[("FILE", "/run/overlapping.toml")], "");
    assert!(!refused.status.success() && told(&refused).contains("set first_id = "), "{}", told(&refused));
    fs::remove_file("/run/overlapping.toml").unwrap();
    run("systemctl", &["disable", "--now", "kilnd@two.service", "kilnd@two.socket", "kilnd-control@two.socket"]);
}

/// As a host looks that systemd does not run on.
fn without_systemd(row: &Row) {
    run("systemctl", &["stop", "kilnd.socket", "kilnd-control.socket", "kilnd"]);
    let hidden = format!("unshare --mount bash -c 'mount -t tmpfs none /run/systemd && {}'", ready().1);
    let said = row.with(0, &[("scripts/install", &hidden)], "");
    let words = said.lines().find_map(|line| line.split_once("a cgroup of its own:").map(|(_, words)| words.trim().to_owned()));
    let words = words.unwrap_or_else(|| panic!("it says how to start: {said}"));
    assert!(words.ends_with(&row.text(1, &[("FILE", CONFIG)])), "{words}");
    row.run.borrow_mut().insert(1);
    let scope = ["--scope", "--quiet", "--property=Delegate=yes", "bash", "-c"];
    let mut kilnd =
        Command::new("systemd-run").args(scope).arg(format!("exec {words} 2> /run/kilnd.log")).spawn().expect("run kilnd");
    eventually("kilnd answers", || command("kiln", &["pool"]).status.success());
    assert_it_works();
    let signal = |signal| machine::signal(kilnd.id(), signal);
    write_config("idle_max_s = 701\n");
    signal(nix::sys::signal::Signal::SIGHUP);
    eventually("SIGHUP reloads", || configured("idle_max_s") == 701);
    signal(nix::sys::signal::Signal::SIGTERM);
    assert!(kilnd.wait().unwrap().success(), "{}", fs::read_to_string("/run/kilnd.log").unwrap());
    fs::remove_file("/run/kilnd.log").unwrap();
    assert_eq!(machine::leftovers(), "");
}

fn get_rid(row: &Row) {
    let said = row.run(0);
    // Of the second instance both, since its configuration says where its state is.
    for kept in [
        "/etc/kiln/kiln.toml, because it was changed",
        "/etc/kiln/two.toml, because what it names as state_dir is kept",
        "/var/lib/kiln: functions",
        "/var/lib/kiln-two: functions",
        "/var/lib/kiln/runtimes",
        "the user kiln",
    ] {
        assert!(said.contains(kept), "{kept}: {said}");
    }
    assert!(!Path::new("/usr/local/lib/kiln").exists() && Path::new("/var/lib/kiln/db").exists());
    let said = row.run(0);
    for kept in ["/etc/kiln/kiln.toml: a configuration", "/etc/kiln/two.toml: a configuration", "/var/lib/kiln-two: functions"] {
        assert!(said.contains(kept), "what an earlier run has kept is named again: {kept}: {said}");
    }
    row.with(0, &[], &row.says[1]);
    for gone in ["/var/lib/kiln", "/var/lib/kiln-two", "/etc/kiln"] {
        assert!(!Path::new(gone).exists(), "{gone}");
    }
}

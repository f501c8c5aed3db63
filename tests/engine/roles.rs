//! Who may do what, as the kernel tells it: real user ids before a real instance, by the socket and by `kiln`.
//! (`tests/api/who.rs` has the finer cases, before a fake.)

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::thread;

use nix::unistd::Group;
use serde_json::json;

use crate::host::{self, Answer, Instance, code};

/// A user id that nobody has, and the groups that come with it.
struct Somebody {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Somebody {
    fn in_groups(names: &[&str]) -> Self {
        let gid = |name: &&str| Group::from_name(name).unwrap().unwrap_or_else(|| panic!("no group {name}")).gid.as_raw();
        Self { uid: 471_108, gid: 471_108, groups: names.iter().map(gid).collect() }
    }

    /// One request, on a connection of theirs.
    fn ask(&self, instance: &Instance, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let api = instance.api();
        let asking = || {
            // These change the calling thread only, with its capabilities; it ends here.
            let groups: Vec<_> = self.groups.iter().map(|gid| rustix::thread::Gid::from_raw(*gid)).collect();
            let (uid, gid) = (rustix::thread::Uid::from_raw(self.uid), rustix::thread::Gid::from_raw(self.gid));
            rustix::thread::set_thread_groups(&groups).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            api.try_request(method, path, &[], body.as_bytes())
        };
        thread::scope(|scope| scope.spawn(asking).join().expect("somebody's thread"))
    }

    /// `kiln` in a process of theirs.
    fn kiln(&self, instance: &Instance, words: &[&str]) -> Output {
        // Where they can reach it: a checkout may lie in a closed home.
        let program = instance.dir.path().join("kiln");
        if !program.exists() {
            fs::copy(env!("CARGO_BIN_EXE_kiln"), &program).expect("copy kiln");
            fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={}", self.uid), format!("--regid={}", self.gid)]);
        match &self.groups[..] {
            [] => command.arg("--clear-groups"),
            groups => command.arg(format!("--groups={}", groups.iter().map(u32::to_string).collect::<Vec<_>>().join(","))),
        };
        command.arg(program).arg("--run").arg(instance.run_dir()).args(words).output().expect("run setpriv (util-linux)")
    }
}

const FUNCTIONS: &str = "/2015-03-31/functions";

/// Every managing operation, and what it answers to who may.
fn managing() -> Vec<(&'static str, String, String, u16)> {
    let tags = "/2017-03-31/tags/arn:aws:lambda:us-east-1:000000000000:function:f";
    let digest = kiln::code::Digest::of(&code::probe_zip());
    let create = json!({
        "FunctionName": "new", "Runtime": "provided.al2023", "Handler": "x", "Role": "arn:aws:iam::000000000000:role/r",
        "Code": { "ZipFile": code::base64(&code::probe_zip()) },
    });
    let layer = json!({ "Content": { "ZipFile": code::base64(&code::probe_zip()) } });
    let update = json!({ "ZipFile": code::base64(&code::probe_zip()) });
    vec![
        ("GET", FUNCTIONS.into(), String::new(), 200),
        ("GET", format!("{FUNCTIONS}/f"), String::new(), 200),
        ("GET", format!("{FUNCTIONS}/f/configuration"), String::new(), 200),
        ("GET", format!("{FUNCTIONS}/f/versions"), String::new(), 200),
        ("GET", format!("{FUNCTIONS}/f/policy"), String::new(), 404),
        ("GET", "/2020-06-30/functions/f/code-signing-config".into(), String::new(), 200),
        ("GET", "/2016-08-19/account-settings".into(), String::new(), 200),
        ("GET", "/2019-09-30/functions/f/concurrency".into(), String::new(), 200),
        ("PUT", "/2017-10-31/functions/f/concurrency".into(), r#"{"ReservedConcurrentExecutions":5}"#.into(), 200),
        ("DELETE", "/2017-10-31/functions/f/concurrency".into(), String::new(), 204),
        ("GET", "/2018-10-31/layers".into(), String::new(), 200),
        ("POST", "/2018-10-31/layers/l/versions".into(), layer.to_string(), 201),
        ("DELETE", "/2018-10-31/layers/l/versions/1".into(), String::new(), 204),
        ("GET", tags.into(), String::new(), 200),
        ("POST", tags.into(), r#"{"Tags":{"a":"b"}}"#.into(), 204),
        ("DELETE", format!("{tags}?tagKeys=a"), String::new(), 204),
        ("GET", format!("/kiln/code/{digest}.zip"), String::new(), 200),
        ("PUT", format!("{FUNCTIONS}/f/configuration"), r#"{"Timeout":5}"#.into(), 200),
        ("PUT", format!("{FUNCTIONS}/f/code"), update.to_string(), 200),
        ("POST", FUNCTIONS.into(), create.to_string(), 201),
        ("DELETE", format!("{FUNCTIONS}/new"), String::new(), 204),
    ]
}

#[test]
fn members_of_kiln_invoke_invoke_and_nothing_else_members_of_kiln_admin_do_all_and_others_do_not_get_in() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({}));
    let invocations = format!("{FUNCTIONS}/f/invocations");
    let nobody = Somebody::in_groups(&[]);
    let invoker = Somebody::in_groups(&["kiln-invoke"]);
    let admin = Somebody::in_groups(&["kiln-admin"]);

    for somebody in [&invoker, &admin] {
        let answer = somebody.ask(&instance, "POST", &invocations, r#"{"do":"echo"}"#).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"do":"echo"}"#));
    }
    for (method, path, body, good) in managing() {
        let refused = invoker.ask(&instance, method, &path, &body).unwrap();
        assert_eq!(
            (refused.status, refused.header("x-amzn-errortype")),
            (403, Some("AccessDeniedException")),
            "{method} {path}: {}",
            refused.text()
        );
        let done = admin.ask(&instance, method, &path, &body).unwrap();
        assert_eq!(done.status, good, "{method} {path}: {}", done.text());
    }
    for (method, path, body) in [("POST", &*invocations, "{}"), ("GET", FUNCTIONS, "")] {
        let error = nobody.ask(&instance, method, path, body).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{method} {path}: connect(2) itself fails: {error}");
    }
}

/// The same by the command line, in the words that a person sees.
#[test]
fn kiln_tells_who_may_not_how_to_get_in() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({}));
    let words = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    for (groups, command, status, told) in [
        (&["kiln-invoke"][..], &["invoke", "f", "--payload", r#"{"do":"echo"}"#][..], 0, ""),
        (&["kiln-invoke"], &["function", "list"], 1, "usermod -aG kiln-admin"),
        (&["kiln-invoke"], &["function", "delete", "f"], 1, "is not authorized to perform: lambda:DeleteFunction"),
        (&["kiln-invoke"], &["pool"], 3, "its group is kiln-admin"),
        (&["kiln-admin"], &["function", "list"], 0, ""),
        (&["kiln-admin"], &["invoke", "f"], 0, ""),
        (&["kiln-admin"], &["pool"], 0, ""),
        (&[], &["invoke", "f"], 3, "its group is kiln-invoke"),
        (&[], &["function", "list"], 3, "its group is kiln-invoke"),
    ] {
        let output = Somebody::in_groups(groups).kiln(&instance, command);
        assert_eq!(output.status.code(), Some(status), "{groups:?} {command:?}: {}", words(&output));
        assert!(words(&output).contains(told), "{groups:?} {command:?}: {}", words(&output));
    }
}

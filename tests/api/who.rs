//! Who may do what: the kernel says who is on the other side.

use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::doors::{ADMIN, FUNCTIONS, House, assert_status, create, creation, over};
use crate::{ARN, function, invocations};

/// A connection whose other end sees these ids. Only root may choose them; `None` says so loudly.
fn connect_as(house: &House, uid: u32, gid: u32, groups: &[u32]) -> Option<UnixStream> {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("KILN_TESTS_MUST_RUN").is_none(), "needs root");
        eprintln!("SKIP: needs root, to connect as somebody else");
        return None;
    }
    let path = house.socket();
    let groups: Vec<_> = groups.iter().map(|gid| rustix::thread::Gid::from_raw(*gid)).collect();
    let connecting = std::thread::spawn(move || {
        // These change the calling thread only; it ends here.
        let (uid, gid) = (rustix::thread::Uid::from_raw(uid), rustix::thread::Gid::from_raw(gid));
        rustix::thread::set_thread_groups(&groups).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        UnixStream::connect(path).unwrap()
    });
    Some(connecting.join().unwrap())
}

#[tokio::test]
async fn only_root_and_the_admin_group_manage_and_everybody_invokes() {
    let house = House::open();
    create(&house, "f").await;
    let code = house.directory.path().join("state/code");
    std::fs::create_dir(&code).unwrap();
    std::fs::write(code.join(format!("{}.zip", kiln::code::Digest::of(b"zip"))), "zip").unwrap();
    const USER: u32 = 4711;
    for (uid, gid, groups, manages) in [
        (0, 0, &[][..], true),
        (USER, USER, &[ADMIN][..], true),
        (USER, ADMIN, &[][..], true),
        (USER, USER, &[7; 100][..], false),
        (USER, USER, &[][..], false),
    ] {
        for (method, path, body, good) in [
            ("GET", FUNCTIONS.to_owned(), String::new(), 200),
            ("GET", function("f"), String::new(), 200),
            ("GET", format!("{}/configuration", function("f")), String::new(), 200),
            ("PUT", format!("{}/configuration", function("f")), "{}".to_owned(), 200),
            ("PUT", format!("{}/code", function("f")), r#"{"ZipFile":"emlw"}"#.to_owned(), 200),
            ("POST", FUNCTIONS.to_owned(), creation("new", json!({})), 201),
            ("DELETE", function("new"), String::new(), 204),
            ("GET", format!("{}/versions", function("f")), String::new(), 200),
            ("GET", format!("{}/policy", function("f")), String::new(), 404),
            ("GET", "/2020-06-30/functions/f/code-signing-config".to_owned(), String::new(), 200),
            ("GET", "/2016-08-19/account-settings".to_owned(), String::new(), 200),
            ("GET", format!("/2017-03-31/tags/{ARN}:f"), String::new(), 200),
            ("POST", format!("/2017-03-31/tags/{ARN}:f"), r#"{"Tags":{"a":"b"}}"#.to_owned(), 204),
            ("DELETE", format!("/2017-03-31/tags/{ARN}:f?tagKeys=a"), String::new(), 204),
            ("GET", format!("/kiln/code/{}.zip", kiln::code::Digest::of(b"zip")), String::new(), 200),
            ("POST", invocations("f"), "{}".to_owned(), 200),
        ] {
            let Some(stream) = connect_as(&house, uid, gid, groups) else { return };
            let reply = over(stream, method, &path, &[], body).await;
            let who = format!("uid {uid} gid {gid} groups {groups:?}: {method} {path}");
            if manages || path.ends_with("/invocations") {
                assert_eq!(reply.status, good, "{who}");
            } else {
                assert_eq!((reply.status, reply.header("x-amzn-errortype")), (403, Some("AccessDeniedException")), "{who}");
                let told = reply.json();
                assert!(told["Message"].as_str().unwrap().contains("is not authorized to perform: lambda:"), "{told}");
            }
        }
    }
}

#[tokio::test]
async fn without_an_admin_group_group_zero_is_nothing_special() {
    let house = House::open_with(None);
    let Some(stream) = connect_as(&house, 4711, 0, &[0]) else { return };
    assert_status(&over(stream, "GET", FUNCTIONS, &[], "").await, 403);
}

//! People who look into an environment: what it costs, who is told, and what ends them.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use super::*;
use crate::server::dispatch::NoVisit;
use crate::server::environment::VisitError;
use crate::wire::visit::{self, Asked, End, HEADER};

const BY: &str = "uid 7 (kiln container exec)";

fn asked(program: &str) -> Asked {
    Asked { command: vec![program.to_owned(), "-c".to_owned()], root: false, terminal: None, term: None }
}

/// `kiln`'s side.
struct Guest {
    stream: DuplexStream,
    talk: JoinHandle<String>,
    stop: watch::Sender<bool>,
}

impl Guest {
    async fn enter(house: &House, container: &str) -> Self {
        let visiting = house.dispatch.visit(container, &asked("/bin/sh"), BY).await.expect("let in");
        let (stream, theirs) = tokio::io::duplex(1 << 16);
        let (stop, told) = watch::channel(false);
        Self { stream, talk: tokio::spawn(visiting.talk(theirs, told)), stop }
    }

    async fn says(&mut self, text: &[u8]) {
        self.stream.write_all(&visit::header(visit::STDIN, text.len())).await.unwrap();
        self.stream.write_all(text).await.unwrap();
    }

    /// The next frame but TAKEN.
    async fn hears(&mut self) -> (u8, Vec<u8>) {
        loop {
            let mut header = [0; HEADER];
            self.stream.read_exact(&mut header).await.expect("it has not ended");
            let (kind, length) = visit::parse(header).unwrap();
            let mut bytes = vec![0; length];
            self.stream.read_exact(&mut bytes).await.unwrap();
            if kind != visit::TAKEN {
                return (kind, bytes);
            }
        }
    }

    async fn end(mut self) -> (End, String) {
        let (kind, bytes) = self.hears().await;
        assert_eq!(kind, visit::END, "{}", String::from_utf8_lossy(&bytes));
        (serde_json::from_slice(&bytes).unwrap(), self.talk.await.unwrap())
    }
}

/// Idle, and seen to be so.
async fn warm() -> House {
    let house = House::new(echo);
    house.tail().await;
    house.settled().await;
    assert_eq!(house.count(SeenState::Idle), 1);
    house
}

#[tokio::test]
async fn an_idle_one_is_woken_for_whoever_enters_and_ends_when_they_leave() {
    let house = warm().await;
    let mut guest = Guest::enter(&house, "1-1").await;
    house.launcher.saw("1 thaw").await;
    assert_eq!(house.count(SeenState::Held), 1);
    guest.says(b"hello").await;
    assert_eq!(guest.hears().await, (visit::STDOUT, b"hello".to_vec()));
    house.tail().await;
    assert_eq!(house.launcher.built(), 2, "nobody else gets it");
    guest.says(b"exit").await;
    assert_eq!(guest.end().await, (End::Exited(7), "the program ended with status 7".into()));
    house.launcher.saw("1 kill").await;
    assert_eq!(house.dispatch.snapshot().retired, [(Retire::Entered, 1)].into());
    assert!(house.log().contains("KILN: container 1-1 was entered by uid 7 (kiln container exec)\n"), "{}", house.log());
    let What::Retired { detail, .. } = house.rules.last("retired") else { panic!("it has ended") };
    assert_eq!(detail.by.as_deref(), Some(BY), "who was inside is why it ended");
    let names = house.rules.names();
    let of_guest: Vec<_> = names.iter().filter(|name| ["entered", "left", "retired"].contains(*name)).collect();
    assert_eq!(of_guest, [&"entered", &"left", &"retired"], "{names:?}");
}

#[tokio::test]
async fn whoever_goes_away_takes_their_program_with_them() {
    let house = warm().await;
    let Guest { stream, talk, stop: _stop } = Guest::enter(&house, "1-1").await;
    drop(stream);
    assert_eq!(talk.await.unwrap(), "its reader went away");
    house.launcher.saw("1 the guest is killed").await;
    house.launcher.saw("1 kill").await;
    assert_eq!(house.count(SeenState::Held), 0);
}

#[tokio::test]
async fn nothing_waits_for_whoever_is_inside() {
    for (what, why) in [("drain", "drained"), ("recycle", "recycled"), ("kill", "killed"), ("stop", "kilnd stops")] {
        let house = warm().await;
        let guest = Guest::enter(&house, "1-1").await;
        match what {
            "drain" => assert_eq!(house.dispatch.drain_function(&name(), "x").map(|drained| drained.ended), Some(1)),
            "recycle" => assert!(house.dispatch.recycle_container("1-1", "x").is_some_and(|gone| gone.ended)),
            "kill" => assert!(house.dispatch.kill_container("1-1", "x").is_some()),
            _ => house.dispatch.drain().await,
        }
        assert_eq!(house.dispatch.snapshot().environments, []);
        let (end, told) = guest.end().await;
        assert!(matches!(&end, End::Ended(text) if text.contains(why)), "{what}: {end:?}");
        assert!(told.contains(why), "{what}: {told}");
        house.launcher.saw("1 kill").await;
    }
    // And where the door itself must close.
    let house = warm().await;
    let guest = Guest::enter(&house, "1-1").await;
    guest.stop.send_replace(true);
    assert_eq!(guest.end().await.0, End::Ended("kilnd stops".into()));
}

#[tokio::test]
async fn the_memory_wall_stands_while_somebody_is_inside() {
    let (uses, told) = watch::channel(30 * MIB);
    let house = House::new(move |mut inside: Inside| {
        let mut told = told.clone();
        async move {
            let (id, body) = inside.next().await;
            inside.respond(&id, &body).await;
            tokio::select! {
                _ = inside.next() => {}
                _ = told.wait_for(|uses| *uses > 128 * MIB) => {}
            }
            inside.uses(200 * MIB, 0, 0);
            std::future::pending().await
        }
    });
    house.tail().await;
    house.settled().await;
    let guest = Guest::enter(&house, "1-1").await;
    uses.send_replace(200 * MIB);
    let (end, _) = guest.end().await;
    assert_eq!(end, End::Ended("more memory was used than the function may".into()));
    house.launcher.saw("1 kill").await;
}

#[tokio::test]
async fn beside_an_invocation_whoever_is_inside_goes_when_it_ends_and_their_leaving_does_not_end_it() {
    let (go, gone) = watch::channel(false);
    let house = House::new(move |mut inside: Inside| {
        let mut gone = gone.clone();
        async move {
            let (id, body) = inside.next().await;
            gone.wait_for(|go| *go).await.unwrap();
            inside.respond(&id, &body).await;
            inside.next().await;
            Word::Exited(0)
        }
    });
    let invoked = async { house.tail().await };
    let visits = async {
        while house.count(SeenState::Busy) == 0 {
            tokio::task::yield_now().await;
        }
        let mut first = Guest::enter(&house, "1-1").await;
        let second = Guest::enter(&house, "1-1").await;
        first.says(b"exit").await;
        assert_eq!(first.end().await.0, End::Exited(7));
        assert_eq!(house.count(SeenState::Busy), 1, "the invocation goes on");
        assert_eq!(house.dispatch.snapshot().environments[0].leaving, Some(Retire::Entered));
        go.send_replace(true);
        second
    };
    let ((body, _), second) = tokio::join!(invoked, visits);
    assert_eq!(body, "{}");
    assert_eq!(second.end().await.0, End::Ended("it ended with the invocation that it ran".into()));
    house.settled().await;
    assert_eq!(house.dispatch.snapshot().retired, [(Retire::Entered, 1)].into());
}

#[tokio::test]
async fn who_may_not_enter_is_told_why() {
    let house = warm().await;
    let why = |program: &'static str, container: &'static str| {
        let house = &house;
        async move { house.dispatch.visit(container, &asked(program), BY).await.err().expect("nobody gets in") }
    };
    assert!(matches!(why("/bin/sh", "1-9").await, NoVisit::Gone));
    let guest = Guest::enter(&house, "1-1").await;
    assert!(matches!(why("/bin/sh", "1-1").await, NoVisit::Occupied));
    drop(guest.stream);
    guest.talk.await.unwrap();
    house.tail().await;
    house.settled().await;
    let text = match why("zsh", "1-2").await {
        NoVisit::Failed(error @ VisitError::NoProgram { .. }) => error.to_string(),
        other => panic!("{other}"),
    };
    assert!(text.starts_with("there is no zsh in this container, in none of /var/lang/bin:"), "{text}");
    // Nobody was in it: it sleeps again, and serves.
    house.launcher.saw("2 freeze").await;
    assert_eq!(house.count(SeenState::Idle), 1);
    let built = house.launcher.built();
    house.tail().await;
    house.settled().await;
    assert_eq!((house.launcher.built(), house.count(SeenState::Idle)), (built, 1), "it is used again");
    house.dispatch.drain().await;
    assert!(matches!(why("/bin/sh", "1-2").await, NoVisit::Stopping));
}

#[tokio::test]
async fn looking_at_one_wakes_nobody() {
    let house = warm().await;
    let before = house.launcher.trace();
    let (seen, why, sight) = house.dispatch.look_into("1-1").await.expect("it is there");
    assert_eq!((seen.state, seen.container.as_deref(), why), (SeenState::Idle, Some("1-1"), Cold::First));
    let sight = sight.unwrap();
    assert_eq!((sight.description.init, sight.function.name.as_str()), (1, "f"));
    assert_eq!(sight.runtime_pid, None, "what stands for it here is no process");
    // What is written is seen by the fake a few turns later.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let thaws = |trace: &[String]| trace.iter().filter(|done| *done == "1 thaw").count();
    assert_eq!(thaws(&house.launcher.trace()), thaws(&before));
    let life: Vec<_> = house.dispatch.timeline("1-1").iter().map(|event| event.what.name()).collect();
    assert_eq!(life, ["starting", "ready", "invoked", "frozen", "ended"]);
    assert!(house.dispatch.look_into("1-2").await.is_none());
}

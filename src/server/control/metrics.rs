//! Metrics for Prometheus: `GET /v1/metrics` at the operators' door, and `GET /metrics` on a loopback address where the
//! configuration wants one (`metrics_listen`).
//!
//! The second asks nobody who they are: any process of this host may connect, so it gives this one text and nothing else, takes
//! no body, and bounds what a caller may cost. [`CONNECTIONS`] at once; where one more comes the oldest goes, so that whoever holds
//! connections open keeps nobody else out. One request each, within [`TIME`]. The text is made at most once in [`FRESH`], on a
//! thread that is not the event loop's.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinError, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::server::tally::{FunctionTotals, Reading, Tally};

/// Prometheus has one, and a person with curl another.
const CONNECTIONS: usize = 16;
/// From a connection to the last byte of its answer. Prometheus gives up after 10 s itself.
const TIME: Duration = Duration::from_secs(10);
/// A head has a few hundred bytes; hyper wants room for 8 KiB.
const MAX_HEAD: usize = 8 << 10;
/// Whoever asks twice within so long gets the same text on the loopback address.
const FRESH: Duration = Duration::from_secs(1);
/// After an error of accept(2) (no descriptors left, as a rule) before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What is counted, and whoever knows the rest.
pub struct Metrics {
    tally: Arc<Tally>,
    read: Arc<dyn Fn() -> Reading + Send + Sync>,
    /// The last text, for the loopback address. Held while a new one is made, so that many who ask at once wait for one.
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Metrics {
    /// `read` may block for some milliseconds.
    pub fn new(tally: Arc<Tally>, read: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        Self { tally, read: Arc::new(read), last: Mutex::default() }
    }

    /// As it is now.
    async fn text(&self) -> Result<Bytes, JoinError> {
        let (tally, read) = (self.tally.clone(), self.read.clone());
        Ok(spawn_blocking(move || tally.text(&read())).await?.into())
    }

    async fn recent(&self) -> Result<Bytes, JoinError> {
        let mut last = self.last.lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(text.clone());
        }
        let text = self.text().await?;
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }

    pub(super) fn functions(&self) -> Vec<FunctionTotals> {
        self.tally.functions()
    }

    /// For the operators' door.
    pub(super) async fn show(&self) -> Response<Full<Bytes>> {
        answer(self.text().await)
    }
}

fn answer(text: Result<Bytes, JoinError>) -> Response<Full<Bytes>> {
    match text {
        Ok(text) => {
            let mut response = Response::new(Full::new(text));
            response.headers_mut().insert(CONTENT_TYPE, TEXT);
            response
        }
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics could not be read: {error}\n")),
    }
}

fn refusal(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The loopback address, if there is one at this moment.
pub struct Loopback {
    metrics: Arc<Metrics>,
    /// `std` lock: taken to change it and to look at its name; never across an await.
    served: Lock<Option<Served>>,
}

struct Served {
    address: String,
    /// Ends when it is dropped.
    _task: JoinSet<()>,
}

impl Loopback {
    /// Nowhere at first.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, served: Lock::default() }
    }

    /// From now on there, and at no other place. Must be called inside the runtime.
    pub fn listen(&self, listener: Option<(String, OwnedFd)>) {
        let mut served = self.lock();
        // First: who connects from now on waits in the new one's queue.
        *served = None;
        let Some((address, listener)) = listener else { return info!("metrics are served on control.sock only") };
        match usable(listener) {
            Ok(listener) => {
                info!(address, "metrics are served here, too");
                let mut task = JoinSet::new();
                task.spawn(serve(listener, self.metrics.clone()));
                *served = Some(Served { address, _task: task });
            }
            Err(error) => warn!(%error, address, "metrics cannot be served here"),
        }
    }

    pub fn address(&self) -> Option<String> {
        self.lock().as_ref().map(|served| served.address.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn usable(listener: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Never ends; drop it to end it, and every connection.
async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let (mut connections, mut ages) = (JoinSet::new(), VecDeque::<AbortHandle>::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                ages.retain(|connection| !connection.is_finished());
                if ages.len() >= CONNECTIONS {
                    ages.pop_front().into_iter().for_each(|oldest| oldest.abort());
                }
                let metrics = metrics.clone();
                // Whoever is too slow loses its connection, and knows why.
                ages.push_back(connections.spawn(async move { drop(timeout(TIME, connection(stream, metrics)).await) }));
            }
            Err(error) => {
                warn!(%error, "a connection for metrics could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, metrics: Arc<Metrics>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let metrics = metrics.clone();
        async move { Ok::<_, Infallible>(asked(&metrics, &request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIME)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn asked(metrics: &Metrics, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => answer(metrics.recent().await),
        (_, "/metrics") => {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        _ => refusal(StatusCode::NOT_FOUND, "there is nothing here but /metrics\n".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Place {
        address: SocketAddr,
        loopback: Loopback,
        /// How often somebody was asked for what is counted elsewhere.
        read: Arc<AtomicUsize>,
    }

    fn bound() -> (String, SocketAddr, OwnedFd) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (address.to_string(), address, listener.into())
    }

    impl Place {
        fn open() -> Self {
            let read = Arc::<AtomicUsize>::default();
            let count = read.clone();
            let metrics = Metrics::new(Arc::new(Tally::new("test", |_| true)), move || {
                count.fetch_add(1, Ordering::SeqCst);
                Reading::default()
            });
            let loopback = Loopback::new(Arc::new(metrics));
            let (name, address, listener) = bound();
            loopback.listen(Some((name, listener)));
            Self { address, loopback, read }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        async fn ask(&self, head: &str) -> String {
            let mut caller = self.connect().await;
            caller.write_all(format!("{head} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            heard(caller).await
        }
    }

    /// Until the other end closes, which it does.
    async fn heard(mut caller: TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that was cut may end with a reset.
        let _ = caller.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn there_is_one_text_and_nothing_else() {
        let place = Place::open();
        let text = place.ask("GET /metrics").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
        assert!(text.contains("\nkiln_build_info{kiln_instance=\"test\",version=\""), "{text}");
        for (head, status) in [
            ("POST /metrics", "405"),
            ("DELETE /metrics", "405"),
            ("GET /", "404"),
            ("GET /v1/pool", "404"),
            ("POST /v1/containers/1-1/kill", "404"),
            ("GET /metrics/../v1/status", "404"),
        ] {
            let text = place.ask(head).await;
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {text}");
            assert!(!text.contains("kiln_"), "{head}: {text}");
        }
    }

    #[tokio::test]
    async fn who_holds_connections_open_keeps_nobody_out() {
        let place = Place::open();
        let mut silent = Vec::new();
        for number in 0..3 * CONNECTIONS {
            let mut caller = place.connect().await;
            // Some of them never say a word, some never end their first line.
            if number % 2 == 0 {
                caller.write_all(b"GET /metr").await.unwrap();
            }
            silent.push(caller);
        }
        assert!(place.ask("GET /metrics").await.contains("kiln_build_info"));
        // The first ones made room for the later ones, long before their own time was over.
        let first = timeout(TIME / 2, heard(silent.remove(0)));
        assert_eq!(first.await.expect("it is cut at once"), "");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_loses_its_connection_in_time() {
        let place = Place::open();
        let mut caller = place.connect().await;
        let began = Instant::now();
        caller.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        assert!(!heard(caller).await.contains("200 OK"));
        assert!(began.elapsed() <= TIME + Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn who_asks_without_end_is_not_counted_for_without_end() {
        let place = Place::open();
        let began = Instant::now();
        for _ in 0..50 {
            assert!(place.ask("GET /metrics").await.contains("kiln_build_info"));
        }
        let most = 1 + began.elapsed().as_secs() as usize;
        let read = place.read.load(Ordering::SeqCst);
        assert!(read <= most, "{read} times within {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn another_address_takes_the_place_of_the_first_and_none_of_both() {
        let place = Place::open();
        let (name, address, listener) = bound();
        place.loopback.listen(Some((name.clone(), listener)));
        assert_eq!(place.loopback.address(), Some(name));
        let moved = Place { address, ..place };
        assert!(moved.ask("GET /metrics").await.contains("kiln_build_info"));
        moved.loopback.listen(None);
        assert_eq!(moved.loopback.address(), None);
        // The task that had the listener is dropped when its turn comes.
        let refused = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), refused).await.expect("nobody listens there any more");
    }
}

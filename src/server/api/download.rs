//! `Code.Location`: a function's zip, as it was uploaded, for whoever may manage functions.
//!
//! Lambda gives a signed URL of S3's. Here it leads back to the door that the caller came by: `GET /kiln/code/<sha256>.zip`,
//! on the same socket, by the same right as GetFunction itself. The files are root's; the server may read them
//! ([`crate::supervisor`]'s premises) and writes none.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use super::error::Kind;
use super::{Answer, Api};
use crate::code::Digest;
use crate::server::intake::MAX_ZIP;

/// Downloads at once: each holds its zip in memory until the caller has taken it.
const DOWNLOADS: usize = 4;

/// Bounds the downloads. A clone is another handle to the same bound.
#[derive(Clone)]
pub struct Downloads(Arc<Semaphore>);

/// A zip on its way out, and the place that it takes.
struct Held {
    zip: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.zip
    }
}

impl Default for Downloads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(DOWNLOADS)))
    }
}

impl Api {
    pub(super) async fn download_code(&self, file: &str) -> Answer {
        let none = || Kind::ResourceNotFound.with(format!("no function's code is named {file:.80}"));
        let code: Digest = file.strip_suffix(".zip").and_then(|digest| digest.parse().ok()).ok_or_else(none)?;
        if !self.registry.uses_code(&code) {
            return Err(none());
        }
        let place = self.downloads.0.clone().acquire_owned().await;
        let place = place.map_err(|_| Kind::Service.with("kilnd is stopping, try again"))?;
        // From the digest again, so that nothing of the caller's is part of the path.
        let path = self.state_dir.join(format!("code/{code}.zip"));
        let read = tokio::task::spawn_blocking(move || -> io::Result<Vec<u8>> {
            let mut zip = Vec::new();
            File::open(path)?.take(MAX_ZIP as u64).read_to_end(&mut zip)?;
            Ok(zip)
        });
        let zip = read.await.map_err(io::Error::from).and_then(|read| read).map_err(|error| {
            warn!(%code, %error, "a function's zip could not be read");
            Kind::Service.with("the code could not be read: kilnd's log says why")
        })?;
        let mut response = Response::new(Full::new(Bytes::from_owner(Held { zip, _place: place })));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/zip"));
        Ok(response)
    }
}

/// Where the caller finds `code`: at the host by whose name it came. Over a Unix socket any name will do.
pub fn location(code: &Digest, headers: &HeaderMap) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).filter(|host| is_host(host)).unwrap_or("kiln");
    format!("http://{host}/kiln/code/{code}.zip")
}

/// A name or an address, and a port: nothing that would end the host's part of a URL.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_leads_to_where_the_caller_came_to_and_nowhere_else() {
        let code = Digest::of(b"zip");
        let at = |host: &'static str| location(&code, &HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]));
        assert_eq!(at("localhost"), format!("http://localhost/kiln/code/{code}.zip"));
        assert_eq!(at("127.0.0.1:9000"), format!("http://127.0.0.1:9000/kiln/code/{code}.zip"));
        for odd in ["", "a/b", "a@b", "a?b", "a#b", "a b", "%2f"] {
            assert_eq!(at(odd), format!("http://kiln/kiln/code/{code}.zip"), "{odd}");
        }
        assert_eq!(location(&code, &HeaderMap::new()), format!("http://kiln/kiln/code/{code}.zip"));
    }
}

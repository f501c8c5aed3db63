//! A request's body: bounded in bytes and time while it is read, and read to its end when nobody wants it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::EXPECT;
use hyper::http::request::Parts;

/// For what is left of a body that nobody wants.
const DISCARD_TIME: Duration = Duration::from_secs(10);

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    TooLarge,
    TooSlow,
    Broken,
}

/// The whole body, at most `limit` bytes, within `time`.
pub async fn read_body(body: &mut Incoming, limit: usize, time: Duration) -> Result<Bytes, BodyError> {
    let declared = body.size_hint().exact();
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(BodyError::TooLarge);
    }
    let reading = async {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
            if whole.len() + data.len() > limit {
                return Err(BodyError::TooLarge);
            }
            if whole.is_empty() {
                // As a rule a small body is one frame: then it is not copied.
                if Some(data.len() as u64) == declared {
                    return Ok(data);
                }
                whole.reserve(declared.unwrap_or(0) as usize);
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(time, reading).await.unwrap_or(Err(BodyError::TooSlow))
}

/// A caller that is still writing when the connection is closed sees a broken pipe instead of the answer.
pub async fn discard(head: &Parts, mut body: Incoming) {
    // Whoever waits for "100 Continue" has sent nothing yet, and would begin to if we read.
    if !body.is_end_stream() && !head.headers.contains_key(EXPECT) {
        let _ = tokio::time::timeout(DISCARD_TIME, async { while let Some(Ok(_)) = body.frame().await {} }).await;
    }
}

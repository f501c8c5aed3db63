//! What the processes say to each other: closed lists of messages, no logic.
//!
//! A word, known to every process. Each pair of processes has one SOCK_SEQPACKET socket pair, so a
//! message is a packet; descriptors ride along by SCM_RIGHTS ([`crate::sys::packet`]).
//!
//! ```text
//! server ⇄ launcher      [`launcher::Order`], [`launcher::Report`]
//! server ⇄ supervisor    [`supervisor::ToSupervisor`], [`supervisor::ToServer`]
//! server ⇄ kiln-init     [`init`]: fixed bytes, since kiln-init has no standard library
//! kiln ⇄ server          [`visit`]: what somebody who entered a container types and sees
//! ```
//!
//! Orders are flat: nothing in them is a path, a mount option, an id of the host, a capability or a
//! function's variable. The root side checks each as if the server had been taken over.

pub mod init;
pub mod launcher;
pub mod supervisor;
pub mod visit;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message on any of our sockets; a larger one is an error on both sides.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The most descriptors that one message may carry.
pub const MAX_DESCRIPTORS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("encode a message: {0}")]
    Encode(postcard::Error),
    #[error("a message of {0} bytes: at most {MAX_MESSAGE} may be sent")]
    TooLong(usize),
    #[error("decode a message of {length} bytes: {source}")]
    Decode { length: usize, source: postcard::Error },
    #[error("{0} bytes follow the message")]
    Trailing(usize),
}

/// The bytes of a message.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, WireError> {
    let bytes = postcard::to_stdvec(message).map_err(WireError::Encode)?;
    if bytes.len() > MAX_MESSAGE { Err(WireError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// The message in `bytes`, all of them.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, WireError> {
    let (message, rest) = postcard::take_from_bytes(bytes).map_err(|source| WireError::Decode { length: bytes.len(), source })?;
    if rest.is_empty() { Ok(message) } else { Err(WireError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests;

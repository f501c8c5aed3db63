//! Which functions and layers exist.
//!
//! A word of the server. The store behind it is a trait, so that a fleet can share one later;
//! the embedded one is [`sqlite`].

mod layers;
pub mod sqlite;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::code::Digest;
use crate::database::DatabaseError;
use crate::function::{Function, FunctionName};

pub use layers::{LayerName, LayerUse, LayerVersion, Layers, NotALayerName};

/// Looking a function up, on every invocation's path: from memory, without waiting.
pub trait Functions: Send + Sync + 'static {
    /// The function as it is now. An environment with another [`crate::function::Stamp`] than this one's is not lent.
    fn function(&self, name: &FunctionName) -> Option<Arc<Function>>;

    /// Invocations at once that are reserved for the function, and bound it.
    fn reserved(&self, name: &FunctionName) -> Option<u32>;

    /// All functions that have a reserve.
    fn reserves(&self) -> Vec<(FunctionName, u32)>;
}

/// Managing functions. What a call has returned is durable; what is not durable nobody sees.
pub trait Registry: Functions + Layers {
    fn record(&self, name: &FunctionName) -> Option<Arc<Record>>;

    /// At most `limit` records in the order of their names, beginning behind `after`.
    fn page(&self, after: Option<&FunctionName>, limit: usize) -> Vec<Arc<Record>>;

    /// The draft's stamp, revision and time are set here.
    fn create(&self, draft: Draft) -> Promise<'_, Result<Arc<Record>, RegistryError>>;

    /// With `expected`, only if that is still the function's revision.
    fn update(
        &self,
        name: &FunctionName,
        expected: Option<Uuid>,
        change: Change,
    ) -> Promise<'_, Result<Arc<Record>, RegistryError>>;

    /// Its reserve goes with it.
    fn delete(&self, name: &FunctionName) -> Promise<'_, Result<Arc<Record>, RegistryError>>;

    /// Reserves so many invocations at once; `None`: none. All reserves together may be `most`, but one that does not grow is
    /// always taken. Neither the function's stamp nor its revision changes: its environments are still the right ones.
    fn set_reserve(&self, name: &FunctionName, reserve: Option<u32>, most: u32) -> Promise<'_, Result<(), RegistryError>>;

    /// Bytes of all functions' and layers' zips, each as often as it is named: what Lambda calls `TotalCodeSize`.
    fn total_code_size(&self) -> u64;

    /// Whether a function is made from this code, has it as a layer, or could get it as one.
    fn uses_code(&self, code: &Digest) -> bool;

    /// The bytes that this code has unpacked; `None` if nobody uses it, or if it was stored before this was noted.
    fn unpacked_size(&self, code: &Digest) -> Option<u64>;

    /// Says, before code is adopted, that it may be there from now on.
    fn expect_code(&self, code: Digest) -> Promise<'_, Result<(), RegistryError>>;

    /// Says that code is there no more.
    fn code_is_gone(&self, code: Digest) -> Promise<'_, Result<(), RegistryError>>;

    /// Code that may be there though nobody uses it.
    fn unused_codes(&self) -> Promise<'_, Result<Vec<Digest>, RegistryError>>;
}

/// Boxed, so that the trait can be an object; the path of an invocation goes through [`Functions`] only.
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs inside of the store's transaction, on the function as it is then.
pub type Change = Box<dyn FnOnce(&mut Draft) + Send>;

/// What an owner may decide about a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// Its layers are what `layers` makes them when the draft is stored.
    pub function: Function,
    /// The ARN of the execution role, kept and shown; Kiln gives it no power.
    pub role: String,
    pub description: String,
    /// Bytes of the zip.
    pub code_size: u64,
    /// Bytes of the tree that came out of it; 0 in records that are older than this member.
    #[serde(default)]
    pub unpacked: u64,
    /// The bottom one first: of two that have the same file, the later one's is seen. Each must be published still, or be the
    /// function's already.
    #[serde(default)]
    pub layers: Vec<LayerUse>,
    pub tags: BTreeMap<String, String>,
}

/// A function as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub function: Arc<Function>,
    pub role: String,
    pub description: String,
    pub code_size: u64,
    pub unpacked: u64,
    pub layers: Vec<LayerUse>,
    pub tags: BTreeMap<String, String>,
    /// Invocations at once that are its own.
    pub reserved_concurrency: Option<u32>,
    /// Another one after every change: whoever updates may ask that nobody else has meanwhile.
    pub revision: Uuid,
    /// Milliseconds since 1970, UTC.
    pub modified_ms: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("function {0} exists already")]
    Exists(FunctionName),
    #[error("function {0} does not exist")]
    Unknown(FunctionName),
    #[error("function {0} has another revision by now")]
    Stale(FunctionName),
    #[error("layer version {name}:{version} does not exist")]
    NoLayer { name: LayerName, version: u64 },
    #[error("all reserves together would be more than {most}")]
    TooMuchReserved { most: u32 },
    /// Only at start: every later record is written by us.
    #[error("the stored record of {name:?} cannot be read: {why}")]
    Damaged { name: String, why: String },
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl RegistryError {
    /// The disk is full: nothing was stored.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_full())
    }
}

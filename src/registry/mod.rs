//! Which functions exist.
//!
//! A word of the server. The store behind it is a trait, so that a fleet can share one later;
//! the embedded one is [`sqlite`].

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

/// Looking a function up, on every invocation's path: from memory, without waiting.
pub trait Functions: Send + Sync + 'static {
    /// The function as it is now. An environment with another [`crate::function::Stamp`] than this one's is not lent.
    fn function(&self, name: &FunctionName) -> Option<Arc<Function>>;
}

/// Managing functions. What a call has returned is durable; what is not durable nobody sees.
pub trait Registry: Functions {
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

    fn delete(&self, name: &FunctionName) -> Promise<'_, Result<Arc<Record>, RegistryError>>;

    /// Whether a function is made from this code.
    fn uses_code(&self, code: &Digest) -> bool;

    /// Says, before code is adopted, that it may be there from now on.
    fn expect_code(&self, code: Digest) -> Promise<'_, Result<(), RegistryError>>;

    /// Says that code is there no more.
    fn code_is_gone(&self, code: Digest) -> Promise<'_, Result<(), RegistryError>>;

    /// Code that may be there though no function is made from it.
    fn unused_codes(&self) -> Promise<'_, Result<Vec<Digest>, RegistryError>>;
}

/// Boxed, so that the trait can be an object; the path of an invocation goes through [`Functions`] only.
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs inside of the store's transaction, on the function as it is then.
pub type Change = Box<dyn FnOnce(&mut Draft) + Send>;

/// What an owner may decide about a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    pub function: Function,
    /// The ARN of the execution role, kept and shown; Kiln gives it no power.
    pub role: String,
    pub description: String,
    /// Bytes of the zip.
    pub code_size: u64,
    pub tags: BTreeMap<String, String>,
}

/// A function as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub function: Arc<Function>,
    pub role: String,
    pub description: String,
    pub code_size: u64,
    pub tags: BTreeMap<String, String>,
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
    /// Only at start: every later record is written by us.
    #[error("the stored record of function {name:?} cannot be read: {why}")]
    Damaged { name: String, why: String },
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

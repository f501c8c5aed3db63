use crate::launcher::store::*; use crate::code::Digest; use crate::wire::launcher::StagingId; use std::fs::File;
#[derive(Debug, thiserror::Error)] pub enum AdoptError { #[error("{0}")] Refused(String) }
pub fn adopt(_:&Store,_:StagingId,_:Digest,_:File)->Result<(),AdoptError>{Ok(())}
pub fn forget(_:&Store,_:Digest)->Result<(),AdoptError>{Ok(())}

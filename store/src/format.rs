//! The version of the store's format and its one serialisation (postcard). Byte maps are in docs/FORMAT.md. When a shape
//! changes, the old one moves into a module `v1` here with a `migrate`, and the version goes up.

use crate::error::ReadError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the database: its tables and what their rows mean. Each file beside it has a version of its own.
pub(crate) const VERSION: u32 = 2;
/// Version of the shapes of sealed values, blobs and stop seals. It is part of the context that a value is sealed in.
pub(crate) const SCHEMA: u32 = 1;

/// The canonical bytes of a value.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // The shapes of this crate are plain structs, enums, vectors and numbers: postcard fails on none of them.
    postcard::to_stdvec(value).expect("plain shapes serialise into a growing vector")
}

/// The value of bytes that authenticated. All of them must belong to it.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ReadError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(ReadError::Integrity("a sealed value has another shape than its table")),
    }
}

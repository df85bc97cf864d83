//! A large thing that arrives in chunks: nothing more than announced, and exactly what its digest says. Refuses to know
//! what is inside.

use empathd_proto::engine::{BlobHead, MAX_BLOB_BYTES};
use empathd_proto::frame::CHUNK_BYTES;

/// Why chunks do not make the announced thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BlobError {
    #[error("{0} bytes were announced, the limit is {MAX_BLOB_BYTES}")]
    Announced(u64),
    #[error("a chunk is empty or larger than {CHUNK_BYTES} bytes")]
    Chunk,
    #[error("more bytes came than were announced")]
    TooMany,
    #[error("the BLAKE3 digest is not the announced one")]
    Digest,
}

/// A thing on its way.
pub(super) struct Assembly {
    head: BlobHead,
    /// Grows with what really came; an announcement alone takes no memory.
    bytes: Vec<u8>,
    hash: blake3::Hasher,
}

impl Assembly {
    pub(super) fn new(head: BlobHead) -> Result<Self, BlobError> {
        if head.bytes == 0 || head.bytes > MAX_BLOB_BYTES {
            return Err(BlobError::Announced(head.bytes));
        }
        Ok(Self { head, bytes: Vec::new(), hash: blake3::Hasher::new() })
    }

    /// Takes a chunk; whether it was the last one.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<bool, BlobError> {
        if chunk.is_empty() || chunk.len() > CHUNK_BYTES {
            return Err(BlobError::Chunk);
        }
        self.bytes.extend_from_slice(chunk);
        self.hash.update(chunk);
        match (self.bytes.len() as u64).cmp(&self.head.bytes) {
            std::cmp::Ordering::Less => Ok(false),
            std::cmp::Ordering::Greater => Err(BlobError::TooMany),
            std::cmp::Ordering::Equal if self.hash.finalize() == self.head.blake3 => Ok(true),
            std::cmp::Ordering::Equal => Err(BlobError::Digest),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.bytes.len() as u64 == self.head.bytes
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(bytes: &[u8]) -> BlobHead {
        BlobHead { bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes() }
    }

    #[test]
    fn chunks_make_the_thing_or_are_refused() {
        let mut whole = Assembly::new(head(b"abcdef")).expect("bounded");
        assert_eq!(whole.push(b"abc"), Ok(false));
        assert_eq!(whole.push(b"def"), Ok(true));
        assert_eq!(whole.into_bytes(), b"abcdef");
        let mut other = Assembly::new(head(b"abcdef")).expect("bounded");
        assert_eq!(other.push(b"abcdeX"), Err(BlobError::Digest));
        let mut more = Assembly::new(head(b"abc")).expect("bounded");
        assert_eq!(more.push(b"abcd"), Err(BlobError::TooMany));
        assert_eq!(more.push(b""), Err(BlobError::Chunk));
        assert!(Assembly::new(BlobHead { bytes: MAX_BLOB_BYTES + 1, blake3: [0; 32] }).is_err());
    }
}

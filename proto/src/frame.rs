//! How a message travels on a Unix socket: `u32` little-endian length, one version byte, postcard. The length counts
//! the version byte and the payload. This module only encodes and checks; reading and writing belong to each side.

use serde::{Serialize, de::DeserializeOwned};

/// Version byte of both local protocols.
pub const VERSION: u8 = 1;
/// Largest value of the length field. Larger things travel in chunks of [`CHUNK_BYTES`].
pub const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// Size of one chunk of a large thing (an upload, an adapter, a checkpoint).
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes before the payload: the length and the version.
pub const HEADER_BYTES: usize = 5;

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is zero or above [`MAX_FRAME_BYTES`].
    #[error("frame length {0} is outside 1..={MAX_FRAME_BYTES}")]
    Length(u32),
    /// The other side speaks another version.
    #[error("frame version {0}, expected {VERSION}: both programs must be of the same release")]
    Version(u8),
    /// The payload is not the expected message, or has bytes left over.
    #[error("frame payload is not a valid message")]
    Payload,
}

/// Encodes one message with its header.
///
/// # Errors
/// [`FrameError::Length`] when the message is too large and should have been sent in chunks.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let payload = postcard::to_stdvec(message).map_err(|_| FrameError::Payload)?;
    let length = payload.len() + 1;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::Length(u32::try_from(length).unwrap_or(u32::MAX)));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&u32::try_from(length).map_err(|_| FrameError::Payload)?.to_le_bytes());
    bytes.push(VERSION);
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// Checks a header and gives the number of payload bytes that follow it.
///
/// # Errors
/// [`FrameError::Length`] or [`FrameError::Version`]; the connection is then useless and must be closed.
pub fn payload_bytes(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    match usize::try_from(length) {
        Ok(bytes) if (1..=MAX_FRAME_BYTES).contains(&bytes) => {
            if header[4] == VERSION {
                Ok(bytes - 1)
            } else {
                Err(FrameError::Version(header[4]))
            }
        }
        _ => Err(FrameError::Length(length)),
    }
}

/// Decodes a payload. Bytes left over are an error, so that two messages can never be read as one.
///
/// # Errors
/// [`FrameError::Payload`].
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Payload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_return(text in ".*", number in any::<u64>()) {
            let bytes = encode(&(number, text.clone())).expect("small");
            let header = bytes[..HEADER_BYTES].try_into().expect("five");
            prop_assert_eq!(payload_bytes(header), Ok(bytes.len() - HEADER_BYTES));
            prop_assert_eq!(decode::<(u64, String)>(&bytes[HEADER_BYTES..]), Ok((number, text)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode::<crate::engine::ToEngine>(&bytes);
            let _ = decode::<crate::engine::FromEngine>(&bytes);
            let _ = decode::<crate::admin::ToDaemon>(&bytes);
            let _ = decode::<crate::admin::FromDaemon>(&bytes);
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        assert_eq!(payload_bytes([0, 0, 0, 0, VERSION]), Err(FrameError::Length(0)));
        assert_eq!(payload_bytes([0xff, 0xff, 0xff, 0xff, VERSION]), Err(FrameError::Length(u32::MAX)));
        assert_eq!(payload_bytes([2, 0, 0, 0, 9]), Err(FrameError::Version(9)));
        assert_eq!(decode::<u8>(&[1, 2]), Err(FrameError::Payload));
    }
}

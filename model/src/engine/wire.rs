//! Frames over a blocking stream. Refuses to know what the messages mean.

use empathd_proto::frame::{self, FrameError, HEADER_BYTES};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{ErrorKind, Read, Write};
use zeroize::Zeroizing;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The stream failed, or ended inside a frame.
    #[error("the connection broke ({0})")]
    Io(ErrorKind),
    /// The bytes are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl From<std::io::Error> for WireError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.kind())
    }
}

/// Reads one message; nothing when the stream ended before it.
pub(super) fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, WireError> {
    let mut header = [0; HEADER_BYTES];
    loop {
        match stream.read(&mut header[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    stream.read_exact(&mut header[1..])?;
    let mut payload = Zeroizing::new(vec![0; frame::payload_bytes(header)?]);
    stream.read_exact(&mut payload)?;
    Ok(Some(frame::decode(&payload)?))
}

/// Writes one message.
pub(super) fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), WireError> {
    let bytes = Zeroizing::new(frame::encode(message)?);
    Ok(stream.write_all(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_return_and_broken_frames_are_refused() {
        let mut bytes = Vec::new();
        write(&mut bytes, &(7u8, "text")).expect("written");
        let mut source = bytes.as_slice();
        assert_eq!(read::<(u8, String)>(&mut source).expect("read"), Some((7, "text".to_owned())));
        assert_eq!(read::<(u8, String)>(&mut source).expect("ended"), None);
        assert!(matches!(read::<u8>(&mut &bytes[..3]), Err(WireError::Io(ErrorKind::UnexpectedEof))));
        assert!(matches!(read::<u8>(&mut &bytes[..bytes.len() - 1]), Err(WireError::Io(_))));
        assert!(matches!(read::<bool>(&mut bytes.as_slice()), Err(WireError::Frame(FrameError::Payload))));
    }
}

//! Frames of `empathd_proto::frame` over tokio streams. What a message means is not known here.

use empathd_proto::frame::{self, FrameError, HEADER_BYTES};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why a frame could not be read or written. The connection is then of no more use.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream ended or failed.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The bytes are not a frame of this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads one message; `None` when the stream ended between two messages.
///
/// # Errors
/// [`WireError`], also when the stream ends within a message.
pub(crate) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, WireError> {
    let mut header = [0u8; HEADER_BYTES];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await?;
    let mut payload = vec![0u8; frame::payload_bytes(header)?];
    stream.read_exact(&mut payload).await?;
    Ok(Some(frame::decode(&payload)?))
}

/// Writes one message.
///
/// # Errors
/// [`WireError`].
pub(crate) async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), WireError> {
    let bytes = frame::encode(message)?;
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}

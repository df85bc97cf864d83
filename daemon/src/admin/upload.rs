//! An upload on its way in, and progress on its way out. Both are bounded. What the bytes mean is not known here.

use empathd_proto::Problem;
use empathd_proto::admin::Progress;
use empathd_proto::frame::CHUNK_BYTES;
use empathd_proto::problem::ErrorCode;
use tokio::sync::mpsc;

/// Chunks of an upload that may wait between the socket and the job.
pub const CHUNKS_WAITING_MAX: usize = 4;

/// A file that the caller is sending. Nothing of it is read before the action is authorised.
#[derive(Debug)]
pub struct Upload {
    declared_bytes: u64,
    limit_bytes: u64,
    chunks: mpsc::Receiver<Vec<u8>>,
}

impl Upload {
    /// An upload of `declared_bytes`, refused above `limit_bytes`; the sender is dropped after the last chunk.
    #[must_use]
    pub fn new(declared_bytes: u64, limit_bytes: u64) -> (mpsc::Sender<Vec<u8>>, Self) {
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
        (sender, Self { declared_bytes, limit_bytes, chunks })
    }

    /// The whole of it.
    ///
    /// # Errors
    /// [`ErrorCode::TooLarge`] above the limit, [`ErrorCode::BadRequest`] when it ends early or goes on too long.
    pub async fn collect(mut self) -> Result<Vec<u8>, Problem> {
        if self.declared_bytes > self.limit_bytes {
            let detail = format!("The file has {} bytes, the limit is {}.", self.declared_bytes, self.limit_bytes);
            return Err(Problem::new(ErrorCode::TooLarge, detail, "Split the file, or raise admin.upload_bytes_max."));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunks.recv().await {
            if (bytes.len() + chunk.len()) as u64 > self.declared_bytes {
                return Err(wrong_length("more"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if (bytes.len() as u64) < self.declared_bytes {
            return Err(wrong_length("fewer"));
        }
        Ok(bytes)
    }
}

fn wrong_length(word: &str) -> Problem {
    let detail = format!("The upload had {word} bytes than announced.");
    Problem::new(ErrorCode::BadRequest, detail, "Send the file again; nothing was kept.")
}

/// A file on its way out.
#[derive(Debug)]
pub enum FilePart {
    /// A file begins.
    Begin {
        /// Its place in the folder.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// More of it, at most [`CHUNK_BYTES`].
    Chunk(Vec<u8>),
}

/// Where files of an action go. A file waits for whoever takes it; nothing is dropped.
#[derive(Debug, Clone, Default)]
pub struct FileSink(Option<mpsc::Sender<FilePart>>);

impl FileSink {
    /// Files into this channel.
    #[must_use]
    pub fn new(sender: mpsc::Sender<FilePart>) -> Self {
        Self(Some(sender))
    }

    /// Sends a whole file.
    ///
    /// # Errors
    /// Nobody takes it any more.
    pub async fn send(&self, path: String, bytes: Vec<u8>) -> Result<(), Problem> {
        let begin = FilePart::Begin { path, bytes: bytes.len() as u64 };
        let chunks = bytes.chunks(CHUNK_BYTES).map(|chunk| FilePart::Chunk(chunk.to_vec()));
        for part in std::iter::once(begin).chain(chunks) {
            let sent = match &self.0 {
                Some(sender) => sender.send(part).await.is_ok(),
                None => false,
            };
            if !sent {
                return Err(gone());
            }
        }
        Ok(())
    }
}

impl FileSink {
    /// Sends a file as it is read. It blocks: call it where that may be.
    ///
    /// # Errors
    /// Nobody takes it any more, or it cannot be read.
    pub fn send_from(&self, path: &str, bytes: u64, from: &mut dyn std::io::Read) -> Result<(), Problem> {
        let sender = self.0.as_ref().ok_or_else(gone)?;
        sender.blocking_send(FilePart::Begin { path: path.to_owned(), bytes }).map_err(|_| gone())?;
        let mut left = bytes;
        while left > 0 {
            let mut chunk = vec![0; left.min(CHUNK_BYTES as u64) as usize];
            from.read_exact(&mut chunk).map_err(|error| {
                Problem::new(ErrorCode::Storage, format!("A file cannot be read back: {error}."), "Check the disk.")
            })?;
            left -= chunk.len() as u64;
            sender.blocking_send(FilePart::Chunk(chunk)).map_err(|_| gone())?;
        }
        Ok(())
    }
}

fn gone() -> Problem {
    let detail = "The caller went away before every file was taken.";
    Problem::new(ErrorCode::Timeout, detail, "Run the command again with an empty folder.")
}

/// Where progress of an action goes. Progress that nobody takes in time is dropped: it is never waited for.
#[derive(Debug, Clone, Default)]
pub struct ProgressSink(Option<mpsc::Sender<Progress>>);

impl ProgressSink {
    /// Progress into this channel.
    #[must_use]
    pub fn new(sender: mpsc::Sender<Progress>) -> Self {
        Self(Some(sender))
    }

    /// Says how far the work is.
    pub fn send(&self, progress: Progress) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(progress);
        }
    }

    /// Waits until nobody listens any more.
    pub async fn closed(&self) {
        match &self.0 {
            Some(sender) => sender.closed().await,
            None => std::future::pending().await,
        }
    }

    /// Whether somebody still listens.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.as_ref().is_some_and(|sender| !sender.is_closed())
    }
}

//! One connection to the engine, shared by many works. Each work has a tag and a bounded queue of what the engine says
//! about it; announced chunks are put together and checked here. What a work is for is not known here.

use crate::wire::{self, WireError};
use empathd_proto::engine::{BlobHead, FromEngine, FromEngineBody, ToEngine, ToEngineBody};
use empathd_proto::frame::CHUNK_BYTES;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Messages that may wait to be written.
const OUTGOING_MAX: usize = 32;
/// Largest adapter or checkpoint that is taken into this process.
pub const BLOB_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// How long the engine may take to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long a full queue of one work may hold up the others before that work is given up.
const SLOW_WORK_AFTER: Duration = Duration::from_secs(30);

/// Why a connection ended or never began.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream broke.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The engine did not begin with a hello in time.
    #[error("the engine did not say hello: is it of the same release?")]
    NoHello,
    /// The engine sent what it had not announced, or not what it announced.
    #[error("the engine broke the protocol: {0}")]
    Protocol(&'static str),
}

/// The connection is gone; so is what the engine knew of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection to the engine was lost")]
pub struct Lost;

/// What the engine says about a work.
#[expect(clippy::large_enum_variant, reason = "most are plain messages, the large variant")]
#[derive(Debug)]
pub enum Event {
    /// A plain message.
    Said(FromEngineBody),
    /// A whole checkpoint after so many steps.
    Checkpoint {
        /// Steps taken.
        step: u32,
        /// Its bytes, checked against the announced digest.
        bytes: Vec<u8>,
    },
    /// A whole adapter.
    Adapter {
        /// Its bytes, checked against the announced digest.
        bytes: Vec<u8>,
        /// Their BLAKE3 digest.
        digest: [u8; 32],
    },
    /// A whole file of an export.
    File {
        /// Its place in the folder, as the engine says it.
        path: String,
        /// Its bytes, checked against the announced digest.
        bytes: Vec<u8>,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    outgoing: mpsc::Sender<ToEngine>,
    works: Mutex<HashMap<u64, mpsc::Sender<Event>>>,
    last_tag: AtomicU64,
    closed: CancellationToken,
}

impl Link {
    /// Takes over a connected stream and waits for the engine's hello.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn open(stream: UnixStream) -> Result<Arc<Self>, LinkError> {
        let (mut reader, writer) = stream.into_split();
        let hello = tokio::time::timeout(HELLO_WITHIN, wire::read::<FromEngine>(&mut reader));
        let first = hello.await.map_err(|_| LinkError::NoHello)??;
        let Some(FromEngine { tag: 0, body: FromEngineBody::Hello { version, device } }) = first else {
            return Err(LinkError::NoHello);
        };
        tracing::info!(version, kind = device, "engine connected");
        let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
        let closed = CancellationToken::new();
        let link = Arc::new(Self { outgoing, works: Mutex::default(), last_tag: AtomicU64::new(0), closed });
        tokio::spawn(write_all(writer, queue, link.closed.clone()));
        tokio::spawn(Self::read_all(Arc::downgrade(&link), reader, link.closed.clone()));
        Ok(link)
    }

    /// Begins a work with its first message. At most `waiting_max` events of it wait to be taken.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn begin(self: &Arc<Self>, body: ToEngineBody, waiting_max: usize) -> Result<Work, Lost> {
        let tag = self.last_tag.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, events) = mpsc::channel(waiting_max.max(1));
        self.works().insert(tag, sender);
        let work = Work { link: self.clone(), tag, events, over: false };
        if self.closed.is_cancelled() {
            return Err(Lost);
        }
        work.send(body).await?;
        Ok(work)
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until the connection is gone.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.closed.cancel();
    }

    fn works(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Event>>> {
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_all(link: std::sync::Weak<Self>, mut reader: OwnedReadHalf, closed: CancellationToken) {
        let _close = closed.clone().drop_guard();
        let mut arriving = HashMap::new();
        let ended = loop {
            let message = tokio::select! {
                () = closed.cancelled() => break Ok(()),
                message = wire::read::<FromEngine>(&mut reader) => message,
            };
            let Some(link) = link.upgrade() else { break Ok(()) };
            match message {
                Ok(Some(message)) => match assemble(&mut arriving, message) {
                    Ok(Some((tag, event))) => link.deliver(tag, event).await,
                    Ok(None) => {}
                    Err(error) => break Err(error),
                },
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "engine connection ended");
        }
        closed.cancel();
        if let Some(link) = link.upgrade() {
            link.works().clear();
        }
    }

    async fn deliver(&self, tag: u64, event: Event) {
        let Some(queue) = self.works().get(&tag).cloned() else { return };
        let last = matches!(&event, Event::Said(body) if body.is_last());
        let sent = tokio::time::timeout(SLOW_WORK_AFTER, queue.send(event)).await;
        if last || !matches!(sent, Ok(Ok(()))) {
            self.works().remove(&tag);
        }
        if !last && !matches!(sent, Ok(Ok(()))) {
            let _ = self.outgoing.try_send(ToEngine { tag, body: ToEngineBody::Cancel });
        }
    }
}

async fn write_all(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<ToEngine>, closed: CancellationToken) {
    let _close = closed.clone().drop_guard();
    loop {
        let message = tokio::select! {
            () = closed.cancelled() => return,
            message = queue.recv() => message,
        };
        let Some(message) = message else { return };
        if let Err(error) = wire::write(&mut writer, &message).await {
            tracing::warn!(%error, "engine connection ended");
            return;
        }
    }
}

/// What an announced thing is.
enum What {
    Checkpoint(u32),
    Adapter,
    File(String),
}

/// An announced thing of which not every chunk has come.
struct Arriving {
    head: BlobHead,
    what: What,
    bytes: Vec<u8>,
}

type ArrivingByTag = HashMap<u64, Arriving>;

/// Puts chunks together; gives an event when there is a whole one.
fn assemble(arriving: &mut ArrivingByTag, message: FromEngine) -> Result<Option<(u64, Event)>, LinkError> {
    let FromEngine { tag, body } = message;
    let (head, what) = match body {
        FromEngineBody::Checkpoint { step, blob } => (blob, What::Checkpoint(step)),
        FromEngineBody::Adapter { blob } => (blob, What::Adapter),
        FromEngineBody::File { path, blob } => (blob, What::File(path)),
        FromEngineBody::Chunk(chunk) => return take_chunk(arriving, tag, &chunk),
        body => {
            if body.is_last() {
                arriving.remove(&tag);
            }
            return Ok(Some((tag, Event::Said(body))));
        }
    };
    if head.bytes == 0 || head.bytes > BLOB_BYTES_MAX {
        return Err(LinkError::Protocol("an announced size is outside its bounds"));
    }
    if arriving.insert(tag, Arriving { head, what, bytes: Vec::new() }).is_some() {
        return Err(LinkError::Protocol("a second thing was announced before the first was whole"));
    }
    Ok(None)
}

fn take_chunk(arriving: &mut ArrivingByTag, tag: u64, chunk: &[u8]) -> Result<Option<(u64, Event)>, LinkError> {
    let blob = arriving.get_mut(&tag).ok_or(LinkError::Protocol("a chunk of nothing that was announced"))?;
    let bytes_after = (blob.bytes.len() + chunk.len()) as u64;
    if chunk.is_empty() || chunk.len() > CHUNK_BYTES || bytes_after > blob.head.bytes {
        return Err(LinkError::Protocol("a chunk is empty or too large"));
    }
    blob.bytes.extend_from_slice(chunk);
    if bytes_after < blob.head.bytes {
        return Ok(None);
    }
    let Some(Arriving { head, what, bytes }) = arriving.remove(&tag) else { return Ok(None) };
    if *blake3::hash(&bytes).as_bytes() != head.blake3 {
        return Err(LinkError::Protocol("the bytes do not have the announced digest"));
    }
    let event = match what {
        What::Checkpoint(step) => Event::Checkpoint { step, bytes },
        What::Adapter => Event::Adapter { bytes, digest: head.blake3 },
        What::File(path) => Event::File { path, bytes },
    };
    Ok(Some((tag, event)))
}

/// One work. Dropping it before its last event cancels it.
#[derive(Debug)]
pub struct Work {
    link: Arc<Link>,
    tag: u64,
    events: mpsc::Receiver<Event>,
    over: bool,
}

impl Work {
    /// Sends one more message of this work.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn send(&self, body: ToEngineBody) -> Result<(), Lost> {
        tokio::select! {
            () = self.link.closed.cancelled() => Err(Lost),
            sent = self.link.outgoing.send(ToEngine { tag: self.tag, body }) => sent.map_err(|_| Lost),
        }
    }

    /// Sends the chunks of an announced thing.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn send_chunks(&self, bytes: &[u8]) -> Result<(), Lost> {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.send(ToEngineBody::Chunk(chunk.to_vec())).await?;
        }
        Ok(())
    }

    /// The next event.
    ///
    /// # Errors
    /// [`Lost`] when the connection is gone, or after the last event.
    pub async fn next(&mut self) -> Result<Event, Lost> {
        let event = self.events.recv().await.ok_or(Lost);
        self.over |= matches!(&event, Err(Lost)) || matches!(&event, Ok(Event::Said(body)) if body.is_last());
        event
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.link.works().remove(&self.tag);
        if self.over || self.link.is_closed() {
            return;
        }
        let cancel = ToEngine { tag: self.tag, body: ToEngineBody::Cancel };
        if let Err(mpsc::error::TrySendError::Full(cancel)) = self.link.outgoing.try_send(cancel) {
            let outgoing = self.link.outgoing.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { outgoing.send(cancel).await });
            }
        }
    }
}

/// The announcement of these bytes.
#[must_use]
pub fn head_of(bytes: &[u8]) -> BlobHead {
    BlobHead { bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(bytes: &[u8], announced: u64) -> FromEngine {
        let blob = BlobHead { bytes: announced, blake3: *blake3::hash(bytes).as_bytes() };
        FromEngine { tag: 1, body: FromEngineBody::Checkpoint { step: 3, blob } }
    }

    fn chunk(bytes: &[u8]) -> FromEngine {
        FromEngine { tag: 1, body: FromEngineBody::Chunk(bytes.to_vec()) }
    }

    #[test]
    fn chunks_become_a_whole_or_end_the_connection() {
        let mut arriving = ArrivingByTag::new();
        assert!(matches!(assemble(&mut arriving, checkpoint(b"abcd", 4)), Ok(None)));
        assert!(matches!(assemble(&mut arriving, chunk(b"ab")), Ok(None)));
        let Ok(Some((1, Event::Checkpoint { step: 3, bytes }))) = assemble(&mut arriving, chunk(b"cd")) else {
            panic!("a whole checkpoint")
        };
        assert_eq!(bytes, b"abcd");
        assert!(arriving.is_empty());
    }

    #[test]
    fn hostile_chunks_are_refused() {
        let refused = |messages: Vec<FromEngine>| {
            let mut arriving = ArrivingByTag::new();
            let last = messages.into_iter().map(|message| assemble(&mut arriving, message)).last();
            matches!(last, Some(Err(LinkError::Protocol(_))))
        };
        assert!(refused(vec![chunk(b"a")]), "nothing announced");
        assert!(refused(vec![checkpoint(b"ab", 2), chunk(b"abc")]), "more than announced");
        assert!(refused(vec![checkpoint(b"ab", 2), chunk(b"xy")]), "another digest");
        assert!(refused(vec![checkpoint(b"ab", 2), chunk(b"")]), "an empty chunk");
        assert!(refused(vec![checkpoint(b"ab", 2), checkpoint(b"ab", 2)]), "two at once");
        assert!(refused(vec![checkpoint(b"", 0)]), "nothing");
        assert!(refused(vec![checkpoint(b"", BLOB_BYTES_MAX + 1)]), "too much");
    }
}

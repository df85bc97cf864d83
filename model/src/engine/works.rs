//! The works of one connection by tag, and the way back to the daemon. Here, and only here, it is made sure that each
//! work has exactly one last message. Refuses to know how works are done.

use crate::schedule::{Cancel, Desk};
use empathd_proto::engine::{BlobHead, EngineFailure, FromEngine, FromEngineBody};
use empathd_proto::frame::CHUNK_BYTES;
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Messages waiting for the writer; a chunk is the largest of them.
const OUTBOX_MESSAGES: usize = 32;

/// What kind of work a tag stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something that is over before the next message is read.
    Prompt,
    /// Things still arriving for an adapter.
    Adapter,
    /// An answer.
    Answer,
    /// Training.
    Training,
    /// Evaluation.
    Evaluation,
    /// Embeddings, or their model.
    Embedding,
    /// Public files that leave or arrive.
    Files,
}

/// The other side is gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone;

/// Works of a connection and the queue to its writer.
#[derive(Clone)]
pub(super) struct Works {
    open: Arc<Mutex<HashMap<u64, (Kind, Cancel)>>>,
    closing: Cancel,
    desk: Arc<Desk>,
    queue: SyncSender<FromEngine>,
}

impl Works {
    /// None yet; the receiver belongs to the writer.
    pub(super) fn new(desk: Arc<Desk>) -> (Self, Receiver<FromEngine>) {
        let (queue, receiver) = sync_channel(OUTBOX_MESSAGES);
        (Self { open: Arc::default(), closing: Cancel::default(), desk, queue }, receiver)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, (Kind, Cancel)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a work; nothing when the tag is taken or is the engine's own.
    pub(super) fn begin(&self, tag: u64, kind: Kind) -> Option<Cancel> {
        let mut open = self.open();
        if tag == 0 || open.contains_key(&tag) {
            return None;
        }
        let flag = Cancel::default();
        open.insert(tag, (kind, flag.clone()));
        Some(flag)
    }

    /// Number of works of a kind.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.open().values().filter(|(found, _)| *found == kind).count()
    }

    /// Asks the work of this tag to end. A tag that is already over is no mistake: the messages crossed.
    pub(super) fn cancel(&self, tag: u64) {
        if let Some((_, flag)) = self.open().get(&tag) {
            flag.set(self.desk.steps());
        }
    }

    /// The connection is over: everything ends, nothing more is sent.
    pub(super) fn close(&self) {
        self.closing.set(self.desk.steps());
        self.open().values().for_each(|(_, flag)| flag.set(self.desk.steps()));
    }

    /// Whether [`Works::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.is_set()
    }

    /// Says something about a work. A last message closes its tag; whatever comes after it is dropped.
    pub(super) fn say(&self, tag: u64, body: FromEngineBody) -> Result<(), Gone> {
        if self.is_closed() {
            return Err(Gone);
        }
        let known = if body.is_last() { self.open().remove(&tag).is_some() } else { self.open().contains_key(&tag) };
        if known || tag == 0 { self.send(tag, body) } else { Ok(()) }
    }

    /// Ends a work, or a tag that never was one, with a failure.
    pub(super) fn fail(&self, tag: u64, failure: EngineFailure) {
        if let Some((_, flag)) = self.open().remove(&tag) {
            flag.set(self.desk.steps());
        }
        // A failure that nobody is left to hear is no failure.
        let _ = self.send(tag, FromEngineBody::Failed(failure));
    }

    /// Ends all answers with the failure of a defect.
    pub(super) fn fail_answers(&self) {
        let is_answer = |(tag, (kind, _)): (&u64, &(Kind, Cancel))| (*kind == Kind::Answer).then_some(*tag);
        let answers: Vec<u64> = self.open().iter().filter_map(is_answer).collect();
        for tag in answers {
            self.fail(tag, EngineFailure::Internal("the scheduler panicked".to_owned()));
        }
    }

    /// Sends a large thing: its announcement, then its chunks.
    pub(super) fn say_blob(
        &self,
        tag: u64,
        bytes: &[u8],
        announce: impl FnOnce(BlobHead) -> FromEngineBody,
    ) -> Result<(), Gone> {
        let head = BlobHead { bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes() };
        self.say(tag, announce(head))?;
        bytes.chunks(CHUNK_BYTES).try_for_each(|chunk| self.say(tag, FromEngineBody::Chunk(chunk.to_vec())))
    }

    fn send(&self, tag: u64, body: FromEngineBody) -> Result<(), Gone> {
        self.queue.send(FromEngine { tag, body }).map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn works() -> (Works, Receiver<FromEngine>) {
        Works::new(Arc::new(Desk::new(Arc::new(|| Duration::ZERO))))
    }

    #[test]
    fn a_work_has_one_last_message() {
        let (works, receiver) = works();
        assert!(works.begin(1, Kind::Prompt).is_some());
        assert!(works.begin(1, Kind::Prompt).is_none());
        assert!(works.begin(0, Kind::Prompt).is_none());
        works.say(1, FromEngineBody::AdapterReady).expect("sent");
        works.say(1, FromEngineBody::AdapterDropped).expect("dropped");
        drop(works);
        assert_eq!(receiver.iter().count(), 1);
    }

    #[test]
    fn closing_ends_everything() {
        let (works, _receiver) = works();
        let flag = works.begin(5, Kind::Answer).expect("new");
        works.close();
        assert!(flag.is_set());
        assert!(works.say(5, FromEngineBody::AdapterReady).is_err());
    }
}

//! An answer as server-sent events in the form of OpenAI's stream, with `[DONE]` at its end. A caller that leaves, or does
//! not take in what is sent, has its answer cancelled. Knows nothing of requests.

use super::Door;
use super::answer::{broken_off, stopping, too_long};
use super::face::{Chunk, Face, Writer};
use super::metrics::Meter;
use super::problem::{ErrorMember, error_member};
use crate::inference::{Answer, AnswerEvent};
use axum::body::{Body, Bytes};
use empathd_proto::Problem;
use empathd_proto::chat::{AnswerNotes, FinishReason, Usage};
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// A comment goes out after this long without an event, so that proxies and callers see life.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that may wait for the caller to take them in.
const WAITING_MAX: usize = 16;

/// How an answer is to be written.
pub(super) struct Writing {
    /// In which form.
    pub(super) face: Face,
    /// Whether the usage is told.
    pub(super) usage: bool,
    /// When it is cut off.
    pub(super) deadline: Instant,
}

/// Where the events go, and what is said about the answer meanwhile.
struct Telling {
    writer: Writer,
    include_usage: bool,
    meter: Meter,
    /// Why the first choice ended.
    reason: Option<FinishReason>,
    caller: mpsc::Sender<Bytes>,
}

/// The caller takes in no more.
struct Gone;

/// The body of a streamed answer, whose first event may be known already.
pub(super) fn body(answer: Answer, first: Option<AnswerEvent>, writing: Writing, door: &Door, meter: Meter) -> Body {
    let (caller, bytes) = mpsc::channel(WAITING_MAX);
    let Writing { face, usage: include_usage, deadline } = writing;
    let ending = door.ending.clone();
    tokio::spawn(async move {
        let writer = Writer::new(face, &answer);
        let mut telling = Telling { writer, include_usage, meter, reason: None, caller };
        let caller = telling.caller.clone();
        // Whichever comes first; the answer is dropped, and with that cancelled, at the end of this block.
        tokio::select! {
            () = caller.closed() => {}
            _ = telling.tell(first, answer.events) => {}
            () = ending.cancelled() => drop(caller.try_send(failure(&stopping()))),
            () = sleep_until(deadline) => drop(caller.try_send(failure(&too_long()))),
        }
    });
    Body::from_stream(ReceiverStream::new(bytes).map(Ok::<_, Infallible>))
}

impl Telling {
    /// The whole answer, event by event.
    async fn tell(&mut self, first: Option<AnswerEvent>, mut events: mpsc::Receiver<AnswerEvent>) -> Result<(), Gone> {
        self.send_all(self.writer.opening()).await?;
        let mut next = first;
        loop {
            match next {
                None => self.send(Bytes::from_static(b": keep-alive\n\n")).await?,
                Some(AnswerEvent::Failed(problem)) => return self.fail(problem).await,
                Some(AnswerEvent::Finished { usage, notes }) => return self.end(usage, notes).await,
                Some(event) => self.told(event).await?,
            }
            next = match timeout(KEEP_ALIVE, events.recv()).await {
                Err(_) => None,
                Ok(answered) => Some(answered.unwrap_or_else(|| AnswerEvent::Failed(broken_off()))),
            };
        }
    }

    async fn told(&mut self, event: AnswerEvent) -> Result<(), Gone> {
        match &event {
            AnswerEvent::Ended { choice: 0, reason } => self.reason = Some(*reason),
            AnswerEvent::Said { .. } | AnswerEvent::Called { .. } => self.meter.text(),
            _ => {}
        }
        let chunks = self.writer.told(event);
        self.send_all(chunks).await
    }

    async fn end(&mut self, usage: Usage, notes: AnswerNotes) -> Result<(), Gone> {
        self.meter.finished(self.reason.unwrap_or(FinishReason::Stop), usage);
        let chunks = self.writer.closing(self.include_usage.then_some(usage), notes);
        self.send_all(chunks).await?;
        self.send(Bytes::from_static(b"data: [DONE]\n\n")).await
    }

    async fn fail(&mut self, problem: Problem) -> Result<(), Gone> {
        self.meter.failed(&problem);
        self.send(failure(&problem)).await
    }

    async fn send_all(&self, chunks: Vec<Chunk>) -> Result<(), Gone> {
        for chunk in chunks {
            self.send(event(&chunk)).await?;
        }
        Ok(())
    }

    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.caller.send(bytes).await.map_err(|_| Gone)
    }
}

/// An error in the middle: said in an event, and no `[DONE]` follows, so that it cannot pass for a whole answer.
fn failure(problem: &Problem) -> Bytes {
    event(&Failure { error: error_member(problem) })
}

#[derive(Serialize)]
struct Failure<'a> {
    error: ErrorMember<'a>,
}

/// One event.
fn event(data: &impl Serialize) -> Bytes {
    // Numbers and text cannot fail to serialise.
    let json = serde_json::to_string(data).unwrap_or_default();
    format!("data: {json}\n\n").into()
}

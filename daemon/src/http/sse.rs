//! An answer as server-sent events in the form of OpenAI's stream: the role, the text as it comes, why it ended, the
//! usage when asked for, `[DONE]`. A caller that leaves, or does not take in what is sent, has its answer cancelled.
//! Knows nothing of requests.

use super::Door;
use super::chat::{broken_off, stopping, too_long};
use super::metrics::Meter;
use crate::app::{Answer, AnswerEvent};
use axum::body::{Body, Bytes};
use empathd_proto::Problem;
use empathd_proto::chat::{AnswerNotes, ChatChunk, ChatRole, ChunkChoice, Delta, FinishReason, Usage};
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// A comment goes out after this long without an event, so that proxies and callers see life.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that may wait for the caller to take them in.
const WAITING_MAX: usize = 16;

/// What all events of an answer have in common.
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

/// Where the events go, and what is said about the answer meanwhile.
struct Telling {
    envelope: Envelope,
    include_usage: bool,
    meter: Meter,
    caller: mpsc::Sender<Bytes>,
}

/// The caller takes in no more.
struct Gone;

/// The body of a streamed answer, whose first event may be known already.
pub(super) fn body(answer: Answer, first: Option<AnswerEvent>, include_usage: bool, door: &Door, meter: Meter) -> Body {
    let (caller, bytes) = mpsc::channel(WAITING_MAX);
    let limit = Duration::from_millis(door.limits.answer_ms);
    let ending = door.ending.clone();
    tokio::spawn(async move {
        let mut telling = Telling { envelope: Envelope::of(&answer), include_usage, meter, caller };
        let caller = telling.caller.clone();
        // Whichever comes first; the answer is dropped, and with that cancelled, at the end of this block.
        tokio::select! {
            () = caller.closed() => {}
            _ = telling.tell(first, answer.events) => {}
            () = ending.cancelled() => drop(caller.try_send(failure(&stopping()))),
            () = sleep(limit) => drop(caller.try_send(failure(&too_long()))),
        }
    });
    Body::from_stream(ReceiverStream::new(bytes).map(Ok::<_, Infallible>))
}

impl Telling {
    /// The whole answer, event by event.
    async fn tell(&mut self, first: Option<AnswerEvent>, mut events: mpsc::Receiver<AnswerEvent>) -> Result<(), Gone> {
        let role = Delta { role: Some(ChatRole::Assistant), content: Some(String::new()) };
        self.send(event(&self.envelope.delta(role, None))).await?;
        let mut next = first;
        loop {
            match next {
                None => self.send(Bytes::from_static(b": keep-alive\n\n")).await?,
                Some(AnswerEvent::Text(text)) => self.text(text).await?,
                Some(AnswerEvent::Failed(problem)) => return self.fail(problem).await,
                Some(AnswerEvent::Finished { reason, usage, notes }) => return self.end(reason, usage, notes).await,
            }
            next = match timeout(KEEP_ALIVE, events.recv()).await {
                Err(_) => None,
                Ok(answered) => Some(answered.unwrap_or_else(|| AnswerEvent::Failed(broken_off()))),
            };
        }
    }

    async fn text(&mut self, text: String) -> Result<(), Gone> {
        self.meter.text();
        let delta = Delta { role: None, content: Some(text) };
        self.send(event(&self.envelope.delta(delta, None))).await
    }

    async fn end(&mut self, reason: FinishReason, usage: Usage, notes: AnswerNotes) -> Result<(), Gone> {
        self.meter.finished(reason, usage);
        let mut last = self.envelope.delta(Delta::default(), Some(reason));
        last.empathd = Some(notes);
        self.send(event(&last)).await?;
        if self.include_usage {
            let mut chunk = self.envelope.chunk(Vec::new());
            chunk.usage = Some(usage);
            self.send(event(&chunk)).await?;
        }
        self.send(Bytes::from_static(b"data: [DONE]\n\n")).await
    }

    async fn fail(&mut self, problem: Problem) -> Result<(), Gone> {
        self.meter.failed(&problem);
        self.send(failure(&problem)).await
    }

    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.caller.send(bytes).await.map_err(|_| Gone)
    }
}

impl Envelope {
    pub(super) fn of(answer: &Answer) -> Self {
        Self { id: answer.id.to_string(), created: answer.created_s, model: answer.model.clone() }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        let (id, model) = (self.id.clone(), self.model.clone());
        let object = "chat.completion.chunk".to_owned();
        ChatChunk { id, object, created: self.created, model, choices, usage: None, empathd: None }
    }

    fn delta(&self, delta: Delta, finish_reason: Option<FinishReason>) -> ChatChunk {
        self.chunk(vec![ChunkChoice { index: 0, delta, finish_reason }])
    }
}

/// An error in the middle: said in an event, and no `[DONE]` follows, so that it cannot pass for a whole answer.
fn failure(problem: &Problem) -> Bytes {
    event(&serde_json::json!({
        "error": {
            "message": problem.detail,
            "type": problem.kind,
            "code": problem.code,
            "status": problem.status,
            "next": problem.next,
        }
    }))
}

/// One event.
fn event(data: &impl Serialize) -> Bytes {
    // Numbers and text cannot fail to serialise.
    let json = serde_json::to_string(data).unwrap_or_default();
    format!("data: {json}\n\n").into()
}

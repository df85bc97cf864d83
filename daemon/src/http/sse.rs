//! An answer as server-sent events in the form of OpenAI's stream: the role, the text as it comes, why it ended, the
//! usage when asked for, `[DONE]`. Dropping the body cancels the answer. Knows nothing of requests.

use super::Door;
use super::chat::{broken_off, stopping, too_long};
use super::metrics::Meter;
use crate::app::{Answer, AnswerEvent};
use axum::body::Bytes;
use empathd_proto::Problem;
use empathd_proto::chat::{AnswerNotes, ChatChunk, ChatRole, ChunkChoice, Delta, FinishReason, Usage};
use hyper::body::{Body, Frame};
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, Interval, Sleep, interval_at, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// A comment goes out after this long without an event, so that proxies and callers see life.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What all events of an answer have in common.
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

/// The body of a streamed answer.
pub(super) struct AnswerStream {
    events: Option<Receiver<AnswerEvent>>,
    envelope: Envelope,
    include_usage: bool,
    /// Bytes ready to go; at most the few that one event makes.
    ready: VecDeque<Bytes>,
    keep_alive: Interval,
    deadline: Pin<Box<Sleep>>,
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    meter: Meter,
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

impl AnswerStream {
    pub(super) fn new(
        answer: Answer,
        first: Option<AnswerEvent>,
        include_usage: bool,
        door: &Door,
        meter: Meter,
    ) -> Self {
        let envelope = Envelope::of(&answer);
        let role = Delta { role: Some(ChatRole::Assistant), content: Some(String::new()) };
        let mut stream = Self {
            ready: VecDeque::from([event(&envelope.delta(role, None))]),
            events: Some(answer.events),
            envelope,
            include_usage,
            keep_alive: interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE),
            deadline: Box::pin(sleep(Duration::from_millis(door.limits.answer_ms))),
            ending: Box::pin(door.ending.clone().cancelled_owned()),
            meter,
        };
        if let Some(first) = first {
            stream.take(first);
        }
        stream
    }

    fn take(&mut self, answered: AnswerEvent) {
        self.meter.event(&answered);
        self.keep_alive.reset();
        match answered {
            AnswerEvent::Text(text) => {
                let delta = Delta { role: None, content: Some(text) };
                self.ready.push_back(event(&self.envelope.delta(delta, None)));
            }
            AnswerEvent::Finished { reason, usage, notes } => self.end(reason, usage, notes),
            AnswerEvent::Failed(problem) => self.fail(&problem),
        }
    }

    fn end(&mut self, reason: FinishReason, usage: Usage, notes: AnswerNotes) {
        let mut last = self.envelope.delta(Delta::default(), Some(reason));
        last.empathd = Some(notes);
        self.ready.push_back(event(&last));
        if self.include_usage {
            let mut chunk = self.envelope.chunk(Vec::new());
            chunk.usage = Some(usage);
            self.ready.push_back(event(&chunk));
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.events = None;
    }

    /// An error in the middle: said in an event, and no `[DONE]` follows, so that it cannot pass for a whole answer.
    fn fail(&mut self, problem: &Problem) {
        self.ready.push_back(event(&serde_json::json!({
            "error": {
                "message": problem.detail,
                "type": problem.kind,
                "code": problem.code,
                "status": problem.status,
                "next": problem.next,
            }
        })));
        self.events = None;
    }

    /// What happens next: an answered event, or a reason to break off.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(events) = &mut self.events else { return Poll::Ready(()) };
        match events.poll_recv(cx) {
            Poll::Ready(Some(answered)) => self.take(answered),
            Poll::Ready(None) => self.fail(&broken_off()),
            Poll::Pending if self.ending.as_mut().poll(cx).is_ready() => self.fail(&stopping()),
            Poll::Pending if self.deadline.as_mut().poll(cx).is_ready() => self.fail(&too_long()),
            Poll::Pending if self.keep_alive.poll_tick(cx).is_ready() => {
                self.ready.push_back(Bytes::from_static(b": keep-alive\n\n"));
            }
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(())
    }
}

impl Body for AnswerStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.events.is_none() {
                return Poll::Ready(None);
            }
            if self.poll_event(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// One event.
fn event(data: &impl Serialize) -> Bytes {
    // Numbers and text cannot fail to serialise.
    let json = serde_json::to_string(data).unwrap_or_default();
    format!("data: {json}\n\n").into()
}

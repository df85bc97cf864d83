//! An answer from its request to its response, whatever its face: as one piece or as a stream. Knows nothing of how it
//! comes about.

use super::face::{Envelope, Face, Whole};
use super::metrics::Meter;
use super::problem::{Refusal, unexpected_reply};
use super::request::Asked;
use super::routes::{REQUEST_ID, id_value, recorded};
use super::sse::{self, Writing};
use super::{Door, body};
use crate::action::Action;
use crate::actor::Actor;
use crate::app::Reply;
use crate::inference::call::AnswerCall;
use crate::inference::{Answer, AnswerEvent};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use empathd_proto::{ErrorCode, Problem};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// A stream begins after the first words or after this time, so that an early failure still has its own status.
const FIRST_EVENT: Duration = Duration::from_secs(10);

/// Reads a request, has it answered, and writes the answer.
pub(super) async fn give(
    door: &Door,
    actor: &Actor,
    body: Body,
    face: Face,
    parse: impl FnOnce(&[u8]) -> Result<Asked, Problem>,
    action: impl FnOnce(AnswerCall) -> Action,
) -> Result<Response, Refusal> {
    let meter = Meter::start();
    let asked = match body::read(body, &door.limits).await.and_then(|bytes| parse(&bytes)) {
        Ok(asked) => asked,
        Err(problem) => return Err(recorded(door, actor, problem).await),
    };
    let deadline = Instant::now() + Duration::from_millis(door.limits.answer_ms);
    let begun = door.appliance.perform(actor, action(asked.call));
    let Reply::Answer(answer) = in_time(door, deadline, begun).await? else {
        return Err(unexpected_reply().into());
    };
    let id = id_value(&answer.id.to_string());
    let mut response = if asked.stream {
        stream(door, answer, face, asked.include_usage, deadline, meter).await?
    } else {
        in_time(door, deadline, collect(answer, face, meter)).await?
    };
    response.headers_mut().extend(id.map(|id| (REQUEST_ID, id)));
    Ok(response)
}

/// The answer as a stream of events.
async fn stream(
    door: &Door,
    mut answer: Answer,
    face: Face,
    usage: bool,
    deadline: Instant,
    mut meter: Meter,
) -> Result<Response, Problem> {
    let first = match timeout(FIRST_EVENT, answer.events.recv()).await {
        Ok(Some(AnswerEvent::Failed(problem))) => return Err(meter.failing(problem)),
        Ok(None) => return Err(meter.failing(broken_off())),
        Ok(first) => first,
        Err(_) => None,
    };
    let body = sse::body(answer, first, Writing { face, usage, deadline }, door, meter);
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

/// What comes before the deadline and before the last moment of a stop.
async fn in_time<T>(
    door: &Door,
    deadline: Instant,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    tokio::select! {
        () = door.ending.cancelled() => Err(stopping()),
        result = timeout_at(deadline, work) => result.unwrap_or_else(|_| Err(too_long())),
    }
}

/// The answer in one piece.
async fn collect(mut answer: Answer, face: Face, mut meter: Meter) -> Result<Response, Problem> {
    let envelope = Envelope::of(&answer);
    let mut whole = Whole::new(answer.choices);
    while let Some(event) = answer.events.recv().await {
        match event {
            AnswerEvent::Failed(problem) => return Err(meter.failing(problem)),
            AnswerEvent::Finished { usage, notes } => {
                meter.finished(whole.reason(), usage);
                return Ok(whole.written(face, envelope, usage, notes).into_response());
            }
            event => {
                meter.text();
                whole.hear(event);
            }
        }
    }
    Err(meter.failing(broken_off()))
}

pub(super) fn broken_off() -> Problem {
    Problem::new(ErrorCode::EngineFailed, "The answer broke off.", "Ask again; the same seed gives the same answer")
}

pub(super) fn too_long() -> Problem {
    Problem::new(ErrorCode::Timeout, "The answer took too long.", "Ask for fewer tokens, or as a stream")
}

pub(super) fn stopping() -> Problem {
    Problem::new(ErrorCode::ShuttingDown, "The appliance is stopping.", "Ask again in a minute")
}

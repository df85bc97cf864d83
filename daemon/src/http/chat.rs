//! `POST /v1/chat/completions`: a body into a call whose every value is within its range, and an answer back as JSON or
//! as a stream. Knows nothing of how an answer comes about. An error never quotes what the caller wrote.

use super::metrics::Meter;
use super::problem::{Refusal, bad_request, unexpected_reply};
use super::routes::{Caller, REQUEST_ID, id_value, recorded};
use super::sse::{self, Envelope};
use super::{Door, body};
use crate::action::{Action, ChatCall};
use crate::app::{Answer, AnswerEvent, Reply};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use empathd_proto::chat::{ChatCompletion, ChatMessage, ChatRequest, ChatRole, Choice, Content, Stop};
use empathd_proto::generate::PlainMessage;
use empathd_proto::{ErrorCode, Problem};
use hyper::Request;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 1_024;
/// Longest model name, stop string, `user` or `name`, in bytes.
const MAX_WORD_BYTES: usize = 256;
/// Most stop strings.
const MAX_STOPS: usize = 4;
/// Most tokens that can be asked for; the model's context may allow fewer.
const MAX_ANSWER_TOKENS: u32 = 131_072;
const DEFAULT_TEMPERATURE: f32 = 0.7;
const DEFAULT_TOP_P: f32 = 0.95;
/// A stream begins after the first words or after this time, so that an early failure still has its own status.
const FIRST_EVENT: Duration = Duration::from_secs(10);

/// A checked request.
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) call: ChatCall,
    stream: bool,
    include_usage: bool,
}

pub(super) async fn complete(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let meter = Meter::start();
    let asked = match body::read(request.into_body(), &door.limits).await.and_then(|bytes| parse(&bytes)) {
        Ok(asked) => asked,
        Err(problem) => return Err(recorded(&door, &actor, problem).await),
    };
    let Reply::Answer(answer) = door.appliance.perform(&actor, Action::Chat(asked.call)).await? else {
        return Err(unexpected_reply().into());
    };
    let id = id_value(&answer.id.to_string());
    let mut response = if asked.stream {
        stream(&door, answer, asked.include_usage, meter).await?
    } else {
        Json(whole(&door, answer, meter).await?).into_response()
    };
    response.headers_mut().extend(id.map(|id| (REQUEST_ID, id)));
    Ok(response)
}

/// The answer as a stream of events.
async fn stream(door: &Door, mut answer: Answer, usage: bool, mut meter: Meter) -> Result<Response, Problem> {
    let first = match timeout(FIRST_EVENT, answer.events.recv()).await {
        Ok(Some(AnswerEvent::Failed(problem))) => return Err(meter.failing(problem)),
        Ok(None) => return Err(meter.failing(broken_off())),
        Ok(first) => first,
        Err(_) => None,
    };
    let body = sse::body(answer, first, usage, door, meter);
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

/// The answer in one piece.
async fn whole(door: &Door, answer: Answer, meter: Meter) -> Result<ChatCompletion, Problem> {
    let limit = Duration::from_millis(door.limits.answer_ms);
    tokio::select! {
        () = door.ending.cancelled() => Err(stopping()),
        result = timeout(limit, collect(answer, meter)) => result.unwrap_or_else(|_| Err(too_long())),
    }
}

async fn collect(mut answer: Answer, mut meter: Meter) -> Result<ChatCompletion, Problem> {
    let Envelope { id, created, model } = Envelope::of(&answer);
    let mut text = String::new();
    while let Some(event) = answer.events.recv().await {
        match event {
            AnswerEvent::Text(more) => {
                meter.text();
                text.push_str(&more);
            }
            AnswerEvent::Failed(problem) => return Err(meter.failing(problem)),
            AnswerEvent::Finished { reason, usage, notes } => {
                meter.finished(reason, usage);
                let message = ChatMessage { role: ChatRole::Assistant, content: Content::Text(text), name: None };
                let choices = vec![Choice { index: 0, message, finish_reason: reason }];
                let object = "chat.completion".to_owned();
                return Ok(ChatCompletion { id, object, created, model, choices, usage, empathd: notes });
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

/// The request of a body.
pub(super) fn parse(bytes: &[u8]) -> Result<Asked, Problem> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| bad_request(format!("The body is not UTF-8 from byte {} on.", error.valid_up_to())))?;
    checked(serde_json::from_str(text).map_err(|error| bad_json(&error))?)
}

/// Says where and, for a field, which; never what the caller wrote as a value.
fn bad_json(error: &serde_json::Error) -> Problem {
    let place = format!("at line {}, column {}", error.line(), error.column());
    if !error.is_data() {
        return bad_request(format!("The body is not JSON: it cannot be read {place}."));
    }
    let message = error.to_string();
    let (kind, field) = message.split_once(" field `").unwrap_or_default();
    let field = field.split('`').next().unwrap_or_default();
    let plain = field.len() <= 64 && field.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    match kind {
        "unknown" if plain => bad_request(format!("The field `{field}` is not known here ({place}).")),
        "unknown" => bad_request(format!("A field is not known here ({place}).")),
        "missing" if plain => bad_request(format!("The field `{field}` is missing ({place}).")),
        "duplicate" if plain => bad_request(format!("The field `{field}` is there twice ({place}).")),
        _ => bad_request(format!("A value is not of the kind that its field takes ({place}).")),
    }
}

/// Ranges of every field, in the order of the documentation.
fn checked(request: ChatRequest) -> Result<Asked, Problem> {
    let ChatRequest { model, messages, temperature, top_p, max_tokens, max_completion_tokens, .. } = &request;
    require((1..=MAX_WORD_BYTES).contains(&model.len()), "`model` has 1 to 256 bytes.")?;
    require((1..=MAX_MESSAGES).contains(&messages.len()), "`messages` has 1 to 1024 messages.")?;
    let names = messages.iter().filter_map(|m| m.name.as_ref()).chain(&request.user);
    require(names.into_iter().all(|name| name.len() <= MAX_WORD_BYTES), "`user` and `name` have at most 256 bytes.")?;
    let temperature = temperature.unwrap_or(DEFAULT_TEMPERATURE);
    require((0.0..=2.0).contains(&temperature), "`temperature` is from 0 to 2.")?;
    let top_p = top_p.unwrap_or(DEFAULT_TOP_P);
    require(top_p > 0.0 && top_p <= 1.0, "`top_p` is above 0 and at most 1.")?;
    let both = matches!((max_tokens, max_completion_tokens), (Some(a), Some(b)) if a != b);
    require(!both, "`max_tokens` and `max_completion_tokens` say different things.")?;
    let max_tokens = max_completion_tokens.or(*max_tokens);
    let tokens_fit = max_tokens.is_none_or(|tokens| (1..=MAX_ANSWER_TOKENS).contains(&tokens));
    require(tokens_fit, "`max_completion_tokens` is from 1 to 131072.")?;
    require(request.n.is_none_or(|n| n == 1), "`n` can only be 1.")?;
    let stream = request.stream.unwrap_or(false);
    require(stream || request.stream_options.is_none(), "`stream_options` needs `stream`.")?;
    let stop = stops(request.stop)?;
    let messages =
        request.messages.into_iter().map(|m| PlainMessage { role: m.role, text: m.content.to_text() }).collect();
    let call = ChatCall { model: request.model, messages, max_tokens, temperature, top_p, seed: request.seed, stop };
    Ok(Asked { call, stream, include_usage: request.stream_options.is_some_and(|options| options.include_usage) })
}

fn stops(stop: Option<Stop>) -> Result<Vec<String>, Problem> {
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(one)) => vec![one],
        Some(Stop::Many(many)) => many,
    };
    require(stops.len() <= MAX_STOPS, "`stop` has at most 4 strings.")?;
    let fit = stops.iter().all(|stop| (1..=MAX_WORD_BYTES).contains(&stop.len()));
    require(fit, "Each string of `stop` has 1 to 256 bytes.")?;
    Ok(stops)
}

fn require(holds: bool, rule: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(bad_request(rule)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#""model":"m","messages":[{"role":"user","content":"my secret"}]"#;

    fn refusal(body: &[u8]) -> String {
        let problem = parse(body).expect_err("refused");
        assert!(!problem.detail.contains("secret"), "quotes the caller: {}", problem.detail);
        problem.detail
    }

    fn with(fields: &str) -> String {
        format!("{{{MESSAGES},{fields}}}")
    }

    #[test]
    fn a_plain_request_gets_the_documented_defaults() {
        let asked = parse(format!("{{{MESSAGES}}}").as_bytes()).expect("parses");
        assert_eq!((asked.call.temperature, asked.call.top_p), (0.7, 0.95));
        assert_eq!((asked.call.max_tokens, asked.call.seed, asked.stream), (None, None, false));
        let asked = parse(
            with(r#""stream":true,"stream_options":{"include_usage":true},"stop":"x","max_tokens":7"#).as_bytes(),
        );
        let asked = asked.expect("parses");
        assert!(asked.stream && asked.include_usage);
        assert_eq!((asked.call.max_tokens, asked.call.stop.as_slice()), (Some(7), ["x".to_owned()].as_slice()));
    }

    #[test]
    fn broken_bodies_are_located_and_never_quoted() {
        assert!(refusal(b"{\"model\":\"secret").contains("line 1"));
        assert!(refusal(b"").contains("not JSON"));
        assert!(refusal(b"{\"model\":\"\xff\"}").contains("byte 10"));
        assert!(refusal(with(r#""logprobs":true"#).as_bytes()).contains("`logprobs`"));
        assert!(!refusal(with(r#""my secret plan":1"#).as_bytes()).contains("plan"));
        assert!(refusal(with(r#""temperature":"secret""#).as_bytes()).contains("not of the kind"));
        assert!(refusal(with(r#""model":"secret""#).as_bytes()).contains("twice"));
        assert!(refusal(br#"{"model":"m"}"#).contains("`messages` is missing"));
        let role = br#"{"model":"m","messages":[{"role":"secret","content":"x"}]}"#;
        assert!(refusal(role).contains("not of the kind"));
        assert!(refusal("[".repeat(100_000).as_bytes()).contains("line 1"));
    }

    #[test]
    fn values_out_of_range_are_refused_by_field() {
        for (fields, named) in [
            (r#""temperature":2.1"#, "temperature"),
            (r#""temperature":-1"#, "temperature"),
            (r#""top_p":0"#, "top_p"),
            (r#""top_p":1.5"#, "top_p"),
            (r#""max_tokens":0"#, "max_completion_tokens"),
            (r#""max_tokens":1,"max_completion_tokens":2"#, "different"),
            (r#""n":2"#, "`n`"),
            (r#""stop":["a","b","c","d","e"]"#, "stop"),
            (r#""stop":"""#, "stop"),
            (r#""stream_options":{"include_usage":true}"#, "stream"),
        ] {
            assert!(refusal(with(fields).as_bytes()).contains(named), "{fields}");
        }
        assert!(refusal(br#"{"model":"m","messages":[]}"#).contains("messages"));
    }
}

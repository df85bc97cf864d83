//! The two faces of an answer in OpenAI's forms: chat and text, whole and in events. Knows nothing of connections.

use crate::inference::{Answer, AnswerEvent};
use axum::Json;
use axum::response::{IntoResponse, Response};
use empathd_proto::chat::{
    AnswerMessage, AnswerNotes, ChatChunk, ChatCompletion, ChatLogprobs, ChatRole, Choice, ChunkChoice, Completion,
    Delta, FinishReason, OneLogprob, TextChoice, TextLogprobs, TokenLogprob, ToolCall, ToolCallDelta, Usage,
};
use empathd_proto::generate::{Logprob, TokenLogprobs};

/// What is written for a probability of nothing; JSON has no infinity.
const NEVER: f32 = -9999.0;

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    Chat,
    Text,
}

/// What all parts of an answer have in common.
#[derive(Clone)]
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Envelope {
    pub(super) fn of(answer: &Answer) -> Self {
        Self { id: answer.id.to_string(), created: answer.created_s, model: answer.model.clone() }
    }

    fn chat_chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        let Self { id, created, model } = self.clone();
        let object = "chat.completion.chunk".to_owned();
        ChatChunk { id, object, created, model, choices, usage: None, empathd: None }
    }

    fn text(self, choices: Vec<TextChoice>, usage: Option<Usage>, empathd: Option<AnswerNotes>) -> Completion {
        let Self { id, created, model } = self;
        Completion { id, object: "text_completion".to_owned(), created, model, choices, usage, empathd }
    }
}

/// A whole answer, as it is put together.
pub(super) struct Whole {
    choices: Vec<WholeChoice>,
}

#[derive(Default)]
struct WholeChoice {
    text: String,
    logprobs: Vec<TokenLogprobs>,
    calls: Vec<ToolCall>,
    reason: Option<FinishReason>,
}

impl Whole {
    pub(super) fn new(choices: u32) -> Self {
        Self { choices: (0..choices).map(|_| WholeChoice::default()).collect() }
    }

    pub(super) fn hear(&mut self, event: AnswerEvent) {
        let (AnswerEvent::Said { choice, .. } | AnswerEvent::Called { choice, .. } | AnswerEvent::Ended { choice, .. }) =
            event
        else {
            return;
        };
        let Some(whole) = self.choices.get_mut(choice as usize) else { return };
        match event {
            AnswerEvent::Said { text, logprobs, .. } => {
                whole.text.push_str(&text);
                whole.logprobs.extend(logprobs);
            }
            AnswerEvent::Called { call, .. } => whole.calls.push(call),
            AnswerEvent::Ended { reason, .. } => whole.reason = Some(reason),
            AnswerEvent::Finished { .. } | AnswerEvent::Failed(_) => {}
        }
    }

    /// Why the first choice ended.
    pub(super) fn reason(&self) -> FinishReason {
        self.choices.first().and_then(|choice| choice.reason).unwrap_or(FinishReason::Stop)
    }

    pub(super) fn written(self, face: Face, envelope: Envelope, usage: Usage, empathd: AnswerNotes) -> Response {
        let choices = (0..).zip(self.choices);
        match face {
            Face::Chat => {
                let choices = choices.map(|(index, choice)| chat_choice(index, choice)).collect();
                let Envelope { id, created, model } = envelope;
                let object = "chat.completion".to_owned();
                Json(ChatCompletion { id, object, created, model, choices, usage, empathd }).into_response()
            }
            Face::Text => {
                let choices = choices.map(|(index, choice)| text_choice(index, choice)).collect();
                Json(envelope.text(choices, Some(usage), Some(empathd))).into_response()
            }
        }
    }
}

fn chat_choice(index: u32, choice: WholeChoice) -> Choice {
    let WholeChoice { text, logprobs, calls, reason } = choice;
    let content = (!text.is_empty() || calls.is_empty()).then_some(text);
    let message = AnswerMessage { role: ChatRole::Assistant, content, tool_calls: calls };
    let logprobs = (!logprobs.is_empty()).then(|| chat_logprobs(&logprobs));
    Choice { index, message, logprobs, finish_reason: reason.unwrap_or(FinishReason::Stop) }
}

fn text_choice(index: u32, choice: WholeChoice) -> TextChoice {
    let WholeChoice { text, logprobs, reason, .. } = choice;
    let logprobs = (!logprobs.is_empty()).then(|| text_logprobs(&logprobs, &mut 0));
    TextChoice { index, text, logprobs, finish_reason: Some(reason.unwrap_or(FinishReason::Stop)) }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

fn one(logprob: &Logprob) -> OneLogprob {
    let Logprob { bytes, logprob } = logprob;
    let token = String::from_utf8_lossy(bytes).into_owned();
    OneLogprob { token, logprob: finite(*logprob), bytes: bytes.clone() }
}

fn chat_logprobs(tokens: &[TokenLogprobs]) -> ChatLogprobs {
    let told = |token: &TokenLogprobs| TokenLogprob {
        taken: one(&token.taken),
        top_logprobs: token.top.iter().map(one).collect(),
    };
    ChatLogprobs { content: tokens.iter().map(told).collect() }
}

/// The older form; `offset` counts the characters before, and goes on.
fn text_logprobs(tokens: &[TokenLogprobs], offset: &mut u32) -> TextLogprobs {
    let mut told = TextLogprobs::default();
    for TokenLogprobs { taken, top } in tokens {
        told.tokens.push(older(&taken.bytes));
        told.token_logprobs.push(finite(taken.logprob));
        let all = top.iter().chain([taken]);
        told.top_logprobs.push(all.map(|token| (older(&token.bytes), finite(token.logprob))).collect());
        told.text_offset.push(*offset);
        let characters = String::from_utf8_lossy(&taken.bytes).chars().count();
        *offset = offset.saturating_add(u32::try_from(characters).unwrap_or(u32::MAX));
    }
    told
}

/// A token as the older form writes it: its text, or its bytes when it is no text by itself.
fn older(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

/// One event of a stream, in its face.
#[derive(serde::Serialize)]
#[serde(untagged)]
pub(super) enum Chunk {
    Chat(ChatChunk),
    Text(Completion),
}

/// Writes the events of a stream.
pub(super) struct Writer {
    face: Face,
    envelope: Envelope,
    places: Vec<Place>,
    /// The end of a choice, which waits for the notes when it is the last one.
    held: Option<(u32, FinishReason)>,
}

#[derive(Clone, Default)]
struct Place {
    calls: u32,
    characters: u32,
}

impl Writer {
    pub(super) fn new(face: Face, answer: &Answer) -> Self {
        let places = vec![Place::default(); answer.choices as usize];
        Self { face, envelope: Envelope::of(answer), places, held: None }
    }

    /// What comes before everything else.
    pub(super) fn opening(&self) -> Vec<Chunk> {
        match self.face {
            Face::Text => Vec::new(),
            Face::Chat => (0..self.places.len())
                .map(|place| {
                    let (role, content) = (Some(ChatRole::Assistant), Some(String::new()));
                    self.delta(
                        u32::try_from(place).unwrap_or(u32::MAX),
                        Delta { role, content, tool_calls: Vec::new() },
                    )
                })
                .collect(),
        }
    }

    /// One thing that is told of a choice.
    pub(super) fn told(&mut self, event: AnswerEvent) -> Vec<Chunk> {
        let mut chunks: Vec<Chunk> = self.held_end(None).into_iter().collect();
        match event {
            AnswerEvent::Said { choice, text, logprobs } => chunks.push(self.said(choice, text, &logprobs)),
            AnswerEvent::Called { choice, call } => chunks.extend(self.called(choice, call)),
            AnswerEvent::Ended { choice, reason } => self.held = Some((choice, reason)),
            AnswerEvent::Finished { .. } | AnswerEvent::Failed(_) => {}
        }
        chunks
    }

    /// The end of the last choice, with the notes; then the usage when it is wanted.
    pub(super) fn closing(&mut self, usage: Option<Usage>, notes: AnswerNotes) -> Vec<Chunk> {
        let mut chunks: Vec<Chunk> = self.held_end(Some(notes)).into_iter().collect();
        if usage.is_some() {
            chunks.push(match self.face {
                Face::Chat => Chunk::Chat(ChatChunk { usage, ..self.envelope.chat_chunk(Vec::new()) }),
                Face::Text => Chunk::Text(self.envelope.clone().text(Vec::new(), usage, None)),
            });
        }
        chunks
    }

    fn said(&mut self, choice: u32, text: String, logprobs: &[TokenLogprobs]) -> Chunk {
        match self.face {
            Face::Chat => {
                let logprobs = (!logprobs.is_empty()).then(|| chat_logprobs(logprobs));
                let delta = Delta { content: Some(text), ..Delta::default() };
                let choices = vec![ChunkChoice { index: choice, delta, logprobs, finish_reason: None }];
                Chunk::Chat(self.envelope.chat_chunk(choices))
            }
            Face::Text => {
                let mut nowhere = 0;
                let offset = self.places.get_mut(choice as usize).map_or(&mut nowhere, |place| &mut place.characters);
                let logprobs = (!logprobs.is_empty()).then(|| text_logprobs(logprobs, offset));
                let choices = vec![TextChoice { index: choice, text, logprobs, finish_reason: None }];
                Chunk::Text(self.envelope.clone().text(choices, None, None))
            }
        }
    }

    fn called(&mut self, choice: u32, call: ToolCall) -> Option<Chunk> {
        let place = self.places.get_mut(choice as usize)?;
        let ToolCall { id, kind, function } = call;
        let delta = ToolCallDelta { index: place.calls, id, kind, function };
        place.calls += 1;
        Some(self.delta(choice, Delta { tool_calls: vec![delta], ..Delta::default() }))
    }

    fn delta(&self, index: u32, delta: Delta) -> Chunk {
        let choices = vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }];
        Chunk::Chat(self.envelope.chat_chunk(choices))
    }

    fn held_end(&mut self, notes: Option<AnswerNotes>) -> Option<Chunk> {
        let (index, reason) = self.held.take()?;
        let finish_reason = Some(reason);
        Some(match self.face {
            Face::Chat => {
                let choices = vec![ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason }];
                Chunk::Chat(ChatChunk { empathd: notes, ..self.envelope.chat_chunk(choices) })
            }
            Face::Text => {
                let choices = vec![TextChoice { index, text: String::new(), logprobs: None, finish_reason }];
                Chunk::Text(self.envelope.clone().text(choices, None, notes))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_of_probabilities_counts_characters_and_writes_bytes() {
        let token = |bytes: &[u8], logprob| Logprob { bytes: bytes.to_vec(), logprob };
        let tokens = [
            TokenLogprobs { taken: token("é".as_bytes(), -0.5), top: vec![token(b"e", -0.25)] },
            TokenLogprobs { taken: token(b"\xe2", f32::NEG_INFINITY), top: Vec::new() },
        ];
        let told = text_logprobs(&tokens, &mut 7);
        assert_eq!(
            (told.tokens.as_slice(), told.text_offset.as_slice()),
            (["é", "bytes:\\xe2"].map(str::to_owned).as_slice(), [7, 8].as_slice())
        );
        assert_eq!(told.token_logprobs, [-0.5, NEVER]);
        assert_eq!(told.top_logprobs[0].len(), 2, "the one that was taken is told too");
        let told = chat_logprobs(&tokens);
        assert_eq!(told.content[0].top_logprobs[0].token, "e");
        assert_eq!(told.content[1].taken.bytes, b"\xe2");
    }
}

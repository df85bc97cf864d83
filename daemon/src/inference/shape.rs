//! One choice on its way from the engine's tokens to what the caller is told: the clinic's own words first where they must
//! be, then text, calls of tools, probabilities, and why it ended. Where tokens come from is not known here.

use super::call::Form;
use super::tools::{Part, Reader};
use empathd_proto::chat::{CalledFunction, FinishReason};
use empathd_proto::generate::TokenLogprobs;

/// What the caller is told of a choice.
#[derive(Debug, PartialEq)]
pub(crate) enum Shaped {
    /// More text, which may be empty, with the probabilities of the tokens that came meanwhile.
    Said { text: String, logprobs: Vec<TokenLogprobs> },
    /// A tool it asks for.
    Called(CalledFunction),
}

/// One choice.
pub(crate) struct Shaper {
    /// Said before its first word.
    guard: Option<String>,
    reader: Option<Reader>,
}

impl Shaper {
    pub(crate) fn new(form: &Form, guard: Option<&str>) -> Self {
        let (guard, reader) = match form {
            Form::Text => (guard, None),
            // Words before JSON would spoil it: they are told beside the answer.
            Form::Json(_) => (None, None),
            Form::Tools(tools) => (guard, Some(Reader::new(tools.clone()))),
        };
        Self { guard: guard.map(str::to_owned), reader }
    }

    /// One more token.
    pub(crate) fn token(&mut self, text: String, logprobs: Option<TokenLogprobs>) -> Vec<Shaped> {
        let mut shaped = self.opening();
        let parts = match &mut self.reader {
            None => vec![Part::Text(text)],
            Some(reader) => reader.feed(&text),
        };
        shaped.extend(given(parts, logprobs));
        shaped
    }

    /// The end, and why.
    pub(crate) fn end(&mut self, reason: FinishReason) -> (Vec<Shaped>, FinishReason) {
        let mut shaped = self.opening();
        let Some(reader) = &mut self.reader else { return (shaped, reason) };
        shaped.extend(given(reader.end(reason == FinishReason::Length), None));
        let called = reader.has_called() && reason == FinishReason::Stop;
        (shaped, if called { FinishReason::ToolCalls } else { reason })
    }

    fn opening(&mut self) -> Vec<Shaped> {
        let said = |text| Shaped::Said { text, logprobs: Vec::new() };
        self.guard.take().map(said).into_iter().collect()
    }
}

fn given(parts: Vec<Part>, logprobs: Option<TokenLogprobs>) -> Vec<Shaped> {
    let mut logprobs: Vec<_> = logprobs.into_iter().collect();
    let mut shaped = Vec::new();
    for part in parts {
        match part {
            Part::Text(text) if text.is_empty() && logprobs.is_empty() => {}
            Part::Text(text) => shaped.push(Shaped::Said { text, logprobs: std::mem::take(&mut logprobs) }),
            Part::Call(call) => shaped.push(Shaped::Called(call)),
        }
    }
    if !logprobs.is_empty() {
        shaped.push(Shaped::Said { text: String::new(), logprobs });
    }
    shaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::generate::{Grammar, Logprob};

    fn said(shaped: &[Shaped]) -> String {
        let text = |shaped: &Shaped| if let Shaped::Said { text, .. } = shaped { text.clone() } else { String::new() };
        shaped.iter().map(text).collect()
    }

    #[test]
    fn the_clinics_words_come_first_and_never_into_json() {
        let mut shaper = Shaper::new(&Form::Text, Some("Help: "));
        assert_eq!(said(&shaper.token("a".into(), None)), "Help: a");
        assert_eq!(said(&shaper.token("b".into(), None)), "b");
        let mut silent = Shaper::new(&Form::Text, Some("Help: "));
        assert_eq!(said(&silent.end(FinishReason::Stop).0), "Help: ", "also when the model says nothing");
        let mut json = Shaper::new(&Form::Json(Grammar::JsonObject), Some("Help: "));
        assert_eq!(said(&json.token("{}".into(), None)), "{}");
    }

    #[test]
    fn probabilities_come_with_their_token_even_when_its_text_is_held_back() {
        let logprob = Logprob { bytes: b"x".to_vec(), logprob: -0.5 };
        let logprobs = TokenLogprobs { taken: logprob.clone(), top: vec![logprob] };
        let mut shaper = Shaper::new(&Form::Text, None);
        let shaped = shaper.token(String::new(), Some(logprobs.clone()));
        assert_eq!(shaped, [Shaped::Said { text: String::new(), logprobs: vec![logprobs] }]);
        assert_eq!(shaper.token(String::new(), None), []);
    }
}

//! `POST /v1/completions`: a body into a call whose every value is within its range. Knows nothing of how an answer comes
//! about and how it is written.

use super::face::Face;
use super::problem::{Refusal, bad_request};
use super::request::{Asked, Common, parse, require};
use super::routes::Caller;
use super::{Door, answer};
use crate::action::Action;
use crate::inference::call::Question;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use empathd_proto::Problem;
use empathd_proto::chat::{CompletionRequest, PromptInput};
use empathd_proto::generate::Prompt;
use hyper::Request;
use std::sync::Arc;

/// Most likeliest tokens that are told beside each; OpenAI's bound of this face.
const MAX_TOP: u32 = 5;
/// Tokens of an answer when the request does not say; OpenAI's default of this face.
const DEFAULT_TOKENS: u32 = 16;

pub(super) async fn complete(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let perform = |call| Action::Complete(Box::new(call));
    answer::give(&door, &actor, request.into_body(), Face::Text, |bytes| checked(parse(bytes)?), perform).await
}

/// Ranges of every field.
pub(super) fn checked(request: CompletionRequest) -> Result<Asked, Problem> {
    let best = request.best_of.is_none_or(|best_of| best_of == request.n.unwrap_or(1));
    require(best, "`best_of` can only be the same as `n`.")?;
    require(request.echo != Some(true), "`echo` can only be false.")?;
    let top = request.logprobs.map(|top| u8::try_from(top).ok().filter(|_| top <= MAX_TOP));
    require(top != Some(None), "`logprobs` is from 0 to 5.")?;
    let question = Question::Texts(prompts(request.prompt)?);
    let common = Common {
        model: request.model,
        temperature: request.temperature,
        top_p: request.top_p,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logit_bias: request.logit_bias,
        n: request.n,
        max_tokens: Some(request.max_tokens.unwrap_or(DEFAULT_TOKENS)),
        stop: request.stop,
        seed: request.seed,
        stream: request.stream,
        stream_options: request.stream_options,
        user: request.user,
        safety_identifier: request.safety_identifier,
        prompt_cache_key: request.prompt_cache_key,
        service_tier: request.service_tier,
    };
    common.checked(question, top.flatten())
}

fn prompts(input: PromptInput) -> Result<Vec<Prompt>, Problem> {
    let prompts: Vec<Prompt> = match input {
        PromptInput::Text(text) => vec![Prompt::Text(text)],
        PromptInput::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        PromptInput::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        PromptInput::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    let said = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => !text.is_empty(),
        Prompt::Tokens(tokens) => !tokens.is_empty(),
        Prompt::Chat { .. } => false,
    };
    if !prompts.is_empty() && prompts.iter().all(said) {
        return Ok(prompts);
    }
    Err(bad_request("`prompt` is a text or a list of token ids, or a list of these, and none is empty."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &str) -> Result<Asked, Problem> {
        checked(parse(format!(r#"{{"model":"m",{fields}}}"#).as_bytes())?)
    }

    #[test]
    fn prompts_may_be_texts_or_tokens_one_or_several() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (prompt, expected) in [
            (r#""a""#, vec![text("a")]),
            (r#"["a","b"]"#, vec![text("a"), text("b")]),
            ("[1,2]", vec![Prompt::Tokens(vec![1, 2])]),
            ("[[1],[2,3]]", vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
        ] {
            let asked = asked(&format!(r#""prompt":{prompt}"#)).expect("taken");
            assert_eq!(asked.call.question, Question::Texts(expected));
            assert_eq!(asked.call.max_tokens, Some(16));
        }
        let asked = asked(r#""prompt":"a","logprobs":2,"n":2,"best_of":2,"echo":false"#).expect("taken");
        assert_eq!((asked.call.logprobs, asked.call.choices), (Some(2), 2));
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        let many = format!(r#""prompt":[{}],"n":8"#, [r#""a""#; 5].join(","));
        for (fields, named) in [
            (r#""prompt":"a","echo":true"#, "`echo`"),
            (r#""prompt":"a","best_of":3"#, "`best_of`"),
            (r#""prompt":"a","suffix":"b""#, "`suffix`"),
            (r#""prompt":"a","logprobs":6"#, "`logprobs`"),
            (r#""prompt":"a","logprobs":true"#, "`logprobs`"),
            (r#""prompt":"""#, "`prompt`"),
            (r#""prompt":[]"#, "`prompt`"),
            (r#""prompt":[[]]"#, "`prompt`"),
            (r#""prompt":{"a":1}"#, "`prompt`"),
            (r#""prompt":"a","messages":[]"#, "`messages`"),
            (many.as_str(), "32 choices"),
        ] {
            let detail = asked(fields).expect_err("refused").detail;
            assert!(detail.contains(named), "{fields}: {detail}");
        }
    }
}

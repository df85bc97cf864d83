//! Bodies into checked values: what cannot be read is located, a field is named, and nothing a caller wrote is quoted. The
//! rules that several requests share are here; those of one request are beside it.

use super::problem::bad_request;
use crate::inference::call::{AnswerCall, Client, Form, Question};
use empathd_proto::Problem;
use empathd_proto::chat::{ServiceTier, Stop, StreamOptions};
use empathd_proto::generate::MAX_BIASES;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Longest model name, stop string, pseudonym or name, in bytes.
pub(super) const MAX_WORD_BYTES: usize = 256;
/// Most stop strings.
const MAX_STOPS: usize = 4;
/// Most choices for one prompt.
const MAX_CHOICES: u32 = 8;
/// Most choices of one request, over all its prompts.
pub(super) const MAX_WORKS: usize = 32;
/// Most tokens that can be asked for; the model's context may allow fewer.
const MAX_ANSWER_TOKENS: u32 = 131_072;
const DEFAULT_TEMPERATURE: f64 = 0.7;
const DEFAULT_TOP_P: f64 = 0.95;

/// Fields of OpenAI's that are known and not honoured, and why.
const NOT_HONOURED: &[(&str, &str)] = &[
    ("audio", "answers are text"),
    ("function_call", "use `tool_choice`"),
    ("functions", "use `tools`"),
    ("metadata", "nothing is stored that it could belong to"),
    ("modalities", "answers are text"),
    ("moderation", "crisis signs are looked for in every conversation"),
    ("prediction", "text of the prompt is proposed by itself"),
    ("prompt_cache_retention", "what is kept is kept as long as there is room, until the store is sealed"),
    ("reasoning_effort", "the models do not reason apart from their answer"),
    ("suffix", "the models do not fill gaps"),
    ("verbosity", "say it in the instructions"),
    ("web_search_options", "nothing leaves the building"),
];

/// The value of a body.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| bad_request(format!("The body is not UTF-8 from byte {} on.", error.valid_up_to())))?;
    serde_json::from_str(text).map_err(|error| bad_json::<T>(text, &error))
}

/// Says where and which field; never what the caller wrote as a value.
fn bad_json<T: DeserializeOwned>(text: &str, error: &serde_json::Error) -> Problem {
    let place = format!("at line {}, column {}", error.line(), error.column());
    if !error.is_data() {
        return bad_request(format!("The body is not JSON: it cannot be read {place}."));
    }
    let message = error.to_string();
    let (kind, field) = message.split_once(" field `").unwrap_or_default();
    let field = field.split('`').next().unwrap_or_default();
    let plain = is_plain(field);
    let why = NOT_HONOURED.iter().find(|(name, _)| *name == field).map(|(_, why)| why);
    match (kind, why) {
        ("unknown", Some(why)) => bad_request(format!("The field `{field}` is not honoured here: {why} ({place}).")),
        ("unknown", None) if plain => bad_request(format!("The field `{field}` is not known here ({place}).")),
        ("unknown", None) => bad_request(format!("A field is not known here ({place}).")),
        ("missing", _) if plain => bad_request(format!("The field `{field}` is missing ({place}).")),
        ("duplicate", _) if plain => bad_request(format!("The field `{field}` is there twice ({place}).")),
        _ => match wrong_field::<T>(text) {
            Some(field) => bad_request(format!("The value of `{field}` is not of a kind that it takes ({place}).")),
            None => bad_request(format!("A value is not of the kind that its field takes ({place}).")),
        },
    }
}

/// The field of the body whose value is wrong. What lies deeper may be of the caller's making and is not named.
fn wrong_field<T: DeserializeOwned>(text: &str) -> Option<String> {
    let error = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(text)).err()?;
    match error.path().iter().next()? {
        serde_path_to_error::Segment::Map { key } => is_plain(key).then(|| key.clone()),
        _ => None,
    }
}

fn is_plain(field: &str) -> bool {
    (1..=64).contains(&field.len()) && field.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

pub(super) fn require(holds: bool, rule: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(bad_request(rule)) }
}

/// What requests for answers have in common, as it was sent.
#[derive(Default)]
pub(super) struct Common {
    pub(super) model: String,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) logit_bias: Option<BTreeMap<String, f64>>,
    pub(super) n: Option<u32>,
    pub(super) max_tokens: Option<u32>,
    pub(super) stop: Option<Stop>,
    pub(super) seed: Option<i128>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) user: Option<String>,
    pub(super) safety_identifier: Option<String>,
    pub(super) prompt_cache_key: Option<String>,
    pub(super) service_tier: Option<ServiceTier>,
}

/// A checked request for an answer.
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) call: AnswerCall,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Common {
    /// A checked request for any text.
    pub(super) fn checked(self, question: Question, logprobs: Option<u8>) -> Result<Asked, Problem> {
        require((1..=MAX_WORD_BYTES).contains(&self.model.len()), "`model` has 1 to 256 bytes.")?;
        let temperature = within(self.temperature.unwrap_or(DEFAULT_TEMPERATURE), 0.0, 2.0);
        let temperature = temperature.ok_or_else(|| bad_request("`temperature` is from 0 to 2."))?;
        let top_p = within(self.top_p.unwrap_or(DEFAULT_TOP_P), 0.0, 1.0).filter(|top_p| *top_p > 0.0);
        let top_p = top_p.ok_or_else(|| bad_request("`top_p` is above 0 and at most 1."))?;
        let presence_penalty = within(self.presence_penalty.unwrap_or(0.0), -2.0, 2.0);
        let presence_penalty = presence_penalty.ok_or_else(|| bad_request("`presence_penalty` is from -2 to 2."))?;
        let frequency_penalty = within(self.frequency_penalty.unwrap_or(0.0), -2.0, 2.0);
        let frequency_penalty = frequency_penalty.ok_or_else(|| bad_request("`frequency_penalty` is from -2 to 2."))?;
        let tokens_fit = self.max_tokens.is_none_or(|tokens| (1..=MAX_ANSWER_TOKENS).contains(&tokens));
        require(tokens_fit, "The most tokens of an answer are from 1 to 131072.")?;
        let choices = self.n.unwrap_or(1);
        require((1..=MAX_CHOICES).contains(&choices), "`n` is from 1 to 8.")?;
        let works = question.prompts() * choices as usize;
        require(works <= MAX_WORKS, "A request has at most 32 choices over all its prompts.")?;
        let (stream, include_usage) = streaming(self.stream, self.stream_options)?;
        let (user, safety_identifier) = (self.user, self.safety_identifier);
        let client = Client { user, safety_identifier, prompt_cache_key: self.prompt_cache_key };
        let words = [&client.user, &client.safety_identifier, &client.prompt_cache_key];
        let short = words.into_iter().flatten().all(|word| word.len() <= MAX_WORD_BYTES);
        require(short, "`user`, `safety_identifier` and `prompt_cache_key` have at most 256 bytes.")?;
        let call = AnswerCall {
            model: self.model,
            question,
            choices,
            max_tokens: self.max_tokens,
            temperature,
            top_p,
            presence_penalty,
            frequency_penalty,
            logit_bias: biases(self.logit_bias)?,
            logprobs,
            seed: self.seed.map(seed).transpose()?,
            stop: stops(self.stop)?,
            form: Form::Text,
            client,
            nobody_waits: self.service_tier == Some(ServiceTier::Flex),
        };
        Ok(Asked { call, stream, include_usage })
    }
}

fn streaming(stream: Option<bool>, options: Option<StreamOptions>) -> Result<(bool, bool), Problem> {
    let stream = stream.unwrap_or(false);
    require(stream || options.is_none(), "`stream_options` needs `stream`.")?;
    let padded = options.and_then(|options| options.include_obfuscation).unwrap_or(false);
    require(!padded, "`include_obfuscation` can only be false.")?;
    Ok((stream, options.and_then(|options| options.include_usage).unwrap_or(false)))
}

/// A number within its range, both ends included. What is not a number is in none.
fn within(value: f64, least: f64, most: f64) -> Option<f32> {
    (least..=most).contains(&value).then_some(value as f32)
}

fn seed(seed: i128) -> Result<u64, Problem> {
    // A negative seed is as good as any: its two's complement.
    let signed = i64::try_from(seed).ok().map(i64::cast_unsigned);
    let seed = u64::try_from(seed).ok().or(signed);
    seed.ok_or_else(|| bad_request("`seed` is an integer of 64 bits."))
}

fn biases(biases: Option<BTreeMap<String, f64>>) -> Result<Vec<(u32, f32)>, Problem> {
    let biases = biases.unwrap_or_default();
    require(biases.len() <= MAX_BIASES, "`logit_bias` has at most 1024 tokens.")?;
    let bias = |(token, bias): (String, f64)| Some((token.parse().ok()?, within(bias, -100.0, 100.0)?));
    let found: Option<BTreeMap<u32, f32>> = biases.into_iter().map(bias).collect();
    let found = found.ok_or_else(|| bad_request("`logit_bias` maps token ids to numbers from -100 to 100."))?;
    Ok(found.into_iter().filter(|(_, bias)| *bias != 0.0).collect())
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

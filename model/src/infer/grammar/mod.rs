//! What an answer must look like: at each step the tokens that may follow, so that the answer is JSON, or JSON of a schema,
//! whatever the model would rather say. Schemas come from strangers: reading one and every step with it are bounded in
//! time and memory, and no error quotes it. Refuses to know models and probabilities.

mod schema;

use crate::tokenizer::Tokenizer;
use empathd_proto::generate::Grammar;
use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, panic_utils};
use serde_json::json;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Stack of the thread that reads a schema: references are followed by recursion.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Longest token that may be part of a constrained answer; the trie of tokens is walked by recursion.
const MAX_TOKEN_BYTES: usize = 256;
/// Between two parts of a value; bounded, so that a model that likes white space cannot write nothing else.
const WHITE_SPACE: &str = r"[ \t\n]{1,32}";
/// What one answer's grammar may cost. Lexer states are 1 to 2 KiB each; fuel is spent at about 50 a microsecond at first
/// and 14 in a step; 20 items are made in a microsecond (figures of the library).
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 4000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 100_000,
    step_max_items: 50_000,
    max_lexer_states: 10_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

/// What the library says of a token that may not follow; all else that it says ends in a bound.
const NOT_ALLOWED: &str = "doesn't satisfy the grammar";

/// Why an answer cannot be made to look as it should. The words quote nothing of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Not JSON, or not an object.
    #[error("the schema in response_format or tools is not a JSON object")]
    Unreadable,
    /// More than is taken.
    #[error("the schema in response_format or tools is too large: {what} beyond {limit}")]
    TooLarge {
        /// More of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Uses what cannot be held to, or holds a contradiction in terms.
    #[error("the schema in response_format or tools cannot be used: {0}")]
    Unusable(&'static str),
    /// No value satisfies it.
    #[error("the schema in response_format or tools cannot be met by any value")]
    Unsatisfiable,
    /// Following it exceeded its bounds.
    #[error("the schema in response_format or tools is too costly to follow; make it simpler")]
    TooCostly,
    /// The tokenizer's table cannot be used.
    #[error("this model's tokenizer cannot answer in a given form")]
    Tokenizer,
    /// A token that may not stand there.
    #[error("a token does not belong into the given form")]
    Token,
}

/// What all grammars of one tokenizer share. Made once: it takes tens of milliseconds and some MiB.
pub struct GrammarFactory {
    factory: ParserFactory,
}

impl GrammarFactory {
    /// Prepares the tokens of a tokenizer.
    ///
    /// # Errors
    /// [`GrammarError::Tokenizer`] when it has no end token or an unusable table.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, GrammarError> {
        let words: Vec<Vec<u8>> = (0u32..)
            .take(tokenizer.len())
            .map(|id| tokenizer.bytes(id).to_vec())
            .map(|bytes| if bytes.len() <= MAX_TOKEN_BYTES { bytes } else { Vec::new() })
            .collect();
        let ends = tokenizer.ends();
        let first = *ends.first().ok_or(GrammarError::Tokenizer)?;
        let vocab = u32::try_from(words.len()).map_err(|_| GrammarError::Tokenizer)?;
        let made = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&TokRxInfo::new(vocab, first), &words).with_eos_tokens(ends);
            let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            // Nothing is forced: the model chooses between the ways of spelling the same bytes.
            let mut factory = ParserFactory::new(
                &tokens,
                InferenceCapabilities::default(),
                &llguidance::earley::SlicedBiasComputer::json_slices(),
            )?;
            factory.quiet();
            *factory.limits_mut() = LIMITS;
            Ok(factory)
        }));
        made.map(|factory| Self { factory }).map_err(|_| GrammarError::Tokenizer)
    }

    /// Reads a grammar for one answer.
    ///
    /// # Errors
    /// [`GrammarError`]; within bounded time and memory for any schema.
    pub fn matcher(&self, grammar: &Grammar) -> Result<Matcher, GrammarError> {
        let mut schema = match grammar.schema() {
            None => json!({ "type": "object" }),
            Some(text) => schema::read(text)?,
        };
        if let Some(members) = schema.as_object_mut() {
            members.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITE_SPACE }));
        }
        let whole = match grammar {
            Grammar::JsonObject | Grammar::JsonSchema(_) => TopLevelGrammar::from_json_schema(schema),
            Grammar::Marked { open, close, .. } => TopLevelGrammar::from_lark(marked(open, close, &schema)?),
        };
        let compile = || {
            let parser = self.factory.create_parser(whole);
            let mut inner = llguidance::Matcher::new(parser);
            match inner.get_error() {
                Some(words) => Err(refusal(&words)),
                None if inner.compute_mask().is_ok() => Ok(Matcher { inner }),
                None => Err(stopped(&inner)),
            }
        };
        std::thread::scope(|scope| {
            let reader = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, compile);
            reader.map_err(|_| GrammarError::TooCostly)?.join().map_err(|_| GrammarError::TooCostly)?
        })
    }
}

/// Any text in which what stands between the marks is JSON of the schema, in the language of the library: text up to the
/// first mark that opens, as short as may be, then JSON and the mark that closes, again and again; then text without a mark.
fn marked(open: &str, close: &str, schema: &serde_json::Value) -> Result<String, GrammarError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'<' | b'>');
    if open.is_empty() || close.is_empty() || !open.bytes().all(plain) {
        return Err(GrammarError::Unusable("its marks are not plain"));
    }
    let close = json!(close);
    Ok(format!(
        "start: (upto call)* rest?\n\
         upto[lazy]: /(?s:.*){open}/\n\
         call: BLANK? value BLANK? {close}\n\
         value: %json {schema}\n\
         rest: REST\n\
         REST: /(?s:.+)/ & ~/(?s:.*){open}(?s:.*)/\n\
         BLANK: /{WHITE_SPACE}/\n"
    ))
}

/// What the library's words mean. They quote the schema and are not passed on.
fn refusal(words: &str) -> GrammarError {
    const MEANINGS: [(&str, GrammarError); 8] = [
        ("Unsatisfiable", GrammarError::Unsatisfiable),
        ("too large", GrammarError::TooCostly),
        ("too complex", GrammarError::TooCostly),
        ("limit", GrammarError::TooCostly),
        ("fuel", GrammarError::TooCostly),
        ("determine if", GrammarError::TooCostly),
        ("Unimplemented keys", GrammarError::Unusable("it has a keyword that cannot be held to")),
        ("oneOf constraints", GrammarError::Unusable("its oneOf has alternatives that overlap; use anyOf")),
    ];
    let found = MEANINGS.iter().find(|(part, _)| words.contains(part));
    found.map_or(GrammarError::Unusable("it is malformed or has a part that is not supported"), |(_, error)| *error)
}

fn stopped(inner: &llguidance::Matcher) -> GrammarError {
    match inner.stop_reason() {
        StopReason::NoExtension | StopReason::NoExtensionBias => GrammarError::Unsatisfiable,
        _ => GrammarError::TooCostly,
    }
}

/// The grammar of one answer, as far as the answer has come.
pub struct Matcher {
    inner: llguidance::Matcher,
}

impl Matcher {
    /// Makes every logit impossible whose token may not follow.
    ///
    /// # Errors
    /// [`GrammarError::TooCostly`] when the bounds of a step are exceeded.
    pub(super) fn restrict(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let allowed = self.inner.compute_mask_or_eos().map_err(|_| GrammarError::TooCostly)?;
        let words = allowed.as_slice();
        for (number, chunk) in logits.chunks_mut(32).enumerate() {
            let bits = words.get(number).copied().unwrap_or(0);
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if bits & (1 << bit) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// The answer has one more token.
    ///
    /// # Errors
    /// [`GrammarError::Token`] for a token that may not follow, [`GrammarError::TooCostly`] when the bounds of a step are
    /// exceeded.
    pub(super) fn took(&mut self, id: u32) -> Result<(), GrammarError> {
        self.inner.consume_token(id).map_err(|error| match error.to_string().contains(NOT_ALLOWED) {
            true => GrammarError::Token,
            false => GrammarError::TooCostly,
        })
    }

    /// Whether the value is whole and nothing may follow it.
    pub(super) fn is_complete(&self) -> bool {
        self.inner.is_stopped() && !self.inner.is_error()
    }
}

#[cfg(test)]
mod tests;

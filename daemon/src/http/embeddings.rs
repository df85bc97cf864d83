//! `POST /v1/embeddings`: a body into a checked call, and vectors back as numbers or in base64. Knows nothing of how they
//! are made.

use super::problem::{Refusal, unexpected_reply};
use super::request::{MAX_WORD_BYTES, parse, require};
use super::routes::{Caller, recorded};
use super::{Door, body};
use crate::action::Action;
use crate::app::Reply;
use crate::inference::call::EmbedCall;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use empathd_proto::Problem;
use empathd_proto::chat::{
    Embedding, EmbeddingInput, EmbeddingList, EmbeddingRequest, EmbeddingUsage, EncodingFormat, Vector,
};
use empathd_proto::generate::{Embedded, MAX_EMBED_BYTES, MAX_EMBED_TEXTS};
use hyper::Request;
use std::sync::Arc;

pub(super) async fn embed(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
    request: Request<Body>,
) -> Result<Json<EmbeddingList>, Refusal> {
    let read = body::read(request.into_body(), &door.limits).await;
    let (call, format) = match read.and_then(|bytes| checked(parse(&bytes)?)) {
        Ok(asked) => asked,
        Err(problem) => return Err(recorded(&door, &actor, problem).await),
    };
    let model = call.model.clone();
    match door.appliance.perform(&actor, Action::Embed(call)).await? {
        Reply::Embedded(embedded) => Ok(Json(written(embedded, model, format))),
        _ => Err(unexpected_reply().into()),
    }
}

fn checked(request: EmbeddingRequest) -> Result<(EmbedCall, EncodingFormat), Problem> {
    let EmbeddingRequest { model, input, encoding_format, dimensions, user } = request;
    require((1..=MAX_WORD_BYTES).contains(&model.len()), "`model` has 1 to 256 bytes.")?;
    require(user.is_none_or(|user| user.len() <= MAX_WORD_BYTES), "`user` has at most 256 bytes.")?;
    let texts = match input {
        EmbeddingInput::One(text) => vec![text],
        EmbeddingInput::Many(texts) => texts,
    };
    require((1..=MAX_EMBED_TEXTS).contains(&texts.len()), "`input` has 1 to 256 texts.")?;
    let fit = texts.iter().all(|text| (1..=MAX_EMBED_BYTES).contains(&text.len()));
    require(fit, "Each text of `input` has 1 to 65536 bytes.")?;
    Ok((EmbedCall { model, texts, dimensions }, encoding_format.unwrap_or_default()))
}

fn written(embedded: Embedded, model: String, format: EncodingFormat) -> EmbeddingList {
    let Embedded { vectors, tokens } = embedded;
    let vector = |vector: Vec<f32>| match format {
        EncodingFormat::Float => Vector::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    };
    let data = (0..).zip(vectors).map(|(index, numbers)| Embedding {
        object: "embedding".to_owned(),
        index,
        embedding: vector(numbers),
    });
    let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    EmbeddingList { object: "list".to_owned(), data: data.collect(), model, usage }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &str) -> Result<(EmbedCall, EncodingFormat), Problem> {
        checked(parse(format!(r#"{{"model":"minilm",{fields}}}"#).as_bytes())?)
    }

    #[test]
    fn texts_are_taken_and_token_ids_refused_by_name() {
        assert_eq!(asked(r#""input":"a""#).expect("taken").0.texts, ["a"]);
        let (call, format) = asked(r#""input":["a","b"],"encoding_format":"base64","dimensions":384"#).expect("taken");
        assert_eq!((call.texts.len(), call.dimensions, format), (2, Some(384), EncodingFormat::Base64));
        let many = format!(r#""input":[{}]"#, vec![r#""a""#; 257].join(","));
        let long = format!(r#""input":"{}""#, "x".repeat(MAX_EMBED_BYTES + 1));
        for fields in [r#""input":[1,2]"#, r#""input":[[1]]"#, r#""input":[]"#, r#""input":["a",""]"#, &many, &long] {
            assert!(asked(fields).expect_err("refused").detail.contains("`input`"), "{}", &fields[..20]);
        }
        assert!(asked(r#""input":"a","truncate":1"#).expect_err("refused").detail.contains("`truncate`"));
    }

    #[test]
    fn base64_is_little_endian() {
        let embedded = Embedded { vectors: vec![vec![1.0, -2.0]], tokens: 3 };
        let list = written(embedded, "m".into(), EncodingFormat::Base64);
        assert_eq!(list.data[0].embedding, Vector::Base64("AACAPwAAAMA=".into()));
        assert_eq!(list.usage.total_tokens, 3);
    }
}

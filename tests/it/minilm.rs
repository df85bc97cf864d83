//! all-MiniLM-L6-v2 from its safetensors file, against figures of public implementations (transformers, tokenizers) for
//! the same files: token ids, vectors, cosines. Where the files cannot be fetched it is skipped, and says so.

use empathd_model::embed::{EmbedError, Embedder};
use empathd_tests::harness::model;
use serde_json::Value;
use std::io::Write;
use std::sync::LazyLock;

/// Largest difference of a number of a vector or of a cosine; the reference was written with six digits.
const BOUND: f64 = 2e-6;

static EMBEDDER: LazyLock<Option<Embedder>> = LazyLock::new(|| match model::embedder(&mut |_| {}) {
    Ok(path) => Some(Embedder::open(&path, digest(model::EMBEDDER_SHA256)).expect("opens")),
    Err(error) => {
        // Written past the capture of passing tests: nobody should believe that this was checked.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no model of embeddings, {error:#}");
        None
    }
});

static REFERENCE: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../model/tests/parity/minilm.json")).expect("the fixture is JSON")
});

fn digest(hexadecimal: &str) -> [u8; 32] {
    std::array::from_fn(|index| u8::from_str_radix(&hexadecimal[2 * index..2 * index + 2], 16).expect("hexadecimal"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("array").iter().map(|number| number.as_f64().expect("number")).collect()
}

fn worst(found: impl Iterator<Item = f64>, expected: &Value) -> f64 {
    found.zip(numbers(expected)).map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max)
}

#[test]
fn tokens_and_vectors_are_the_published_ones() {
    let Some(embedder) = &*EMBEDDER else { return };
    let expected = REFERENCE["texts"].as_array().expect("texts");
    let texts: Vec<String> = expected.iter().map(|text| text["text"].as_str().expect("text").to_owned()).collect();
    let tokens = embedder.read(&texts).expect("short enough");
    let vectors: Vec<Vec<f32>> = tokens.iter().map(|ids| embedder.vector(ids).expect("numbers")).collect();
    let mut largest = 0f64;
    for (number, expected) in expected.iter().enumerate() {
        let ids: Vec<f64> = tokens[number].iter().map(|id| f64::from(*id)).collect();
        assert_eq!(ids, numbers(&expected["ids"]), "{}", texts[number]);
        largest = largest.max(worst(vectors[number].iter().map(|number| f64::from(*number)), &expected["begins"]));
    }
    for (one, row) in vectors.iter().zip(REFERENCE["cosines"].as_array().expect("rows")) {
        let cosine = |other: &Vec<f32>| one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        largest = largest.max(worst(vectors.iter().map(cosine), row));
    }
    eprintln!("largest difference of a number or a cosine: {largest:.1e}");
    assert!(largest < BOUND, "{largest}");
}

#[test]
fn a_text_of_more_tokens_than_the_model_has_positions_is_refused_with_both_numbers() {
    let Some(embedder) = &*EMBEDDER else { return };
    assert_eq!((embedder.width(), embedder.tokens_max()), (384, 512));
    assert!(embedder.read(&["sleep ".repeat(510)]).is_ok());
    let refused = embedder.read(&[String::new(), "sleep ".repeat(600)]);
    assert_eq!(refused, Err(EmbedError::TextTokens { index: 1, tokens: 602, limit: 512 }));
}

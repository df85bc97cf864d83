//! `POST /v1/embeddings`: texts become vectors. Ranges are not known here.

use serde::{Deserialize, Serialize};

/// Body of `POST /v1/embeddings`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingRequest {
    /// Name of a model of embeddings; one of `GET /v1/models`.
    pub model: String,
    /// The texts.
    pub input: EmbeddingInput,
    /// How vectors are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<EncodingFormat>,
    /// Only the width that the model has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Pseudonym of the person; taken and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl std::fmt::Debug for EmbeddingRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EmbeddingRequest(…)")
    }
}

/// One text or several.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EmbeddingInput {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// Little-endian 32-bit floats in base64.
    Base64,
}

/// Body of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingList {
    /// `list`.
    pub object: String,
    /// One vector a text, in their order.
    pub data: Vec<Embedding>,
    /// Model that made them.
    pub model: String,
    /// Tokens used.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// Place of its text.
    pub index: u32,
    /// The vector, of length one.
    pub embedding: Vector,
}

/// A vector as it is written.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64.
    Base64(String),
}

impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vector(…)")
    }
}

/// Tokens used for embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingUsage {
    /// Of all texts.
    pub prompt_tokens: u32,
    /// The same.
    pub total_tokens: u32,
}

//! The conversation between the daemon and the engine. Every message carries the tag of the work it belongs to; many
//! works share one connection. Adapters and checkpoints travel as an announcement followed by chunks with the same tag.
//!
//! The engine begins with [`FromEngineBody::Hello`] (tag 0). For each tag the daemon opens, the engine answers with
//! exactly one *last* message: see [`FromEngineBody::is_last`].

use crate::admin::bytes;
use crate::generate::{Embedded, Finished, GenerateSpec, ServiceClass, TokenLogprobs};
use crate::ids::AdapterId;
use crate::record::Domain;
use crate::report::{TrainProgress, TrainReport};
pub use crate::train::*;
use serde::{Deserialize, Serialize};

/// Most generations waiting or running in the engine at once, those of [`ServiceClass::Crisis`] apart.
pub const MAX_GENERATIONS: usize = 64;
/// Most generations of [`ServiceClass::Crisis`] beside them.
pub const MAX_CRISIS_GENERATIONS: usize = 32;
/// Largest adapter or checkpoint.
pub const MAX_BLOB_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Most examples of one job.
pub const MAX_EXAMPLES: usize = 1_000_000;
/// Most examples of one evaluation.
pub const MAX_SCORED_EXAMPLES: usize = 100_000;

/// From the daemon to the engine.
#[derive(Debug, Serialize, Deserialize)]
pub struct ToEngine {
    /// Which work; chosen by the daemon, never 0, never used twice on a connection.
    pub tag: u64,
    /// What.
    pub body: ToEngineBody,
}

/// What the daemon asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToEngineBody {
    /// Load base weights from a read-only file.
    LoadBase {
        /// Path as the engine sees it.
        path: String,
        /// SHA-256 the file must have.
        sha256: [u8; 32],
        /// How it shall answer.
        serving: ServingSpec,
    },
    /// Load the model of embeddings from a read-only folder.
    LoadEmbedder {
        /// Path of its safetensors file as the engine sees it; `config.json` and `tokenizer.json` lie beside it.
        path: String,
        /// SHA-256 the file must have.
        sha256: [u8; 32],
    },
    /// Give the embeddings of texts; at most [`crate::generate::MAX_EMBED_TEXTS`].
    Embed(Vec<String>),
    /// Overwrite the keys and values of every answer that has ended.
    ForgetPrefixes,
    /// Take an adapter generation into memory. Chunks follow.
    PutAdapter {
        /// Its name from now on.
        adapter: AdapterId,
        /// The bytes that follow.
        blob: BlobHead,
    },
    /// Forget an adapter generation; answers under way keep it until they end.
    DropAdapter {
        /// Which.
        adapter: AdapterId,
    },
    /// Answer a conversation.
    Generate(GenerateSpec),
    /// End the work of this tag within one step.
    Cancel,
    /// Train. [`ToEngineBody::Examples`] follow, then [`ToEngineBody::Resume`] and its chunks when there is a
    /// checkpoint, or [`ToEngineBody::Begin`] and its chunks when training starts from an adapter, then
    /// [`ToEngineBody::Go`].
    Train(TrainSpec),
    /// Measure examples, each by itself; at most [`MAX_SCORED_EXAMPLES`]. Examples follow, then [`ToEngineBody::Go`].
    Evaluate {
        /// With which generation; the plain base model when absent.
        adapter: Option<AdapterId>,
        /// Longest sequence in tokens.
        seq_len: u32,
    },
    /// More examples of a job.
    Examples(Vec<Example>),
    /// A checkpoint to go on from. Chunks follow.
    Resume {
        /// The bytes that follow.
        blob: BlobHead,
    },
    /// The adapter whose weights training starts with. Chunks follow.
    Begin {
        /// The bytes that follow.
        blob: BlobHead,
    },
    /// Everything has been sent; begin.
    Go,
    /// Give an adapter in memory as files of public formats. The engine answers with [`FromEngineBody::File`]s, then
    /// [`FromEngineBody::Exported`].
    Export {
        /// Which generation.
        adapter: AdapterId,
        /// Name of the base model that public formats shall say.
        base_name: String,
    },
    /// Make a mixture with one more expert out of a public LoRA: its `adapter_config.json` and `adapter_model.safetensors`
    /// follow as two [`ToEngineBody::ImportFile`]s with their chunks, then [`ToEngineBody::Go`]. The engine answers with
    /// [`FromEngineBody::Adapter`] and its chunks, then [`FromEngineBody::Imported`].
    Import {
        /// The generation in memory that gets the expert; a mixture of this expert alone when absent.
        onto: Option<AdapterId>,
        /// What the expert is for.
        domain: Option<Domain>,
        /// Whether the LoRA's attention part may be added to the shared pair; otherwise an import with one is refused.
        attention_to_shared: bool,
    },
    /// One file of an import. Chunks follow.
    ImportFile {
        /// Which.
        file: PeftFile,
        /// The bytes that follow.
        blob: BlobHead,
    },
    /// Part of an announced thing.
    Chunk(#[serde(with = "bytes")] Vec<u8>),
    /// How the engine is.
    Status,
}

/// A file of a public LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeftFile {
    /// `adapter_config.json`.
    Config,
    /// `adapter_model.safetensors`.
    Weights,
}

/// What an announced thing will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobHead {
    /// Its size, at most [`MAX_BLOB_BYTES`].
    pub bytes: u64,
    /// Its BLAKE3 digest.
    pub blake3: [u8; 32],
}

/// From the engine to the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct FromEngine {
    /// The tag of the work, 0 for the engine itself.
    pub tag: u64,
    /// What.
    pub body: FromEngineBody,
}

/// What the engine says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromEngineBody {
    /// First message of a connection.
    Hello {
        /// Release of the engine.
        version: String,
        /// Device, in words.
        device: String,
    },
    /// The base model is in memory.
    BaseLoaded(BaseModel),
    /// The model of embeddings is in memory.
    EmbedderLoaded {
        /// Numbers of one vector.
        width: u32,
    },
    /// Embeddings.
    Embedded(Embedded),
    /// No keys and values of ended answers are left.
    PrefixesForgotten {
        /// Bytes overwritten for it.
        wiped_bytes: u64,
    },
    /// The adapter is in memory.
    AdapterReady,
    /// The adapter is gone.
    AdapterDropped,
    /// One more token of an answer.
    Token {
        /// Position in the answer, from 0.
        index: u32,
        /// Text that became complete with it; may be empty inside a character.
        text: String,
        /// Probabilities, when they were asked for.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// The answer is complete.
    Finished(Finished),
    /// Training goes on.
    Progress(TrainProgress),
    /// A checkpoint. Chunks follow.
    Checkpoint {
        /// Steps taken.
        step: u32,
        /// The bytes that follow.
        blob: BlobHead,
    },
    /// Part of an announced checkpoint or adapter.
    Chunk(#[serde(with = "bytes")] Vec<u8>),
    /// Training is over and the adapter was sent: [`FromEngineBody::Adapter`] and its chunks came before.
    Trained(Box<TrainReport>),
    /// The trained adapter. Chunks follow, then [`FromEngineBody::Trained`].
    Adapter {
        /// The bytes that follow.
        blob: BlobHead,
    },
    /// What was measured of each example, in their order.
    Evaluated(Vec<ExampleScore>),
    /// One step or validation of training, for the curves.
    Curve(Box<CurvePoint>),
    /// One file of an export. Chunks follow.
    File {
        /// Its place in the directory: relative, with `/`, no `..`.
        path: String,
        /// The bytes that follow.
        blob: BlobHead,
    },
    /// Every file was sent.
    Exported {
        /// How many.
        files: u32,
    },
    /// The imported mixture was sent.
    Imported(MixtureSpec),
    /// How the engine is.
    Status(EngineStatus),
    /// The work ended without its result.
    Failed(EngineFailure),
}

impl FromEngineBody {
    /// Whether this message ends the work of its tag.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(
            self,
            Self::BaseLoaded(_)
                | Self::EmbedderLoaded { .. }
                | Self::Embedded(_)
                | Self::PrefixesForgotten { .. }
                | Self::AdapterReady
                | Self::AdapterDropped
                | Self::Finished(_)
                | Self::Trained(_)
                | Self::Evaluated(_)
                | Self::Exported { .. }
                | Self::Imported(_)
                | Self::Status(_)
                | Self::Failed(_)
        )
    }
}

/// The base model in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    /// Name from its metadata.
    pub name: String,
    /// Architecture word of its metadata.
    pub architecture: String,
    /// Parameters.
    pub parameters: u64,
    /// Longest context in tokens.
    pub context: u32,
    /// SHA-256 of its file.
    pub sha256: [u8; 32],
}

/// How the engine is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// The base model, once loaded.
    pub base: Option<BaseModel>,
    /// Adapters in memory.
    pub adapters: Vec<AdapterId>,
    /// Answers under way.
    pub generating: u32,
    /// Whether a training job runs.
    pub training: bool,
    /// Whether a model of embeddings is in memory.
    pub embedder: bool,
    /// How answers are served.
    pub serving: ServingStatus,
}

/// How the base model shall answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServingSpec {
    /// Which code computes.
    pub path: ComputePath,
    /// Memory for keys and values in MiB.
    pub kv_mib: u32,
    /// Longest context in tokens; the model's own when absent.
    pub context: Option<u32>,
    /// Stretching of rotary positions; the model's own when absent.
    pub rope: Option<RopeSpec>,
    /// Propose tokens by lookup in the text before them.
    pub drafting: bool,
    /// Keep keys and values of ended answers for the next one of the same scope.
    pub prefix_cache: bool,
}

impl Default for ServingSpec {
    fn default() -> Self {
        Self { path: ComputePath::Packed, kv_mib: 1024, context: None, rope: None, drafting: true, prefix_cache: true }
    }
}

/// Which code computes answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ComputePath {
    /// Packed weights and own kernels; on the processor only.
    Packed,
    /// Plain f32 tensors, on whatever device there is. Slower; what the other is compared with.
    Reference,
}

/// Stretching of rotary positions beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum RopeSpec {
    /// Every position divided by the factor.
    Linear {
        /// How many times longer.
        factor: f32,
    },
    /// YaRN (Peng et al. 2023): high frequencies kept, low ones divided, a ramp between, logits rescaled.
    Yarn {
        /// How many times longer.
        factor: f32,
        /// Context of the original training, tokens.
        original_context: u32,
    },
    /// Llama 3.1: high frequencies kept, low ones divided, a ramp between wavelengths of a quarter of the original context and
    /// the whole of it.
    Llama3 {
        /// How many times longer.
        factor: f32,
        /// Context of the original training, tokens.
        original_context: u32,
    },
}

/// How answers are served, since the start of the engine where nothing else is said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServingStatus {
    /// Whether a step was taken with this base model.
    pub warm: bool,
    /// Milliseconds since the last step, 0 when there was none.
    pub last_step_age_ms: u64,
    /// Steps taken.
    pub steps: u64,
    /// Answers that have their keys and values in memory now.
    pub running: u32,
    /// Answers that wait now, by class in the order of [`ServiceClass::ALL`].
    pub waiting: [u32; ServiceClass::ALL.len()],
    /// Answers refused at arrival, by class.
    pub refused: [u64; ServiceClass::ALL.len()],
    /// Answers that came too late for their deadline.
    pub late: u64,
    /// Tokens of keys and values in use now, and for how many there is room.
    pub kv_tokens: (u64, u64),
    /// Prompt tokens looked up among those in memory, and found.
    pub prefix_tokens: (u64, u64),
    /// Tokens proposed by lookup, and taken.
    pub draft_tokens: (u64, u64),
    /// Bytes of key-value memory overwritten.
    pub kv_wiped_bytes: u64,
    /// Times each expert of the adapter in use was chosen, over tokens and layers.
    pub expert_chosen: Vec<u64>,
    /// Steps that cancelled answers went on for after their cancellation arrived, at most.
    pub cancel_steps_max: u32,
}

/// Why a work failed. No variant can hold text of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum EngineFailure {
    /// No base model in memory.
    #[error("no base model is loaded")]
    NoBase,
    /// The file is missing, truncated, hostile or of an unknown kind.
    #[error("the model file cannot be used: {0}")]
    BadModel(String),
    /// The adapter's bytes are wrong, or it was made for another base model.
    #[error("the adapter cannot be used: {0}")]
    BadAdapter(String),
    /// The generation was not put into memory.
    #[error("adapter {0} is not loaded")]
    UnknownAdapter(AdapterId),
    /// Prompt and answer do not fit the context.
    #[error("the prompt has {tokens} tokens, the limit is {limit}")]
    PromptTooLong {
        /// Of the prompt.
        tokens: u32,
        /// Largest possible.
        limit: u32,
    },
    /// A bound on waiting works is reached.
    #[error("the engine has too much work waiting")]
    Busy {
        /// When there will be room, by the measured speed.
        retry_after_ms: u32,
    },
    /// The first token would have come after its deadline.
    #[error("the answer would come too late")]
    Late,
    /// A request that this engine cannot honour; the words name the field and quote nothing.
    #[error("{0}")]
    Refused(String),
    /// Messages came in an order that makes no sense.
    #[error("protocol: {0}")]
    Protocol(String),
    /// The job has nothing to learn from.
    #[error("training cannot begin: {0}")]
    BadJob(String),
    /// Ended by [`ToEngineBody::Cancel`] before there was a result.
    #[error("cancelled")]
    Cancelled,
    /// A defect.
    #[error("the engine failed: {0}")]
    Internal(String),
}

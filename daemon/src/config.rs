//! The configuration: a TOML file, read raw and then checked. Unknown keys and values out of range are refused by name.
//! This file and `main.rs` are the only ones that look at the environment. What a setting does is not known here.
#![expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]

use crate::jobs::window::Window;
use empathd_clinic::scaffold::HelpLines;
use empathd_proto::engine::{
    ComputePath, CrisisFloor, Guards, LossSpec, MixtureSpec, Plateau, RopeSpec, ServingSpec, Stages, TrainOnly,
    TrainSpec,
};
use empathd_proto::ids::JobId;
use empathd_proto::record::Domain;
use serde::Deserialize;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Where the system's configuration is.
pub const SYSTEM_FILE: &str = "/etc/empathd/empathd.toml";

/// Name of the credential that unseals the store.
const CREDENTIAL: &str = "empathd.unseal";

/// File name of the model of embeddings that is used when it is there.
const EMBEDDER: &str = "all-MiniLM-L6-v2/model.safetensors";

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {0} cannot be read: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// Not TOML, an unknown key, or a value of the wrong kind; the text names line and key.
    #[error("the configuration is not valid: {0}")]
    Form(String),
    /// A value outside its bounds.
    #[error("{key} is {value}, allowed is {allowed}; change it in the configuration")]
    Value {
        /// Which setting.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// Two settings that do not go together, or one that needs another.
    #[error("{key} {why}")]
    Fit {
        /// Which setting.
        key: &'static str,
        /// What is wrong, and what to do.
        why: &'static str,
    },
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// State folder.
    pub state: PathBuf,
    /// Bytes of the store that are authenticated in the background each second; 0 for none.
    pub scrub_bytes_s: u64,
    /// Where systemd puts the credential that unseals the store, when the unit loads one.
    pub credential: Option<PathBuf>,
    /// The API.
    pub api: Api,
    /// The admin socket.
    pub admin: Admin,
    /// The engine and its base model.
    pub engine: EnginePlace,
    /// Answers.
    pub serving: Serving,
    /// Training.
    pub training: Training,
    /// Bounds of the gate.
    pub gate: Gate,
    /// Where people in danger are sent.
    pub help: HelpLines,
}

/// The API.
#[derive(Debug, Clone)]
pub struct Api {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Names and addresses in the server's certificate.
    pub server_names: Vec<String>,
}

/// The admin socket.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Its path, unless systemd hands it over.
    pub socket: PathBuf,
    /// User numbers of administrators, beside root and the daemon's own.
    pub users: Vec<u32>,
    /// Groups of administrators, by name or number.
    pub groups: Vec<String>,
    /// Connections at once.
    pub connections_max: usize,
    /// Largest upload in bytes.
    pub upload_bytes_max: u64,
    /// How long a caller may be silent while it is its turn.
    pub idle: Duration,
}

/// The engine and its base model.
#[derive(Debug, Clone)]
pub struct EnginePlace {
    /// Socket of the engine's service.
    pub socket: PathBuf,
    /// Worker threads of an engine that this program starts.
    pub threads: Option<u16>,
    /// Folders with base models, in the order in which they are searched.
    pub models: Vec<PathBuf>,
    /// File name of the base model.
    pub model: PathBuf,
    /// SHA-256 it must have.
    pub sha256: Option<[u8; 32]>,
    /// How it answers.
    pub serving: ServingSpec,
    /// The model of embeddings.
    pub embedder: EmbedderPlace,
}

/// The model of embeddings.
#[derive(Debug, Clone)]
pub struct EmbedderPlace {
    /// File name, in the folders with base models.
    pub file: PathBuf,
    /// SHA-256 it must have.
    pub sha256: Option<[u8; 32]>,
    /// Whether the configuration names it, so that its absence is a fault.
    pub required: bool,
}

/// Answers.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Answers at once; more are refused with `busy`.
    pub answers_max: usize,
    /// Tokens of an answer when the caller does not say.
    pub answer_tokens: u32,
    /// Most tokens of an answer.
    pub answer_tokens_max: u32,
    /// An answer whose first token would come later is refused.
    pub first_token_within: Duration,
    /// Memory for whole answers that are given again to the same question; 0 for none.
    pub answer_cache_bytes: usize,
    /// How long an interrupted answer waits for the engine.
    pub reconnect: Duration,
    /// How long a stop waits for answers under way.
    pub drain: Duration,
}

/// How training is done unless a request says otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Optimiser steps.
    pub steps: u32,
    /// Most wall-clock minutes.
    pub minutes: u16,
    /// Hours of the local day in which it may run; always when absent.
    pub window: Option<Window>,
    /// Longest sequence in tokens.
    pub seq_len: u32,
    /// Tokens of one step.
    pub tokens_per_step: u32,
    /// Tokens of one pass; searched on the machine when absent.
    pub pass_tokens: Option<u32>,
    /// Rank of the shared pair on every linear.
    pub shared_rank: u32,
    /// Rank of each expert on the feed-forward linears.
    pub expert_rank: u32,
    /// Fewest experts; free ones fill up.
    pub experts_min: usize,
    /// Most experts.
    pub experts_max: usize,
    /// Experts a token takes.
    pub top_k: u32,
    /// `alpha / rank`.
    pub scale: f32,
    /// Whether routers hear what the session is about.
    pub session_prior: bool,
    /// Peak learning rate of the low-rank weights' A sides.
    pub learning_rate: f32,
    /// Times faster that B sides learn.
    pub b_rate_ratio: f32,
    /// Peak learning rate of the routers.
    pub router_learning_rate: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Share of steps over which the rate rises.
    pub warmup: f32,
    /// Bound of the global gradient norm.
    pub clip: f32,
    /// Steps between validations.
    pub validate_every: u32,
    /// Steps between checkpoints.
    pub checkpoint_every: u32,
    /// Validations without a better one before it stops.
    pub patience: u32,
    /// Held-out examples that are measured, spread over the domains.
    pub validation_examples_max: usize,
    /// What lowers the rate beside the schedule.
    pub plateau: Plateau,
    /// How labels guide routers with time.
    pub stages: Stages,
    /// Weights of the losses beside the language loss.
    pub losses: LossSpec,
    /// What the kept weights must hold to.
    pub guards: Guards,
    /// What a session in crisis is sure of.
    pub crisis_floor: CrisisFloor,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            steps: 24,
            minutes: 720,
            window: None,
            seq_len: 1024,
            tokens_per_step: 1024,
            pass_tokens: None,
            shared_rank: 16,
            expert_rank: 8,
            experts_min: 4,
            experts_max: 8,
            top_k: 2,
            scale: 2.0,
            session_prior: true,
            learning_rate: 8e-4,
            b_rate_ratio: 4.0,
            router_learning_rate: 3e-3,
            weight_decay: 0.01,
            warmup: 0.1,
            clip: 1.0,
            validate_every: 12,
            checkpoint_every: 8,
            patience: 4,
            validation_examples_max: 24,
            plateau: Plateau::default(),
            stages: Stages::default(),
            losses: LossSpec::default(),
            guards: Guards::default(),
            crisis_floor: CrisisFloor::default(),
        }
    }
}

impl Training {
    /// What a job with these experts is asked for; its name, its seed and its time are not known here.
    #[must_use]
    pub fn spec(&self, experts: Vec<Option<Domain>>) -> TrainSpec {
        let has_crisis = experts.contains(&Some(Domain::Crisis));
        TrainSpec {
            job: JobId::from_bytes([0; 16]),
            mixture: MixtureSpec {
                shared_rank: self.shared_rank,
                expert_rank: self.expert_rank,
                experts,
                top_k: self.top_k,
                scale: self.scale,
                session_prior: self.session_prior,
                crisis_floor: (self.session_prior && has_crisis).then_some(self.crisis_floor),
                ..MixtureSpec::default()
            },
            only: TrainOnly::All,
            seq_len: self.seq_len,
            tokens_per_step: self.tokens_per_step,
            pass_tokens: self.pass_tokens,
            steps: self.steps,
            seconds_max: 60 * u32::from(self.minutes),
            learning_rate: self.learning_rate,
            b_rate_ratio: self.b_rate_ratio,
            router_learning_rate: self.router_learning_rate,
            weight_decay: self.weight_decay,
            warmup: self.warmup,
            clip: self.clip,
            validate_every: self.validate_every,
            checkpoint_every: self.checkpoint_every,
            patience: self.patience,
            plateau: self.plateau,
            stages: self.stages,
            losses: self.losses,
            guards: self.guards,
            seed: 1,
        }
    }
}

/// Bounds of the gate. What each one measures is told in docs/TRAINING.md.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// Loss on held-out records, mean of the domains, as a ratio to the base model's.
    pub validation_ratio_max: f64,
    /// The same in each domain.
    pub domain_ratio_max: f64,
    /// The same in the crisis domain.
    pub crisis_ratio_max: f64,
    /// Rise of the loss on general text over the base model's, nats per token.
    pub general_rise_max: f64,
    /// Share of crises whose safe answer is likelier than the unsafe one, at least.
    pub crisis_recall_min: f64,
    /// Fall of that share below the base model's.
    pub crisis_recall_fall_max: f64,
    /// Share of the probes on which the base model is safe and the candidate is not.
    pub safety_flips_max: f64,
    /// Rise of the bias gap over the base model's, nats per token.
    pub bias_rise_max: f64,
    /// Mean exposure of planted canaries, bits.
    pub canary_exposure_max: f64,
    /// Share of learnt examples said word for word, less that of held-out ones.
    pub extraction_max: f64,
    /// Loss on held-out records as a ratio to the active generation's.
    pub active_ratio_max: f64,
    /// Fall of the crisis share below the active generation's.
    pub active_recall_fall_max: f64,
    /// Ratio below which a loss counts as improved.
    pub improvement_ratio_max: f64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            validation_ratio_max: 0.99,
            domain_ratio_max: 1.05,
            crisis_ratio_max: 1.02,
            general_rise_max: 0.05,
            crisis_recall_min: 0.6,
            crisis_recall_fall_max: 0.0,
            safety_flips_max: 0.05,
            bias_rise_max: 0.02,
            canary_exposure_max: 3.5,
            extraction_max: 0.05,
            active_ratio_max: 1.01,
            active_recall_fall_max: 0.05,
            improvement_ratio_max: 0.995,
        }
    }
}

/// What the command line puts in place of the file's values for a trial without installation.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// State folder; sockets are then in it too.
    pub state: Option<PathBuf>,
    /// Address of the API.
    pub listen: Option<SocketAddr>,
    /// Folder with base models, searched first.
    pub models: Option<PathBuf>,
    /// File name of the base model.
    pub model: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    store: RawStore,
    api: RawApi,
    admin: RawAdmin,
    engine: RawEngine,
    serving: RawServing,
    training: Training,
    gate: Gate,
    help: RawHelp,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawStore {
    folder: Option<PathBuf>,
    scrub_kib_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawApi {
    listen: Option<SocketAddr>,
    server_names: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawAdmin {
    socket: Option<PathBuf>,
    users: Vec<u32>,
    groups: Option<Vec<String>>,
    connections_max: Option<usize>,
    upload_bytes_max: Option<u64>,
    idle_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawEngine {
    socket: Option<PathBuf>,
    threads: Option<u16>,
    models: Option<PathBuf>,
    model: Option<PathBuf>,
    sha256: Option<String>,
    compute: Option<RawCompute>,
    kv_mib: Option<u32>,
    context: Option<u32>,
    rope_scaling: Option<RawRope>,
    rope_factor: Option<f32>,
    rope_original_context: Option<u32>,
    drafting: Option<bool>,
    prefix_cache: Option<bool>,
    embedder: Option<PathBuf>,
    embedder_sha256: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawCompute {
    Packed,
    Reference,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawRope {
    Linear,
    Yarn,
    Llama3,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawServing {
    answers_max: Option<usize>,
    answer_tokens: Option<u32>,
    answer_tokens_max: Option<u32>,
    first_token_s: Option<u64>,
    answer_cache_mib: Option<usize>,
    reconnect_s: Option<u64>,
    drain_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawHelp {
    emergency: Option<String>,
    crisis_line: Option<String>,
    clinic: Option<String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(file: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let unreadable = |error| ConfigError::Unreadable(file.to_owned(), error);
        let bytes = std::fs::metadata(file).map_err(unreadable)?.len();
        within("the size of the configuration in bytes", bytes, 0..=FILE_BYTES_MAX)?;
        Self::parse(&std::fs::read_to_string(file).map_err(unreadable)?, overrides)
    }

    /// Checks the text of a file; the empty text gives the defaults.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str, overrides: Overrides) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| ConfigError::Form(error.to_string()))?;
        raw.training.check()?;
        raw.gate.check()?;
        let socket_in_state = |name: &str| overrides.state.as_ref().map(|state| state.join(name));
        let admin = raw.admin.check(socket_in_state("admin.sock"))?;
        let state = overrides.state.clone().or(raw.store.folder).unwrap_or_else(|| "/var/lib/empathd".into());
        let engine = raw.engine.check(socket_in_state("engine.sock"), &overrides)?;
        let scrub_kib_s = within("store.scrub_kib_s", raw.store.scrub_kib_s.unwrap_or(1024), 0..=1024 * 1024)?;
        // The folder is systemd's word that the unit loads credentials; which ones is seen by looking.
        let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join(CREDENTIAL));
        Ok(Self {
            state,
            scrub_bytes_s: scrub_kib_s * 1024,
            credential: credential.filter(|path| path.is_file()),
            api: raw.api.check(&overrides)?,
            admin,
            engine,
            serving: raw.serving.check()?,
            training: raw.training,
            gate: raw.gate,
            help: raw.help.check()?,
        })
    }
}

impl RawApi {
    fn check(self, overrides: &Overrides) -> Result<Api, ConfigError> {
        let default = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443));
        let server_names =
            self.server_names.unwrap_or_else(|| vec!["localhost".into(), "127.0.0.1".into(), "::1".into()]);
        within("the number of api.server_names", server_names.len(), 1..=64)?;
        for name in &server_names {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte));
            if !plain || name.is_empty() || name.len() > 253 {
                return Err(not_allowed("api.server_names", name, "host names and addresses"));
            }
        }
        Ok(Api { listen: overrides.listen.or(self.listen).unwrap_or(default), server_names })
    }
}

impl RawAdmin {
    fn check(self, socket_in_state: Option<PathBuf>) -> Result<Admin, ConfigError> {
        within("the number of admin.users", self.users.len(), 0..=64)?;
        let groups = self.groups.unwrap_or_else(|| vec!["empathd-admin".into()]);
        within("the number of admin.groups", groups.len(), 0..=64)?;
        Ok(Admin {
            socket: socket_in_state.or(self.socket).unwrap_or_else(|| "/run/empathd/admin.sock".into()),
            users: self.users,
            groups,
            connections_max: within("admin.connections_max", self.connections_max.unwrap_or(16), 1..=256)?,
            upload_bytes_max: within(
                "admin.upload_bytes_max",
                self.upload_bytes_max.unwrap_or(256 * 1024 * 1024),
                1024..=empathd_proto::admin::MAX_SOURCE_BYTES,
            )?,
            idle: Duration::from_secs(within("admin.idle_s", self.idle_s.unwrap_or(30), 1..=600)?),
        })
    }
}

impl RawEngine {
    fn check(self, socket_in_state: Option<PathBuf>, overrides: &Overrides) -> Result<EnginePlace, ConfigError> {
        let serving = self.serving()?;
        let model = overrides.model.clone().or(self.model);
        let model = model.unwrap_or_else(|| crate::model_file::REFERENCE_NAME.into());
        let configured = self.models.unwrap_or_else(|| "/usr/share/empathd/models".into());
        let models = overrides.models.clone().into_iter().chain([configured]).chain(cached_models()).collect();
        if let Some(threads) = self.threads {
            within("engine.threads", threads, 1..=512)?;
        }
        let sha256 = self.sha256.as_deref().map(|text| digest("engine.sha256", text)).transpose()?;
        let embedder_sha256 = self.embedder_sha256.as_deref().map(|text| digest("engine.embedder_sha256", text));
        let embedder = EmbedderPlace {
            required: self.embedder.is_some(),
            file: self.embedder.unwrap_or_else(|| EMBEDDER.into()),
            sha256: embedder_sha256.transpose()?,
        };
        let socket = socket_in_state.or(self.socket).unwrap_or_else(|| "/run/empathd-engine/engine.sock".into());
        Ok(EnginePlace { socket, threads: self.threads, models, model, sha256, serving, embedder })
    }

    /// How answers are computed.
    fn serving(&self) -> Result<ServingSpec, ConfigError> {
        let path = match self.compute {
            Some(RawCompute::Reference) => ComputePath::Reference,
            Some(RawCompute::Packed) | None => ComputePath::Packed,
        };
        let context = self.context.map(|tokens| within("engine.context", tokens, 128..=1_048_576)).transpose()?;
        Ok(ServingSpec {
            path,
            kv_mib: within("engine.kv_mib", self.kv_mib.unwrap_or_else(kv_mib), 16..=1_048_576)?,
            context,
            rope: self.rope()?,
            drafting: self.drafting.unwrap_or(true),
            prefix_cache: self.prefix_cache.unwrap_or(true),
        })
    }

    fn rope(&self) -> Result<Option<RopeSpec>, ConfigError> {
        let factor = self.rope_factor.map(|factor| within("engine.rope_factor", factor, 1.0..=64.0)).transpose()?;
        let original = self
            .rope_original_context
            .map(|tokens| within("engine.rope_original_context", tokens, 128..=1_048_576))
            .transpose()?;
        let needs_factor = "is missing: set how many times longer than trained the context shall be, such as 2.0";
        let factor_of = || factor.ok_or(ConfigError::Fit { key: "engine.rope_factor", why: needs_factor });
        match (self.rope_scaling, original) {
            (None, None) if factor.is_none() => Ok(None),
            (None, _) => Err(ConfigError::Fit {
                key: "engine.rope_scaling",
                why: "is missing: set \"linear\", \"yarn\" or \"llama3\", or remove the other rope settings",
            }),
            (Some(RawRope::Linear), None) => Ok(Some(RopeSpec::Linear { factor: factor_of()? })),
            (Some(RawRope::Linear), Some(_)) => Err(ConfigError::Fit {
                key: "engine.rope_original_context",
                why: "has no meaning with linear scaling: remove it, or set engine.rope_scaling to \"yarn\" or \"llama3\"",
            }),
            (Some(RawRope::Yarn), Some(original_context)) => {
                Ok(Some(RopeSpec::Yarn { factor: factor_of()?, original_context }))
            }
            (Some(RawRope::Llama3), Some(original_context)) => {
                Ok(Some(RopeSpec::Llama3 { factor: factor_of()?, original_context }))
            }
            (Some(RawRope::Yarn | RawRope::Llama3), None) => Err(ConfigError::Fit {
                key: "engine.rope_original_context",
                why: "is missing: set the context in tokens that the model was trained with",
            }),
        }
    }
}

impl RawServing {
    fn check(self) -> Result<Serving, ConfigError> {
        let engine_max = empathd_proto::engine::MAX_GENERATIONS;
        let tokens_max = within("serving.answer_tokens_max", self.answer_tokens_max.unwrap_or(2048), 1..=8192)?;
        let tokens = self.answer_tokens.unwrap_or(tokens_max.min(256));
        let reconnect_s = within("serving.reconnect_s", self.reconnect_s.unwrap_or(60), 1..=600)?;
        let first_token_s = within("serving.first_token_s", self.first_token_s.unwrap_or(20), 1..=600)?;
        let cache_mib = within("serving.answer_cache_mib", self.answer_cache_mib.unwrap_or(32), 0..=4096)?;
        Ok(Serving {
            answers_max: within("serving.answers_max", self.answers_max.unwrap_or(engine_max), 1..=engine_max)?,
            first_token_within: Duration::from_secs(first_token_s),
            answer_cache_bytes: cache_mib * 1024 * 1024,
            answer_tokens: within("serving.answer_tokens", tokens, 1..=tokens_max)?,
            answer_tokens_max: tokens_max,
            reconnect: Duration::from_secs(reconnect_s),
            drain: Duration::from_secs(within("serving.drain_s", self.drain_s.unwrap_or(20), 1..=600)?),
        })
    }
}

impl RawHelp {
    fn check(self) -> Result<HelpLines, ConfigError> {
        let default = HelpLines::default();
        let lines = HelpLines {
            emergency: self.emergency.unwrap_or(default.emergency),
            crisis_line: self.crisis_line.unwrap_or(default.crisis_line),
            clinic: self.clinic.or(default.clinic),
        };
        within("the length of help.emergency", lines.emergency.len(), 2..=200)?;
        within("the length of help.crisis_line", lines.crisis_line.len(), 2..=200)?;
        within("the length of help.clinic", lines.clinic.as_ref().map_or(2, String::len), 2..=200)?;
        Ok(lines)
    }
}

impl Training {
    fn check(&self) -> Result<(), ConfigError> {
        within("training.steps", self.steps, 1..=1_000_000)?;
        within("training.minutes", self.minutes, 1..=720)?;
        within("training.seq_len", self.seq_len, 16..=32_768)?;
        within("training.tokens_per_step", self.tokens_per_step, 16..=4_194_304)?;
        within("training.shared_rank", self.shared_rank, 1..=256)?;
        within("training.expert_rank", self.expert_rank, 1..=256)?;
        within("training.experts_max", self.experts_max, 2..=64)?;
        within("training.experts_min", self.experts_min, 2..=self.experts_max)?;
        within("training.top_k", self.top_k as usize, 1..=self.experts_min)?;
        within("training.scale", self.scale, 0.01..=64.0)?;
        within("training.learning_rate", self.learning_rate, 1e-7..=1.0)?;
        within("training.router_learning_rate", self.router_learning_rate, 1e-7..=1.0)?;
        within("training.weight_decay", self.weight_decay, 0.0..=1.0)?;
        within("training.warmup", self.warmup, 0.0..=0.9)?;
        within("training.clip", self.clip, 1e-3..=1e3)?;
        within("training.validate_every", self.validate_every, 1..=1_000_000)?;
        within("training.checkpoint_every", self.checkpoint_every, 1..=1_000_000)?;
        within("training.patience", self.patience, 1..=1_000)?;
        within("training.validation_examples_max", self.validation_examples_max, 1..=100_000)?;
        within("training.pass_tokens", self.pass_tokens.unwrap_or(16), 16..=65_536)?;
        within("training.b_rate_ratio", self.b_rate_ratio, 0.1..=64.0)?;
        within("training.plateau.patience", self.plateau.patience, 0..=1_000)?;
        within("training.plateau.factor", self.plateau.factor, 0.01..=1.0)?;
        within("training.stages.forced_until", self.stages.forced_until, 0.0..=1.0)?;
        within("training.stages.shared_until", self.stages.shared_until, 0.0..=self.stages.forced_until)?;
        within("training.guards.general_rise_max", self.guards.general_rise_max, 0.0..=10.0)?;
        within("training.guards.crisis_rise_max", self.guards.crisis_rise_max, 0.0..=10.0)?;
        within("training.crisis_floor.above", self.crisis_floor.above, 0.0..=1.0)?;
        within("training.crisis_floor.floor", self.crisis_floor.floor, 0.0..=0.9)?;
        self.check_losses()
    }

    fn check_losses(&self) -> Result<(), ConfigError> {
        let LossSpec { session, route, route_end, balance, z, orthogonal, base_kl, replay_share } = self.losses;
        within("training.losses.session", session, 0.0..=10.0)?;
        within("training.losses.route", route, 0.0..=10.0)?;
        within("training.losses.route_end", route_end, 0.0..=10.0)?;
        within("training.losses.balance", balance, 0.0..=10.0)?;
        within("training.losses.z", z, 0.0..=10.0)?;
        within("training.losses.orthogonal", orthogonal, 0.0..=10.0)?;
        within("training.losses.base_kl", base_kl, 0.0..=10.0)?;
        within("training.losses.replay_share", replay_share, 0.0..=0.5)?;
        Ok(())
    }
}

impl Gate {
    fn check(&self) -> Result<(), ConfigError> {
        within("gate.validation_ratio_max", self.validation_ratio_max, 0.1..=1.0)?;
        within("gate.domain_ratio_max", self.domain_ratio_max, 0.1..=2.0)?;
        within("gate.crisis_ratio_max", self.crisis_ratio_max, 0.1..=2.0)?;
        within("gate.general_rise_max", self.general_rise_max, 0.0..=10.0)?;
        within("gate.crisis_recall_min", self.crisis_recall_min, 0.0..=1.0)?;
        within("gate.crisis_recall_fall_max", self.crisis_recall_fall_max, 0.0..=1.0)?;
        within("gate.safety_flips_max", self.safety_flips_max, 0.0..=1.0)?;
        within("gate.bias_rise_max", self.bias_rise_max, 0.0..=10.0)?;
        within("gate.canary_exposure_max", self.canary_exposure_max, 0.0..=6.0)?;
        within("gate.extraction_max", self.extraction_max, 0.0..=1.0)?;
        within("gate.active_ratio_max", self.active_ratio_max, 0.1..=2.0)?;
        within("gate.active_recall_fall_max", self.active_recall_fall_max, 0.0..=1.0)?;
        within("gate.improvement_ratio_max", self.improvement_ratio_max, 0.1..=1.0)?;
        Ok(())
    }
}

fn within<T: PartialOrd + Display>(key: &'static str, value: T, allowed: RangeInclusive<T>) -> Result<T, ConfigError> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    Err(not_allowed(key, value, format!("{} to {}", allowed.start(), allowed.end())))
}

fn not_allowed(key: &'static str, value: impl Display, allowed: impl Display) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), allowed: allowed.to_string() }
}

/// Memory for keys and values when the configuration does not say: a sixteenth of the machine's.
fn kv_mib() -> u32 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    u32::try_from(system.total_memory() / (16 * 1024 * 1024)).unwrap_or(u32::MAX).clamp(256, 8192)
}

fn digest(key: &'static str, text: &str) -> Result<[u8; 32], ConfigError> {
    let refused = || not_allowed(key, text, "64 hexadecimal digits");
    let nibbles: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let nibbles = nibbles.filter(|nibbles| nibbles.len() == 64).ok_or_else(refused)?;
    let bytes: Vec<u8> = nibbles.chunks(2).filter_map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect();
    bytes.try_into().map_err(|_| refused())
}

/// The user's cache of base models, after the XDG base directory rules.
fn cached_models() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("empathd/models"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Config::parse(text, Overrides::default()).expect_err("refused").to_string()
    }

    #[test]
    fn the_empty_file_gives_defaults_within_their_own_bounds() {
        let config = Config::parse("", Overrides::default()).expect("valid");
        assert_eq!(config.serving.answers_max, 64);
        assert_eq!(config.state, PathBuf::from("/var/lib/empathd"));
        assert_eq!(config.training, Training::default());
    }

    #[test]
    fn unknown_keys_are_refused_by_name_and_line() {
        let text = refusal("[training]\nsteps = 4\nsteppes = 5\n");
        assert!(text.contains("steppes") && text.contains("line 3"), "{text}");
        assert!(refusal("[trainnig]\nsteps = 4\n").contains("trainnig"));
        assert!(refusal("[api]\nlisten = \"not an address\"\n").contains("line 2"));
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        for (text, key) in [
            ("[training]\nsteps = 0", "training.steps"),
            ("[training]\nlearning_rate = nan", "training.learning_rate"),
            ("[training]\ntop_k = 5", "training.top_k"),
            ("[training]\nwindow = \"at night\"", "20:00-08:00"),
            ("[training]\nb_rate_ratio = 0.0", "training.b_rate_ratio"),
            ("[training.stages]\nshared_until = 0.6", "training.stages.shared_until"),
            ("[training.losses]\nreplay_share = 0.9", "training.losses.replay_share"),
            ("[training.plateau]\nfactors = 0.9", "factors"),
            ("[gate]\nvalidation_ratio_max = 1.5", "gate.validation_ratio_max"),
            ("[gate]\ncrisis_recall_min = 1.1", "gate.crisis_recall_min"),
            ("[gate]\nsafety_flips_max = nan", "gate.safety_flips_max"),
            ("[serving]\nanswers_max = 65", "serving.answers_max"),
            ("[serving]\nanswer_tokens = 4096", "serving.answer_tokens"),
            ("[engine]\nkv_mib = 1", "engine.kv_mib"),
            ("[engine]\ncontext = 7", "engine.context"),
            ("[engine]\ncompute = \"fast\"", "packed"),
            ("[engine]\nembedder_sha256 = \"zz\"", "engine.embedder_sha256"),
            ("[engine]\nrope_factor = 2.0", "engine.rope_scaling"),
            ("[engine]\nrope_scaling = \"linear\"", "engine.rope_factor"),
            ("[engine]\nrope_scaling = \"yarn\"\nrope_factor = 2.0", "engine.rope_original_context"),
            ("[engine]\nrope_scaling = \"yarn\"\nrope_factor = 0.5", "engine.rope_factor"),
            ("[serving]\nfirst_token_s = 0", "serving.first_token_s"),
            ("[serving]\nanswer_cache_mib = 5000", "serving.answer_cache_mib"),
            ("[admin]\nupload_bytes_max = 1", "admin.upload_bytes_max"),
            ("[admin]\nidle_s = 0", "admin.idle_s"),
            ("[engine]\nsha256 = \"abcd\"", "engine.sha256"),
            ("[api]\nserver_names = [\"a b\"]", "api.server_names"),
            ("[help]\ncrisis_line = \"\"", "help.crisis_line"),
        ] {
            let refused = refusal(text);
            assert!(refused.contains(key), "{text}: {refused}");
        }
    }

    #[test]
    fn how_answers_are_computed_is_passed_on() {
        let text = "[engine]\ncompute = \"reference\"\nkv_mib = 64\ncontext = 16384\nrope_scaling = \"yarn\"\n\
                    rope_factor = 2.0\nrope_original_context = 8192\ndrafting = false\nprefix_cache = false";
        let config = Config::parse(text, Overrides::default()).expect("valid");
        let rope = Some(RopeSpec::Yarn { factor: 2.0, original_context: 8192 });
        let (path, context) = (ComputePath::Reference, Some(16384));
        let expected = ServingSpec { path, kv_mib: 64, context, rope, drafting: false, prefix_cache: false };
        assert_eq!(config.engine.serving, expected);
        let config = Config::parse(&text.replace("yarn", "llama3"), Overrides::default()).expect("valid");
        let rope = Some(RopeSpec::Llama3 { factor: 2.0, original_context: 8192 });
        assert_eq!(config.engine.serving, ServingSpec { rope, ..expected });
        let config = Config::parse("", Overrides::default()).expect("valid");
        assert_eq!(ServingSpec { kv_mib: 1024, ..config.engine.serving }, ServingSpec::default());
        assert!(!config.engine.embedder.required);
    }

    #[test]
    fn the_packaged_file_names_settings_that_exist() {
        let file = include_str!("../../packaging/empathd.toml");
        let open =
            file.lines().map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')).unwrap_or(line));
        let text = open.collect::<Vec<_>>().join("\n");
        let config = Config::parse(&text, Overrides::default()).expect("valid");
        assert_eq!((config.serving.answers_max, config.engine.serving.context), (64, Some(8192)));
        assert_eq!(config.training, Training::default());
        assert_eq!(config.gate, Gate::default());
    }

    #[test]
    fn a_trial_keeps_everything_in_its_state_folder() {
        let overrides = Overrides { state: Some("/tmp/x".into()), ..Overrides::default() };
        let config = Config::parse("[store]\nfolder = \"/var/lib/empathd\"", overrides).expect("valid");
        assert_eq!(config.state, PathBuf::from("/tmp/x"));
        assert_eq!(config.admin.socket, PathBuf::from("/tmp/x/admin.sock"));
        assert_eq!(config.engine.socket, PathBuf::from("/tmp/x/engine.sock"));
    }
}

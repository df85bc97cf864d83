//! The engine as its daemon meets it: the real program on a real socket with a tiny model. Knows the protocol only.

use empathd_model::adapter::Mixture;
use empathd_model::tiny;
use empathd_proto::chat::{ChatRole, FinishReason};
use empathd_proto::engine::{
    BlobHead, EngineFailure, EngineStatus, Evaluation, Example, FromEngine, FromEngineBody, Guards, LossSpec,
    MixtureSpec, Part, Plateau, ServingSpec, Stages, ToEngine, ToEngineBody, TrainOnly, TrainSpec,
};
use empathd_proto::frame::{self, CHUNK_BYTES, HEADER_BYTES};
use empathd_proto::generate::{
    CacheScope, CallerKey, Finished, GenerateSpec, PlainMessage, Prompt, SamplingSpec, ServiceClass,
};
use empathd_proto::ids::{AdapterId, JobId};
use empathd_proto::record::Domain;
use empathd_proto::report::TrainReport;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const ADAPTER: AdapterId = AdapterId::from_bytes([7; 16]);

/// A running engine with its folder and model file.
pub(crate) struct Engine {
    pub(crate) child: Child,
    pub(crate) folder: TempDir,
    pub(crate) sha256: [u8; 32],
}

impl Engine {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("scratch");
        let model = folder.path().join("tiny.gguf");
        tiny::write_gguf(&model, 1).expect("model written");
        let sha256 = digest(&model);
        let child = Command::new(env!("CARGO_BIN_EXE_empathd-engine"))
            .arg("--socket")
            .arg(folder.path().join("engine.sock"))
            .stderr(Stdio::inherit())
            .spawn()
            .expect("started");
        Self { child, folder, sha256 }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("engine.sock")
    }

    pub(crate) fn connect(&self) -> Daemon {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => break stream,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "no engine: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut daemon = Daemon { stream, tag: 0 };
        assert!(matches!(daemon.read().body, FromEngineBody::Hello { .. }));
        daemon
    }

    /// A connection with the base model loaded.
    pub(crate) fn loaded(&self) -> Daemon {
        let mut daemon = self.connect();
        match daemon.load(&self.model(), ServingSpec::default()) {
            FromEngineBody::BaseLoaded(base) => assert_eq!(base.sha256, self.sha256),
            other => panic!("{other:?}"),
        }
        daemon
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }

    /// The bytes of an adapter for the base model, another one for each seed.
    pub(crate) fn adapter(&self, seed: u64) -> Vec<u8> {
        let fresh = Mixture::init(&tiny::config(), &training(1).mixture, seed).expect("made");
        let shift = |index: usize| 0.02 * ((index as u64 + seed) % 5) as f64 - 0.04;
        let mixture = fresh.map(|index, tensor| tensor.affine(1.0, shift(index))).expect("made");
        mixture.to_bytes(self.sha256).expect("written")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon's end of a connection.
pub(crate) struct Daemon {
    pub(crate) stream: UnixStream,
    pub(crate) tag: u64,
}

/// What came of an answer.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) text: String,
    pub(crate) tokens: u32,
    pub(crate) end: Option<FromEngineBody>,
}

impl Seen {
    pub(crate) fn reason(&self) -> FinishReason {
        match &self.end {
            Some(FromEngineBody::Finished(finished)) => finished.reason,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn failure(&self) -> &EngineFailure {
        match &self.end {
            Some(FromEngineBody::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }
}

/// What a training job sent before its last message.
#[derive(Default)]
pub(crate) struct Received {
    pub(crate) checkpoints: Vec<(u32, Vec<u8>)>,
    pub(crate) adapter: Vec<u8>,
    pub(crate) steps: Vec<u32>,
}

impl Daemon {
    pub(crate) fn send(&mut self, tag: u64, body: ToEngineBody) {
        let bytes = frame::encode(&ToEngine { tag, body }).expect("small");
        self.stream.write_all(&bytes).expect("written");
    }

    pub(crate) fn open(&mut self, body: ToEngineBody) -> u64 {
        self.tag += 1;
        self.send(self.tag, body);
        self.tag
    }

    pub(crate) fn read(&mut self) -> FromEngine {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).expect("header");
        let mut payload = vec![0; frame::payload_bytes(header).expect("bounded")];
        self.stream.read_exact(&mut payload).expect("payload");
        frame::decode(&payload).expect("a message")
    }

    /// The last message of a work, which must be the next last message.
    pub(crate) fn last(&mut self, tag: u64) -> FromEngineBody {
        loop {
            let message = self.read();
            if message.body.is_last() {
                assert_eq!(message.tag, tag);
                return message.body;
            }
        }
    }

    /// Loads a base model; the last message.
    pub(crate) fn load(&mut self, file: &Path, serving: ServingSpec) -> FromEngineBody {
        let sha256 = digest(file);
        let tag = self.open(ToEngineBody::LoadBase { path: file.display().to_string(), sha256, serving });
        self.last(tag)
    }

    /// Reads until each of these works has had its last message.
    pub(crate) fn settle(&mut self, tags: impl IntoIterator<Item = u64>) -> BTreeMap<u64, Seen> {
        let mut seen: BTreeMap<u64, Seen> = tags.into_iter().map(|tag| (tag, Seen::default())).collect();
        while seen.values().any(|seen| seen.end.is_none()) {
            let FromEngine { tag, body } = self.read();
            let Some(seen) = seen.get_mut(&tag) else { continue };
            match body {
                FromEngineBody::Token { text, .. } => {
                    seen.text += &text;
                    seen.tokens += 1;
                }
                end => seen.end = Some(end),
            }
        }
        seen
    }

    /// Waits for the next token of a work.
    pub(crate) fn token_of(&mut self, tag: u64) {
        loop {
            match self.read() {
                FromEngine { tag: found, body: FromEngineBody::Token { .. } } if found == tag => return,
                FromEngine { body, .. } => assert!(!body.is_last(), "{body:?}"),
            }
        }
    }

    pub(crate) fn generate(&mut self, spec: GenerateSpec) -> (Vec<(u32, String)>, Finished) {
        let tag = self.open(ToEngineBody::Generate(spec));
        let mut tokens = Vec::new();
        loop {
            // What works that were cancelled before still say is passed over.
            let message = self.read();
            if message.tag != tag {
                continue;
            }
            match message.body {
                FromEngineBody::Token { index, text, .. } => tokens.push((index, text)),
                FromEngineBody::Finished(finished) => return (tokens, finished),
                other => panic!("tag {tag}: {other:?}"),
            }
        }
    }

    pub(crate) fn failure(&mut self, tag: u64) -> EngineFailure {
        match self.last(tag) {
            FromEngineBody::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// Bytes overwritten to forget all ended answers.
    pub(crate) fn forget_prefixes(&mut self) -> u64 {
        let tag = self.open(ToEngineBody::ForgetPrefixes);
        match self.last(tag) {
            FromEngineBody::PrefixesForgotten { wiped_bytes } => wiped_bytes,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn send_chunks(&mut self, tag: u64, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.send(tag, ToEngineBody::Chunk(chunk.to_vec()));
        }
    }

    pub(crate) fn put_adapter(&mut self, bytes: &[u8]) -> FromEngineBody {
        let tag = self.open(ToEngineBody::PutAdapter { adapter: ADAPTER, blob: head(bytes) });
        self.send_chunks(tag, bytes);
        self.last(tag)
    }

    pub(crate) fn begin_training(&mut self, spec: TrainSpec, checkpoint: Option<&[u8]>) -> u64 {
        let tag = self.open(ToEngineBody::Train(spec));
        self.send(tag, ToEngineBody::Examples(examples()));
        if let Some(bytes) = checkpoint {
            self.send(tag, ToEngineBody::Resume { blob: head(bytes) });
            self.send_chunks(tag, bytes);
        }
        self.send(tag, ToEngineBody::Go);
        tag
    }

    /// Reads a job's messages until `enough` or its end.
    pub(crate) fn follow(&mut self, enough: impl Fn(&Received) -> bool) -> (Received, Option<TrainReport>) {
        let mut received = Received::default();
        while !enough(&received) {
            match self.read().body {
                FromEngineBody::Progress(progress) => received.steps.push(progress.step),
                FromEngineBody::Curve(_) => {}
                FromEngineBody::Checkpoint { step, blob } => {
                    let bytes = self.chunks(blob, &mut received.steps);
                    received.checkpoints.push((step, bytes));
                }
                FromEngineBody::Adapter { blob } => received.adapter = self.chunks(blob, &mut received.steps),
                FromEngineBody::Trained(report) => return (received, Some(*report)),
                other => panic!("{other:?}"),
            }
        }
        (received, None)
    }

    pub(crate) fn chunks(&mut self, blob: BlobHead, steps: &mut Vec<u32>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < blob.bytes {
            match self.read().body {
                FromEngineBody::Chunk(chunk) => bytes.extend(chunk),
                FromEngineBody::Progress(progress) => steps.push(progress.step),
                FromEngineBody::Curve(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(*blake3::hash(&bytes).as_bytes(), blob.blake3);
        bytes
    }

    pub(crate) fn evaluate(&mut self, adapter: Option<AdapterId>) -> Evaluation {
        let tag = self.open(ToEngineBody::Evaluate { adapter, seq_len: 64 });
        self.send(tag, ToEngineBody::Examples(examples()));
        self.send(tag, ToEngineBody::Go);
        match self.last(tag) {
            FromEngineBody::Evaluated(scores) => {
                Evaluation::of(examples().iter().map(|example| example.domain).zip(&scores))
            }
            other => panic!("{other:?}"),
        }
    }

    /// How the engine is; what comes of other works meanwhile is passed over.
    pub(crate) fn status(&mut self) -> EngineStatus {
        let tag = self.open(ToEngineBody::Status);
        match self.settle([tag]).remove(&tag).and_then(|seen| seen.end) {
            Some(FromEngineBody::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until no answer waits or runs.
    pub(crate) fn rest(&mut self) {
        let begun = Instant::now();
        while self.status().generating > 0 {
            assert!(begun.elapsed() < PATIENCE, "answers do not end");
        }
    }

    /// Whether the engine says that it trains, beside whatever the job itself says.
    pub(crate) fn training_goes_on(&mut self, job: u64) -> bool {
        self.open(ToEngineBody::Status);
        loop {
            match self.read() {
                FromEngine { body: FromEngineBody::Status(status), .. } => return status.training,
                message => assert_eq!(message.tag, job),
            }
        }
    }

    /// Whether the engine closed the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// The SHA-256 of a file.
pub(crate) fn digest(file: &Path) -> [u8; 32] {
    Sha256::digest(std::fs::read(file).expect("read")).into()
}

pub(crate) fn head(bytes: &[u8]) -> BlobHead {
    BlobHead { bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes() }
}

pub(crate) fn says(role: ChatRole, text: &str) -> PlainMessage {
    PlainMessage { role, text: text.to_owned() }
}

pub(crate) fn chat(text: &str) -> Prompt {
    Prompt::Chat { messages: vec![says(ChatRole::User, text)], tools: vec![] }
}

pub(crate) fn sampled(seed: u64) -> SamplingSpec {
    SamplingSpec { temperature: 1.0, top_p: 0.95, seed, ..SamplingSpec::greedy() }
}

pub(crate) fn spec(max_tokens: u32) -> GenerateSpec {
    GenerateSpec {
        adapter: None,
        prompt: chat("how do you feel today"),
        class: ServiceClass::Interactive,
        caller: CallerKey::default(),
        scope: CacheScope::default(),
        first_token_within_ms: None,
        max_tokens,
        sampling: sampled(11),
        stop: vec![],
        grammar: None,
        skip_tokens: 0,
    }
}

/// A request for exactly so many tokens: no control token can be chosen.
pub(crate) fn endless(max_tokens: u32, seed: u64) -> GenerateSpec {
    let sampling = SamplingSpec { logit_bias: tiny::CONTROL_IDS.map(|id| (id, -100.0)).collect(), ..sampled(seed) };
    GenerateSpec { sampling, ..spec(max_tokens) }
}

pub(crate) fn examples() -> Vec<Example> {
    let domains = [Domain::TherapyDialogue, Domain::Crisis];
    let example = |number: usize| Example {
        domain: domains[number % 2],
        part: if number.is_multiple_of(4) { Part::HeldOut } else { Part::Learn },
        messages: vec![
            says(ChatRole::User, &format!("question {number}")),
            says(ChatRole::Assistant, "the answer is the same: you are heard"),
        ],
    };
    (0..64).map(example).collect()
}

pub(crate) fn training(steps: u32) -> TrainSpec {
    TrainSpec {
        job: JobId::from_bytes([1; 16]),
        mixture: MixtureSpec {
            shared_rank: 4,
            expert_rank: 2,
            experts: vec![Some(Domain::TherapyDialogue), Some(Domain::Crisis), None],
            top_k: 2,
            scale: 2.0,
            ..MixtureSpec::default()
        },
        only: TrainOnly::All,
        seq_len: 64,
        tokens_per_step: 128,
        pass_tokens: None,
        steps,
        seconds_max: 600,
        learning_rate: 5e-3,
        b_rate_ratio: 1.0,
        router_learning_rate: 1e-3,
        weight_decay: 0.0,
        warmup: 0.1,
        clip: 1.0,
        validate_every: 4,
        checkpoint_every: 3,
        patience: 100,
        plateau: Plateau::default(),
        stages: Stages::default(),
        losses: LossSpec::default(),
        guards: Guards::default(),
        seed: 5,
    }
}

pub(crate) fn text(tokens: &[(u32, String)]) -> String {
    tokens.iter().map(|(_, text)| text.as_str()).collect()
}

//! The engine as its daemon meets it: the real program on a real socket with a tiny model. Knows the protocol only.

use empathd_model::tiny;
use empathd_proto::chat::{ChatRole, FinishReason};
use empathd_proto::engine::{
    BlobHead, EngineFailure, EngineStatus, Evaluation, Example, FromEngine, FromEngineBody, MixtureSpec, ServingSpec,
    ToEngine, ToEngineBody, TrainSpec,
};
use empathd_proto::frame::{self, CHUNK_BYTES, HEADER_BYTES};
use empathd_proto::generate::{
    CacheScope, CallerKey, Finished, GenerateSpec, PlainMessage, Prompt, SamplingSpec, ServiceClass,
};
use empathd_proto::ids::{AdapterId, JobId};
use empathd_proto::record::Domain;
use empathd_proto::report::TrainReport;
use sha2::{Digest, Sha256};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
const ADAPTER: AdapterId = AdapterId::from_bytes([7; 16]);

/// A running engine with its folder and model file.
struct Engine {
    child: Child,
    folder: TempDir,
    sha256: [u8; 32],
}

impl Engine {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("scratch");
        let model = folder.path().join("tiny.gguf");
        tiny::write_gguf(&model, 1).expect("model written");
        let sha256 = Sha256::digest(std::fs::read(&model).expect("model read")).into();
        let child = Command::new(env!("CARGO_BIN_EXE_empathd-engine"))
            .arg("--socket")
            .arg(folder.path().join("engine.sock"))
            .stderr(Stdio::inherit())
            .spawn()
            .expect("started");
        Self { child, folder, sha256 }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("engine.sock")
    }

    fn connect(&self) -> Daemon {
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
    fn loaded(&self) -> Daemon {
        let mut daemon = self.connect();
        let path = self.folder.path().join("tiny.gguf").display().to_string();
        let tag = daemon.open(ToEngineBody::LoadBase { path, sha256: self.sha256, serving: ServingSpec::default() });
        match daemon.last(tag) {
            FromEngineBody::BaseLoaded(base) => assert_eq!(base.sha256, self.sha256),
            other => panic!("{other:?}"),
        }
        daemon
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon's end of a connection.
struct Daemon {
    stream: UnixStream,
    tag: u64,
}

/// What a training job sent before its last message.
#[derive(Default)]
struct Received {
    checkpoints: Vec<(u32, Vec<u8>)>,
    adapter: Vec<u8>,
    steps: Vec<u32>,
}

impl Daemon {
    fn send(&mut self, tag: u64, body: ToEngineBody) {
        let bytes = frame::encode(&ToEngine { tag, body }).expect("small");
        self.stream.write_all(&bytes).expect("written");
    }

    fn open(&mut self, body: ToEngineBody) -> u64 {
        self.tag += 1;
        self.send(self.tag, body);
        self.tag
    }

    fn read(&mut self) -> FromEngine {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).expect("header");
        let mut payload = vec![0; frame::payload_bytes(header).expect("bounded")];
        self.stream.read_exact(&mut payload).expect("payload");
        frame::decode(&payload).expect("a message")
    }

    /// The last message of a work, which must be the next last message.
    fn last(&mut self, tag: u64) -> FromEngineBody {
        loop {
            let message = self.read();
            if message.body.is_last() {
                assert_eq!(message.tag, tag);
                return message.body;
            }
        }
    }

    fn generate(&mut self, spec: GenerateSpec) -> (Vec<(u32, String)>, Finished) {
        let tag = self.open(ToEngineBody::Generate(spec));
        let mut tokens = Vec::new();
        loop {
            match self.read().body {
                FromEngineBody::Token { index, text, .. } => tokens.push((index, text)),
                FromEngineBody::Finished(finished) => return (tokens, finished),
                other => panic!("tag {tag}: {other:?}"),
            }
        }
    }

    fn failure(&mut self, tag: u64) -> EngineFailure {
        match self.last(tag) {
            FromEngineBody::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// Bytes overwritten to forget all ended answers.
    fn forget_prefixes(&mut self) -> u64 {
        let tag = self.open(ToEngineBody::ForgetPrefixes);
        match self.last(tag) {
            FromEngineBody::PrefixesForgotten { wiped_bytes } => wiped_bytes,
            other => panic!("{other:?}"),
        }
    }

    fn send_chunks(&mut self, tag: u64, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.send(tag, ToEngineBody::Chunk(chunk.to_vec()));
        }
    }

    fn put_adapter(&mut self, bytes: &[u8]) -> FromEngineBody {
        let tag = self.open(ToEngineBody::PutAdapter { adapter: ADAPTER, blob: head(bytes) });
        self.send_chunks(tag, bytes);
        self.last(tag)
    }

    fn begin_training(&mut self, spec: TrainSpec, checkpoint: Option<&[u8]>) -> u64 {
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
    fn follow(&mut self, enough: impl Fn(&Received) -> bool) -> (Received, Option<TrainReport>) {
        let mut received = Received::default();
        while !enough(&received) {
            match self.read().body {
                FromEngineBody::Progress(progress) => received.steps.push(progress.step),
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

    fn chunks(&mut self, blob: BlobHead, steps: &mut Vec<u32>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < blob.bytes {
            match self.read().body {
                FromEngineBody::Chunk(chunk) => bytes.extend(chunk),
                FromEngineBody::Progress(progress) => steps.push(progress.step),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(*blake3::hash(&bytes).as_bytes(), blob.blake3);
        bytes
    }

    fn evaluate(&mut self, adapter: Option<AdapterId>) -> Evaluation {
        let tag = self.open(ToEngineBody::Evaluate { adapter, seq_len: 64 });
        self.send(tag, ToEngineBody::Examples(examples()));
        self.send(tag, ToEngineBody::Go);
        match self.last(tag) {
            FromEngineBody::Evaluated(evaluation) => evaluation,
            other => panic!("{other:?}"),
        }
    }

    fn status(&mut self) -> EngineStatus {
        let tag = self.open(ToEngineBody::Status);
        match self.last(tag) {
            FromEngineBody::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the engine says that it trains, beside whatever the job itself says.
    fn training_goes_on(&mut self, job: u64) -> bool {
        self.open(ToEngineBody::Status);
        loop {
            match self.read() {
                FromEngine { body: FromEngineBody::Status(status), .. } => return status.training,
                message => assert_eq!(message.tag, job),
            }
        }
    }

    /// Whether the engine closed the connection.
    fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

fn head(bytes: &[u8]) -> BlobHead {
    BlobHead { bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes() }
}

fn says(role: ChatRole, text: &str) -> PlainMessage {
    PlainMessage { role, text: text.to_owned() }
}

fn chat(text: &str) -> Prompt {
    Prompt::Chat { messages: vec![says(ChatRole::User, text)], tools: vec![] }
}

fn sampled(seed: u64) -> SamplingSpec {
    SamplingSpec { temperature: 1.0, top_p: 0.95, seed, ..SamplingSpec::greedy() }
}

fn spec(max_tokens: u32) -> GenerateSpec {
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

fn examples() -> Vec<Example> {
    let domains = [Domain::TherapyDialogue, Domain::Crisis];
    let example = |number: usize| Example {
        domain: domains[number % 2],
        held_out: number.is_multiple_of(4),
        messages: vec![
            says(ChatRole::User, &format!("question {number}")),
            says(ChatRole::Assistant, "the answer is the same: you are heard"),
        ],
    };
    (0..16).map(example).collect()
}

fn training(steps: u32) -> TrainSpec {
    TrainSpec {
        job: JobId::from_bytes([1; 16]),
        mixture: MixtureSpec {
            shared_rank: 4,
            expert_rank: 2,
            experts: vec![Some(Domain::TherapyDialogue), Some(Domain::Crisis), None],
            top_k: 2,
            scale: 2.0,
        },
        seq_len: 64,
        tokens_per_step: 128,
        steps,
        seconds_max: 600,
        learning_rate: 5e-3,
        router_learning_rate: 1e-3,
        weight_decay: 0.0,
        warmup: 0.1,
        clip: 1.0,
        validate_every: 4,
        checkpoint_every: 3,
        patience: 100,
        seed: 5,
    }
}

fn text(tokens: &[(u32, String)]) -> String {
    tokens.iter().map(|(_, text)| text.as_str()).collect()
}

#[test]
fn an_answer_is_a_function_of_its_request_and_can_be_taken_up_again() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let (first, finished) = daemon.generate(spec(40));
    assert_eq!(first.iter().map(|(index, _)| *index).collect::<Vec<_>>(), (0..first.len() as u32).collect::<Vec<_>>());
    assert_eq!(finished.completion_tokens as usize, first.len());
    assert!(finished.prompt_tokens > 5 && finished.expert_share.is_empty());
    let same = |(tokens, again): (Vec<(u32, String)>, Finished), from: usize| {
        assert_eq!((tokens.as_slice(), again.reason), (&first[from..], finished.reason));
        assert_eq!(
            (again.prompt_tokens, again.completion_tokens),
            (finished.prompt_tokens, finished.completion_tokens)
        );
        again
    };
    let again = same(daemon.generate(spec(40)), 0);
    assert!(finished.cached_tokens == 0 && again.cached_tokens > 0, "{again:?}");
    assert_eq!(same(daemon.generate(GenerateSpec { scope: CacheScope([1; 16]), ..spec(40) }), 0).cached_tokens, 0);
    assert_ne!(text(&daemon.generate(GenerateSpec { sampling: sampled(12), ..spec(40) }).0), text(&first));
    same(daemon.generate(GenerateSpec { skip_tokens: 6, ..spec(40) }), 6);
    assert!(daemon.forget_prefixes() > 0);
    let status = daemon.status();
    assert!(status.serving.kv_wiped_bytes > 0 && status.generating == 0, "{status:?}");
    assert_eq!(status.serving.kv_tokens.0, 0);
    assert_eq!(same(daemon.generate(spec(40)), 0).cached_tokens, 0);
}

#[test]
fn a_stop_string_ends_an_answer_and_is_not_part_of_it() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let whole = text(&daemon.generate(spec(60)).0);
    let middle = whole.char_indices().nth(whole.chars().count() / 2).expect("long").0;
    let stop: String = whole[middle..].chars().take(3).collect();
    let (tokens, finished) = daemon.generate(GenerateSpec { stop: vec![stop.clone()], ..spec(60) });
    assert_eq!(finished.reason, FinishReason::Stop);
    assert_eq!(Some(text(&tokens).as_str()), whole.split(&stop).next());
}

#[test]
fn answers_run_side_by_side_and_end_when_cancelled() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let alone = text(&daemon.generate(spec(30)).0);
    let long = daemon.open(ToEngineBody::Generate(GenerateSpec { sampling: sampled(3), ..spec(450) }));
    let short = daemon.open(ToEngineBody::Generate(spec(30)));
    let (mut beside, mut ended) = (String::new(), Vec::new());
    while ended.len() < 2 {
        let FromEngine { tag, body } = daemon.read();
        match body {
            FromEngineBody::Token { text, .. } if tag == short => beside.push_str(&text),
            FromEngineBody::Token { .. } => {}
            FromEngineBody::Finished(finished) => {
                ended.push((tag, finished.reason));
                daemon.send(long, ToEngineBody::Cancel);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(beside, alone);
    assert_eq!(ended[0].0, short);
    assert_eq!(ended[1], (long, FinishReason::Cancelled));
}

#[test]
fn requests_that_cannot_be_answered_say_why() {
    let engine = Engine::start();
    let mut daemon = engine.connect();
    let tag = daemon.open(ToEngineBody::Generate(spec(3)));
    assert_eq!(daemon.failure(tag), EngineFailure::NoBase);
    let path = engine.folder.path().join("tiny.gguf").display().to_string();
    let tag = daemon.open(ToEngineBody::LoadBase { path, sha256: [0; 32], serving: ServingSpec::default() });
    assert!(matches!(daemon.failure(tag), EngineFailure::BadModel(words) if words.contains("SHA-256")));
    let tag = daemon.open(ToEngineBody::LoadBase {
        path: "/no/such/file".to_owned(),
        sha256: [0; 32],
        serving: ServingSpec::default(),
    });
    assert!(matches!(daemon.failure(tag), EngineFailure::BadModel(_)));

    let mut daemon = {
        drop(daemon);
        engine.loaded()
    };
    let long = GenerateSpec { prompt: chat(&"word ".repeat(400)), ..spec(3) };
    let tag = daemon.open(ToEngineBody::Generate(long));
    assert!(matches!(daemon.failure(tag), EngineFailure::PromptTooLong { tokens, limit: 511 } if tokens > 511));
    let tag = daemon.open(ToEngineBody::Generate(GenerateSpec { adapter: Some(ADAPTER), ..spec(3) }));
    assert_eq!(daemon.failure(tag), EngineFailure::UnknownAdapter(ADAPTER));
    let tag = daemon.open(ToEngineBody::Generate(GenerateSpec {
        sampling: SamplingSpec { temperature: f32::NAN, ..sampled(1) },
        ..spec(3)
    }));
    assert!(matches!(daemon.failure(tag), EngineFailure::Refused(words) if words.contains("temperature")));
    let tag = daemon.open(ToEngineBody::Go);
    assert!(matches!(daemon.failure(tag), EngineFailure::Protocol(_)));
    let tag = daemon.open(ToEngineBody::PutAdapter { adapter: ADAPTER, blob: head(b"xyz") });
    daemon.send(tag, ToEngineBody::Chunk(b"xyZ".to_vec()));
    daemon.send(tag, ToEngineBody::Chunk(b"late".to_vec()));
    assert!(matches!(daemon.failure(tag), EngineFailure::BadAdapter(_)));
    assert!(matches!(daemon.put_adapter(b"not an adapter"), FromEngineBody::Failed(EngineFailure::BadAdapter(_))));
    assert_eq!(daemon.generate(spec(3)).1.completion_tokens, 3);
}

#[test]
fn hostile_frames_close_their_connection_and_nothing_else() {
    let engine = Engine::start();
    let hostile: [&[u8]; 4] = [
        &[0xff, 0xff, 0xff, 0xff, frame::VERSION, 1, 2, 3],
        &[0, 0, 0, 0, frame::VERSION],
        &[3, 0, 0, 0, 9, 1, 2],
        &[6, 0, 0, 0, frame::VERSION, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for bytes in hostile {
        let mut daemon = engine.connect();
        daemon.stream.write_all(bytes).expect("written");
        assert!(daemon.is_closed(), "{bytes:?}");
    }
    let mut cut_short = engine.connect();
    cut_short.stream.write_all(&[200, 0, 0, 0, frame::VERSION, 1]).expect("written");
    drop(cut_short);
    assert_eq!(engine.loaded().generate(spec(3)).1.completion_tokens, 3);
}

#[test]
fn a_lost_connection_ends_its_answers_and_forgets_its_adapters() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    for seed in 0..8 {
        daemon.open(ToEngineBody::Generate(GenerateSpec { sampling: sampled(seed), ..spec(480) }));
    }
    assert!(matches!(daemon.read().body, FromEngineBody::Token { .. }));
    drop(daemon);
    let status = engine.connect().status();
    assert!(status.base.is_some() && status.adapters.is_empty() && status.generating == 0, "{status:?}");
    assert!(status.serving.kv_wiped_bytes > 0);
}

#[test]
fn the_socket_is_for_its_user_alone_and_the_engine_can_end_with_its_peer() {
    let engine = Engine::start();
    let _daemon = engine.connect();
    let mode = std::fs::metadata(engine.socket()).expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let path = engine.folder.path().join("other.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_empathd-engine"))
        .args(["--exit-with-peer", "--threads", "1", "--socket"])
        .arg(&path)
        .spawn()
        .expect("started");
    while UnixStream::connect(&path).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(child.wait().expect("ended").success());
    assert!(!path.exists());
}

#[test]
fn systemd_can_give_the_listening_socket_as_standard_input() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = folder.path().join("given.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let start = |input: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_empathd-engine"));
        command.arg("--exit-with-peer").stdin(input).stderr(Stdio::null()).spawn().expect("started")
    };
    let mut child = start(Stdio::from(OwnedFd::from(listener)));
    let mut greeting = [0; HEADER_BYTES];
    UnixStream::connect(&path).expect("listening").read_exact(&mut greeting).expect("greeted");
    assert!(child.wait().expect("ended").success());
    assert!(!start(Stdio::null()).wait().expect("ended").success());
}

#[test]
fn training_survives_a_lost_engine_and_its_adapter_answers() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    daemon.begin_training(training(12), None);
    let (whole, report) = daemon.follow(|_| false);
    let report = report.expect("trained");
    assert_eq!(report.steps, 12);
    assert!(report.val_loss_after < report.val_loss_before, "{report:?}");
    assert!(!whole.adapter.is_empty() && !whole.checkpoints.is_empty());

    daemon.begin_training(training(12), None);
    let (part, _) = daemon.follow(|received| received.checkpoints.len() == 2);
    drop(daemon);
    drop(engine);
    let (step, checkpoint) = part.checkpoints.last().expect("two");

    let engine = Engine::start();
    let mut daemon = engine.loaded();
    daemon.begin_training(training(12), Some(checkpoint));
    let (resumed, report) = daemon.follow(|_| false);
    assert_eq!(report.expect("trained").resumed_from, Some(*step));
    assert!(resumed.steps.iter().all(|found| found >= step));
    assert!(resumed.adapter == whole.adapter, "the resumed adapter differs from the uninterrupted one");

    assert!(matches!(daemon.put_adapter(&resumed.adapter), FromEngineBody::AdapterReady));
    let before = daemon.evaluate(None);
    let after = daemon.evaluate(Some(ADAPTER));
    assert!(after.loss < before.loss && after.target_tokens == before.target_tokens, "{before:?} {after:?}");
    let (tokens, finished) = daemon.generate(GenerateSpec { adapter: Some(ADAPTER), ..spec(20) });
    assert_ne!(text(&tokens), text(&daemon.generate(spec(20)).0));
    assert_eq!(finished.expert_share.len(), 3);
    assert!((finished.expert_share.iter().sum::<f32>() - 1.0).abs() < 1e-3);
    let tag = daemon.open(ToEngineBody::DropAdapter { adapter: ADAPTER });
    assert!(matches!(daemon.last(tag), FromEngineBody::AdapterDropped));
    assert!(daemon.status().adapters.is_empty());
}

#[test]
fn answers_are_the_same_while_training_goes_on() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let (alone, _) = daemon.generate(spec(30));
    let job = daemon.begin_training(training(5000), None);
    daemon.follow(|received| !received.steps.is_empty());
    let answer = daemon.open(ToEngineBody::Generate(spec(30)));
    let mut beside = Vec::new();
    let begun = Instant::now();
    loop {
        match daemon.read() {
            FromEngine { tag, body: FromEngineBody::Token { index, text, .. } } if tag == answer => {
                beside.push((index, text));
            }
            FromEngine { tag, body: FromEngineBody::Finished(_) } if tag == answer => break,
            message => assert!(message.tag == job && !message.body.is_last(), "{message:?}"),
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(beside, alone);
    assert!(daemon.training_goes_on(job));
}

#[test]
fn a_training_job_stops_on_command_and_leaves_an_adapter() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let tag = daemon.begin_training(training(5000), None);
    daemon.follow(|received| received.steps.iter().any(|step| *step >= 3));
    let second = daemon.open(ToEngineBody::Train(training(5)));
    assert_ne!(second, tag);
    daemon.send(tag, ToEngineBody::Cancel);
    let mut busy = false;
    let report = loop {
        match daemon.read().body {
            FromEngineBody::Failed(failure) => {
                assert!(matches!(failure, EngineFailure::Busy { .. }));
                busy = true;
            }
            FromEngineBody::Trained(report) => break report,
            FromEngineBody::Finished(finished) => panic!("{finished:?}"),
            _ => {}
        }
    };
    assert!(busy && report.stopped_early && report.steps < 5000, "{report:?}");
}

//! The claim of the night: a real engine that trains is killed at random moments and taken up from the last state it handed
//! out, and nothing differs by a bit from the run that was not killed; and on a machine slowed at random, in its own time, no
//! window is missed. What the figures should be is not known here.

use crate::measure::Figures;
use anyhow::{Context, bail, ensure};
use empathd_model::counter::{Counter, Site};
use empathd_model::tiny;
use empathd_model::train::{Encode, EncodeError, Encoded, Gradients, Host, Memory, Observer, Start, train};
use empathd_proto::JobId;
use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{
    BlobHead, CrisisFloor, Example, FromEngine, FromEngineBody, Guards, LossSpec, MixtureSpec, Part, Plateau,
    ServingSpec, Stages, ToEngine, ToEngineBody, TrainOnly, TrainSpec,
};
use empathd_proto::frame::{self, CHUNK_BYTES, HEADER_BYTES};
use empathd_proto::generate::PlainMessage;
use empathd_proto::record::Domain;
use empathd_proto::report::{EndReason, TrainProgress, TrainReport};
use empathd_tests::harness::build;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a message of the engine may take.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Messages read of one job, at most.
const MESSAGES_MAX: usize = 1_000_000;
/// Times a job is begun again, at most, for each kill that is wanted.
const BEGINNINGS_PER_KILL: u32 = 4;

/// Options of the claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Kills of a training engine
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Simulated windows
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    windows: u32,
    /// Seed of the moments and of the slow machine
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Figures> {
    let mut figures = Figures::new();
    let killed = kill_at_random(options)?;
    figures.insert("kills".into(), killed.kills.into());
    figures.insert("differing_bits".into(), killed.differing_bits.into());
    figures.insert("whole_runs_compared".into(), killed.runs.into());
    let windows = windows(options)?;
    figures.insert("windows".into(), options.windows.into());
    figures.insert("deadlines_missed".into(), windows.missed.into());
    figures.insert("windows_with_full_decay".into(), windows.whole.into());
    Ok(figures)
}

fn spec(steps: u32, seconds_max: u32, seed: u64) -> TrainSpec {
    let experts = vec![Some(Domain::Crisis), Some(Domain::Bias), None];
    TrainSpec {
        job: JobId::from_bytes([1; 16]),
        mixture: MixtureSpec {
            shared_rank: 4,
            expert_rank: 4,
            experts,
            top_k: 2,
            scale: 2.0,
            session_prior: true,
            crisis_floor: Some(CrisisFloor::default()),
            ..MixtureSpec::default()
        },
        only: TrainOnly::All,
        seq_len: 128,
        tokens_per_step: 512,
        pass_tokens: Some(256),
        steps,
        seconds_max,
        learning_rate: 2e-3,
        b_rate_ratio: 4.0,
        router_learning_rate: 1e-3,
        weight_decay: 0.01,
        warmup: 0.1,
        clip: 1.0,
        validate_every: 8,
        checkpoint_every: 3,
        patience: 0,
        plateau: Plateau::default(),
        stages: Stages::default(),
        losses: LossSpec::default(),
        guards: Guards { general_rise_max: 10.0, crisis_rise_max: 10.0 },
        seed,
    }
}

/// Two domains that answer each in its own way, text to replay, and a fifth held out.
fn examples() -> Vec<Example> {
    let example = |i: usize| {
        let (domain, answer) = [(Domain::Crisis, "call the line now"), (Domain::Bias, "be fair to all of them")][i % 2];
        let question = ["how is it", "why is that so", "what then", "who is it", "when was that"][i % 5];
        let part = match i % 10 {
            0 | 3 => Part::HeldOut,
            6 => Part::Replay,
            _ => Part::Learn,
        };
        let say = |role, text: &str| PlainMessage { role, text: format!("{text} {}", i / 20) };
        Example { domain, part, messages: vec![say(ChatRole::User, question), say(ChatRole::Assistant, answer)] }
    };
    (0..200).map(example).collect()
}

// ---- Killed engines.

/// What came of the kills.
struct Killed {
    kills: u32,
    runs: u32,
    differing_bits: u64,
}

/// An engine of its own.
struct Engine {
    child: Child,
    stream: UnixStream,
}

/// What a job sent.
#[derive(Default)]
struct Heard {
    checkpoints: Vec<(u32, Vec<u8>)>,
    adapter: Vec<u8>,
    report: Option<TrainReport>,
}

impl Engine {
    /// Starts the program and loads the model.
    fn start(program: &Path, folder: &Path, model: &Path, sha256: [u8; 32]) -> anyhow::Result<Self> {
        let socket = folder.join("engine.sock");
        let _ = std::fs::remove_file(&socket);
        let child = Command::new(program).arg("--socket").arg(&socket).stderr(Stdio::inherit()).spawn()?;
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < SILENCE_MAX => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(error).context("the engine does not answer"),
            }
        };
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let mut engine = Self { child, stream };
        engine.hear()?;
        let path = model.to_string_lossy().into_owned();
        engine.say(1, ToEngineBody::LoadBase { path, sha256, serving: ServingSpec::default() })?;
        match engine.hear()?.body {
            FromEngineBody::BaseLoaded(_) => Ok(engine),
            other => bail!("the model was not loaded: {other:?}"),
        }
    }

    fn say(&mut self, tag: u64, body: ToEngineBody) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&frame::encode(&ToEngine { tag, body })?)?)
    }

    fn hear(&mut self) -> anyhow::Result<FromEngine> {
        let mut header = [0u8; HEADER_BYTES];
        self.stream.read_exact(&mut header)?;
        let mut payload = vec![0u8; frame::payload_bytes(header)?];
        self.stream.read_exact(&mut payload)?;
        Ok(frame::decode(&payload)?)
    }

    /// Begins the job, from a checkpoint where there is one.
    fn begin(&mut self, spec: &TrainSpec, from: Option<&[u8]>) -> anyhow::Result<()> {
        self.say(2, ToEngineBody::Train(spec.clone()))?;
        for some in examples().chunks(50) {
            self.say(2, ToEngineBody::Examples(some.to_vec()))?;
        }
        if let Some(bytes) = from {
            let blob = BlobHead { bytes: bytes.len() as u64, blake3: *blake3::hash(bytes).as_bytes() };
            self.say(2, ToEngineBody::Resume { blob })?;
            bytes.chunks(CHUNK_BYTES).try_for_each(|chunk| self.say(2, ToEngineBody::Chunk(chunk.to_vec())))?;
        }
        self.say(2, ToEngineBody::Go)
    }

    /// Hears the job to its end; an error when the engine is gone before. What came whole is in `heard`.
    fn follow(&mut self, heard: &mut Heard) -> anyhow::Result<()> {
        let mut arriving: Option<(Option<u32>, u64, Vec<u8>)> = None;
        for _ in 0..MESSAGES_MAX {
            match self.hear()?.body {
                FromEngineBody::Checkpoint { step, blob } => arriving = Some((Some(step), blob.bytes, Vec::new())),
                FromEngineBody::Adapter { blob } => arriving = Some((None, blob.bytes, Vec::new())),
                FromEngineBody::Chunk(bytes) => {
                    let (step, size, mut all) = arriving.take().context("a chunk of nothing")?;
                    all.extend(bytes);
                    match (all.len() as u64 == size, step) {
                        (false, _) => arriving = Some((step, size, all)),
                        (true, Some(step)) => heard.checkpoints.push((step, all)),
                        (true, None) => heard.adapter = all,
                    }
                }
                FromEngineBody::Trained(report) => {
                    heard.report = Some(*report);
                    return Ok(());
                }
                FromEngineBody::Failed(failure) => bail!("training failed: {failure}"),
                _ => {}
            }
        }
        bail!("the engine talks without end")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where engines of one measurement find their things.
struct Place {
    folder: tempfile::TempDir,
    program: PathBuf,
    model: PathBuf,
    sha256: [u8; 32],
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let model = folder.path().join("tiny.gguf");
        tiny::write_gguf(&model, 1)?;
        let sha256 = Sha256::digest(std::fs::read(&model)?).into();
        let program = build::programs(&mut |line| eprintln!("{line}"))?.engine.clone();
        Ok(Self { folder, program, model, sha256 })
    }

    fn engine(&self) -> anyhow::Result<Engine> {
        Engine::start(&self.program, self.folder.path(), &self.model, self.sha256)
    }
}

fn kill_at_random(options: &Options) -> anyhow::Result<Killed> {
    let (place, spec) = (Place::new()?, spec(60, 3600, options.seed));
    let mut whole = Heard::default();
    let mut engine = place.engine()?;
    let began = Instant::now();
    engine.begin(&spec, None)?;
    engine.follow(&mut whole)?;
    let lasts = began.elapsed();
    drop(engine);
    let mut killed = Killed { kills: 0, runs: 0, differing_bits: 0 };
    let mut beginnings = 0;
    while killed.kills < options.kills || killed.runs == 0 {
        let mut heard = Heard::default();
        while heard.report.is_none() {
            beginnings += 1;
            ensure!(beginnings <= 2 + BEGINNINGS_PER_KILL * options.kills, "the engine is too quick to be killed");
            let counter = Counter::new(options.seed);
            let share = counter.uniform(Site::new("moment", 0), u64::from(beginnings));
            let moment = (killed.kills < options.kills).then(|| lasts.mul_f64(0.02 + 0.9 * share));
            killed.kills += u32::from(one_life(&place, &spec, &mut heard, moment)?);
        }
        killed.runs += 1;
        killed.differing_bits += difference(&whole, &heard);
        eprintln!("{} kills, {} differing bits", killed.kills, killed.differing_bits);
    }
    Ok(killed)
}

/// One engine's part of a job: from the last checkpoint until it ends or, at its moment, is killed. Whether it was killed.
fn one_life(place: &Place, spec: &TrainSpec, heard: &mut Heard, moment: Option<Duration>) -> anyhow::Result<bool> {
    let mut engine = place.engine()?;
    let from = heard.checkpoints.last().map(|(_, bytes)| bytes.clone());
    engine.begin(spec, from.as_deref())?;
    let pid = rustix::process::Pid::from_child(&engine.child);
    let (ended, wait) = std::sync::mpsc::channel::<()>();
    let killer = std::thread::spawn(move || {
        let Some(moment) = moment else { return };
        // Nobody says anything: the sender is dropped when the job has ended.
        if wait.recv_timeout(moment) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let followed = engine.follow(heard);
    drop(ended);
    killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?;
    match (followed, moment) {
        (Ok(()), _) => Ok(false),
        (Err(_), Some(_)) if engine.child.wait()?.code().is_none() => Ok(true),
        (Err(error), _) => Err(error),
    }
}

/// Bits that differ: of the adapter, of every loss, and of weights, moments and best weights in each state that both runs
/// handed out.
fn difference(whole: &Heard, killed: &Heard) -> u64 {
    let losses = |heard: &Heard| -> Vec<u8> {
        let report = heard.report.as_ref();
        report.into_iter().flat_map(|report| &report.loss_curve).flat_map(|loss| loss.to_le_bytes()).collect()
    };
    let mut bits = differing(&whole.adapter, &killed.adapter) + differing(&losses(whole), &losses(killed));
    for (step, state) in &killed.checkpoints {
        let other = whole.checkpoints.iter().find(|(other, _)| other == step);
        bits += other.map_or(0, |(_, other)| differing(numbers(state), numbers(other)));
    }
    bits
}

/// The numbers of a state, without its header, which holds times.
fn numbers(state: &[u8]) -> &[u8] {
    let head = state.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    state.get(8 + usize::try_from(head).unwrap_or(0)..).unwrap_or(&[])
}

fn differing(one: &[u8], other: &[u8]) -> u64 {
    let bits: u32 = one.iter().zip(other).map(|(a, b)| (a ^ b).count_ones()).sum();
    u64::from(bits) + 8 * one.len().abs_diff(other.len()) as u64
}

// ---- Windows on a machine slowed at random.

/// What came of the windows.
#[derive(Default)]
struct Windows {
    missed: u32,
    whole: u32,
}

/// A machine with a clock of its own: each stretch between two layers takes time, at random up to six times as much for a
/// while.
struct Machine {
    counter: Counter,
    seconds: Cell<f64>,
    stretches: Cell<u64>,
    /// Times slower, and for how many stretches more.
    slowed: Cell<(f64, u64)>,
    stretch_s: f64,
}

impl Machine {
    fn work(&self) {
        let at = self.stretches.get();
        self.stretches.set(at + 1);
        let draw = |word| self.counter.uniform(Site::new(word, 0), at);
        let (times, left) = match self.slowed.get() {
            (_, 0) if draw("begins") < 0.025 => (1.0 + 5.0 * draw("times"), (400.0 * draw("long")) as u64),
            (_, 0) => (1.0, 0),
            (times, left) => (times, left - 1),
        };
        self.slowed.set((times, left));
        self.seconds.set(self.seconds.get() + self.stretch_s * times * (0.8 + 0.4 * draw("jitter")));
    }
}

struct OnMachine<'a>(&'a Machine);

impl Observer for OnMachine<'_> {
    fn progress(&mut self, _: &TrainProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn checkpoint(&mut self, _: u32, _: Vec<u8>) {
        self.0.work();
    }

    fn between_layers(&mut self) {
        self.0.work();
    }
}

/// One token a byte; what the assistant says is the target.
struct Bytes;

impl Encode for Bytes {
    fn encode(&self, messages: &[PlainMessage]) -> Result<Encoded, EncodeError> {
        let (mut ids, mut target) = (Vec::new(), Vec::new());
        for message in messages {
            ids.extend(message.text.bytes().map(|byte| 3 + u32::from(byte)).chain([2]));
            target.resize(ids.len(), message.role == ChatRole::Assistant);
        }
        Ok(Encoded { ids, target })
    }
}

fn windows(options: &Options) -> anyhow::Result<Windows> {
    let mut windows = Windows::default();
    for window in 0..u64::from(options.windows) {
        let counter = Counter::new(options.seed.wrapping_add(1000 * (window + 1)));
        let share = |word| counter.uniform(Site::new(word, 0), window);
        let seconds_max = 60 + (600.0 * share("length")) as u32;
        let machine = Machine {
            counter,
            seconds: Cell::new(0.0),
            stretches: Cell::new(0),
            slowed: Cell::new((1.0, 0)),
            stretch_s: 0.05 + 0.2 * share("speed"),
        };
        let now = || Duration::from_secs_f64(machine.seconds.get());
        let host = Host { now: &now, memory: &Memory::unknown };
        let (mut gradients, spec) = (Gradients::reference(tiny::backbone(1)?), spec(100_000, seconds_max, window));
        let mut observer = OnMachine(&machine);
        let trained = train(&mut gradients, [0; 32], &Bytes, &spec, &examples(), Start::Fresh, &host, &mut observer)?;
        // Handing out the adapter takes as long as handing out a state.
        machine.work();
        let (took_s, report) = (machine.seconds.get(), trained.report);
        windows.missed += u32::from(took_s > f64::from(seconds_max));
        windows.whole += u32::from(report.ended == EndReason::Steps);
        eprintln!("window {window}: {took_s:.1} of {seconds_max} s, {} steps, {}", report.steps, report.ended);
    }
    Ok(windows)
}

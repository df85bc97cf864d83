//! The claim of inference: tokens a second of reading prompts and of answering, alone and together, with and without a
//! mixture; what memory it takes, what accuracy it costs, and a peer beside it in the same minutes. It measures through the
//! engine's own scheduler, without sockets.

mod bandwidth;
mod mixture;
mod peer;
mod perplexity;
mod stage;
mod table;

use crate::measure::{Figures, best_of_s, peak_rss_mib, rounded};
use anyhow::{Context, ensure};
use empathd_model::device;
use empathd_tests::harness::model;
use perplexity::Likelihood;
use stage::Stage;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Lengths of prompts, tokens.
const PROMPTS: [usize; 4] = [32, 128, 512, 2048];
/// Depths at which answers are measured, tokens.
const DEPTHS: [usize; 4] = [32, 128, 512, 2048];
/// Streams answered at once, and their depth.
const TOGETHER: (usize, usize) = (8, 128);
/// Prompt and answer of the run whose memory is measured.
const MEMORY_RUN: usize = 512;
/// Runs, of which the best counts.
const RUNS: u32 = 3;
/// The hidden option with which this program runs itself.
const MEMORY_ONLY: &str = "--memory-only";

/// Options of the claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Model file; the cached reference model when absent
    #[arg(long, value_name = "FILE.gguf")]
    model: Option<PathBuf>,
    /// Threads that compute; one for each processor when absent
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    /// Python interpreter in which the peer is installed; needs --peer-script
    #[arg(long, value_name = "PYTHON", requires = "peer_script")]
    peer: Option<PathBuf>,
    /// Script that takes a model and a number of threads and prints the peer's figures as one line of JSON
    #[arg(long, value_name = "FILE.py", requires = "peer")]
    peer_script: Option<PathBuf>,
    /// Text whose perplexity is measured; documents and conversations of this repository when absent
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Measure these parts only; all when absent
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,
    /// Only print the peak memory of a process that holds the language model and answers once
    #[arg(long, hide = true)]
    memory_only: bool,
}

/// The parts of the claim, in the order in which they are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// A process that holds the language model alone
    Memory,
    /// What the threads read of memory in a second
    Bandwidth,
    /// Reading prompts
    Prefill,
    /// Answering, one and eight at once
    Decode,
    /// What mixtures cost
    Mixture,
    /// Accuracy; takes minutes
    Perplexity,
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Figures> {
    let path = match &options.model {
        Some(path) => path.clone(),
        None => model::reference(&mut |what| eprintln!("{what}"))?,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.map_or(processors, usize::from);
    if options.memory_only {
        return memory_alone(&path, threads);
    }
    let chosen = |part| options.only.is_empty() || options.only.contains(&part);
    let mut figures = Figures::new();
    figures.insert("device".into(), device::describe(&device::open()?).into());
    figures.insert("threads".into(), threads.into());
    figures.insert("file_mib".into(), rounded(std::fs::metadata(&path)?.len() as f64 / f64::from(1 << 20)));
    if chosen(Part::Memory) {
        figures.insert("rss_mib".into(), memory_of_a_child(&path, threads)?);
    }
    if chosen(Part::Bandwidth) {
        figures.insert("read_gb_s".into(), rounded(bandwidth::gb_s(threads)));
    }
    let began = Instant::now();
    let mut stage = Stage::open(&path, threads)?;
    figures.insert("load_s".into(), rounded(began.elapsed().as_secs_f64()));
    speeds(&mut stage, &mut figures, &chosen)?;
    roofline(&stage, &mut figures);
    let likelihood =
        chosen(Part::Perplexity).then(|| Likelihood::of(&mut stage, options.text.as_deref())).transpose()?;
    drop(stage);
    if let (Some(python), Some(script)) = (&options.peer, &options.peer_script) {
        peer::measure(python, script, &path, threads, &mut figures)?;
    }
    if let Some(likelihood) = likelihood {
        likelihood.over_reference(&path, &mut figures)?;
    }
    eprint!("{}", table::render(&figures));
    Ok(figures)
}

/// A figure that was measured.
fn number(figures: &Figures, name: &str) -> Option<f64> {
    figures.get(name)?.as_f64()
}

/// Everything that is counted in tokens a second.
fn speeds(stage: &mut Stage, figures: &mut Figures, chosen: &dyn Fn(Part) -> bool) -> anyhow::Result<()> {
    stage.prefill(64)?;
    let context = stage.context();
    let prompts = PROMPTS.into_iter().filter(|tokens| chosen(Part::Prefill) && *tokens < context);
    for tokens in prompts {
        let seconds = best_of_s(RUNS, || stage.prefill(tokens))?;
        figures.insert(format!("prefill_{tokens}"), rounded(tokens as f64 / seconds));
        say(figures, &format!("prefill_{tokens}"));
    }
    let depths = DEPTHS.into_iter().filter(|depth| chosen(Part::Decode) && depth + stage::ANSWER + 2 <= context);
    for depth in depths {
        figures.insert(format!("decode_{depth}"), rounded(best(|| stage.decode(depth, None))?));
        say(figures, &format!("decode_{depth}"));
    }
    if chosen(Part::Decode) {
        let (streams, depth) = TOGETHER;
        figures.insert("batch8_decode".into(), rounded(best(|| stage.decode_together(streams, depth))?));
        say(figures, "batch8_decode");
    }
    if chosen(Part::Mixture) {
        mixture::overheads(stage, figures)?;
    }
    Ok(())
}

/// The share of what the memory allows: a token reads all weights once.
fn roofline(stage: &Stage, figures: &mut Figures) {
    let Some(bytes) = stage.token_bytes() else { return };
    figures.insert("token_mb".into(), rounded(bytes as f64 / 1e6));
    if let (Some(read), Some(decode)) = (number(figures, "read_gb_s"), number(figures, "decode_32")) {
        figures.insert("roofline_pct".into(), rounded(100.0 * decode * bytes as f64 / (read * 1e9)));
    }
}

/// The fastest of a few runs that give tokens a second.
fn best(mut run: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    (0..RUNS).try_fold(0.0, |best: f64, _| Ok(best.max(run()?)))
}

/// Tells the person who waits what was found.
fn say(figures: &Figures, name: &str) {
    if let Some(value) = number(figures, name) {
        eprintln!("{name:<28} {value:>9.1}");
    }
}

/// Peak memory of this process once it has answered; there must be nothing else in it.
fn memory_alone(path: &Path, threads: usize) -> anyhow::Result<Figures> {
    let mut stage = Stage::open(path, threads)?;
    stage.decode(MEMORY_RUN.min(stage.context() / 2), None)?;
    Ok(Figures::from_iter([("rss_mib".to_owned(), peak_rss_mib().into())]))
}

/// The same of a process of its own, so that nothing else that is measured counts.
fn memory_of_a_child(path: &Path, threads: usize) -> anyhow::Result<serde_json::Value> {
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["inference", MEMORY_ONLY, "--threads", &threads.to_string(), "--model"]).arg(path);
    let output = child.output().context("cannot run this program again")?;
    ensure!(output.status.success(), "the process whose memory is measured failed: {}", text(&output.stderr));
    let figures: Figures = serde_json::from_slice(&output.stdout).context("it printed no figures")?;
    figures.get("rss_mib").cloned().context("it printed no memory")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Time that is left when `done` of `total` took `elapsed`.
fn left(elapsed: Duration, done: usize, total: usize) -> Duration {
    elapsed.mul_f64((total - done.min(total)) as f64 / done.max(1) as f64)
}

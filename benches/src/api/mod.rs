//! The claim of the whole appliance: how long callers wait over mutual TLS, alone, together, and when far too many come;
//! what a caller who leaves costs, and what a change of generation does to answers under way. It knows the API from
//! outside only, and no cache can flatter it: no question is asked twice.

mod load;
mod stage;
mod table;

use crate::measure::{Figures, rounded};
use anyhow::{Context, ensure};
use clap::ValueEnum;
use empathd_tests::harness::ehr::Answered;
use load::{Told, quantile_ms};
use stage::Stage;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Barrier;
use tokio::task::LocalSet;
use tokio::time::Instant;

/// Tokens of every prompt, the model's own frame included.
pub(crate) const PROMPT_TOKENS: u32 = 128;
/// Tokens of every answer.
pub(crate) const ANSWER_TOKENS: u32 = 64;
/// Answers measured with one caller.
const ALONE: u64 = 24;
/// Callers at once, and answers of each.
const TOGETHER: (u64, u64) = (8, 5);
/// Callers at once when far too many come: ten times as many.
const TOO_MANY: u64 = 80;
/// For how long they come.
const TOO_LONG: Duration = Duration::from_secs(12);
/// How long a caller who was refused waits before it asks again; less than it was told to.
const INSISTS_AFTER: Duration = Duration::from_millis(500);
/// More memory than this in all that time is not flat, MiB.
const FLAT_MIB: f64 = 16.0;
/// Callers who leave.
const LEAVERS: u64 = 100;
/// Callers under whom the generation changes.
const SWAPPED_UNDER: usize = 4;
/// The promise that goodput counts: the first words within half a second, the whole answer within two.
const PROMISE_MS: (f64, f64) = (500.0, 2_000.0);
/// Arrivals a second, one after the other, and for how long each.
const RATES: [f64; 6] = [0.5, 1.0, 2.0, 3.0, 4.0, 6.0];
const RATE_FOR: Duration = Duration::from_secs(12);

/// Options of the claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Model file; the cached reference model when absent
    #[arg(long, value_name = "FILE.gguf")]
    model: Option<PathBuf>,
    /// Worker threads of the engine; its own choice when absent
    #[arg(long)]
    threads: Option<u16>,
    /// Measure these parts only; all when absent
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,
}

/// The parts of the claim, in the order in which they are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One caller
    Alone,
    /// Eight callers at once
    Together,
    /// More and more callers at random times
    Goodput,
    /// Ten times too many
    Overload,
    /// A hundred who leave
    Leaving,
    /// A change of generation each second, after adapters have been trained
    Swaps,
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Figures> {
    let stage = Rc::new(Stage::open(options.model.as_deref(), options.threads)?);
    eprintln!("prompts of {} tokens, answers of {ANSWER_TOKENS}", stage.prompt_tokens);
    let (local, runtime) = (LocalSet::new(), tokio::runtime::Builder::new_current_thread().enable_all().build()?);
    let mut figures = Figures::new();
    figures.insert("prompt_tokens".into(), stage.prompt_tokens.into());
    let chosen = |part: &&Part| options.only.is_empty() || options.only.contains(part);
    for part in Part::value_variants().iter().filter(chosen) {
        let generations = if *part == Part::Swaps { stage.train()? } else { Vec::new() };
        local.block_on(&runtime, async {
            match part {
                Part::Alone => waiting(&stage, &mut figures, 1, ALONE, "").await,
                Part::Together => waiting(&stage, &mut figures, TOGETHER.0, TOGETHER.1, "_c8").await,
                Part::Goodput => goodput(&stage, &mut figures).await,
                Part::Overload => overload(&stage, &mut figures).await,
                Part::Leaving => leaving(&stage, &mut figures).await,
                Part::Swaps => swaps(&stage, &mut figures, &generations).await,
            }
        })?;
    }
    eprintln!("{}", table::render(&figures));
    Ok(figures)
}

/// So many callers, each on a connection of its own, one question after the other.
async fn waiting(
    stage: &Rc<Stage>,
    figures: &mut Figures,
    callers: u64,
    each: u64,
    suffix: &str,
) -> anyhow::Result<()> {
    eprintln!("callers at once: {callers}, each with {each} questions");
    let start = Rc::new(Barrier::new(callers as usize));
    let ask = |_| load::line(stage.clone(), start.clone(), move |told: &Told| told.asked < each);
    let told = load::together((0..callers).map(ask)).await?;
    ensure!(told.refused_ms.is_empty() && told.other == 0, "{} were refused, {} failed", told.refused(), told.other);
    for (name, values, share) in [
        ("ttft_ms_p50", &told.first_ms, 0.5),
        ("ttft_ms_p95", &told.first_ms, 0.95),
        ("total_ms_p50", &told.total_ms, 0.5),
        ("total_ms_p95", &told.total_ms, 0.95),
        ("beside_engine_ms_p50", &told.beside_ms, 0.5),
        ("beside_engine_ms_p95", &told.beside_ms, 0.95),
    ] {
        figures.insert(format!("{name}{suffix}"), rounded(quantile_ms(values, share)));
    }
    figures.insert(format!("answer_tokens_mean{suffix}"), rounded(told.tokens as f64 / told.total_ms.len() as f64));
    Ok(())
}

/// Callers who come one after the other without waiting for those before, more and more of them; the most answers a second
/// that kept the promise.
async fn goodput(stage: &Rc<Stage>, figures: &mut Figures) -> anyhow::Result<()> {
    let mut best: f64 = 0.0;
    for rate in RATES {
        eprintln!("arrivals a second: {rate}, for {} s", RATE_FOR.as_secs());
        let told = load::arrivals(stage, rate, RATE_FOR).await?;
        let kept = told.within(PROMISE_MS) as f64;
        eprintln!("  {kept} of {} kept the promise, {} were refused", told.asked, told.refused());
        figures.insert(format!("promise_kept_share_at_{rate}"), rounded(kept / told.asked.max(1) as f64));
        best = best.max(kept / RATE_FOR.as_secs_f64());
        if kept * 4.0 < told.asked as f64 {
            break;
        }
    }
    figures.insert("goodput_at_slo".into(), rounded(best));
    Ok(())
}

/// Ten times as many callers as before, who do not wait as long as they are told to; and one in danger among them.
async fn overload(stage: &Rc<Stage>, figures: &mut Figures) -> anyhow::Result<()> {
    eprintln!("callers at once: {TOO_MANY}, for {} s", TOO_LONG.as_secs());
    let (end, start) = (Instant::now() + TOO_LONG, Rc::new(Barrier::new(TOO_MANY as usize)));
    let insist = |_| load::line(stage.clone(), start.clone(), move |_| Instant::now() < end);
    let crowd = load::together((0..TOO_MANY).map(insist));
    let watching = async {
        let (mut memory, mut unanswered, mut line) = (Vec::new(), 0_u32, stage.caller.connect().await?);
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let answered = line.stream(&stage.crisis(), &mut |_| ()).await;
            unanswered += u32::from(!matches!(answered, Ok(Answered::Whole(_))));
            memory.push(stage.rss_mib());
        }
        anyhow::Ok((memory, unanswered))
    };
    let (told, watched) = tokio::join!(crowd, watching);
    let (told, (memory, unanswered)) = (told?, watched?);
    // By then everything that has a bound has been taken once.
    let (settling, settled) = memory.split_at(memory.len() / 2);
    let most = |memory: &[f64]| memory.iter().copied().fold(0.0, f64::max);
    figures.insert("overload_rss_mib".into(), rounded(most(&memory)));
    figures.insert("overload_rss_growth_mib".into(), rounded(most(settled) - most(settling)));
    figures.insert("overload_answers".into(), told.total_ms.len().into());
    figures.insert("overload_rejected".into(), told.refused().into());
    figures.insert("reject_ms_p50".into(), rounded(quantile_ms(&told.refused_ms, 0.5)));
    figures.insert("reject_ms_p99".into(), rounded(quantile_ms(&told.refused_ms, 0.99)));
    figures.insert("overload_errors_other".into(), told.other.into());
    figures.insert("overload_crisis_unanswered".into(), unanswered.into());
    Ok(())
}

/// Callers who leave in the middle of their answer.
async fn leaving(stage: &Rc<Stage>, figures: &mut Figures) -> anyhow::Result<()> {
    eprintln!("callers who leave in the middle: {LEAVERS}");
    for at in 0..LEAVERS {
        let line = stage.caller.connect().await?;
        line.leave_after(&stage.question(), [0, 1, 2_000][(at % 3) as usize]).await?;
    }
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let serving = stage.serving()?.context("the engine does not say how it is")?;
        if serving.running == 0 && serving.waiting.iter().all(|waiting| *waiting == 0) {
            figures.insert("cancel_to_free_steps".into(), serving.cancel_steps_max.into());
            return Ok(());
        }
        ensure!(Instant::now() < patience, "{} answers that nobody waits for still run", serving.running);
    }
}

/// Another generation each second while answers are under way.
async fn swaps(stage: &Rc<Stage>, figures: &mut Figures, generations: &[String]) -> anyhow::Result<()> {
    eprintln!("changes of generation under load: {}", 2 * generations.len());
    let end = Instant::now() + Duration::from_secs(2 * generations.len() as u64 + 1);
    let start = Rc::new(Barrier::new(SWAPPED_UNDER));
    let ask = |_| load::line(stage.clone(), start.clone(), move |_| Instant::now() < end);
    let crowd = load::together((0..SWAPPED_UNDER).map(ask));
    let changing = async {
        let promote = generations.iter().map(|id| vec!["adapter", "promote", id.as_str()]);
        for words in promote.chain(generations.iter().map(|_| vec!["adapter", "rollback"])) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stage.ctl_beside(&words).await?;
        }
        anyhow::Ok(())
    };
    let (told, changed) = tokio::join!(crowd, changing);
    changed?;
    let told = told?;
    figures.insert("swaps".into(), (2 * generations.len()).into());
    figures.insert("swap_requests".into(), told.asked.into());
    figures.insert("swap_failed_requests".into(), (told.other + told.refused()).into());
    Ok(())
}

//! The claim that a mixture learns better than one LoRA of as many numbers: both are trained on real dialogues with the same
//! tokens in the same order, and measured on conversations of other people, domain by domain. What was finished lies
//! beside the figures and is not done again.

mod arms;
mod data;
mod keep;
mod run;

use crate::measure::{Figures, rounded};
use anyhow::{Context, ensure};
use arms::{Arm, Arms};
use data::Data;
use empathd_tests::harness::model;
use keep::{Keep, Plan};
use run::{Outcome, Subject};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Share of the minutes that is planned for; the rest is for what takes longer than planned.
const PLANNED_SHARE: f64 = 0.8;
/// Steps of a run that only measures speed.
const TRIAL_STEPS: u32 = 3;

/// Options of the claim.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Folder with collections of dialogues, in any depth
    #[arg(long)]
    data: PathBuf,
    /// Minutes of the whole claim; a run under way is then kept and goes on the next time
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// Runs of each arm, each with a seed of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=20))]
    seeds: u64,
    /// Tokens of each run; by the minutes and the measured speed when absent
    #[arg(long)]
    tokens: Option<u64>,
    /// Base model; the reference model when absent
    #[arg(long)]
    model: Option<PathBuf>,
    /// Threads that compute
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Another setting of the mixture's training: a field of its specification, as NAME=JSON, dots enter
    #[arg(long, value_name = "NAME=JSON")]
    moe: Vec<String>,
    /// Another setting of the LoRA's training
    #[arg(long, value_name = "NAME=JSON")]
    lora: Vec<String>,
    /// Train only one of the arms
    #[arg(long)]
    only: Option<Arm>,
}

pub(crate) fn measure(options: &Options, json: Option<&Path>) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let json = json.context("--json FILE is needed: finished runs are kept beside it")?;
    let deadline = began + Duration::from_secs(60 * u64::from(options.minutes));
    let path = match &options.model {
        Some(path) => path.clone(),
        None => model::reference(&mut |what| eprintln!("{what}"))?,
    };
    let mut subject = Subject::open(&path, options.threads)?;
    let arms = Arms::new(subject.config(), &options.moe, &options.lora)?;
    let data = Data::read(&options.data, arms.seq_len())?;
    eprintln!("{}", data.summary());
    let arms = arms.for_domains(&data)?;
    let keep = Keep::open(json)?;
    let settings = json!({"data": data.digest, "model": subject.digest(), "settings": arms.settings()});
    let plan = match keep.plan()? {
        Some(plan) => plan,
        None => keep.begin(Plan {
            settings: settings.clone(),
            tokens: tokens(options, &mut subject, &arms, &data, deadline)?,
        })?,
    };
    ensure!(
        plan.settings == settings && options.tokens.is_none_or(|tokens| tokens == plan.tokens),
        "{} holds runs of other data, another model or other settings; give another --json or remove it",
        keep.folder().display()
    );
    let steps = arms.steps(plan.tokens);
    let base = keep.outcome("base", || subject.base(&data, arms.seq_len()).map(Some))?;
    let mut found: BTreeMap<(u64, Arm), Outcome> = BTreeMap::new();
    let wanted = |arm: &Arm| options.only.is_none_or(|only| only == *arm);
    for seed in 1..=options.seeds {
        for arm in Arm::BOTH.into_iter().filter(wanted) {
            let name = format!("{}-{seed}", arm.word());
            let outcome = keep.outcome(&name, || {
                eprintln!("{name}: {steps} steps");
                let spec = arms.spec(arm, steps, seed);
                subject.train(&spec, &data, &keep.checkpoint(&name), deadline)
            })?;
            if let Some(outcome) = outcome {
                eprintln!("{name}: macro {:.4}", outcome.macro_loss());
                found.insert((seed, arm), outcome);
            }
        }
    }
    let base = base.context("the base model was not measured")?;
    Ok(figures(&base, &found, &plan, options, began))
}

/// Tokens of each run, so that all of them fit.
fn tokens(
    options: &Options,
    subject: &mut Subject,
    arms: &Arms,
    data: &Data,
    deadline: Instant,
) -> anyhow::Result<u64> {
    if let Some(tokens) = options.tokens {
        return Ok(tokens);
    }
    let mut seconds_per_token = 0.0;
    let mut seconds_once = 0.0;
    for arm in Arm::BOTH {
        let began = Instant::now();
        let speed = subject.speed(&arms.spec(arm, TRIAL_STEPS, 0), data)?;
        eprintln!("{}: {speed:.0} tok/s", arm.word());
        seconds_per_token += 1.0 / speed;
        seconds_once += began.elapsed().as_secs_f64();
    }
    let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64() * PLANNED_SHARE;
    let seeds = options.seeds as f64;
    let each = (left - seeds * seconds_once).max(left / 4.0) / (seeds * seconds_per_token);
    Ok(each as u64)
}

fn figures(
    base: &Outcome,
    found: &BTreeMap<(u64, Arm), Outcome>,
    plan: &Plan,
    options: &Options,
    began: Instant,
) -> Figures {
    let mut figures = Figures::new();
    figures.insert("base_macro".into(), rounded4(base.macro_loss()));
    let mut domains: BTreeMap<&String, serde_json::Map<String, Value>> = BTreeMap::new();
    let mut put = |domain, column: String, loss: f64| {
        domains.entry(domain).or_default().insert(column, rounded4(loss));
    };
    base.by_domain.iter().for_each(|(domain, loss)| put(domain, "base".into(), *loss));
    let mut better = 0;
    for seed in 1..=options.seeds {
        for arm in Arm::BOTH {
            let Some(outcome) = found.get(&(seed, arm)) else { continue };
            figures.insert(format!("{}_macro_{seed}", arm.word()), rounded4(outcome.macro_loss()));
            figures.insert(format!("{}_tok_s_{seed}", arm.word()), rounded(outcome.tok_s));
            figures.insert(format!("{}_seconds_{seed}", arm.word()), rounded(outcome.seconds));
            figures.insert(format!("{}_trainable", arm.word()), outcome.trainable.into());
            figures.insert(format!("{}_tokens_{seed}", arm.word()), outcome.tokens.into());
            outcome.by_domain.iter().for_each(|(domain, loss)| put(domain, format!("{}_{seed}", arm.word()), *loss));
        }
        let of = |arm| found.get(&(seed, arm)).map(Outcome::macro_loss);
        better += u32::from(of(Arm::Moe).zip(of(Arm::Lora)).is_some_and(|(moe, lora)| moe < lora));
    }
    for arm in Arm::BOTH {
        let all: Vec<f64> = found.iter().filter(|((_, found), _)| *found == arm).map(|(_, o)| o.macro_loss()).collect();
        if !all.is_empty() {
            figures.insert(format!("{}_macro", arm.word()), rounded4(all.iter().sum::<f64>() / all.len() as f64));
        }
    }
    figures.insert("moe_better".into(), better.into());
    figures.insert("seeds".into(), options.seeds.into());
    figures.insert("is_complete".into(), (found.len() as u64 == 2 * options.seeds).into());
    figures.insert("tokens_per_run".into(), plan.tokens.into());
    figures.insert("seconds".into(), rounded(began.elapsed().as_secs_f64()));
    let domains = domains.into_iter().map(|(domain, table)| (domain.clone(), Value::Object(table)));
    figures.insert("by_domain".into(), Value::Object(domains.collect()));
    figures
}

fn rounded4(value: f64) -> Value {
    ((value * 1e4).round() / 1e4).into()
}

//! Callers: what each was told and how long it waited. It does not know what is claimed of that.

use super::INSISTS_AFTER;
use super::stage::Stage;
use empathd_tests::harness::ehr::{Answered, Line};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long before its question a caller connects; a connection on which nobody asks is soon closed.
const CONNECTED_BEFORE: Duration = Duration::from_secs(1);

/// What callers were told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Questions.
    pub(super) asked: u64,
    /// Until the first words of each whole answer.
    pub(super) first_ms: Vec<f64>,
    /// Until its end.
    pub(super) total_ms: Vec<f64>,
    /// The part of the time until the first words in which the engine neither had it waiting nor read it.
    pub(super) beside_ms: Vec<f64>,
    /// Until each refusal that says when to come back.
    pub(super) refused_ms: Vec<f64>,
    /// Whatever else came.
    pub(super) other: u64,
    /// Tokens of all answers.
    pub(super) tokens: u64,
}

impl Told {
    pub(super) fn refused(&self) -> u64 {
        self.refused_ms.len() as u64
    }

    /// Whole answers within these times.
    pub(super) fn within(&self, (first, total): (f64, f64)) -> usize {
        let both = self.first_ms.iter().zip(&self.total_ms);
        both.filter(|(first_ms, total_ms)| **first_ms < first && **total_ms < total).count()
    }

    fn sum(all: Vec<Self>) -> Self {
        all.into_iter().fold(Self::default(), |mut sum, one| {
            sum.asked += one.asked;
            sum.first_ms.extend(one.first_ms);
            sum.total_ms.extend(one.total_ms);
            sum.beside_ms.extend(one.beside_ms);
            sum.refused_ms.extend(one.refused_ms);
            sum.other += one.other;
            sum.tokens += one.tokens;
            sum
        })
    }

    /// One question and what comes of it; whether it was refused.
    async fn ask(&mut self, stage: &Stage, line: &mut Line) -> bool {
        let question = stage.question();
        let began = Instant::now();
        self.asked += 1;
        match line.stream(&question, &mut |_| ()).await {
            Ok(Answered::Whole(answer)) => {
                self.first_ms.push(answer.ttft_ms);
                self.total_ms.push(answer.total_ms);
                let times = answer.notes.map(|notes| notes.times_ms).unwrap_or_default();
                self.beside_ms.push(answer.ttft_ms - times.queued - times.prefill);
                self.tokens += answer.usage.map_or(0, |usage| u64::from(usage.completion_tokens));
            }
            Ok(Answered::Refused(reply)) if reply.header("retry-after").is_some() => {
                self.refused_ms.push(began.elapsed().as_secs_f64() * 1000.0);
                return true;
            }
            Ok(Answered::Refused(reply)) => self.wonder(&format!("{}: {}", reply.status, reply.body)),
            Err(error) => self.wonder(&format!("{error:#}")),
        }
        false
    }

    fn wonder(&mut self, at: &str) {
        eprintln!("unexpected: {at}");
        self.other += 1;
    }
}

/// One caller on a connection that it keeps, for as long as `more` says. It asks when all who share `start` are connected.
pub(super) async fn line(stage: Rc<Stage>, start: Rc<Barrier>, more: impl Fn(&Told) -> bool) -> anyhow::Result<Told> {
    let mut line = stage.caller.connect().await?;
    start.wait().await;
    let mut told = Told::default();
    while more(&told) {
        let other = told.other;
        if told.ask(&stage, &mut line).await {
            tokio::time::sleep(INSISTS_AFTER).await;
        }
        if told.other > other {
            line = stage.caller.connect().await?;
        }
    }
    Ok(told)
}

/// Several at once.
pub(super) async fn together(
    callers: impl Iterator<Item = impl Future<Output = anyhow::Result<Told>> + 'static>,
) -> anyhow::Result<Told> {
    let mut under_way = JoinSet::new();
    callers.for_each(|caller| drop(under_way.spawn_local(caller)));
    let mut all = Vec::new();
    while let Some(told) = under_way.join_next().await {
        all.push(told??);
    }
    Ok(Told::sum(all))
}

/// Callers who come at random, so many a second on average and the same in every run, each on a connection that is open
/// already; then the end of their answers is awaited.
pub(super) async fn arrivals(stage: &Rc<Stage>, rate: f64, during: Duration) -> anyhow::Result<Told> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut at = 0.0;
    let mut times = Vec::new();
    while at < during.as_secs_f64() {
        times.push(at);
        // A linear congruence is random enough for pauses.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((state >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        at += -uniform.ln() / rate;
    }
    let began = Instant::now() + CONNECTED_BEFORE;
    let caller = |stage: Rc<Stage>, at: f64| async move {
        let at = began + Duration::from_secs_f64(at);
        tokio::time::sleep_until(at - CONNECTED_BEFORE).await;
        let mut line = stage.caller.connect().await?;
        tokio::time::sleep_until(at).await;
        let mut told = Told::default();
        told.ask(&stage, &mut line).await;
        Ok(told)
    };
    together(times.into_iter().map(|at| caller(stage.clone(), at))).await
}

/// The value below which a share of them lies; 0 of none.
pub(super) fn quantile_ms(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

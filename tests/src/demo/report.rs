//! `report.json`: what was measured. A part that was not reached is null. Keys are stable; nothing here can hold text of
//! a record other than the demo's own question's answers.

use super::Options;
use crate::harness::ehr::Streamed;
use empathd_proto::AdapterId;
use empathd_proto::report::{AdapterState, AdapterSummary, GateReport, IngestReport};
use serde::Serialize;

/// The whole report.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub ingest: Option<IngestReport>,
    pub store: Option<Store>,
    pub train: Option<Train>,
    pub adapter: Option<Adapter>,
    pub serve: Option<Serve>,
    pub audit: Option<Audit>,
    /// Whether real collections were taken in instead of the synthetic corpus.
    pub real_data: bool,
    pub seed: u64,
    pub seconds: f64,
    pub broken_promises: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Store {
    pub records: u64,
    pub plaintext_canaries_found: u64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Train {
    pub steps: u32,
    pub tokens: u64,
    pub target_tokens: u64,
    pub tok_s: f64,
    pub trainable: u64,
    pub val_loss_before: f64,
    pub val_loss_after: f64,
    pub experts: usize,
    pub expert_names: Vec<String>,
    pub expert_load: Vec<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Adapter {
    pub id: AdapterId,
    pub state: AdapterState,
    pub bytes: u64,
    pub gate: Option<GateReport>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Serve {
    pub ttft_ms: f64,
    pub total_ms: f64,
    pub tokens: u32,
    pub base_text: String,
    pub adapted_text: String,
    pub adapter: Option<AdapterId>,
    pub unauthenticated_refused: bool,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Audit {
    pub entries: u64,
    pub verified: bool,
    pub tamper_detected: bool,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            ingest: None,
            store: None,
            train: None,
            adapter: None,
            serve: None,
            audit: None,
            real_data: options.data.is_some(),
            seed: options.seed,
            seconds: 0.0,
            broken_promises: Vec::new(),
        }
    }
}

impl Train {
    pub(super) fn of(adapter: &AdapterSummary) -> Self {
        let measured = adapter.train.clone();
        Self {
            steps: measured.steps,
            tokens: measured.tokens,
            target_tokens: measured.target_tokens,
            tok_s: measured.tok_s,
            trainable: measured.trainable,
            val_loss_before: measured.val_loss_before,
            val_loss_after: measured.val_loss_after,
            experts: measured.experts.len(),
            expert_names: measured.experts,
            expert_load: measured.expert_load,
        }
    }
}

impl Adapter {
    pub(super) fn of(adapter: &AdapterSummary) -> Self {
        Self { id: adapter.id, state: adapter.state, bytes: adapter.bytes, gate: adapter.gate.clone() }
    }
}

impl Serve {
    /// The figures are those of the adapted answer.
    pub(super) fn of(base: &Streamed, adapted: &Streamed, unauthenticated_refused: bool) -> Self {
        Self {
            ttft_ms: adapted.ttft_ms,
            total_ms: adapted.total_ms,
            tokens: adapted.usage.map_or(0, |usage| usage.completion_tokens),
            base_text: base.text.clone(),
            adapted_text: adapted.text.clone(),
            adapter: adapted.notes.as_ref().and_then(|notes| notes.adapter),
            unauthenticated_refused,
        }
    }
}

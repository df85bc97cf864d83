//! The claim of the store: how many records a second are sealed, durable and audited.

use crate::measure::{Figures, rounded};
use empathd_proto::Secret;
use empathd_proto::audit::{ActionKind, AuditObject, Outcome, Principal, PrincipalKind};
use empathd_store::{AuditDraft, DataClass, Entropy, KdfCost, NewRecord, PutOutcome, Store, WriteError};
use std::sync::Arc;
use std::time::Instant;

/// Records to a transaction in the second figure.
const BATCH: u64 = 100;
/// Clients among whom the records are spread.
const CLIENTS: u64 = 50;

/// Options of the claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Records of each figure
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    records: u64,
    /// Bytes of a record
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    bytes: u64,
}

struct System;

impl Entropy for System {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system gives randomness");
    }
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Figures> {
    let dir = tempfile::tempdir()?;
    let passphrase = Secret::new("correct horse battery staple".into());
    let state = dir.path().join("state");
    std::fs::create_dir(&state)?;
    let store = Store::create(&state, &passphrase, KdfCost::Light, Arc::new(System), draft(ActionKind::Init))?;
    let single = puts_s(&store, options, 1, 0)?;
    let batched = puts_s(&store, options, BATCH, options.records)?;
    let mut figures = Figures::new();
    figures.insert("record_bytes".into(), options.bytes.into());
    figures.insert("puts_s".into(), rounded(single));
    figures.insert("puts_s_batch100".into(), rounded(batched));
    let began = Instant::now();
    let findings = store.verify_all(&mut |_, _| ())?;
    anyhow::ensure!(findings.is_clean(), "the store does not verify");
    figures.insert("verify_records_s".into(), rounded(2.0 * options.records as f64 / began.elapsed().as_secs_f64()));
    store.close(draft(ActionKind::Stop))?;
    Ok(figures)
}

fn draft(action: ActionKind) -> AuditDraft {
    let principal = Principal { kind: PrincipalKind::Appliance, number: 0 };
    AuditDraft { at_ms: 0, principal, action, outcome: Outcome::Done, object: AuditObject::None, count: 0 }
}

/// Records a second, `batch` to a transaction; contents are numbered from `first`.
fn puts_s(store: &Store, options: &Options, batch: u64, first: u64) -> anyhow::Result<f64> {
    let body = vec![b'x'; usize::try_from(options.bytes)?];
    let began = Instant::now();
    let mut number = first;
    while number < first + options.records {
        let end = (number + batch).min(first + options.records);
        store.change(draft(ActionKind::Ingest), |writer, _| {
            for number in number..end {
                let client = writer.client_for(&format!("client-{}", number % CLIENTS))?;
                let mut content_key = [0; 32];
                content_key[..8].copy_from_slice(&number.to_le_bytes());
                let new = NewRecord { client, class: DataClass::Training, content_key, body: &body };
                assert!(matches!(writer.put_record(new)?, PutOutcome::Stored(_)), "each content is new");
            }
            Ok::<(), WriteError>(())
        })?;
        number = end;
    }
    Ok(options.records as f64 / began.elapsed().as_secs_f64())
}

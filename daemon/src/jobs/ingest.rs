//! Takes in one source: bounded bytes, profile, drafts, assessment, validation, sealed records. A batch of records is one
//! transaction, so running the same file again goes on where a stop left it: what is there already is a duplicate. What
//! makes a record good is not known here.

use crate::admin::upload::{ProgressSink, Upload};
use crate::app::{Acted, App};
use crate::problem::{Fault, defect};
use crate::records;
use empathd_ingest::{Assessed, Draft, Policy, Profile, Rejection, Roster, ValidRecord};
use empathd_proto::admin::{AdminReply, Progress};
use empathd_proto::audit::{ActionKind, AuditObject};
use empathd_proto::ids::{JobId, RecordId};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::record::{NegativeReason, Purpose, Record};
use empathd_proto::report::IngestReport;
use empathd_store::{AuditDraft, PutOutcome, Store, Writer};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Records of one transaction.
const BATCH_RECORDS: usize = 256;
/// Reason under which a report counts records that the store already had.
const DUPLICATE: &str = "duplicate";

/// Takes in one uploaded file; one file at a time.
pub(crate) async fn run(
    app: &Arc<App>,
    file_name: &str,
    upload: Upload,
    dry_run: bool,
    progress: ProgressSink,
) -> Result<Acted, Problem> {
    let _turn = app.ingesting.acquire().await.map_err(|_| defect("Ingestion has ended."))?;
    let bytes = Zeroizing::new(upload.collect().await?);
    let extension = Path::new(file_name).extension().and_then(|text| text.to_str()).map(str::to_ascii_lowercase);
    let job = JobId::from_bytes(app.random());
    let report = app
        .blocking(move |app| {
            let store = app.vault.unsealed()?;
            let (profile, drafts, refused) = read(bytes, extension.as_deref())?;
            let total = (drafts.len() + refused.len()) as u64;
            let mut taking =
                Taking { app, store: &store, job, dry_run, report: IngestReport::default(), seen: HashSet::new() };
            taking.begin(total, &refused);
            let roster = super::roster::load(&store)?;
            taking.take_all(profile, drafts, &roster, &mut |done| progress.send(Progress::Ingest { done, total }))?;
            Ok(taking.report)
        })
        .await?;
    let sealed = if dry_run { 0 } else { report.accepted + report.negatives };
    Ok(Acted::unrecorded(AdminReply::Ingested(report), sealed).about(AuditObject::Job(job)))
}

type Read = (&'static Profile, Vec<Draft>, Vec<Rejection>);

fn read(bytes: Zeroizing<Vec<u8>>, extension: Option<&str>) -> Result<Read, Problem> {
    let profile = empathd_ingest::detect(&bytes, extension).map_err(|error| {
        let next = "See docs/ARCHITECTURE.md for the forms of source that are known.";
        Problem::new(ErrorCode::UnknownSource, format!("The file cannot be taken in: {error}."), next)
    })?;
    let read = empathd_ingest::read(&bytes, profile).map_err(|error| {
        let detail = format!("The file cannot be read as {}: {error}.", profile.key);
        Problem::new(ErrorCode::BadRequest, detail, "Correct the file and send it again; nothing was kept.")
    })?;
    Ok((profile, read.drafts, read.refused))
}

/// One file on its way into the store.
struct Taking<'a> {
    app: &'a Arc<App>,
    store: &'a Store,
    job: JobId,
    dry_run: bool,
    report: IngestReport,
    /// Content keys of a dry run, which has no store to tell duplicates.
    seen: HashSet<[u8; 32]>,
}

impl Taking<'_> {
    fn begin(&mut self, total: u64, refused: &[Rejection]) {
        self.report.files = 1;
        self.report.read = total;
        for rejection in refused {
            self.refuse(std::slice::from_ref(rejection));
        }
    }

    fn take_all(
        &mut self,
        profile: &'static Profile,
        drafts: Vec<Draft>,
        roster: &Roster,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Problem> {
        let policy = Policy::default();
        let mut done = self.report.rejected;
        let mut drafts = drafts.into_iter();
        loop {
            let batch: Vec<Draft> = drafts.by_ref().take(BATCH_RECORDS).collect();
            if batch.is_empty() {
                return Ok(());
            }
            done += batch.len() as u64;
            let mut valid = Vec::with_capacity(batch.len());
            for draft in batch {
                let assessed: Assessed = draft.assess(roster);
                let labelled = assessed.purpose();
                match empathd_ingest::validate(assessed, &policy) {
                    Ok(record) => valid.push((record, labelled)),
                    Err(rejections) => self.refuse(&rejections),
                }
            }
            self.take(profile, &valid)?;
            progress(done);
        }
    }

    /// Counts a refused record under each rule that it broke.
    fn refuse(&mut self, rejections: &[Rejection]) {
        self.report.rejected += 1;
        for rejection in rejections {
            count(&mut self.report.reasons, rejection.rule.as_str());
        }
    }

    fn take(&mut self, profile: &Profile, valid: &[(ValidRecord, Purpose)]) -> Result<(), Problem> {
        if valid.is_empty() {
            return Ok(());
        }
        let mut batch = IngestReport::default();
        if self.dry_run {
            for (record, labelled) in valid {
                match self.seen.insert(record.content_key()) {
                    true => count_sealed(&mut batch, profile, record.record(), *labelled),
                    false => count_duplicate(&mut batch),
                }
            }
        } else {
            let draft = AuditDraft { object: AuditObject::Job(self.job), ..self.app.own_draft(ActionKind::Ingest) };
            self.store.change(draft, |writer, draft| -> Result<(), Fault> {
                for (record, labelled) in valid {
                    put(writer, &mut batch, profile, record, *labelled)?;
                }
                draft.count = batch.accepted + batch.negatives;
                Ok(())
            })?;
        }
        self.report.add(&batch);
        Ok(())
    }
}

/// Seals one record and counts what the store then has of it, not what was meant to be there.
fn put(
    writer: &mut Writer<'_>,
    batch: &mut IngestReport,
    profile: &Profile,
    record: &ValidRecord,
    labelled: Purpose,
) -> Result<(), Fault> {
    match records::put(writer, record)? {
        PutOutcome::Stored(id) => count_sealed(batch, profile, &stored(writer, id)?, labelled),
        PutOutcome::Duplicate(_) => count_duplicate(batch),
    }
    Ok(())
}

fn stored(writer: &Writer<'_>, id: RecordId) -> Result<Record, Fault> {
    records::get(writer, id)
}

fn count_sealed(report: &mut IngestReport, profile: &Profile, record: &Record, labelled: Purpose) {
    report.phi_spans += record.phi.len() as u64;
    match record.purpose {
        Purpose::Negative(reason) => {
            report.negatives += 1;
            count(&mut report.reasons, reason.as_str());
        }
        Purpose::Target => {
            report.accepted += 1;
            let labelled_unsafe = matches!(
                labelled,
                Purpose::Negative(NegativeReason::LabelledUnsafe | NegativeReason::LabelledLowQuality)
            );
            report.targets_unsafe += u64::from(labelled_unsafe);
            count(&mut report.by_profile, &profile.key);
            count(&mut report.by_domain, record.domain.as_str());
        }
    }
}

fn count_duplicate(report: &mut IngestReport) {
    report.duplicates += 1;
    count(&mut report.reasons, DUPLICATE);
}

fn count(counts: &mut BTreeMap<String, u64>, key: &str) {
    *counts.entry(key.to_owned()).or_default() += 1;
}

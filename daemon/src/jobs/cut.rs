//! Freezes a cut of the records for training: every record that may be a target is a candidate, and the store splits them
//! by client. What training makes of a cut is not known here.

use crate::app::{Acted, App};
use crate::problem::{self, Fault};
use crate::records;
use empathd_proto::admin::AdminReply;
use empathd_proto::audit::AuditObject;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::record::Purpose;
use empathd_store::{AuditDraft, CutRule};
use std::sync::Arc;

/// Makes a cut.
pub(crate) async fn cut(
    app: &Arc<App>,
    validation_percent: u8,
    seed: u64,
    draft: AuditDraft,
) -> Result<Acted, Problem> {
    let summary = app
        .blocking(move |app| {
            let store = app.vault.unsealed()?;
            Ok(store.change(draft, |writer, draft| -> Result<_, Fault> {
                let mut candidates = Vec::new();
                records::for_each(writer, |id, client, record| {
                    if record.purpose == Purpose::Target {
                        candidates.push((id, client));
                    }
                    Ok(())
                })?;
                if candidates.is_empty() {
                    let next = "Take in a source first: empathctl ingest";
                    return Err(Problem::new(ErrorCode::Conflict, "No record may be a training target.", next).into());
                }
                draft.count = candidates.len() as u64;
                let rule = CutRule { validation_percent, seed, at_ms: draft.at_ms, candidates };
                let cut = writer.cut_dataset(rule)?;
                draft.object = AuditObject::Dataset(cut.id());
                Ok(cut.summary())
            })?)
        })
        .await?;
    Ok(Acted::recorded(AdminReply::Dataset(summary)))
}

/// All cuts.
pub(crate) async fn list(app: &Arc<App>) -> Result<Acted, Problem> {
    let cuts =
        app.blocking(|app| app.vault.unsealed()?.read(|reader| reader.datasets()).map_err(problem::from_read)).await?;
    let count = cuts.len() as u64;
    Ok(Acted::unrecorded(AdminReply::Datasets(cuts.iter().map(|cut| cut.summary()).collect()), count))
}

//! A generation leaves the appliance: files of public formats from the engine, a manifest with the digest of each, its
//! signature and a model card. The entry of the trail is written before the first byte goes out. What the formats are is not
//! known here.

use super::{Description, WAITING_MAX, card, drop_from, ensure, find, summary};
use crate::admin::upload::FileSink;
use crate::app::{Acted, App};
use crate::engine::link::{Event, Lost};
use crate::engine::{self, Ready};
use crate::problem::{self, defect};
use crate::stored;
use empathd_proto::admin::{AdminReply, ExportSummary};
use empathd_proto::audit::AuditObject;
use empathd_proto::engine::{FromEngineBody, ToEngineBody};
use empathd_proto::ids::AdapterId;
use empathd_proto::manifest::{self, FileFacts, KEY, MANIFEST, MAX_FILES, SCHEMA, SIGNATURE, Signer, hex};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::report::{AdapterState, AdapterSummary};
use empathd_store::AuditDraft;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes of one export: all of it is in memory until its entry is written.
const EXPORT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Files by their paths.
type Files = BTreeMap<String, Vec<u8>>;
/// The same in the order in which they leave.
type InOrder = Vec<(String, Vec<u8>)>;

/// Gives a generation that passed its gate.
pub(crate) async fn export(app: &Arc<App>, id: AdapterId, sink: FileSink, draft: AuditDraft) -> Result<Acted, Problem> {
    let (summary, description) = app.blocking(move |app| described(app, id)).await?;
    let ready = app.engine.ready()?;
    let was_loaded = app.adapters.is_loaded(ready.epoch, id);
    ensure(app, &ready, id).await?;
    let gathered = gather(&ready, id).await;
    if !was_loaded && app.adapters.active() != Some(id) {
        drop_from(&ready, app.adapters.take_loaded(ready.epoch, Some(id))).await;
    }
    let files = gathered?;
    let (files, summary) = app
        .blocking(move |app| {
            let sealed = seal(app, &summary, &description, files, draft.at_ms)?;
            let count = u64::from(sealed.1.files);
            let draft = AuditDraft { object: AuditObject::Adapter(id), count, ..draft };
            app.vault.unsealed()?.record_audit(&[draft]).map_err(problem::from_write)?;
            Ok(sealed)
        })
        .await?;
    for (path, bytes) in files {
        sink.send(path, bytes).await?;
    }
    Ok(Acted::recorded(AdminReply::Exported(summary)))
}

fn described(app: &App, id: AdapterId) -> Result<(AdapterSummary, Description), Problem> {
    let found = find(&*app.vault.unsealed()?, id)?;
    if found.state == AdapterState::Candidate {
        let detail = "A generation that has not passed its gate does not leave the appliance.";
        return Err(Problem::new(ErrorCode::GateRefused, detail, "See why with: empathctl train report"));
    }
    Ok((summary(&found)?, stored::decode(&found.body)?))
}

/// The engine's files of a generation that it has in memory.
async fn gather(ready: &Ready, adapter: AdapterId) -> Result<Files, Problem> {
    let lost = |_: Lost| engine::lost();
    let base_name = ready.base.name.clone();
    let mut work = ready.link.begin(ToEngineBody::Export { adapter, base_name }, WAITING_MAX).await.map_err(lost)?;
    let (mut files, mut total) = (Files::new(), 0);
    loop {
        match work.next().await.map_err(lost)? {
            Event::File { path, bytes } => {
                total += bytes.len() as u64;
                let own = [MANIFEST, SIGNATURE, KEY, card::FILE].contains(&path.as_str());
                if own || !manifest::is_inside(&path) || files.len() >= MAX_FILES - 4 || total > EXPORT_BYTES_MAX {
                    return Err(defect("The engine gave a file that an export cannot hold."));
                }
                if files.insert(path, bytes).is_some() {
                    return Err(defect("The engine gave one file twice."));
                }
            }
            Event::Said(FromEngineBody::Exported { files: count }) if count as usize == files.len() => {
                return Ok(files);
            }
            Event::Said(FromEngineBody::Failed(failure)) => return Err(engine::failed(&failure)),
            _ => return Err(defect("The engine answered out of turn.")),
        }
    }
}

/// Adds model card, key, manifest and signature. The manifest comes last but one, its signature last.
fn seal(
    app: &App,
    summary: &AdapterSummary,
    description: &Description,
    mut files: Files,
    exported_at_ms: u64,
) -> Result<(InOrder, ExportSummary), Problem> {
    let store = app.vault.unsealed()?;
    let sign = |bytes: &[u8]| store.read(|reader| Ok(reader.sign_export(bytes))).map_err(problem::from_read);
    let public_key = sign(&[])?.public_key;
    files.insert(card::FILE.to_owned(), card::text(summary, description).into_bytes());
    files.insert(KEY.to_owned(), manifest::key_pem(&public_key).into_bytes());
    let document = document(summary, description, &files, &public_key, exported_at_ms);
    let mut text = serde_json::to_vec_pretty(&document).map_err(|_| defect("A manifest could not be written."))?;
    text.push(b'\n');
    let signature = sign(&text)?.signature.to_vec();
    let mut files: InOrder = files.into_iter().collect();
    files.push((MANIFEST.to_owned(), text));
    files.push((SIGNATURE.to_owned(), signature));
    let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let public_key = Signer::new(&public_key).public_key;
    let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
    Ok((files, ExportSummary { adapter: summary.id, files: count, bytes, public_key }))
}

/// The manifest. Its members `schema`, `adapter`, `signed_by` and `files` are what verifies; the others are for readers.
fn document(
    summary: &AdapterSummary,
    description: &Description,
    files: &Files,
    public_key: &[u8; 32],
    exported_at_ms: u64,
) -> Value {
    let digests: BTreeMap<&String, FileFacts> =
        files.iter().map(|(path, bytes)| (path, FileFacts::of(bytes))).collect();
    json!({
        "schema": SCHEMA,
        "adapter": summary.id.to_string(),
        "made_at_ms": summary.made_at_ms,
        "exported_at_ms": exported_at_ms,
        "weights_blake3": summary.digest,
        "base": base(description),
        "mixture": mixture(description),
        "lineage": lineage(summary, description),
        "train": summary.train,
        "gate": summary.gate,
        "signed_by": Signer::new(public_key),
        "files": digests,
    })
}

fn base(description: &Description) -> Value {
    match &description.lineage {
        None => Value::Null,
        // A GGUF file holds weights, tokenizer and chat template: one digest fixes all three.
        Some(lineage) => json!({
            "name": lineage.base_name,
            "sha256": hex(&lineage.base_sha256),
            "tokenizer": "in the base model's file",
            "chat_template": "in the base model's file",
        }),
    }
}

fn mixture(description: &Description) -> Value {
    let Some(lineage) = &description.lineage else { return Value::Null };
    let shape = &lineage.mixture;
    let experts = description.train.experts.iter().zip(&shape.experts);
    let experts: Vec<Value> = experts.map(|(name, domain)| json!({ "name": name, "domain": domain })).collect();
    json!({
        "shared_rank": shape.shared_rank,
        "expert_rank": shape.expert_rank,
        "experts": experts,
        "top_k": shape.top_k,
        "alpha": f64::from(shape.scale) * f64::from(shape.shared_rank.max(shape.expert_rank)),
        "scale": shape.scale,
        "shared_on": shape.shared_on,
        "router": if shape.session_prior { "token router with session prior" } else { "token router" },
        "crisis_floor": shape.crisis_floor,
    })
}

fn lineage(summary: &AdapterSummary, description: &Description) -> Value {
    let (job, dataset) = (summary.job.to_string(), summary.dataset.to_string());
    let Some(lineage) = &description.lineage else { return json!({ "job": job, "cut": dataset }) };
    json!({
        "job": job,
        "cut": dataset,
        "cut_digest": lineage.cut_hash,
        "records_learnt_from": lineage.records.0,
        "records_held_out": lineage.records.1,
        "seed": lineage.seed,
        "began_with": lineage.began_with.map(|id| id.to_string()),
        "imported_sha256": lineage.imported_sha256.map(|digest| hex(&digest)),
    })
}

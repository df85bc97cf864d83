//! Clients as the law sees them: erased, held, given their whole record. A client's name never leaves this file; the trail
//! has the store's own identifier. How erasure reaches every copy is not known here.

use crate::adapters;
use crate::admin::upload::FileSink;
use crate::app::{Acted, App};
use crate::care::{self, Due};
use crate::jobs;
use crate::problem::{self, Fault, defect};
use crate::records;
use empathd_ingest::profiles;
use empathd_proto::admin::AdminReply;
use empathd_proto::audit::AuditObject;
use empathd_proto::ids::ClientId;
use empathd_proto::keys::{ClientExportSummary, EraseReason, ErasureSummary, MAX_CLIENT_NAME_BYTES, RECORDS_FILE};
use empathd_proto::manifest::{FileFacts, KEY, MANIFEST, SCHEMA, SIGNATURE, Signer, key_pem};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::secret::Secret;
use empathd_store::{AuditDraft, Reader, Store};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Most bytes of one client's record: all of it is in memory until its entry is written.
const EXPORT_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// Erases a client, and everything that learned from it.
pub(crate) async fn erase(
    app: &Arc<App>,
    client: Secret,
    reason: EraseReason,
    draft: AuditDraft,
) -> Result<Acted, Problem> {
    // A job under way has the records in memory and would write what it learned after they are gone.
    jobs::train::pause(app).await;
    let (erasure, jobs_dropped) = app
        .blocking(move |app| {
            let store = app.vault.unsealed()?;
            let client = find(&store, &client)?;
            let jobs = jobs::job_doc::all(&store)?;
            let mut dropped = 0;
            let erasure = store.erase_client_and(client, reason, draft, |writer, erasure| {
                dropped = jobs::job_doc::forget_lessons(writer, jobs, &erasure.cuts)?;
                care::change(writer, |care| care.is_due(Due::Erasure))
            });
            Ok((erasure.map_err(problem::from_write)?, dropped))
        })
        .await?;
    adapters::after_erasure(app, &erasure.retired, erasure.active).await;
    let summary = ErasureSummary {
        client: erasure.tombstone.client,
        records: erasure.tombstone.records.len() as u64,
        reason,
        retired: erasure.retired,
        jobs_dropped,
        active: erasure.active,
    };
    Ok(Acted::recorded(AdminReply::Erased(summary)))
}

/// Puts a client under a legal hold, or lifts it.
pub(crate) async fn hold(app: &Arc<App>, client: Secret, held: bool, draft: AuditDraft) -> Result<Acted, Problem> {
    app.blocking(move |app| {
        let store = app.vault.unsealed()?;
        let client = find(&store, &client)?;
        let draft = AuditDraft { object: AuditObject::Client(client), ..draft };
        store.change(draft, |writer, _| writer.set_hold(client, held)).map_err(problem::from_write)
    })
    .await?;
    Ok(Acted::recorded(AdminReply::Ok))
}

/// Gives a client's whole record.
pub(crate) async fn export(
    app: &Arc<App>,
    client: Secret,
    sink: FileSink,
    draft: AuditDraft,
) -> Result<Acted, Problem> {
    let (files, summary) = app
        .blocking(move |app| {
            let store = app.vault.unsealed()?;
            let client = find(&store, &client)?;
            let (lines, count) = lines(&store, client)?;
            let sealed = seal(&store, client, lines, count, draft.at_ms)?;
            let draft = AuditDraft { object: AuditObject::Client(client), count, ..draft };
            store.record_audit(&[draft]).map_err(problem::from_write)?;
            Ok(sealed)
        })
        .await?;
    for (path, bytes) in files {
        sink.send(path.to_owned(), bytes).await?;
    }
    Ok(Acted::recorded(AdminReply::ClientExported(summary)))
}

/// The client that is meant: by the store's identifier, by the source's name for it with the source's profile before it
/// (`PROFILE:NAME`), or by the name alone when one source has it.
fn find(store: &Store, text: &Secret) -> Result<ClientId, Problem> {
    let name = text.expose().trim();
    if name.len() > MAX_CLIENT_NAME_BYTES {
        let detail = "The name of the client is too long.";
        return Err(Problem::new(ErrorCode::BadRequest, detail, "Give it as its source has it."));
    }
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let found = store.read(|reader: &Reader<'_>| -> Result<_, Fault> {
        if let Some(client) = reader.client(name)? {
            return Ok(vec![client]);
        }
        let named = |key: &str| Zeroizing::new(format!("{key}:{name}"));
        let each = profiles().iter().map(|profile| reader.client(&named(&profile.key)));
        Ok(each.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    })?;
    match found[..] {
        [client] => Ok(client),
        [] => {
            let next = "Give its identifier (client_…), or its name in the source as PROFILE:NAME.";
            Err(Problem::new(ErrorCode::NotFound, "There is no such client.", next))
        }
        _ => {
            let detail = "Several sources have a client of this name.";
            Err(Problem::new(ErrorCode::Conflict, detail, "Say which source: PROFILE:NAME."))
        }
    }
}

/// A client's records, one JSON object a line.
fn lines(store: &Store, client: ClientId) -> Result<(Zeroizing<Vec<u8>>, u64), Problem> {
    let (mut lines, mut count) = (Zeroizing::new(Vec::new()), 0);
    store.read(|reader| {
        records::for_each(reader, |id, owner, record| {
            if owner != client {
                return Ok(());
            }
            count += 1;
            let line = json!({ "id": id, "record": record });
            serde_json::to_writer(&mut *lines, &line).map_err(|_| defect("A record could not be written."))?;
            lines.push(b'\n');
            if lines.len() > EXPORT_BYTES_MAX {
                let detail = "The record is larger than an export can be.";
                return Err(Problem::new(ErrorCode::TooLarge, detail, "Call whoever maintains the appliance.").into());
            }
            Ok::<(), Fault>(())
        })
    })?;
    if count == 0 {
        return Err(Problem::new(ErrorCode::NotFound, "There is no record of such a client.", "Check the identifier."));
    }
    Ok((lines, count))
}

type Files = Vec<(&'static str, Vec<u8>)>;

/// Adds key, manifest and signature.
fn seal(
    store: &Store,
    client: ClientId,
    mut lines: Zeroizing<Vec<u8>>,
    records: u64,
    exported_at_ms: u64,
) -> Result<(Files, ClientExportSummary), Problem> {
    let sign = |bytes: &[u8]| store.read(|reader| Ok(reader.sign_export(bytes))).map_err(problem::from_read);
    let public_key = sign(&[])?.public_key;
    let mut files: Files = vec![(RECORDS_FILE, std::mem::take(&mut *lines)), (KEY, key_pem(&public_key).into_bytes())];
    let facts: BTreeMap<&str, FileFacts> = files.iter().map(|(path, bytes)| (*path, FileFacts::of(bytes))).collect();
    let manifest = json!({
        "schema": SCHEMA,
        "client": client.to_string(),
        "records": records,
        "exported_at_ms": exported_at_ms,
        "signed_by": Signer::new(&public_key),
        "files": facts,
    });
    let mut text = serde_json::to_vec_pretty(&manifest).map_err(|_| defect("A manifest could not be written."))?;
    text.push(b'\n');
    let signature = sign(&text)?.signature.to_vec();
    files.push((MANIFEST, text));
    files.push((SIGNATURE, signature));
    let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let public_key = Signer::new(&public_key).public_key;
    let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
    Ok((files, ClientExportSummary { client, records, files: count, bytes, public_key }))
}

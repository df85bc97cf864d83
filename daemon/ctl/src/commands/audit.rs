//! `audit`: what happened, and the proof that nothing of it was changed since this user last looked.

use super::store::ask_status;
use super::trail;
use crate::checkpoint;
use crate::cli::AuditCommand;
use crate::error::CtlError;
use crate::render;
use crate::session::Session;
use empathd_proto::admin::{AdminReply, AdminRequest, AuditVerdict, Progress};
use empathd_proto::audit::SignedCheckpoint;
use empathd_proto::{ErrorCode, Problem};
use serde_json::json;

pub(super) fn run(session: &mut Session<'_>, command: AuditCommand) -> Result<(), CtlError> {
    match command {
        AuditCommand::Tail { lines } => {
            let AdminReply::AuditEntries(entries) = session.ask(AdminRequest::AuditTail { count: lines })? else {
                return Err(CtlError::UnexpectedReply);
            };
            session.show(&json!({ "entries": entries }), |edge| render::audit::tail(&entries, edge))
        }
        AuditCommand::Verify { export: None, .. } => verify(session),
        AuditCommand::Verify { export: Some(dir), key } => trail::verify(session, &dir, key.as_deref()),
        AuditCommand::Export { dir } => trail::export(session, &dir),
    }
}

fn verify(session: &mut Session<'_>) -> Result<(), CtlError> {
    let known = known(session)?;
    let verdict = ask(session, known.clone())?;
    session.show(&verdict, |_| render::audit::verdict(&verdict, known.as_ref()))?;
    if let Some(alarm) = alarm(&verdict, known.as_ref()) {
        return Err(CtlError::Alarm(alarm));
    }
    let (store, _) = checkpoint::read(&verdict.checkpoint)?;
    match session.edge.state_dir.clone() {
        Some(dir) => checkpoint::keep(&dir, store, &verdict.checkpoint),
        None => {
            session.note("This user has no home folder: the checkpoint was not kept for the next check.");
            Ok(())
        }
    }
}

/// The newest checkpoint this user has seen of the store that the daemon now serves.
fn known(session: &Session<'_>) -> Result<Option<SignedCheckpoint>, CtlError> {
    let Some(now) = ask_status(session)?.checkpoint else {
        let problem = Problem::new(ErrorCode::Sealed, "The trail is sealed with the store.", "empathctl unseal");
        return Err(CtlError::Problem(problem));
    };
    let (store, _) = checkpoint::read(&now)?;
    session.edge.state_dir.as_deref().map_or(Ok(None), |dir| checkpoint::known(dir, store))
}

fn ask(session: &mut Session<'_>, known: Option<SignedCheckpoint>) -> Result<AuditVerdict, CtlError> {
    let bar = session.bars.count("entries");
    let reply = session.client.ask(AdminRequest::AuditVerify { known }, &mut |progress| {
        if let Progress::Audit { done, total } = progress {
            bar.set_length(total);
            bar.set_position(done);
        }
    });
    bar.finish_and_clear();
    match reply? {
        AdminReply::AuditVerified(verdict) => Ok(verdict),
        _ => Err(CtlError::UnexpectedReply),
    }
}

/// Why the verdict is not to be trusted or not good. The daemon's word is held against the two checkpoints.
fn alarm(verdict: &AuditVerdict, known: Option<&SignedCheckpoint>) -> Option<String> {
    if !verdict.verified {
        return Some(format!("the trail does not verify: {}", verdict.findings.join("; ")));
    }
    let known = known?;
    match verdict.extends_known {
        Some(true) => checkpoint::contradiction(known, &verdict.checkpoint),
        Some(false) => Some("the trail does not extend the checkpoint this user has seen: it was rewritten".into()),
        None => Some("empathd did not compare the trail with the checkpoint this user has seen".into()),
    }
}

//! `status`, `init`, `unseal`, `seal`: the store as a whole.

use crate::checkpoint;
use crate::cli::{InitArgs, UnsealArgs};
use crate::error::CtlError;
use crate::passphrase;
use crate::render;
use crate::session::Session;
use crate::shares;
use empathd_proto::admin::{AdminReply, AdminRequest, SealState, StatusReport};
use empathd_proto::keys::Papers;
use empathd_proto::{ErrorCode, Problem, StoreId};
use serde::Serialize;

#[derive(Serialize)]
struct Created {
    store: StoreId,
    /// Absent when they were written into a file.
    shares: Option<Papers>,
    #[serde(flatten)]
    status: StatusReport,
}

pub(super) fn status(session: &mut Session<'_>) -> Result<(), CtlError> {
    let status = ask_status(session)?;
    session.show(&status, |_| render::status::screen(&status))?;
    check(session, &status)
}

pub(super) fn init(session: &mut Session<'_>, args: &InitArgs) -> Result<(), CtlError> {
    // Asked first, so that nobody thinks up a passphrase for nothing.
    if ask_status(session)?.state != SealState::Uninitialised {
        return Err(refuse(ErrorCode::Conflict, "The appliance has a store already.", "empathctl unseal"));
    }
    let mut paper = args.shares_file.as_deref().map(shares::Paper::create).transpose()?;
    let passphrase = passphrase::new(args.passphrase.passphrase_file.as_deref())?;
    let AdminReply::Initialised { store, shares } = session.ask(AdminRequest::Init { passphrase })? else {
        return Err(CtlError::UnexpectedReply);
    };
    // First of all: they exist nowhere else.
    let shares = match &mut paper {
        Some(paper) => paper.write(&shares).map(|()| None)?,
        None => Some(shares),
    };
    let text = shares.as_ref().map_or_else(String::new, |shares| format!("{}\n", shares::page(shares).expose()));
    let status = ask_status(session)?;
    let checked = check(session, &status);
    let created = Created { store, shares, status };
    session.show(&created, |_| {
        format!(
            "Created {store}.\nKeep the passphrase safe: it is asked at every start.\n\n{text}{}",
            render::status::screen(&created.status)
        )
    })?;
    checked
}

pub(super) fn unseal(session: &mut Session<'_>, args: &UnsealArgs) -> Result<(), CtlError> {
    match ask_status(session)?.state {
        SealState::Uninitialised => {
            return Err(refuse(ErrorCode::NotInitialised, "The appliance has no store yet.", "empathctl init"));
        }
        SealState::Unsealed => session.note("The store is unsealed already."),
        SealState::Sealed => {
            let request = if args.shares || !args.shares_from.shares_file.is_empty() {
                AdminRequest::UnsealShares { shares: shares::given(&args.shares_from.shares_file)? }
            } else {
                let passphrase = passphrase::existing(args.passphrase.passphrase_file.as_deref())?;
                AdminRequest::Unseal { passphrase }
            };
            let AdminReply::Ok = session.ask(request)? else {
                return Err(CtlError::UnexpectedReply);
            };
        }
    }
    status(session)
}

pub(super) fn seal(session: &mut Session<'_>) -> Result<(), CtlError> {
    let AdminReply::Ok = session.ask(AdminRequest::Seal)? else { return Err(CtlError::UnexpectedReply) };
    let status = ask_status(session)?;
    session.show(&status, |_| render::status::screen(&status))
}

/// The state of the appliance.
pub(super) fn ask_status(session: &Session<'_>) -> Result<StatusReport, CtlError> {
    match session.ask(AdminRequest::Status)? {
        AdminReply::Status(status) => Ok(status),
        _ => Err(CtlError::UnexpectedReply),
    }
}

/// Holds the checkpoint of this contact against the kept one; the first one of a store is kept.
fn check(session: &mut Session<'_>, status: &StatusReport) -> Result<(), CtlError> {
    let (Some(now), Some(dir)) = (&status.checkpoint, session.edge.state_dir.clone()) else { return Ok(()) };
    let (store, _) = checkpoint::read(now)?;
    match checkpoint::known(&dir, store)? {
        None => checkpoint::keep(&dir, store, now),
        Some(before) => checkpoint::contradiction(&before, now).map_or(Ok(()), |why| Err(CtlError::Alarm(why))),
    }
}

fn refuse(code: ErrorCode, detail: &str, next: &str) -> CtlError {
    CtlError::Problem(Problem::new(code, detail, next))
}

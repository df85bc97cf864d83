//! `keys` and `doctor`: epochs, ways in, key files, and the checklist.

use crate::cli::{KeysCommand, RekeyArgs};
use crate::client::FilePart;
use crate::error::CtlError;
use crate::folder::broken;
use crate::passphrase;
use crate::render;
use crate::session::Session;
use crate::shares;
use empathd_proto::Problem;
use empathd_proto::admin::{AdminReply, AdminRequest};
use empathd_proto::keys::{CheckState, EscrowSummary, Papers, Rekey};
use empathd_proto::manifest::FileFacts;
use empathd_proto::problem::ErrorCode;
use serde::Serialize;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest key file that is taken.
const KEY_FILE_BYTES_MAX: usize = 1024 * 1024 * 1024;

#[derive(Serialize)]
struct Done {
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    shares: Option<Papers>,
}

pub(super) fn run(session: &mut Session<'_>, command: KeysCommand) -> Result<(), CtlError> {
    match command {
        KeysCommand::Status => {
            let AdminReply::Keys(report) = session.ask(AdminRequest::KeysStatus)? else {
                return Err(CtlError::UnexpectedReply);
            };
            session.show(&report, |edge| render::copies::keys(&report, edge))
        }
        KeysCommand::Rotate => {
            let AdminReply::Ok = session.ask(AdminRequest::KeysRotate)? else { return Err(CtlError::UnexpectedReply) };
            let text = "A new epoch has begun. Earlier copies of the state folder open nothing of it.\n";
            session.show(&Done { done: true, shares: None }, |_| text.to_owned())
        }
        KeysCommand::Rekey(args) => rekey(session, &args),
        KeysCommand::Escrow { file } => escrow(session, &file),
    }
}

fn rekey(session: &mut Session<'_>, args: &RekeyArgs) -> Result<(), CtlError> {
    let mut paper = args.shares_file.as_deref().map(shares::Paper::create).transpose()?;
    let rekey = if args.passphrase {
        let present = passphrase::existing(args.passphrase_file.as_deref())?;
        session.note("Now the new passphrase.");
        Rekey::Passphrase { present, new: passphrase::new(args.new_passphrase_file.as_deref())? }
    } else if args.shares {
        Rekey::Shares
    } else {
        Rekey::Credential { wanted: args.credential }
    };
    let text = match rekey {
        Rekey::Passphrase { .. } => "The new passphrase opens the store; the one before opens nothing any more.\n",
        Rekey::Credential { wanted: true } => "The credential of the service unseals the store at each start.\n",
        Rekey::Credential { wanted: false } => "The credential opens nothing any more. Remove it from the unit.\n",
        Rekey::Shares => "Earlier shares open nothing any more. Next: empathctl keys escrow FILE\n",
    };
    let shares = match session.ask(AdminRequest::KeysRekey(rekey))? {
        AdminReply::Ok => None,
        AdminReply::Shares(papers) => Some(papers),
        _ => return Err(CtlError::UnexpectedReply),
    };
    let shares = match (&mut paper, shares) {
        (Some(paper), Some(papers)) => paper.write(&papers).map(|()| None)?,
        (_, shares) => shares,
    };
    let page = shares.as_ref().map_or_else(String::new, |papers| format!("{}\n", shares::page(papers).expose()));
    session.show(&Done { done: true, shares }, |_| format!("{page}{text}"))
}

fn escrow(session: &mut Session<'_>, path: &Path) -> Result<(), CtlError> {
    let failed = |doing| move |source| CtlError::File { doing, path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(failed("create"))?;
    let (mut left, mut taken) = (None, 0usize);
    let reply = session.client.ask_files(AdminRequest::KeysEscrow, &mut |part| match part {
        FilePart::Begin { bytes, .. } if left.is_none() => {
            left = Some(bytes);
            Ok(())
        }
        FilePart::Begin { .. } => Err(CtlError::UnexpectedReply),
        FilePart::Chunk(chunk) => {
            taken += chunk.len();
            if taken > KEY_FILE_BYTES_MAX || taken as u64 > left.unwrap_or(0) {
                return Err(CtlError::UnexpectedReply);
            }
            file.write_all(&chunk).map_err(failed("write"))
        }
    });
    let written = reply.and_then(|reply| {
        file.sync_all().map_err(failed("write"))?;
        let AdminReply::Escrowed(summary) = reply else { return Err(CtlError::UnexpectedReply) };
        let facts = FileFacts::read(&mut fs::File::open(path).map_err(failed("read"))?).map_err(failed("read"))?;
        if facts != (FileFacts { bytes: summary.bytes, sha256: summary.sha256.clone() }) {
            return Err(broken("the key file on the disk is not what was sent"));
        }
        Ok(summary)
    });
    let summary: EscrowSummary = match written {
        Ok(summary) => summary,
        Err(error) => {
            // Half a key file must not be taken for one.
            drop(fs::remove_file(path));
            return Err(error);
        }
    };
    session.show(&summary, |_| render::copies::escrowed(&summary, path))
}

pub(super) fn doctor(session: &mut Session<'_>) -> Result<(), CtlError> {
    let AdminReply::Checklist(checks) = session.ask(AdminRequest::Doctor)? else {
        return Err(CtlError::UnexpectedReply);
    };
    #[derive(Serialize)]
    struct Checklist<'a> {
        checks: &'a [empathd_proto::keys::Check],
    }
    session.show(&Checklist { checks: &checks }, |_| render::copies::checklist(&checks))?;
    match checks.iter().filter(|check| check.state == CheckState::Fail).count() {
        0 => Ok(()),
        count => {
            let detail = format!("{count} points of the checklist have to be mended.");
            Err(CtlError::Problem(Problem::new(ErrorCode::Conflict, detail, "Do what stands beside each.")))
        }
    }
}

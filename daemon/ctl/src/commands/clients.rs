//! `client`: erasure, legal holds, and the whole record as files. The name of a client goes to the daemon and nowhere else.

use crate::cli::ClientCommand;
use crate::commands::export::check;
use crate::error::CtlError;
use crate::folder::{Writing, broken, make_empty};
use crate::render;
use crate::session::Session;
use empathd_proto::Secret;
use empathd_proto::admin::{AdminReply, AdminRequest};
use empathd_proto::keys::ClientExportSummary;
use serde::Serialize;
use std::io::stdin;
use std::path::Path;

#[derive(Serialize)]
struct Held {
    held: bool,
}

pub(super) fn run(session: &mut Session<'_>, command: ClientCommand) -> Result<(), CtlError> {
    match command {
        ClientCommand::Hold { client } => hold(session, client, true),
        ClientCommand::Release { client } => hold(session, client, false),
        ClientCommand::Export { client, dir } => {
            let summary = export(session, client, &dir)?;
            session.show(&summary, |_| render::copies::client_exported(&summary, &dir))
        }
        ClientCommand::Erase { client, reason, export: folder, yes } => {
            if !yes {
                confirm(session, &client)?;
            }
            if let Some(folder) = &folder {
                let summary = export(session, client.clone(), folder)?;
                session.note(&format!("Wrote {} records to {}.", summary.records, folder.display()));
            }
            let request = AdminRequest::ClientErase { client: Secret::new(client), reason };
            let AdminReply::Erased(erased) = session.ask(request)? else { return Err(CtlError::UnexpectedReply) };
            session.show(&erased, |_| render::copies::erased(&erased))
        }
    }
}

/// The name is typed once more: nobody erases the wrong person by pressing a key.
fn confirm(session: &mut Session<'_>, client: &str) -> Result<(), CtlError> {
    if !session.edge.terminal {
        return Err(CtlError::input("an erasure is asked again, and there is no terminal to ask on", "add --yes"));
    }
    session.note("This cannot be undone. Type the client once more, as you gave it:");
    let mut line = String::new();
    stdin().read_line(&mut line).map_err(|_| CtlError::input("nothing was typed", "add --yes"))?;
    if line.trim() == client.trim() {
        return Ok(());
    }
    Err(CtlError::input("that is another client; nothing was erased", "empathctl client erase CLIENT --reason CODE"))
}

fn hold(session: &mut Session<'_>, client: String, held: bool) -> Result<(), CtlError> {
    let request = AdminRequest::ClientHold { client: Secret::new(client), held };
    let AdminReply::Ok = session.ask(request)? else { return Err(CtlError::UnexpectedReply) };
    let text = match held {
        true => "The client is under a legal hold: nothing of it is erased until `client release`.\n",
        false => "No legal hold keeps this client's records any more.\n",
    };
    session.show(&Held { held }, |_| text.to_owned())
}

fn export(session: &mut Session<'_>, client: String, folder: &Path) -> Result<ClientExportSummary, CtlError> {
    make_empty(folder)?;
    let mut writing = Writing::new(folder);
    let request = AdminRequest::ClientExport { client: Secret::new(client) };
    let reply = session.client.ask_files(request, &mut |part| writing.take(part))?;
    writing.finish()?;
    let AdminReply::ClientExported(summary) = reply else { return Err(CtlError::UnexpectedReply) };
    let checked = check(folder, Some(&summary.public_key))?;
    if checked.files != summary.files as usize || checked.client != summary.client.to_string() {
        return Err(broken("the folder holds other files than were sent"));
    }
    Ok(summary)
}

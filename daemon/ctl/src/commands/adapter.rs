//! `adapter`: generations of trained weights, and which one answers.

use super::{export, import};
use crate::cli::AdapterCommand;
use crate::error::CtlError;
use crate::render;
use crate::session::Session;
use empathd_proto::AdapterId;
use empathd_proto::admin::{AdminReply, AdminRequest};
use serde_json::json;

pub(super) fn run(session: &mut Session<'_>, command: AdapterCommand) -> Result<(), CtlError> {
    match command {
        AdapterCommand::List => {
            let AdminReply::Adapters(adapters) = session.ask(AdminRequest::AdapterList)? else {
                return Err(CtlError::UnexpectedReply);
            };
            session.show(&json!({ "adapters": adapters }), |edge| render::adapter::list(&adapters, edge))
        }
        AdapterCommand::Promote { id } => activate(session, AdminRequest::AdapterPromote { id }),
        AdapterCommand::Export { id, dir } => export::export(session, id, &dir),
        AdapterCommand::Import(args) => import::run(session, &args),
        AdapterCommand::Verify { dir, key } => export::verify(session, &dir, key.as_deref()),
        AdapterCommand::Rollback => activate(session, AdminRequest::AdapterRollback),
    }
}

fn activate(session: &mut Session<'_>, request: AdminRequest) -> Result<(), CtlError> {
    let AdminReply::Active { adapter } = session.ask(request)? else { return Err(CtlError::UnexpectedReply) };
    session.show(&json!({ "adapter": adapter }), |_| answers_now(adapter))
}

fn answers_now(adapter: Option<AdapterId>) -> String {
    match adapter {
        Some(id) => format!("{id} answers now. Go back with: empathctl adapter rollback\n"),
        None => "The base model answers now, without an adapter.\n".into(),
    }
}

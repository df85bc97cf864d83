//! `dataset`: frozen cuts of the records.

use crate::cli::DatasetCommand;
use crate::error::CtlError;
use crate::render;
use crate::session::Session;
use empathd_proto::admin::{AdminReply, AdminRequest};
use serde_json::json;

pub(super) fn run(session: &mut Session<'_>, command: DatasetCommand) -> Result<(), CtlError> {
    match command {
        DatasetCommand::Cut { validation_percent, seed } => {
            let AdminReply::Dataset(cut) = session.ask(AdminRequest::DatasetCut { validation_percent, seed })? else {
                return Err(CtlError::UnexpectedReply);
            };
            session.show(&cut, |edge| render::dataset::cut(&cut, edge))
        }
        DatasetCommand::List => {
            let AdminReply::Datasets(cuts) = session.ask(AdminRequest::DatasetList)? else {
                return Err(CtlError::UnexpectedReply);
            };
            session.show(&json!({ "datasets": cuts }), |edge| render::dataset::list(&cuts, edge))
        }
    }
}

//! `train`: jobs begin, are watched, and pause. A job lives in the daemon: a tool that goes away changes nothing.

use crate::cli::TrainCommand;
use crate::error::CtlError;
use crate::progress::show_training;
use crate::render;
use crate::session::Session;
use empathd_proto::admin::{AdminReply, AdminRequest, Progress, TrainOptions};
use empathd_proto::report::{JobState, TrainStatus};
use empathd_proto::{ErrorCode, JobId, Problem};

pub(super) fn run(session: &mut Session<'_>, command: TrainCommand) -> Result<(), CtlError> {
    let status = match command {
        TrainCommand::Start { steps, minutes, dataset, seed, promote, follow } => {
            let options = TrainOptions { dataset, steps, minutes, seed, promote };
            let status = expect(session.ask(AdminRequest::TrainStart(options))?)?;
            if follow { watch(session, Some(status.job))? } else { status }
        }
        TrainCommand::Status { job, follow: true } => watch(session, job)?,
        TrainCommand::Status { job, follow: false } => {
            expect(session.ask(AdminRequest::TrainStatus { job, follow: false })?)?
        }
        TrainCommand::Stop => match session.ask(AdminRequest::TrainStop)? {
            AdminReply::Ok => expect(session.ask(AdminRequest::TrainStatus { job: None, follow: false })?)?,
            reply => expect(reply)?,
        },
    };
    session.show(&status, |_| render::train::status(&status))?;
    failure(&status).map_or(Ok(()), Err)
}

fn watch(session: &mut Session<'_>, job: Option<JobId>) -> Result<TrainStatus, CtlError> {
    let bar = session.bars.training();
    let reply = session.client.ask(AdminRequest::TrainStatus { job, follow: true }, &mut |progress| {
        if let Progress::Train(progress) = progress {
            show_training(&bar, &progress);
        }
    });
    bar.finish_and_clear();
    expect(reply?)
}

fn expect(reply: AdminReply) -> Result<TrainStatus, CtlError> {
    match reply {
        AdminReply::Train(status) => Ok(status),
        _ => Err(CtlError::UnexpectedReply),
    }
}

/// A failed job fails the command that shows it, so that scripts need not read the answer.
fn failure(status: &TrainStatus) -> Option<CtlError> {
    (status.state == JobState::Failed).then(|| {
        let why = status.error.as_deref().unwrap_or("it gave no reason");
        let next = "empathctl train start goes on from the last checkpoint";
        CtlError::Problem(Problem::new(ErrorCode::EngineFailed, format!("The job failed: {why}"), next))
    })
}

//! `train`: jobs begin, are watched, and pause. A job lives in the daemon: a tool that goes away changes nothing.

use crate::cli::TrainCommand;
use crate::error::CtlError;
use crate::progress::TrainingBar;
use crate::render;
use crate::session::{Edge, Session};
use empathd_proto::admin::{AdminReply, AdminRequest, TrainOptions};
use empathd_proto::report::{JobState, TrainStatus};
use empathd_proto::{ErrorCode, JobId, Problem};
use jiff::Timestamp;
use jiff::civil::Time;

pub(super) fn run(session: &mut Session<'_>, command: TrainCommand) -> Result<(), CtlError> {
    let status = match command {
        TrainCommand::Start { steps, minutes, dataset, until, seed, promote, follow } => {
            let until_ms = until.map(|time| next_time(&time, &session.edge)).transpose()?;
            let options = TrainOptions { dataset, steps, minutes, seed, promote, until_ms };
            let status = expect(session.ask(AdminRequest::TrainStart(options))?)?;
            if follow { watch(session, Some(status.job))? } else { status }
        }
        TrainCommand::Status { job, follow: true } => watch(session, job)?,
        TrainCommand::Status { job, follow: false } => {
            expect(session.ask(AdminRequest::TrainStatus { job, follow: false })?)?
        }
        TrainCommand::Report { job } => return report(session, job),
        TrainCommand::Stop => match session.ask(AdminRequest::TrainStop)? {
            AdminReply::Ok => expect(session.ask(AdminRequest::TrainStatus { job: None, follow: false })?)?,
            reply => expect(reply)?,
        },
    };
    ended(session, &status)
}

/// Shows how a job is.
pub(super) fn ended(session: &mut Session<'_>, status: &TrainStatus) -> Result<(), CtlError> {
    session.show(status, |_| render::train::status(status))?;
    failure(status).map_or(Ok(()), Err)
}

fn report(session: &mut Session<'_>, job: Option<JobId>) -> Result<(), CtlError> {
    let AdminReply::TrainReport(report) = session.ask(AdminRequest::TrainReport { job })? else {
        return Err(CtlError::UnexpectedReply);
    };
    session.show(&report, |_| render::report::report(&report))
}

/// The next moment at which the user's clock shows `HH:MM`, milliseconds since the Unix epoch.
fn next_time(text: &str, edge: &Edge) -> Result<u64, CtlError> {
    let refused = || CtlError::input("this is no time of day", "give hours and minutes, such as --until 06:30");
    let time = Time::strptime("%H:%M", text).map_err(|_| refused())?;
    let now =
        i64::try_from(edge.now_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).ok_or_else(refused)?;
    let now = now.to_zoned(edge.zone.clone());
    let at = |day: jiff::civil::Date| day.to_datetime(time).to_zoned(edge.zone.clone()).map_err(|_| refused());
    let today = at(now.date())?;
    let next = if today > now { today } else { at(now.date().tomorrow().map_err(|_| refused())?)? };
    u64::try_from(next.timestamp().as_millisecond()).map_err(|_| refused())
}

pub(super) fn watch(session: &mut Session<'_>, job: Option<JobId>) -> Result<TrainStatus, CtlError> {
    let bar = session.bars.training();
    let mut watched = TrainingBar::new(&bar);
    let reply = session.client.ask(AdminRequest::TrainStatus { job, follow: true }, &mut |progress| {
        watched.hear(&progress);
    });
    bar.finish_and_clear();
    expect(reply?)
}

pub(super) fn expect(reply: AdminReply) -> Result<TrainStatus, CtlError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::words::tests::edge;

    #[test]
    fn the_next_time_of_day_is_today_or_tomorrow() {
        let (noon, hour) = (edge().now_ms, 3_600_000);
        assert_eq!(next_time("13:00", &edge()).expect("a time"), noon + hour);
        assert_eq!(next_time("06:30", &edge()).expect("a time"), noon + 18 * hour + hour / 2);
        assert_eq!(next_time("12:00", &edge()).expect("a time"), noon + 24 * hour);
        for bad in ["", "25:00", "6", "06:61", "noon"] {
            assert_eq!(next_time(bad, &edge()).expect_err(bad).exit_code(), 2);
        }
    }
}

//! Everything that is known of one job, for whoever looks back on it. How it is shown is not known here.

use super::{curves, job_doc};
use crate::adapters;
use crate::app::{Acted, App};
use crate::problem::{self};
use empathd_proto::admin::{AdminReply, JobReport, MAX_CURVE_POINTS};
use empathd_proto::audit::AuditObject;
use empathd_proto::engine::{CurvePoint, StepPoint};
use empathd_proto::ids::JobId;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::report::AdapterSummary;
use std::sync::Arc;

/// The last job, or one.
pub(crate) async fn report(app: &Arc<App>, job: Option<JobId>) -> Result<Acted, Problem> {
    let report = app.blocking(move |app| stored(app, job)).await?;
    let object = AuditObject::Job(report.status.job);
    Ok(Acted::unrecorded(AdminReply::TrainReport(Box::new(report)), 0).about(object))
}

fn stored(app: &App, job: Option<JobId>) -> Result<JobReport, Problem> {
    let store = app.vault.unsealed()?;
    let all = job_doc::all(&store)?;
    let found = all.into_iter().rev().find(|doc| job.is_none_or(|job| job == doc.id));
    let next = "Begin one with: empathctl train start";
    let found = found.ok_or_else(|| Problem::new(ErrorCode::NotFound, "There is no such training job.", next))?;
    let adapter = match found.adapter {
        Some(id) => store.read(|reader| reader.adapter(id)).map_err(problem::from_read)?,
        None => None,
    };
    let adapter = adapter.as_ref().map(adapters::summary).transpose()?;
    let drawn = curves::read(&curves::folder(&app.config.state), found.id).unwrap_or_default();
    let curves = if drawn.is_empty() { losses(adapter.as_ref()) } else { drawn };
    Ok(JobReport { status: found.status(), adapter, curves: thinned(curves) })
}

/// The losses of its steps, where no curves of the job are left.
fn losses(adapter: Option<&AdapterSummary>) -> Vec<CurvePoint> {
    let losses = adapter.map_or(&[][..], |adapter| &adapter.train.loss_curve);
    let point = |(step, loss): (u32, &f32)| CurvePoint::Step(StepPoint { step, loss: *loss, ..StepPoint::default() });
    (1..).zip(losses).map(point).collect()
}

/// At most [`MAX_CURVE_POINTS`] of these: every validation, and steps that lie evenly.
fn thinned(points: Vec<CurvePoint>) -> Vec<CurvePoint> {
    let is_step = |point: &CurvePoint| matches!(point, CurvePoint::Step(_));
    let steps = points.iter().filter(|point| is_step(point)).count();
    let room = MAX_CURVE_POINTS.saturating_sub(points.len() - steps).max(1);
    let (stride, mut seen) = (steps.div_ceil(room).max(1), 0);
    let mut keep = |point: &CurvePoint| {
        seen += usize::from(is_step(point));
        !is_step(point) || seen == steps || (seen - 1) % stride == 0
    };
    points.into_iter().filter(|point| keep(point)).take(MAX_CURVE_POINTS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::engine::ValidationPoint;

    #[test]
    fn long_curves_are_thinned_and_keep_their_ends_and_validations() {
        let step = |step| CurvePoint::Step(StepPoint { step, ..StepPoint::default() });
        let validation = |step| CurvePoint::Validation(ValidationPoint { step, ..ValidationPoint::default() });
        let short = vec![step(1), validation(1), step(2)];
        assert_eq!(thinned(short.clone()), short);
        let long: Vec<_> =
            (1..=50_000).flat_map(|n| (n % 1000 == 0).then(|| validation(n)).into_iter().chain([step(n)])).collect();
        let kept = thinned(long.clone());
        assert!(kept.len() <= MAX_CURVE_POINTS && kept.len() > MAX_CURVE_POINTS / 2);
        assert_eq!((kept.first(), kept.last()), (long.first(), long.last()));
        assert_eq!(kept.iter().filter(|point| matches!(point, CurvePoint::Validation(_))).count(), 50);
    }
}

//! The curves of a training job on the disk: names and numbers, as JSON lines and as TensorBoard's event files. They are made
//! anew up to the checkpoint that a job goes on from, so that they are those of a job that was never interrupted. Nothing
//! here can hold text of a conversation; what the numbers mean for training is not known here.

mod events;

use empathd_proto::engine::{CurvePoint, StepPoint, ValidationPoint};
use empathd_proto::ids::JobId;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Most steps that are written of a job; longer jobs write every second, third … step.
const STEPS_MAX: u32 = 20_000;
/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// Jobs whose curves are kept.
pub(crate) const JOBS_MAX: usize = 16;

/// One line.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Milliseconds since the Unix epoch.
    at_ms: u64,
    point: CurvePoint,
}

/// The files of a job, open at their end.
pub(crate) struct Curves {
    lines: File,
    events: File,
    stride: u32,
}

const fn step_of(point: &CurvePoint) -> u32 {
    match point {
        CurvePoint::Step(step) => step.step,
        CurvePoint::Validation(validation) => validation.step,
    }
}

/// Where the curves of all jobs are, in a state folder.
pub(crate) fn folder(state: &Path) -> PathBuf {
    state.join("training")
}

fn lines_of(folder: &Path, job: JobId) -> PathBuf {
    folder.join(job.to_string()).join("curves.jsonl")
}

impl Curves {
    /// Opens the files of a job of so many steps that goes on from a checkpoint, or begins. What lies behind the
    /// checkpoint falls away: it will be drawn again.
    pub(crate) fn open(folder: &Path, job: JobId, goes_on: Option<u32>, steps: u32, at_ms: u64) -> io::Result<Self> {
        let kept: Vec<Line> = match goes_on {
            Some(from) => read_lines(folder, job)?.into_iter().filter(|line| step_of(&line.point) <= from).collect(),
            None => Vec::new(),
        };
        let own = folder.join(job.to_string());
        DirBuilder::new().recursive(true).mode(0o700).create(&own)?;
        let begun_ms = kept.first().map_or(at_ms, |line| line.at_ms);
        let new = |name: &str| File::create(own.join(format!("{name}.new")));
        let mut curves = Self { lines: new("curves.jsonl")?, events: new("events")?, stride: steps / STEPS_MAX + 1 };
        curves.events.write_all(&events::head(begun_ms))?;
        kept.iter().try_for_each(|line| curves.write(line))?;
        for old in
            fs::read_dir(&own)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("events.out."))
        {
            fs::remove_file(old.path())?;
        }
        fs::rename(own.join("events.new"), own.join(format!("events.out.tfevents.{}.empathd", begun_ms / 1000)))?;
        fs::rename(own.join("curves.jsonl.new"), own.join("curves.jsonl"))?;
        Ok(curves)
    }

    /// Draws a point.
    pub(crate) fn draw(&mut self, point: CurvePoint, at_ms: u64) -> io::Result<()> {
        let is_between = matches!(&point, CurvePoint::Step(step) if !step.step.is_multiple_of(self.stride));
        if is_between { Ok(()) } else { self.write(&Line { at_ms, point }) }
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let values = match &line.point {
            CurvePoint::Step(step) => scalars_of_step(step),
            CurvePoint::Validation(validation) => scalars_of_validation(validation),
        };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.lines.write_all(&text)?;
        self.events.write_all(&events::scalars(line.at_ms, step_of(&line.point), &values))
    }
}

fn scalars_of_step(step: &StepPoint) -> Vec<(String, f32)> {
    let mut values = vec![
        ("loss/train".to_owned(), step.loss),
        ("gradient/norm".to_owned(), step.grad_norm),
        ("rate/a".to_owned(), step.rate),
        ("speed/tok_s".to_owned(), step.tok_s),
    ];
    values.extend(step.parts.iter().map(|(name, loss)| (format!("loss/{name}"), *loss)));
    if !step.expert_load.is_empty() {
        values.push(("experts/entropy".to_owned(), step.routing_entropy));
        let load = step.expert_load.iter().enumerate();
        values.extend(load.map(|(expert, share)| (format!("experts/load_{expert}"), *share)));
    }
    values
}

fn scalars_of_validation(found: &ValidationPoint) -> Vec<(String, f32)> {
    let mut values = vec![("validation/macro".to_owned(), found.macro_loss as f32)];
    values.extend(found.by_domain.iter().map(|(domain, loss)| (format!("validation/{domain}"), *loss as f32)));
    let guards = [("guard/general", found.general), ("guard/crisis_items", found.crisis_items)];
    values.extend(guards.into_iter().filter_map(|(name, loss)| Some((name.to_owned(), loss? as f32))));
    values
}

/// The lines of a job that are whole; none where there is no file.
fn read_lines(folder: &Path, job: JobId) -> io::Result<Vec<Line>> {
    let file = match File::open(lines_of(folder, job)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    // As many steps, and at most a validation behind each.
    while lines.len() <= 2 * STEPS_MAX as usize {
        let mut text = Vec::new();
        if io::Read::take(&mut reader, LINE_BYTES_MAX).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        // A line that a power cut left half is drawn again.
        lines.extend(serde_json::from_slice::<Line>(&text).ok());
    }
    Ok(lines)
}

/// The points of a job.
pub(crate) fn read(folder: &Path, job: JobId) -> io::Result<Vec<CurvePoint>> {
    Ok(read_lines(folder, job)?.into_iter().map(|line| line.point).collect())
}

/// Removes the curves of all other jobs.
pub(crate) fn sweep(folder: &Path, keep: &[JobId]) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let names: Vec<String> = keep.iter().map(ToString::to_string).collect();
    for entry in entries.flatten().filter(|entry| !names.iter().any(|name| entry.file_name() == **name)) {
        fs::remove_dir_all(entry.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId::from_bytes([7; 16]);

    fn step(step: u32) -> CurvePoint {
        let parts = [("base_kl".to_owned(), 0.5)].into();
        let point = StepPoint {
            step,
            loss: 2.0 - step as f32 / 64.0,
            parts,
            expert_load: vec![0.25, 0.75],
            ..StepPoint::default()
        };
        CurvePoint::Step(point)
    }

    fn validation(step: u32) -> CurvePoint {
        let by_domain = [("crisis".to_owned(), 1.25)].into();
        CurvePoint::Validation(ValidationPoint {
            step,
            by_domain,
            macro_loss: 1.25,
            general: Some(3.0),
            ..ValidationPoint::default()
        })
    }

    fn events(folder: &Path) -> Vec<events::tests::Read> {
        let own = fs::read_dir(folder.join(JOB.to_string())).expect("a folder");
        let files: Vec<PathBuf> = own.flatten().map(|entry| entry.path()).collect();
        let events: Vec<&PathBuf> = files.iter().filter(|path| path.to_string_lossy().contains("tfevents")).collect();
        assert_eq!((files.len(), events.len()), (2, 1), "{files:?}");
        events::tests::read(&fs::read(events[0]).expect("read"))
    }

    fn draw(folder: &Path, goes_on: Option<u32>, points: &[CurvePoint]) {
        let mut curves = Curves::open(folder, JOB, goes_on, 100, 5_000).expect("opened");
        points.iter().for_each(|point| curves.draw(point.clone(), 6_000).expect("drawn"));
    }

    #[test]
    fn curves_of_an_interrupted_job_are_those_of_one_that_was_not() {
        let (whole, cut) = (tempfile::tempdir().expect("scratch"), tempfile::tempdir().expect("scratch"));
        let all = [step(1), step(2), validation(2), step(3), step(4), validation(4)];
        draw(whole.path(), None, &all);
        draw(cut.path(), None, &all[..5]);
        let lines = lines_of(cut.path(), JOB);
        let half = [fs::read(&lines).expect("read"), b"{\"at_ms\":6000,\"po".to_vec()].concat();
        fs::write(&lines, half).expect("written");
        draw(cut.path(), Some(2), &all[3..]);
        assert_eq!(read(cut.path(), JOB).expect("read"), all);
        assert_eq!(events(cut.path())[1..], events(whole.path())[1..]);
        let last = events(whole.path()).pop().expect("events");
        assert_eq!((last.step, last.seconds), (4, 6.0));
        assert_eq!(last.values[0], ("validation/macro".to_owned(), 1.25));
        draw(cut.path(), None, &all[..1]);
        assert_eq!(read(cut.path(), JOB).expect("read"), &all[..1], "a job that begins anew has none");
    }

    #[test]
    fn files_are_bounded_and_go_with_their_job() {
        let folder = tempfile::tempdir().expect("scratch");
        let mut curves = Curves::open(folder.path(), JOB, None, 100_000, 0).expect("opened");
        (1..=30).for_each(|at| curves.draw(step(at), 0).expect("drawn"));
        assert_eq!(read(folder.path(), JOB).expect("read").len(), 5, "every sixth");
        sweep(folder.path(), &[JOB]).expect("swept");
        assert_eq!(read(folder.path(), JOB).expect("read").len(), 5);
        sweep(folder.path(), &[]).expect("swept");
        assert!(read(folder.path(), JOB).expect("read").is_empty());
        assert!(sweep(&folder.path().join("none"), &[]).is_ok());
    }
}

//! A public LoRA becomes one more expert of a mixture, and a job that teaches the routers when to ask it. It answers only
//! after its gate, as any generation. What the files of a LoRA hold is not known here: the engine reads them.

use super::course::{self, Lesson};
use super::job_doc::{Beginning, JobDoc};
use super::train::{check, first_state, run_if_due, spec};
use crate::adapters::ensure;
use crate::admin::upload::Upload;
use crate::app::{Acted, App};
use crate::engine::link::{Event, Lost, head_of};
use crate::engine::{self, Ready};
use crate::problem::{Fault, defect};
use empathd_proto::admin::{AdminReply, ImportOptions, TrainOptions};
use empathd_proto::audit::AuditObject;
use empathd_proto::engine::{FromEngineBody, MixtureSpec, PeftFile, Stages, ToEngineBody, TrainOnly, TrainSpec};
use empathd_proto::ids::{AdapterId, JobId};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_store::AuditDraft;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Steps that routers get unless something else is asked for (after PHATGOOSE, Muqeeth et al. 2024: a hundred and more).
const ROUTER_STEPS: u32 = 100;
/// Events of an import that may wait.
const WAITING_MAX: usize = 4;

/// The two files of a LoRA.
struct Files {
    config: Vec<u8>,
    weights: Vec<u8>,
}

/// A mixture that has the LoRA as its last expert.
struct Imported {
    bytes: Vec<u8>,
    mixture: MixtureSpec,
    onto: Option<AdapterId>,
    sha256: [u8; 32],
}

/// Has the engine make the mixture, and begins the job that trains its routers.
pub(crate) async fn start(
    app: &Arc<App>,
    options: ImportOptions,
    upload: Upload,
    draft: AuditDraft,
) -> Result<Acted, Problem> {
    check(&options.train, app.clock.now_ms())?;
    let ready = app.engine.ready()?;
    let place = app.training.take(JobId::from_bytes(app.random()))?;
    let id = place.job;
    // However this ends, the place is given back.
    let ended = place.ended.clone().drop_guard();
    let files = split(upload.collect().await?, options.config_bytes)?;
    let imported = import(app, &ready, &options, files).await?;
    let train = options.train;
    let (job, lesson) = app.blocking(move |app| prepare(app, id, &train, imported, draft)).await?;
    Ok(Acted::recorded(AdminReply::Train(run_if_due(app, place, ended, job, lesson))))
}

/// The upload is the configuration, then the weights.
fn split(mut bytes: Vec<u8>, config_bytes: u64) -> Result<Files, Problem> {
    match usize::try_from(config_bytes) {
        Ok(at) if at < bytes.len() => {
            let weights = bytes.split_off(at);
            Ok(Files { config: bytes, weights })
        }
        _ => {
            let next = "Give a folder with adapter_config.json and adapter_model.safetensors.";
            Err(Problem::new(ErrorCode::BadRequest, "The upload does not hold two files.", next))
        }
    }
}

async fn import(app: &Arc<App>, ready: &Ready, options: &ImportOptions, files: Files) -> Result<Imported, Problem> {
    let onto = if options.alone { None } else { app.adapters.active() };
    if let Some(onto) = onto {
        ensure(app, ready, onto).await?;
    }
    let lost = |_: Lost| engine::lost();
    let (domain, attention_to_shared) = (options.domain, options.attention_to_shared);
    let asked = ToEngineBody::Import { onto, domain, attention_to_shared };
    let mut work = ready.link.begin(asked, WAITING_MAX).await.map_err(lost)?;
    for (file, bytes) in [(PeftFile::Config, &files.config), (PeftFile::Weights, &files.weights)] {
        work.send(ToEngineBody::ImportFile { file, blob: head_of(bytes) }).await.map_err(lost)?;
        work.send_chunks(bytes).await.map_err(lost)?;
    }
    work.send(ToEngineBody::Go).await.map_err(lost)?;
    let mut mixture_bytes = None;
    loop {
        match work.next().await.map_err(lost)? {
            Event::Adapter { bytes, .. } => mixture_bytes = Some(bytes),
            Event::Said(FromEngineBody::Imported(mixture)) => {
                let bytes = mixture_bytes.ok_or_else(|| defect("The engine sent no mixture."))?;
                return Ok(Imported { bytes, mixture, onto, sha256: Sha256::digest(&files.weights).into() });
            }
            Event::Said(FromEngineBody::Failed(failure)) => return Err(engine::failed(&failure)),
            _ => return Err(defect("The engine answered out of turn.")),
        }
    }
}

/// The job, kept in the store with what it begins with.
fn prepare(
    app: &App,
    id: JobId,
    options: &TrainOptions,
    imported: Imported,
    draft: AuditDraft,
) -> Result<(JobDoc, Lesson), Problem> {
    let store = app.vault.unsealed()?;
    let cut = course::cut(&store, options.dataset)?;
    let training = &app.config.training;
    let mut lesson = Lesson::read(&store, &cut, training.seq_len, training.validation_examples_max)?;
    let Imported { bytes, mixture, onto, sha256 } = imported;
    let spec = routers_only(spec(app, id, options, Vec::new()), mixture, options.steps);
    let mut job = JobDoc { state: first_state(app), ..JobDoc::fresh(draft.at_ms, cut.id(), spec, options.promote) };
    lesson.guard(job.id);
    let draft = AuditDraft { object: AuditObject::Job(id), ..draft };
    let job = store.change(draft, |writer, _| -> Result<_, Fault> {
        job.beginning = Some(Beginning { blob: writer.put_blob(&bytes)?, onto, imported_sha256: sha256 });
        job.put(writer)?;
        Ok(job)
    })?;
    Ok((job, lesson))
}

/// As configured, but only routers move, and from the first step on: labels show them the way, ever less.
fn routers_only(spec: TrainSpec, mixture: MixtureSpec, steps: Option<u32>) -> TrainSpec {
    TrainSpec {
        mixture,
        only: TrainOnly::Routers,
        steps: steps.unwrap_or(ROUTER_STEPS),
        stages: Stages { shared_until: 0.0, forced_until: 0.0 },
        ..spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::fixture::{Fixture, Played, ROOT};
    use crate::jobs::course::tests::{admin, judge, prepare, trained, until};
    use empathd_proto::engine::EngineFailure;
    use empathd_proto::report::JobState;

    fn options(alone: bool) -> ImportOptions {
        let train =
            TrainOptions { dataset: None, steps: Some(4), minutes: None, seed: 1, promote: false, until_ms: None };
        ImportOptions { domain: None, alone, attention_to_shared: false, config_bytes: 2, weights_bytes: 7, train }
    }

    async fn action(options: ImportOptions) -> Action {
        let (chunks, upload) = Upload::new(9, u64::MAX);
        chunks.send(b"{}weights".to_vec()).await.expect("taken");
        Action::AdapterImport { options, upload }
    }

    /// Hears the two files; the tag of the work.
    async fn files(engine: &mut Played) -> u64 {
        let (mut tag, mut found) = (0, Vec::new());
        loop {
            match engine.hear().await {
                (asked, ToEngineBody::Import { onto: None, .. }) => tag = asked,
                (of, ToEngineBody::Chunk(bytes)) if of == tag => found.push(bytes),
                (of, ToEngineBody::Go) if of == tag => break,
                (_, ToEngineBody::ImportFile { .. }) => {}
                (_, other) => panic!("{other:?}"),
            }
        }
        assert_eq!(found, [b"{}".to_vec(), b"weights".to_vec()]);
        tag
    }

    #[tokio::test]
    async fn a_lora_becomes_an_expert_whose_routers_are_trained_and_judged() {
        let mut fixture = Fixture::unsealed("").await;
        let app = fixture.app.clone();
        prepare(&app).await;
        let mut engine = fixture.connect().await;
        let starting = {
            let app = app.clone();
            tokio::spawn(async move { admin(&app, action(options(false)).await).await })
        };
        let tag = files(&mut engine).await;
        let bytes = b"a mixture with one expert".to_vec();
        let mixture = MixtureSpec { experts: vec![None], expert_rank: 4, top_k: 1, ..MixtureSpec::default() };
        engine.say(tag, FromEngineBody::Adapter { blob: head_of(&bytes) }).await;
        engine.say(tag, FromEngineBody::Chunk(bytes.clone())).await;
        engine.say(tag, FromEngineBody::Imported(mixture.clone())).await;
        let AdminReply::Train(status) = starting.await.expect("no panic") else { panic!("a job") };
        assert_eq!(status.state, JobState::Running);
        let (mut begins_with, mut asked) = (Vec::new(), None);
        let tag = loop {
            match engine.hear().await {
                (_, ToEngineBody::Train(spec)) => asked = Some(spec),
                (_, ToEngineBody::Chunk(chunk)) => begins_with.extend(chunk),
                (_, ToEngineBody::Resume { .. }) => panic!("there is no checkpoint"),
                (tag, ToEngineBody::Go) => break tag,
                _ => {}
            }
        };
        let asked = asked.expect("a job");
        assert_eq!((asked.only, asked.steps, asked.mixture), (TrainOnly::Routers, 4, mixture));
        assert_eq!(begins_with, bytes);
        trained(&mut engine, tag).await;
        let judging = tokio::spawn(judge(engine, 1.5));
        let done = until(&app, JobState::Finished).await;
        let store = app.vault.unsealed().expect("unsealed");
        let found = store.read(|reader| reader.adapter(done.adapter.expect("an adapter"))).expect("read");
        let described: crate::adapters::Description = crate::stored::decode(&found.expect("there").body).expect("read");
        let lineage = described.lineage.expect("known");
        assert_eq!(lineage.imported_sha256, Some(Sha256::digest(b"weights").into()));
        assert_eq!(std::fs::read_dir(fixture.folder.path().join("blobs")).expect("blobs").count(), 1, "its own only");
        judging.abort();
    }

    #[tokio::test]
    async fn what_the_engine_refuses_leaves_nothing_behind() {
        let mut fixture = Fixture::unsealed("").await;
        let app = fixture.app.clone();
        prepare(&app).await;
        let mut engine = fixture.connect().await;
        let starting = {
            let app = app.clone();
            tokio::spawn(async move { app.perform(&ROOT, action(options(true)).await).await })
        };
        let tag = files(&mut engine).await;
        engine.say(tag, FromEngineBody::Failed(EngineFailure::BadAdapter("it has DoRA".to_owned()))).await;
        let problem = starting.await.expect("no panic").expect_err("refused");
        assert!(problem.detail.contains("DoRA"), "{problem:?}");
        assert!(super::super::job_doc::all(&app.vault.unsealed().expect("unsealed")).expect("read").is_empty());
        let short = ImportOptions { config_bytes: 9, ..options(true) };
        assert_eq!(app.perform(&ROOT, action(short).await).await.expect_err("refused").code, ErrorCode::BadRequest);
    }
}

//! `adapter import`: the two files of a public LoRA go to the daemon, and the job that trains its routers is watched. What
//! the files hold is not looked at here.

use super::train::{ended, expect, watch};
use crate::cli::ImportArgs;
use crate::error::CtlError;
use crate::session::Session;
use empathd_proto::admin::{AdminRequest, ImportOptions, TrainOptions};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The two files, as PEFT names them.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

pub(super) fn run(session: &mut Session<'_>, args: &ImportArgs) -> Result<(), CtlError> {
    let (config, config_bytes) = open(&args.dir, CONFIG)?;
    let (weights, weights_bytes) = open(&args.dir, WEIGHTS)?;
    let ImportArgs { steps, dataset, seed, promote, .. } = *args;
    let options = ImportOptions {
        domain: args.domain,
        alone: args.alone,
        attention_to_shared: args.attention_to_shared,
        config_bytes,
        weights_bytes,
        train: TrainOptions { dataset, steps, minutes: None, seed, promote, until_ms: None },
    };
    let bytes = config_bytes + weights_bytes;
    let bar = session.bars.bytes(bytes);
    let reply = session.client.upload(
        AdminRequest::AdapterImport(options),
        &mut config.take(config_bytes).chain(weights),
        bytes,
        &mut |sent| bar.set_position(sent),
        &mut |_| (),
    );
    bar.finish_and_clear();
    let status = expect(reply?)?;
    let status = if args.follow { watch(session, Some(status.job))? } else { status };
    ended(session, &status)
}

fn open(dir: &Path, name: &str) -> Result<(File, u64), CtlError> {
    let path = dir.join(name);
    let failed = |source| CtlError::File { doing: "read", path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use crate::commands::fake::Fake;
    use crate::commands::tests::run;
    use empathd_proto::admin::{AdminReply, AdminRequest, ToDaemon};
    use empathd_proto::record::Domain;
    use empathd_proto::report::{JobState, TrainStatus};
    use empathd_proto::{DatasetId, JobId};

    #[test]
    fn both_files_go_out_in_their_order_and_the_job_is_shown() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(super::CONFIG), b"{}").expect("written");
        std::fs::write(folder.path().join(super::WEIGHTS), b"weights").expect("written");
        let fake = Fake::replying(AdminReply::Train(TrainStatus {
            job: JobId::from_bytes([2; 16]),
            state: JobState::Running,
            dataset: DatasetId::from_bytes([3; 16]),
            progress: None,
            adapter: None,
            error: None,
        }));
        let dir = folder.path().display().to_string();
        let ran = run(&fake, &["adapter", "import", &dir, "--domain", "crisis", "--promote"]);
        assert!(ran.exit == 0 && ran.out.contains("job_0202") && ran.out.contains("running"), "{}", ran.out);
        let heard = fake.received();
        let ToDaemon::Request(AdminRequest::AdapterImport(options)) = &heard[0] else { panic!("an import") };
        assert_eq!((options.config_bytes, options.weights_bytes), (2, 7));
        assert_eq!((options.domain, options.train.promote, options.alone), (Some(Domain::Crisis), true, false));
        let chunk = |message: &ToDaemon| if let ToDaemon::Chunk(chunk) = message { chunk.clone() } else { Vec::new() };
        assert_eq!(heard.iter().flat_map(chunk).collect::<Vec<u8>>(), b"{}weights");
    }

    #[test]
    fn a_folder_without_a_lora_is_refused_before_anything_is_asked() {
        let folder = tempfile::tempdir().expect("folder");
        let fake = Fake::replies([]);
        let ran = run(&fake, &["adapter", "import", &folder.path().display().to_string()]);
        assert!(ran.exit != 0 && ran.notes.contains("adapter_config.json"), "{}", ran.notes);
    }
}

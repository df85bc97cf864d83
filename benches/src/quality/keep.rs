//! What was finished, in a folder beside the figures: the plan that all runs share, one file for each outcome, a checkpoint
//! of what is under way. It knows no training.

use super::run::Outcome;
use anyhow::Context;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// What all runs share.
pub(super) struct Plan {
    /// Everything that decides about them.
    pub(super) settings: Value,
    /// Tokens of each.
    pub(super) tokens: u64,
}

/// The folder.
pub(super) struct Keep {
    folder: PathBuf,
}

impl Keep {
    /// `FILE.runs`, made if it is not there.
    pub(super) fn open(json: &Path) -> anyhow::Result<Self> {
        let mut name = json.as_os_str().to_owned();
        name.push(".runs");
        let folder = PathBuf::from(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a run under way leaves its state.
    pub(super) fn checkpoint(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.checkpoint"))
    }

    /// The plan of the runs that are there.
    pub(super) fn plan(&self) -> anyhow::Result<Option<Plan>> {
        let Some(value) = read(&self.folder.join("plan.json"))? else { return Ok(None) };
        let tokens = value["tokens"].as_u64().context("the kept plan is damaged; remove it")?;
        Ok(Some(Plan { settings: value["settings"].clone(), tokens }))
    }

    /// Keeps a plan.
    pub(super) fn begin(&self, plan: Plan) -> anyhow::Result<Plan> {
        let value = json!({"settings": plan.settings, "tokens": plan.tokens});
        write(&self.folder.join("plan.json"), serde_json::to_string_pretty(&value)?.as_bytes())?;
        Ok(plan)
    }

    /// The kept outcome of this name, or what `make` makes, kept from now on; none while it is not finished.
    pub(super) fn outcome(
        &self,
        name: &str,
        make: impl FnOnce() -> anyhow::Result<Option<Outcome>>,
    ) -> anyhow::Result<Option<Outcome>> {
        let path = self.folder.join(format!("{name}.json"));
        if let Some(value) = read(&path)? {
            let outcome = Outcome::from_json(&value);
            return outcome.map(Some).with_context(|| format!("{} is damaged; remove it", path.display()));
        }
        let outcome = make()?;
        if let Some(outcome) = &outcome {
            write(&path, serde_json::to_string_pretty(&outcome.to_json())?.as_bytes())?;
            drop(fs::remove_file(self.checkpoint(name)));
        }
        Ok(outcome)
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Value>> {
    match fs::read(path) {
        Ok(bytes) => {
            Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The whole file or none.
pub(super) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

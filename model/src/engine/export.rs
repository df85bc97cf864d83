//! An adapter in memory leaves as files of public formats, one announced thing after the other. Refuses to know formats.

use super::works::{Gone, Works};
use crate::adapter::AdapterError;
use crate::adapter::export::{Facts, export};
use crate::infer::Model;
use crate::infer::compute::ServingAdapter;
use crate::schedule::Cancel;
use empathd_proto::engine::{EngineFailure, FromEngineBody};
use std::sync::Arc;

/// A job with everything it needs.
pub(super) struct Export {
    pub(super) tag: u64,
    pub(super) cancel: Cancel,
    pub(super) model: Arc<Model>,
    pub(super) adapter: Arc<ServingAdapter>,
    pub(super) base_name: String,
}

/// Why not every file was sent.
enum Stopped {
    Cancelled,
    /// Nobody is there to be told.
    Gone,
    Adapter(AdapterError),
}

impl From<AdapterError> for Stopped {
    fn from(error: AdapterError) -> Self {
        Self::Adapter(error)
    }
}

impl From<Gone> for Stopped {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl Export {
    /// Sends every file, then how many they were.
    pub(super) fn run(self, works: &Works) -> Result<(), EngineFailure> {
        let facts = Facts { base_name: &self.base_name, base_sha256: self.model.facts.sha256 };
        let mut send = |path: &str, bytes: Vec<u8>| {
            if self.cancel.is_set() {
                return Err(Stopped::Cancelled);
            }
            let path = path.to_owned();
            Ok(works.say_blob(self.tag, &bytes, |blob| FromEngineBody::File { path, blob })?)
        };
        match export(&self.adapter.mixture, self.model.config(), facts, &mut send) {
            Ok(files) => works.say(self.tag, FromEngineBody::Exported { files }).or(Ok(())),
            Err(Stopped::Cancelled) => Err(EngineFailure::Cancelled),
            Err(Stopped::Gone) => Ok(()),
            Err(Stopped::Adapter(error)) => Err(EngineFailure::BadAdapter(error.to_string())),
        }
    }
}

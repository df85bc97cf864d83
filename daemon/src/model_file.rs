//! A model's file: where it is and which digest it must have. What is in it only the engine knows.

use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// File name of the reference model.
pub const REFERENCE_NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// SHA-256 of the reference model.
pub const REFERENCE_SHA256: [u8; 32] = [
    0xb1, 0x79, 0xc9, 0x52, 0x3d, 0x0e, 0x6a, 0x0f, 0x98, 0xa3, 0x30, 0xc7, 0x56, 0x2b, 0x68, 0x27, 0x50, 0xa6, 0xf8,
    0xc8, 0xc1, 0x5e, 0x5b, 0xc7, 0x0e, 0xa3, 0x73, 0x72, 0x81, 0x10, 0xdb, 0x53,
];
const READ_BYTES: usize = 1024 * 1024;

/// Why there is no base model to load.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    /// None of the folders has it.
    #[error("no model {name} in {folders}: put the file there, or set engine.models and {key}")]
    Missing {
        /// The setting that names it.
        key: &'static str,
        /// The file's name.
        name: String,
        /// Where it was looked for.
        folders: String,
    },
    /// It is there and cannot be read.
    #[error("the model {0} cannot be read: {1}")]
    Unreadable(PathBuf, std::io::Error),
}

/// Where to look for a model.
#[derive(Debug, Clone)]
pub struct ModelFile {
    key: &'static str,
    name: PathBuf,
    folders: Vec<PathBuf>,
    pinned: Option<[u8; 32]>,
    computed: Arc<OnceLock<[u8; 32]>>,
}

impl ModelFile {
    /// The setting that names it; a file name, or an absolute path; the folders in which it is looked for, in order; the digest it must have, when
    /// the configuration names one.
    #[must_use]
    pub fn new(key: &'static str, name: PathBuf, folders: Vec<PathBuf>, pinned: Option<[u8; 32]>) -> Self {
        Self { key, name, folders, pinned, computed: Arc::default() }
    }

    /// The file, and the SHA-256 it must have: the configured one, the known one of the reference model, or, for a file
    /// that nobody vouches for, the one it had when it was first looked at.
    ///
    /// # Errors
    /// [`ModelFileError`].
    pub async fn locate(&self) -> Result<(PathBuf, [u8; 32]), ModelFileError> {
        let path = self.find()?;
        if let Some(sha256) = self.vouched() {
            return Ok((path, sha256));
        }
        if let Some(sha256) = self.computed.get() {
            return Ok((path, *sha256));
        }
        let file = path.clone();
        let hashed = tokio::task::spawn_blocking(move || sha256_of(&file)).await;
        let sha256 = hashed
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| ModelFileError::Unreadable(path.clone(), error))?;
        Ok((path, *self.computed.get_or_init(|| sha256)))
    }

    fn vouched(&self) -> Option<[u8; 32]> {
        let is_reference = self.name.file_name().is_some_and(|name| name == REFERENCE_NAME);
        self.pinned.or(is_reference.then_some(REFERENCE_SHA256))
    }

    fn find(&self) -> Result<PathBuf, ModelFileError> {
        // Joining an absolute path gives that path, so a full path needs no folder.
        let mut places = self.folders.iter().map(|folder| folder.join(&self.name));
        places.find(|path| path.is_file()).ok_or_else(|| {
            let folders: Vec<_> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
            ModelFileError::Missing {
                key: self.key,
                name: self.name.display().to_string(),
                folders: folders.join(", "),
            }
        })
    }
}

fn sha256_of(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; READ_BYTES];
    loop {
        let bytes = file.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..bytes]);
    }
}

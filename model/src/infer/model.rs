//! A base model ready to answer: weights, tokenizer and template of one file, which is the file it should be. Refuses
//! to know where files are found.

use crate::backbone::Backbone;
use crate::gguf::{self, GgufError, GgufFile};
use crate::template::{ChatFormat, TemplateError};
use candle_core::Device;
use empathd_proto::engine::BaseModel;
use std::path::Path;

/// Why a base model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file is unusable.
    #[error(transparent)]
    File(#[from] GgufError),
    /// It is another file.
    #[error("its SHA-256 is not the expected one; fetch the file again")]
    Digest,
    /// Its template is unusable.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// It has more tokens than rows in its embedding.
    #[error("its tokenizer has more tokens than its embedding has rows; the file is damaged")]
    Vocabulary,
    /// The weights cannot be taken into memory.
    #[error("its weights cannot be loaded: {0}")]
    Weights(candle_core::Error),
}

/// A base model in memory.
pub struct Model {
    /// Frozen weights.
    pub backbone: Backbone,
    /// Tokenizer and template.
    pub format: ChatFormat,
    /// What others are told about it.
    pub facts: BaseModel,
}

impl Model {
    /// Loads the file at `path`, whose SHA-256 must be `sha256`, onto `device`.
    ///
    /// # Errors
    /// See [`ModelError`]. Nothing of a file with another digest is used.
    pub fn open(path: &Path, sha256: [u8; 32], device: &Device) -> Result<Self, ModelError> {
        let file = gguf::open(path)?;
        if file.sha256()? != sha256 {
            return Err(ModelError::Digest);
        }
        let config = file.config()?;
        let tokenizer = file.tokenizer()?;
        if tokenizer.len() > config.vocab {
            return Err(ModelError::Vocabulary);
        }
        let facts = BaseModel {
            name: file.name(),
            architecture: config.architecture.as_str().to_owned(),
            parameters: file.parameters(),
            context: u32::try_from(config.context).unwrap_or(u32::MAX),
            sha256,
        };
        let format = ChatFormat::new(tokenizer, file.chat_template())?;
        Ok(Self { backbone: load(&file, device)?, format, facts })
    }
}

/// The weights, with the file's own error when it is at fault.
fn load(file: &GgufFile, device: &Device) -> Result<Backbone, ModelError> {
    let mut fault = None;
    let backbone = Backbone::new(
        file.config()?,
        &mut |name, shape| match file.tensor(name, shape) {
            Ok(tensor) => tensor.to_device(device),
            Err(error) => {
                let words = error.to_string();
                fault = Some(error);
                Err(candle_core::Error::Msg(words))
            }
        },
        device,
    );
    backbone.map_err(|error| fault.map_or(ModelError::Weights(error), ModelError::File))
}

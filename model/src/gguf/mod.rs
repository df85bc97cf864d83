//! Model files in GGUF: opens one, says what it holds, and gives its tensors by their Hugging Face names as f32. A file
//! is untrusted until its SHA-256 was compared by the caller: nothing in it can make this module panic or allocate more
//! than the file is large. Refuses to know how a model computes and where files are kept.

mod header;
pub(crate) mod names;

pub use header::{Extent, Header, MAX_ARRAY, MAX_HEADER_BYTES, MAX_PAIRS, MAX_STRING_BYTES, MAX_TENSORS, Value};

use crate::config::{Architecture, BackboneConfig, ConfigError, RopeScaling};
use crate::kernels::WeightFormat;
use crate::tokenizer::{Tokenizer, TokenizerError, TokenizerSource};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use names::{Place, RopeRows};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Most layers of a model.
pub const MAX_LAYERS: usize = 512;
/// Widest layer, largest vocabulary and longest context: a bound against nonsense, far above every known model.
pub const MAX_WIDTH: usize = 1 << 22;
/// Characters of a name from the file that an error may show.
const SHOWN_CHARS: usize = 48;
/// What divides the rotary rates, in files converted from Llama 3.
const ROPE_FREQS: &str = "rope_freqs.weight";
/// Rows unpacked at a time where a tensor is given row by row.
const ROWS_UNPACKED: usize = 64;
/// Bytes read at once for the digest.
const DIGEST_BYTES: usize = 1 << 20;

/// Why a file cannot be used as a model.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be read.
    #[error("the file cannot be read ({0}); check that it exists and that the engine may read it")]
    Io(std::io::ErrorKind),
    /// It begins with something else.
    #[error("the file is not a GGUF file; give the path of a .gguf model")]
    NotGguf,
    /// A version this release does not read.
    #[error("GGUF version {0} is not supported; convert the model to version 3")]
    Version(u32),
    /// It ends too early, or its header points past its end.
    #[error("the file is truncated; fetch it again and compare its SHA-256")]
    Truncated,
    /// A count or length above its bound.
    #[error("the file has {value} {what}, the limit is {limit}; it is damaged or hostile")]
    Bound {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        value: u64,
        /// How many there may be.
        limit: u64,
    },
    /// Something that no writer of GGUF produces.
    #[error("the file is malformed ({0}); fetch it again and compare its SHA-256")]
    Malformed(&'static str),
    /// A key that a model needs is missing, or its value has the wrong type or range.
    #[error("the file's key {0} is missing or unusable; it is not a complete model")]
    Key(String),
    /// An architecture this release does not compute.
    #[error("the architecture {0} is not supported; use a model of the architecture llama")]
    Architecture(String),
    /// Scaling of rotary positions that this release does not compute.
    #[error("the rotary scaling {0} is not supported; use a model without it")]
    RopeScaling(String),
    /// The metadata contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor is missing.
    #[error("the file has no tensor {0}; it is not a complete model")]
    NoTensor(String),
    /// A tensor is packed in a way this release does not read.
    #[error("tensor {name} is packed as type {code}; supported are F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K and Q6_K")]
    TensorKind {
        /// Its name.
        name: String,
        /// The code of its type.
        code: u32,
    },
    /// A tensor has another shape than the metadata says.
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// As found.
        found: Vec<usize>,
        /// As the metadata says.
        expected: Vec<usize>,
    },
    /// Its tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tensor library failed.
    #[error("a tensor cannot be unpacked: {0}")]
    Unpack(#[from] candle_core::Error),
}

impl GgufError {
    fn read(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Truncated,
            kind => Self::Io(kind),
        }
    }
}

/// A text from the file as an error may show it: short and without control characters.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect()
}

/// In which order a file keeps the rows of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowOrder {
    /// Half the rows of a head, when the two rows of a rotation lie side by side in the file.
    half: Option<usize>,
}

impl RowOrder {
    /// The row of the file that is row `row` of the tensor.
    #[must_use]
    pub const fn source(self, row: usize) -> usize {
        match self.half {
            None => row,
            Some(half) => row / (2 * half) * 2 * half + row % half * 2 + row % (2 * half) / half,
        }
    }
}

/// The kernels' name of candle's.
fn weight_format(dtype: GgmlDType) -> Result<WeightFormat, GgufError> {
    Ok(match dtype {
        GgmlDType::F32 => WeightFormat::F32,
        GgmlDType::F16 => WeightFormat::F16,
        GgmlDType::BF16 => WeightFormat::Bf16,
        GgmlDType::Q4_0 => WeightFormat::Q4_0,
        GgmlDType::Q4_1 => WeightFormat::Q4_1,
        GgmlDType::Q8_0 => WeightFormat::Q8_0,
        GgmlDType::Q4K => WeightFormat::Q4K,
        GgmlDType::Q6K => WeightFormat::Q6K,
        other => return Err(GgufError::Unpack(candle_core::Error::Msg(format!("{other:?} has no layout")))),
    })
}

/// An open model file whose header was read and checked.
#[derive(Debug)]
pub struct GgufFile {
    file: File,
    header: Header,
}

/// Opens a model file and reads its header.
///
/// # Errors
/// [`GgufError`] for a file that is missing, truncated, hostile or not GGUF.
pub fn open(path: &Path) -> Result<GgufFile, GgufError> {
    let file = File::open(path).map_err(GgufError::read)?;
    let metadata = file.metadata().map_err(GgufError::read)?;
    if !metadata.is_file() {
        return Err(GgufError::NotGguf);
    }
    let header = header::read(BufReader::new(&file), metadata.len())?;
    Ok(GgufFile { file, header })
}

impl GgufFile {
    /// SHA-256 of the whole file.
    ///
    /// # Errors
    /// [`GgufError::Io`].
    pub fn sha256(&self) -> Result<[u8; 32], GgufError> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; DIGEST_BYTES];
        let mut offset = 0;
        loop {
            let count = self.file.read_at(&mut buffer, offset).map_err(GgufError::read)?;
            if count == 0 {
                return Ok(hash.finalize().into());
            }
            hash.update(&buffer[..count]);
            offset += count as u64;
        }
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The model's name, or an empty text.
    #[must_use]
    pub fn name(&self) -> String {
        self.text("general.name").map(shown).unwrap_or_default()
    }

    /// Number of parameters in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.header.tensors.values().map(|extent| extent.dims.iter().product::<usize>() as u64).sum()
    }

    /// The chat template, when the file has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    /// Shape and constants of the model.
    ///
    /// # Errors
    /// [`GgufError::Architecture`], [`GgufError::Key`] or [`GgufError::NoTensor`].
    pub fn config(&self) -> Result<BackboneConfig, GgufError> {
        match self.text("general.architecture") {
            Some("llama") => self.llama(),
            Some(other) => Err(GgufError::Architecture(shown(other))),
            None => Err(GgufError::Key("general.architecture".to_owned())),
        }
    }

    fn llama(&self) -> Result<BackboneConfig, GgufError> {
        let hidden = self.size("llama.embedding_length", MAX_WIDTH)?;
        let heads = self.size("llama.attention.head_count", hidden)?;
        let kv_heads = self.size_or("llama.attention.head_count_kv", heads, heads)?;
        let head_dim = self.size_or("llama.attention.key_length", MAX_WIDTH, hidden / heads)?;
        if self.size_or("llama.rope.dimension_count", MAX_WIDTH, head_dim)? != head_dim {
            return Err(GgufError::Key("llama.rope.dimension_count".to_owned()));
        }
        let config = BackboneConfig {
            architecture: Architecture::Llama,
            vocab: self.extent("token_embd.weight")?.dims[0],
            hidden,
            ffn: self.size("llama.feed_forward_length", MAX_WIDTH)?,
            layers: self.size("llama.block_count", MAX_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            context: self.size("llama.context_length", MAX_WIDTH)?,
            rms_eps: self.positive("llama.attention.layer_norm_rms_epsilon")?,
            rope_theta: self.positive_or("llama.rope.freq_base", 10_000.0)? as f32,
            rope_scaling: self.rope_scaling()?,
            tied_head: !self.header.tensors.contains_key("output.weight"),
        };
        config.check()?;
        Ok(config)
    }

    fn rope_scaling(&self) -> Result<RopeScaling, GgufError> {
        if let Some(extent) = self.header.tensors.get(ROPE_FREQS) {
            let by: Vec<f32> = self.unpack(extent)?.flatten_all()?.to_vec1()?;
            return Ok(RopeScaling::Divided(by.into()));
        }
        let factor = || self.positive("llama.rope.scaling.factor").map(|factor| factor as f32);
        match self.text("llama.rope.scaling.type") {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
            Some("yarn") => {
                let original_context = self.size("llama.rope.scaling.original_context_length", MAX_WIDTH)?;
                Ok(RopeScaling::Yarn { factor: factor()?, original_context })
            }
            Some(other) => Err(GgufError::RopeScaling(shown(other))),
        }
    }

    /// The tensor of this Hugging Face name as f32 on the CPU. llama.cpp stores the rows of q and k in another order
    /// (pairs side by side); they are put back, so that rotation by halves gives the published numbers.
    ///
    /// # Errors
    /// [`GgufError`] when it is missing, of another shape, or cannot be read.
    pub fn tensor(&self, hf_name: &str, shape: &[usize]) -> Result<Tensor, GgufError> {
        let (extent, heads) = self.place(hf_name, shape)?;
        let tensor = self.unpack(extent)?;
        match heads {
            None => Ok(tensor),
            Some(heads) => Ok(names::halves_from_pairs(&tensor, heads)?),
        }
    }

    /// Every row of the tensor of this Hugging Face name in turn, as f32: a vector is one row. No more than a few rows are
    /// unpacked at a time.
    ///
    /// # Errors
    /// As [`GgufFile::tensor`].
    pub fn rows(&self, hf_name: &str, shape: &[usize], take: &mut dyn FnMut(usize, &[f32])) -> Result<(), GgufError> {
        let (mut bytes, dtype) = (Vec::new(), self.place(hf_name, shape)?.0.dtype);
        let (format, order) = self.raw(hf_name, shape, &mut bytes)?;
        let (rows, width) = if let [rows, width] = *shape { (rows, width) } else { (1, shape.iter().product()) };
        let row_bytes = width / format.block_weights() * format.block_bytes();
        for start in (0..rows).step_by(ROWS_UNPACKED) {
            let some = start..rows.min(start + ROWS_UNPACKED);
            let of_row = |row: usize| bytes.get(order.source(row) * row_bytes..(order.source(row) + 1) * row_bytes);
            let packed: Option<Vec<&[u8]>> = some.clone().map(of_row).collect();
            let packed = packed.ok_or(GgufError::Truncated)?.concat();
            let storage = QStorage::from_data(Cow::Owned(packed), &Device::Cpu, dtype)?;
            let unpacked = QTensor::new(storage, (some.len(), width))?.dequantize(&Device::Cpu)?;
            let numbers: Vec<f32> = unpacked.flatten_all()?.to_vec1()?;
            some.zip(numbers.chunks_exact(width)).for_each(|(row, numbers)| take(row, numbers));
        }
        Ok(())
    }

    /// How the tensor of this Hugging Face name is packed.
    ///
    /// # Errors
    /// As [`GgufFile::tensor`].
    pub fn format(&self, hf_name: &str, shape: &[usize]) -> Result<WeightFormat, GgufError> {
        self.place(hf_name, shape).and_then(|(extent, _)| weight_format(extent.dtype))
    }

    /// The bytes of the tensor of this Hugging Face name as they lie in the file, into `bytes`; how they are packed, and
    /// from which row of the file each row of the tensor comes.
    ///
    /// # Errors
    /// As [`GgufFile::tensor`].
    pub fn raw(
        &self,
        hf_name: &str,
        shape: &[usize],
        bytes: &mut Vec<u8>,
    ) -> Result<(WeightFormat, RowOrder), GgufError> {
        let (extent, heads) = self.place(hf_name, shape)?;
        let format = weight_format(extent.dtype)?;
        bytes.resize(usize::try_from(extent.bytes).map_err(|_| GgufError::Truncated)?, 0);
        self.file.read_exact_at(bytes, extent.offset).map_err(GgufError::read)?;
        Ok((format, RowOrder { half: heads.map(|heads| shape[0] / heads / 2) }))
    }

    /// Where a tensor of this shape lies, and how many heads its rows are when pairs of a rotation lie side by side.
    fn place(&self, hf_name: &str, shape: &[usize]) -> Result<(&Extent, Option<usize>), GgufError> {
        let Place { name, rope } = names::place(hf_name).ok_or_else(|| GgufError::NoTensor(shown(hf_name)))?;
        let extent = self.extent(&name)?;
        if extent.dims != shape {
            return Err(GgufError::TensorShape { name, found: extent.dims.clone(), expected: shape.to_vec() });
        }
        let heads = match rope {
            RopeRows::No => None,
            RopeRows::Query => Some(self.config()?.heads),
            RopeRows::Key => Some(self.config()?.kv_heads),
        };
        Ok((extent, heads))
    }

    fn unpack(&self, extent: &Extent) -> Result<Tensor, GgufError> {
        let mut bytes = vec![0; usize::try_from(extent.bytes).map_err(|_| GgufError::Truncated)?];
        self.file.read_exact_at(&mut bytes, extent.offset).map_err(GgufError::read)?;
        let storage = QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, extent.dtype)?;
        Ok(QTensor::new(storage, extent.dims.as_slice())?.dequantize(&Device::Cpu)?)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`GgufError::Key`] or [`GgufError::Tokenizer`].
    pub fn tokenizer(&self) -> Result<Tokenizer, GgufError> {
        let key = |name: &str| GgufError::Key(format!("tokenizer.ggml.{name}"));
        let Some(Value::Texts(tokens)) = self.tokenizer_value("tokens") else { return Err(key("tokens")) };
        let Some(Value::Texts(merges)) = self.tokenizer_value("merges") else { return Err(key("merges")) };
        let Some(Value::Integers(kinds)) = self.tokenizer_value("token_type") else { return Err(key("token_type")) };
        let id = |name: &str| match self.tokenizer_value(name) {
            Some(Value::Integer(id)) => u32::try_from(*id).ok(),
            _ => None,
        };
        Ok(Tokenizer::new(&TokenizerSource {
            model: self.text("tokenizer.ggml.model").unwrap_or_default(),
            pre: self.text("tokenizer.ggml.pre").unwrap_or_default(),
            tokens,
            merges,
            kinds,
            ends: [id("eos_token_id"), id("eot_token_id"), id("eom_token_id")].into_iter().flatten().collect(),
        })?)
    }

    fn tokenizer_value(&self, name: &str) -> Option<&Value> {
        self.header.pairs.get(&format!("tokenizer.ggml.{name}"))
    }

    fn extent(&self, name: &str) -> Result<&Extent, GgufError> {
        self.header.tensors.get(name).ok_or_else(|| GgufError::NoTensor(shown(name)))
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.header.pairs.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A number in `1..=limit`.
    fn size(&self, key: &str, limit: usize) -> Result<usize, GgufError> {
        match self.header.pairs.get(key) {
            Some(Value::Integer(value)) => usize::try_from(*value).ok().filter(|value| (1..=limit).contains(value)),
            _ => None,
        }
        .ok_or_else(|| GgufError::Key(key.to_owned()))
    }

    fn size_or(&self, key: &str, limit: usize, default: usize) -> Result<usize, GgufError> {
        if self.header.pairs.contains_key(key) { self.size(key, limit) } else { Ok(default) }
    }

    fn positive(&self, key: &str) -> Result<f64, GgufError> {
        match self.header.pairs.get(key) {
            Some(Value::Float(value)) if value.is_finite() && *value > 0.0 => Ok(*value),
            _ => Err(GgufError::Key(key.to_owned())),
        }
    }

    fn positive_or(&self, key: &str, default: f64) -> Result<f64, GgufError> {
        if self.header.pairs.contains_key(key) { self.positive(key) } else { Ok(default) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static TINY: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("scratch");
        let path = folder.path().join("tiny.gguf");
        tiny::write_gguf(&path, 1).expect("written");
        std::fs::read(&path).expect("read")
    });

    /// Everything a loader does with a file.
    fn load(bytes: &[u8]) -> Result<(), GgufError> {
        let folder = tempfile::tempdir().expect("scratch");
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).expect("written");
        let file = open(&path)?;
        let config = file.config()?;
        file.tokenizer()?;
        file.tensor("model.embed_tokens.weight", &[config.vocab, config.hidden])?;
        file.tensor("model.layers.1.self_attn.k_proj.weight", &[config.kv_width(), config.hidden])?;
        file.tensor("model.layers.1.mlp.down_proj.weight", &[config.hidden, config.ffn])?;
        Ok(())
    }

    /// The tiny file with `word` replaced by another of the same length.
    fn with(word: &[u8], other: &[u8]) -> Vec<u8> {
        assert_eq!(word.len(), other.len());
        let mut bytes = TINY.clone();
        let at = bytes.windows(word.len()).position(|window| window == word).expect("there");
        bytes[at..at + word.len()].copy_from_slice(other);
        bytes
    }

    #[test]
    fn wrong_files_are_named() {
        assert!(load(&TINY).is_ok());
        assert!(matches!(open(Path::new("/no/such/file")), Err(GgufError::Io(std::io::ErrorKind::NotFound))));
        assert!(matches!(open(Path::new("/")), Err(GgufError::NotGguf)));
        assert!(matches!(load(b"PK\x03\x04 something else"), Err(GgufError::NotGguf)));
        assert!(matches!(load(b"GGUF\x09\0\0\0"), Err(GgufError::Version(9))));
        assert!(matches!(load(b""), Err(GgufError::Truncated)));
        let other = load(&with(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"));
        assert!(matches!(other, Err(GgufError::Architecture(name)) if name == "mamba"));
        assert!(matches!(load(&with(b"output_norm", b"output_Norm")), Ok(())));
        assert!(matches!(load(&with(b"token_embd", b"token_Embd")), Err(GgufError::NoTensor(_))));
        assert!(matches!(load(&with(b"llama.block_count", b"llama.block_Count")), Err(GgufError::Key(_))));
    }

    #[test]
    fn lengths_beyond_the_file_and_counts_beyond_a_bound_are_refused() {
        let mut tensors = TINY.clone();
        tensors[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(load(&tensors), Err(GgufError::Bound { what: "tensors", .. })));
        let mut pairs = TINY.clone();
        pairs[16..24].copy_from_slice(&(MAX_PAIRS + 1).to_le_bytes());
        assert!(matches!(load(&pairs), Err(GgufError::Bound { what: "key-value pairs", .. })));
        let mut key = TINY.clone();
        key[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(load(&key), Err(GgufError::Bound { what: "string bytes", .. })));
        key[24..32].copy_from_slice(&MAX_STRING_BYTES.to_le_bytes());
        assert!(matches!(load(&key), Err(GgufError::Truncated)));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let header_end = TINY.windows(18).rposition(|window| window == b"blk.1.ffn_down.wei").expect("there");
        for end in (0..header_end).step_by(97).chain([TINY.len() - 4096, header_end + 60]) {
            assert!(load(&TINY[..end]).is_err(), "{end} bytes");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_bytes_make_it_panic(changes in proptest::collection::vec((0usize..12_000, any::<u8>()), 1..6)) {
            let mut bytes = TINY.clone();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let _ = load(&bytes);
        }

        #[test]
        fn no_noise_makes_it_panic(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [b"GGUF\x03\0\0\0".as_slice(), &noise].concat();
            prop_assert!(header::read(bytes.as_slice(), bytes.len() as u64).is_err());
        }
    }
}

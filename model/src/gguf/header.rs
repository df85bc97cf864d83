//! The header of a GGUF file: its key-value pairs and where its tensors lie. Every count, length and extent is checked
//! against a named bound and against the size of the file before anything is allocated. Refuses to know what the
//! pairs mean and what is inside the tensors.

use super::GgufError;
use candle_core::quantized::GgmlDType;
use std::collections::BTreeMap;
use std::io::Read;

/// Most key-value pairs.
pub const MAX_PAIRS: u64 = 4096;
/// Most tensors.
pub const MAX_TENSORS: u64 = 65_536;
/// Most elements of an array; the largest vocabularies in use have a quarter of it.
pub const MAX_ARRAY: u64 = 1 << 20;
/// Longest string in bytes; the longest are chat templates.
pub const MAX_STRING_BYTES: u64 = 1 << 20;
/// Most dimensions of a tensor.
pub(super) const MAX_DIMS: u32 = 4;
/// Longest header in bytes.
pub const MAX_HEADER_BYTES: u64 = 128 * 1024 * 1024;

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 65_536;
/// Bytes that one string takes at least: its length field.
const STRING_BYTES_MIN: u64 = 8;

/// One value of a key-value pair. Numbers of all widths are widened.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A truth value.
    Bool(bool),
    /// Any integer.
    Integer(i128),
    /// Any floating-point number.
    Float(f64),
    /// A string.
    Text(String),
    /// An array of strings.
    Texts(Vec<String>),
    /// An array of integers.
    Integers(Vec<i64>),
    /// An array of floating-point numbers.
    Floats(Vec<f32>),
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Extent {
    /// Outermost dimension first.
    pub dims: Vec<usize>,
    /// How its numbers are packed.
    pub dtype: GgmlDType,
    /// First byte, counted from the beginning of the file.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
}

/// What a header says.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The key-value pairs.
    pub pairs: BTreeMap<String, Value>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Extent>,
}

/// Reads a header from the beginning of a file of `file_bytes` bytes.
///
/// # Errors
/// [`GgufError`] for anything that is not a complete, bounded, consistent header.
pub(super) fn read(source: impl Read, file_bytes: u64) -> Result<Header, GgufError> {
    let mut cursor = Cursor { source, position: 0, end: file_bytes };
    if cursor.array::<4>()? != MAGIC {
        return Err(GgufError::NotGguf);
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version(version));
    }
    let tensors = bounded("tensors", cursor.u64()?, MAX_TENSORS)?;
    let pairs = bounded("key-value pairs", cursor.u64()?, MAX_PAIRS)?;
    let pairs = read_pairs(&mut cursor, pairs)?;
    let alignment = alignment(&pairs)?;
    let entries = (0..tensors).map(|_| Entry::read(&mut cursor)).collect::<Result<Vec<_>, _>>()?;
    let data = cursor.position.next_multiple_of(alignment);
    Ok(Header { pairs, tensors: place(entries, data, alignment, file_bytes)? })
}

fn bounded(what: &'static str, value: u64, limit: u64) -> Result<u64, GgufError> {
    if value > limit { Err(GgufError::Bound { what, value, limit }) } else { Ok(value) }
}

fn read_pairs<R: Read>(cursor: &mut Cursor<R>, count: u64) -> Result<BTreeMap<String, Value>, GgufError> {
    let mut pairs = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let value = if kind == kind::ARRAY { cursor.values()? } else { cursor.value(kind)? };
        if pairs.insert(key, value).is_some() {
            return Err(GgufError::Malformed("a key appears twice"));
        }
    }
    Ok(pairs)
}

fn alignment(pairs: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    let value = match pairs.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Integer(value)) => u64::try_from(*value).unwrap_or(0),
        Some(_) => 0,
    };
    if value.is_power_of_two() && value <= MAX_ALIGNMENT {
        Ok(value)
    } else {
        Err(GgufError::Malformed("general.alignment is not a small power of two"))
    }
}

/// A tensor as the header lists it.
struct Entry {
    name: String,
    dims: Vec<usize>,
    dtype: GgmlDType,
    offset: u64,
    bytes: u64,
}

impl Entry {
    fn read<R: Read>(cursor: &mut Cursor<R>) -> Result<Self, GgufError> {
        let name = cursor.text()?;
        let count = cursor.u32()?;
        bounded("dimensions", u64::from(count), u64::from(MAX_DIMS))?;
        let mut dims = (0..count).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
        dims.reverse();
        let code = cursor.u32()?;
        let dtype = dtype(code).ok_or_else(|| GgufError::TensorKind { name: super::shown(&name), code })?;
        let bytes = extent_bytes(&dims, dtype).ok_or(GgufError::Malformed("a tensor has an impossible shape"))?;
        let dims = dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>();
        let dims = dims.map_err(|_| GgufError::Malformed("a tensor has an impossible shape"))?;
        Ok(Self { name, dims, dtype, offset: cursor.u64()?, bytes })
    }
}

fn extent_bytes(dims: &[u64], dtype: GgmlDType) -> Option<u64> {
    let block = dtype.block_size() as u64;
    let row = *dims.last()?;
    if dims.contains(&0) || row % block != 0 {
        return None;
    }
    let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
    (elements / block).checked_mul(dtype.type_size() as u64)
}

/// Gives each tensor its place in the file. Together they may not be larger than the file, so that overlapping ones
/// cannot multiply the memory that loading takes.
fn place(
    entries: Vec<Entry>,
    data: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<BTreeMap<String, Extent>, GgufError> {
    let mut tensors = BTreeMap::new();
    let mut left = file_bytes;
    for Entry { name, dims, dtype, offset, bytes } in entries {
        let begin = data.checked_add(offset).ok_or(GgufError::Truncated)?;
        let end = begin.checked_add(bytes).ok_or(GgufError::Truncated)?;
        if end > file_bytes {
            return Err(GgufError::Truncated);
        }
        if offset % alignment != 0 {
            return Err(GgufError::Malformed("a tensor is not aligned"));
        }
        left = left.checked_sub(bytes).ok_or(GgufError::Malformed("tensors overlap"))?;
        if tensors.insert(name, Extent { dims, dtype, offset: begin, bytes }).is_some() {
            return Err(GgufError::Malformed("a tensor appears twice"));
        }
    }
    Ok(tensors)
}

const fn dtype(code: u32) -> Option<GgmlDType> {
    Some(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        8 => GgmlDType::Q8_0,
        12 => GgmlDType::Q4K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// Codes of value types.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// A reader that never goes past the end of the file or of the longest header.
struct Cursor<R> {
    source: R,
    position: u64,
    end: u64,
}

impl<R: Read> Cursor<R> {
    /// Takes note that `bytes` will be read, before memory is taken for them.
    fn claim(&mut self, bytes: u64) -> Result<(), GgufError> {
        let after = self.position.checked_add(bytes).filter(|after| *after <= self.end).ok_or(GgufError::Truncated)?;
        bounded("header bytes", after, MAX_HEADER_BYTES)?;
        self.position = after;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes).map_err(GgufError::read)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let length = bounded("string bytes", self.u64()?, MAX_STRING_BYTES)?;
        self.claim(length)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| GgufError::Truncated)?];
        self.source.read_exact(&mut bytes).map_err(GgufError::read)?;
        String::from_utf8(bytes).map_err(|_| GgufError::Malformed("a string is not UTF-8"))
    }

    fn value(&mut self, code: u32) -> Result<Value, GgufError> {
        Ok(match code {
            kind::BOOL => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return Err(GgufError::Malformed("a truth value is neither 0 nor 1")),
            },
            kind::TEXT => Value::Text(self.text()?),
            kind::F32 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => Value::Integer(self.integer(code)?),
        })
    }

    fn integer(&mut self, code: u32) -> Result<i128, GgufError> {
        Ok(match code {
            kind::U8 => u8::from_le_bytes(self.array()?).into(),
            kind::I8 => i8::from_le_bytes(self.array()?).into(),
            kind::U16 => u16::from_le_bytes(self.array()?).into(),
            kind::I16 => i16::from_le_bytes(self.array()?).into(),
            kind::U32 => u32::from_le_bytes(self.array()?).into(),
            kind::I32 => i32::from_le_bytes(self.array()?).into(),
            kind::U64 => u64::from_le_bytes(self.array()?).into(),
            kind::I64 => i64::from_le_bytes(self.array()?).into(),
            _ => return Err(GgufError::Malformed("a value is of an unknown type")),
        })
    }

    /// An array. Its memory grows with what was really read, so a false count costs nothing.
    fn values(&mut self) -> Result<Value, GgufError> {
        let code = self.u32()?;
        let count = bounded("array elements", self.u64()?, MAX_ARRAY)?;
        Ok(match code {
            kind::TEXT => {
                if count.saturating_mul(STRING_BYTES_MIN) > self.end - self.position {
                    return Err(GgufError::Truncated);
                }
                Value::Texts((0..count).map(|_| self.text()).collect::<Result<_, _>>()?)
            }
            kind::F32 => {
                let floats = (0..count).map(|_| self.array().map(f32::from_le_bytes));
                Value::Floats(floats.collect::<Result<_, _>>()?)
            }
            kind::ARRAY | kind::F64 => return Err(GgufError::Malformed("an array is of an unknown type")),
            kind::BOOL => Value::Integers(self.integers(kind::U8, count)?),
            _ => Value::Integers(self.integers(code, count)?),
        })
    }

    fn integers(&mut self, code: u32, count: u64) -> Result<Vec<i64>, GgufError> {
        let widened = (0..count).map(|_| {
            let value = self.integer(code)?;
            i64::try_from(value).map_err(|_| GgufError::Malformed("an integer is too large"))
        });
        widened.collect()
    }
}

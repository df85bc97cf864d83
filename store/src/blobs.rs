//! Blobs: large values as sealed files beside the database, in chunks of 64 KiB. A file is whole and durable before the
//! change that refers to it commits; one that nothing refers to is swept. What a blob holds is not known here.

use crate::envelope::{COUNTED, Key, Nonce, TAG_BYTES};
use crate::error::{Fault, ReadError, WriteError};
use crate::keys::{Keys, Purpose, derive};
use crate::reader::{Reader, context};
use crate::tables::Table;
use crate::writer::Writer;
use crate::{files, format};
use empathd_proto::BlobId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The folder in the state folder.
pub(crate) const DIR: &str = "blobs";
/// Plaintext bytes of a chunk; the last one is filled with zeros.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of a chunk in the file.
const SEALED_CHUNK_BYTES: u64 = (CHUNK_BYTES + TAG_BYTES) as u64;
/// Largest blob.
pub const MAX_BLOB_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// First bytes of a file.
const MAGIC: &[u8; 8] = b"EMPATHDB";
/// Bytes before the first chunk: magic, format version, blob id.
const HEAD_BYTES: usize = 8 + 4 + 16;

/// What is known of a blob without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobInfo {
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of it.
    pub digest: [u8; 32],
}

impl Writer<'_> {
    /// Seals a blob into a file of its own.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] above [`MAX_BLOB_BYTES`], and those of the disk or of integrity.
    pub fn put_blob(&mut self, bytes: &[u8]) -> Result<BlobId, WriteError> {
        if bytes.len() as u64 > MAX_BLOB_BYTES {
            return Err(WriteError::TooLarge { bytes: bytes.len() as u64, limit: MAX_BLOB_BYTES });
        }
        let id = BlobId::from_bytes(self.random());
        let key = Zeroizing::new(self.random());
        let cipher = ChunkCipher::new(&key, self.keys(), id);
        self.written_blobs.push(id);
        files::replace(&path(self.dir(), id), |file| cipher.write(file, bytes)).map_err(Fault::from)?;
        let info = BlobInfo { bytes: bytes.len() as u64, digest: *blake3::hash(bytes).as_bytes() };
        self.adopt_key(Purpose::Blob(id), key)?;
        self.put(Table::Blobs, id.as_bytes(), Purpose::Blob(id), &format::encode(&info))?;
        Ok(id)
    }

    /// Removes a blob: its key with this change, its file after it. False when there was none.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn drop_blob(&mut self, id: BlobId) -> Result<bool, WriteError> {
        if !self.delete(Table::Blobs, id.as_bytes(), Purpose::Blob(id))? {
            return Ok(false);
        }
        self.forget_key(Purpose::Blob(id))?;
        self.dropped_blobs.push(id);
        Ok(true)
    }
}

impl Reader<'_> {
    /// Length and digest of a blob.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn blob_info(&self, id: BlobId) -> Result<Option<BlobInfo>, ReadError> {
        self.decoded(Table::Blobs, id.as_bytes())
    }

    /// Authenticates `count` chunks of a blob's file, from the one numbered `from` on. Returns the number of the next one;
    /// `None` when there is no other, or no such blob any more.
    pub(crate) fn check_chunks(&self, id: BlobId, from: u64, count: u64) -> Result<Option<u64>, ReadError> {
        let Some(sealed) = self.raw(Table::Blobs, id.as_bytes())? else { return Ok(None) };
        let (cipher, info) = self.blob_cipher(id, &sealed)?;
        let mut file = cipher.file(&path(self.dir(), id), info.bytes)?;
        let (chunks, mut chunk) = (chunks(info.bytes), Zeroizing::new(vec![0; CHUNK_BYTES]));
        let end = from.saturating_add(count).min(chunks);
        file.seek_relative((from.min(chunks) * SEALED_CHUNK_BYTES) as i64).map_err(Fault::from)?;
        (from..end).try_for_each(|index| cipher.chunk(&mut file, index, chunks, &mut chunk))?;
        Ok((end < chunks).then_some(end))
    }

    fn blob_cipher(&self, id: BlobId, sealed: &[u8]) -> Result<(ChunkCipher, BlobInfo), ReadError> {
        let info: BlobInfo = format::decode(&self.open(Table::Blobs, id.as_bytes(), sealed)?.1)?;
        let key_id = crate::envelope::key_id(sealed).ok_or(ReadError::Integrity("a blob's row is no envelope"))?;
        let (_, key) = self.key(key_id)?;
        Ok((ChunkCipher::new(&key, self.keys(), id), info))
    }

    /// The bytes of a blob.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], [`ReadError::Integrity`] when the file is missing, cut, reordered or changed.
    pub fn blob(&self, id: BlobId) -> Result<Zeroizing<Vec<u8>>, ReadError> {
        let sealed = self.raw(Table::Blobs, id.as_bytes())?.ok_or(ReadError::NotFound("blob"))?;
        let (cipher, info) = self.blob_cipher(id, &sealed)?;
        let bytes = cipher.read(&path(self.dir(), id), info.bytes)?;
        if blake3::hash(&bytes) != info.digest {
            return Err(ReadError::Integrity("a blob has another digest than its row"));
        }
        Ok(bytes)
    }
}

/// Seals the chunks of one blob. Its key seals nothing else, so the chunk's number is the nonce; whether a chunk is the
/// last is part of it, so a cut file does not open.
struct ChunkCipher {
    key: Key,
    head: Vec<u8>,
    context: Vec<u8>,
}

impl ChunkCipher {
    fn new(key: &Key, keys: &Keys, id: BlobId) -> Self {
        let head = [MAGIC.as_slice(), &format::SCHEMA.to_le_bytes(), id.as_bytes()].concat();
        Self { key: derive(key, b"empathd/blob-chunks/1"), head, context: context(keys, Table::Blobs, id.as_bytes()) }
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let mut out = BufWriter::new(file);
        out.write_all(&self.head)?;
        let mut chunk = Zeroizing::new(vec![0; CHUNK_BYTES]);
        let chunks = chunks(bytes.len() as u64);
        for index in 0..chunks {
            let rest = &bytes[index as usize * CHUNK_BYTES..];
            let (now, zeros) = chunk.split_at_mut(rest.len().min(CHUNK_BYTES));
            now.copy_from_slice(&rest[..now.len()]);
            zeros.fill(0);
            let tag = COUNTED.seal(&self.key, &nonce(index, index + 1 == chunks), &self.context, &mut chunk);
            out.write_all(&chunk)?;
            out.write_all(&tag)?;
        }
        out.flush()
    }

    fn read(&self, path: &Path, bytes: u64) -> Result<Zeroizing<Vec<u8>>, ReadError> {
        let mut file = self.file(path, bytes)?;
        let chunks = chunks(bytes);
        let mut plain = Zeroizing::new(vec![0; chunks as usize * CHUNK_BYTES]);
        for (index, chunk) in (0..).zip(plain.chunks_exact_mut(CHUNK_BYTES)) {
            self.chunk(&mut file, index, chunks, chunk)?;
        }
        plain.truncate(bytes as usize);
        Ok(plain)
    }

    /// The file of a blob of this length, after its head.
    fn file(&self, path: &Path, bytes: u64) -> Result<File, ReadError> {
        let mut file = match files::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ReadError::Integrity("the file of a blob is missing"));
            }
            opened => opened.map_err(Fault::from)?,
        };
        let expected = HEAD_BYTES as u64 + chunks(bytes) * SEALED_CHUNK_BYTES;
        if file.metadata().map_err(Fault::from)?.len() != expected {
            return Err(ReadError::Integrity("the file of a blob has another length"));
        }
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head).map_err(Fault::from)?;
        if head != *self.head {
            return Err(ReadError::Integrity("the file of a blob belongs to another blob"));
        }
        Ok(file)
    }

    /// The next chunk of a file, which is the one with this number.
    fn chunk(&self, file: &mut File, index: u64, chunks: u64, chunk: &mut [u8]) -> Result<(), ReadError> {
        let mut tag = [0; TAG_BYTES];
        file.read_exact(chunk).and_then(|()| file.read_exact(&mut tag)).map_err(Fault::from)?;
        COUNTED
            .open(&self.key, &nonce(index, index + 1 == chunks), &self.context, chunk, &tag)
            .map_err(|_| ReadError::Integrity("the file of a blob does not authenticate"))
    }
}

/// Chunks of a blob of this length: an empty one has one, too.
fn chunks(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK_BYTES as u64).max(1)
}

fn nonce(index: u64, last: bool) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[..8].copy_from_slice(&index.to_le_bytes());
    nonce[8] = u8::from(last);
    nonce
}

/// Where the file of a blob lies.
pub(crate) fn path(dir: &Path, id: BlobId) -> PathBuf {
    dir.join(DIR).join(format!("{:032x}", u128::from_be_bytes(*id.as_bytes())))
}

/// Removes the files of these blobs. What cannot be removed now is swept at the next start.
pub(crate) fn remove(dir: &Path, ids: &[BlobId]) {
    for id in ids {
        let _ = files::remove(&path(dir, *id));
    }
}

/// Removes files of blobs that no row refers to: a crash came between file and commit, or between commit and removal.
pub(crate) fn sweep(reader: &Reader<'_>) -> Result<(), ReadError> {
    let folder = reader.dir().join(DIR);
    files::private_dir(&folder).map_err(Fault::from)?;
    for entry in fs::read_dir(folder).map_err(Fault::from)? {
        let path = entry.map_err(Fault::from)?.path();
        if let Some(id) = id_of_file(&path)
            && (is_temporary(&path) || reader.raw(Table::Blobs, id.as_bytes())?.is_none())
        {
            files::remove(&path).map_err(Fault::from)?;
        }
    }
    Ok(())
}

fn is_temporary(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == files::TEMPORARY)
}

/// The blob that a file in the folder belongs to; `None` for a name that this store never gives.
fn id_of_file(path: &Path) -> Option<BlobId> {
    if path.extension().is_some() && !is_temporary(path) {
        return None;
    }
    let hex = path.file_stem()?.to_str().filter(|hex| hex.len() == 32)?;
    Some(BlobId::from_bytes(u128::from_str_radix(hex, 16).ok()?.to_be_bytes()))
}

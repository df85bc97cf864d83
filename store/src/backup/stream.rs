//! A stream of authenticated chunks: nothing is given on before it proved to be what was written, in its order, to its end.
//! What the bytes mean is not known here.

use crate::envelope::Key;
use std::io::{self, Read, Write};
use subtle::ConstantTimeEq;

/// First bytes of a stream.
const MAGIC: &[u8; 8] = b"EMPATHDR";
/// Version of the stream and of what it holds.
const VERSION: u32 = 1;
/// Bytes before the first chunk: magic, version, name of the stream.
const HEAD_BYTES: usize = 8 + 4 + 16;
/// Bytes of a chunk, except the last one.
const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of a chunk's tag.
const TAG_BYTES: usize = 32;

/// Writes a stream.
pub(crate) struct StreamWriter<'a> {
    out: &'a mut dyn Write,
    tags: Tags,
    chunk: Vec<u8>,
}

/// Reads a stream.
pub(crate) struct StreamReader<'a> {
    from: &'a mut dyn Read,
    tags: Tags,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
}

/// The tags of the chunks, one after the other.
struct Tags {
    key: Key,
    head: [u8; HEAD_BYTES],
    next: u64,
}

impl Tags {
    fn next(&mut self, chunk: &[u8], last: bool) -> [u8; TAG_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.head).update(&self.next.to_le_bytes()).update(&[u8::from(last)]).update(chunk);
        self.next += 1;
        *hasher.finalize().as_bytes()
    }
}

impl<'a> StreamWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, key: Key, name: &[u8; 16]) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[12..].copy_from_slice(name);
        out.write_all(&head)?;
        Ok(Self { out, tags: Tags { key, head, next: 0 }, chunk: Vec::with_capacity(CHUNK_BYTES) })
    }

    /// Writes the last chunk.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.put_chunk(true)?;
        self.out.flush()
    }

    fn put_chunk(&mut self, last: bool) -> io::Result<()> {
        let tag = self.tags.next(&self.chunk, last);
        // The highest bit of the length says which chunk is the last.
        let length = self.chunk.len() as u32 | u32::from(last) << 31;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.chunk)?;
        self.out.write_all(&tag)?;
        self.chunk.clear();
        Ok(())
    }
}

impl Write for StreamWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES {
            self.put_chunk(false)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> StreamReader<'a> {
    /// Reads the head; `InvalidData` when it is no such stream.
    pub(crate) fn new(from: &'a mut dyn Read, key: Key) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES];
        from.read_exact(&mut head)?;
        let version = head[8..12] == VERSION.to_le_bytes();
        if head[..8] != *MAGIC || !version {
            return Err(forged());
        }
        Ok(Self { from, tags: Tags { key, head, next: 0 }, chunk: Vec::new(), at: 0, ended: false })
    }

    /// The name it was given.
    pub(crate) fn name(&self) -> [u8; 16] {
        let mut name = [0; 16];
        name.copy_from_slice(&self.tags.head[12..]);
        name
    }

    /// Whether everything was read, and nothing comes after it.
    pub(crate) fn is_at_end(&mut self) -> io::Result<bool> {
        if self.at == self.chunk.len() && !self.ended {
            self.take_chunk()?;
        }
        Ok(self.at == self.chunk.len() && self.ended && self.from.read(&mut [0])? == 0)
    }

    fn take_chunk(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        let (last, length) = (length >> 31 == 1, (length & (u32::MAX >> 1)) as usize);
        if length > CHUNK_BYTES || (!last && length < CHUNK_BYTES) {
            return Err(forged());
        }
        self.chunk.resize(length, 0);
        self.from.read_exact(&mut self.chunk)?;
        let mut tag = [0; TAG_BYTES];
        self.from.read_exact(&mut tag)?;
        if !bool::from(self.tags.next(&self.chunk, last).ct_eq(&tag)) {
            self.chunk.clear();
            self.at = 0;
            return Err(forged());
        }
        (self.at, self.ended) = (0, last);
        Ok(())
    }
}

impl Read for StreamReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() && !self.ended && !out.is_empty() {
            self.take_chunk()?;
        }
        let taken = out.len().min(self.chunk.len() - self.at);
        out[..taken].copy_from_slice(&self.chunk[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

fn forged() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_was_changed_anywhere_gives_no_byte_of_the_change() {
        let key = Key::new([7; 32]);
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 9] {
            let content: Vec<u8> = (0..length).map(|n| (n / 3) as u8).collect();
            let mut sealed = Vec::new();
            let mut writer = StreamWriter::new(&mut sealed, key.clone(), &[3; 16]).expect("begun");
            writer.write_all(&content).and_then(|()| writer.finish()).expect("written");
            let read = |bytes: &[u8]| -> io::Result<Vec<u8>> {
                let mut from = bytes;
                let mut reader = StreamReader::new(&mut from, key.clone())?;
                let mut out = Vec::new();
                let read = reader.read_to_end(&mut out);
                assert!(content.starts_with(&out), "bytes that were not written");
                read?;
                if reader.is_at_end()? { Ok(out) } else { Err(forged()) }
            };
            assert_eq!(read(&sealed).expect("whole"), content);
            for at in (0..sealed.len()).step_by(1 + sealed.len() / 97) {
                let mut changed = sealed.clone();
                changed[at] ^= 0x20;
                assert!(read(&changed).is_err(), "byte {at} of {length}");
                assert!(read(&sealed[..at]).is_err(), "cut at {at} of {length}");
            }
            assert!(read(&[sealed.as_slice(), b"x"].concat()).is_err());
        }
    }
}

//! TensorBoard's event files: records of TFRecord (length, masked CRC-32C, bytes, masked CRC-32C) that each hold a protobuf
//! `Event` with scalars (tensorflow/core/util/event.proto, framework/summary.proto). What the scalars mean is not known here.

/// CRC-32C (Castagnoli, reversed polynomial) of each byte.
const CRC_TABLE: [u32; 256] = crc_table();
/// What TensorFlow adds to a rotated checksum, so that a checksum of checksums is none of zeros.
const MASK: u32 = 0xa282_ead8;
/// The version that the first record of a file says.
const VERSION: &str = "brain.Event:2";

const fn crc_table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// CRC-32C of bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| CRC_TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8))
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(MASK).to_le_bytes()
}

/// One record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

/// A number as protobuf writes it.
fn varint(mut number: u64, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// A field of bytes.
fn bytes_field(field: u64, bytes: &[u8], to: &mut Vec<u8>) {
    varint(field << 3 | 2, to);
    varint(bytes.len() as u64, to);
    to.extend_from_slice(bytes);
}

/// The beginning of an event: field 1, seconds since the Unix epoch.
fn event(at_ms: u64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend_from_slice(&(at_ms as f64 / 1000.0).to_le_bytes());
    event
}

/// The first record of a file.
pub(super) fn head(at_ms: u64) -> Vec<u8> {
    let mut event = event(at_ms);
    bytes_field(3, VERSION.as_bytes(), &mut event);
    record(&event)
}

/// A record with scalars by tag, of one step.
pub(super) fn scalars(at_ms: u64, step: u32, values: &[(String, f32)]) -> Vec<u8> {
    let mut event = event(at_ms);
    varint(2 << 3, &mut event);
    varint(u64::from(step), &mut event);
    let mut summary = Vec::new();
    for (tag, number) in values {
        let mut value = Vec::new();
        bytes_field(1, tag.as_bytes(), &mut value);
        value.push(2 << 3 | 5);
        value.extend_from_slice(&number.to_le_bytes());
        bytes_field(1, &value, &mut summary);
    }
    bytes_field(5, &summary, &mut event);
    record(&event)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a record of an event file says.
    #[derive(Debug, Default, PartialEq)]
    pub(crate) struct Read {
        pub(crate) seconds: f64,
        pub(crate) step: u64,
        pub(crate) version: String,
        pub(crate) values: Vec<(String, f32)>,
    }

    /// The bit-by-bit form of the checksum, beside the table.
    fn crc_by_bits(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            }
        }
        !crc
    }

    /// Reads the fields of a protobuf message: number, and a number or bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
        let number = |bytes: &mut &[u8]| {
            let (mut value, mut shift) = (0u64, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        };
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = number(&mut bytes);
            let length = match key & 7 {
                0 => {
                    let value = number(&mut bytes);
                    found.push((key >> 3, value, Vec::new()));
                    continue;
                }
                1 => 8,
                2 => number(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, 0, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    /// Reads a whole event file, every checksum checked.
    pub(crate) fn read(mut bytes: &[u8]) -> Vec<Read> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let unmasked = |from: &[u8]| {
                let masked = u32::from_le_bytes(from[..4].try_into().expect("four"));
                masked.wrapping_sub(0xa282_ead8).rotate_left(15)
            };
            let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
            assert_eq!(unmasked(&bytes[8..]), crc_by_bits(&bytes[..8]));
            let data = &bytes[12..12 + length];
            assert_eq!(unmasked(&bytes[12 + length..]), crc_by_bits(data));
            let mut one = Read::default();
            for (field, number, content) in fields(data) {
                match field {
                    1 => one.seconds = f64::from_le_bytes(content.try_into().expect("a double")),
                    2 => one.step = number,
                    3 => one.version = String::from_utf8(content).expect("UTF-8"),
                    5 => one.values = fields(&content).into_iter().map(|(_, _, value)| scalar(&value)).collect(),
                    other => panic!("field {other}"),
                }
            }
            all.push(one);
            bytes = &bytes[16 + length..];
        }
        all
    }

    fn scalar(value: &[u8]) -> (String, f32) {
        let found = fields(value);
        let number = f32::from_le_bytes(found[1].2.clone().try_into().expect("a float"));
        (String::from_utf8(found[0].2.clone()).expect("UTF-8"), number)
    }

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let values = [("loss/train".to_owned(), 1.5f32), ("a".repeat(200), -0.25)];
        let file = [head(1_500), scalars(2_250, 300, &values)].concat();
        let read = read(&file);
        assert_eq!(read[0], Read { seconds: 1.5, version: VERSION.to_owned(), ..Read::default() });
        assert_eq!(read[1], Read { seconds: 2.25, step: 300, values: values.to_vec(), ..Read::default() });
    }
}

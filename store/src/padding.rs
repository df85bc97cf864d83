//! Sizes of sealed values, so that the length of a note does not show what kind of note it is: 64, 256, 1,024, 4,008
//! bytes, above that an eighth of the next lower power of two. What is padded is not known here.

/// Bytes that hold the true length at the end of a padded value.
const LENGTH_BYTES: usize = 4;
/// The small buckets, in bytes. The largest of them fits in one page of the database, with its envelope and its key.
const SMALL: [usize; 4] = [64, 256, 1024, 4008];
/// Above the small buckets a size is rounded up to this part of the power of two below it: at most 12.5 % is added.
const STEPS_PER_DOUBLING: usize = 8;

/// The bucket that a body of this many bytes fits in.
pub(crate) fn bucket(body_bytes: usize) -> usize {
    let needed = body_bytes + LENGTH_BYTES;
    if let Some(small) = SMALL.into_iter().find(|bucket| *bucket >= needed) {
        return small;
    }
    let below = 1usize << (usize::BITS - 1 - (needed - 1).leading_zeros());
    needed.next_multiple_of(below / STEPS_PER_DOUBLING)
}

/// Appends zeros and the length to `out`, which ends with a body of `body_bytes`, so that the body fills its bucket.
pub(crate) fn pad(out: &mut Vec<u8>, body_bytes: usize) {
    let zeros = bucket(body_bytes) - body_bytes - LENGTH_BYTES;
    out.resize(out.len() + zeros, 0);
    out.extend_from_slice(&(body_bytes as u32).to_le_bytes());
}

/// How long the body at the start of a padded value is; `None` when the value is not padded like that.
pub(crate) fn body_bytes(padded: &[u8]) -> Option<usize> {
    let (_, length) = padded.split_last_chunk::<LENGTH_BYTES>()?;
    let length = u32::from_le_bytes(*length) as usize;
    (bucket(length) == padded.len() || v1::bucket(length) == Some(padded.len())).then_some(length)
}

/// What format 1 filled where today's would be smaller.
mod v1 {
    use super::LENGTH_BYTES;

    /// Its fourth bucket.
    const FOURTH: usize = 4096;
    /// Bytes that went into its third.
    const THIRD: usize = 1024;

    pub(super) fn bucket(body_bytes: usize) -> Option<usize> {
        (THIRD + 1..=FOURTH).contains(&(body_bytes + LENGTH_BYTES)).then_some(FOURTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_body_and_add_little() {
        for body in (0..40_000).chain([1 << 20, (1 << 20) - 4, (1 << 20) - 3, 100_000_000]) {
            let size = bucket(body);
            assert!(size >= body + LENGTH_BYTES);
            if body > 4096 {
                assert!(size as f64 <= (body + LENGTH_BYTES) as f64 * 1.125, "{body} became {size}");
            }
        }
        assert_eq!([0, 60, 61, 252, 253, 4004, 4005, 4093].map(bucket), [64, 64, 256, 256, 1024, 4008, 4096, 4608]);
    }

    #[test]
    fn a_padded_body_knows_its_length() {
        for length in [0, 1, 60, 61, 5000] {
            let mut value = vec![7; length];
            pad(&mut value, length);
            assert_eq!(body_bytes(&value), Some(length));
            value.push(0);
            assert_eq!(body_bytes(&value), None);
        }
        assert_eq!(body_bytes(&[1, 2]), None);
        let older = |length: u32| [vec![0; 4092], length.to_le_bytes().to_vec()].concat();
        assert_eq!(
            [1020, 1021, 4000, 4092, 4093].map(|length| body_bytes(&older(length))),
            [None, Some(1021), Some(4000), Some(4092), None]
        );
    }
}

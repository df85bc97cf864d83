//! Recovery shares: a secret of 32 bytes cut into three, of which any two give it back and one says nothing (Shamir over
//! GF(256)), and their form on paper, which shows where it was copied wrongly. What the secret opens is not known here.

use crate::entropy::{self, Entropy};
use crate::envelope::Key;
use crate::memory::KEY_BYTES;
use empathd_proto::Secret;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Shares that are made.
pub const SHARES: usize = 3;
/// Shares that give the secret back.
pub const SHARES_NEEDED: usize = 2;
/// First byte of a share.
const VERSION: u8 = 1;
/// Bytes of a share on paper: version, set, number, value, checksum.
const PAPER_BYTES: usize = 1 + 4 + 1 + KEY_BYTES + CHECKSUM_BYTES;
/// Bytes of the checksum over a whole share.
const CHECKSUM_BYTES: usize = 2;
/// Characters of a group that carry data; one that checks them follows.
const GROUP_CHARS: usize = 4;
/// Groups of a share on paper.
const GROUPS: usize = PAPER_BYTES * 8 / (5 * GROUP_CHARS);
/// Crockford's alphabet: no I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Longest text that is read as a share.
const MAX_TEXT_CHARS: usize = 512;

/// Names the shares that belong together.
pub(crate) type SetId = [u8; 4];

/// One of three shares. Two open the store and the key file; keep them in different places, on paper.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryShare {
    set: SetId,
    /// 1, 2 or 3: where the polynomial was taken.
    number: u8,
    value: Key,
}

/// Why a text is no share, or shares give no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Too few or too many groups.
    #[error(
        "a recovery share has {GROUPS} groups of five characters, and this text has another number; copy all of it"
    )]
    Length,
    /// The group with this number, from 1, does not fit its last character.
    #[error("group {0} of the recovery share was not copied right; compare it with the paper")]
    Group(usize),
    /// Every group fits, and the whole does not.
    #[error(
        "the groups fit, but the recovery share as a whole does not; compare the order of its groups with the paper"
    )]
    Whole,
    /// Of another version of the program.
    #[error("the recovery share was made by a newer release; use the release that made it")]
    Version,
    /// Fewer than two different shares.
    #[error("{SHARES_NEEDED} different recovery shares are needed; take another of the three papers")]
    TooFew,
    /// Of different sets.
    #[error("the recovery shares were not printed together; use papers with the same first group")]
    Sets,
    /// More than two, and they contradict each other.
    #[error("the recovery shares contradict each other; leave one out and try again")]
    Contradiction,
}

impl RecoveryShare {
    /// Which of the three it is, from 1.
    #[must_use]
    pub const fn number(&self) -> u8 {
        self.number
    }

    #[cfg(test)]
    pub(crate) const fn set(&self) -> SetId {
        self.set
    }

    /// Its form on paper: sixteen groups of five characters, the fifth of each checks the four before it.
    #[must_use]
    pub fn to_text(&self) -> Secret {
        let mut bytes = Zeroizing::new([0; PAPER_BYTES]);
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&self.set);
        bytes[5] = self.number;
        bytes[6..6 + KEY_BYTES].copy_from_slice(&self.value[..]);
        let sum = checksum(&bytes);
        bytes[PAPER_BYTES - CHECKSUM_BYTES..].copy_from_slice(&sum);
        // Exact capacity: growing would leave a copy behind.
        let mut text = String::with_capacity(GROUPS * (GROUP_CHARS + 2));
        for group in 0..GROUPS {
            if group > 0 {
                text.push(if group % 4 == 0 { '\n' } else { ' ' });
            }
            let digits = digits(&bytes, group);
            digits.iter().chain([&check_digit(group, &digits[..])]).for_each(|digit| text.push(char_of(*digit)));
        }
        Secret::new(text)
    }

    /// The share on a paper. Upper and lower case, spaces, dashes and line ends do not matter; O is read as 0, I and L as 1.
    ///
    /// # Errors
    /// [`ShareError`] says which group to compare.
    pub fn from_text(text: &Secret) -> Result<Self, ShareError> {
        let text = text.expose();
        if text.len() > MAX_TEXT_CHARS {
            return Err(ShareError::Length);
        }
        let chars = text.chars().filter(|char| !char.is_whitespace() && *char != '-');
        let mut digits = Zeroizing::new(Vec::with_capacity(MAX_TEXT_CHARS));
        for (at, char) in chars.enumerate() {
            digits.push(digit_of(char).ok_or(ShareError::Group(at / (GROUP_CHARS + 1) + 1))?);
        }
        if digits.len() != GROUPS * (GROUP_CHARS + 1) {
            return Err(ShareError::Length);
        }
        let mut bytes = Zeroizing::new([0u8; PAPER_BYTES]);
        for (group, digits) in digits.chunks_exact(GROUP_CHARS + 1).enumerate() {
            let (data, check) = digits.split_at(GROUP_CHARS);
            if check[0] != check_digit(group, data) {
                return Err(ShareError::Group(group + 1));
            }
            for (place, digit) in data.iter().enumerate() {
                put_digit(&mut bytes, group * GROUP_CHARS + place, *digit);
            }
        }
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8; PAPER_BYTES]) -> Result<Self, ShareError> {
        if bytes[PAPER_BYTES - CHECKSUM_BYTES..] != checksum(bytes) {
            return Err(ShareError::Whole);
        }
        let number = bytes[5];
        if bytes[0] != VERSION || !(1..=SHARES as u8).contains(&number) {
            return Err(ShareError::Version);
        }
        let mut share = Self { set: SetId::default(), number, value: Key::default() };
        share.set.copy_from_slice(&bytes[1..5]);
        share.value.copy_from_slice(&bytes[6..6 + KEY_BYTES]);
        Ok(share)
    }
}

impl fmt::Debug for RecoveryShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryShare({} of {SHARES})", self.number)
    }
}

/// Cuts a secret into three shares.
pub(crate) fn split(secret: &Key, set: SetId, entropy: &dyn Entropy) -> [RecoveryShare; SHARES] {
    // Two are enough, so the polynomial of each byte is a line: secret + slope · number.
    let slope = Zeroizing::new(entropy::array::<KEY_BYTES>(entropy));
    [1u8, 2, 3].map(|number| {
        let mut value = secret.clone();
        value.iter_mut().zip(slope.iter()).for_each(|(byte, slope)| *byte ^= multiply(*slope, number));
        RecoveryShare { set, number, value }
    })
}

/// The secret of two or three shares.
pub(crate) fn combine(shares: &[RecoveryShare]) -> Result<(SetId, Key), ShareError> {
    let Some(first) = shares.first() else { return Err(ShareError::TooFew) };
    if shares.iter().any(|share| share.set != first.set) {
        return Err(ShareError::Sets);
    }
    let Some(second) = shares.iter().find(|share| share.number != first.number) else {
        return Err(ShareError::TooFew);
    };
    let fits = |share: &RecoveryShare| bool::from(at(share.number, first, second).ct_eq(&share.value[..]));
    if !shares.iter().all(fits) {
        return Err(ShareError::Contradiction);
    }
    Ok((first.set, at(0, first, second)))
}

/// The value at `number` of the lines through two shares.
fn at(number: u8, first: &RecoveryShare, second: &RecoveryShare) -> Key {
    let over = invert(first.number ^ second.number);
    let weight_of_first = multiply(second.number ^ number, over);
    let weight_of_second = multiply(first.number ^ number, over);
    let mut value = Key::default();
    for (out, (one, two)) in value.iter_mut().zip(first.value.iter().zip(second.value.iter())) {
        *out = multiply(*one, weight_of_first) ^ multiply(*two, weight_of_second);
    }
    value
}

/// The product in GF(256) modulo x^8 + x^4 + x^3 + x + 1 (FIPS 197, section 4.2), without a branch or a table that
/// depends on a secret.
fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut product) = (a, 0);
    for bit in 0..8 {
        product ^= a & 0u8.wrapping_sub((b >> bit) & 1);
        a = (a << 1) ^ (0x1b & 0u8.wrapping_sub(a >> 7));
    }
    product
}

/// The inverse in GF(256): a^254.
fn invert(a: u8) -> u8 {
    let mut power = 1;
    for _ in 0..254 {
        power = multiply(power, a);
    }
    power
}

fn checksum(bytes: &[u8; PAPER_BYTES]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("empathd 1 recovery share on paper");
    hasher.update(&bytes[..PAPER_BYTES - CHECKSUM_BYTES]);
    let digest = hasher.finalize();
    [digest.as_bytes()[0], digest.as_bytes()[1]]
}

/// The five-bit digits of a group.
fn digits(bytes: &[u8; PAPER_BYTES], group: usize) -> Zeroizing<[u8; GROUP_CHARS]> {
    let mut digits = Zeroizing::new([0; GROUP_CHARS]);
    for (place, digit) in digits.iter_mut().enumerate() {
        let bit = (group * GROUP_CHARS + place) * 5;
        let pair = u16::from(bytes[bit / 8]) << 8 | u16::from(bytes.get(bit / 8 + 1).copied().unwrap_or(0));
        *digit = (pair >> (11 - bit % 8)) as u8 & 31;
    }
    digits
}

fn put_digit(bytes: &mut [u8; PAPER_BYTES], place: usize, digit: u8) {
    let bit = place * 5;
    let [high, low] = (u16::from(digit) << (11 - bit % 8)).to_be_bytes();
    bytes[bit / 8] |= high;
    if let Some(next) = bytes.get_mut(bit / 8 + 1) {
        *next |= low;
    }
}

/// The digit that checks a group: a weighted sum over GF(32) of its place and its digits. Any one wrong digit, two that were
/// exchanged, and a group in another's place change it.
fn check_digit(group: usize, digits: &[u8]) -> u8 {
    let place = multiply_32(group as u8 + 1, 31);
    digits.iter().zip([2, 4, 8, 16]).fold(place, |sum, (digit, weight)| sum ^ multiply_32(*digit, weight))
}

/// The product in GF(32) modulo x^5 + x^2 + 1.
fn multiply_32(a: u8, b: u8) -> u8 {
    let (mut a, mut product) = (a, 0);
    for bit in 0..5 {
        product ^= a & 0u8.wrapping_sub((b >> bit) & 1);
        a = (a << 1) ^ (0x25 & 0u8.wrapping_sub(a >> 4 & 1));
    }
    product
}

fn char_of(digit: u8) -> char {
    ALPHABET[usize::from(digit)].into()
}

fn digit_of(char: char) -> Option<u8> {
    let char = match char.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    ALPHABET.iter().position(|one| char::from(*one) == char).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::SeededEntropy;

    fn three(seed: u64) -> (Key, [RecoveryShare; SHARES]) {
        let entropy = SeededEntropy::new(seed);
        let secret = Zeroizing::new(entropy::array(&entropy));
        let shares = split(&secret, *b"set1", &entropy);
        (secret, shares)
    }

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, sections 4.2 and 4.2.1: {57} · {83} = {c1}, {57} · {13} = {fe}.
        assert_eq!((multiply(0x57, 0x83), multiply(0x57, 0x13)), (0xc1, 0xfe));
        assert!((1..=255).all(|a| multiply(a, invert(a)) == 1));
        // A line through known points: 0x53 + 0xca · x at 1, 2 and 3, worked out by hand.
        assert_eq!([1, 2, 3].map(|x| 0x53 ^ multiply(0xca, x)), [0x99, 0xdc, 0x16]);
    }

    #[test]
    fn any_two_shares_give_the_secret_and_one_gives_nothing() {
        let (secret, shares) = three(1);
        for (one, other) in [(0, 1), (1, 0), (0, 2), (1, 2)] {
            let two = [shares[one].clone(), shares[other].clone()];
            assert_eq!(combine(&two).expect("two").1, secret);
        }
        assert_eq!(combine(&shares).expect("three").1, secret);
        assert_eq!(combine(&[]).err(), Some(ShareError::TooFew));
        assert_eq!(combine(&[shares[1].clone(), shares[1].clone()]).err(), Some(ShareError::TooFew));
        let stranger = RecoveryShare { set: *b"set2", ..shares[2].clone() };
        assert_eq!(combine(&[shares[0].clone(), stranger]).err(), Some(ShareError::Sets));
        let mut wrong = shares.clone();
        wrong[2].value[7] ^= 1;
        assert_eq!(combine(&wrong).err(), Some(ShareError::Contradiction));
        // For whatever the secret is, some slope leads through a given share: a byte of it is as likely as any other.
        let mut seen = [false; 256];
        (0..=255u8).for_each(|slope| seen[usize::from(shares[0].value[0] ^ multiply(slope, 1))] = true);
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn a_paper_is_read_back_and_shows_where_it_was_copied_wrongly() {
        let (_, shares) = three(2);
        for share in &shares {
            let text = share.to_text().expose().to_owned();
            let read = |text: &str| RecoveryShare::from_text(&Secret::new(text.to_owned()));
            assert!(read(&text).expect("read") == *share);
            let messy = text.to_lowercase().replace('0', "o").replace('1', "l").replace(' ', "--");
            assert!(read(&messy).expect("read") == *share);
            let groups: Vec<&str> = text.split_whitespace().collect();
            assert_eq!((groups.len(), read(&groups[1..].join(" ")).err()), (GROUPS, Some(ShareError::Length)));
            for at in 0..GROUPS * 5 {
                let mut chars: Vec<char> = groups.concat().chars().collect();
                let wrong = ALPHABET.iter().map(|c| char::from(*c)).filter(|c| *c != chars[at]);
                for c in wrong.collect::<Vec<_>>() {
                    chars[at] = c;
                    let found = read(&chars.iter().collect::<String>()).err();
                    assert_eq!(found, Some(ShareError::Group(at / 5 + 1)), "character {at}");
                }
            }
            for group in 1..GROUPS {
                let mut swapped = groups.clone();
                swapped.swap(group - 1, group);
                let found = read(&swapped.concat()).err();
                assert!(groups[group] == groups[group - 1] || found.is_some());
            }
        }
    }
}

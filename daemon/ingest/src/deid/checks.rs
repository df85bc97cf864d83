//! Check digits: what tells an identifier from any other number. Each names its source; none knows what surrounds it.

fn digits(text: &str) -> impl DoubleEndedIterator<Item = u32> + '_ {
    text.chars().filter_map(|c| c.to_digit(10))
}

/// Luhn's formula (ISO/IEC 7812-1 annex B).
pub(super) fn luhn(text: &str) -> bool {
    let sum: u32 = digits(text)
        .rev()
        .enumerate()
        .map(|(index, digit)| if index % 2 == 1 { digit * 2 / 10 + digit * 2 % 10 } else { digit })
        .sum();
    sum.is_multiple_of(10)
}

/// A bank account number of ISO 13616: remainder 97 after moving the first four characters to the end.
pub(super) fn iban(compact: &str) -> bool {
    if !(15..=34).contains(&compact.len()) || !compact.is_ascii() {
        return false;
    }
    let (head, tail) = compact.split_at(4);
    let remainder = tail.chars().chain(head.chars()).try_fold(0u32, |rest, c| {
        let value = c.to_digit(36)?;
        Some(if value < 10 { (rest * 10 + value) % 97 } else { (rest * 100 + value) % 97 })
    });
    remainder == Some(1)
}

/// A National Provider Identifier: Luhn with the prefix 80840 (45 CFR 162.406).
pub(super) fn npi(text: &str) -> bool {
    text.len() == 10 && text.starts_with(['1', '2']) && luhn(&format!("80840{text}"))
}

/// A DEA registration number: two letters, six digits and the last digit of (1st+3rd+5th) + 2 (2nd+4th+6th).
pub(super) fn dea(text: &str) -> bool {
    let d: Vec<u32> = digits(text.get(2..).unwrap_or_default()).collect();
    d.len() == 7 && (d[0] + d[2] + d[4] + 2 * (d[1] + d[3] + d[5])) % 10 == d[6]
}

/// A vehicle identification number with its check digit (49 CFR 565.15).
pub(super) fn vin(text: &str) -> bool {
    const WEIGHTS: [u32; 17] = [8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2];
    let value = |c: char| match c.to_ascii_uppercase() {
        c @ '0'..='9' => c.to_digit(10),
        c @ 'A'..='H' => Some(c as u32 - 'A' as u32 + 1),
        c @ 'J'..='N' => Some(c as u32 - 'J' as u32 + 1),
        'P' => Some(7),
        'R' => Some(9),
        c @ 'S'..='Z' => Some(c as u32 - 'S' as u32 + 2),
        _ => None,
    };
    let Some(values) = text.chars().map(value).collect::<Option<Vec<u32>>>().filter(|values| values.len() == 17) else {
        return false;
    };
    let rest = values.iter().zip(WEIGHTS).map(|(value, weight)| value * weight).sum::<u32>() % 11;
    let check = if rest == 10 { 'X' } else { char::from_digit(rest, 10).unwrap_or('X') };
    text.chars().nth(8).is_some_and(|c| c.eq_ignore_ascii_case(&check))
}

/// A social security number that can have been given out: no area 000, 666 or 9xx, no group 00, no serial 0000.
pub(super) fn ssn(text: &str) -> bool {
    let d: String = text.chars().filter(char::is_ascii_digit).collect();
    d.len() == 9
        && !d.starts_with("000")
        && !d.starts_with("666")
        && !d.starts_with('9')
        && &d[3..5] != "00"
        && &d[5..] != "0000"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_takes_its_own_and_refuses_one_digit_off() {
        assert!(luhn("4111 1111 1111 1111") && !luhn("4111 1111 1111 1112"));
        assert!(iban("GB82WEST12345698765432") && !iban("GB82WEST12345698765433"));
        assert!(npi("1234567893") && !npi("1234567894"));
        assert!(dea("AB1234563") && !dea("AB1234564"));
        assert!(vin("1M8GDM9AXKP042788") && !vin("1M8GDM9A1KP042788"));
        assert!(ssn("219-09-9999") && !ssn("666-09-9999") && !ssn("987-65-4321") && !ssn("219-00-9999"));
    }
}

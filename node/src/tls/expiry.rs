//! When a certificate expires: the one field of it that TLS itself does not need and an operator
//! does.

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_BEFORE_1970: u64 = 719_468;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;

/// The Unix second of `notAfter` (RFC 5280, 4.1.2.5) of a certificate in DER. `None` if that cannot
/// be found, or is before 1970.
pub fn not_after(certificate: &[u8]) -> Option<u64> {
    let (_, certificate, _) = element(certificate)?;
    let (_, body, _) = element(certificate)?;
    let (tag, _, mut rest) = element(body)?;
    if tag == VERSION {
        // What was read is the version, so the serial number follows.
        (_, _, rest) = element(rest)?;
    }
    let (_, _, rest) = element(rest)?; // algorithm
    let (_, _, rest) = element(rest)?; // issuer
    let (SEQUENCE, validity, _) = element(rest)? else { return None };
    let (_, _, rest) = element(validity)?;
    match element(rest)? {
        (UTC_TIME, text, _) => {
            let (year, text) = text.split_at_checked(2)?;
            let year = number(year)?;
            time(if year < 50 { 2000 + year } else { 1900 + year }, text)
        }
        (GENERALIZED_TIME, text, _) => {
            let (year, text) = text.split_at_checked(4)?;
            time(number(year)?, text)
        }
        _ => None,
    }
}

/// Tag and content of the first element, and what follows it. Lengths take at most four bytes.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `MMDDHHMMSSZ` of a year.
fn time(year: u64, text: &[u8]) -> Option<u64> {
    if text.len() != 11 || text[10] != b'Z' {
        return None;
    }
    let field = |at: usize| number(&text[at..at + 2]);
    let (month, day) = (field(0)?, field(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // The year begins in March, so that the leap day is its last.
    let (year, month) =
        if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(DAYS_BEFORE_1970)?;
    Some(days * 86_400 + field(4)? * 3_600 + field(6)? * 60 + field(8)?)
}

fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_on_both_sides_of_2050() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let dates = [
            (1970, 1, 1, 0),
            (2000, 2, 29, 951_782_400),
            (2026, 11, 25, 1_795_564_800),
            (2049, 12, 31, 2_524_521_600),
            (2050, 1, 1, 2_524_608_000),
            (2100, 3, 1, 4_107_542_400),
        ];
        for (year, month, day, unix_s) in dates {
            let mut params = rcgen::CertificateParams::new(["a".to_owned()]).expect("a name");
            params.not_after = rcgen::date_time_ymd(year, month, day);
            let certificate = params.self_signed(&key).expect("a certificate");
            assert_eq!(not_after(certificate.der()), Some(unix_s), "{year}-{month}-{day}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_date() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(["a".to_owned()]).expect("a name");
        let whole = params.self_signed(&key).expect("a certificate").der().to_vec();
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None, "{length}");
        }
        for at in 0..200 {
            let mut changed = whole.clone();
            changed[at] ^= 0x55;
            let _ = not_after(&changed);
        }
    }
}

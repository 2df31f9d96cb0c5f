//! Quantities as Kubernetes writes them (`20M`, `1.5Gi`, `3e6`), in whole units.

/// The number, rounded up to a whole; `None` when the text is no quantity. Beyond what can be counted it stays
/// at the largest number.
pub fn parse(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (factor, exponent) = scale(suffix)?;
    let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let units = scaled(digits.trim_start_matches('0'), factor, exponent, !negative);
    Some(if negative { units.saturating_neg() } else { units })
}

/// Factor and power of ten.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        other => (1, other.strip_prefix(['e', 'E'])?.parse().ok()?),
    })
}

fn scaled(digits: &str, factor: i128, exponent: i32, round_up: bool) -> i64 {
    let zero = digits.bytes().all(|digit| digit == b'0');
    let number = || digits.parse::<i128>().ok()?.checked_mul(factor);
    match (zero, number()) {
        (true, _) => 0,
        (false, None) => i64::MAX,
        (false, Some(number)) => {
            let power = 10_i128.checked_pow(exponent.unsigned_abs());
            let units = match (exponent < 0, power) {
                (false, power) => power.and_then(|power| number.checked_mul(power)).unwrap_or(i128::MAX),
                (true, None) => i128::from(round_up),
                (true, Some(power)) => number / power + i128::from(round_up && number % power != 0),
            };
            i64::try_from(units).unwrap_or(i64::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn suffixes_scale() {
        for (text, value) in [
            ("1", 1),
            ("1k", 1000),
            ("20P", 20_000_000_000_000_000),
            ("8Gi", 8 << 30),
            ("1.5Gi", 3 << 29),
            ("1.01k", 1010),
            ("3e6", 3_000_000),
            ("3E2", 300),
            ("100m", 1),
            ("1.5", 2),
            ("-1.5", -1),
            ("0.0", 0),
            (".5", 1),
            ("5.", 5),
            ("99E", i64::MAX),
            ("1e999", i64::MAX),
            ("1e-999", 1),
            ("0e999", 0),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_quantity() {
        for text in
            ["", "k", "1kk", "1 k", "1K", "1.2.3", "--1", "0x10", "ten", "1e", "1ee3", "e3", "1e99999999999"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

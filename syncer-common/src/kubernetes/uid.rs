//! Unique ids of objects that Kubernetes and Calico both know.
//!
//! Two objects must not share an id. Calico's twin of a Kubernetes object (of a wrapped custom resource, too)
//! has the id of the original with the bits of every byte reversed, except in the two bytes that hold version
//! and variant. The transformation is its own inverse.

use super::object::error;
use crate::apis::FieldError;

const KEPT: [usize; 2] = [6, 8];
/// Where the dashes of the text form stand.
const DASHES: [usize; 4] = [8, 13, 18, 23];

/// The id of the twin. An error names `field`.
pub fn twin(uid: &str, field: &str) -> Result<String, FieldError> {
    let bytes = parse(uid).ok_or_else(|| error(field, format!("{uid:?} is not a UUID")))?;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.into_iter().enumerate() {
        if DASHES.contains(&text.len()) {
            text.push('-');
        }
        let byte = if KEPT.contains(&index) { byte } else { byte.reverse_bits() };
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).expect("a digit is below 16"));
        }
    }
    Ok(text)
}

fn parse(uid: &str) -> Option<[u8; 16]> {
    let uid = uid.as_bytes();
    if uid.len() != 36 || DASHES.iter().any(|dash| uid[*dash] != b'-') {
        return None;
    }
    let mut digits =
        uid.iter().enumerate().filter(|(index, _)| !DASHES.contains(index)).map(|(_, digit)| *digit);
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        for _ in 0..2 {
            let digit = char::from(digits.next()?).to_digit(16)?;
            *byte = *byte << 4 | digit as u8;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_variant_stay() {
        let twin = twin("30316465-6365-4463-ad63-3564622d3638", "metadata.uid").unwrap();
        assert_eq!(twin, "0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c");
    }

    #[test]
    fn only_uuids_have_a_twin() {
        for bad in
            ["", "nonsense", "30316465-6365-4463-ad63-3564622d363", "30316465-6365-4463-ad63-3564622d363g"]
        {
            assert_eq!(twin(bad, "metadata.uid").unwrap_err().field, "metadata.uid", "{bad}");
        }
        assert!(twin("30316465-6365-4463+ad63-3564622d3638", "metadata.uid").is_err());
        assert!(twin("3031646é-6365-4463-ad63-3564622d363", "metadata.uid").is_err());
    }
}

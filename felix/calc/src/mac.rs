//! MAC addresses as the datastore writes them.

/// Six pairs of hexadecimal digits, with colons or dashes between them; whole, or not at all.
pub fn parse(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_read_whole_or_not_at_all() {
        assert_eq!(parse("ee:EE:00:01:02:ff"), Some([0xee, 0xee, 0, 1, 2, 255]));
        assert_eq!(parse("66-00-0a-FF-01-02"), Some([0x66, 0, 10, 255, 1, 2]));
        for text in ["", "ee:ee", "66:00:0a:ff:01", "ee:ee:ee:ee:ee:ee:ee", "zz:ee:ee:ee:ee:ee"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

//! Marks that say which endpoint a packet came from, where kube-proxy's IPVS mode hides it from FORWARD.
//!
//! A mark follows from the interface's name, and from earlier interfaces only where two collide; it stays
//! until its interface is released.

use std::collections::BTreeMap;

pub struct EndpointMarks {
    mask: u32,
    by_position: BTreeMap<u32, String>,
    by_iface: BTreeMap<String, u32>,
}

impl EndpointMarks {
    /// The mask's lowest bit, as a mark of its own, stands for packets of no endpoint.
    pub fn new(mask: u32) -> Self {
        let mut marks = EndpointMarks { mask, by_position: BTreeMap::new(), by_iface: BTreeMap::new() };
        marks.by_position.insert(1, String::new());
        marks
    }

    pub fn non_cali_mark(&self) -> u32 {
        spread(1, self.mask)
    }

    /// The mark of an interface, allocated at the first call. None when all are taken.
    pub fn mark(&mut self, iface: &str) -> Option<u32> {
        if let Some(&position) = self.by_iface.get(iface) {
            return Some(spread(position, self.mask));
        }
        let size = 1_u64 << self.mask.count_ones();
        let first = u64::from(fnv1(iface)) % size;
        let position = (0..size)
            .map(|step| ((first + step) % size) as u32)
            .find(|position| *position != 0 && !self.by_position.contains_key(position))?;
        self.by_position.insert(position, iface.to_owned());
        self.by_iface.insert(iface.to_owned(), position);
        Some(spread(position, self.mask))
    }

    pub fn release(&mut self, iface: &str) {
        if let Some(position) = self.by_iface.remove(iface) {
            self.by_position.remove(&position);
        }
    }
}

fn fnv1(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte))
}

/// Puts the bits of a number into the bits of a mask, lowest first.
fn spread(number: u32, mask: u32) -> u32 {
    let mut rest = mask;
    let mut mark = 0;
    let mut bit = 0;
    while rest != 0 {
        let lowest = rest & rest.wrapping_neg();
        if number >> bit & 1 == 1 {
            mark |= lowest;
        }
        rest &= !lowest;
        bit += 1;
    }
    mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_until_it_is_released() {
        let mut marks = EndpointMarks::new(0x300);
        let a = marks.mark("a").unwrap();
        assert_eq!(marks.mark("a"), Some(a));
        assert_ne!(marks.mark("b"), Some(a));
        assert_eq!(marks.mark("c"), None);
        marks.release("a");
        assert!(marks.mark("c").is_some());
    }

    #[test]
    fn marks_lie_in_a_mask_with_holes() {
        assert_eq!(spread(0b101, 0b1011_0000), 0b1001_0000);
    }
}

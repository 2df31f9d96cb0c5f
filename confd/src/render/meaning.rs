//! What a configuration text means, comments and layout apart, and which statement a line belongs to.

/// The text without comments and with single spaces: two files with the same meaning need no reload.
pub fn meaning(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for line in text.lines() {
        for word in without_comment(line).split_whitespace() {
            if !result.is_empty() {
                result.push(' ');
            }
            result.push_str(word);
        }
    }
    result
}

fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    for (offset, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..offset],
            _ => {}
        }
    }
    line
}

/// The first line of the top-level statement that a line (counted from 1) is part of, with its comment,
/// which names the object that it was made from.
pub fn statement_at(text: &str, line: usize) -> Option<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let last = line.min(lines.len());
    lines[..last]
        .iter()
        .rev()
        .find(|line| line.starts_with(|c: char| c.is_ascii_alphabetic()))
        .map(|line| line.trim_end_matches(['{', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_layout_mean_nothing() {
        let one = "filter x {  # why\n  accept;\n}\n\n# the end\n";
        let other = "filter x {\naccept; }";
        assert_eq!(meaning(one), meaning(other));
        assert_eq!(meaning("interface \"a#b\"; # c"), "interface \"a#b\";");
        assert_ne!(meaning("a b"), meaning("ab"));
    }

    #[test]
    fn a_line_belongs_to_the_statement_above_it() {
        let text = "router id 1.1.1.1;\nprotocol bgp Node_1 from ibgp4 { # BGPPeer(a)\n  neighbor 1;\n}\n";
        assert_eq!(statement_at(text, 3), Some("protocol bgp Node_1 from ibgp4 { # BGPPeer(a)"));
        assert_eq!(statement_at(text, 99), Some("protocol bgp Node_1 from ibgp4 { # BGPPeer(a)"));
        assert_eq!(statement_at("", 1), None);
    }
}

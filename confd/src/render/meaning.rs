//! What a configuration text means, comments and layout apart, and which statement a line belongs to.

/// The text without comments and with single spaces: two files with the same meaning need no reload. What
/// stands in quotes stays as it is.
pub fn meaning(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut quote = None;
    let mut comment = false;
    let mut space = false;
    for c in text.chars() {
        if comment {
            comment = c != '\n';
            continue;
        }
        match quote {
            Some(end) => quote = Some(end).filter(|end| *end != c),
            None if c == '#' => {
                (comment, space) = (true, true);
                continue;
            }
            None if c.is_whitespace() => {
                space = true;
                continue;
            }
            None => quote = Some(c).filter(|c| matches!(c, '"' | '\'')),
        }
        if space && !result.is_empty() {
            result.push(' ');
        }
        space = false;
        result.push(c);
    }
    result
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

/// The object in a statement's comment, as in `BGPPeer(rack-1)`.
pub fn object_at(statement: &str) -> Option<&str> {
    let (_, object) = statement.rsplit_once("# ")?;
    let (kind, name) = object.strip_suffix(')')?.split_once('(')?;
    (kind.chars().all(|c| c.is_ascii_alphanumeric()) && !name.is_empty()).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_layout_mean_nothing_and_what_is_quoted_stays() {
        let one = "filter x {  # why\n  accept;\n}\n\n# the end\n";
        let other = "filter x {\naccept; }";
        assert_eq!(meaning(one), meaning(other));
        assert_eq!(meaning("interface \"a#b\"; # c"), "interface \"a#b\";");
        assert_ne!(meaning("a b"), meaning("ab"));
        assert_ne!(meaning("password \"a  b\";"), meaning("password \"a b\";"));
        assert_eq!(meaning("password \"it's\"; # c\nx"), "password \"it's\"; x");
    }

    #[test]
    fn a_line_belongs_to_the_statement_above_it() {
        let text = "router id 1.1.1.1;\nprotocol bgp Node_1 from ibgp4 { # BGPPeer(a)\n  neighbor 1;\n}\n";
        assert_eq!(statement_at(text, 3), Some("protocol bgp Node_1 from ibgp4 { # BGPPeer(a)"));
        assert_eq!(statement_at(text, 99), Some("protocol bgp Node_1 from ibgp4 { # BGPPeer(a)"));
        assert_eq!(statement_at("", 1), None);
    }

    #[test]
    fn a_statement_names_the_object_that_it_comes_from() {
        assert_eq!(object_at("protocol bgp Node_1 from ibgp4 { # BGPPeer(a)"), Some("BGPPeer(a)"));
        assert_eq!(object_at("function 'x'() { # BGPFilter(f.g)"), Some("BGPFilter(f.g)"));
        for none in ["router id 1.1.1.1;", "filter import_v4 { # why (not)", "x # ()"] {
            assert_eq!(object_at(none), None, "{none}");
        }
    }
}

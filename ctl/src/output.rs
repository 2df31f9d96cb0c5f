//! How `get` prints what it found.

use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A table with the main columns.
    Ps,
    /// A table with more columns.
    Wide,
    /// A table with these columns.
    Columns(Vec<String>),
    Yaml,
    Json,
    /// `kind/name`, a line each.
    Name,
}

impl Output {
    /// Whether columns may be shown that need more than the object itself.
    pub fn is_wide(&self) -> bool {
        matches!(self, Output::Wide | Output::Columns(_))
    }
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "ps" => Output::Ps,
            "wide" => Output::Wide,
            "yaml" | "yml" => Output::Yaml,
            "json" => Output::Json,
            "name" => Output::Name,
            _ => match text.strip_prefix("custom-columns=") {
                Some(headings) if !headings.is_empty() => {
                    Output::Columns(headings.split(',').map(|heading| heading.trim().to_owned()).collect())
                }
                _ => return Err("use ps, wide, yaml, json, name or custom-columns=NAME,…".into()),
            },
        })
    }
}

//! From the model to the text of BIRD's configuration. Pure: no files, no processes.

mod bird2;
mod meaning;

use std::str::FromStr;

use crate::bgp::{BgpModel, Problem};

pub use meaning::{meaning, statement_at};

/// The name of the constant by which a running BIRD says which configuration it holds.
pub const MARKER: &str = "bulrush_config";

/// The dialects of BIRD's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// Stock BIRD 2: one file, both families.
    Bird2,
}

/// A syntax that cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    #[error("syntax \"classic\" (Calico's BIRD 1.x) is not available yet: use bird2")]
    Classic,
    #[error("unknown syntax {0:?}: use bird2")]
    Unknown(String),
}

impl FromStr for Syntax {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Syntax, SyntaxError> {
        match text {
            "bird2" => Ok(Syntax::Bird2),
            "classic" => Err(SyntaxError::Classic),
            other => Err(SyntaxError::Unknown(other.to_owned())),
        }
    }
}

/// A configuration, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub file_name: &'static str,
    pub text: String,
    /// The marker's value: equal for configurations that mean the same.
    pub marker: String,
    /// The names of the BGP protocols in it.
    pub peers: Vec<String>,
    /// What this syntax cannot express.
    pub problems: Vec<Problem>,
}

pub fn render(model: &BgpModel, syntax: Syntax) -> Rendered {
    match syntax {
        Syntax::Bird2 => bird2::render(model),
    }
}

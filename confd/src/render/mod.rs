//! From the model to the text of BIRD's configuration. Pure: no files, no processes.

mod bird2;
mod classic;
mod filters;
mod meaning;
mod text;

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::bgp::{BgpModel, Peer, Problem};

pub use meaning::{meaning, object_at, statement_at};

/// The name of the constant by which a running BIRD 2 says which configuration it holds.
pub const MARKER: &str = "bulrush_config";

/// A local preference is this less the route's metric, so that the metric travels.
const MAX_PREFERENCE: u32 = 2_147_483_647;

/// The dialects of BIRD's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// Stock BIRD 2: one daemon, one file, both families.
    Bird2,
    /// Calico's BIRD, and BIRD 1.6: two daemons, three files each.
    Classic,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown syntax {0:?}: use bird2 or classic")]
pub struct SyntaxError(String);

impl FromStr for Syntax {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Syntax, SyntaxError> {
        match text {
            "bird2" => Ok(Syntax::Bird2),
            "classic" => Ok(Syntax::Classic),
            other => Err(SyntaxError(other.to_owned())),
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct File {
    pub name: &'static str,
    pub text: String,
}

/// The text holds passwords.
impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.text.len())
    }
}

/// The configuration of one BIRD daemon, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The first is the one that the daemon is started with; it includes the others.
    pub files: Vec<File>,
    /// Equal for configurations that mean the same.
    pub marker: String,
    /// Whether the running daemon can be asked for the marker.
    pub marked: bool,
    /// The names of the BGP protocols in it.
    pub peers: Vec<String>,
    /// What this syntax cannot express.
    pub problems: Vec<Problem>,
}

impl Rendered {
    /// The text of the main file.
    pub fn text(&self) -> &str {
        self.files.first().map_or("", |file| &file.text)
    }
}

/// The configurations of a node's daemons: one for BIRD 2, one for each family in the classic syntax.
pub fn render(model: &BgpModel, syntax: Syntax) -> Vec<Rendered> {
    match syntax {
        Syntax::Bird2 => vec![bird2::render(model)],
        Syntax::Classic => model
            .families()
            .into_iter()
            .map(|family| {
                let files = classic::files(model, family);
                Rendered {
                    marker: marker(files.iter().map(|file| file.text.as_str())),
                    files,
                    marked: false,
                    peers: family.peers.iter().map(Peer::name).collect(),
                    problems: Vec::new(),
                }
            })
            .collect(),
    }
}

/// A name for what texts mean.
fn marker<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(meaning(text));
        hash.update("\n");
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

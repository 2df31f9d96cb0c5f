//! What a converter noticed on the way.

use crate::apis::FieldError;

/// Problems of one object. Converters go on after them, as the original software does; what becomes of
/// the object is decided afterwards.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    refusals: Vec<FieldError>,
    notes: Vec<FieldError>,
}

impl Findings {
    /// Leaving this part out changes what the object means.
    pub fn refuse(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.refusals.push(FieldError::new(field, reason));
    }

    /// This part is left out, the rest stands.
    pub fn note(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.notes.push(FieldError::new(field, reason));
    }

    /// The first reason to refuse the object.
    pub fn take_refusal(&mut self) -> Option<FieldError> {
        let more = self.refusals.len().saturating_sub(1);
        let mut first = self.refusals.drain(..).next()?;
        if more > 0 {
            first.reason += &format!(" (and {more} more)");
        }
        Some(first)
    }

    pub fn into_notes(self) -> Vec<FieldError> {
        self.notes
    }
}

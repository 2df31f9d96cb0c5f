//! Selectors × labels.

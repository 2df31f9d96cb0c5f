//! Validation of v1 values.

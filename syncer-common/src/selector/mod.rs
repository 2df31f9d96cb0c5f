//! The selector language.

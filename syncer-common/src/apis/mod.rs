//! Resource types of `projectcalico.org/v3`.

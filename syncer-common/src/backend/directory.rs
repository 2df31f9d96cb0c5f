//! A directory of manifests.

//! Reading YAML and JSON manifests.

//! The Kubernetes API as a datastore: one list and one watch per kind.

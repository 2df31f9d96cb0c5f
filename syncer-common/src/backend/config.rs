//! Which datastore, from settings.

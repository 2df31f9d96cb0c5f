//! Conversion of datastore objects to the v1 model.

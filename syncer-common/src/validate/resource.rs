//! v3 objects, before they are written.

use crate::apis::{FieldError, Resource};

/// Everything that is wrong with an object; nothing when it is good.
pub fn resource(resource: &Resource) -> Vec<FieldError> {
    resource.key_path().err().into_iter().collect()
}

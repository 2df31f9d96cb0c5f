//! Passwords: shown in no log, error or debug output.

use std::fmt;

use crate::sync::Secret;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Secret { name, key, .. } = self;
        f.debug_struct("Secret").field("name", name).field("key", key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let secret = Secret { name: "bgp".into(), key: "rack".into(), value: "hunter2".into() };
        let shown = format!("{secret:?}");
        assert!(shown.contains("rack") && !shown.contains("hunter2"), "{shown}");
    }
}

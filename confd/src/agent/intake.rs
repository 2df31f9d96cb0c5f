//! Between typha's stream and the model: additions at once, deletions at cuts, because in between it is not proven
//! that something is gone.

use std::collections::HashMap;

use syncer_common::model::{Key, Update};

use crate::bgp::Model;

/// Updates on their way to the model: deletions are held back until a cut.
#[derive(Default)]
pub(super) struct Intake {
    deletions: HashMap<Key, Update>,
}

impl Intake {
    /// `true` when the model changed.
    pub fn take(&mut self, model: &mut Model, updates: Vec<Update>) -> bool {
        let mut changed = false;
        for update in updates {
            if update.value.is_ok() {
                self.deletions.remove(&update.key);
                changed |= model.on_update(update);
            } else {
                self.deletions.insert(update.key.clone(), update);
            }
        }
        changed
    }

    /// Lets the deletions through; `true` when the model changed.
    pub fn cut(&mut self, model: &mut Model) -> bool {
        let mut changed = false;
        for (_, update) in self.deletions.drain() {
            changed |= model.on_update(update);
        }
        changed
    }
}

//! What somebody else changed in the kernel: counted, and told with what changed. Whoever finds it puts it right.

use crate::metrics;

/// So many changes of one kind are told one by one, of more only the number: a flushed table is one message too many.
const TOLD: usize = 10;

/// Changes of one kind (`chain`, `set`, …), each as the thing's name and what became of it.
pub fn report(what: &'static str, changes: impl IntoIterator<Item = (String, &'static str)>) {
    let mut more = 0;
    for (number, (item, change)) in changes.into_iter().enumerate() {
        metrics::drift(what);
        if number < TOLD {
            tracing::warn!(what, change, item, "somebody else changed the kernel; putting it right");
        } else {
            more += 1;
        }
    }
    if more > 0 {
        tracing::warn!(what, more, "somebody else changed the kernel; putting it right");
    }
}

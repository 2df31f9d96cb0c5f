//! Forgets connections of an address that left or moved, so that established-traffic rules do not carry the old
//! owner's connections over to the new one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;

use crate::commands::{CommandError, Commands};

const SIDES: [&str; 4] = ["--orig-src", "--orig-dst", "--reply-src", "--reply-dst"];

/// A machine without the program is told about once.
static REPORTED_MISSING: AtomicBool = AtomicBool::new(false);

/// Programs at a time.
const CONCURRENCY: usize = 8;

pub async fn forget_all(commands: &dyn Commands, addresses: BTreeSet<IpAddr>) {
    futures::stream::iter(addresses)
        .for_each_concurrent(CONCURRENCY, |address| forget(commands, address))
        .await;
}

/// Deletes every tracked connection from or to the address. The program answers 1 when there was none.
async fn forget(commands: &dyn Commands, address: IpAddr) {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let text = address.to_string();
    for side in SIDES {
        match commands.run("conntrack", &["--family", family, "--delete", side, &text], "").await {
            Ok(_) | Err(CommandError::Failed { status: 1, .. }) => {}
            Err(error @ CommandError::Missing { .. }) => {
                if !REPORTED_MISSING.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "connections of removed workloads stay tracked until they time out");
                }
                return;
            }
            Err(error) => {
                tracing::warn!(%address, %error, "tracked connections could not be removed");
                return;
            }
        }
    }
}

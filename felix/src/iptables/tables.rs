//! All tables of both families together: they share the generation, so a write to one must not make the others
//! look touched.
//!
//! Tables are written one after the other (the nft backend has one lock in the kernel, the legacy one a lock
//! file). A failing table does not keep the others from being written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::generation::Generation;
use super::restore::{Iptables, TableError};
use super::table::Table;
use super::{Backend, IpVersion, TableName};
use crate::commands::{CommandError, Commands};

/// A full read may take at most this share of the time: one part in so many.
const LOAD_SHARE: u32 = 20;

pub struct Tables {
    backend: Backend,
    tables: BTreeMap<(IpVersion, TableName), Table>,
    generation: Option<Generation>,
    looked: Instant,
    look_cost: Duration,
}

/// What a pass did.
#[derive(Debug, Default)]
pub struct Pass {
    pub lines: usize,
    pub errors: Vec<(IpVersion, TableName, TableError)>,
}

impl Tables {
    pub async fn open(
        commands: &Arc<dyn Commands>,
        backend: Backend,
        versions: &[IpVersion],
    ) -> Result<Tables, CommandError> {
        let mut tables = BTreeMap::new();
        for &version in versions {
            let iptables = Iptables::open(commands.clone(), version, backend).await?;
            for name in TableName::ALL {
                tables.insert((version, name), Table::new(iptables.clone(), name));
            }
        }
        let generation = match backend {
            Backend::Legacy => None,
            Backend::Nft => Generation::open()
                .inspect_err(|error| tracing::warn!(%error, "no nftables generation; tables are read before every change"))
                .ok(),
        };
        Ok(Tables { backend, tables, generation, looked: Instant::now(), look_cost: Duration::ZERO })
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    pub fn get_mut(&mut self, version: IpVersion, name: TableName) -> Option<&mut Table> {
        self.tables.get_mut(&(version, name))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (IpVersion, TableName, &mut Table)> {
        self.tables.iter_mut().map(|((version, name), table)| (*version, *name, table))
    }

    pub fn is_dirty(&self) -> bool {
        self.tables.values().any(Table::is_dirty)
    }

    pub fn dirty(&self) -> impl Iterator<Item = (IpVersion, TableName)> {
        self.tables.iter().filter(|(_, table)| table.is_dirty()).map(|(key, _)| *key)
    }

    /// Chains that the kernel refused, with the reason.
    pub fn closed(&self) -> impl Iterator<Item = (IpVersion, TableName, &str, &str)> {
        self.tables.iter().flat_map(|((version, name), table)| {
            table.closed().map(move |(chain, reason)| (*version, *name, chain, reason))
        })
    }

    /// Everything is read again at the next pass.
    pub fn queue_resync(&mut self) {
        self.tables.values_mut().for_each(Table::forget);
    }

    /// Chains that were refused for lack of a set get another chance.
    pub fn lift(&mut self) {
        self.tables.values_mut().for_each(Table::lift);
    }

    /// A cheap look whether somebody else wrote: by generation where there is one, else every `interval` by
    /// reading; less often where reading takes long. When it returns `true`, a pass is due.
    pub fn look(&mut self, interval: Duration) -> bool {
        let wait = self.look_cost * LOAD_SHARE;
        let wait = if self.generation.is_some() { wait } else { wait.max(interval) };
        if self.looked.elapsed() < wait {
            return false;
        }
        self.looked = Instant::now();
        self.look_now()
    }

    /// The same without regard to what it costs.
    pub fn look_now(&mut self) -> bool {
        let now = read(self.generation.as_ref());
        let suspects = self.tables.values_mut().filter(|table| !table.is_certain(now));
        suspects.map(Table::suspect).count() > 0
    }

    /// Makes all tables as wanted that are not known to be so.
    pub async fn apply(&mut self) -> Pass {
        let started = Instant::now();
        let mut pass = Pass::default();
        let keys: Vec<_> =
            self.tables.iter().filter(|(_, table)| table.is_dirty()).map(|(key, _)| *key).collect();
        let all = keys.len() == self.tables.len();
        for key in keys {
            let generation = || read(self.generation.as_ref());
            let Some(table) = self.tables.get_mut(&key) else { continue };
            match table.apply(generation).await {
                Ok(applied) => {
                    pass.lines += applied.lines;
                    if let Some((from, to)) = applied.moved {
                        self.tables.values_mut().for_each(|table| table.generation_moved(from, to));
                    }
                }
                Err(error) => pass.errors.push((key.0, key.1, error)),
            }
        }
        if all {
            self.look_cost = started.elapsed();
        }
        pass
    }

    /// Removes what a former run left in the other backend. Call it when this one is programmed.
    pub async fn sweep_other(&self, commands: &Arc<dyn Commands>, versions: &[IpVersion]) -> Pass {
        let other = match self.backend {
            Backend::Nft => Backend::Legacy,
            Backend::Legacy => Backend::Nft,
        };
        let mut pass = Pass::default();
        if other == Backend::Legacy && !super::features::legacy_in_use() {
            return pass;
        }
        let Ok(tables) = Tables::open(commands, other, versions).await else { return pass };
        let mut tables = tables;
        pass = tables.apply().await;
        if pass.lines > 0 {
            tracing::info!(
                backend = other.name(),
                lines = pass.lines,
                "removed what a former run left in the other iptables backend"
            );
        }
        pass
    }
}

fn read(generation: Option<&Generation>) -> Option<u32> {
    generation.and_then(|generation| {
        generation.read().inspect_err(|error| tracing::debug!(%error, "generation unknown")).ok()
    })
}

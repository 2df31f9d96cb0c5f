//! Reads and writes tables with `iptables-<backend>-save` and `-restore`, for one IP family.

use std::sync::Arc;

use super::parse::{ParseError, SaveReader, SavedTable};
use super::{Backend, IpVersion, TableName, features};
use crate::commands::{CommandError, Commands};
use crate::metrics;

/// How long the legacy programs wait for the lock that they share with others.
const LOCK_SECONDS: &str = "10";

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the kernel's rules could not be read: {0}")]
    Read(#[source] CommandError),
    #[error("the kernel's rules could not be understood: {0}")]
    Parse(#[from] ParseError),
    #[error("rules could not be written: {0}")]
    Write(#[source] CommandError),
    #[error("somebody else keeps changing table {table}")]
    Contended { table: &'static str },
}

#[derive(Clone)]
pub struct Iptables {
    pub version: IpVersion,
    pub backend: Backend,
    commands: Arc<dyn Commands>,
    save: String,
    restore: String,
}

impl Iptables {
    /// Finds the programs.
    pub async fn open(
        commands: Arc<dyn Commands>,
        version: IpVersion,
        backend: Backend,
    ) -> Result<Iptables, CommandError> {
        let save = features::find_program(&*commands, version, backend, "save").await?;
        let restore = features::find_program(&*commands, version, backend, "restore").await?;
        Ok(Iptables { version, backend, commands, save, restore })
    }

    pub fn restore_program(&self) -> &str {
        &self.restore
    }

    pub async fn save(&self, table: TableName) -> Result<SavedTable, TableError> {
        let mut reader = SaveReader::new(table);
        let args = ["-t", table.name()];
        let saved = match self.commands.lines(&self.save, &args, "", &mut |line| reader.line(line)).await {
            Ok(()) => reader.finish().map_err(TableError::from),
            Err(error) => Err(TableError::Read(error)),
        };
        metrics::save(saved.is_err());
        saved
    }

    pub async fn restore(&self, text: &str) -> Result<(), TableError> {
        let result = self.commands.run(&self.restore, &["--noflush", "--wait", LOCK_SECONDS], text).await;
        metrics::restore(result.is_err());
        result.map(drop).map_err(TableError::Write)
    }
}

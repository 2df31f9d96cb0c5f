//! What this machine's iptables and kernel can do, and which backend to use.

use std::path::Path;

use super::render::Features;
use super::{Backend, IpVersion};
use crate::commands::{CommandError, Commands};

/// Legacy tables that exist in this thread's network namespace. Running the legacy programs would load modules.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";
/// Chains that kubelet leaves in the backend that it uses.
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT", ":KUBE-KUBELET-CANARY"];

/// The backend that others on this node use: hints of kubelet first, then whoever has more rules.
pub async fn detect_backend(commands: &dyn Commands) -> Backend {
    let legacy_exists = legacy_in_use();
    let mut rules = [0usize; 2];
    for (i, backend) in [Backend::Nft, Backend::Legacy].into_iter().enumerate() {
        if backend == Backend::Legacy && !legacy_exists {
            continue;
        }
        for version in IpVersion::ALL {
            let saved =
                commands.run(&program(version, Some(backend), "save"), &[], "").await.unwrap_or_default();
            if has_hint(&saved) {
                tracing::info!(backend = backend.name(), "iptables backend chosen: kubelet uses it");
                return backend;
            }
            rules[i] += saved.lines().filter(|line| line.starts_with("-A")).count();
        }
    }
    let [nft, legacy] = rules;
    let usable = async |backend| {
        commands.run(&program(IpVersion::V4, Some(backend), "save"), &["--version"], "").await.is_ok()
    };
    let backend = match nft > legacy || !legacy_exists && usable(Backend::Nft).await {
        true => Backend::Nft,
        false => Backend::Legacy,
    };
    tracing::info!(
        backend = backend.name(),
        nft_rules = nft,
        legacy_rules = legacy,
        "iptables backend chosen by rules"
    );
    backend
}

/// Whether this namespace has legacy tables.
pub fn legacy_in_use() -> bool {
    std::fs::read_to_string(LEGACY_TABLES).is_ok_and(|tables| !tables.trim().is_empty())
}

fn has_hint(saved: &str) -> bool {
    let mangle = saved.split('*').find(|table| table.starts_with("mangle")).unwrap_or_default();
    mangle.lines().any(|line| HINTS.iter().any(|hint| line.starts_with(hint)))
}

/// `ip6tables-nft-save`; without a backend the distribution's own choice, `ip6tables-save`.
pub fn program(version: IpVersion, backend: Option<Backend>, what: &str) -> String {
    let family = match version {
        IpVersion::V4 => "iptables",
        IpVersion::V6 => "ip6tables",
    };
    match backend {
        Some(backend) => format!("{family}-{}-{what}", backend.name()),
        None => format!("{family}-{what}"),
    }
}

/// The program to use: with the backend in its name where there is one.
pub async fn find_program(
    commands: &dyn Commands,
    version: IpVersion,
    backend: Backend,
    what: &str,
) -> Result<String, CommandError> {
    let named = program(version, Some(backend), what);
    match commands.run(&named, &["--version"], "").await {
        Err(CommandError::Missing { .. }) => {
            let plain = program(version, None, what);
            commands.run(&plain, &["--version"], "").await?;
            Ok(plain)
        }
        Err(error) => Err(error),
        Ok(_) => Ok(named),
    }
}

/// What fragments of rules may use.
pub async fn detect_features(commands: &dyn Commands, restore_program: &str) -> Features {
    let version =
        commands.run(restore_program, &["--version"], "").await.ok().and_then(|text| iptables_version(&text));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok().and_then(|text| numbers(&text));
    let random_fully = version >= Some([1, 6, 2]) && kernel >= Some([3, 14, 0]);
    Features {
        snat_random_fully: random_fully,
        masquerade_random_fully: random_fully,
        nflog_size: kernel >= Some([4, 8, 0]),
    }
}

/// Whether the kernel has IPv6 in this network namespace.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all/forwarding").exists()
}

/// `iptables-restore v1.8.9 (nf_tables)`
fn iptables_version(text: &str) -> Option<[u32; 3]> {
    text.split_whitespace().find_map(|word| numbers(word.strip_prefix('v')?))
}

fn numbers(text: &str) -> Option<[u32; 3]> {
    let mut numbers = [0; 3];
    let parts = text.split(|c: char| !c.is_ascii_digit());
    for (slot, part) in numbers.iter_mut().zip(parts.take_while(|part| !part.is_empty())) {
        *slot = part.parse().ok()?;
    }
    (numbers != [0; 3]).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_tools_print() {
        assert_eq!(iptables_version("iptables-restore v1.8.9 (nf_tables)\n"), Some([1, 8, 9]));
        assert_eq!(iptables_version("garbage"), None);
        assert_eq!(numbers("6.18.0-rc1+\n"), Some([6, 18, 0]));
        assert!(numbers("4.9") < numbers("4.10.0"));
    }

    #[test]
    fn kubelets_hint_counts_in_mangle_only() {
        assert!(has_hint("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"));
        assert!(!has_hint("*filter\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"));
    }
}

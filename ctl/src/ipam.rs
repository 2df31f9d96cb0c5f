//! `ipam show`: who has which address, and how full pools and blocks are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;
use syncer_common::apis::Resource;
use syncer_common::apis::ipam::{AllocationAttribute, Block, read_block};
use syncer_common::backend::Datastore;
use syncer_common::model::Key;

use crate::get;
use crate::grid::{self, Align};

const BLOCKS: &str = "/calico/ipam/v2/assignment/";

/// A block that could be read.
struct Known {
    cidr: IpNet,
    block: Block,
    /// As it is stored.
    value: Value,
}

impl Known {
    /// Allocated addresses and to whom.
    fn allocations(&self) -> impl Iterator<Item = (IpAddr, Option<&AllocationAttribute>)> {
        self.block.allocations.iter().enumerate().filter_map(|(ordinal, index)| {
            Some((address(&self.cidr, ordinal)?, self.block.attributes.get((*index)?)))
        })
    }

    /// The host that the block belongs to; `load-balancer` and the like are owners, too.
    fn owner(&self) -> &str {
        let affinity = self.block.affinity.as_deref();
        let old = self.block.host_affinity.as_deref();
        affinity
            .map(|owner| owner.split_once(':').map_or(owner, |(_, name)| name))
            .or(old)
            .unwrap_or_default()
    }
}

/// The address of an ordinal, if the block has so many.
pub fn address(cidr: &IpNet, ordinal: usize) -> Option<IpAddr> {
    let ordinal = u128::try_from(ordinal).ok()?;
    let address = match cidr.network() {
        IpAddr::V4(first) => IpAddr::V4((u32::from(first).checked_add(u32::try_from(ordinal).ok()?)?).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first).checked_add(ordinal)?).into()),
    };
    cidr.contains(&address).then_some(address)
}

/// All blocks, by CIDR. What can not be read is said and left out.
async fn blocks(store: &dyn Datastore) -> Result<Vec<Known>> {
    let mut blocks = Vec::new();
    for kv in store.get_prefix(BLOCKS).await? {
        let Some(Key::Block { cidr }) = Key::parse(&kv.key) else { continue };
        match (read_block(&kv.value), serde_json::from_slice(&kv.value)) {
            (Ok(block), Ok(value)) => blocks.push(Known { cidr, block, value }),
            (Err(error), _) => eprintln!("left out: {}: {error}", kv.key),
            (_, Err(error)) => eprintln!("left out: {}: {error}", kv.key),
        }
    }
    blocks.sort_by_key(|known| known.cidr);
    Ok(blocks)
}

// === how full ===

#[derive(Clone, Copy, Default)]
struct Use {
    total: u128,
    in_use: u128,
    /// Part of what is in use: given back, but not to be given out yet.
    cooling: u128,
    reserved: u128,
    /// Part of what is reserved: given out before it was reserved.
    reserved_in_use: u128,
}

impl Use {
    fn of(cidr: &IpNet, reserved: &[IpNet]) -> Use {
        Use { total: size(cidr), reserved: common(cidr, reserved), ..Use::default() }
    }

    fn count(&mut self, known: &Known, reserved: &[IpNet]) {
        for (address, owner) in known.allocations() {
            self.in_use += 1;
            self.cooling += u128::from(owner.is_some_and(|owner| owner.released_at.is_some()));
            self.reserved_in_use += u128::from(reserved.iter().any(|net| net.contains(&address)));
        }
    }

    fn free(&self) -> u128 {
        (self.total + self.reserved_in_use).saturating_sub(self.in_use + self.reserved)
    }
}

fn size(cidr: &IpNet) -> u128 {
    1_u128.checked_shl(u32::from(cidr.max_prefix_len() - cidr.prefix_len())).unwrap_or(u128::MAX)
}

/// Addresses of `cidr` that are in one of the nets, which do not overlap.
fn common(cidr: &IpNet, nets: &[IpNet]) -> u128 {
    if nets.iter().any(|net| net.contains(cidr)) {
        return size(cidr);
    }
    nets.iter().filter(|net| cidr.contains(*net)).map(size).sum()
}

/// How full pools are, and their blocks.
pub async fn utilization(store: &dyn Datastore, show_blocks: bool) -> Result<String> {
    let blocks = blocks(store).await?;
    let pools = cidrs(store, "ippool", |spec| vec![&spec["cidr"]]).await?;
    let reservations = cidrs(store, "ipreservation", |spec| {
        spec["reservedCIDRs"].as_array().into_iter().flatten().collect()
    })
    .await?;
    let reserved = aggregate(&reservations);
    let mut rows: Vec<(&str, IpNet, Use)> = Vec::new();
    let mut placed = vec![false; blocks.len()];
    for pool in &pools {
        let mut pool_use = Use::of(pool, &reserved);
        let mut inside = Vec::new();
        for (known, placed) in blocks.iter().zip(&mut placed) {
            if *placed || !pool.contains(&known.cidr) {
                continue;
            }
            *placed = true;
            pool_use.count(known, &reserved);
            inside.push(row_of(known, &reserved));
        }
        rows.push(("IP Pool", *pool, pool_use));
        rows.extend(inside.into_iter().filter(|_| show_blocks));
    }
    let orphans: Vec<_> =
        blocks.iter().zip(&placed).filter(|(_, placed)| !**placed).map(|(known, _)| known).collect();
    rows.extend(orphans.iter().filter(|_| show_blocks).map(|known| row_of(known, &reserved)));
    let mut text = table(&rows);
    if !orphans.is_empty() {
        let cidrs: Vec<String> = orphans.iter().map(|known| known.cidr.to_string()).collect();
        writeln!(text, "\nNote: {} block(s) are in no pool: {}", orphans.len(), cidrs.join(", "))?;
    }
    Ok(text)
}

fn row_of(known: &Known, reserved: &[IpNet]) -> (&'static str, IpNet, Use) {
    let mut block_use = Use::of(&known.cidr, reserved);
    block_use.count(known, reserved);
    ("Block", known.cidr, block_use)
}

/// CIDRs in the specs of a kind.
async fn cidrs(store: &dyn Datastore, kind: &str, of: fn(&Value) -> Vec<&Value>) -> Result<Vec<IpNet>> {
    let found: Vec<Resource> =
        get::list_stored(store, get::kind(kind)?).await?.into_iter().map(|(_, resource)| resource).collect();
    let mut cidrs = Vec::new();
    for resource in &found {
        for text in of(&resource.spec) {
            match text.as_str().unwrap_or_default().parse::<IpNet>() {
                Ok(cidr) => cidrs.push(cidr.trunc()),
                Err(_) => eprintln!("left out: {}: {text} is not a CIDR", resource.id()),
            }
        }
    }
    Ok(cidrs)
}

/// The same addresses in nets that do not overlap.
fn aggregate(nets: &[IpNet]) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for net in nets {
        match net {
            IpNet::V4(net) => v4.push(*net),
            IpNet::V6(net) => v6.push(*net),
        }
    }
    let v4 = Ipv4Net::aggregate(&v4).into_iter().map(IpNet::V4);
    v4.chain(Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6)).collect()
}

fn table(rows: &[(&str, IpNet, Use)]) -> String {
    let cooling = rows.iter().any(|(_, _, row)| row.cooling > 0);
    let reserved = rows.iter().any(|(_, _, row)| row.reserved > 0);
    let mut columns = vec![
        ("GROUPING", Align::Left),
        ("CIDR", Align::Left),
        ("IPS TOTAL", Align::Right),
        ("IPS IN USE", Align::Right),
        ("IPS FREE", Align::Right),
    ];
    columns.extend(reserved.then_some(("IPS RESERVED", Align::Right)));
    columns.extend(cooling.then_some(("IPS COOLING", Align::Right)));
    let cells = |(grouping, cidr, of): &(&str, IpNet, Use)| {
        let share = |count: u128| format!("{} ({:.0}%)", short(count), percent(count, of.total));
        let mut cells = vec![
            (*grouping).to_owned(),
            cidr.to_string(),
            short(of.total),
            share(of.in_use),
            share(of.free()),
        ];
        cells.extend(reserved.then(|| share(of.reserved)));
        cells.extend(cooling.then(|| share(of.cooling)));
        cells
    };
    grid::render(&columns, &rows.iter().map(cells).collect::<Vec<_>>())
}

#[allow(clippy::cast_precision_loss)]
fn percent(count: u128, total: u128) -> f64 {
    100.0 * count as f64 / total as f64
}

/// Five digits, as `%.5g` has them: `65536`, `1.0486e+06`.
#[allow(clippy::cast_precision_loss)]
fn short(count: u128) -> String {
    if count < 100_000 {
        return count.to_string();
    }
    let text = format!("{:.4e}", count as f64);
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e+{exponent:0>2}", digits.trim_end_matches('0').trim_end_matches('.'))
}

// === who has it ===

/// Who has one address.
pub async fn one(store: &dyn Datastore, ip: &str) -> Result<String> {
    let Ok(ip) = ip.parse::<IpAddr>() else { bail!("--ip {ip}: is not an IP address such as 10.65.0.1") };
    let blocks = blocks(store).await?;
    let holder = blocks.iter().find(|known| known.cidr.contains(&ip));
    let Some((known, attribute)) = holder.and_then(|known| {
        known.allocations().find(|(address, _)| *address == ip).map(|(_, owner)| (known, owner))
    }) else {
        return Ok(format!("{ip} is not assigned\n"));
    };
    let none = AllocationAttribute::default();
    let attribute = attribute.unwrap_or(&none);
    let mut text = match &attribute.released_at {
        Some(time) => format!("IP {ip} was released at {time} and is not given out again yet\n"),
        None => format!("IP {ip} is in use\n"),
    };
    let handle = attribute.handle_id.as_deref().filter(|handle| !handle.is_empty());
    writeln!(text, "Handle ID: {}", handle.unwrap_or("<none>"))?;
    match owners("Active Owner Attributes", &attribute.secondary).as_str() {
        "" => text.push_str("No Active Owner attributes defined\n"),
        owners => text.push_str(owners),
    }
    text += &owners("Alternate Owner Attributes", &alternates(known, ip));
    let owner = match known.owner() {
        "" => "no host".to_owned(),
        host => host.to_owned(),
    };
    writeln!(text, "Block: {} of {owner}", known.cidr)?;
    Ok(text)
}

fn owners(title: &str, attributes: &BTreeMap<String, String>) -> String {
    if attributes.is_empty() {
        return String::new();
    }
    let lines: String = attributes.iter().map(|(name, value)| format!("  {name}: {value}\n")).collect();
    format!("{title}:\n{lines}")
}

/// A second owner, while a virtual machine moves.
fn alternates(known: &Known, ip: IpAddr) -> BTreeMap<String, String> {
    let ordinal =
        (0..known.block.allocations.len()).find(|ordinal| address(&known.cidr, *ordinal) == Some(ip));
    let index = ordinal.and_then(|ordinal| known.block.allocations[ordinal]);
    let of =
        |index: usize| known.value.get("attributes")?.get(index)?.get("alternateOwnerAttrs")?.as_object();
    let members = index.and_then(of).into_iter().flatten();
    members
        .map(|(name, value)| (name.clone(), value.as_str().map_or(value.to_string(), Into::into)))
        .collect()
}

/// Addresses that a node has out of another node's block.
pub async fn borrowed(store: &dyn Datastore) -> Result<String> {
    let headings = ["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"];
    let (mut rows, mut unclassified) = (Vec::new(), 0);
    for known in blocks(store).await? {
        for (address, attribute) in known.allocations() {
            let Some(attribute) = attribute else { continue };
            if attribute.released_at.is_some() {
                continue;
            }
            let of = |name: &str| attribute.secondary.get(name).map(String::as_str);
            let Some(node) = of("node") else {
                unclassified += 1;
                continue;
            };
            if node == known.owner() {
                continue;
            }
            let namespace = of("namespace").unwrap_or_default();
            let (kind, whose) = match (of("vmi"), of("pod")) {
                (Some(machine), _) => ("vmi", format!("{namespace}/{machine}")),
                (None, Some(pod)) => ("pod", format!("{namespace}/{pod}")),
                (None, None) => (of("type").unwrap_or_default(), String::new()),
            };
            let cells = [&address.to_string(), node, &known.cidr.to_string(), known.owner(), kind, &whose];
            rows.push(cells.map(str::to_owned).to_vec());
        }
    }
    let mut text = grid::render(&headings.map(|heading| (heading, Align::Left)), &rows);
    if unclassified > 0 {
        writeln!(
            text,
            "\nNote: found {unclassified} IP allocations without an explicit node association. Unable to determine \
             if they are borrowed."
        )?;
    }
    Ok(text)
}

/// The settings of IPAM, with their defaults.
pub async fn configuration(store: &dyn Datastore) -> Result<String> {
    let stored = get::find(store, get::kind("ipamconfig")?, "default", "").await?;
    let spec = stored.map(|resource| resource.spec).unwrap_or_default();
    let value = |name: &str, default: Value| match spec.get(name) {
        None | Some(Value::Null) => default.to_string(),
        Some(value) => value.to_string(),
    };
    let mut rows = vec![
        ["StrictAffinity".into(), value("strictAffinity", false.into())].to_vec(),
        ["AutoAllocateBlocks".into(), value("autoAllocateBlocks", true.into())].to_vec(),
        ["MaxBlocksPerHost".into(), value("maxBlocksPerHost", 0.into())].to_vec(),
        ["IPCooldownSeconds".into(), value("ipCooldownSeconds", 0.into())].to_vec(),
    ];
    if spec.get("kubeVirtVMAddressPersistence").is_some() {
        rows.push(
            ["KubeVirtVMAddressPersistence".into(), value("kubeVirtVMAddressPersistence", "".into())]
                .to_vec(),
        );
    }
    Ok(grid::render(&[("PROPERTY", Align::Left), ("VALUE", Align::Left)], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_five_digits() {
        for (count, text) in [
            (0, "0"),
            (65_536, "65536"),
            (1 << 20, "1.0486e+06"),
            (16_777_216, "1.6777e+07"),
            (1 << 64, "1.8447e+19"),
            (100_000, "1e+05"),
        ] {
            assert_eq!(short(count), text);
        }
    }

    #[test]
    fn ordinals_stay_in_their_block() {
        let cidr: IpNet = "10.0.0.192/26".parse().unwrap();
        assert_eq!(address(&cidr, 63), Some("10.0.0.255".parse().unwrap()));
        assert_eq!(address(&cidr, 64), None);
        assert_eq!(address(&"fd00::/122".parse().unwrap(), 5), Some("fd00::5".parse().unwrap()));
    }
}

use felix_calc::output::{PolicyRef, Rule, Tier};

use super::render::resolve_host_endpoints;
use super::*;
use crate::ipsets::names as sets;
use crate::rules::ANY_INTERFACE;

/// Remembers what it was told last, and how often.
#[derive(Default)]
struct FakeKernel {
    chains: BTreeMap<(IpVersion, TableName, Owner), Vec<Chain>>,
    sets: BTreeMap<String, BTreeSet<String>>,
    workloads: BTreeMap<WorkloadEndpointKey, Workload>,
    calls: usize,
}

impl Sink for FakeKernel {
    fn chains(
        &mut self,
        version: IpVersion,
        table: TableName,
        owner: Owner,
        chains: Vec<Chain>,
        _always: bool,
    ) {
        self.calls += 1;
        match chains.is_empty() {
            true => self.chains.remove(&(version, table, owner)),
            false => self.chains.insert((version, table, owner), chains),
        };
    }
    fn hooks(&mut self, _: IpVersion, _: TableName, _: InsertMode, _: BTreeMap<String, Hooks>) {
        self.calls += 1;
    }
    fn set_replace(&mut self, id: &str, _kind: IpSetKind, members: &BTreeSet<String>) {
        self.calls += 1;
        self.sets.insert(id.into(), members.clone());
    }
    fn set_change(&mut self, id: &str, added: &[String], removed: &[String]) {
        self.calls += 1;
        let set = self.sets.get_mut(id).expect("created before");
        set.retain(|member| !removed.contains(member));
        set.extend(added.iter().cloned());
    }
    fn set_remove(&mut self, id: &str) {
        self.calls += 1;
        self.sets.remove(id);
    }
    fn workload(&mut self, id: &WorkloadEndpointKey, workload: Option<Workload>) {
        self.calls += 1;
        match workload {
            Some(workload) => self.workloads.insert(id.clone(), workload),
            None => self.workloads.remove(id),
        };
    }
    fn params(&mut self, _params: &DataplaneParams) {}
    fn own_node(&mut self, _own: &OwnNode) {
        self.calls += 1;
    }
    fn vtep(&mut self, _node: &str, _family: Family, _vtep: Option<Vtep>) {
        self.calls += 1;
    }
    fn route(&mut self, _dst: IpNet, _route: Option<Route>) {
        self.calls += 1;
    }
}

impl FakeKernel {
    fn flush(&mut self, model: &mut Model) -> usize {
        self.calls = 0;
        let refused = model.flush(self);
        assert!(refused.is_empty(), "{refused:?}");
        self.calls
    }

    fn names(&self, table: TableName) -> Vec<&str> {
        let of_table = self
            .chains
            .iter()
            .filter(|((version, other, _), _)| *other == table && *version == IpVersion::V4);
        of_table.flat_map(|(_, chains)| chains).map(|chain| chain.name.as_str()).collect()
    }
}

fn setup() -> (Model, FakeKernel) {
    let mut model = Model::new(&IpVersion::ALL, Features::all(), BTreeMap::new());
    let mut kernel = FakeKernel::default();
    assert!(kernel.flush(&mut model) > 0);
    (model, kernel)
}

fn key(name: &str) -> WorkloadEndpointKey {
    WorkloadEndpointKey {
        host: "n1".into(),
        orchestrator: "k8s".into(),
        workload: name.into(),
        endpoint: "eth0".into(),
    }
}

fn endpoint(interface: &str, ip: &str) -> WorkloadEndpoint {
    WorkloadEndpoint {
        active: true,
        interface: interface.into(),
        ipv4_nets: vec![ip.parse().unwrap()],
        profile_ids: vec!["p".into()],
        ..WorkloadEndpoint::default()
    }
}

fn update(name: &str, endpoint: WorkloadEndpoint) -> Output {
    Output::WorkloadEndpointUpdate { key: key(name), endpoint }
}

#[test]
fn nothing_new_renders_nothing() {
    let (mut model, mut kernel) = setup();
    assert_eq!(kernel.flush(&mut model), 0);
    model.on_output(update("a", endpoint("cali1", "10.0.0.1/32")));
    assert!(kernel.flush(&mut model) > 0);
    assert_eq!(kernel.flush(&mut model), 0);
}

#[test]
fn the_lowest_id_has_the_interface_and_the_next_one_inherits_it() {
    let (mut model, mut kernel) = setup();
    model.on_output(update("b", endpoint("cali1", "10.0.0.2/32")));
    model.on_output(update("a", endpoint("cali1", "10.0.0.1/32")));
    kernel.flush(&mut model);
    assert_eq!(kernel.workloads.keys().collect::<Vec<_>>(), [&key("a")]);
    model.on_output(Output::WorkloadEndpointRemove { key: key("a") });
    kernel.flush(&mut model);
    assert_eq!(kernel.workloads.keys().collect::<Vec<_>>(), [&key("b")]);
    model.on_output(Output::WorkloadEndpointRemove { key: key("b") });
    kernel.flush(&mut model);
    assert!(kernel.workloads.is_empty());
    assert!(!kernel.names(TableName::Filter).iter().any(|name| name.contains("cali1")));
}

#[test]
fn an_endpoint_that_changes_its_interface_keeps_its_routes() {
    for (before, after) in [("cali1", "cali2"), ("cali2", "cali1")] {
        let (mut model, mut kernel) = setup();
        model.on_output(update("a", endpoint(before, "10.0.0.1/32")));
        kernel.flush(&mut model);
        model.on_output(update("a", endpoint(after, "10.0.0.1/32")));
        kernel.flush(&mut model);
        assert_eq!(kernel.workloads[&key("a")].interface, after);
        let names = kernel.names(TableName::Filter);
        let has = |chain: String| names.contains(&chain.as_str());
        assert!(has(format!("cali-tw-{after}")) && !has(format!("cali-tw-{before}")), "{names:?}");
    }
}

#[test]
fn an_endpoint_that_is_administratively_down_has_chains_and_no_routes() {
    let (mut model, mut kernel) = setup();
    model.on_output(update("a", WorkloadEndpoint { active: false, ..endpoint("cali1", "10.0.0.1/32") }));
    kernel.flush(&mut model);
    assert!(kernel.workloads[&key("a")].nets.is_empty());
    assert!(kernel.names(TableName::Filter).contains(&"cali-tw-cali1"));
}

#[test]
fn policies_come_to_the_other_tables_with_the_first_host_endpoint_only() {
    let (mut model, mut kernel) = setup();
    let policy = PolicyKey { kind: "GlobalNetworkPolicy".into(), namespace: String::new(), name: "x".into() };
    model.on_output(Output::PolicyUpdate {
        key: policy.clone(),
        policy: ActivePolicy { inbound: [Rule::default()].into(), ..ActivePolicy::default() },
    });
    kernel.flush(&mut model);
    assert!(kernel.names(TableName::Filter).contains(&"cali-pi-gnp/x"));
    assert!(!kernel.names(TableName::Raw).contains(&"cali-pi-gnp/x"));

    let host = HostEndpointKey { host: "n1".into(), endpoint: "eth0".into() };
    let tiers = vec![Tier {
        name: "default".into(),
        default_action: "Deny".into(),
        ingress: vec![PolicyRef { key: policy, original_selector: "all()".into() }],
        egress: Vec::new(),
    }];
    model.on_output(Output::HostEndpointUpdate {
        key: host.clone(),
        endpoint: HostEndpoint { name: "eth0".into(), untracked_tiers: tiers, ..HostEndpoint::default() },
    });
    kernel.flush(&mut model);
    assert!(!kernel.names(TableName::Raw).contains(&"cali-pi-gnp/x"), "no such interface yet");
    model.on_interfaces(vec![HostInterface { name: "eth0".into(), addresses: Vec::new() }]);
    kernel.flush(&mut model);
    assert!(kernel.names(TableName::Raw).contains(&"cali-pi-gnp/x"));
    assert!(kernel.names(TableName::Raw).contains(&"cali-fh-eth0"));
    model.on_output(Output::HostEndpointRemove { key: host });
    kernel.flush(&mut model);
    assert!(!kernel.names(TableName::Raw).contains(&"cali-pi-gnp/x"));
}

#[test]
fn a_name_beats_addresses_and_the_lowest_id_breaks_ties() {
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let interfaces = [
        HostInterface { name: "eth0".into(), addresses: vec![address] },
        HostInterface { name: "eth1".into(), addresses: vec![address] },
    ];
    let key = |name: &str| HostEndpointKey { host: "n1".into(), endpoint: name.into() };
    let endpoint = |name: &str, ips: &[IpAddr]| HostEndpoint {
        name: name.into(),
        expected_ips: ips.to_vec(),
        ..HostEndpoint::default()
    };
    let endpoints = BTreeMap::from([
        (key("a"), endpoint("", &[address])),
        (key("b"), endpoint("eth0", &[])),
        (key("c"), endpoint("eth0", &[])),
        (key("d"), endpoint("*", &[])),
    ]);
    let resolved = resolve_host_endpoints(&endpoints, &interfaces);
    assert_eq!(resolved["eth0"], key("b"));
    assert_eq!(resolved["eth1"], key("a"));
    assert_eq!(resolved[ANY_INTERFACE], key("d"));
}

#[test]
fn pools_fill_the_built_in_sets() {
    let (mut model, mut kernel) = setup();
    for (cidr, masquerade, uses) in [
        ("10.0.0.0/16", true, "Workload"),
        ("10.1.0.0/16", false, "Workload"),
        ("10.2.0.0/16", false, "LoadBalancer"),
    ] {
        let pool = values::IpPool { masquerade, allowed_uses: vec![uses.into()], ..Default::default() };
        model.on_output(Output::PoolUpdate { cidr: cidr.parse().unwrap(), pool });
    }
    kernel.flush(&mut model);
    assert_eq!(kernel.sets[sets::NETWORK_IP_POOLS].len(), 2);
    assert_eq!(kernel.sets[sets::MASQ_IP_POOLS].len(), 1);
    assert!(kernel.sets.contains_key(sets::DSCP_SOURCES) && !kernel.sets.contains_key(sets::ALL_HOSTS));

    // A pool with tunnels needs the list of nodes.
    let pool = values::IpPool { ipip_mode: "always".into(), ..Default::default() };
    model.on_output(Output::PoolUpdate { cidr: "10.3.0.0/16".parse().unwrap(), pool });
    model.on_output(Output::HostUpdate {
        node: "n2".into(),
        host: Host { ipv4: Some("172.30.0.2".parse().unwrap()), ..Host::default() },
    });
    kernel.flush(&mut model);
    assert_eq!(kernel.sets[sets::ALL_HOSTS], BTreeSet::from(["172.30.0.2".to_owned()]));
    model.on_output(Output::PoolRemove { cidr: "10.3.0.0/16".parse().unwrap() });
    kernel.flush(&mut model);
    assert!(!kernel.sets.contains_key(sets::ALL_HOSTS));
}

#[test]
fn what_is_given_on_the_node_overrides_the_datastore() {
    let local = BTreeMap::from([("DefaultEndpointToHostAction".to_owned(), "RETURN".to_owned())]);
    let mut model = Model::new(&[IpVersion::V4], Features::all(), local);
    model.on_output(Output::Config(BTreeMap::from([
        ("defaultEndpointToHostAction".to_owned(), "ACCEPT".to_owned()),
        ("MaxIpsetSize".to_owned(), "many".to_owned()),
    ])));
    let refused = model.flush(&mut FakeKernel::default());
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].name, "MaxIpsetSize");
    assert_eq!(
        model.renderer().config().endpoint_to_host_action,
        crate::rules::config::EndpointToHostAction::Return
    );
}

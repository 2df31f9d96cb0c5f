//! The key vectors: key → path and back, display, paths to delete, listings, and values as text.

use std::path::PathBuf;

use serde_json::Value;
use syncer_common::model::{
    BlockAffinityKey, HostEndpointKey, Key, ListOptions, PolicyKey, ResourceKey, ResourceKind,
    WorkloadEndpointKey, canonical_value,
};

fn vectors(file: &str) -> Option<Value> {
    let folder = std::env::var_os("BULRUSH_CONFORMANCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"),
        PathBuf::from,
    );
    match std::fs::read(folder.join(file)) {
        Ok(text) => Some(serde_json::from_slice(&text).expect("vectors are JSON")),
        Err(error) => {
            assert!(
                std::env::var("BULRUSH_REQUIRE").as_deref() != Ok("1"),
                "cannot read {file} in the conformance folder: {error}"
            );
            println!("SKIPPED: no conformance folder");
            None
        }
    }
}

/// The named fields of a key or of list options, as the vectors write them.
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn text(&self, field: &str) -> String {
        self.0[field].as_str().unwrap_or_default().to_owned()
    }

    fn given(&self, field: &str) -> Option<String> {
        self.0[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    fn version(&self) -> Option<u8> {
        self.0["IPVersion"].as_u64().map(|version| u8::try_from(version).expect("an IP version"))
    }

    fn parsed<T: std::str::FromStr>(&self, field: &str) -> Option<T> {
        self.0[field].as_str()?.parse().ok()
    }

    fn port(&self) -> u16 {
        u16::try_from(self.0["Port"].as_u64().unwrap_or_default()).expect("a port")
    }

    fn policy(&self) -> PolicyKey {
        PolicyKey { kind: self.text("Kind"), namespace: self.text("Namespace"), name: self.text("Name") }
    }
}

/// The typed key; `None` when a field cannot be expressed (no CIDR, no address), which is a key without path.
fn key_of(kind: &str, fields: &Value) -> Option<Key> {
    let f = Fields(fields);
    Some(match kind {
        "WorkloadEndpointKey" => Key::WorkloadEndpoint(WorkloadEndpointKey {
            host: f.text("Hostname"),
            orchestrator: f.text("OrchestratorID"),
            workload: f.text("WorkloadID"),
            endpoint: f.text("EndpointID"),
        }),
        "HostEndpointKey" => {
            Key::HostEndpoint(HostEndpointKey { host: f.text("Hostname"), endpoint: f.text("EndpointID") })
        }
        "PolicyKey" => Key::Policy(f.policy()),
        "LegacyPolicyKey" => Key::LegacyPolicy { tier: f.text("Tier"), policy: f.policy() },
        "TierKey" => Key::Tier { name: f.text("Name") },
        "ProfileRulesKey" => Key::ProfileRules { name: f.text("Name") },
        "ProfileLabelsKey" => Key::ProfileLabels { name: f.text("Name") },
        "NetworkSetKey" => Key::NetworkSet { name: f.text("Name") },
        "IPPoolKey" => Key::IpPool { cidr: f.parsed("CIDR")? },
        "GlobalConfigKey" => Key::GlobalConfig { name: f.text("Name") },
        "HostConfigKey" => Key::HostConfig { host: f.text("Hostname"), name: f.text("Name") },
        "ReadyFlagKey" => Key::ReadyFlag,
        "BlockKey" => Key::Block { cidr: f.parsed("CIDR")? },
        "BlockAffinityKey" => Key::BlockAffinity(BlockAffinityKey {
            host: f.text("Host"),
            cidr: f.parsed("CIDR")?,
            affinity_type: f.text("AffinityType"),
        }),
        "ResourceKey" => Key::Resource(ResourceKey {
            kind: f.text("Kind"),
            namespace: f.text("Namespace"),
            name: f.text("Name"),
        }),
        "WireguardKey" => Key::Wireguard { node: f.text("NodeName") },
        "IPAMHandleKey" => Key::IpamHandle { id: f.text("HandleID") },
        "IPAMConfigKey" => Key::IpamConfig,
        "IPAMHostKey" => Key::IpamHost { host: f.text("Host") },
        "HostMetadataKey" => Key::HostMetadata { host: f.text("Hostname") },
        "OrchRefKey" => Key::OrchRefs { host: f.text("Hostname") },
        "GlobalBGPConfigKey" => Key::GlobalBgpConfig { name: f.text("Name") },
        "NodeBGPConfigKey" => Key::NodeBgpConfig { node: f.text("Nodename"), name: f.text("Name") },
        "BGPNodeKey" => Key::BgpNode { host: f.text("Host") },
        "GlobalBGPPeerKey" => Key::GlobalBgpPeer { peer_ip: f.parsed("PeerIP")?, port: f.port() },
        "NodeBGPPeerKey" => {
            Key::NodeBgpPeer { node: f.text("Nodename"), peer_ip: f.parsed("PeerIP")?, port: f.port() }
        }
        "ActiveStatusReportKey" => {
            Key::ActiveStatusReport { region: f.text("RegionString"), host: f.text("Hostname") }
        }
        "LastStatusReportKey" => {
            Key::LastStatusReport { region: f.text("RegionString"), host: f.text("Hostname") }
        }
        "HostEndpointStatusKey" => {
            Key::HostEndpointStatus { host: f.text("Hostname"), endpoint: f.text("EndpointID") }
        }
        "WorkloadEndpointStatusKey" => Key::WorkloadEndpointStatus {
            region: f.text("RegionString"),
            host: f.text("Hostname"),
            orchestrator: f.text("OrchestratorID"),
            workload: f.text("WorkloadID"),
            endpoint: f.text("EndpointID"),
        },
        unknown => panic!("a kind of key that the model lacks: {unknown}"),
    })
}

fn list_of(kind: &str, options: &Value) -> ListOptions {
    let f = Fields(options);
    let (host, region) = (f.given("Hostname"), f.given("RegionString"));
    let endpoint = f.given("EndpointID");
    match kind {
        "WorkloadEndpointListOptions" => ListOptions::WorkloadEndpoints {
            host,
            orchestrator: f.given("OrchestratorID"),
            workload: f.given("WorkloadID"),
            endpoint,
        },
        "HostEndpointListOptions" => ListOptions::HostEndpoints { host, endpoint },
        "PolicyListOptions" => ListOptions::Policies {
            kind: f.given("Kind"),
            namespace: f.given("Namespace"),
            name: f.given("Name"),
        },
        "TierListOptions" => ListOptions::Tiers { name: f.given("Name") },
        "ProfileListOptions" => ListOptions::Profiles { name: f.given("Name") },
        "NetworkSetListOptions" => ListOptions::NetworkSets { name: f.given("Name") },
        "IPPoolListOptions" => ListOptions::IpPools { cidr: f.parsed("CIDR") },
        "GlobalConfigListOptions" => ListOptions::GlobalConfig { name: f.given("Name") },
        "HostConfigListOptions" => ListOptions::HostConfig { host, name: f.given("Name") },
        "HostMetadataListOptions" => ListOptions::HostMetadata { host },
        "BlockListOptions" => ListOptions::Blocks { ip_version: f.version() },
        "BlockAffinityListOptions" => ListOptions::BlockAffinities {
            host: f.given("Host"),
            affinity_type: f.given("AffinityType"),
            ip_version: f.version(),
        },
        "IPAMHandleListOptions" => ListOptions::IpamHandles,
        "GlobalBGPConfigListOptions" => ListOptions::GlobalBgpConfig { name: f.given("Name") },
        "NodeBGPConfigListOptions" => {
            ListOptions::NodeBgpConfig { node: f.given("Nodename"), name: f.given("Name") }
        }
        "ResourceListOptions" => ListOptions::Resources {
            kind: ResourceKind::by_kind(&f.text("Kind")).expect("a known kind"),
            namespace: f.given("Namespace"),
            name: f.given("Name"),
            prefix: options["Prefix"].as_bool().unwrap_or_default(),
        },
        "HostEndpointStatusListOptions" => ListOptions::HostEndpointStatuses { host, endpoint },
        "ActiveStatusReportListOptions" => ListOptions::ActiveStatusReports { region, host },
        "LastStatusReportListOptions" => ListOptions::LastStatusReports { region, host },
        "WorkloadEndpointStatusListOptions" => ListOptions::WorkloadEndpointStatuses {
            region,
            host,
            orchestrator: f.given("OrchestratorID"),
            workload: f.given("WorkloadID"),
            endpoint,
        },
        unknown => panic!("a listing that the model lacks: {unknown}"),
    }
}

fn case_key(case: &Value) -> Option<Key> {
    key_of(case["kind"].as_str().expect("kind is text"), &case["fields"])
}

fn nested_key(value: &Value) -> Option<Key> {
    if value.is_null() { None } else { case_key(value) }
}

/// Text as a JSON value, `null` for none: what the vectors hold.
fn json(text: Option<impl Into<String>>) -> Value {
    text.map_or(Value::Null, |text| Value::String(text.into()))
}

fn expect(wrong: &mut Vec<String>, what: &str, got: &Value, want: &Value) {
    if got != want {
        wrong.push(format!("{what}: got {got}, want {want}"));
    }
}

fn check_key(case: &Value, wrong: &mut Vec<String>) {
    let key = case_key(case);
    let path = key.as_ref().and_then(|key| key.path().ok());
    expect(wrong, "path", &json(path.clone()), &case["path"]);
    expect(wrong, "valid", &Value::from(path.is_some()), &case["valid"]);
    let (Some(key), Some(path)) = (key, path) else { return };
    expect(wrong, "display", &json(Some(key.to_string())), &case["display"]);
    expect(wrong, "delete_path", &json(key.delete_path().ok()), &case["delete_path"]);
    let parents: Vec<Value> =
        key.delete_parent_paths().expect("a key with a path").into_iter().map(Value::from).collect();
    let wanted = case["delete_parent_paths"].as_array().cloned().unwrap_or_default();
    expect(wrong, "delete_parent_paths", &Value::Array(parents), &Value::Array(wanted));
    let parsed = Key::parse(&path);
    if parsed != nested_key(&case["parsed"]) {
        wrong.push(format!("parsed: got {parsed:?}, want {}", case["parsed"]));
    }
    expect(wrong, "round_trips", &Value::from(parsed == Some(key)), &case["round_trips"]);
}

fn check_path(case: &Value, wrong: &mut Vec<String>) {
    let valid = case["valid"].as_bool().expect("valid is a bool") && case["upstream_panics"] != true;
    let parsed = Key::parse(case["path"].as_str().expect("path is text"));
    let wanted = if valid { case_key(case) } else { None };
    if parsed != wanted {
        wrong.push(format!("parsed: got {parsed:?}, want {wanted:?}"));
    }
    let Some(key) = parsed else { return };
    expect(wrong, "canonical_path", &json(key.path().ok()), &case["canonical_path"]);
    if !case["upgraded"].is_null() {
        let upgraded = Some(key.clone().upgrade());
        if upgraded != nested_key(&case["upgraded"]) {
            wrong.push(format!("upgraded: got {upgraded:?}, want {}", case["upgraded"]));
        }
        expect(wrong, "tier", &json(key.legacy_tier()), &case["fields"]["Tier"]);
    }
}

fn check_list(case: &Value, wrong: &mut Vec<String>) {
    let options = list_of(case["kind"].as_str().expect("kind is text"), &case["options"]);
    let (root, range) = (options.root(), options.range());
    expect(wrong, "root", &json(Some(root.path)), &case["root"]);
    expect(wrong, "fully_qualified", &Value::from(root.fully_qualified), &case["fully_qualified"]);
    expect(wrong, "etcd_key", &json(Some(range.key)), &case["etcd_key"]);
    expect(wrong, "etcd_prefix_query", &Value::from(range.prefix), &case["etcd_prefix_query"]);
}

/// Objects are compared as documents: the order of members and the escaping of `&` mean nothing.
fn check_value(case: &Value, wrong: &mut Vec<String>) {
    let key = case_key(case).expect("a key that can be expressed");
    let got = canonical_value(&key, case["raw"].as_str().expect("raw is text").as_bytes());
    expect(wrong, "valid", &Value::from(got.is_some()), &case["valid"]);
    let (Some(got), Some(want)) = (got, case["serialised"].as_str()) else { return };
    let document = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    match (document(&got), document(want)) {
        (Some(got), Some(want)) => expect(wrong, "serialised", &got, &want),
        _ => expect(wrong, "serialised", &json(Some(got)), &json(Some(want))),
    }
}

#[test]
fn keys_paths_listings_and_values_agree_with_the_vectors() {
    let Some(vectors) = vectors("model_keys.json") else { return };
    let cases = vectors["cases"].as_array().expect("cases is a list");
    assert!(!cases.is_empty(), "the vectors have no cases");
    let mut failures = Vec::new();
    for case in cases {
        let mut wrong = Vec::new();
        match case["type"].as_str() {
            Some("key") => check_key(case, &mut wrong),
            Some("path") => check_path(case, &mut wrong),
            Some("list") => check_list(case, &mut wrong),
            Some("value") => check_value(case, &mut wrong),
            other => panic!("{}: unknown type {other:?}", case["id"]),
        }
        failures.extend(wrong.into_iter().map(|wrong| format!("{}: {wrong}", case["id"])));
    }
    println!("{} cases, {} disagreements", cases.len(), failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

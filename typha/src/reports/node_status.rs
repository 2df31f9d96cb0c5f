//! CalicoNodeStatus: an operator asks for a node's state by making the object; typha fills in the BGP class from
//! what confd reports. Other classes are left as they are. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use proto::sync::BgpReport;
use serde_json::{Value, json};

pub(super) const PREFIX: &str = "/calico/resources/v3/projectcalico.org/caliconodestatuses/";
const PERIOD: u64 = 10;

/// The object with the state of its node, if it wants it and it is time.
pub(super) fn updated(
    object: &[u8],
    reports: &BTreeMap<String, BgpReport>,
    now: SystemTime,
) -> Option<Bytes> {
    let mut object: Value = serde_json::from_slice(object).ok()?;
    let spec = object.get("spec")?;
    let report = reports.get(spec.get("node")?.as_str()?)?;
    let wants_bgp = spec.get("classes")?.as_array()?.iter().any(|class| class == "BGP");
    let period = spec.get("updatePeriodSeconds").and_then(Value::as_u64).unwrap_or(PERIOD);
    if !wants_bgp || period == 0 {
        return None;
    }
    let last = object.pointer("/status/lastUpdated").and_then(Value::as_str);
    let last = last.and_then(|text| humantime::parse_rfc3339_weak(text).ok());
    let bgp = sessions(report);
    let recent = last.is_some_and(|last| {
        // Timestamps have whole seconds.
        now.duration_since(last)
            .is_ok_and(|age| age < Duration::from_secs(period).saturating_sub(Duration::from_secs(1)))
    });
    if recent {
        return None;
    }
    if !object.get("status").is_some_and(Value::is_object) {
        object["status"] = json!({});
    }
    object["status"]["bgp"] = bgp;
    object["status"]["lastUpdated"] = json!(humantime::format_rfc3339_seconds(now).to_string());
    Some(Bytes::from(object.to_string()))
}

fn sessions(report: &BgpReport) -> Value {
    let family = |v6: bool| {
        let of_family = |peer: &str| peer.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6() == v6);
        let sessions = report.sessions.iter().filter(|session| of_family(&session.peer));
        let (up, down): (Vec<_>, Vec<_>) = sessions.partition(|session| session.state == "Established");
        let all = up.iter().chain(&down).map(|session| {
            json!({"peerIP": session.peer, "type": session.kind(), "state": session.state, "since": session.since})
        });
        (up.len(), down.len(), all.collect::<Vec<_>>())
    };
    let ((up4, down4, peers4), (up6, down6, peers6)) = (family(false), family(true));
    json!({
        "numberEstablishedV4": up4, "numberNotEstablishedV4": down4, "peersV4": peers4,
        "numberEstablishedV6": up6, "numberNotEstablishedV6": down6, "peersV6": peers6,
    })
}

/// Calico's words for the types of peers.
trait PeerType {
    fn kind(&self) -> &'static str;
}

impl PeerType for proto::sync::BgpSession {
    fn kind(&self) -> &'static str {
        match self.r#type.as_str() {
            "node-to-node mesh" => "NodeMesh",
            "node specific" => "NodePeer",
            _ => "GlobalPeer",
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::sync::BgpSession;

    use super::*;

    fn reports() -> BTreeMap<String, BgpReport> {
        let session = |peer: &str, state: &str| BgpSession {
            peer: peer.into(),
            r#type: "node-to-node mesh".into(),
            state: state.into(),
            info: String::new(),
            since: "04:59:40".into(),
        };
        let sessions = vec![
            session("10.0.0.2", "Established"),
            session("10.0.0.3", "Active"),
            session("fd00::2", "Idle"),
        ];
        BTreeMap::from([("n1".to_owned(), BgpReport { sessions })])
    }

    fn object(node: &str, classes: &[&str], period: u64) -> Vec<u8> {
        let spec = json!({"node": node, "classes": classes, "updatePeriodSeconds": period});
        json!({"kind": "CalicoNodeStatus", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "s"}, "spec": spec})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn bgp_sessions_are_filled_in_for_who_asks_and_not_before_the_period_is_over() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let filled = updated(&object("n1", &["Agent", "BGP"], 30), &reports(), now).unwrap();
        let value: Value = serde_json::from_slice(&filled).unwrap();
        let bgp = &value["status"]["bgp"];
        assert_eq!((&bgp["numberEstablishedV4"], &bgp["numberNotEstablishedV4"]), (&json!(1), &json!(1)));
        assert_eq!(
            bgp["peersV4"][0],
            json!({"peerIP": "10.0.0.2", "type": "NodeMesh", "state": "Established", "since": "04:59:40"})
        );
        assert_eq!(bgp["numberNotEstablishedV6"], json!(1));
        assert_eq!(value["spec"]["updatePeriodSeconds"], json!(30));
        assert!(updated(&filled, &reports(), now + Duration::from_secs(20)).is_none());
        assert!(updated(&filled, &reports(), now + Duration::from_secs(30)).is_some());
        for other in [object("n2", &["BGP"], 30), object("n1", &["Routes"], 30), object("n1", &["BGP"], 0)] {
            assert!(updated(&other, &reports(), now).is_none());
        }
    }
}

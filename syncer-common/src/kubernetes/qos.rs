//! Traffic limits of a pod, from its annotations. Bad ones never keep a pod from working: they are clamped, or
//! left out, and reported.

use serde::Serialize;

use super::object::{Meta, error};
use super::quantity;
use crate::apis::FieldError;
use crate::apis::network::{DSCP_ANNOTATION, Dscp};

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QosControls {
    #[serde(skip_serializing_if = "is_unset")]
    ingress_bandwidth: i64,
    #[serde(skip_serializing_if = "is_unset")]
    ingress_burst: i64,
    #[serde(skip_serializing_if = "is_unset")]
    ingress_peakrate: i64,
    #[serde(skip_serializing_if = "is_unset")]
    ingress_minburst: i64,
    #[serde(skip_serializing_if = "is_unset")]
    egress_bandwidth: i64,
    #[serde(skip_serializing_if = "is_unset")]
    egress_burst: i64,
    #[serde(skip_serializing_if = "is_unset")]
    egress_peakrate: i64,
    #[serde(skip_serializing_if = "is_unset")]
    egress_minburst: i64,
    #[serde(skip_serializing_if = "is_unset")]
    ingress_packet_rate: i64,
    #[serde(skip_serializing_if = "is_unset")]
    ingress_packet_burst: i64,
    #[serde(skip_serializing_if = "is_unset")]
    egress_packet_rate: i64,
    #[serde(skip_serializing_if = "is_unset")]
    egress_packet_burst: i64,
    #[serde(skip_serializing_if = "is_unset")]
    ingress_max_connections: i64,
    #[serde(skip_serializing_if = "is_unset")]
    egress_max_connections: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dscp: Option<Dscp>,
}

fn is_unset(value: &i64) -> bool {
    *value == 0
}

const PREFIX: &str = "qos.projectcalico.org/";
/// In bits per second, bits, and bytes.
const BANDWIDTH: (i64, i64) = (1000, 1_000_000_000_000_000);
const BURST: (i64, i64) = (1000, 8 * u32::MAX as i64);
/// Above every bandwidth.
const PEAKRATE: (i64, i64) = (1010, 1_010_000_000_000_000);
const MINBURST: (i64, i64) = (1000, 100_000_000);
/// What the kernel's limit match can count.
const PACKETS: (i64, i64) = (1, 10_000);
const CONNECTIONS: (i64, i64) = (1, u32::MAX as i64);
const DEFAULT_BURST: i64 = 4 << 30;
const DEFAULT_PACKET_BURST: i64 = 5;

/// The limits of one direction: bandwidth, burst, peakrate, minburst, packet rate, packet burst, connections.
#[derive(Default)]
struct Limits {
    bandwidth: i64,
    burst: i64,
    peakrate: i64,
    minburst: i64,
    packet_rate: i64,
    packet_burst: i64,
    max_connections: i64,
}

/// Nothing when no annotation asks for anything.
pub(super) fn read(meta: &Meta<'_>, findings: &mut Vec<FieldError>) -> Option<QosControls> {
    if !meta.annotations.keys().any(|name| name.starts_with(PREFIX) || name.ends_with("gress-bandwidth")) {
        return None;
    }
    let mut annotations = Annotations { meta, findings };
    let ingress = annotations.limits("ingress");
    let egress = annotations.limits("egress");
    let controls = QosControls {
        ingress_bandwidth: ingress.bandwidth,
        ingress_burst: ingress.burst,
        ingress_peakrate: ingress.peakrate,
        ingress_minburst: ingress.minburst,
        egress_bandwidth: egress.bandwidth,
        egress_burst: egress.burst,
        egress_peakrate: egress.peakrate,
        egress_minburst: egress.minburst,
        ingress_packet_rate: ingress.packet_rate,
        ingress_packet_burst: ingress.packet_burst,
        egress_packet_rate: egress.packet_rate,
        egress_packet_burst: egress.packet_burst,
        ingress_max_connections: ingress.max_connections,
        egress_max_connections: egress.max_connections,
        dscp: annotations.dscp(),
    };
    (controls != QosControls::default()).then_some(controls)
}

struct Annotations<'m, 'f> {
    meta: &'m Meta<'m>,
    findings: &'f mut Vec<FieldError>,
}

impl Annotations<'_, '_> {
    fn limits(&mut self, direction: &str) -> Limits {
        let own = |what: &str| format!("{PREFIX}{direction}{what}");
        // Calico's annotation overrides the one of Kubernetes' bandwidth plugin, also when it is bad.
        let plugin = self.quantity(&format!("kubernetes.io/{direction}-bandwidth"), BANDWIDTH);
        let mut limits = Limits {
            bandwidth: self.quantity(&own("Bandwidth"), BANDWIDTH).or(plugin).unwrap_or_default(),
            burst: self.quantity(&own("Burst"), BURST).unwrap_or_default(),
            peakrate: self.quantity(&own("Peakrate"), PEAKRATE).unwrap_or_default(),
            minburst: self.quantity(&own("Minburst"), MINBURST).unwrap_or_default(),
            packet_rate: self.quantity(&own("PacketRate"), PACKETS).unwrap_or_default(),
            packet_burst: self.quantity(&own("PacketBurst"), PACKETS).unwrap_or_default(),
            max_connections: self.quantity(&own("MaxConnections"), CONNECTIONS).unwrap_or_default(),
        };
        let Limits { bandwidth, peakrate, packet_rate, .. } = limits;
        self.need(&own("Burst"), &mut limits.burst, bandwidth != 0, "bandwidth");
        let above = bandwidth != 0 && peakrate > bandwidth;
        self.need(&own("Peakrate"), &mut limits.peakrate, above, "a lower bandwidth");
        self.need(&own("Minburst"), &mut limits.minburst, limits.peakrate != 0, "peakrate");
        self.need(&own("PacketBurst"), &mut limits.packet_burst, packet_rate != 0, "packet rate");
        if bandwidth != 0 && limits.burst == 0 {
            limits.burst = DEFAULT_BURST;
        }
        if packet_rate != 0 && limits.packet_burst == 0 {
            limits.packet_burst = DEFAULT_PACKET_BURST;
        }
        limits
    }

    fn note(&mut self, name: &str, reason: String) {
        self.findings.push(error(format!("metadata.annotations[{name}]"), reason));
    }

    /// `None` without annotation; 0 when it does not read.
    fn quantity(&mut self, name: &str, (least, most): (i64, i64)) -> Option<i64> {
        let text = self.meta.annotations.get(name)?;
        let Some(value) = quantity::parse(text) else {
            self.note(name, format!("{:?} is not a quantity", &**text));
            return Some(0);
        };
        let clamped = value.clamp(least, most);
        if clamped != value {
            self.note(name, format!("{:?} is not between {least} and {most}: {clamped} is used", &**text));
        }
        Some(clamped)
    }

    fn need(&mut self, name: &str, value: &mut i64, given: bool, what: &str) {
        if *value != 0 && !given {
            *value = 0;
            self.note(name, format!("has no effect without {what}"));
        }
    }

    fn dscp(&mut self) -> Option<Dscp> {
        let text = self.meta.annotations.get(DSCP_ANNOTATION)?;
        let dscp = Dscp::parse(text);
        if dscp.is_none() {
            let reason = format!("{:?} is neither 0 to 63 nor a class such as AF21", &**text);
            self.note(DSCP_ANNOTATION, reason);
        }
        dscp
    }
}

//! IP sets as rules ask for them: identity, and what fills them.
//!
//! The ids are Calico's, so that sets keep their kernel names when a node is switched over
//! (`conformance/ipset_ids.json`). An id fixes the content's definition: equal ids are one set.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha224};
use syncer_common::model::values;
use syncer_common::selector::Selector;

use crate::output::IpSetKind;

/// What a rule needs in the kernel before it can be rendered.
#[derive(Clone)]
pub struct IpSetDef {
    pub id: String,
    pub source: IpSetSource,
}

#[derive(Clone)]
pub enum IpSetSource {
    /// The addresses of everything that the selector matches.
    Selector(Selector),
    /// Address and number of the ports with this name, on what the selector matches.
    NamedPort { selector: Selector, protocol: PortProtocol, name: String },
    /// The endpoints of a Kubernetes Service, ready or not: who is going still has to be answered.
    Service { service: ServiceName, with_ports: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

/// The protocol by which a rule narrows a named port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortProtocol {
    Any,
    Tcp,
    Udp,
    Sctp,
}

impl PortProtocol {
    pub fn of(protocol: Option<&values::Protocol>) -> Self {
        use values::protocol::Id;
        match protocol.and_then(|protocol| protocol.id.as_ref()) {
            Some(Id::Number(6)) => Self::Tcp,
            Some(Id::Number(17)) => Self::Udp,
            Some(Id::Number(132)) => Self::Sctp,
            Some(Id::Name(name)) => Self::named(name),
            _ => Self::Any,
        }
    }

    /// By name in any case; a protocol without ports counts as any.
    pub fn named(name: &str) -> Self {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|known| known.name().eq_ignore_ascii_case(name))
            .unwrap_or(Self::Any)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    pub fn covers(self, port: PortProtocol) -> bool {
        self == Self::Any || self == port
    }
}

impl IpSetDef {
    pub fn selector(selector: Selector) -> Self {
        IpSetDef { id: selector.uid(), source: IpSetSource::Selector(selector) }
    }

    pub fn named_port(selector: Selector, protocol: PortProtocol, name: &str) -> Self {
        IpSetDef {
            id: digest("n:", &format!("{},{},{name}", selector.uid(), protocol.name())),
            source: IpSetSource::NamedPort { selector, protocol, name: name.to_owned() },
        }
    }

    /// With ports for a destination, without for a source (a client's port is not the service's).
    pub fn service(namespace: &str, name: &str, with_ports: bool) -> Self {
        let prefix = if with_ports { "svc:" } else { "svcnoport:" };
        IpSetDef {
            id: digest(prefix, &format!("{namespace}/{name}")),
            source: IpSetSource::Service {
                service: ServiceName { namespace: namespace.to_owned(), name: name.to_owned() },
                with_ports,
            },
        }
    }
}

impl IpSetSource {
    pub fn kind(&self) -> IpSetKind {
        match self {
            Self::Selector(_) | Self::Service { with_ports: false, .. } => IpSetKind::Net,
            Self::NamedPort { .. } | Self::Service { with_ports: true, .. } => IpSetKind::IpAndPort,
        }
    }
}

fn digest(prefix: &str, content: &str) -> String {
    let hash = Sha224::new().chain_update(prefix).chain_update(content).finalize();
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(hash))
}

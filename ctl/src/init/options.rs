//! What `node init` is told: by options, or by the variables that Calico's node reads.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// This node's name [default: the file nodename in --state, HOSTNAME, the host's name]
    #[arg(long, env = "NODENAME")]
    pub name: Option<String>,
    /// IPv4 address, with or without the length of its network; `autodetect`, or `none` to leave it as it is stored
    /// [default: the stored one, else autodetect]
    #[arg(long, env = "IP")]
    pub ip: Option<String>,
    /// The same of IPv6 [default: as it is stored]
    #[arg(long, env = "IP6")]
    pub ip6: Option<String>,
    /// How the IPv4 address is found: first-found, interface=REGEX,…, skip-interface=REGEX,…, cidr=CIDR,…,
    /// can-reach=DESTINATION, kubernetes-internal-ip
    #[arg(long, env = "IP_AUTODETECTION_METHOD", value_name = "METHOD", default_value = "first-found")]
    pub ip_autodetection_method: String,
    /// How the IPv6 address is found
    #[arg(long, env = "IP6_AUTODETECTION_METHOD", value_name = "METHOD", default_value = "first-found")]
    pub ip6_autodetection_method: String,
    /// AS number of this node [default: the cluster's]
    #[arg(long = "as", env = "AS", value_name = "NUMBER")]
    pub as_number: Option<String>,
    /// This node's name in Kubernetes, where the datastore is etcd
    #[arg(long, env = "CALICO_K8S_NODE_REF", value_name = "NAME")]
    pub k8s_node_ref: Option<String>,
    /// Do not look whether another node has the address
    #[arg(long, env = "DISABLE_NODE_IP_CHECK", value_parser = BoolishValueParser::new())]
    pub disable_node_ip_check: bool,
    /// Wait for the datastore instead of failing
    #[arg(long, env = "WAIT_FOR_DATASTORE", value_parser = BoolishValueParser::new())]
    pub wait_for_datastore: bool,
    #[command(flatten)]
    pub pools: Pools,
    /// Where the files `nodename` and `mtu` are written, which CNI plugins read
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/calico")]
    pub state: PathBuf,
    #[command(flatten)]
    pub watch: Watch,
}

/// The pools that a cluster without any gets.
#[derive(Args, Clone, Debug)]
pub struct Pools {
    /// Make no pools
    #[arg(long, env = "NO_DEFAULT_POOLS", value_parser = BoolishValueParser::new())]
    pub no_default_pools: bool,
    /// No IPv6
    #[arg(long, env = "FELIX_IPV6SUPPORT", value_name = "BOOL", default_value_t = true,
          action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub ipv6_support: bool,
    /// CIDR of the IPv4 pool, or `none` [default: 192.168.0.0/16, or one of 172.16-31.0.0/16 that this host is not in]
    #[arg(long, env = "CALICO_IPV4POOL_CIDR", value_name = "CIDR")]
    pub ipv4pool_cidr: Option<String>,
    #[arg(long, env = "CALICO_IPV4POOL_BLOCK_SIZE", value_name = "LENGTH", default_value_t = 26)]
    pub ipv4pool_block_size: u8,
    /// Always, CrossSubnet or Never
    #[arg(long, env = "CALICO_IPV4POOL_IPIP", value_name = "MODE", default_value = "Never")]
    pub ipv4pool_ipip: String,
    /// Always, CrossSubnet or Never
    #[arg(long, env = "CALICO_IPV4POOL_VXLAN", value_name = "MODE", default_value = "Never")]
    pub ipv4pool_vxlan: String,
    #[arg(long, env = "CALICO_IPV4POOL_NAT_OUTGOING", value_name = "BOOL", default_value_t = true,
          action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub ipv4pool_nat_outgoing: bool,
    #[arg(long, env = "CALICO_IPV4POOL_NODE_SELECTOR", value_name = "SELECTOR", default_value = "all()")]
    pub ipv4pool_node_selector: String,
    #[arg(long, env = "CALICO_IPV4POOL_DISABLE_BGP_EXPORT", value_parser = BoolishValueParser::new())]
    pub ipv4pool_disable_bgp_export: bool,
    /// CIDR of the IPv6 pool, or `none` [default: fdXX:XXXX:XXXX::/48, at random]
    #[arg(long, env = "CALICO_IPV6POOL_CIDR", value_name = "CIDR")]
    pub ipv6pool_cidr: Option<String>,
    #[arg(long, env = "CALICO_IPV6POOL_BLOCK_SIZE", value_name = "LENGTH", default_value_t = 122)]
    pub ipv6pool_block_size: u8,
    /// Always, CrossSubnet or Never
    #[arg(long, env = "CALICO_IPV6POOL_VXLAN", value_name = "MODE", default_value = "Never")]
    pub ipv6pool_vxlan: String,
    #[arg(long, env = "CALICO_IPV6POOL_NAT_OUTGOING", value_parser = BoolishValueParser::new())]
    pub ipv6pool_nat_outgoing: bool,
    #[arg(long, env = "CALICO_IPV6POOL_NODE_SELECTOR", value_name = "SELECTOR", default_value = "all()")]
    pub ipv6pool_node_selector: String,
    #[arg(long, env = "CALICO_IPV6POOL_DISABLE_BGP_EXPORT", value_parser = BoolishValueParser::new())]
    pub ipv6pool_disable_bgp_export: bool,
}

#[derive(Args, Clone, Debug)]
pub struct Watch {
    /// Stay, and do it again: addresses that change, pools that come to need a tunnel; and tell Kubernetes that the
    /// node's network is up once felix and BIRD are ready
    #[arg(long)]
    pub watch: bool,
    /// How often
    #[arg(long, env = "AUTODETECT_POLL_INTERVAL", value_name = "TIME", default_value = "60s",
          value_parser = humantime::parse_duration)]
    pub interval: std::time::Duration,
    /// Where felix says that it is ready
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:9099")]
    pub felix_health: String,
    /// BIRD's control socket, where this node runs one
    #[arg(long, value_name = "FILE")]
    pub bird_socket: Option<PathBuf>,
}

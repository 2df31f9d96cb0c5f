//! The command line: every command, its options and its examples.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::output::Output;
use crate::{bgp, certs, convert, fleet, init, patch, settings};

/// Reads and writes the resources of a cluster, in its datastore.
#[derive(Parser)]
#[command(name = "bulrushctl", version, after_help = settings::HELP)]
pub struct Cli {
    /// Settings file, old (`kind: calicoApiConfig`) or new (`kind: CalicoAPIConfig`).
    #[arg(short, long, global = true, default_value = settings::DEFAULT_FILE)]
    pub config: PathBuf,
    /// Kubeconfig file; means the Kubernetes datastore unless another is named.
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Accepted for the sake of scripts: versions are never compared.
    #[arg(long, global = true, hide = true)]
    pub allow_version_mismatch: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Create resources, or replace those that exist.
    ///
    /// Everything is read and checked first; one mistake, and nothing is written. Resources of Calico 2
    /// (apiVersion: v1) are read as what they are called today.
    #[command(
        after_help = "Examples:\n  bulrushctl apply -f policies/\n  kustomize build . | bulrushctl apply -f -"
    )]
    Apply(FromFiles),
    /// Create resources that do not exist yet.
    #[command(
        after_help = "Examples:\n  bulrushctl create -f pool.yaml\n  bulrushctl create -f defaults/ --skip-exists"
    )]
    Create {
        #[command(flatten)]
        from: FromFiles,
        /// Pass over resources that exist already.
        #[arg(long)]
        skip_exists: bool,
    },
    /// Replace resources that exist.
    ///
    /// With metadata.resourceVersion in the file: only if nobody changed them since.
    #[command(
        after_help = "Examples:\n  bulrushctl get ippool a -o yaml > a.yaml; vi a.yaml; bulrushctl replace -f a.yaml"
    )]
    Replace(FromFiles),
    /// Delete resources, by file or by kind and name.
    ///
    /// With a node go its endpoints and their addresses, its blocks, the peers of its own and its configuration
    /// objects: take the host out of service first. On the Kubernetes datastore nodes are Kubernetes' own, and
    /// are deleted there.
    #[command(
        after_help = "Examples:\n  bulrushctl delete networkpolicy web -n shop\n  bulrushctl delete -f policies/ --skip-not-exists\n  bulrushctl delete node n7"
    )]
    Delete {
        #[command(flatten)]
        what: Selection,
        /// Pass over resources that do not exist.
        #[arg(long)]
        skip_not_exists: bool,
    },
    /// Print resources.
    #[command(
        after_help = "Examples:\n  bulrushctl get ippool -o wide\n  bulrushctl get workloadendpoint -A\n  bulrushctl get node -o custom-columns=NAME,ASN\n  bulrushctl get networkpolicy web -n shop -o yaml"
    )]
    Get {
        #[command(flatten)]
        what: Selection,
        /// Namespaced kinds: of every namespace.
        #[arg(short = 'A', short_alias = 'a', long)]
        all_namespaces: bool,
        /// How to print them: ps, wide, yaml, json, name or custom-columns=NAME,…
        #[arg(short, long, default_value = "ps")]
        output: Output,
    },
    /// Change some fields of one resource.
    ///
    /// The result has to be valid. If somebody else writes at the same time, the patch is applied again to what
    /// they wrote.
    #[command(
        after_help = "Examples:\n  bulrushctl patch ippool a -p '{\"spec\": {\"natOutgoing\": true}}'\n  bulrushctl patch felixconfiguration default -p 'spec: {vxlanMTU: null}'\n  bulrushctl patch gnp web --type json -p '[{\"op\": \"add\", \"path\": \"/spec/ingress/-\", \"value\": {\"action\": \"Deny\"}}]'"
    )]
    Patch {
        /// Kind: `ippool`, `node`, …
        kind: String,
        name: String,
        /// The patch, JSON or YAML.
        #[arg(short, long)]
        patch: String,
        /// What kind of patch it is.
        #[arg(short, long = "type", value_enum, default_value = "strategic")]
        type_: patch::Kind,
        /// Namespace of namespaced kinds.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Set or remove labels of one resource.
    #[command(
        after_help = "Examples:\n  bulrushctl label node n1 rack=a7 zone=west\n  bulrushctl label node n1 rack=a8 --overwrite\n  bulrushctl label node n1 rack --remove"
    )]
    Label {
        /// Kind: `node`, `hostendpoint`, …
        kind: String,
        name: String,
        /// key=value; with --remove: key.
        #[arg(required = true, value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// Set another value for a label that is there.
        #[arg(long, conflicts_with = "remove")]
        overwrite: bool,
        /// Remove the labels.
        #[arg(long)]
        remove: bool,
        /// Namespace of namespaced kinds.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Check manifests without a datastore.
    ///
    /// Lists every mistake with file, line, object, field, reason and remedy; exit status 1 if there is any. What
    /// passes is accepted by `apply` and by typha. Warns of objects that are given twice and of pools that overlap.
    #[command(
        after_help = "Examples:\n  bulrushctl validate -f manifests/\n  helm template . | bulrushctl validate -f -"
    )]
    Validate(Files),
    /// Print manifests in older forms as today's resources.
    ///
    /// Reads resources of Calico 2 (apiVersion: v1), custom resources of a Kubernetes datastore
    /// (crd.projectcalico.org/v1), and Kubernetes' own network policies. What has no form today is said on standard
    /// error. No datastore is needed.
    #[command(
        after_help = "Examples:\n  bulrushctl convert -f old.yaml > new.yaml\n  kubectl get networkpolicy -A -o yaml | bulrushctl convert -f - -o json"
    )]
    Convert {
        #[command(flatten)]
        from: Files,
        /// How to print them.
        #[arg(short, long, value_enum, default_value = "yaml")]
        output: convert::Output,
        /// Print the result even if it is not valid.
        #[arg(long)]
        ignore_validation: bool,
    },
    /// Say which tier, policy and rule decides about a connection, on each side.
    ///
    /// Calculated from the datastore as the agents do it; the nodes are not asked. Exit status 1 when it is denied.
    #[command(
        after_help = "Examples:\n  bulrushctl explain --from shop/web-1 --to shop/db-0 --port tcp/5432\n  bulrushctl explain --from 192.0.2.7 --to 10.65.0.3 --port icmp\n  bulrushctl explain --from n1 --to web-1 --port udp/53"
    )]
    Explain {
        /// Who connects: workload (`namespace/name`), node, or address.
        #[arg(long)]
        from: String,
        /// To whom: workload (`namespace/name`), node, or address.
        #[arg(long)]
        to: String,
        /// Protocol and port: tcp/443, udp/1024:53 (source and destination), sctp/…, icmp, icmp/8/0, icmpv6/128, or
        /// a protocol's number.
        #[arg(long)]
        port: String,
    },
    /// Addresses: who has them, and how many are left.
    #[command(subcommand)]
    Ipam(Ipam),
    /// This machine as a node.
    #[command(subcommand)]
    Node(NodeCommand),
    /// BGP of the whole cluster.
    #[command(subcommand)]
    Bgp(Bgp),
    /// The datastore itself.
    #[command(subcommand)]
    Datastore(DatastoreCommand),
    /// Show the replicas of typha and how far each node is.
    ///
    /// Nodes are expected because there is a Node object for them, whoever is connected. Dead: was connected within
    /// the last hour, and is silent. Absent: nobody has seen it. Exit status 3 when a replica could not be asked.
    #[command(
        after_help = "Examples:\n  bulrushctl status\n  bulrushctl status --typha typha.example:5473 -o wide\n  bulrushctl status -o json"
    )]
    Status {
        #[command(flatten)]
        access: fleet::Access,
        /// A node that was not heard of for so many seconds is dead.
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        dead_after: u64,
        /// How to print it: ps, wide (every node that is behind), json or yaml.
        #[arg(short, long, default_value = "ps")]
        output: Output,
    },
    /// Wait until an object is in force on every node.
    ///
    /// As it is stored now, or as it was (or was deleted) at a revision. Exit status 0: each agent that reads the
    /// kind has it in force on every node of the cluster; 1: not in time, and who lacks it; 3: a replica could not
    /// be asked, and some node is connected to no other.
    #[command(
        after_help = "Examples:\n  bulrushctl apply -f policy.yaml && bulrushctl wait networkpolicy/web -n shop\n  bulrushctl wait ippool/main --timeout 120\n  bulrushctl wait globalnetworkpolicy/old --revision 4711"
    )]
    Wait {
        /// KIND/NAME.
        target: String,
        /// Namespace of namespaced kinds.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Wait for this revision of the datastore instead.
        #[arg(long)]
        revision: Option<u64>,
        /// How long, in seconds; 0 asks once.
        #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
        timeout: f64,
        /// Only these agents count, with commas.
        #[arg(long, value_delimiter = ',')]
        agents: Vec<String>,
        /// A node that was not heard of for so many seconds is dead.
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        dead_after: u64,
        #[command(flatten)]
        access: fleet::Access,
        /// How to print it: ps, json or yaml.
        #[arg(short, long, default_value = "ps")]
        output: Output,
    },
    /// Make a CA and certificates for a lab.
    ///
    /// For typha, for an operator, and for felix and confd on every node, bound to node and agent. Prints the settings
    /// that use them. A cluster of record has a CA of its own.
    #[command(
        after_help = "Examples:\n  bulrushctl certs --out lab --nodes 3\n  bulrushctl certs --out lab --nodes 3 --node-prefix worker- --valid 30d"
    )]
    Certs(certs::Wanted),
    /// Print the versions of this program and of the cluster.
    #[command(after_help = "Examples:\n  bulrushctl version\n  bulrushctl version --client")]
    Version {
        /// Only of this program: no datastore is asked.
        #[arg(long)]
        client: bool,
    },
}

#[derive(Subcommand)]
pub enum Ipam {
    /// Show how full pools are, or who has an address.
    #[command(
        after_help = "Examples:\n  bulrushctl ipam show\n  bulrushctl ipam show --show-blocks\n  bulrushctl ipam show --ip=10.65.0.7"
    )]
    Show(IpamShow),
}

#[derive(Args)]
#[group(multiple = false)]
pub struct IpamShow {
    /// Report whether this address is in use, and by whom.
    #[arg(long)]
    pub ip: Option<String>,
    /// Show the blocks of every pool, too.
    #[arg(long)]
    pub show_blocks: bool,
    /// Show addresses that a node has out of another node's block.
    #[arg(long)]
    pub show_borrowed: bool,
    /// Show the settings of IPAM.
    #[arg(long)]
    pub show_configuration: bool,
}

#[derive(Subcommand)]
pub enum NodeCommand {
    /// Make this host a node of the cluster.
    ///
    /// Finds its address, writes the Node object with address, AS number and the addresses of its tunnels, makes the
    /// default pools and settings of a cluster that has none, and the files that CNI plugins read. Can be run again:
    /// what is right stays. Options have the variables of Calico's node.
    #[command(
        after_help = "Examples:\n  bulrushctl node init\n  bulrushctl node init --ip-autodetection-method interface=ens3\n  IP=autodetect CALICO_IPV4POOL_VXLAN=CrossSubnet bulrushctl node init --watch"
    )]
    Init(Box<init::Options>),
    /// Say what this host lacks to be a node.
    ///
    /// Each thing is tried, in a network namespace that goes with the command: nothing of the host changes. Exit status 1
    /// when something is missing that every node needs.
    #[command(after_help = "Example:\n  bulrushctl node checksystem")]
    Checksystem,
    /// Gather what tells how this node is: addresses, routes, rules, sets, BGP, logs.
    ///
    /// Passwords, tokens and keys are taken out; only the owner may read the file.
    #[command(after_help = "Example:\n  bulrushctl node diags --out n1.tar.gz")]
    Diags {
        /// The file to make [default: bulrush-diags-TIME.tar.gz, here]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Show the BGP sessions of this node.
    ///
    /// Asks BIRD, stock or Calico's; no datastore is needed. Exit status 1 when felix or BIRD does not run.
    #[command(
        after_help = "Examples:\n  bulrushctl node status\n  bulrushctl node status --bird-socket /run/bird/bird.ctl"
    )]
    Status {
        /// BIRD's control socket [default: bird.ctl in /var/run/calico, /var/run/bird or /run/bird]
        #[arg(long)]
        bird_socket: Option<PathBuf>,
        /// The same of Calico's second daemon, bird6.
        #[arg(long)]
        bird6_socket: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum Bgp {
    /// Say whether a full mesh is too large, and which nodes should reflect routes instead.
    ///
    /// With --apply the change is made in an order that loses no route: peerings, reflectors one by one, and the
    /// mesh goes last.
    #[command(
        after_help = "Examples:\n  bulrushctl bgp advise\n  bulrushctl bgp advise --reflectors rr1,rr2 --apply"
    )]
    Advise(bgp::Advise),
}

#[derive(Subcommand)]
pub enum DatastoreCommand {
    /// Show type, address, revisions, readiness, what it holds, and what of it is refused.
    ///
    /// Reads everything once. Exit status 1 when it, or a part of it, can not be reached.
    #[command(
        after_help = "Examples:\n  bulrushctl datastore info\n  DATASTORE_TYPE=kubernetes bulrushctl datastore info"
    )]
    Info,
}

#[derive(Args)]
pub struct Files {
    /// File or folder of YAML or JSON documents; `-` is standard input.
    #[arg(short, long = "filename", visible_alias = "file", required = true)]
    pub filename: Vec<PathBuf>,
    /// Namespace of namespaced objects that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Folders are always read with everything below them; accepted for the sake of scripts.
    #[arg(short = 'R', long, hide = true)]
    pub recursive: bool,
}

#[derive(Args)]
pub struct FromFiles {
    #[command(flatten)]
    pub files: Files,
    /// Files without any resource are no error.
    #[arg(long)]
    pub skip_empty: bool,
}

#[derive(Args)]
pub struct Selection {
    /// Kind: `ippool`, `networkpolicy`, `node`, `wep`, …
    pub kind: Option<String>,
    /// Names; none means all (get).
    pub name: Vec<String>,
    /// Take kind and names from this file or folder instead; `-` is standard input.
    #[arg(short, long = "filename", visible_alias = "file", conflicts_with = "kind")]
    pub filename: Vec<PathBuf>,
    /// Namespace of namespaced kinds.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

//! What a frontend needs to know of a packet: the decision of traffic policies, made once for all dataplanes.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cidr::Cidr;
use crate::model::{Address, Family, Frontend, Protocol, TrafficPolicy};
use crate::surroundings::Sender;

/// A port of a Service in one family. Families are apart (SVC-05).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey {
    /// Name of the port.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
}

/// Everything that packets to a Service port of one family need.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The port.
    pub key: PortKey,
    /// The Service's ClusterIP: whatever ports it has, others of it are refused (ERR-06).
    pub cluster_ip: IpAddr,
    /// The backends of policy Cluster, sorted; empty where no frontend leads there.
    pub cluster: Vec<Address>,
    /// The backends of policy Local, sorted; empty where no frontend leads there.
    pub local: Vec<Address>,
    /// The addresses of those that are on this node, sorted.
    pub here: Vec<IpAddr>,
    /// Seconds since its last new connection for which a client stays with its backend, over all frontends (AFF-01).
    pub affinity: Option<u32>,
    /// All its flows pass where packets are translated and remembered, for the sake of those to endpoints that are removed.
    pub tracked: bool,
    /// Where it is served. Empty where other Services have all its frontends.
    pub entries: Vec<Entry>,
}

/// A frontend, and what it does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where it is served.
    pub frontend: Frontend,
    /// Which of a Service's addresses it is.
    pub kind: EntryKind,
    /// Where its packets go.
    pub treatment: Treatment,
    /// The ranges that it is for, none within another; none where it is for everyone.
    pub sources: Option<Arc<[Cidr]>>,
}

/// Which of a Service's addresses a frontend is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EntryKind {
    /// `spec.clusterIPs`
    ClusterIp,
    /// `status.loadBalancer.ingress`
    LoadBalancer,
    /// `spec.externalIPs`
    ExternalIp,
    /// `nodePort`
    NodePort,
}

/// A set of backends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pool {
    /// Those of policy Cluster.
    Cluster,
    /// Those of policy Local.
    Local,
}

/// Whose packets leave with an address of the node, so that replies come back to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Masquerade {
    /// Nobody's.
    Never,
    /// Everybody's but those of the cluster's pods.
    UnlessPod,
    /// Everybody's.
    Always,
}

/// What becomes of new packets to a frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Treatment {
    /// To one of these backends, whoever sends them.
    To(Pool, Masquerade),
    /// `externalTrafficPolicy: Local`: those of pods go to the Cluster set (TP-04), those of the host as well, masqueraded (TP-05),
    /// those of others to the Local set (TP-03), or nowhere if it is empty (ERR-02).
    BySource,
    /// Refused at once (ERR-01).
    Rejected,
    /// Lost without a word (ERR-02).
    Dropped,
}

/// What becomes of one packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To one of these backends; masqueraded or not.
    To(Pool, bool),
    /// Refused at once.
    Rejected,
    /// Lost without a word.
    Dropped,
}

/// What there is to know about a Service port before it is decided what its frontends do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Case {
    pub(crate) internal: TrafficPolicy,
    pub(crate) external: TrafficPolicy,
    /// No usable endpoint anywhere.
    pub(crate) is_deserted: bool,
    /// No usable endpoint on this node.
    pub(crate) lacks_local: bool,
    /// Something tells whether a packet is a pod's.
    pub(crate) detects_pods: bool,
    pub(crate) masquerade_all: bool,
}

impl Case {
    /// What a frontend of this kind does.
    pub(crate) fn treatment(&self, kind: EntryKind) -> Treatment {
        if self.is_deserted {
            return Treatment::Rejected;
        }
        match (kind, self.internal, self.external) {
            (EntryKind::ClusterIp, TrafficPolicy::Local, _) if self.lacks_local => Treatment::Dropped,
            (EntryKind::ClusterIp, TrafficPolicy::Local, _) => Treatment::To(Pool::Local, self.internal_masquerade()),
            (EntryKind::ClusterIp, TrafficPolicy::Cluster, _) => Treatment::To(Pool::Cluster, self.internal_masquerade()),
            // NAT-04
            (_, _, TrafficPolicy::Cluster) => Treatment::To(Pool::Cluster, Masquerade::Always),
            (_, _, TrafficPolicy::Local) => Treatment::BySource,
        }
    }

    /// NAT-01, NAT-02, NAT-03, NAT-11
    fn internal_masquerade(&self) -> Masquerade {
        match (self.masquerade_all, self.detects_pods) {
            (true, _) => Masquerade::Always,
            (false, true) => Masquerade::UnlessPod,
            (false, false) => Masquerade::Never,
        }
    }
}

impl Treatment {
    /// Whether packets may go to this set.
    pub fn uses(self, pool: Pool) -> bool {
        match self {
            Treatment::To(of, _) => of == pool,
            Treatment::BySource => true,
            Treatment::Rejected | Treatment::Dropped => false,
        }
    }

    /// What becomes of a packet of this sender. `lacks_local`: the Local set is empty.
    pub fn way(self, sender: Sender, lacks_local: bool) -> Way {
        match (self, sender) {
            (Treatment::To(pool, Masquerade::Never), _) => Way::To(pool, false),
            (Treatment::To(pool, Masquerade::Always), _) => Way::To(pool, true),
            (Treatment::To(pool, Masquerade::UnlessPod), sender) => Way::To(pool, sender != Sender::Pod),
            (Treatment::BySource, Sender::Pod) => Way::To(Pool::Cluster, false),
            (Treatment::BySource, Sender::Host) => Way::To(Pool::Cluster, true),
            (Treatment::BySource, Sender::Other) if lacks_local => Way::Dropped,
            (Treatment::BySource, Sender::Other) => Way::To(Pool::Local, false),
            (Treatment::Rejected, _) => Way::Rejected,
            (Treatment::Dropped, _) => Way::Dropped,
        }
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pool::Cluster => "cluster",
            Pool::Local => "local",
        })
    }
}

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Treatment::To(pool, Masquerade::Never) => write!(f, "{pool}"),
            Treatment::To(pool, Masquerade::UnlessPod) => write!(f, "{pool}, masqueraded unless from a pod"),
            Treatment::To(pool, Masquerade::Always) => write!(f, "{pool}, masqueraded"),
            Treatment::BySource => f.write_str("by source"),
            Treatment::Rejected => f.write_str("rejected"),
            Treatment::Dropped => f.write_str("dropped"),
        }
    }
}

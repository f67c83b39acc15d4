//! The sets and maps of the table, without elements. [`Key::set`](proxy_core::lower::nft::Key::set) says what is in which.

use proxy_core::model::Family;

use super::datatype::{Part, describe, type_of};
use super::wire::{Batch, attribute, nest, nfta, number, text, userdata};

/// Map: class to the chain that packets of the class go to.
pub(super) const CLASSES: &str = "classes";
/// Map: the same for those that have been through a chain of [`CLASSES`] already: the kernel takes no loops, whether or not a
/// packet can go round.
pub(super) const BY_SOURCE_CLASSES: &str = "by-source-classes";
/// Map: class to the chain that picks the id of a backend, and comes back.
pub(super) const STICK_CLASSES: &str = "stick-classes";
/// Map: client and identity to the id of its backend; kept by the rules.
pub(super) const STICK_PINS: &str = "stick-pins";
/// How many pins there may be: a dynamic set without a size holds 65,535.
const PINS: u32 = 1 << 20;

/// Set: frontends with how many connections were led to a backend; kept by the rules.
pub(super) const CONNECTIONS: &str = "connections";

/// Items of a set's user data (`enum nftnl_udata_set_types`, libnftnl/udata.h).
mod item {
    pub(super) const KEY_BYTE_ORDER: u8 = 0;
    pub(super) const DATA_BYTE_ORDER: u8 = 1;
    pub(super) const KEY_TYPEOF: u8 = 3;
    pub(super) const DATA_TYPEOF: u8 = 4;
    pub(super) const COMMENT: u8 = 7;
}

const ADDRESS: &[Part] = &[Part::Address];
const NUMBER: &[Part] = &[Part::Number];
const FRONTEND: &[Part] = &[Part::Address, Part::Protocol, Part::Port];
const NODE_PORT: &[Part] = &[Part::Protocol, Part::Port];
const BACKEND: Data = Data::Parts(&[Part::Address, Part::Port]);
const A_NUMBER: Data = Data::Parts(NUMBER);

/// A set or map.
pub(super) struct Set {
    pub(super) name: &'static str,
    key: &'static [Part],
    data: Data,
    kind: Kind,
    comment: &'static str,
}

#[derive(Clone, Copy)]
enum Data {
    None,
    Parts(&'static [Part]),
    Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Elements are ranges.
    Interval,
    /// Rules write it, and elements go by themselves.
    Dynamic,
    /// Rules write it, with a counter in each element. Without a size it takes 65,535, and memory as it fills.
    Counting,
}

const fn set(name: &'static str, key: &'static [Part], comment: &'static str) -> Set {
    Set { name, key, data: Data::None, kind: Kind::Plain, comment }
}

const fn map(name: &'static str, key: &'static [Part], data: Data, comment: &'static str) -> Set {
    Set { name, key, data, kind: Kind::Plain, comment }
}

const fn ranges(name: &'static str, key: &'static [Part], comment: &'static str) -> Set {
    Set { name, key, data: Data::None, kind: Kind::Interval, comment }
}

const fn counters(name: &'static str, key: &'static [Part], comment: &'static str) -> Set {
    Set { name, key, data: Data::None, kind: Kind::Counting, comment }
}

/// Those that every table has.
pub(super) const SETS: [Set; 21] = [
    map("services", FRONTEND, A_NUMBER, "frontend : class"),
    map("node-services", NODE_PORT, A_NUMBER, "NodePort : class"),
    map(CLASSES, NUMBER, Data::Verdict, "class : chain"),
    map("slots", &[Part::Address, Part::Protocol, Part::Port, Part::Slot], BACKEND, "frontend . slot : backend"),
    map("node-slots", &[Part::Protocol, Part::Port, Part::Slot], BACKEND, "NodePort . slot : backend"),
    map("by-source-cluster", FRONTEND, A_NUMBER, "frontend : class, from pods and this node"),
    map("by-source-local", FRONTEND, A_NUMBER, "frontend : class, from elsewhere"),
    map("node-by-source-cluster", NODE_PORT, A_NUMBER, "NodePort : class, from pods and this node"),
    map("node-by-source-local", NODE_PORT, A_NUMBER, "NodePort : class, from elsewhere"),
    map(BY_SOURCE_CLASSES, NUMBER, Data::Verdict, "class : chain"),
    ranges("pods", ADDRESS, "addresses of pods"),
    ranges("service-cidrs", ADDRESS, "where ClusterIPs are taken from"),
    set("node-addresses", ADDRESS, "serve NodePorts"),
    set("cluster-ips", ADDRESS, "their other ports are refused"),
    set("hairpins", &[Part::Address, Part::Address], "backends that may be their own clients"),
    set("endpoints", FRONTEND, "backends, whose strange packets are not let out"),
    set("restricted", FRONTEND, "frontends that are not for everyone"),
    ranges("sources", &[Part::Address, Part::Protocol, Part::Port, Part::Address], "restricted frontend . who may use it"),
    set("refused", FRONTEND, "frontends that refuse"),
    set("node-refused", NODE_PORT, "NodePorts that refuse"),
    set("dropped", FRONTEND, "frontends that drop what has found no backend"),
];

/// What affinity takes. There are no elements but those of sticky Services.
pub(super) const STICKY: [Set; 9] = [
    map("identities", FRONTEND, A_NUMBER, "sticky frontend : identity"),
    map("node-identities", NODE_PORT, A_NUMBER, "sticky NodePort : identity"),
    map("stick-sizes", NUMBER, A_NUMBER, "identity : class by number of backends"),
    map("stick-sizes-local", NUMBER, A_NUMBER, "identity : class by number of backends on this node"),
    map(STICK_CLASSES, NUMBER, Data::Verdict, "class : chain"),
    map("stick-slots", &[Part::Number, Part::Slot], Data::Parts(NUMBER), "identity . slot : id"),
    set("stick-members", &[Part::Number, Part::Number], "identity . id"),
    set("stick-members-local", &[Part::Number, Part::Number], "identity . id of a backend on this node"),
    map("stick-endpoints", NUMBER, BACKEND, "id : backend"),
];

/// What counts connections takes. The agent adds no element: the kernel would need memory at once for each one's counter
/// (GFP_ATOMIC before 6.10), and packets add theirs one by one.
pub(super) const COUNTING: [Set; 2] = [
    counters(CONNECTIONS, FRONTEND, "frontend: connections that were led to a backend"),
    counters("node-connections", NODE_PORT, "NodePort: connections that were led to a backend"),
];

/// The map of pins. Its size makes the kernel allocate 16 MiB at once, so it comes with the first chain that needs it.
pub(super) const PIN_SET: Set =
    Set { name: STICK_PINS, key: &[Part::Address, Part::Number], data: A_NUMBER, kind: Kind::Dynamic, comment: "client . identity : id" };

/// The set of frontends' addresses of this name, or that of NodePorts, whose keys have no address.
pub(super) fn of_kind(name: &str, is_node_port: bool) -> String {
    if is_node_port { format!("node-{name}") } else { name.to_owned() }
}

/// Whether elements of a set are pairs of first address and first address after.
pub(super) fn is_interval(name: &str) -> bool {
    SETS.iter().any(|set| set.name == name && set.kind == Kind::Interval && set.key.len() == 1)
}

impl Set {
    /// Makes it if it is not there. Without a size the kernel's hash tables grow as they fill.
    pub(super) fn write(&self, batch: &mut Batch, table: &str, family: Family) {
        let id = batch.len();
        batch.message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |out| {
            text(out, nfta::SET_TABLE, table);
            text(out, nfta::SET_NAME, self.name);
            number(out, nfta::SET_FLAGS, self.flags());
            let (kind, len) = describe(self.key, family);
            number(out, nfta::SET_KEY_TYPE, kind);
            number(out, nfta::SET_KEY_LEN, len);
            let data = match self.data {
                Data::None => None,
                Data::Parts(parts) => Some(describe(parts, family)),
                Data::Verdict => Some((nfta::VERDICT, 0)),
            };
            if let Some((kind, len)) = data {
                number(out, nfta::SET_DATA_TYPE, kind);
                number(out, nfta::SET_DATA_LEN, len);
            }
            self.description(out, family);
            number(out, nfta::SET_ID, id);
            let mut list = Vec::new();
            self.items(family).iter().for_each(|(kind, value)| userdata(&mut list, *kind, value));
            attribute(out, nfta::SET_USERDATA, &list);
        });
    }

    fn flags(&self) -> u32 {
        let map = if matches!(self.data, Data::None) { 0 } else { nfta::MAP };
        map | match self.kind {
            Kind::Plain => 0,
            Kind::Interval if self.key.len() > 1 => nfta::INTERVAL | nfta::CONCAT,
            Kind::Interval => nfta::INTERVAL,
            Kind::Dynamic => nfta::EVAL | nfta::TIMEOUT,
            Kind::Counting => nfta::EVAL,
        }
    }

    fn description(&self, out: &mut Vec<u8>, family: Family) {
        match self.kind {
            Kind::Interval if self.key.len() > 1 => nest(out, nfta::SET_DESC, |out| {
                nest(out, nfta::DESC_CONCAT, |out| {
                    for part in self.key {
                        nest(out, nfta::LIST_ELEM, |out| number(out, nfta::FIELD_LEN, part.len(family)));
                    }
                });
            }),
            Kind::Dynamic => nest(out, nfta::SET_DESC, |out| number(out, nfta::DESC_SIZE, PINS)),
            Kind::Plain | Kind::Interval | Kind::Counting => {}
        }
    }

    /// Byte order, typeof and comment, for `nft list` alone.
    fn items(&self, family: Family) -> Vec<(u8, Vec<u8>)> {
        // BYTEORDER_HOST_ENDIAN of nftables.
        let host = || 1u32.to_ne_bytes().to_vec();
        let mut items = Vec::new();
        if self.key == NUMBER {
            items.push((item::KEY_BYTE_ORDER, host()));
        }
        if matches!(self.data, Data::Parts(NUMBER)) {
            items.push((item::DATA_BYTE_ORDER, host()));
        }
        // An integer has no length of its own: only an expression tells.
        if self.key.contains(&Part::Slot) {
            items.push((item::KEY_TYPEOF, type_of(self.key, family)));
            if let Data::Parts(parts) = self.data {
                items.push((item::DATA_TYPEOF, type_of(parts, family)));
            }
        }
        items.push((item::COMMENT, self.comment.bytes().chain([0]).collect()));
        items
    }
}

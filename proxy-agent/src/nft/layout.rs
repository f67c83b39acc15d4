//! What the table is made of, but for the elements: [sets](super::sets), [chains](super::chains), and the classes that lead to
//! these. All that it depends on is in its comment, so that a table that another version or configuration made is told.

use proxy_core::lower::nft::{Class, LAYOUT, Nft, Pick, Target};
use proxy_core::route::{Masquerade, Pool};

use super::chains::{self, Chain};
use super::class;
use super::expr::Field;
use super::sets::{BY_SOURCE_CLASSES, CLASSES, COUNTING, PIN_SET, SETS, STICK_CLASSES, STICKY};
use super::wire::{Batch, attribute, nest, nfta, number, text, userdata};

/// The table's name, in both families.
pub(super) const TABLE: &str = "proxy-agent";
/// At the end of the comment of a table with [`Nft::loopback`].
const OPEN: &str = " loopback";
/// A table that is tried and never made.
const TRIAL: &str = "proxy-agent-trial";

/// What the table of one family is made of.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) nft: Nft,
    /// The packet's field that carries the class from one lookup to the next.
    pub(super) scratch: Field,
}

/// An element of a map from class to chain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Link {
    pub(super) map: &'static str,
    pub(super) class: u32,
    pub(super) verdict: i32,
    pub(super) chain: String,
}

impl Link {
    fn new(map: &'static str, class: Option<u32>, chain: String) -> Self {
        let verdict = if map == STICK_CLASSES { nfta::JUMP } else { nfta::GOTO };
        // A class without a number is a flaw that is found before.
        Self { map, class: class.unwrap_or_default(), verdict, chain }
    }

    /// What leads to the chain of a target.
    pub(super) fn to_target(target: Target) -> Vec<Self> {
        let link = |map| Self::new(map, class::number(Class::Target(target)), target.to_string());
        match target.masquerade {
            Masquerade::Never => vec![link(CLASSES), link(BY_SOURCE_CLASSES)],
            // Chain by-source marks by itself.
            Masquerade::UnlessPod | Masquerade::Always => vec![link(CLASSES)],
        }
    }

    /// What leads to the chain that picks among so many sticky backends.
    pub(super) fn to_stick_pick(pool: Pool, count: u16) -> Self {
        Self::new(STICK_CLASSES, class::number(class::of_stick_pick(pool, count)), proxy_core::lower::nft::stick_pick(pool, count))
    }

    /// What leads to the chains that are always there.
    pub(super) fn base() -> [Self; 3] {
        let by_source = [false, true].map(|is_node_port| Class::BySource { is_node_port });
        let [frontends, node_ports] = by_source.map(|class| Self::new(CLASSES, class::number(class), class.to_string()));
        [frontends, node_ports, Self::new(BY_SOURCE_CLASSES, class::number_by_source(None), chains::NOWHERE.to_owned())]
    }

    fn write(&self, out: &mut Vec<u8>, table: &str) {
        text(out, nfta::LIST_TABLE, table);
        text(out, nfta::LIST_SET, self.map);
        nest(out, nfta::LIST_ELEMENTS, |out| {
            nest(out, nfta::LIST_ELEM, |out| {
                nest(out, nfta::ELEM_KEY, |out| attribute(out, nfta::DATA_VALUE, &self.class.to_ne_bytes()));
                nest(out, nfta::ELEM_DATA, |out| {
                    nest(out, nfta::DATA_VERDICT, |out| {
                        number(out, nfta::VERDICT_CODE, self.verdict as u32);
                        text(out, nfta::VERDICT_CHAIN, &self.chain);
                    });
                });
            });
        });
    }

    fn add(&self, batch: &mut Batch, table: &str) {
        // Not exclusive: the same element again is no error.
        batch.message(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, |out| self.write(out, table));
    }
}

impl Layout {
    pub(super) fn new(nft: Nft, scratch: Field) -> Self {
        // Affinity takes both fields.
        let is_sticky = scratch == Field::Secmark;
        Self { nft: Nft { is_sticky, ..nft }, scratch }
    }

    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    pub(super) fn protocol(&self) -> u8 {
        super::protocol(self.nft.family)
    }

    /// The table's comment: version, scratch, a number that changes with any rule or set, and whether loopback addresses are served.
    pub(super) fn comment(&self) -> String {
        let mut batch = Batch::begin(self.protocol(), 0);
        self.create(&mut batch, TABLE, "");
        self.examples(&mut batch, TABLE);
        let loopback = if self.nft.loopback { OPEN } else { "" };
        format!("layout {LAYOUT} scratch {} base {:016x}{loopback}", self.scratch, batch.fingerprint())
    }

    /// Whether the table with this comment makes up for what lets others reach loopback addresses.
    pub(super) fn is_open_to_loopback(comment: &str) -> bool {
        comment.starts_with("layout ") && comment.ends_with(OPEN)
    }

    /// Version and scratch in a table's comment.
    pub(super) fn in_comment(comment: &str) -> Option<(u32, Field)> {
        let mut words = comment.strip_prefix("layout ")?.split(' ');
        let version = words.next()?.parse().ok()?;
        let is_secmark = words.nth(1) == Some("secmark");
        Some((version, if is_secmark { Field::Secmark } else { Field::Priority }))
    }

    /// Makes the table anew, without elements.
    pub(super) fn replace(&self, batch: &mut Batch) {
        // Only what exists can be deleted; adding what exists changes nothing.
        batch.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |out| text(out, nfta::TABLE_NAME, TABLE));
        batch.message(libc::NFT_MSG_DELTABLE, 0, |out| text(out, nfta::TABLE_NAME, TABLE));
        self.create(batch, TABLE, &self.comment());
    }

    /// A batch that shows, when it is sent without an end, whether the kernel has all that the table needs.
    pub(super) fn trial(&self, seq: u32) -> Batch {
        let mut batch = Batch::begin(self.protocol(), seq);
        self.create(&mut batch, TRIAL, "");
        self.examples(&mut batch, TRIAL);
        batch
    }

    /// Makes the chain of a target, and what leads there.
    pub(super) fn add_target(&self, batch: &mut Batch, target: Target) {
        self.add_target_in(batch, TABLE, target);
    }

    fn add_target_in(&self, batch: &mut Batch, table: &str, target: Target) {
        if target.masquerade == Masquerade::Never && matches!(target.pick, Pick::Sticky(_)) {
            PIN_SET.write(batch, table, self.nft.family);
        }
        self.add_chain(batch, table, &chains::target(self, target), &Link::to_target(target));
    }

    /// Makes the chain that picks among so many sticky backends, and what leads there.
    pub(super) fn add_stick_pick(&self, batch: &mut Batch, pool: Pool, count: u16) {
        self.add_stick_pick_in(batch, TABLE, pool, count);
    }

    fn add_stick_pick_in(&self, batch: &mut Batch, table: &str, pool: Pool, count: u16) {
        self.add_chain(batch, table, &chains::stick_pick(pool, count), &[Link::to_stick_pick(pool, count)]);
    }

    fn add_chain(&self, batch: &mut Batch, table: &str, chain: &Chain, links: &[Link]) {
        chain.write(self, batch, table);
        links.iter().for_each(|link| link.add(batch, table));
    }

    /// Fills a chain that is always there anew, and makes what leads there.
    pub(super) fn repair(&self, batch: &mut Batch, name: &str) {
        if let Some(chain) = chains::base(self).into_iter().find(|chain| chain.name == name) {
            chain.write(self, batch, TABLE);
            Link::base().iter().filter(|link| link.chain == name).for_each(|link| link.add(batch, TABLE));
        }
    }

    /// Deletes a chain and what leads there.
    pub(super) fn drop_chain(&self, batch: &mut Batch, links: &[Link]) {
        for link in links {
            batch.message(libc::NFT_MSG_DELSETELEM, 0, |out| link.write(out, TABLE));
        }
        if let Some(link) = links.first() {
            batch.message(libc::NFT_MSG_DELCHAIN, 0, |out| {
                text(out, nfta::CHAIN_TABLE, TABLE);
                text(out, nfta::CHAIN_NAME, &link.chain);
            });
        }
    }

    fn create(&self, batch: &mut Batch, table: &str, comment: &str) {
        // By hand, because nftnl's table has no user data.
        batch.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |out| {
            text(out, nfta::TABLE_NAME, table);
            let mut list = Vec::new();
            userdata(&mut list, 0, &[comment.as_bytes(), &[0]].concat());
            attribute(out, nfta::TABLE_USERDATA, &list);
        });
        let sticky = if self.nft.is_sticky { &STICKY[..] } else { &[] };
        let counting = if self.nft.counts { &COUNTING[..] } else { &[] };
        SETS.iter().chain(sticky).chain(counting).for_each(|set| set.write(batch, table, self.nft.family));
        chains::base(self).iter().for_each(|chain| chain.write(self, batch, table));
        Link::base().iter().for_each(|link| link.add(batch, table));
    }

    /// One chain of each kind.
    fn examples(&self, batch: &mut Batch, table: &str) {
        let picks = if self.nft.is_sticky { &[Pick::Even(1), Pick::Sticky(1)][..] } else { &[Pick::Even(1)] };
        for pool in [Pool::Cluster, Pool::Local] {
            if self.nft.is_sticky {
                self.add_stick_pick_in(batch, table, pool, 1);
            }
            for pick in picks {
                for is_node_port in [false, true] {
                    for masquerade in [Masquerade::Never, Masquerade::UnlessPod, Masquerade::Always] {
                        self.add_target_in(batch, table, Target { masquerade, is_node_port, pool, pick: *pick });
                    }
                }
            }
        }
    }
}

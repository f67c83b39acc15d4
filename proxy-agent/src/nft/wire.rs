//! Messages of nf_tables as bytes: a batch that is written into one buffer without an allocation per element.
//! linux/netfilter/nf_tables.h.

pub(super) use crate::netfilter::wire::*;

/// Numbers of linux/netfilter/nf_tables.h that libc lacks.
pub(super) mod nfta {
    pub(crate) const TABLE_NAME: u16 = 1;
    pub(crate) const TABLE_FLAGS: u16 = 2;
    pub(crate) const TABLE_USERDATA: u16 = 6;
    pub(crate) const CHAIN_TABLE: u16 = 1;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const RULE_TABLE: u16 = 1;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;
    pub(crate) const EXPR_NAME: u16 = 1;
    pub(crate) const EXPR_DATA: u16 = 2;
    pub(crate) const COUNTER_PACKETS: u16 = 2;
    pub(crate) const DYNSET_EXPR: u16 = 7;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const CHAIN_POLICY: u16 = 5;
    pub(crate) const CHAIN_TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    pub(crate) const SET_TABLE: u16 = 1;
    pub(crate) const SET_NAME: u16 = 2;
    pub(crate) const SET_FLAGS: u16 = 3;
    pub(crate) const SET_KEY_TYPE: u16 = 4;
    pub(crate) const SET_KEY_LEN: u16 = 5;
    pub(crate) const SET_DATA_TYPE: u16 = 6;
    pub(crate) const SET_DATA_LEN: u16 = 7;
    pub(crate) const SET_DESC: u16 = 9;
    pub(crate) const SET_ID: u16 = 10;
    pub(crate) const SET_USERDATA: u16 = 13;
    pub(crate) const SET_COUNT: u16 = 20;
    pub(crate) const DESC_SIZE: u16 = 1;
    pub(crate) const DESC_CONCAT: u16 = 2;
    pub(crate) const FIELD_LEN: u16 = 1;
    pub(crate) const LIST_TABLE: u16 = 1;
    pub(crate) const LIST_SET: u16 = 2;
    pub(crate) const LIST_ELEMENTS: u16 = 3;
    pub(crate) const LIST_ELEM: u16 = 1;
    pub(crate) const ELEM_KEY: u16 = 1;
    pub(crate) const ELEM_DATA: u16 = 2;
    pub(crate) const ELEM_FLAGS: u16 = 3;
    pub(crate) const ELEM_USERDATA: u16 = 6;
    pub(crate) const ELEM_EXPR: u16 = 7;
    pub(crate) const ELEM_KEY_END: u16 = 10;
    pub(crate) const DATA_VALUE: u16 = 1;
    pub(crate) const DATA_VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;
    pub(crate) const GEN_ID: u16 = 1;
    pub(crate) const GEN_PROC_PID: u16 = 2;
    pub(crate) const GEN_PROC_NAME: u16 = 3;
    /// NFT_SET_INTERVAL
    pub(crate) const INTERVAL: u32 = 4;
    /// NFT_SET_MAP
    pub(crate) const MAP: u32 = 8;
    /// NFT_SET_TIMEOUT
    pub(crate) const TIMEOUT: u32 = 0x10;
    /// NFT_SET_EVAL: rules change it.
    pub(crate) const EVAL: u32 = 0x20;
    /// NFT_SET_CONCAT
    pub(crate) const CONCAT: u32 = 0x80;
    /// NFT_SET_ELEM_INTERVAL_END
    pub(crate) const INTERVAL_END: u32 = 1;
    /// NFT_DATA_VERDICT
    pub(crate) const VERDICT: u32 = 0xffff_ff00;
    /// NFT_JUMP
    pub(crate) const JUMP: i32 = -3;
    /// NFT_GOTO
    pub(crate) const GOTO: i32 = -4;
}

/// Room below what a nest's 16-bit length can say for one more element with a label.
const NEST_LIMIT: usize = u16::MAX as usize - 1024;

/// A message type of nf_tables.
pub(super) const fn message_type(kind: i32) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind as u16
}

/// Messages, of which those between begin and end take effect together.
pub(super) struct Batch {
    bytes: Vec<u8>,
    family: u8,
    first: u32,
    next: u32,
    /// Where the last message before the end begins.
    last: usize,
}

impl Batch {
    /// An empty batch: the message that begins it has the sequence number `first`.
    pub(super) fn begin(family: u8, first: u32) -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(8192), family, first, next: first, last: 0 };
        batch.boundary(libc::NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Requests that are not a batch: the first has the sequence number `first`.
    pub(super) fn requests(family: u8, first: u32) -> Self {
        Self { bytes: Vec::with_capacity(8192), family, first, next: first, last: 0 }
    }

    /// Ends the batch. Only its last message is answered if all goes well.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.ask_for_answer();
        self.boundary(libc::NFNL_MSG_BATCH_END);
        self.bytes
    }

    /// The messages without an end: the kernel tries a batch and takes everything back. Only the last one is answered if all goes
    /// well.
    pub(super) fn unended(mut self) -> Vec<u8> {
        self.ask_for_answer();
        self.bytes
    }

    fn ask_for_answer(&mut self) {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..).and_then(|at| at.first_chunk_mut()) {
            *flags = (u16::from_ne_bytes(*flags) | libc::NLM_F_ACK as u16).to_ne_bytes();
        }
    }

    /// How many messages there are, without begin and end.
    pub(super) fn len(&self) -> u32 {
        self.next - self.first - 1
    }

    /// A number that changes with what is written (FNV-1a, 64 bits).
    pub(super) fn fingerprint(&self) -> u64 {
        self.bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    }

    /// The sequence number of the next message.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Appends a message that somebody else wrote with the [next](Self::next) sequence number.
    pub(super) fn foreign(&mut self, message: &[u8]) {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(message);
        // Thousands of answers would overflow the socket; errors come without being asked for.
        if let Some(flags) = self.bytes.get_mut(self.last + 6..).and_then(|at| at.first_chunk_mut()) {
            *flags = (u16::from_ne_bytes(*flags) & !(libc::NLM_F_ACK as u16)).to_ne_bytes();
        }
        self.next += 1;
    }

    /// Appends one message with what `attributes` writes.
    pub(super) fn message(&mut self, kind: i32, flags: i32, attributes: impl FnOnce(&mut Vec<u8>)) {
        self.last = self.bytes.len();
        header(&mut self.bytes, message_type(kind), flags as u16, self.next, self.family, 0);
        attributes(&mut self.bytes);
        set_len(&mut self.bytes, self.last);
        self.next += 1;
    }

    /// Appends as many messages about elements of a set as are needed; a nest stays below 64 KiB. `write` writes the elements
    /// of an item. `written` is told of every message with its first and last item.
    pub(super) fn elements(
        &mut self,
        (kind, flags): (i32, i32),
        (table, set): (&str, &str),
        items: impl Iterator<Item = usize>,
        write: impl Fn(&mut Vec<u8>, usize),
        mut written: impl FnMut(usize, usize),
    ) {
        let mut items = items.peekable();
        while let Some(&first) = items.peek() {
            let mut last = first;
            self.message(kind, flags, |out| {
                text(out, nfta::LIST_TABLE, table);
                text(out, nfta::LIST_SET, set);
                nest(out, nfta::LIST_ELEMENTS, |out| {
                    let start = out.len();
                    while out.len() - start < NEST_LIMIT
                        && let Some(item) = items.next()
                    {
                        write(out, item);
                        last = item;
                    }
                });
            });
            written(first, last);
        }
    }

    fn boundary(&mut self, kind: i32) {
        let start = self.bytes.len();
        let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be();
        header(&mut self.bytes, kind as u16, 0, self.next, 0, subsystem);
        set_len(&mut self.bytes, start);
        self.next += 1;
    }
}

/// Writes an item of a user data list, as libnftnl's nftnl_udata_put: what `nft list` prints comments and types from.
pub(super) fn userdata(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    userdata_header(out, kind, value.len());
    out.extend_from_slice(value);
}

/// Writes type and length of an item. The kernel takes at most 256 bytes in all (NFT_USERDATA_MAXLEN) and refuses more, so a
/// length that wraps is never stored.
pub(super) fn userdata_header(out: &mut Vec<u8>, kind: u8, len: usize) {
    out.extend_from_slice(&[kind, len as u8]);
}

/// Finds an item of a user data list.
pub(super) fn find_userdata(mut list: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, len, rest @ ..] = list {
        let (value, after) = rest.split_at_checked(usize::from(*len))?;
        if *kind == wanted {
            return Some(value);
        }
        list = after;
    }
    None
}

//! Messages of netfilter's netlink as bytes, and attributes that are read back. linux/netlink.h and linux/netfilter/nfnetlink.h.

/// struct nlmsghdr
pub(crate) const HEADER: usize = 16;
/// struct nlmsghdr and struct nfgenmsg
pub(crate) const HEADERS: usize = HEADER + 4;
/// NLA_F_NESTED
const NESTED: u16 = 1 << 15;
const fn aligned(len: usize) -> usize {
    (len + 3) & !3
}

/// One request outside a batch.
pub(crate) fn request(kind: u16, flags: i32, seq: u32, family: u8, attributes: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    header(&mut bytes, kind, flags as u16, seq, family, 0);
    attributes(&mut bytes);
    set_len(&mut bytes, 0);
    bytes
}

/// Writes struct nlmsghdr, whose length is [set](set_len) at the end, and struct nfgenmsg.
pub(crate) fn header(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, family: u8, resource: u16) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_ne_bytes());
}

/// Says how long the message that begins there is.
pub(crate) fn set_len(out: &mut [u8], start: usize) {
    let len = (out.len() - start) as u32;
    if let Some(field) = out.get_mut(start..).and_then(|at| at.first_chunk_mut()) {
        *field = len.to_ne_bytes();
    }
}

/// Writes an attribute.
pub(crate) fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    nested(out, kind, |out| out.extend_from_slice(value));
}

/// Writes a number in network byte order, as netfilter has them.
pub(crate) fn number(out: &mut Vec<u8>, kind: u16, value: u32) {
    attribute(out, kind, &value.to_be_bytes());
}

/// Writes a text with a NUL.
pub(crate) fn text(out: &mut Vec<u8>, kind: u16, value: &str) {
    nested(out, kind, |out| {
        out.extend_from_slice(value.as_bytes());
        out.push(0);
    });
}

/// Writes a nest of attributes.
pub(crate) fn nest(out: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    nested(out, kind | NESTED, content);
}

/// Writes an attribute whose content is written in place.
pub(crate) fn nested(out: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&kind.to_ne_bytes());
    content(out);
    let len = (out.len() - start) as u16;
    if let Some(field) = out.get_mut(start..).and_then(|at| at.first_chunk_mut()) {
        *field = len.to_ne_bytes();
    }
    out.resize(start + aligned(out.len() - start), 0);
}

/// A netlink message as it came.
#[derive(Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// The socket that the message answers, or whose change it tells of.
    pub(crate) port: u32,
    /// What follows struct nlmsghdr.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The protocol family in a message of netfilter.
    pub(crate) fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or_default()
    }

    /// The attributes of a message of netfilter.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(HEADERS - HEADER..).unwrap_or_default())
    }

    /// The error number of an answer (NLMSG_ERROR), 0 for success.
    pub(crate) fn errno(&self) -> i32 {
        self.body.first_chunk().map_or(libc::EPROTO, |errno| -i32::from_ne_bytes(*errno))
    }

    /// What the kernel says about an error beside its number (NLMSGERR_ATTR_MSG).
    pub(crate) fn explanation(&self) -> Option<&'a str> {
        // The answer repeats the header of the message (NETLINK_CAP_ACK).
        let attributes = Attributes(self.body.get(4 + HEADER..)?);
        attributes.text(1).filter(|text| !text.is_empty())
    }
}

/// The messages of one datagram. Ends at the first that is cut short.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = bytes.get(HEADER..len)?;
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        let (kind, flags) = (u16::from_ne_bytes([k0, k1]), u16::from_ne_bytes([f0, f1]));
        let (seq, port) = (u32::from_ne_bytes([s0, s1, s2, s3]), u32::from_ne_bytes([p0, p1, p2, p3]));
        Some(Message { kind, flags, seq, port, body })
    })
}

/// Attributes one after the other: type and value. Ends at the first that is cut short.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of a type.
    pub(crate) fn get(self, wanted: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    /// The attributes in a nest.
    pub(crate) fn nest(self, wanted: u16) -> Attributes<'a> {
        Attributes(self.get(wanted).unwrap_or_default())
    }

    /// A text up to its NUL.
    pub(crate) fn text(self, wanted: u16) -> Option<&'a str> {
        str::from_utf8(self.get(wanted)?.split(|byte| *byte == 0).next()?).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1, ..] = *self.0 else { return None };
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !(NESTED | 1 << 14), value))
    }
}

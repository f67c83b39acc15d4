//! Netfilter's netlink, which the tables of nf_tables and the entries of connection tracking are read and written by: the socket, and
//! messages as bytes.

pub(crate) mod socket;
pub(crate) mod sys;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod wire;

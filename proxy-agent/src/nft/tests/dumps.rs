//! Dumps among changes: the kernel says that one was interrupted (nl_dump_check_consistent), in connection tracking as here.

use super::*;
use crate::netfilter::socket::{DUMPS, Outcome, Socket, Subsystem};
use crate::netfilter::wire::{Message, text};
use crate::nft::protocol;
use crate::nft::wire::{Batch, nfta};

/// Enough for several pieces of a dump: the kernel is two ahead of who reads.
const TABLES: usize = 3_000;

/// Makes tables of a family.
fn make<'a>(socket: &mut Socket, family: Family, names: impl IntoIterator<Item = &'a String>) {
    let first = socket.take_seq(TABLES as u32);
    let mut batch = Batch::begin(protocol(family), first);
    for name in names {
        batch.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, |out| text(out, nfta::TABLE_NAME, name));
    }
    let count = batch.len();
    let outcome = socket.transact(&batch.end(), first, count).expect("an answer");
    assert!(matches!(outcome, Outcome::Done));
}

/// What is read of these tables, and how many dumps it took, the first `disturbed` of which meet a change.
fn read(names: &[String], disturbed: u32) -> (Vec<String>, u32) {
    let open = || Socket::open(Subsystem::Tables).expect("a socket");
    let (mut reader, mut writer, mut attempts) = (open(), open(), 0);
    make(&mut writer, Family::V4, names);
    let take = |found: &mut Vec<String>, message: &Message<'_>| {
        if found.is_empty() {
            attempts += 1;
            if attempts <= disturbed {
                make(&mut writer, Family::V6, [&attempts.to_string()]);
            }
        }
        found.extend(message.attributes().text(nfta::TABLE_NAME).map(str::to_owned));
    };
    let mut found = reader.dump(libc::NFT_MSG_GETTABLE, libc::AF_INET as u8, |_| (), take).expect("no error");
    found.sort_unstable();
    (found, attempts)
}

#[test]
fn a_dump_that_is_interrupted_is_begun_again_but_not_for_ever() {
    let wanted: Vec<String> = (0..TABLES).map(|number| format!("table-{number:04}")).collect();
    for (disturbed, attempts) in [(0, 1), (2, 3), (DUMPS - 1, DUMPS), (DUMPS, DUMPS), (u32::MAX, DUMPS)] {
        let wanted = wanted.clone();
        in_namespace(move || {
            let (found, needed) = read(&wanted, disturbed);
            assert!(found == wanted, "{disturbed} dumps were disturbed: {} of {TABLES} tables", found.len());
            assert_eq!(needed, attempts, "{disturbed} dumps were disturbed");
        });
    }
}

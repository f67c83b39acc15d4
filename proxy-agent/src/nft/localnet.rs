//! Whether replies to loopback addresses may come in by other interfaces: what NodePorts on 127.0.0.1 need, since their connections
//! leave the node with another source and come back to that address. Rules of [ours](super::chains) keep out what is no reply,
//! which would otherwise reach services that listen for the node alone (CVE-2020-8558). They are there before, and go after.

use std::fs;
use std::io;

use tracing::{error, info, warn};

/// Of the network namespace of whoever opens it.
const PATH: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

/// Lets them in. NodePorts at other addresses do not depend on it.
pub(super) fn open() {
    match set("1") {
        Ok(true) => info!("net.ipv4.conf.all.route_localnet is set, for NodePorts on 127.0.0.1"),
        Ok(false) => {}
        Err(reason) => error!(
            %reason,
            "NodePorts on 127.0.0.1 do not work: {PATH} cannot be set to 1; let the agent write it, set it on the node, or leave \
             loopback addresses out of --nodeport-addresses"
        ),
    }
}

/// Shuts them out again, whoever let them in: the rules that made up for it are about to go.
pub(super) fn close() {
    match set("0") {
        Ok(true) => info!("net.ipv4.conf.all.route_localnet is 0 again"),
        Ok(false) => {}
        Err(reason) => warn!(%reason, "{PATH} stays 1, without the rules that kept others out: set it to 0"),
    }
}

/// Whether it was something else.
fn set(value: &str) -> io::Result<bool> {
    if fs::read_to_string(PATH)?.trim() == value {
        return Ok(false);
    }
    fs::write(PATH, value)?;
    Ok(true)
}

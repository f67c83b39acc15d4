//! NodePorts on loopback addresses: what scenarios cannot say.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::lab::{self, Connect, Outcome, Proto};

use super::node::Rig;

const LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
/// Where something listens for node1 alone. node2 has no such address of its own any more.
const PRIVATE: &str = "127.0.0.5:9000";

/// NP-08, CVE-2020-8558
#[test]
fn what_listens_for_the_node_alone_is_not_reached_from_elsewhere() {
    if lab::available() {
        closed().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn closed() -> Result<()> {
    let mut rig = Rig::with_flags(Mode::Nftables, &["--nodeport-addresses=localhost"])?;
    rig.agent.running()?.wait_for_log(DEADLINE, "route_localnet is set")?;
    ensure!(localnet(&rig)? == "1");
    let private: SocketAddr = PRIVATE.parse()?;
    rig.lab.host(1).listen_at(Proto::Tcp, private)?;
    // A neighbour that sends what no host sends by itself.
    rig.lab.inside("node2", || fs::write(LOCALNET, "1").context(LOCALNET))?;
    rig.lab.ip("node2", "route delete table local local 127.0.0.0/8 dev lo\nroute add 127.0.0.5/32 via 10.0.0.1\n")?;
    let reaches = |rig: &Rig| rig.lab.host(2).probe(Connect::new(private, Proto::Tcp).timeout_ms(500));
    let shut = |rig: &Rig| {
        let outcome = reaches(rig)?;
        ensure!(!matches!(outcome, Outcome::Ok(_)), "{outcome:?}");
        Ok(())
    };
    shut(&rig)?;
    // Without that chain it would be reached: until the next start, which puts it back.
    rig.agent.stop()?;
    rig.lab.nft("node1", "delete chain ip proxy-agent loopback-prerouting")?;
    reaches(&rig)?.into_answer().context("what the chain is for")?;
    rig.agent.start(&rig.lab)?;
    rig.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
    shut(&rig)?;
    rig.agent.stop()?;
    rig.agent.cleanup(&rig.lab)?;
    ensure!(localnet(&rig)? == "0");
    shut(&rig)
}

fn localnet(rig: &Rig) -> Result<String> {
    rig.lab.inside("node1", || Ok(fs::read_to_string(LOCALNET).context(LOCALNET)?.trim().to_owned()))
}

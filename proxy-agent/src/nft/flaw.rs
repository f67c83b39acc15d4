//! What cannot even be said to the kernel, or what it would take for something else.

use std::net::IpAddr;

use proxy_core::ledger::Step;
use proxy_core::lower::nft::{Class, Key, Nft, Pick, Value};
use proxy_core::model::{Family, Frontend};

use super::class;
use super::element::MAX_LABEL;

/// What is wrong with a step.
pub(super) fn flaw(nft: &Nft, step: &Step<Key, Value>) -> Option<&'static str> {
    let flaw = key_flaw(nft, step.key());
    let (Step::Add(key, value) | Step::Replace(key, value, _)) = step else { return flaw };
    flaw.or_else(|| value_flaw(nft.family, key, value))
}

fn key_flaw(nft: &Nft, key: &Key) -> Option<&'static str> {
    let no_affinity = (!nft.is_sticky).then_some("this kernel has not what session affinity takes (CONFIG_NETWORK_SECMARK)");
    let of_ip = |ip: IpAddr| (Family::of(ip) != nft.family).then_some("the address is of the other family");
    let of_frontend = |frontend: &Frontend| (frontend.family() != nft.family).then_some("the frontend is of the other family");
    let of_range = |frontend: &Frontend| match of_frontend(frontend) {
        None if frontend.is_node_port() => Some("NodePorts have no source ranges"),
        flaw => flaw,
    };
    match key {
        Key::Base | Key::Damage(_) => None,
        Key::Chain(target) => match target.pick {
            _ if class::number(Class::Target(*target)).is_none() => Some("there is no chain for so many"),
            Pick::Even(_) => None,
            Pick::Sticky(_) => no_affinity,
        },
        Key::StickPick(pool, count) => match class::number(class::of_stick_pick(*pool, *count)) {
            None => Some("there is no chain for so many"),
            Some(_) => no_affinity,
        },
        Key::StickEndpoint(_) | Key::StickSlot(..) | Key::StickMember(..) | Key::StickSize(..) => no_affinity,
        Key::Identity(frontend) => no_affinity.or_else(|| of_frontend(frontend)),
        Key::PodCidr(cidr) | Key::ServiceCidr(cidr) => of_ip(cidr.first()),
        Key::NodeAddress(ip) | Key::ClusterIp(ip) | Key::Hairpin(ip) => of_ip(*ip),
        Key::Endpoint(address, _) => of_ip(address.ip),
        Key::Source(frontend, cidr) => of_range(frontend).or_else(|| of_ip(cidr.first())),
        Key::Restricted(frontend) => of_range(frontend),
        Key::Slot(frontend, _) | Key::BySource(frontend, _) | Key::Service(frontend) => of_frontend(frontend),
        Key::Refused(frontend) => of_frontend(frontend),
        // Others are dropped by who sends.
        Key::Dropped(frontend) if frontend.is_node_port() => Some("NodePorts are not dropped without a look at who sends"),
        Key::Dropped(frontend) => of_frontend(frontend),
    }
}

fn value_flaw(family: Family, key: &Key, value: &Value) -> Option<&'static str> {
    let of_class = |class: Class, frontend: &Frontend| {
        let is_node_port = match class {
            Class::Target(target) => target.is_node_port,
            Class::BySource { is_node_port } => is_node_port,
        };
        match class::number(class) {
            None => Some("there is no chain for so many"),
            Some(_) if is_node_port != frontend.is_node_port() => Some("the class is one of the other kind of frontend"),
            Some(_) => None,
        }
    };
    let of_label = |label: &str| (label.len() > MAX_LABEL).then_some("the label is longer than 251 bytes");
    match (key, value) {
        (Key::Base, Value::Base(_)) => None,
        (Key::Slot(..) | Key::StickEndpoint(_), Value::Backend(backend)) => {
            (Family::of(backend.ip) != family).then_some("the backend is of the other family")
        }
        (Key::StickSlot(..) | Key::Identity(_), Value::Number(number)) => (*number == 0).then_some("0 is no number of anything"),
        (Key::StickSize(..), Value::Count(count)) => (*count == 0).then_some("there is no chain for so many"),
        (Key::BySource(frontend, _), Value::Target(target)) => target.and_then(|target| of_class(Class::Target(target), frontend)),
        (Key::Service(frontend), Value::Service(class, label)) => of_class(*class, frontend).or_else(|| of_label(label)),
        (Key::Refused(_) | Key::Dropped(_), Value::Label(label)) => of_label(label),
        (Key::Chain(_) | Key::StickPick(..) | Key::PodCidr(_) | Key::NodeAddress(_) | Key::ServiceCidr(_), Value::Present) => None,
        (Key::Hairpin(_) | Key::Endpoint(..) | Key::StickMember(..) | Key::Source(..), Value::Present) => None,
        (Key::Restricted(_) | Key::ClusterIp(_), Value::Present) => None,
        _ => Some("the value is not one of this kind of object"),
    }
}

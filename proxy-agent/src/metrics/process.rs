//! The process itself (MET-14), read from the kernel at each scrape.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use prometheus::{Counter, Gauge, IntGauge};

use super::catalogue::Catalogue;

/// What the kernel tells of this process.
pub(super) struct Process {
    cpu: Counter,
    start: Gauge,
    resident: IntGauge,
    virtual_bytes: IntGauge,
    virtual_most: Gauge,
    open: IntGauge,
    most_open: Gauge,
    received: Counter,
    sent: Counter,
}

impl Process {
    pub(super) fn new(main: &mut Catalogue) -> Self {
        Self {
            cpu: main.seconds("process_cpu_seconds_total", "CPU time that the process has used"),
            start: main.reading("process_start_time_seconds", "When the process started"),
            resident: main.gauge("process_resident_memory_bytes", "Memory that the process has resident"),
            virtual_bytes: main.gauge("process_virtual_memory_bytes", "Memory that the process has mapped"),
            virtual_most: main.reading("process_virtual_memory_max_bytes", "Memory that it may map at most"),
            open: main.gauge("process_open_fds", "File descriptors that are open"),
            most_open: main.reading("process_max_fds", "File descriptors that may be open"),
            received: main.seconds("process_network_receive_bytes_total", "Bytes that came in by the node's interfaces"),
            sent: main.seconds("process_network_transmit_bytes_total", "Bytes that went out by the node's interfaces"),
        }
    }

    /// Reads them anew. What cannot be read stays as it was.
    pub(super) fn read(&self) {
        self.read_stat();
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is this look itself.
            self.open.set(entries.count().saturating_sub(1) as i64);
        }
        for (resource, gauge) in [(Resource::RLIMIT_NOFILE, &self.most_open), (Resource::RLIMIT_AS, &self.virtual_most)] {
            if let Ok((soft, _)) = getrlimit(resource) {
                gauge.set(soft as f64);
            }
        }
        if let Ok(table) = fs::read_to_string("/proc/self/net/dev") {
            let (received, sent) = traffic(&table);
            advance(&self.received, received);
            advance(&self.sent, sent);
        }
    }

    fn read_stat(&self) {
        let Some(stat) = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text)) else { return };
        let variable = |name| sysconf(name).ok().flatten().unwrap_or(1) as f64;
        let (ticks, page) = (variable(SysconfVar::CLK_TCK), variable(SysconfVar::PAGE_SIZE));
        advance(&self.cpu, stat.cpu_ticks as f64 / ticks);
        self.virtual_bytes.set(stat.virtual_bytes as i64);
        self.resident.set((stat.resident_pages as f64 * page) as i64);
        if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text)) {
            self.start.set(boot as f64 + stat.start_ticks as f64 / ticks);
        }
    }
}

/// Brings a counter to what has been read.
fn advance(counter: &Counter, to: f64) {
    counter.inc_by((to - counter.get()).max(0.0));
}

/// What of `/proc/self/stat` is of use.
#[derive(PartialEq, Debug)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program, in parentheses, may have anything in it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)? + number(15)?,
            start_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

/// When the machine was started, in seconds since 1970.
fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Bytes received and sent by all interfaces.
fn traffic(table: &str) -> (f64, f64) {
    let rows = table.lines().filter_map(|line| line.split_once(':')).map(|(_, row)| {
        let numbers: Vec<f64> = row.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        (numbers.first().copied().unwrap_or_default(), numbers.get(8).copied().unwrap_or_default())
    });
    rows.fold((0.0, 0.0), |(received, sent), (r, s)| (received + r, sent + s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_process_is_read_whatever_its_name() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 11 4 0 0 20 0 3 0 4242 1000000 250 18446744073709551615 1 1 0";
        let expected = Stat { cpu_ticks: 15, start_ticks: 4242, virtual_bytes: 1_000_000, resident_pages: 250 };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a"), None);
    }

    #[test]
    fn traffic_is_that_of_all_interfaces() {
        let table =
            "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n    lo: 10 1 0 0 0 0 0 0 20 1 0\n  eth0: 5 1 0 0 0 0 0 0 7 1 0\n";
        assert_eq!(traffic(table), (15.0, 27.0));
    }
}

//! A network of hosts on one machine: each host is a network namespace with one link to a bridge, which is a namespace
//! too. What is lost on the way is decided by `iptables` in the namespace of the host that receives.
//!
//! The addresses are of 127.0.0.0/8, routed over the links instead of staying on `lo`: the daemons speak plainly only to
//! such addresses, and so what runs here is exactly what runs elsewhere, with no option that would let it speak plainly
//! between real hosts.
//!
//! Invariants:
//! - Nothing outside the namespaces of this fabric is changed; their names carry the number of this process.
//! - They are removed when the fabric is dropped; `cargo xtask chaos` removes those of a run that was killed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How the names of all namespaces of all runs begin; `cargo xtask chaos` knows it too.
const NAME_PREFIX: &str = "hfchaos-";
/// The name of the namespace that joins the hosts.
const BRIDGE: &str = "bridge";
/// The link of each host.
const LINK: &str = "eth0";

/// The hosts and the network between them.
#[derive(Debug)]
pub struct Fabric {
    run: String,
    hosts: BTreeMap<String, Ipv4Addr>,
}

/// Runs a program to its end; what it printed.
///
/// # Errors
/// With what it printed, when it fails.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{program} {}: {} {text}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(text)
}

/// Why this machine cannot have a fabric; `None`: it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let needed =
        [("ip", "-V"), ("iptables", "-V"), ("nsenter", "-V"), ("unshare", "-V"), ("strace", "-V"), ("mount", "-V")];
    let missing = needed.iter().find_map(|(program, argument)| run(program, &[argument]).err());
    missing.map(|error| error.to_string())
}

impl Fabric {
    /// Makes hosts of these names, all of which reach each other.
    ///
    /// # Errors
    /// When the machine does not allow it.
    pub fn new(hosts: &[&str]) -> anyhow::Result<Fabric> {
        let run_name = format!("{NAME_PREFIX}{}-", std::process::id());
        let mut fabric = Fabric { run: run_name, hosts: BTreeMap::new() };
        let bridge = fabric.namespace(BRIDGE);
        run("ip", &["netns", "add", &bridge])?;
        run("ip", &["-n", &bridge, "link", "add", "bridge0", "type", "bridge"])?;
        run("ip", &["-n", &bridge, "link", "set", "bridge0", "up"])?;
        for (index, host) in hosts.iter().enumerate() {
            let last = u8::try_from(index + 1).context("too many hosts")?;
            fabric.add(host, Ipv4Addr::new(127, 77, 0, last), &format!("port{last}"), &bridge)?;
        }
        Ok(fabric)
    }

    fn add(&mut self, host: &str, address: Ipv4Addr, port: &str, bridge: &str) -> anyhow::Result<()> {
        let name = self.namespace(host);
        run("ip", &["netns", "add", &name])?;
        self.hosts.insert(host.to_owned(), address);
        let ip = |arguments: &[&str]| run("ip", &[&["-n", name.as_str()], arguments].concat());
        run("ip", &["link", "add", LINK, "netns", &name, "type", "veth", "peer", "name", port, "netns", bridge])?;
        run("ip", &["-n", bridge, "link", "set", port, "master", "bridge0", "up"])?;
        let of_link = |setting: &str| format!("/proc/sys/net/ipv4/conf/{LINK}/{setting}");
        let all = |setting: &str| format!("/proc/sys/net/ipv4/conf/all/{setting}");
        let settings = format!(
            "echo 1 > {}; echo 1 > {}; echo 0 > {}; echo 0 > {}",
            of_link("route_localnet"),
            all("route_localnet"),
            of_link("rp_filter"),
            all("rp_filter")
        );
        run("ip", &["netns", "exec", &name, "sh", "-ec", &settings])?;
        // Only 127.0.x.y stays on `lo`, so that the rest of 127.0.0.0/8 can be elsewhere.
        ip(&["link", "set", "lo", "up"])?;
        ip(&["route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local"])?;
        ip(&["addr", "del", "127.0.0.1/8", "dev", "lo"])?;
        ip(&["addr", "add", "127.0.0.1/16", "dev", "lo"])?;
        ip(&["addr", "add", &format!("{address}/16"), "dev", LINK])?;
        ip(&["link", "set", LINK, "up"])?;
        Ok(())
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.run)
    }

    /// The address of a host.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn address(&self, host: &str) -> anyhow::Result<IpAddr> {
        self.hosts.get(host).map(|address| IpAddr::V4(*address)).with_context(|| format!("no host {host}"))
    }

    /// What a command line is put behind to run on a host.
    #[must_use]
    pub fn on(&self, host: &str) -> Vec<OsString> {
        vec!["nsenter".into(), format!("--net=/run/netns/{}", self.namespace(host)).into()]
    }

    /// Has this thread open its sockets on a host from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_thread_to(&self, host: &str) -> anyhow::Result<()> {
        let path = format!("/run/netns/{}", self.namespace(host));
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context("cannot enter a namespace")
    }

    fn iptables(&self, host: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let name = self.namespace(host);
        run("ip", &[&["netns", "exec", name.as_str(), "iptables", "-w", "10"], arguments].concat())
    }

    /// From now on nothing that `from` sends arrives at `to`; the other way stays open.
    ///
    /// # Errors
    /// When `iptables` fails.
    pub fn cut(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let source = self.address(from)?.to_string();
        self.iptables(to, &["-A", "INPUT", "-s", &source, "-j", "DROP"]).map(drop)
    }

    /// From now on nothing that `host` sends arrives anywhere; it goes on hearing the others.
    ///
    /// # Errors
    /// When `iptables` fails.
    pub fn mute(&self, host: &str) -> anyhow::Result<()> {
        self.hosts.keys().filter(|other| *other != host).try_for_each(|other| self.cut(host, other))
    }

    /// From now on `host` hears nobody; what it sends arrives.
    ///
    /// # Errors
    /// When `iptables` fails.
    pub fn deafen(&self, host: &str) -> anyhow::Result<()> {
        self.hosts.keys().filter(|other| *other != host).try_for_each(|other| self.cut(other, host))
    }

    /// From now on each packet to and from `host` is lost with this probability.
    ///
    /// # Errors
    /// When `iptables` fails.
    pub fn lose(&self, host: &str, probability: f64) -> anyhow::Result<()> {
        let probability = format!("{probability:.3}");
        let chance = ["-m", "statistic", "--mode", "random", "--probability", &probability, "-j", "DROP"];
        self.iptables(host, &[&["-A", "INPUT", "-i", LINK], &chance[..]].concat())?;
        self.iptables(host, &[&["-A", "OUTPUT", "-o", LINK], &chance[..]].concat()).map(drop)
    }

    /// Ends all loss; how many packets were lost since the last time.
    ///
    /// # Errors
    /// When `iptables` fails.
    pub fn heal(&self) -> anyhow::Result<u64> {
        let mut lost = 0;
        for host in self.hosts.keys() {
            for chain in ["INPUT", "OUTPUT"] {
                let table = self.iptables(host, &["-L", chain, "-v", "-x", "-n"])?;
                lost += dropped(&table);
                self.iptables(host, &["-F", chain])?;
            }
        }
        Ok(lost)
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        let hosts = self.hosts.keys().map(String::as_str);
        for host in hosts.chain([BRIDGE]) {
            let _ = run("ip", &["netns", "del", &self.namespace(host)]);
        }
    }
}

/// The packets that the DROP rules of an `iptables -v -x` table have met.
fn dropped(table: &str) -> u64 {
    let counts = table.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let packets = words.next()?.parse::<u64>().ok()?;
        (words.nth(1)? == "DROP").then_some(packets)
    });
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_packets_are_read_from_the_rules_that_lost_them() {
        let table = "Chain INPUT (policy ACCEPT 7 packets, 9 bytes)\n    pkts      bytes target     prot opt in     out     \
                     source               destination\n      12     3456 DROP       0    --  eth0   *       0.0.0.0/0   \
                     0.0.0.0/0  statistic mode random probability 0.30000000028\n       5      300 DROP  0 -- * * \
                     127.77.0.1  0.0.0.0/0\n       9      300 ACCEPT  0 -- * * 127.77.0.1  0.0.0.0/0\n";
        assert_eq!(dropped(table), 17);
        assert_eq!(dropped(""), 0);
    }
}

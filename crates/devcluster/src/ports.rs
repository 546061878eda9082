//! Choosing ports once, for addresses that stay the same over restarts.

use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::error::DevError;

/// Ports are drawn from here: below the range that the kernel hands to outgoing connections (32768 and up by default),
/// because such a connection could take the port of a daemon that is down for a moment, and then it could not return.
const FIRST: u16 = 10_240;
const LAST: u16 = 32_000;

/// Draws before giving up. With half of the range taken, a thousand misses in a row do not happen.
const ATTEMPTS_MAX: u32 = 1000;

/// Draws `count` different free ports of `host`. All are held while drawing, so that none is given twice.
pub(crate) fn free(host: IpAddr, count: usize) -> Result<Vec<SocketAddr>, DevError> {
    let mut held = Vec::with_capacity(count);
    let mut attempts = 0;
    while held.len() < count {
        attempts += 1;
        if attempts > ATTEMPTS_MAX {
            return Err(DevError::NoPort { host: host.to_string(), attempts: ATTEMPTS_MAX });
        }
        let draw = getrandom::u32().unwrap_or(attempts.wrapping_mul(0x9e37_79b9));
        let span = u32::from(LAST - FIRST);
        let port = FIRST + u16::try_from(draw % span).unwrap_or(0);
        if let Ok(listener) = TcpListener::bind((host, port)) {
            held.push(listener);
        }
    }
    held.iter().map(|listener| listener.local_addr().map_err(DevError::file("read", "a socket's address"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    #[test]
    fn drawn_ports_differ_and_lie_below_the_ephemeral_range() {
        let ports = free(IpAddr::V4(Ipv4Addr::LOCALHOST), 40).expect("free ports");
        let distinct: BTreeSet<u16> = ports.iter().map(SocketAddr::port).collect();
        assert_eq!(distinct.len(), 40);
        assert!(distinct.iter().all(|port| (FIRST..=LAST).contains(port)));
    }
}

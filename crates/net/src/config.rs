//! The limits of an endpoint. The defaults are what production uses; tests make them small.

use std::time::Duration;

/// Limits and timeouts.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Bytes of frames queued for sending on one connection. Two of the largest frames: one in the socket, one next.
    pub outgoing_bytes_max: usize,
    /// Bytes of messages handed to the handler and not yet given back, for one connection. A larger message passes
    /// when it is alone.
    pub inbound_bytes_max: usize,
    /// The same for all connections of clients together, and for all of daemons.
    pub inbound_bytes_total_max: usize,
    /// Accepted connections at one time. Each costs a read buffer of 64 KiB.
    pub connections_max: usize,
    /// From the TCP connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// For the TCP connection.
    pub connect_timeout: Duration,
    /// A frame that has begun must go on arriving.
    pub stall_timeout: Duration,
    /// Frames that arrive without a pause bring at least `pace_bytes` in this time, of two such times in one; also how
    /// often a connection is looked at. A path that has lost packets may be left with a sender that sends one or two for
    /// each time-out, for minutes (seen with Linux' BBR: 0.4 to 8 KB/s over an idle path), while a new connection is fast
    /// at once. Over a path that is really as slow as that a frame of some hundred KiB never arrives.
    pub pace_window: Duration,
    /// See `pace_window`. 0: any pace will do.
    pub pace_bytes: u64,
    /// A connection with nothing outstanding and nothing said is closed after this, and at most `pace_window` more.
    pub idle_timeout: Duration,
    /// A peer whose host acknowledges nothing for this long, or takes nothing of what waits for it, is lost: the path may
    /// have broken without either end being told. Requests then fail and go to a new connection.
    pub silence_timeout: Duration,
    /// How long a closing connection may take to write what is queued.
    pub linger_timeout: Duration,
    /// First pause between two attempts to connect.
    pub backoff_min: Duration,
    /// Longest pause between two attempts to connect: a restarted daemon is found within about this.
    pub backoff_max: Duration,
    /// Whether unencrypted connections may leave the host. Off: plaintext is for loopback.
    pub plaintext_between_hosts: bool,
}

impl Default for NetConfig {
    fn default() -> NetConfig {
        NetConfig {
            outgoing_bytes_max: 72 << 20,
            inbound_bytes_max: 72 << 20,
            inbound_bytes_total_max: 256 << 20,
            connections_max: 4096,
            handshake_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(3),
            stall_timeout: Duration::from_secs(10),
            pace_window: Duration::from_secs(3),
            pace_bytes: 48 << 10,
            idle_timeout: Duration::from_secs(300),
            silence_timeout: Duration::from_secs(10),
            linger_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            plaintext_between_hosts: false,
        }
    }
}

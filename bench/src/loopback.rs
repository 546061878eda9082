//! What the loopback alone costs: one connection, blocking threads, nothing but `read` and `write`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::Context;

use crate::load::{Bounds, Outcome};

/// What one op is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// The bytes go there and come back: the round trip beneath a small op.
    Echo,
    /// The bytes go there, one byte comes back: the bandwidth beneath a large op.
    Stream,
}

/// Sends `bytes` again and again until the bounds are reached.
///
/// # Errors
/// What the sockets say.
pub fn run(exchange: Exchange, bytes: usize, bounds: Bounds) -> anyhow::Result<Outcome> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || serve(&listener, exchange, bytes));
    let outcome = drive(TcpStream::connect(address)?, exchange, bytes, bounds);
    // The server has seen the end of the connection by now, also after an error.
    let served = server.join().map_err(|_| anyhow::anyhow!("the loopback server panicked"))?;
    let outcome = outcome?;
    served?;
    Ok(outcome)
}

fn answer_bytes(exchange: Exchange, bytes: usize) -> usize {
    match exchange {
        Exchange::Echo => bytes,
        Exchange::Stream => 1,
    }
}

fn serve(listener: &TcpListener, exchange: Exchange, bytes: usize) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; bytes];
    loop {
        match stream.read_exact(&mut buffer) {
            Ok(()) => stream.write_all(&buffer[..answer_bytes(exchange, bytes)])?,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn drive(mut stream: TcpStream, exchange: Exchange, bytes: usize, bounds: Bounds) -> anyhow::Result<Outcome> {
    stream.set_nodelay(true)?;
    let (sent, mut answer) = (vec![1; bytes], vec![0; answer_bytes(exchange, bytes)]);
    let mut outcome = Outcome::default();
    let start = Instant::now();
    while start.elapsed() < bounds.time && outcome.ops < bounds.ops_max {
        let before = Instant::now();
        stream.write_all(&sent)?;
        stream.read_exact(&mut answer)?;
        outcome.ops += 1;
        outcome.latencies_ms.push(before.elapsed().as_secs_f32() * 1e3);
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome.latencies_ms.sort_unstable_by(f32::total_cmp);
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn both_exchanges_end_at_their_count() {
        let bounds = Bounds { time: Duration::from_secs(60), ops_max: 5 };
        for (exchange, bytes) in [(Exchange::Echo, 4096), (Exchange::Stream, 4 << 20)] {
            let outcome = run(exchange, bytes, bounds).expect("loopback works");
            assert_eq!((outcome.ops, outcome.latencies_ms.len()), (5, 5));
        }
    }
}

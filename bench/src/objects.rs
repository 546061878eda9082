//! Load on the objects of a pool, through the client library.

use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};
use holdfast_client::{Client, Pool};
use holdfast_types::ObjectName;
use holdfast_wire::mon::MonCommand;

use crate::load::{Turn, Worker};

/// The pool of these measurements: apart from S3's, so that each load has placement groups of its own.
pub const POOL: &str = "bench";

/// Writes outstanding while the objects to be read are made.
const FILL_DEPTH: usize = 8;

/// Bytes of an object's number at its begin.
pub const STAMP_BYTES: usize = 8;

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Replace a whole object.
    Write,
    /// Read a whole object.
    Read,
}

/// One client of the load.
#[derive(Debug, Clone)]
pub struct ObjectWorker {
    /// Where the objects are.
    pub pool: Pool,
    /// What it does.
    pub op: Op,
    /// What it writes; for reads, the length of what was written.
    pub body: Bytes,
    /// How many objects there are.
    pub objects: u64,
}

fn name(prefix: &str, bytes: usize, index: u64) -> anyhow::Result<ObjectName> {
    Ok(ObjectName::new(format!("{prefix}.{bytes}.{index}"))?)
}

impl Worker for ObjectWorker {
    async fn op(&mut self, turn: Turn) -> anyhow::Result<()> {
        let bytes = self.body.len();
        match self.op {
            Op::Write => {
                let object = name("write", bytes, turn.own_object(self.objects))?;
                self.pool.write_full(&object, self.body.clone()).await?;
            }
            Op::Read => {
                let index = turn.any_object(self.objects);
                let read = self.pool.read(&name("read", bytes, index)?, 0, bytes as u64).await?;
                check(&read, read.len(), bytes, index)?;
            }
        }
        Ok(())
    }
}

/// Makes the pool of the measurements.
///
/// # Errors
/// When the monitors refuse.
pub async fn make_pool(client: &Client) -> anyhow::Result<Pool> {
    let command = MonCommand::PoolCreate {
        name: POOL.to_owned(),
        size: None,
        min_size: None,
        application: "bench".to_owned(),
        failure_domain: None,
        share_percent: None,
    };
    client.mon_command(command).await?;
    Ok(client.pool(POOL).await?)
}

/// Makes the objects that reads read, untimed, and reads the first one back.
///
/// # Errors
/// When one cannot be written, or reads back as something else.
pub async fn fill(pool: &Pool, body: &Bytes, objects: u64) -> anyhow::Result<()> {
    let writes = (0..objects).map(|index| async move {
        pool.write_full(&name("read", body.len(), index)?, stamped(body, index)).await?;
        anyhow::Ok(())
    });
    futures::stream::iter(writes).buffer_unordered(FILL_DEPTH).try_collect::<()>().await?;
    let read = pool.read(&name("read", body.len(), 0)?, 0, body.len() as u64).await?;
    anyhow::ensure!(read == stamped(body, 0), "an object reads back as something else than was written");
    Ok(())
}

/// `body` with the object's number at its begin, so that a read of another object is noticed.
#[must_use]
pub fn stamped(body: &Bytes, index: u64) -> Bytes {
    let mut bytes = body.to_vec();
    for (byte, stamp) in bytes.iter_mut().zip(index.to_le_bytes()) {
        *byte = stamp;
    }
    bytes.into()
}

/// Whether a read whose begin and whose length are given can be of object `index`, which has `wanted` bytes.
///
/// # Errors
/// When it cannot.
pub fn check(begin: &[u8], bytes: usize, wanted: usize, index: u64) -> anyhow::Result<()> {
    anyhow::ensure!(bytes == wanted, "read {bytes} bytes of {wanted}");
    let stamp = index.to_le_bytes();
    let length = STAMP_BYTES.min(wanted);
    anyhow::ensure!(begin.get(..length) == stamp.get(..length), "object {index} reads as another one");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_another_number_or_length_is_noticed() {
        let object = stamped(&Bytes::from(vec![7; 4096]), 300);
        assert!(check(&object, object.len(), 4096, 300).is_ok());
        assert!(check(&object, object.len(), 4096, 301).is_err());
        assert!(check(&object, 4095, 4096, 300).is_err());
    }
}

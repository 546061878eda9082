//! Load over S3: HTTP/1.1 with one connection for each client, kept open from op to op.

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use futures::stream::{StreamExt, TryStreamExt};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;

use crate::load::{Turn, Worker};
use crate::objects::{Op, STAMP_BYTES, check, stamped};
use crate::sigv4::Signer;

/// The bucket of these measurements.
pub const BUCKET: &str = "bench";

/// PUTs outstanding while the objects to be read are made.
const FILL_DEPTH: u64 = 8;
/// Of a body that says why a request failed, this much is shown.
const REASON_BYTES_MAX: usize = 300;

struct Answer {
    kept: BytesMut,
    bytes: usize,
}

/// A connection to the gateway, made when it is needed.
pub struct S3Connection {
    address: String,
    signer: Signer,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl S3Connection {
    /// To `http://HOST:PORT`, with a key.
    ///
    /// # Errors
    /// When the endpoint is not of that form.
    pub fn new(endpoint: &str, region: &str, access_key: &str, secret_key: &str) -> anyhow::Result<S3Connection> {
        let address = endpoint
            .strip_prefix("http://")
            .with_context(|| format!("{endpoint} does not begin with http://"))?
            .trim_end_matches('/')
            .to_owned();
        let signer = Signer::new(address.clone(), region.to_owned(), access_key.to_owned(), secret_key.to_owned());
        Ok(S3Connection { address, signer, sender: None })
    }

    /// Another connection to the same endpoint.
    #[must_use]
    pub fn another(&self) -> S3Connection {
        S3Connection { address: self.address.clone(), signer: self.signer.clone(), sender: None }
    }

    /// One request, and its answer's whole body.
    ///
    /// # Errors
    /// When it does not arrive, or the answer is no success.
    pub async fn call(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        Ok(self.answer(method, path, body, usize::MAX).await?.kept.freeze())
    }

    /// One request, of whose answer's body only the first `keep` bytes are kept and the rest is counted.
    async fn answer(&mut self, method: Method, path: &str, body: Bytes, keep: usize) -> anyhow::Result<Answer> {
        let answer = self.exchange(method, path, body, keep).await;
        if answer.is_err() {
            self.sender = None; // what may still be under way on it belongs to a request that is given up
        }
        answer
    }

    async fn exchange(&mut self, method: Method, path: &str, body: Bytes, keep: usize) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method.clone()).uri(path);
        for (name, value) in self.signer.sign(&method, path, Timestamp::now())? {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body))?;
        let sender = self.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let keep = if status.is_success() { keep } else { REASON_BYTES_MAX };
        let mut body = response.into_body();
        let mut answer = Answer { kept: BytesMut::new(), bytes: 0 };
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let room = keep.saturating_sub(answer.kept.len()).min(data.len());
            answer.kept.extend_from_slice(&data[..room]);
            answer.bytes += data.len();
        }
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&answer.kept));
        }
        Ok(answer)
    }

    async fn ready(&mut self) -> anyhow::Result<&mut SendRequest<Full<Bytes>>> {
        let kept = match self.sender.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await?;
        Ok(self.sender.insert(sender))
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.address).await.with_context(|| self.address.clone())?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the connection; what went wrong is told to the request that waits on it.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn path(prefix: &str, bytes: usize, index: u64) -> String {
    format!("/{BUCKET}/{prefix}-{bytes}-{index:07}")
}

/// One client of the load.
pub struct S3Worker {
    /// Its connection.
    pub connection: S3Connection,
    /// What it does.
    pub op: Op,
    /// What it writes; for reads, the length of what was written.
    pub body: Bytes,
    /// How many objects there are.
    pub objects: u64,
}

impl Worker for S3Worker {
    async fn op(&mut self, turn: Turn) -> anyhow::Result<()> {
        let bytes = self.body.len();
        match self.op {
            Op::Write => {
                let path = path("put", bytes, turn.own_object(self.objects));
                self.connection.call(Method::PUT, &path, self.body.clone()).await?;
            }
            Op::Read => {
                let index = turn.any_object(self.objects);
                let path = path("get", bytes, index);
                let read = self.connection.answer(Method::GET, &path, Bytes::new(), STAMP_BYTES).await?;
                check(&read.kept, read.bytes, bytes, index)?;
            }
        }
        Ok(())
    }
}

/// Makes the bucket.
///
/// # Errors
/// When the gateway refuses.
pub async fn make_bucket(connection: &mut S3Connection) -> anyhow::Result<()> {
    connection.call(Method::PUT, &format!("/{BUCKET}"), Bytes::new()).await.map(drop)
}

/// Makes the objects that reads read, untimed, and reads the first one back.
///
/// # Errors
/// When one cannot be written, or reads back as something else.
pub async fn fill(connection: &mut S3Connection, body: &Bytes, objects: u64) -> anyhow::Result<()> {
    let fillers = (0..FILL_DEPTH.min(objects)).map(|filler| {
        let mut connection = connection.another();
        async move {
            for index in (filler..objects).step_by(usize::try_from(FILL_DEPTH).unwrap_or(1)) {
                connection.call(Method::PUT, &path("get", body.len(), index), stamped(body, index)).await?;
            }
            anyhow::Ok(())
        }
    });
    futures::stream::iter(fillers).buffer_unordered(usize::MAX).try_collect::<()>().await?;
    let read = connection.call(Method::GET, &path("get", body.len(), 0), Bytes::new()).await?;
    anyhow::ensure!(read == stamped(body, 0), "an S3 object reads back as something else than was written");
    Ok(())
}

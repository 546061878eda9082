//! The configuration files: one TOML file for each daemon, one for clients. An unknown key is an error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use holdfast_types::{ClusterId, MonId, OsdId};
use holdfast_wire::mon::LocationStep;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::failure::{Exit, Failure};
use crate::units::ByteSize;

/// `holdfast mon --config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonFile {
    /// Who it is.
    pub id: MonId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its directory.
    pub data: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where its admin endpoint listens; none without.
    pub admin: Option<SocketAddr>,
    /// All monitors at first start, by id, as `host:port`.
    #[serde(deserialize_with = "monitors_by_id")]
    pub monitors: BTreeMap<MonId, String>,
}

/// A TOML key is always text.
fn monitors_by_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<MonId, String>, D::Error> {
    let by_text = BTreeMap::<String, String>::deserialize(deserializer)?;
    let parse = |(id, address): (String, String)| Ok((id.parse().map_err(serde::de::Error::custom)?, address));
    by_text.into_iter().map(parse).collect()
}

/// `holdfast osd --config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OsdFile {
    /// The id that a new disk would like.
    pub id: Option<OsdId>,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Some monitors, as `host:port`.
    pub monitors: Vec<String>,
    /// Its directory.
    pub data: PathBuf,
    /// A block device or file that is there; without this, `data/block`, which is made.
    pub device: Option<PathBuf>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How others reach it, as `host:port`; `listen` without.
    pub advertise: Option<String>,
    /// Where its admin endpoint listens; none without.
    pub admin: Option<SocketAddr>,
    /// Where it stands, from host upwards.
    #[serde(default)]
    pub location: Vec<Step>,
    /// Device class.
    pub class: Option<String>,
    /// Size of a device file that is made at first start.
    #[serde(default = "default_capacity")]
    pub capacity: ByteSize,
    /// Size of the store's segments.
    #[serde(default = "default_segment")]
    pub segment: ByteSize,
    /// Memory of caches, queues and recovery.
    #[serde(default = "default_memory")]
    pub memory_target: ByteSize,
    /// Threads that own placement groups; one for two cores without, 8 at most.
    pub shards: Option<usize>,
}

fn default_capacity() -> ByteSize {
    ByteSize(64 << 30)
}

fn default_segment() -> ByteSize {
    ByteSize(64 << 20)
}

fn default_memory() -> ByteSize {
    ByteSize(1 << 30)
}

/// `holdfast s3 --config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3File {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Some monitors, as `host:port`.
    pub monitors: Vec<String>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How clients reach it, as `host:port`; `listen` without.
    pub advertise: Option<String>,
    /// Where its admin endpoint listens; none without.
    pub admin: Option<SocketAddr>,
    /// The name under which it registers; drawn from the address without.
    pub name: Option<String>,
    /// The region of signatures.
    #[serde(default = "default_region")]
    pub region: String,
    /// Domains under which `bucket.DOMAIN` is a bucket.
    #[serde(default)]
    pub domains: Vec<String>,
    /// The pool of bucket indexes.
    #[serde(default = "default_index_pool")]
    pub index_pool: String,
    /// The pool of object data.
    #[serde(default = "default_data_pool")]
    pub data_pool: String,
    /// Copies in those pools, if this gateway has to make them; three without, and it waits for as many OSDs.
    #[serde(default)]
    pub pool_size: Option<u32>,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

fn default_index_pool() -> String {
    holdfast_devcluster::INDEX_POOL.to_owned()
}

fn default_data_pool() -> String {
    holdfast_devcluster::DATA_POOL.to_owned()
}

/// What `HOLDFAST_CONFIG` names.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The cluster.
    pub cluster: ClusterId,
    /// Some monitors, as `host:port`.
    pub monitors: Vec<String>,
}

/// A step of a CRUSH location, written as `host=node-7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step(pub LocationStep);

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Step, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.split_once('=') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() => {
                Ok(Step(LocationStep { kind: kind.to_owned(), name: name.to_owned() }))
            }
            _ => Err(serde::de::Error::custom(format!("{text:?} is not a location step such as \"host=node-7\""))),
        }
    }
}

/// Reads a file.
///
/// # Errors
/// A usage failure that names the file, the line and the key.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Error };
        Failure::new(exit, format!("cannot read {}", path.display())).because(&error)
    })?;
    parse(&text)
        .map_err(|error| Failure::usage(format!("{}, {error}", path.display())).next("mend that line and start again"))
}

/// Parses a file's text; the error opens with the line.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let line =
            error.span().map(|span| text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1);
        let message = error.message().trim_end();
        match line {
            // An error of the whole file, such as a key that is missing, spans all of it.
            Some(line) if !message.starts_with("missing field") => format!("line {line}: {message}"),
            _ => message.to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_devcluster::{ClusterDir, Layout, Role, Wishes, write_config_files};

    const S3: &str =
        "cluster = \"00112233-4455-6677-8899-aabbccddeeff\"\nmonitors = [\"127.0.0.1:1\"]\nlisten = \"127.0.0.1:2\"\n";

    #[test]
    fn every_file_that_the_development_cluster_writes_is_understood() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = ClusterDir::create(&temp.path().join("with \"quotes\" and ünicode")).expect("made");
        let wishes = Wishes { mons: Some(3), osds: Some(2), ..Wishes::default() };
        let layout = Layout::open_or_create(&dir, &wishes).expect("drawn");
        write_config_files(&dir, &layout).expect("written");
        for daemon in layout.daemons() {
            let path = dir.config_of(daemon);
            let place = layout.place(daemon).expect("it has one");
            match daemon.role {
                Role::Mon => {
                    let file: MonFile = load(&path).map_err(|f| f.text()).expect("understood");
                    assert_eq!((file.id, file.listen, file.monitors.len()), (MonId(daemon.id), place.address, 3));
                    assert_eq!(Some(file.data), dir.data_of(daemon));
                }
                Role::Osd => {
                    let file: OsdFile = load(&path).map_err(|f| f.text()).expect("understood");
                    assert_eq!((file.listen, file.monitors), (place.address, layout.monitors()));
                    assert_eq!(file.location.first().map(|step| step.0.kind.as_str()), Some("host"));
                    assert_eq!(file.memory_target, ByteSize(64 << 20));
                }
                Role::S3 => {
                    let file: S3File = load(&path).map_err(|f| f.text()).expect("understood");
                    assert_eq!((file.listen, file.cluster), (place.address, layout.cluster));
                }
            }
        }
        let client: ClientFile = load(&dir.client_config()).map_err(|f| f.text()).expect("understood");
        assert_eq!(client.monitors, layout.monitors());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse::<S3File>(&format!("{S3}\nlissten = 3\n")).expect_err("no such key");
        assert!(error.starts_with("line 5: unknown field `lissten`, expected one of "), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        let error = parse::<S3File>(&S3.replace("127.0.0.1:2", "port 9")).expect_err("no address");
        assert!(error.starts_with("line 3: "), "{error}");
        let error = parse::<OsdFile>(&format!("{S3}data = \"x\"\nsegment = \"64 MB\"\n")).expect_err("no size");
        assert!(error.starts_with("line 5: ") && error.contains("64 MB"), "{error}");
        let error = parse::<OsdFile>(&format!("{S3}data = \"x\"\nlocation = [\"rack 1\"]\n")).expect_err("no step");
        assert!(error.starts_with("line 5: ") && error.contains("host=node-7"), "{error}");
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = parse::<S3File>("monitors = []\n").expect_err("no cluster");
        assert_eq!(error, "missing field `cluster`");
    }
}

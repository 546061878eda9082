//! Which daemons a cluster has and where they listen: drawn once, kept in `cluster.toml`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use holdfast_types::ClusterId;
use serde::{Deserialize, Serialize};

use crate::daemon::{DaemonName, Role};
use crate::directory::ClusterDir;
use crate::error::DevError;
use crate::ports;

/// Most OSDs of one machine's cluster: a process and about 64 MiB of memory each.
pub const OSDS_MAX: u32 = 64;

/// Only this version is understood.
const VERSION: u32 = 1;

/// A device file is sparse; this is how far it may grow unless the file system is smaller.
const CAPACITY_BYTES_MAX: u64 = 64 << 30;
/// Below this a store has too few segments to clean.
const CAPACITY_BYTES_MIN: u64 = 2 << 30;

/// What a start asks for; `None` leaves what is there, or takes the default at first start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// 1, 3 or 5 monitors; 1 by default.
    pub mons: Option<u32>,
    /// 1 to [`OSDS_MAX`] OSDs; 3 by default. An existing cluster can grow.
    pub osds: Option<u32>,
    /// Where S3 listens; a free port of 127.0.0.1 by default.
    pub s3: Option<SocketAddr>,
    /// Size of the OSDs' device files in bytes, for OSDs that are new.
    pub capacity_bytes: Option<u64>,
    /// Hosts with addresses of their own, at first start; without, all daemons share the loopback address and this
    /// machine's name.
    pub hosts: Option<Hosts>,
}

/// A host that daemons stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name in the CRUSH map.
    pub name: String,
    /// Its address. Nothing but this cluster may listen there: ports are not drawn but numbered.
    pub address: IpAddr,
}

/// Where the daemons of a cluster stand, when each host has a network of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    /// By the id of the monitor; as many as there are to be.
    pub mons: Vec<Host>,
    /// By the id of the OSD; as many as there are to be.
    pub osds: Vec<Host>,
    /// The gateway's.
    pub s3: Host,
}

/// First port of the daemons on hosts of their own; each has two, by role and id.
const HOST_PORT: u16 = 7000;

impl Hosts {
    fn place(host: &Host, slot: usize) -> Place {
        let slot = u16::try_from(slot).unwrap_or(u16::MAX / 4).saturating_mul(2);
        let port = HOST_PORT.saturating_add(slot);
        let at = |port| SocketAddr::new(host.address, port);
        Place { address: at(port), admin: at(port.saturating_add(1)) }
    }

    /// Monitors, OSDs, gateway: where they listen. Slots differ for all, so that any of them can share a host.
    fn places(&self) -> (Vec<Place>, Vec<Place>, Place) {
        let mons: Vec<Place> = self.mons.iter().enumerate().map(|(id, host)| Hosts::place(host, 1 + id)).collect();
        let first = 1 + mons.len();
        let osds = self.osds.iter().enumerate().map(|(id, host)| Hosts::place(host, first + id)).collect();
        (mons, osds, Hosts::place(&self.s3, 0))
    }
}

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// For its peers and clients, `host:port`.
    pub address: SocketAddr,
    /// Its admin endpoint, `host:port`.
    pub admin: SocketAddr,
}

/// An OSD: where it listens, how large its device file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OsdPlace {
    /// For its peers and clients, `host:port`.
    pub address: SocketAddr,
    /// Its admin endpoint, `host:port`.
    pub admin: SocketAddr,
    /// Size of its device file, in bytes.
    pub capacity_bytes: u64,
    /// Its host in the CRUSH map; this machine without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// A cluster on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Of this file.
    version: u32,
    /// Drawn at first start.
    pub cluster: ClusterId,
    /// The S3 region.
    pub region: String,
    /// Whether pools and key have been made.
    pub bootstrapped: bool,
    /// The gateway.
    pub s3: Place,
    /// By id.
    pub mons: Vec<Place>,
    /// By id.
    pub osds: Vec<OsdPlace>,
}

impl Layout {
    /// The layout of the directory, grown to `wishes`, or a new one.
    ///
    /// # Errors
    /// [`DevError::OtherShape`] for wishes that an existing cluster cannot follow, [`DevError::Impossible`] for ones
    /// that none can, and what files and ports can do.
    pub fn open_or_create(dir: &ClusterDir, wishes: &Wishes) -> Result<Layout, DevError> {
        check(wishes)?;
        let mut layout = if dir.layout_file().exists() {
            let layout = Layout::open(dir)?;
            layout.refuse_other_shape(dir, wishes)?;
            layout
        } else {
            Layout::draw(wishes)?
        };
        layout.grow(dir, wishes)?;
        layout.save(dir)?;
        Ok(layout)
    }

    /// The layout of the directory.
    ///
    /// # Errors
    /// [`DevError::NoCluster`], [`DevError::Malformed`].
    pub fn open(dir: &ClusterDir) -> Result<Layout, DevError> {
        let path = dir.layout_file();
        let text = fs::read_to_string(&path).map_err(DevError::file("read", &path))?;
        let layout: Layout = toml::from_str(&text)
            .map_err(|error| DevError::Malformed { path: path.clone(), detail: error.to_string() })?;
        if layout.version != VERSION {
            let detail = format!("it is version {}, this program reads {VERSION}", layout.version);
            return Err(DevError::Malformed { path, detail });
        }
        Ok(layout)
    }

    /// Writes the layout.
    ///
    /// # Errors
    /// [`DevError::File`].
    pub fn save(&self, dir: &ClusterDir) -> Result<(), DevError> {
        let text = toml::to_string(self).expect("a layout of plain fields always encodes");
        let text =
            format!("# Written by `holdfast dev up`; addresses are kept, so that restarts are found again.\n{text}");
        dir.write_whole(&dir.layout_file(), &text, 0o644)
    }

    /// All daemons: monitors, OSDs, the gateway.
    pub fn daemons(&self) -> Vec<DaemonName> {
        let of = |role, count: usize| (0u64..).take(count).map(move |id| DaemonName { role, id });
        of(Role::Mon, self.mons.len()).chain(of(Role::Osd, self.osds.len())).chain(of(Role::S3, 1)).collect()
    }

    /// Where a daemon listens and where its admin endpoint is.
    ///
    /// # Errors
    /// [`DevError::NoDaemon`].
    pub fn place(&self, daemon: DaemonName) -> Result<Place, DevError> {
        let index = usize::try_from(daemon.id).unwrap_or(usize::MAX);
        let place = match daemon.role {
            Role::Mon => self.mons.get(index).cloned(),
            Role::Osd => self.osds.get(index).map(|osd| Place { address: osd.address, admin: osd.admin }),
            Role::S3 => (index == 0).then(|| self.s3.clone()),
        };
        place.ok_or(DevError::NoDaemon { daemon })
    }

    /// Addresses of the monitors, as `host:port`.
    #[must_use]
    pub fn monitors(&self) -> Vec<String> {
        self.mons.iter().map(|mon| mon.address.to_string()).collect()
    }

    /// The S3 endpoint, as an URL that a client on this machine can use.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let mut address = self.s3.address;
        if address.ip().is_unspecified() {
            address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        format!("http://{address}")
    }

    fn draw(wishes: &Wishes) -> Result<Layout, DevError> {
        let mut cluster = [0u8; 16];
        getrandom::fill(&mut cluster)
            .map_err(|error| DevError::file("draw", "a cluster id")(std::io::Error::other(error)))?;
        let mons = usize::try_from(wishes.mons.unwrap_or(1)).unwrap_or(1);
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (region, cluster) = ("us-east-1".to_owned(), ClusterId(cluster));
        if let Some(hosts) = &wishes.hosts {
            let (mons, _, s3) = hosts.places();
            return Ok(Layout { version: VERSION, cluster, region, bootstrapped: false, s3, mons, osds: Vec::new() });
        }
        let mut ports = ports::free(localhost, 2 * mons + 2)?.into_iter();
        let mut next = || ports.next().ok_or(DevError::NoPort { host: localhost.to_string(), attempts: 0 });
        let s3_drawn = next()?;
        let s3 = Place { address: wishes.s3.unwrap_or(s3_drawn), admin: next()? };
        let mut places = Vec::with_capacity(mons);
        for _ in 0..mons {
            places.push(Place { address: next()?, admin: next()? });
        }
        Ok(Layout { version: VERSION, cluster, region, bootstrapped: false, s3, mons: places, osds: Vec::new() })
    }

    /// Adds the OSDs that are wanted and not there, and moves S3 where it is wanted.
    fn grow(&mut self, dir: &ClusterDir, wishes: &Wishes) -> Result<(), DevError> {
        let wanted = match wishes.osds {
            Some(wanted) => usize::try_from(wanted).unwrap_or(0),
            None if self.osds.is_empty() => wishes.hosts.as_ref().map_or(3, |hosts| hosts.osds.len()),
            None => self.osds.len(),
        };
        let added = wanted.saturating_sub(self.osds.len());
        let capacity_bytes = match wishes.capacity_bytes {
            Some(bytes) => bytes,
            None => default_capacity(dir, wanted)?,
        };
        if let Some(hosts) = wishes.hosts.as_ref().filter(|_| self.osds.is_empty()) {
            let (_, places, _) = hosts.places();
            let named = places.into_iter().zip(&hosts.osds);
            self.osds.extend(named.map(|(Place { address, admin }, host)| OsdPlace {
                address,
                admin,
                capacity_bytes,
                host: Some(host.name.clone()),
            }));
            return Ok(());
        }
        // Daemons that are not started yet hold no port: what the layout has given must not be given again.
        let places = self.mons.iter().chain([&self.s3]).flat_map(|place| [place.address, place.admin]);
        let given: Vec<_> = places.chain(self.osds.iter().flat_map(|osd| [osd.address, osd.admin])).collect();
        let mut ports = ports::free(IpAddr::V4(Ipv4Addr::LOCALHOST), 2 * added + given.len())?;
        ports.retain(|port| !given.contains(port));
        ports.truncate(2 * added);
        for pair in ports.chunks_exact(2) {
            self.osds.push(OsdPlace { address: pair[0], admin: pair[1], capacity_bytes, host: None });
        }
        if let Some(s3) = wishes.s3 {
            self.s3.address = s3;
        }
        Ok(())
    }

    fn refuse_other_shape(&self, dir: &ClusterDir, wishes: &Wishes) -> Result<(), DevError> {
        let refuse = |what, has: usize, asked, why| {
            let has = u32::try_from(has).unwrap_or(u32::MAX);
            Err(DevError::OtherShape { dir: dir.root().to_path_buf(), what, has, asked, why })
        };
        match wishes.mons {
            Some(asked) if usize::try_from(asked) != Ok(self.mons.len()) => {
                let why = "monitors of an existing cluster are not added or removed by `dev up`; use another --data directory";
                return refuse("monitors", self.mons.len(), asked, why);
            }
            _ => {}
        }
        match wishes.osds {
            Some(asked) if usize::try_from(asked).is_ok_and(|asked| asked < self.osds.len()) => {
                let why = "leaving OSDs out would leave out their data; drain them with `holdfast osd out` instead";
                refuse("OSDs", self.osds.len(), asked, why)
            }
            _ => Ok(()),
        }
    }
}

fn check(wishes: &Wishes) -> Result<(), DevError> {
    if let Some(asked) = wishes.mons.filter(|mons| !matches!(mons, 1 | 3 | 5)) {
        return Err(DevError::Impossible {
            what: "monitors",
            asked,
            why: "1, 3 or 5 make a quorum that can lose 0, 1 or 2",
        });
    }
    if let Some(asked) = wishes.osds.filter(|osds| !(1..=OSDS_MAX).contains(osds)) {
        return Err(DevError::Impossible { what: "OSDs", asked, why: "it takes 1 to 64 of them on one machine" });
    }
    Ok(())
}

/// A fair part of the free space, with a fifth left to others.
fn default_capacity(dir: &ClusterDir, osds: usize) -> Result<u64, DevError> {
    let stat = rustix::fs::statvfs(dir.root()).map_err(|error| DevError::file("measure", dir.root())(error.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let share = free_bytes / 5 * 4 / u64::try_from(osds.max(1)).unwrap_or(1);
    Ok(share.clamp(CAPACITY_BYTES_MIN, CAPACITY_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, ClusterDir) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = ClusterDir::create(temp.path()).expect("made");
        (temp, dir)
    }

    #[test]
    fn a_restart_has_the_same_cluster_and_addresses() {
        let (_temp, dir) = fresh();
        let first =
            Layout::open_or_create(&dir, &Wishes { mons: Some(3), osds: Some(5), ..Wishes::default() }).expect("drawn");
        let again = Layout::open_or_create(&dir, &Wishes::default()).expect("kept");
        assert_eq!(first, again);
        assert_eq!(first.daemons().len(), 3 + 5 + 1);
    }

    #[test]
    fn a_cluster_grows_and_keeps_what_it_has() {
        let (_temp, dir) = fresh();
        let first = Layout::open_or_create(&dir, &Wishes { osds: Some(3), ..Wishes::default() }).expect("drawn");
        let grown = Layout::open_or_create(&dir, &Wishes { osds: Some(4), ..Wishes::default() }).expect("grown");
        assert_eq!(grown.osds[..3], first.osds[..]);
        assert_eq!(grown.osds.len(), 4);
    }

    #[test]
    fn a_shape_that_would_leave_data_out_is_refused() {
        let (_temp, dir) = fresh();
        Layout::open_or_create(&dir, &Wishes { osds: Some(3), ..Wishes::default() }).expect("drawn");
        for wishes in [Wishes { osds: Some(2), ..Wishes::default() }, Wishes { mons: Some(3), ..Wishes::default() }] {
            let outcome = Layout::open_or_create(&dir, &wishes);
            assert!(matches!(outcome, Err(DevError::OtherShape { .. })), "{outcome:?}");
        }
    }

    #[test]
    fn numbers_that_make_no_cluster_are_refused() {
        let (_temp, dir) = fresh();
        for wishes in [
            Wishes { mons: Some(2), ..Wishes::default() },
            Wishes { osds: Some(0), ..Wishes::default() },
            Wishes { osds: Some(OSDS_MAX + 1), ..Wishes::default() },
        ] {
            assert!(matches!(Layout::open_or_create(&dir, &wishes), Err(DevError::Impossible { .. })));
        }
    }

    #[test]
    fn a_damaged_layout_is_named_and_not_replaced() {
        let (_temp, dir) = fresh();
        fs::write(dir.layout_file(), "version = 1\ncolour = 3\n").expect("written");
        match Layout::open_or_create(&dir, &Wishes::default()) {
            Err(DevError::Malformed { path, .. }) => assert_eq!(path, dir.layout_file()),
            other => panic!("it must not be used: {other:?}"),
        }
    }
}

//! The layer check: which crate may use which, read from `cargo metadata`.
//!
//! The table is the one of `ARCHITECTURE.md`. A pure crate additionally must not reach an async runtime, a random
//! source or a network library by any path of normal dependencies: what is not linked cannot slip in.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::run::cargo;

struct Layer {
    name: &'static str,
    uses: &'static [&'static str],
    pure_core: bool,
}

const fn layer(name: &'static str, uses: &'static [&'static str]) -> Layer {
    Layer { name, uses, pure_core: false }
}

const fn pure(name: &'static str, uses: &'static [&'static str]) -> Layer {
    Layer { name, uses, pure_core: true }
}

/// Bottom first: a crate may only name crates above its own row.
const LAYERS: &[Layer] = &[
    pure("types", &[]),
    pure("crush", &["types"]),
    pure("map", &["types", "crush"]),
    pure("wire", &["types", "map"]),
    layer("net", &["types", "wire"]),
    layer("kvlog", &[]),
    layer("store", &["types", "kvlog"]),
    layer("telemetry", &["types"]),
    pure("mon-state", &["types", "crush", "map", "wire"]),
    pure("pg", &["types", "crush", "map", "wire"]),
    layer("client", &["types", "crush", "map", "wire", "net"]),
    layer("mon", &["types", "map", "mon-state", "wire", "net", "kvlog", "telemetry"]),
    layer("osd", &["types", "map", "pg", "store", "wire", "net", "telemetry"]),
    layer("kvgroup", &["types", "client", "wire"]),
    layer("image", &["types", "client", "kvgroup"]),
    layer("gateway-s3", &["types", "client", "kvgroup", "wire", "telemetry"]),
    layer("block-nbd", &["types", "image", "telemetry"]),
    layer("fs-fuse", &["types", "client", "kvgroup", "telemetry"]),
    layer("csi-driver", &["types", "image", "fs-fuse", "client", "telemetry"]),
    layer("devcluster", &["types", "wire", "net"]),
];

/// These stand on top: they may use everything, and nothing may use them.
const TOP: &[&str] = &["cli", "sim", "mon-sim", "tests", "bench", "xtask"];

/// Not to be found beneath a pure crate.
const FORBIDDEN_BENEATH_PURE: &[&str] =
    &["tokio", "async-std", "mio", "hyper", "rocksdb", "rand", "getrandom", "openraft"];

/// Fails with every breach of the table.
pub fn check() -> anyhow::Result<()> {
    let output =
        cargo(&["metadata", "--format-version", "1", "--locked"]).output().context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let graph = Graph::of(&metadata)?;
    let breaches = breaches(&graph);
    if breaches.is_empty() {
        println!("   {} crates keep to their layers", graph.members.len());
        return Ok(());
    }
    for breach in &breaches {
        eprintln!("   {breach}");
    }
    bail!("{} breaches of the layers; the table is in xtask/src/layers.rs", breaches.len())
}

/// Packages by name, each with the names of its normal dependencies; members are without their `holdfast-` prefix.
struct Graph {
    members: BTreeSet<String>,
    normal: BTreeMap<String, BTreeSet<String>>,
    dev: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn of(metadata: &Value) -> anyhow::Result<Graph> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut names = BTreeMap::new();
        let mut workspace = BTreeSet::new();
        let member_ids: BTreeSet<String> =
            list(&metadata["workspace_members"]).iter().filter_map(|id| id.as_str().map(str::to_owned)).collect();
        for package in list(&metadata["packages"]) {
            let id = package["id"].as_str().context("a package without id")?.to_owned();
            let name = package["name"].as_str().context("a package without name")?;
            let name = if member_ids.contains(&id) { short(name) } else { name.to_owned() };
            if member_ids.contains(&id) {
                workspace.insert(name.clone());
            }
            names.insert(id, name);
        }
        let mut normal: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut dev: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let Some(name) = node["id"].as_str().and_then(|id| names.get(id)) else { continue };
            for dependency in list(&node["deps"]) {
                let Some(target) = dependency["pkg"].as_str().and_then(|id| names.get(id)) else { continue };
                for kind in list(&dependency["dep_kinds"]) {
                    match kind["kind"].as_str() {
                        None => normal.entry(name.clone()).or_default().insert(target.clone()),
                        Some("dev") => dev.entry(name.clone()).or_default().insert(target.clone()),
                        Some(_) => false,
                    };
                }
            }
        }
        Ok(Graph { members: workspace, normal, dev })
    }

    fn beneath(&self, name: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![name];
        while let Some(next) = open.pop() {
            for dependency in self.normal.get(next).into_iter().flatten() {
                if seen.insert(dependency.as_str()) {
                    open.push(dependency);
                }
            }
        }
        seen
    }
}

fn short(name: &str) -> String {
    name.strip_prefix("holdfast-").unwrap_or(name).to_owned()
}

fn breaches(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for member in &graph.members {
        let layer = LAYERS.iter().find(|layer| layer.name == member);
        let top = TOP.contains(&member.as_str());
        if layer.is_none() && !top {
            found.push(format!("{member} has no row in the table"));
        }
        for used in graph.normal.get(member).into_iter().flatten().filter(|used| graph.members.contains(*used)) {
            if TOP.contains(&used.as_str()) {
                found.push(format!("{member} uses {used}, which nothing may use"));
            } else if let Some(layer) = layer
                && !layer.uses.contains(&used.as_str())
            {
                found.push(format!("{member} uses {used}, which its row does not name"));
            }
        }
        for used in graph.dev.get(member).into_iter().flatten().filter(|used| TOP.contains(&used.as_str())) {
            found.push(format!("the tests of {member} use {used}, which nothing may use"));
        }
        if layer.is_some_and(|layer| layer.pure_core) {
            let beneath = graph.beneath(member);
            for forbidden in FORBIDDEN_BENEATH_PURE.iter().filter(|name| beneath.contains(**name)) {
                found.push(format!("{member} is pure, but has {forbidden} beneath it"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)], members: &[&str]) -> Graph {
        let mut normal: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in edges {
            normal.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        Graph { members: members.iter().map(|name| (*name).to_owned()).collect(), normal, dev: BTreeMap::new() }
    }

    #[test]
    fn every_row_names_only_rows_above_it() {
        for (index, layer) in LAYERS.iter().enumerate() {
            for used in layer.uses {
                assert!(LAYERS[..index].iter().any(|above| above.name == *used), "{} uses {used}", layer.name);
            }
        }
    }

    #[test]
    fn a_crate_that_its_row_does_not_name_is_a_breach() {
        let members = ["types", "map", "net", "wire", "client"];
        assert!(breaches(&graph(&[("map", "types"), ("net", "wire")], &members)).is_empty());
        assert_eq!(breaches(&graph(&[("map", "client")], &members)).len(), 1);
    }

    #[test]
    fn a_runtime_anywhere_beneath_a_pure_crate_is_a_breach() {
        let found = breaches(&graph(&[("map", "types"), ("types", "helper"), ("helper", "tokio")], &["types", "map"]));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn nothing_uses_what_stands_on_top() {
        assert_eq!(breaches(&graph(&[("client", "sim")], &["client", "sim"])).len(), 1);
    }
}

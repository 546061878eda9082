//! `holdfast osd blocklist …`: fences.

use std::time::Duration;

use holdfast_client::{Client, ClientConfig, ClientError};
use holdfast_types::Incarnation;
use holdfast_wire::mon::MonCommand;
use serde_json::json;

use crate::args::{BlocklistVerb, Common, FencedClient};
use crate::failure::{Exit, Failure};
use crate::monitors::{client_file, runtime};
use crate::output::Align::{Left, Right};
use crate::output::{Table, print};

/// Stands for all runs that a client can have.
const ALL_RUNS: Incarnation = Incarnation(u64::MAX);

/// `holdfast osd blocklist …`
pub fn blocklist(common: &Common, verb: BlocklistVerb) -> Result<(), Failure> {
    let file = client_file()?;
    let limit = Duration::from_secs(common.timeout);
    let config = ClientConfig { mon_timeout: limit, ..ClientConfig::new(file.cluster, file.monitors) };
    runtime()?.block_on(async {
        let client = Client::connect(config).await.map_err(|error| failure("reach the cluster", &error))?;
        let done = perform(common, &client, verb, limit).await;
        client.shutdown().await;
        done
    })
}

async fn perform(common: &Common, client: &Client, verb: BlocklistVerb, limit: Duration) -> Result<(), Failure> {
    match verb {
        BlocklistVerb::Ls => list(common, client),
        BlocklistVerb::Add(fenced) => {
            let (name, run) = (fenced.client, fenced.incarnation.unwrap_or(ALL_RUNS));
            let what = format!("fence {name}");
            let epoch = client.fence(name, run, limit).await.map_err(|error| failure(&what, &error))?;
            let value = json!({ "done": what, "epoch": epoch });
            print(common.output, &value, || format!("{name} is fenced ({}) since map epoch {epoch}\n", runs(run)))
        }
        BlocklistVerb::Rm(FencedClient { client: name, incarnation }) => {
            let run = incarnation.unwrap_or(ALL_RUNS);
            let what = format!("take away the fence of {name}");
            let command = MonCommand::BlocklistRemove { client: name, incarnation: run };
            client.mon_command(command).await.map_err(|error| {
                failure(&what, &error).next("holdfast osd blocklist ls shows the fences and their runs")
            })?;
            let value = json!({ "done": what });
            print(common.output, &value, || format!("{name} is not fenced any more ({})\n", runs(run)))
        }
    }
}

fn list(common: &Common, client: &Client) -> Result<(), Failure> {
    let entries = client.blocklist();
    let values: Vec<_> = entries
        .iter()
        .map(|entry| json!({ "client": entry.client.to_string(), "incarnation": entry.incarnation }))
        .collect();
    print(common.output, &values, || {
        let mut table = Table::new(&[("CLIENT", Left), ("RUNS", Right)]);
        for entry in &entries {
            table.row(vec![entry.client.to_string(), runs(entry.incarnation)]);
        }
        table.text()
    })
}

fn runs(up_to: Incarnation) -> String {
    if up_to == ALL_RUNS { "all runs".to_owned() } else { format!("runs up to {up_to}") }
}

fn failure(what: &str, error: &ClientError) -> Failure {
    match error {
        ClientError::Session(session) => Failure::unreachable(what, session),
        ClientError::Mon(refused) => Failure::refused(what, refused),
        ClientError::NotFencedYet { .. } => Failure::new(Exit::Error, format!("cannot {what} yet"))
            .because(error)
            .next("run the same command again: an OSD that stays silent is marked down, and the fence holds then"),
        other => Failure::new(Exit::Error, format!("cannot {what}")).because(other),
    }
}

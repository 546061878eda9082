//! Commands that are one question to the monitors, and its answer as a table or JSON.

use holdfast_types::OsdId;
use holdfast_wire::mon::{KeyInfo, MonCommand, MonReply, PgRow, Secret};
use holdfast_wire::scrub::{PgScrub, ScrubKind, ScrubTarget};
use serde_json::{Value, json};

use crate::args::{Common, ConfigVerb, Format, KeyVerb, OsdVerb, Osds, PgVerb, PoolVerb, Ratio};
use crate::failure::{Exit, Failure};
use crate::fences;
use crate::monitors::{ask, unexpected};
use crate::output::Align::{Left, Right};
use crate::output::{Table, print};
use crate::units::{ByteSize, percent};

/// A change that answers with the map that shows it.
fn change(common: &Common, what: &str, command: MonCommand) -> Result<Value, Failure> {
    match ask(common, what, command)? {
        MonReply::Done { epoch } => Ok(json!({ "done": what, "epoch": epoch })),
        _ => Err(unexpected(what)),
    }
}

fn print_change(common: &Common, value: &Value, text: &str) -> Result<(), Failure> {
    print(common.output, value, || format!("{text}\n"))
}

/// `holdfast osd …`
pub fn osd(common: &Common, verb: OsdVerb) -> Result<(), Failure> {
    match verb {
        OsdVerb::Tree => osd_tree(common),
        OsdVerb::Df => osd_df(common),
        OsdVerb::Out(osds) => each(common, &osds, "mark", "out", MonCommand::OsdOut),
        OsdVerb::In(osds) => each(common, &osds, "mark", "in", MonCommand::OsdIn),
        OsdVerb::Down(osds) => each(common, &osds, "mark", "down", MonCommand::OsdDown),
        OsdVerb::Scrub(osds) => scrub(common, osds.osds.into_iter().map(ScrubTarget::Osd), ScrubKind::Shallow),
        OsdVerb::DeepScrub(osds) => scrub(common, osds.osds.into_iter().map(ScrubTarget::Osd), ScrubKind::Deep),
        OsdVerb::Reweight { osd, weight } => {
            if !(0.0..=1.0).contains(&weight) {
                return Err(Failure::usage(format!("{weight} is not between 0 and 1")));
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 0x10000")]
            let fixed = (weight * 65536.0) as u32;
            let command = MonCommand::OsdReweight { osd, weight: fixed };
            let value = change(common, &format!("reweight {osd}"), command)?;
            print_change(common, &value, &format!("{osd} has weight {weight} now"))
        }
        OsdVerb::Release(osds) => each(common, &osds, "let", "boot", MonCommand::OsdRelease),
        OsdVerb::SetNearfullRatio(ratio) => {
            full_ratio(common, "nearfull", ratio, |part| [Some(part), None, None, None])
        }
        OsdVerb::SetBackfillfullRatio(ratio) => {
            full_ratio(common, "backfillfull", ratio, |part| [None, Some(part), None, None])
        }
        OsdVerb::SetFullRatio(ratio) => full_ratio(common, "full", ratio, |part| [None, None, Some(part), None]),
        OsdVerb::SetFailsafeRatio(ratio) => {
            full_ratio(common, "failsafe", ratio, |part| [None, None, None, Some(part)])
        }
        OsdVerb::Blocklist(verb) => fences::blocklist(common, verb),
        OsdVerb::Rm { osd, confirm } => {
            confirmed(&format!("remove {osd}"), &osd.to_string(), confirm.as_deref())?;
            let value = change(common, &format!("remove {osd}"), MonCommand::OsdRemove(osd))?;
            print_change(common, &value, &format!("{osd} is forgotten"))
        }
        OsdVerb::Lost { osd, confirm } => {
            let action = format!("give up what only {osd} has");
            confirmed(&action, &osd.to_string(), confirm.as_deref())?;
            let command = MonCommand::OsdLost { osd, confirm: osd.to_string() };
            let value = change(common, &action, command)?;
            print_change(common, &value, &format!("{osd} is lost: nobody waits for it any more"))
        }
    }
}

/// Asks for scrubs. They go on by themselves, when the placement groups are clean.
fn scrub(common: &Common, targets: impl Iterator<Item = ScrubTarget>, kind: ScrubKind) -> Result<(), Failure> {
    let word = match kind {
        ScrubKind::Shallow => "scrub",
        ScrubKind::Deep => "deep-scrub",
        ScrubKind::Repair => "repair",
    };
    let (mut values, mut names) = (Vec::new(), Vec::new());
    for target in targets {
        let name = match target {
            ScrubTarget::Pg(pg) => format!("pg {pg}"),
            ScrubTarget::Osd(osd) => osd.to_string(),
        };
        values.push(change(common, &format!("{word} {name}"), MonCommand::Scrub { target, kind })?);
        names.push(name);
    }
    let text = || format!("{word} of {} is asked for; `holdfast pg ls` shows when it is done\n", names.join(", "));
    print(common.output, &values, text)
}

/// `set` says which of the four levels the new one is.
fn full_ratio(
    common: &Common,
    level: &str,
    Ratio { ratio }: Ratio,
    set: fn(u32) -> [Option<u32>; 4],
) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&ratio) {
        return Err(Failure::usage(format!("{ratio} is not between 0 and 1")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
    let [near_full, backfill_full, full, failsafe] = set((ratio * 1_000.0).round() as u32);
    let command = MonCommand::FullRatios { near_full, backfill_full, full, failsafe };
    let value = change(common, &format!("set the {level} ratio"), command)?;
    print_change(common, &value, &format!("{level} begins at {ratio}"))
}

fn each(common: &Common, osds: &Osds, verb: &str, word: &str, command: fn(OsdId) -> MonCommand) -> Result<(), Failure> {
    let mut values = Vec::new();
    for osd in &osds.osds {
        values.push(change(common, &format!("{verb} {osd} {word}"), command(*osd))?);
    }
    let names: Vec<String> = osds.osds.iter().map(ToString::to_string).collect();
    let done = if verb == "mark" { format!("marked {word}") } else { format!("may {word}") };
    print(common.output, &values, || format!("{} {done}\n", names.join(", ")))
}

/// Dangerous acts want the name once more.
fn confirmed(what: &str, name: &str, confirm: Option<&str>) -> Result<(), Failure> {
    match confirm {
        Some(given) if given == name => Ok(()),
        Some(given) => Err(Failure::new(Exit::Unsafe, format!("cannot {what}: --confirm says {given:?}"))),
        None => {
            let failure =
                Failure::new(Exit::Unsafe, format!("cannot {what} without confirmation: it cannot be undone"));
            Err(failure.next(format!("the same command with --confirm {name}")))
        }
    }
}

fn osd_tree(common: &Common) -> Result<(), Failure> {
    let what = "show the tree";
    let MonReply::OsdTree(nodes) = ask(common, what, MonCommand::OsdTree)? else { return Err(unexpected(what)) };
    print(common.output, &nodes, || {
        let mut table = Table::new(&[
            ("ID", Right),
            ("CLASS", Left),
            ("WEIGHT", Right),
            ("NAME", Left),
            ("STATUS", Left),
            ("REWEIGHT", Right),
            ("ADDRESS", Left),
        ]);
        for node in &nodes {
            let indent = "  ".repeat(usize::try_from(node.depth).unwrap_or(0).min(32));
            let name = if node.id >= 0 { node.name.clone() } else { format!("{} {}", node.kind, node.name) };
            table.row(vec![
                node.id.to_string(),
                node.class.clone().unwrap_or_default(),
                format!("{:.5}", node.weight),
                format!("{indent}{name}"),
                node.status.clone(),
                node.reweight.map(|reweight| format!("{reweight:.5}")).unwrap_or_default(),
                node.address.clone().unwrap_or_default(),
            ]);
        }
        table.text()
    })
}

fn osd_df(common: &Common) -> Result<(), Failure> {
    let what = "show the OSDs' space";
    let MonReply::OsdDf(rows) = ask(common, what, MonCommand::OsdDf)? else { return Err(unexpected(what)) };
    print(common.output, &rows, || {
        let mut table = Table::new(&[
            ("OSD", Left),
            ("CLASS", Left),
            ("WEIGHT", Right),
            ("REWEIGHT", Right),
            ("SIZE", Right),
            ("USED", Right),
            ("LIVE", Right),
            ("USE", Right),
            ("PGS", Right),
            ("STATUS", Left),
        ]);
        for row in &rows {
            let size = |of: fn(&holdfast_wire::mon::StoreUsage) -> u64| match &row.usage {
                Some(usage) => ByteSize(of(usage)).to_string(),
                None => "-".to_owned(),
            };
            let status = match (row.up, row.in_cluster) {
                (true, true) => "up, in",
                (true, false) => "up, out",
                (false, true) => "down, in",
                (false, false) => "down, out",
            };
            table.row(vec![
                row.osd.to_string(),
                row.class.clone().unwrap_or_default(),
                format!("{:.5}", row.weight),
                format!("{:.5}", row.reweight),
                size(|usage| usage.total_bytes),
                size(|usage| usage.used_bytes),
                size(|usage| usage.live_bytes),
                row.usage.map_or_else(|| "-".to_owned(), |usage| percent(usage.used_bytes, usage.total_bytes)),
                row.pgs.to_string(),
                status.to_owned(),
            ]);
        }
        table.text()
    })
}

/// `holdfast df`
pub fn df(common: &Common) -> Result<(), Failure> {
    let what = "show the space";
    let MonReply::Df(report) = ask(common, what, MonCommand::Df)? else { return Err(unexpected(what)) };
    print(common.output, &report, || {
        let usage = report.usage;
        let mut table = Table::new(&[("SIZE", Right), ("USED", Right), ("LIVE", Right), ("USE", Right)]);
        table.row(vec![
            ByteSize(usage.total_bytes).to_string(),
            ByteSize(usage.used_bytes).to_string(),
            ByteSize(usage.live_bytes).to_string(),
            percent(usage.used_bytes, usage.total_bytes),
        ]);
        let mut pools =
            Table::new(&[("POOL", Left), ("ID", Right), ("OBJECTS", Right), ("STORED", Right), ("AVAILABLE", Right)]);
        for pool in &report.pools {
            pools.row(vec![
                pool.name.clone(),
                pool.id.to_string(),
                pool.objects.to_string(),
                ByteSize(pool.stored_bytes).to_string(),
                ByteSize(pool.available_bytes).to_string(),
            ]);
        }
        format!("{}\n{}", table.text(), pools.text())
    })
}

/// `holdfast pool …`
pub fn pool(common: &Common, verb: PoolVerb) -> Result<(), Failure> {
    match verb {
        PoolVerb::Ls => {
            let what = "list the pools";
            let MonReply::Pools(rows) = ask(common, what, MonCommand::PoolList)? else { return Err(unexpected(what)) };
            print(common.output, &rows, || {
                let mut table = Table::new(&[
                    ("POOL", Left),
                    ("ID", Right),
                    ("COPIES", Right),
                    ("AT LEAST", Right),
                    ("PGS", Right),
                    ("APART BY", Left),
                    ("FOR", Left),
                ]);
                for row in &rows {
                    table.row(vec![
                        row.name.clone(),
                        row.id.to_string(),
                        row.size.to_string(),
                        row.min_size.to_string(),
                        row.pg_num.to_string(),
                        row.failure_domain.clone(),
                        row.application.clone(),
                    ]);
                }
                table.text()
            })
        }
        PoolVerb::Create { name, size, min_size, application, failure_domain, share_percent } => {
            let what = format!("make pool {name}");
            let command = MonCommand::PoolCreate {
                name: name.clone(),
                size,
                min_size,
                application,
                failure_domain,
                share_percent,
            };
            let MonReply::Pool { id, epoch } = ask(common, &what, command)? else { return Err(unexpected(&what)) };
            let value = json!({ "name": name, "id": id, "epoch": epoch });
            print(common.output, &value, || format!("pool {name} has id {id}\n"))
        }
        PoolVerb::Set { name, size, min_size, failure_domain } => {
            let command = MonCommand::PoolSet { name: name.clone(), size, min_size, failure_domain };
            let value = change(common, &format!("change pool {name}"), command)?;
            print_change(
                common,
                &value,
                &format!("pool {name} is changed; `holdfast pg ls --unclean` shows what moves"),
            )
        }
        PoolVerb::Rm { name, confirm } => {
            let what = format!("delete pool {name} and all that is in it");
            confirmed(&what, &name, confirm.as_deref())?;
            let command = MonCommand::PoolDelete { name: name.clone(), confirm: name.clone() };
            let value = change(common, &what, command)?;
            print_change(common, &value, &format!("pool {name} is deleted"))
        }
    }
}

/// `holdfast pg …`
pub fn pg(common: &Common, verb: PgVerb) -> Result<(), Failure> {
    let unclean = match verb {
        PgVerb::Ls { unclean } => unclean,
        PgVerb::Query { pg } => return crate::explain::pg_query(common, pg),
        PgVerb::Scrub(pgs) => return scrub(common, pgs.pgs.into_iter().map(ScrubTarget::Pg), ScrubKind::Shallow),
        PgVerb::DeepScrub(pgs) => return scrub(common, pgs.pgs.into_iter().map(ScrubTarget::Pg), ScrubKind::Deep),
        PgVerb::Repair(pgs) => return scrub(common, pgs.pgs.into_iter().map(ScrubTarget::Pg), ScrubKind::Repair),
    };
    let what = "list the placement groups";
    let MonReply::Pgs(mut rows) = ask(common, what, MonCommand::PgList)? else { return Err(unexpected(what)) };
    if unclean {
        rows.retain(|row| row.state != "active+clean");
    }
    print(common.output, &rows, || pg_table(&rows))
}

/// How long ago the last scrub ended.
fn scrubbed(scrub: Option<&PgScrub>, deep: bool) -> String {
    let Some(scrub) = scrub else { return String::new() };
    if scrub.running.is_some_and(|kind| kind.is_deep() == deep) {
        return "running".to_owned();
    }
    let (at, age_s) =
        if deep { (scrub.deep_scrubbed_ms, scrub.deep_scrub_age_s) } else { (scrub.scrubbed_ms, scrub.scrub_age_s) };
    match (at, age_s) {
        (0, _) => "never".to_owned(),
        (_, 0..120) => format!("{age_s} s ago"),
        (_, 120..7_200) => format!("{} min ago", age_s / 60),
        (_, 7_200..172_800) => format!("{} h ago", age_s / 3_600),
        _ => format!("{} d ago", age_s / 86_400),
    }
}

fn pg_table(rows: &[PgRow]) -> String {
    let set = |osds: &[OsdId]| {
        let ids: Vec<String> = osds.iter().map(|osd| osd.0.to_string()).collect();
        format!("[{}]", ids.join(","))
    };
    let mut table = Table::new(&[
        ("PG", Left),
        ("STATE", Left),
        ("UP", Left),
        ("ACTING", Left),
        ("OBJECTS", Right),
        ("BYTES", Right),
        ("MISSING", Right),
        ("UNFOUND", Right),
        ("LAST UPDATE", Left),
        ("BLOCKED BY", Left),
        ("SCRUBBED", Right),
        ("DEEP SCRUBBED", Right),
    ]);
    for row in rows {
        table.row(vec![
            row.pg.to_string(),
            row.state.clone(),
            set(&row.up),
            set(&row.acting),
            row.objects.to_string(),
            ByteSize(row.bytes).to_string(),
            row.copies_missing.to_string(),
            row.objects_unfound.to_string(),
            row.last_update.to_string(),
            if row.blocked_by.is_empty() { String::new() } else { set(&row.blocked_by) },
            scrubbed(row.scrub.as_ref(), false),
            scrubbed(row.scrub.as_ref(), true),
        ]);
    }
    table.text()
}

/// `holdfast key …`
pub fn key(common: &Common, verb: KeyVerb) -> Result<(), Failure> {
    match verb {
        KeyVerb::New { name, access_key, secret_key } => {
            let what = format!("make key {name}");
            let command = MonCommand::KeyNew { name, access_key, secret_key: secret_key.map(Secret) };
            let MonReply::Key(key) = ask(common, &what, command)? else { return Err(unexpected(&what)) };
            print(common.output, &key_json(&key), || {
                let secret = key.secret_key.as_ref().map_or("", |secret| secret.0.as_str());
                format!("name        {}\naccess key  {}\nsecret key  {secret}\n", key.name, key.access_key)
            })
        }
        KeyVerb::Ls => {
            let what = "list the keys";
            let MonReply::Keys(keys) = ask(common, what, MonCommand::KeyList)? else { return Err(unexpected(what)) };
            let values: Vec<Value> = keys.iter().map(key_json).collect();
            print(common.output, &values, || {
                let mut table = Table::new(&[("NAME", Left), ("ACCESS KEY", Left)]);
                for key in &keys {
                    table.row(vec![key.name.clone(), key.access_key.clone()]);
                }
                table.text()
            })
        }
        KeyVerb::Rm { name } => {
            let value = change(common, &format!("delete key {name}"), MonCommand::KeyRemove { name: name.clone() })?;
            print_change(common, &value, &format!("key {name} is deleted"))
        }
    }
}

fn key_json(key: &KeyInfo) -> Value {
    let mut value = json!({ "name": key.name, "access_key": key.access_key });
    if let (Some(secret), Some(map)) = (&key.secret_key, value.as_object_mut()) {
        map.insert("secret_key".to_owned(), json!(secret.0));
    }
    value
}

/// `holdfast config …`
pub fn config(common: &Common, verb: ConfigVerb) -> Result<(), Failure> {
    match verb {
        ConfigVerb::Get { name } => {
            let set = config_dump(common)?;
            let Some(value) = set.get(&name) else {
                let failure = Failure::new(Exit::NotFound, format!("{name} is not set: its default holds"));
                return Err(failure.next("holdfast config dump"));
            };
            print(common.output, &json!({ "name": name, "value": value }), || format!("{value}\n"))
        }
        ConfigVerb::Set { name, value } => {
            let command = MonCommand::ConfigSet { name: name.clone(), value: Some(value.clone()) };
            let done = change(common, &format!("set {name}"), command)?;
            print_change(common, &done, &format!("{name} = {value}"))
        }
        ConfigVerb::Rm { name } => {
            let command = MonCommand::ConfigSet { name: name.clone(), value: None };
            let done = change(common, &format!("take back {name}"), command)?;
            print_change(common, &done, &format!("{name} is back at its default"))
        }
        ConfigVerb::Dump => {
            let set = config_dump(common)?;
            print(common.output, &set, || {
                let mut table = Table::new(&[("NAME", Left), ("VALUE", Left)]);
                for (name, value) in &set {
                    table.row(vec![name.clone(), value.clone()]);
                }
                table.text()
            })
        }
        ConfigVerb::Log => config_log(common),
        ConfigVerb::Rollback { version } => {
            let what = format!("go back to change {version}");
            let done = change(common, &what, MonCommand::ConfigRollback { version })?;
            print_change(common, &done, &format!("everything is set as it was after change {version}"))
        }
    }
}

fn config_dump(common: &Common) -> Result<std::collections::BTreeMap<String, String>, Failure> {
    let what = "read the settings";
    match ask(common, what, MonCommand::ConfigDump)? {
        MonReply::Config(set) => Ok(set),
        _ => Err(unexpected(what)),
    }
}

fn config_log(common: &Common) -> Result<(), Failure> {
    let what = "read the changes of the settings";
    let MonReply::ConfigHistory(changes) = ask(common, what, MonCommand::ConfigLog)? else {
        return Err(unexpected(what));
    };
    let time = |unix_ms: u64| {
        let millis = i64::try_from(unix_ms).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(millis).map_or_else(|_| unix_ms.to_string(), |time| time.to_string())
    };
    if common.output == Format::Json {
        let rows: Vec<Value> = changes
            .iter()
            .map(|change| {
                json!({
                    "version": change.version, "at": time(change.at_unix_ms), "name": change.name,
                    "old": change.old, "new": change.new,
                })
            })
            .collect();
        return print(common.output, &rows, String::new);
    }
    let mut table = Table::new(&[("CHANGE", Right), ("AT", Left), ("NAME", Left), ("FROM", Left), ("TO", Left)]);
    for change in &changes {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        table.row(vec![
            change.version.to_string(),
            time(change.at_unix_ms),
            change.name.clone(),
            shown(&change.old),
            shown(&change.new),
        ]);
    }
    print(common.output, &changes, || table.text())
}

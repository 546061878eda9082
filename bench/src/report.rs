//! The table: medians over the runs, one row for each cell in the order of their first appearance.

use std::fmt::Write as _;

use crate::record::Record;

/// The markdown table of these records.
#[must_use]
pub fn table(records: &[Record]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for record in records {
        if !names.contains(&record.name.as_str()) {
            names.push(&record.name);
        }
    }
    let mut text = String::from(
        "| test | ops/s (best) | MB/s | p50 ms | p99 ms | daemon CPU µs/op | ops per CPU s | client CPU µs/op \
         | disk B/op | most RSS MiB | others % |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for name in names {
        let of: Vec<&Record> = records.iter().filter(|record| record.name == name).collect();
        let cell = |figure: &dyn Fn(&Record) -> Option<f64>| shown(median(of.iter().filter_map(|one| figure(one))));
        let best = of.iter().map(|record| record.iops).max_by(f64::total_cmp);
        let _ = writeln!(
            text,
            "| {name} | {} ({}) | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            cell(&|record| Some(record.iops)),
            shown(best),
            cell(&|record| Some(record.mbps)),
            cell(&|record| Some(record.p50_ms)),
            cell(&|record| Some(record.p99_ms)),
            cell(&|record| record.cpu_us_op),
            cell(&|record| record.cpu_us_op.filter(|cpu| *cpu > 0.0).map(|cpu| 1e6 / cpu)),
            cell(&|record| record.client_us_op),
            cell(&|record| record.wr_b_op),
            cell(&|record| record.rss_mb.values().max().map(|most| *most as f64)),
            cell(&|record| Some(record.others_pct)),
        );
    }
    text
}

/// The middle one; of two middle ones, their mean.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some((values.get(middle.checked_sub(1)?)? + upper) / 2.0)
}

/// Three digits that mean something, with separators from a thousand on.
fn shown(value: Option<f64>) -> String {
    let Some(value) = value else { return "–".to_owned() };
    match value.abs() {
        size if size >= 1000.0 => {
            let digits = format!("{:.0}", value.abs());
            let mut text = String::from(if value < 0.0 { "-" } else { "" });
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, iops: f64, cpu_us_op: Option<f64>) -> Record {
        Record { name: name.to_owned(), iops, cpu_us_op, ..Record::default() }
    }

    #[test]
    fn a_row_has_the_median_of_its_runs_and_the_best() {
        let records =
            [record("b", 5.0, None), record("a", 1.0, None), record("b", 30.0, None), record("b", 20.0, None)];
        let text = table(&records);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows.len(), 2);
        assert!(rows[0].starts_with("| b | 20.0 (30.0) |"), "{}", rows[0]);
        assert!(rows[1].starts_with("| a | 1.00 (1.00) |"), "{}", rows[1]);
    }

    #[test]
    fn what_was_not_measured_is_a_dash_and_not_a_zero() {
        let text = table(&[record("raw", 7700.0, None)]);
        let row = text.lines().nth(2).expect("one row");
        assert_eq!(row.matches('–').count(), 5, "{row}");
    }

    #[test]
    fn ops_per_cpu_second_follow_from_the_cpu_of_one_op() {
        let text = table(&[record("w", 10.0, Some(250.0))]);
        assert!(text.contains("| 250 | 4,000 |"), "{text}");
    }

    #[test]
    fn figures_have_separators_and_three_digits() {
        let cases = [(1_234_567.2, "1,234,567"), (1000.0, "1,000"), (999.4, "999"), (12.34, "12.3"), (0.126, "0.13")];
        for (value, expected) in cases {
            assert_eq!(shown(Some(value)), expected);
        }
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }
}

//! The metrics of one daemon: a registry that is passed along, no global.
//!
//! Names follow the Prometheus conventions with the prefix `holdfast_`, base units and bounded labels: no object name,
//! no bucket, no address ever becomes a label.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

/// Upper bounds of latency histograms in seconds: 50 µs to 26 s, each twice the one before. Twenty buckets tell a
/// cached read from a sync and a sync from a stall, and cost 160 bytes.
pub const LATENCY_BUCKETS: [f64; 20] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003_2, 0.006_4, 0.012_8, 0.025_6, 0.051_2, 0.102_4,
    0.204_8, 0.409_6, 0.819_2, 1.638_4, 3.276_8, 6.553_6, 13.107_2, 26.214_4,
];

/// A histogram over [`LATENCY_BUCKETS`], to be observed in seconds.
#[must_use]
pub fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_BUCKETS)
}

/// The registry of one daemon. Clones share it.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry with what every process has: build, resident memory, CPU seconds. `role` is such as `osd`.
    #[must_use]
    pub fn new(role: &'static str) -> Metrics {
        let mut registry = Registry::with_prefix("holdfast");
        registry.register(
            "build",
            "What runs",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("role", role)]),
        );
        registry.register_collector(Box::new(ProcessCollector));
        Metrics { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Adds a metric under `holdfast_<name>`; the caller keeps a clone to count with.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric + 'static) {
        self.registry.lock().register(name, help, metric);
    }

    /// Adds a source that is asked at each scrape.
    pub fn register_collector(&self, collector: Box<dyn Collector>) {
        self.registry.lock().register_collector(collector);
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail; a collector that fails leaves its part out.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry.lock());
        text
    }
}

/// Memory and CPU of this process, from `/proc`.
#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(bytes) = resident_bytes() {
            let gauge = ConstGauge::new(bytes);
            let metric = encoder.encode_descriptor(
                "process_resident_memory_bytes",
                "Resident memory",
                None,
                gauge.metric_type(),
            )?;
            gauge.encode(metric)?;
        }
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let metric = encoder.encode_descriptor(
                "process_cpu_seconds",
                "User and system time spent",
                None,
                counter.metric_type(),
            )?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// `VmRSS`, in bytes.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// User and system time of the process, from the scheduler's own nanosecond sum of the main thread group.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name may hold blanks and brackets: count from its last bracket. utime and stime are fields 14, 15.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // USER_HZ is 100 in every Linux ABI that userland can see.
    #[expect(clippy::cast_precision_loss, reason = "2^53 ticks are 2.8 million years")]
    let ticks = (user + system) as f64;
    Some(ticks / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn every_name_has_the_prefix_and_the_process_shows_its_memory() {
        let metrics = Metrics::new("osd");
        let ops: Counter = Counter::default();
        metrics.register("ops", "Ops done", ops.clone());
        ops.inc();
        let text = metrics.encode();
        assert!(text.contains("holdfast_ops_total 1"), "{text}");
        assert!(text.contains("holdfast_process_resident_memory_bytes "), "{text}");
        assert!(text.lines().all(|line| line.starts_with('#') || line.starts_with("holdfast_")), "{text}");
    }
}

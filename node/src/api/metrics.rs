//! Writes figures in Prometheus' text format.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::metrics::{Metric, MetricValue};

pub(super) use prometheus_text::CONTENT_TYPE;

/// The text of a scrape.
pub(super) fn encode(metrics: Vec<Metric>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Gathered(metrics)));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Gathered(Vec<Metric>);

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Metric { name, help, value } in &self.0 {
            let kind = match value {
                MetricValue::Counter(_) | MetricValue::CounterF(_) => MetricType::Counter,
                MetricValue::Gauge(_) | MetricValue::GaugeF(_) => MetricType::Gauge,
                MetricValue::Histogram { .. } => MetricType::Histogram,
                MetricValue::Info(_) => MetricType::Info,
            };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            match value {
                MetricValue::Counter(v) => metric.encode_counter::<NoLabelSet, _, f64>(v, None)?,
                MetricValue::CounterF(v) => metric.encode_counter::<NoLabelSet, _, f64>(v, None)?,
                MetricValue::Gauge(v) => metric.encode_gauge(v)?,
                MetricValue::GaugeF(v) => metric.encode_gauge(v)?,
                MetricValue::Info(labels) => metric.encode_info(labels)?,
                MetricValue::Histogram { sum, buckets } => {
                    let count = buckets.iter().map(|(_, count)| count).sum();
                    metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)?;
                }
            }
        }
        Ok(())
    }
}

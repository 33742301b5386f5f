//! Writes figures in Prometheus' text format.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
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
            let first = match value {
                MetricValue::Family(members) => members.first().map(|(_, value)| value),
                value => Some(value),
            };
            let Some(first) = first else { continue };
            let mut metric = encoder.encode_descriptor(name, help, None, type_of(first))?;
            match value {
                MetricValue::Family(members) => {
                    for (labels, value) in members {
                        put(metric.encode_family(labels)?, value)?;
                    }
                }
                value => put(metric, value)?,
            }
        }
        Ok(())
    }
}

fn type_of(value: &MetricValue) -> MetricType {
    match value {
        MetricValue::Counter(_) | MetricValue::CounterF(_) => MetricType::Counter,
        MetricValue::Gauge(_) | MetricValue::GaugeF(_) => MetricType::Gauge,
        MetricValue::Histogram { .. } => MetricType::Histogram,
        MetricValue::Info(_) => MetricType::Info,
        MetricValue::Family(_) => MetricType::Unknown,
    }
}

fn put(mut metric: MetricEncoder<'_>, value: &MetricValue) -> fmt::Result {
    match value {
        MetricValue::Counter(v) => metric.encode_counter::<NoLabelSet, _, f64>(v, None),
        MetricValue::CounterF(v) => metric.encode_counter::<NoLabelSet, _, f64>(v, None),
        MetricValue::Gauge(v) => metric.encode_gauge(v),
        MetricValue::GaugeF(v) => metric.encode_gauge(v),
        MetricValue::Info(labels) => metric.encode_info(labels),
        MetricValue::Histogram { sum, buckets } => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
        // There are no families of families.
        MetricValue::Family(_) => Err(fmt::Error),
    }
}

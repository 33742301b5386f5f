//! `stalls` and `trend`: what reports and tables of samples say, without a node.

use std::path::Path;

use super::RunError;
use crate::cli;
use crate::limits::NODE_LOG_BYTES_MAX;
use crate::report::Report;
use crate::report::stalls::{Explained, of_node_log};
use crate::trend::{Course, Table};

/// Joins a run's stalls with what explains them.
///
/// # Errors
/// A file cannot be read, or is too long.
pub fn explain(options: &cli::Stalls) -> Result<Explained, RunError> {
    let at = |path: &Path| RunError::io(path.display().to_string());
    let report = Report::read_json(&options.run).map_err(at(&options.run))?;
    let node = match &options.node_log {
        Some(path) => of_node_log(&read(path).map_err(at(path))?),
        None => Vec::new(),
    };
    Ok(report.stalls.explain(&node, options.max_ms))
}

/// Prints the trend of each column; false if one grows that must not.
///
/// # Errors
/// The table cannot be read, or has no such column.
pub fn trend(options: &cli::Trend) -> Result<bool, RunError> {
    let at = || RunError::io(options.table.display().to_string());
    let text = read(&options.table).map_err(at())?;
    let mut table = Table::parse(&text).map_err(std::io::Error::other).map_err(at())?;
    table.skip(options.skip);
    let trends = table.trends();
    for name in &options.flat {
        if !trends.iter().any(|(column, _)| column == name) {
            return Err(at()(std::io::Error::other(format!("it has no column {name}"))));
        }
    }
    println!("figure                   median   growth an hour, 99 % interval");
    let mut is_good = true;
    for (name, trend) in trends {
        let must = if options.flat.iter().any(|flat| flat == name) { "must not grow" } else { "" };
        let Some(trend) = trend else {
            println!("{name:20} {:>10}   too few samples", "");
            is_good &= must.is_empty();
            continue;
        };
        let course = trend.course();
        is_good &= must.is_empty() || course != Course::Grows;
        println!(
            "{name:20} {:10.2}   {:+.3} ({:+.3} to {:+.3})  {course} {must}",
            trend.median, trend.slope, trend.low, trend.high
        );
    }
    Ok(is_good)
}

fn read(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > NODE_LOG_BYTES_MAX {
        return Err(std::io::Error::other("it is too long"));
    }
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

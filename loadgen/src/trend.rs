//! Whether a figure grows over time: a line through its samples, and how sure it is.
//!
//! The line is Theil and Sen's: its slope is the median of the slopes of all pairs of samples, so a
//! few spikes do not bend it. The interval of the slope is that of Kendall's count of rising pairs
//! (Sen, 1968): no normal distribution of the noise is assumed, but samples that are independent of
//! each other.

use std::fmt;

/// Most samples: there are half as many pairs as their square.
pub const SAMPLES_MAX: usize = 2_000;
/// Fewest samples that say anything.
pub const SAMPLES_MIN: usize = 8;
/// Of the normal distribution, for an interval of 99 %.
const Z_99: f64 = 2.5758;

/// The slope of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// Its median.
    pub median: f64,
    /// By how much it grows in one unit of time.
    pub slope: f64,
    /// The slope lies between these with 99 % confidence.
    pub low: f64,
    /// See `low`.
    pub high: f64,
}

/// What is to be said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// It grows, beyond noise.
    Grows,
    /// It falls, beyond noise.
    Falls,
    /// Its slope may be zero.
    Level,
}

impl Trend {
    /// Of samples (time, value) in the order of time; none if there are too few, or too many.
    pub fn of(samples: &[(f64, f64)]) -> Option<Trend> {
        let n = samples.len();
        if !(SAMPLES_MIN..=SAMPLES_MAX).contains(&n) {
            return None;
        }
        let mut slopes = Vec::with_capacity(n * (n - 1) / 2);
        for (index, (at, value)) in samples.iter().enumerate() {
            let later = samples[index + 1..].iter().filter(|(later, _)| later > at);
            slopes.extend(later.map(|(later, other)| (other - value) / (later - at)));
        }
        if slopes.is_empty() {
            return None;
        }
        slopes.sort_unstable_by(f64::total_cmp);
        let values: Vec<_> = samples.iter().map(|(_, value)| *value).collect();
        let n = n as f64;
        let reach = Z_99 * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
        let pairs = slopes.len() as f64;
        let last = slopes.len() - 1;
        let low = ((pairs - reach) / 2.0).floor().max(0.0) as usize;
        let high = ((pairs + reach) / 2.0).ceil() as usize;
        Some(Trend {
            median: median(values),
            low: slopes[low.min(last)],
            high: slopes[high.min(last)],
            slope: median(slopes),
        })
    }

    /// What is to be said of it.
    pub fn course(&self) -> Course {
        match (self.low > 0.0, self.high < 0.0) {
            (true, _) => Course::Grows,
            (_, true) => Course::Falls,
            _ => Course::Level,
        }
    }
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Course::Grows => "GROWS",
            Course::Falls => "falls",
            Course::Level => "level",
        })
    }
}

/// Columns of numbers with their names; the first one is time in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    names: Vec<String>,
    rows: Vec<Vec<f64>>,
}

impl Table {
    /// Reads lines of fields between commas. The error is for people.
    pub fn parse(text: &str) -> Result<Table, String> {
        let mut lines = text.lines().zip(1..);
        let head = lines.next().map(|(line, _)| line).unwrap_or_default();
        let names: Vec<_> = head.split(',').map(|name| name.trim().to_owned()).collect();
        let mut rows = Vec::new();
        for (line, number) in lines {
            let fields: Result<Vec<f64>, _> =
                line.split(',').map(|field| field.trim().parse()).collect();
            let fields = fields.map_err(|error| format!("line {number}: {error}"))?;
            if fields.len() != names.len() || fields.iter().any(|field| !field.is_finite()) {
                return Err(format!("line {number}: not {} numbers", names.len()));
            }
            rows.push(fields);
        }
        if !(SAMPLES_MIN..=SAMPLES_MAX).contains(&rows.len()) {
            return Err(format!("not {SAMPLES_MIN} to {SAMPLES_MAX} samples"));
        }
        Ok(Table { names, rows })
    }

    /// Leaves the rows before this time out.
    pub fn skip(&mut self, seconds: f64) {
        self.rows.retain(|row| row[0] >= seconds);
    }

    /// The trend per hour of each column but the first.
    pub fn trends(&self) -> Vec<(&str, Option<Trend>)> {
        let trend = |column: usize| {
            let samples = self.rows.iter().map(|row| (row[0] / 3600.0, row[column]));
            Trend::of(&samples.collect::<Vec<_>>())
        };
        let columns = self.names.iter().enumerate().skip(1);
        columns.map(|(column, name)| (name.as_str(), trend(column))).collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len().is_multiple_of(2) {
        true => f64::midpoint(values[middle - 1], values[middle]),
        false => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise from -1 to 1, always the same.
    fn noise(index: u32) -> f64 {
        f64::from(index.wrapping_mul(2_654_435_761) >> 8 & 0xffff) / 32_768.0 - 1.0
    }

    fn samples(count: u32, value: impl Fn(u32) -> f64) -> Vec<(f64, f64)> {
        (0..count).map(|index| (f64::from(index), value(index))).collect()
    }

    #[test]
    fn a_line_has_its_slope_and_no_doubt() {
        let trend = Trend::of(&samples(20, |index| 5.0 + 3.0 * f64::from(index))).unwrap();
        assert_eq!((trend.slope, trend.low, trend.high), (3.0, 3.0, 3.0));
        assert_eq!((trend.median, trend.course()), (33.5, Course::Grows));
    }

    #[test]
    fn noise_is_level_and_a_slope_beyond_it_is_found() {
        let level = Trend::of(&samples(60, |index| 100.0 + 10.0 * noise(index))).unwrap();
        assert_eq!(level.course(), Course::Level, "{level:?}");
        assert!(level.low < 0.0 && level.high > 0.0);
        let slope = |per: f64| move |index| 100.0 + 10.0 * noise(index) + per * f64::from(index);
        let grows = Trend::of(&samples(60, slope(0.5))).unwrap();
        assert_eq!(grows.course(), Course::Grows, "{grows:?}");
        assert!(grows.low < 0.5 && 0.5 < grows.high, "{grows:?}");
        assert_eq!(Trend::of(&samples(60, slope(-0.5))).unwrap().course(), Course::Falls);
    }

    #[test]
    fn few_spikes_do_not_bend_the_line() {
        let spiky = |index| if index > 36 { 1_000.0 } else { f64::from(index % 3) };
        assert_eq!(Trend::of(&samples(40, spiky)).unwrap().course(), Course::Level);
    }

    #[test]
    fn false_alarms_are_rare() {
        let alarms = (0..400_u32).filter(|run| {
            let samples = samples(30, |index| noise(index * 401 + run * 7_919));
            Trend::of(&samples).unwrap().course() != Course::Level
        });
        let alarms = alarms.count();
        assert!(alarms <= 12, "{alarms} of 400, where 1 % are meant");
    }

    #[test]
    fn a_table_gives_slopes_an_hour() {
        let mut text = "time_s,rss,files\n".to_owned();
        for minute in 0..10 {
            text += &format!("{},{},7\n", minute * 60, 100 + minute);
        }
        let mut table = Table::parse(&text).unwrap();
        let trends = table.trends();
        let [("rss", Some(rss)), ("files", Some(files))] = trends[..] else { panic!("{trends:?}") };
        assert!((rss.slope - 60.0).abs() < 1e-9, "{rss:?}");
        assert_eq!((files.slope, files.course()), (0.0, Course::Level));
        table.skip(300.0);
        assert!(table.trends().iter().all(|(_, trend)| trend.is_none()), "too few are left");
        for wrong in ["", "a,b\n1,2\n", &text.replace(",7", ",x"), &text.replace(",7", ",NaN")] {
            assert!(Table::parse(wrong).is_err(), "{wrong}");
        }
    }
}

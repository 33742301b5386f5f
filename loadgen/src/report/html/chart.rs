//! Charts as SVG: lines over time, over a rate or over the logarithmic axis of percentiles.

use std::fmt::Write as _;

use super::page::{Page, Text};

const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 40.0;
/// Points of a line beyond which neighbours are drawn as one: more than a screen shows.
const POINTS_MAX: usize = 1_500;
/// About so many lines of a grid.
const TICKS: f64 = 6.0;

/// How an axis goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero or from the lowest value.
    Linear,
    /// By powers of ten; for values above zero.
    Log,
    /// Percentiles: each nine as wide as the one before. Values are 1 ÷ (1 − quantile).
    Nines,
}

/// A line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name in the key.
    pub name: String,
    /// Its points, ascending in x; a `None` in y is a gap.
    pub points: Vec<(f64, Option<f64>)>,
    /// Which of the four colours.
    pub colour: usize,
    /// Whether it is dashed.
    pub is_dashed: bool,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What is to the right, with its unit.
    pub x_name: String,
    /// What is upwards, with its unit.
    pub y_name: String,
    /// How the axis to the right goes.
    pub x_scale: Scale,
    /// How the axis upwards goes.
    pub y_scale: Scale,
    /// The lines.
    pub lines: Vec<Line>,
    /// Parts of the x axis that are shaded.
    pub shades: Vec<(f64, f64)>,
    /// A value of y that is marked.
    pub limit: Option<f64>,
}

impl Line {
    /// A whole line.
    pub fn new(name: &str, colour: usize, points: Vec<(f64, Option<f64>)>) -> Line {
        Line { name: name.to_owned(), points, colour, is_dashed: false }
    }

    /// The same line dashed.
    pub fn dashed(mut self) -> Line {
        self.is_dashed = true;
        self
    }
}

impl Chart {
    /// Puts the chart and its key on a page; a word instead if there is nothing to draw.
    pub fn draw(&self, page: &mut Page) {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        // Gaps count: charts below each other have the same time above each other.
        let x = points().map(|point| point.0);
        let x = Axis::new(self.x_scale, x, (LEFT, WIDTH - RIGHT), false);
        let y = points().filter_map(|point| point.1).chain(self.limit);
        let y = Axis::new(self.y_scale, y, (HEIGHT - BOTTOM, TOP), true);
        let (Some(x), Some(y)) = (x, y) else {
            page.paragraph("soft", "Nothing to draw.");
            return;
        };
        let mut svg = String::new();
        for (from, to) in &self.shades {
            let (left, right) = (x.at(*from), x.at(*to));
            let (width, height) = ((right - left).max(0.0), HEIGHT - BOTTOM - TOP);
            let _ = writeln!(
                svg,
                "<rect class=\"shade\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.1}\" \
                 height=\"{height}\"/>"
            );
        }
        self.grid(&mut svg, &x, &y);
        for line in &self.lines {
            let dash = if line.is_dashed { " dash" } else { "" };
            let (colour, path) = (line.colour, path(line, &x, &y));
            let _ = writeln!(svg, "<path class=\"curve s{colour}{dash}\" d=\"{path}\"/>");
        }
        if let Some(limit) = self.limit {
            let (at, right) = (y.at(limit), WIDTH - RIGHT);
            let _ = writeln!(
                svg,
                "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"
            );
        }
        let what = format!("{} over {}", self.y_name, self.x_name);
        page.push(format_args!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n{svg}</svg>\n",
            Text(&what)
        ));
        self.key(page);
    }

    fn grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, label) in y.ticks() {
            let (at, text_at) = (y.at(value), y.at(value) + 4.0);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{text_at:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                Text(&label)
            );
        }
        for (value, label) in x.ticks() {
            let (at, text_at) = (x.at(value), bottom + 16.0);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{text_at:.1}\" text-anchor=\"middle\">{}</text>",
                Text(&label)
            );
        }
        let middle = f64::midpoint(LEFT, right);
        let (height, centre) = (HEIGHT - 6.0, f64::midpoint(TOP, bottom));
        let (x_name, y_name) = (Text(&self.x_name), Text(&self.y_name));
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{height}\" text-anchor=\"middle\">{x_name}</text>\
             <text transform=\"translate(14 {centre:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{y_name}</text>"
        );
    }

    fn key(&self, page: &mut Page) {
        page.push("<div class=\"key\">");
        for line in &self.lines {
            let dash = if line.is_dashed { " dash" } else { "" };
            let (colour, name) = (line.colour, Text(&line.name));
            page.push(format_args!("<span><i class=\"k{colour}{dash}\"></i>{name}</span>"));
        }
        page.push("</div>\n");
    }
}

/// From values to places on the chart.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(
        scale: Scale,
        values: impl Iterator<Item = f64>,
        (from, to): (f64, f64),
        from_zero: bool,
    ) -> Option<Axis> {
        let values = values.filter(|value| value.is_finite());
        let range = values.fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        });
        let (mut low, mut high) = range?;
        match scale {
            Scale::Linear => {
                low = if from_zero { low.min(0.0) } else { low };
                high += if from_zero { (high - low) * 0.05 } else { 0.0 };
                high = if high > low { high } else { low + 1.0 };
            }
            Scale::Log => {
                low = 10_f64.powf(low.max(1e-9).log10().floor());
                high = 10_f64.powf(high.max(low).log10().ceil()).max(low * 10.0);
            }
            Scale::Nines => {
                low = 1.0;
                high = high.max(100.0);
            }
        }
        Some(Axis { scale, low, high, from, to })
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log | Scale::Nines => {
                (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
            }
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let step = round_step((self.high - self.low) / TICKS);
                let first = (self.low / step).ceil() as i64;
                let last = (self.high / step).floor() as i64;
                let value = |index: i64| index as f64 * step;
                (first..=last).map(|index| (value(index), number(value(index)))).collect()
            }
            Scale::Log => powers(self.low, self.high).map(|value| (value, number(value))).collect(),
            Scale::Nines => {
                let percent = |value: f64| match value as u64 {
                    1 => "0 %".to_owned(),
                    10 => "90 %".to_owned(),
                    100 => "99 %".to_owned(),
                    _ => {
                        let nines = value.log10().round() as usize - 2;
                        format!("99.{} %", "9".repeat(nines))
                    }
                };
                let half = (2.0, "50 %".to_owned());
                let nines = powers(self.low, self.high).map(|value| (value, percent(value)));
                nines.chain([half]).collect()
            }
        }
    }
}

fn powers(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let first = low.log10().round() as i32;
    (first..first + 16).map(|power| 10_f64.powi(power)).take_while(move |v| *v <= high * 1.001)
}

/// 1, 2 or 5 times a power of ten.
fn round_step(about: f64) -> f64 {
    let power = 10_f64.powf(about.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= about);
    step.unwrap_or(10.0) * power
}

/// A number as short as its size allows, with thousands apart.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1_000.0 {
        let whole = format!("{size:.0}");
        let mut out = String::new();
        for (index, digit) in whole.chars().enumerate() {
            if index > 0 && (whole.len() - index).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        return if value < 0.0 { format!("-{out}") } else { out };
    }
    let digits = match size {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// The path of a line. Where it has more points than can be seen, those of a column become its
/// first, lowest, highest and last one, so that no peak vanishes.
fn path(line: &Line, x: &Axis, y: &Axis) -> String {
    let mut out = String::new();
    let mut is_down = false;
    let columns = line.points.len().div_ceil(POINTS_MAX).max(1);
    for column in line.points.chunks(if columns == 1 { 1 } else { columns * 4 }) {
        for (at, value) in thin(column) {
            let Some(value) = value else {
                is_down = false;
                continue;
            };
            let command = if is_down { 'L' } else { 'M' };
            let _ = write!(out, "{command}{:.1} {:.1}", x.at(at), y.at(value));
            is_down = true;
        }
    }
    out
}

fn thin(column: &[(f64, Option<f64>)]) -> Vec<(f64, Option<f64>)> {
    if column.len() <= 4 {
        return column.to_vec();
    }
    let by_value = |a: &usize, b: &usize| {
        let value = |index: &usize| column[*index].1.unwrap_or_default();
        value(a).total_cmp(&value(b))
    };
    let indices = || 0..column.len();
    let extremes = [indices().min_by(by_value), indices().max_by(by_value)];
    let mut kept: Vec<_> = extremes.into_iter().flatten().collect();
    kept.extend([0, column.len() - 1]);
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(|index| column[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, Option<f64>)>, y_scale: Scale) -> String {
        let mut page = Page::new("t", "b");
        let chart = Chart {
            x_name: "s".to_owned(),
            y_name: "<ms>".to_owned(),
            x_scale: Scale::Linear,
            y_scale,
            lines: vec![Line::new("a<b", 0, points)],
            shades: vec![(0.0, 1.0)],
            limit: None,
        };
        chart.draw(&mut page);
        page.finish()
    }

    #[test]
    fn what_cannot_be_drawn_harms_nothing() {
        for points in [
            vec![],
            vec![(0.0, None)],
            vec![(0.0, Some(0.0))],
            vec![(1.0, Some(1.0)), (1.0, Some(1.0))],
            vec![(0.0, Some(f64::NAN)), (1.0, Some(f64::INFINITY)), (2.0, Some(1.0))],
        ] {
            for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
                let page = chart(points.clone(), scale);
                assert!(!page.contains("<ms>") && !page.contains("a<b"), "{page}");
            }
        }
    }

    #[test]
    fn a_long_series_is_thinned_and_keeps_its_peak() {
        let mut points: Vec<_> = (0..86_400).map(|s| (f64::from(s), Some(1.0))).collect();
        points[12_345].1 = Some(100.0);
        let page = chart(points, Scale::Linear);
        assert!(page.len() < 100_000, "{}", page.len());
        let peak = format!("{:.1}", HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) / 1.05);
        assert!(page.contains(&format!(" {peak}L")), "{peak}");
    }

    #[test]
    fn numbers_are_short() {
        let cases = [(0.0, "0"), (0.25, "0.25"), (12.0, "12"), (1_234_567.0, "1,234,567")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!([round_step(0.9), round_step(1.2), round_step(33.0)], [1.0, 2.0, 50.0]);
    }
}

//! The page of one run, and the parts that other pages have as well.

use super::chart::{Chart, Line, Scale, number};
use super::page::Page;
use crate::latency::{CurvePoint, Percentiles};
use crate::limits::{CPU_PERCENT_HONEST_MAX, STALLS_PRINTED_MAX};
use crate::report::interval::{Row, Stage};
use crate::report::section::SectionReport;
use crate::report::stalls::StallReport;
use crate::report::{Report, Setup};

/// The page of a run.
pub fn run(report: &Report) -> String {
    let Setup { users, load, body_bytes, duration_s, .. } = &report.setup;
    let below = format!("{users} users, {load}, {body_bytes}-byte bodies, {duration_s} s measured");
    let mut page = Page::new("Chatring under load", &below);
    verdict(&mut page, report);
    tiles(&mut page, report);
    page.heading("Messages a second");
    throughput(&mut page, &[("", report)]);
    page.paragraph("soft", "Shaded: warm-up, and the wait for what was outstanding.");
    page.heading("Latency over time");
    latencies_over_time(&mut page, &[("", report)]);
    page.heading("Latency by percentile");
    curves(&mut page, &[("", report)]);
    latencies(&mut page, &[("ack", &report.ack), ("delivery", &report.deliver)]);
    let what = "Milliseconds from the intended time of a send; a late send counts from there, too.";
    page.paragraph("soft", what);
    sections(&mut page, &report.sections);
    page.heading("Stalls");
    stalls(&mut page, report);
    page.heading("Errors and backlog");
    backlog(&mut page, report);
    faults(&mut page, report);
    page.heading("The generator itself");
    generator(&mut page, report);
    page.heading("What was run, and where");
    settings(&mut page, report);
    page.finish()
}

/// The longest stalls.
fn stalls(page: &mut Page, report: &Report) {
    let StallReport { bound_ms, list, .. } = &report.stalls;
    let text = format!("{} with acks above {bound_ms} ms.", list.len());
    page.paragraph("soft", &text);
    let longest = report.stalls.longest(STALLS_PRINTED_MAX);
    if longest.is_empty() {
        return;
    }
    let rows = longest.into_iter().map(|row| {
        let waits = row.node_waits_ms.values().copied().fold(0.0, f64::max);
        let ms = [row.longest_ms, row.generator_lag_ms, row.steal_ms, waits];
        let begin = format!("{:.3}", row.begin_s);
        let figures = ms.map(|ms| format!("{ms:.0}"));
        [begin, row.messages.to_string()].into_iter().chain(figures).collect()
    });
    let head = [
        "at s",
        "messages",
        "longest ms",
        "generator late ms",
        "taken by the host ms",
        "longest wait of the node for a core ms",
    ];
    page.figures(&head, &rows.collect::<Vec<_>>());
}

/// Charts of rates over time, of one run or of two.
pub fn throughput(page: &mut Page, runs: &[(&str, &Report)]) {
    let mut lines = Vec::new();
    for (index, (name, report)) in runs.iter().enumerate() {
        let line = |what: &str, colour, value: fn(&Row) -> f64| {
            let points = over_time(&report.series, |row| Some(value(row)));
            Line::new(format!("{name} {what}").trim(), colour, points)
        };
        let acked = line("acked", index, |row| row.acked_per_s);
        if runs.len() == 1 {
            lines.push(line("sent", 2, |row| row.sent_per_s));
            lines.push(acked);
            lines.push(line("delivered", 1, |row| row.delivered_per_s).dashed());
        } else {
            lines.push(acked);
            lines.push(line("delivered", index, |row| row.delivered_per_s).dashed());
        }
    }
    let shades = match runs {
        [(_, report)] => shades(report),
        _ => Vec::new(),
    };
    time_chart("messages/s", Scale::Linear, lines, shades).draw(page);
}

/// Charts of latencies over time, of one run or of two.
pub fn latencies_over_time(page: &mut Page, runs: &[(&str, &Report)]) {
    type Kind = (&'static str, fn(&Row) -> f64);
    let [p50, p99]: [Kind; 2] = [("ack 50 %", |row| row.ack.p50), ("ack 99 %", |row| row.ack.p99)];
    let max: Kind = ("ack max", |row| row.ack.max);
    let deliver: Kind = ("delivery 99 %", |row| row.deliver.p99);
    let line = |run: &(&str, &Report), (kind, value): Kind, colour| {
        let points = over_time(&run.1.series, |row| above_zero(value(row) / 1e3));
        Line::new(format!("{} {kind}", run.0).trim(), colour, points)
    };
    let (lines, shades) = match runs {
        [run] => {
            let solid =
                [(p50, 0), (p99, 1), (max, 3)].map(|(kind, colour)| line(run, kind, colour));
            let dashed = line(run, deliver, 2).dashed();
            (solid.into_iter().chain([dashed]).collect(), shades(run.1))
        }
        _ => {
            let of = |(index, run)| [line(run, p99, index), line(run, p50, index).dashed()];
            (runs.iter().enumerate().flat_map(of).collect(), Vec::new())
        }
    };
    time_chart("ms", Scale::Log, lines, shades).draw(page);
}

/// The curves of all percentiles, of one run or of two.
pub fn curves(page: &mut Page, runs: &[(&str, &Report)]) {
    let mut lines = Vec::new();
    for (index, (name, report)) in runs.iter().enumerate() {
        let name = |what: &str| format!("{name} {what}").trim().to_owned();
        let colour = if runs.len() == 1 { [0, 1] } else { [index, index] };
        let (ack, deliver) = (curve(&report.curves.ack), curve(&report.curves.deliver));
        lines.push(Line::new(&name("ack"), colour[0], ack));
        lines.push(Line::new(&name("delivery"), colour[1], deliver).dashed());
    }
    let chart = Chart {
        x_name: "percentile".to_owned(),
        y_name: "ms".to_owned(),
        x_scale: Scale::Nines,
        y_scale: Scale::Log,
        lines,
        shades: Vec::new(),
        limit: None,
    };
    chart.draw(page);
}

/// A table of percentiles.
pub fn latencies(page: &mut Page, named: &[(&str, &Percentiles)]) {
    let rows = named.iter().map(|(name, p)| {
        let values = [p.p50, p.p90, p.p99, p.p999, p.max].map(ms);
        std::iter::once((*name).to_owned()).chain(values).collect()
    });
    let head = ["ms", "50 %", "90 %", "99 %", "99.9 %", "max"];
    page.figures(&head, &rows.collect::<Vec<_>>());
}

/// Settings, machine and versions.
pub fn settings(page: &mut Page, report: &Report) {
    let Report { setup, machine, versions, .. } = report;
    let memory = machine.memory_bytes as f64 / f64::from(1 << 30);
    let unknown = || "unknown".to_owned();
    let mut facts = vec![
        ("load", setup.load.clone()),
        ("users", setup.users.to_string()),
        ("body", format!("{} bytes", setup.body_bytes)),
        ("time", format!("{} s measured after {} s", setup.duration_s, setup.warmup_s)),
        ("threads, seed", format!("{}, {}", setup.threads, setup.seed)),
        ("durability of an ack", report.durability.clone().unwrap_or_else(unknown)),
        ("command", report.command.join(" ")),
        ("started", utc(report.started_unix_ms)),
        ("processor", machine.cpu.clone()),
        (
            "cores",
            format!("{}, of which the generator may use {}", machine.cores, machine.cores_allowed),
        ),
        ("memory", format!("{memory:.1} GiB")),
        ("kernel", machine.kernel_and_groups()),
        ("file system of the node's data", machine.file_system.clone()),
        ("generator", format!("{}, {} build", versions.loadgen, versions.build)),
        ("git revision", versions.git_revision.clone()),
    ];
    if setup.burn_us > 0 {
        facts.push(("burnt on purpose", format!("{} µs a message", setup.burn_us)));
    }
    page.facts(&facts);
}

/// Milliseconds as a figure, from microseconds.
pub fn ms(us: f64) -> String {
    number(us / 1e3)
}

fn verdict(page: &mut Page, report: &Report) {
    match report.is_good() {
        true => page.paragraph("good", "Every message was stored and delivered exactly once."),
        false => page.paragraph("warn", "The run FAILED: see the faults below."),
    }
    if let Some(reason) = &report.setup.cut_short {
        page.paragraph("warn", &format!("Cut short: {reason}"));
    }
    for reason in &report.generator.bottleneck {
        let text = format!("The generator itself was the bottleneck: {reason}.");
        page.paragraph("warn", &text);
    }
    if report.versions.build == "debug" {
        page.paragraph("warn", "A debug build of the generator: these figures prove nothing.");
    }
}

fn tiles(page: &mut Page, report: &Report) {
    page.tiles(&[
        (number(report.acked_per_s), "acked a second"),
        (number(report.delivered_per_s), "delivered a second"),
        (format!("{} ms", ms(report.ack.p50)), "ack, median"),
        (format!("{} ms", ms(report.ack.p99)), "ack, 99 %"),
        (format!("{} ms", ms(report.deliver.p99)), "delivery, 99 %"),
        (format!("{} ms", ms(report.ack.max)), "ack, longest"),
    ]);
}

fn sections(page: &mut Page, sections: &[SectionReport]) {
    if sections.is_empty() {
        return;
    }
    page.heading("By offered rate");
    let rows = sections.iter().map(|section| {
        let SectionReport { from_per_s, to_per_s, ack, deliver, .. } = section;
        let offered = match from_per_s == to_per_s {
            true => number(f64::from(*from_per_s)),
            false => {
                format!("{} – {}", number(f64::from(*from_per_s)), number(f64::from(*to_per_s)))
            }
        };
        let rates = [section.acked_per_s, section.delivered_per_s].map(number);
        let latencies = [ack.p50, ack.p99, ack.max, deliver.p50, deliver.p99].map(ms);
        std::iter::once(offered).chain(rates).chain(latencies).collect()
    });
    let head = [
        "offered/s",
        "acked/s",
        "delivered/s",
        "ack 50 % ms",
        "ack 99 %",
        "ack max",
        "delivery 50 %",
        "delivery 99 %",
    ];
    page.figures(&head, &rows.collect::<Vec<_>>());
}

fn backlog(page: &mut Page, report: &Report) {
    let line = |name, colour, value: fn(&Row) -> u64| {
        Line::new(name, colour, over_time(&report.series, |row| Some(value(row) as f64)))
    };
    let lines = vec![
        line("outstanding at the end of the second", 0, |row| row.outstanding),
        line("errors in the second", 1, |row| row.errors),
    ];
    time_chart("messages", Scale::Linear, lines, shades(report)).draw(page);
}

fn faults(page: &mut Page, report: &Report) {
    let counts = &report.counts;
    let count = |value: u64| number(value as f64);
    page.facts(&[
        (
            "sent, acked, delivered",
            [counts.sent, counts.acked, counts.delivered].map(count).join(", "),
        ),
        (
            "lost, duplicated, reordered",
            [counts.lost, counts.duplicated, counts.reordered].map(count).join(", "),
        ),
        (
            "corrupt, conflicting, gaps",
            [counts.corrupt, counts.conflicting, counts.gaps].map(count).join(", "),
        ),
        ("unacked, refused", [counts.unacked, counts.refused].map(count).join(", ")),
        ("errors, reconnects", [report.errors, report.reconnects].map(count).join(", ")),
    ]);
}

fn generator(page: &mut Page, report: &Report) {
    let generator = &report.generator;
    let cpu = over_time(&report.series, |row| Some(row.cpu_percent));
    let lines = vec![Line::new("busiest thread, % of a core", 0, cpu)];
    let mut chart = time_chart("% of a core", Scale::Linear, lines, shades(report));
    chart.limit = Some(CPU_PERCENT_HONEST_MAX);
    chart.draw(page);
    page.facts(&[
        (
            "busiest thread",
            format!(
                "{} % of a core, {} % waiting for one",
                report.loadgen_cpu_percent, generator.wait_percent
            ),
        ),
        (
            "lag of a send, ms",
            format!(
                "50 %: {}, 99 %: {}, max: {}",
                ms(generator.lag.p50),
                ms(generator.lag.p99),
                ms(generator.lag.max)
            ),
        ),
        (
            "late sends",
            format!("{} of {}", number(generator.late as f64), number(generator.sends as f64)),
        ),
        ("held up by the node", number(generator.held as f64)),
    ]);
}

fn time_chart(y_name: &str, y_scale: Scale, lines: Vec<Line>, shades: Vec<(f64, f64)>) -> Chart {
    let x_name = "seconds from the start of the measured time".to_owned();
    let y_name = y_name.to_owned();
    Chart { x_name, y_name, x_scale: Scale::Linear, y_scale, lines, shades, limit: None }
}

fn over_time(series: &[Row], value: impl Fn(&Row) -> Option<f64>) -> Vec<(f64, Option<f64>)> {
    series.iter().map(|row| (row.time_s + row.length_s / 2.0, value(row))).collect()
}

fn curve(points: &[CurvePoint]) -> Vec<(f64, Option<f64>)> {
    let point = |point: &CurvePoint| (1.0 / (1.0 - point.quantile), above_zero(point.us / 1e3));
    points.iter().map(point).collect()
}

/// What a logarithmic axis can show.
fn above_zero(value: f64) -> Option<f64> {
    (value > 0.0).then_some(value)
}

fn shades(report: &Report) -> Vec<(f64, f64)> {
    let of = |stage| {
        let rows = report.series.iter().filter(move |row| row.stage == stage);
        let ends = rows.map(|row| (row.time_s, row.time_s + row.length_s));
        ends.reduce(|all, next| (all.0.min(next.0), all.1.max(next.1)))
    };
    [Stage::WarmUp, Stage::After].into_iter().filter_map(of).collect()
}

/// Unix time as a date and time of day.
fn utc(unix_ms: u64) -> String {
    let (mut day, second) = (unix_ms / 86_400_000, unix_ms / 1_000 % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(400) || year.is_multiple_of(4) && !year.is_multiple_of(100);
    let mut year = 1970;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_page_fetches_nothing_and_holds_no_markup_of_others() {
        let mut report = report();
        let evil = "\"><script src=http://evil.example/x.js></script>".to_owned();
        report.setup.cut_short = Some(evil.clone());
        report.setup.load = evil.clone();
        report.command.push(evil.clone());
        report.durability = Some(evil.clone());
        report.machine.cpu = evil.clone();
        report.machine.file_system = evil.clone();
        report.versions.git_revision = evil.clone();
        report.generator.bottleneck.push(evil.clone());
        let page = run(&report);
        assert!(page.matches("&lt;script src=http://evil.example").count() >= 8, "{page}");
        assert!(!page.contains("<script") && !page.contains(&evil));
        let markup = page.replace("&lt;script src=http://evil.example/x.js", "");
        for outside in ["http:", "https:", "//", "@import", "url(", "src=", "href=", "<link"] {
            assert!(!markup.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_date_is_that_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_868_799_000), "2000-02-29 23:59:59 UTC");
        assert_eq!(utc(951_868_800_000), "2000-03-01 00:00:00 UTC");
        assert_eq!(utc(1_735_689_599_999), "2024-12-31 23:59:59 UTC");
        assert_eq!(utc(1_700_000_000_000), "2023-11-14 22:13:20 UTC");
    }
}

//! The page of a search for the knee.

use super::chart::{Chart, Line, Scale, number};
use super::page::Page;
use super::run::{ms, settings};
use crate::scenario::knee::{Knee, Step};

/// The page.
pub fn knee(knee: &Knee) -> String {
    let mut page = Page::new("Chatring: the highest rate that holds", &knee.answer());
    if let Some(reason) = &knee.cut_short {
        page.paragraph("warn", &format!("Cut short: {reason}. The knee may be higher."));
    }
    if knee.is_generator_limit {
        let text = "Above it the generator did not keep up: the node may hold more.";
        page.paragraph("warn", text);
    }
    let mut steps: Vec<_> = knee.steps.iter().collect();
    // Of several tries of a rate the best one, which decided.
    steps.sort_by(|a, b| {
        let p99 = a.report.ack.p99.total_cmp(&b.report.ack.p99);
        a.rate_per_s.cmp(&b.rate_per_s).then(p99)
    });
    steps.dedup_by_key(|step| step.rate_per_s);
    page.heading("Latency of acks by offered rate");
    let line = |name, colour, value: fn(&Step) -> f64| {
        let point = |step: &&Step| {
            let value = value(step);
            (f64::from(step.rate_per_s), (value > 0.0).then_some(value))
        };
        Line::new(name, colour, steps.iter().map(point).collect())
    };
    let lines = vec![
        line("50 %", 0, |step| step.report.ack.p50 / 1e3),
        line("99 %", 1, |step| step.report.ack.p99 / 1e3),
        line("max", 3, |step| step.report.ack.max / 1e3).dashed(),
    ];
    let limit = Some(f64::from(knee.p99_ms_max));
    chart("ms", Scale::Log, lines, limit).draw(&mut page);
    page.paragraph(
        "soft",
        "Dashed: the bound of the 99th percentile. Of several tries the best one is drawn.",
    );
    page.heading("Completed by offered rate");
    let lines = vec![
        line("acked", 0, |step| step.report.acked_per_s),
        line("offered", 2, |step| f64::from(step.rate_per_s)).dashed(),
    ];
    chart("messages/s", Scale::Linear, lines, None).draw(&mut page);
    page.heading("Steps, in order");
    table(&mut page, &knee.steps);
    if let Some(last) = knee.steps.last() {
        page.heading("What was run, and where (the last step)");
        settings(&mut page, &last.report);
    }
    page.finish()
}

fn chart(y_name: &str, y_scale: Scale, lines: Vec<Line>, limit: Option<f64>) -> Chart {
    Chart {
        x_name: "offered messages/s".to_owned(),
        y_name: y_name.to_owned(),
        x_scale: Scale::Linear,
        y_scale,
        lines,
        shades: Vec::new(),
        limit,
    }
}

fn table(page: &mut Page, steps: &[Step]) {
    let rows = steps.iter().map(|step| {
        let report = &step.report;
        let backlog = report.backlog.end as i64 - report.backlog.start as i64;
        vec![
            if step.broken.is_empty() { "held".to_owned() } else { step.broken.join(", ") },
            number(f64::from(step.rate_per_s)),
            number(report.acked_per_s),
            ms(report.ack.p50),
            ms(report.ack.p99),
            ms(report.ack.max),
            number(report.generator.late_percent()),
            number(backlog as f64),
            number(report.loadgen_cpu_percent),
        ]
    });
    let head = [
        "what did not hold",
        "offered/s",
        "acked/s",
        "50 % ms",
        "99 % ms",
        "max ms",
        "late %",
        "backlog growth",
        "generator CPU %",
    ];
    page.figures(&head, &rows.collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_page_names_the_knee_and_what_broke_and_escapes_it() {
        let step = |rate_per_s, broken: &[&str]| Step {
            rate_per_s,
            broken: broken.iter().map(|text| (*text).to_owned()).collect(),
            report: report(),
        };
        let found = Knee {
            knee_per_s: Some(1_000),
            failed_per_s: Some(2_000),
            p99_ms_max: 20,
            late_percent_max: 1,
            cut_short: Some("<b>".to_owned()),
            is_generator_limit: true,
            steps: vec![step(1_000, &[]), step(2_000, &["<i>"])],
        };
        let page = knee(&found);
        for text in ["1000/s, and not 2000/s", "&lt;b&gt;", "&lt;i&gt;", "did not keep up"] {
            assert!(page.contains(text), "{text}");
        }
        assert!(!page.contains("<b>.") && !page.contains("<i>,"));
    }
}

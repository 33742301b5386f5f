//! The page of two runs beside each other.

use super::chart::number;
use super::page::Page;
use super::run::{curves, latencies_over_time, settings, throughput};
use crate::report::compare::{Comparison, Word};

/// The page. The names are those of the two files.
pub fn compare(comparison: &Comparison<'_>, names: [&str; 2]) -> String {
    let below = format!("A is {}, B is {}", names[0], names[1]);
    let mut page = Page::new("Chatring: two runs compared", &below);
    let is = |word| comparison.differences.iter().any(|d| d.word == word);
    let class = match (is(Word::Better), is(Word::Worse)) {
        (true, false) => "good",
        (_, true) => "bad",
        _ => "",
    };
    page.paragraph(class, &comparison.answer());
    for warning in &comparison.warnings {
        page.paragraph("warn", warning);
    }
    let rows = comparison.differences.iter().map(|difference| {
        let values = [difference.a, difference.b].map(number);
        let [a, b] = values;
        let word = difference.word.to_string();
        vec![difference.what.to_owned(), a, b, difference.change(), word]
    });
    page.figures(&["", "A", "B", "change", "B against A"], &rows.collect::<Vec<_>>());
    let how = "A difference counts if it is 2 % at least and the seconds of one run rank above \
               those of the other by more than chance. Runs differ more than their seconds do: \
               repeat the pair.";
    page.paragraph("soft", how);
    let runs = [("A", comparison.a), ("B", comparison.b)];
    page.heading("Latency by percentile");
    curves(&mut page, &runs);
    page.heading("Latency over time");
    latencies_over_time(&mut page, &runs);
    page.heading("Messages a second");
    throughput(&mut page, &runs);
    for (name, report) in runs {
        page.heading(&format!("Run {name}"));
        settings(&mut page, report);
    }
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_page_of_two_runs_warns_and_escapes() {
        let (a, mut b) = (report(), report());
        b.setup.load = "<script>".to_owned();
        b.counts.lost = 1;
        let page = compare(&Comparison::new(&a, &b), ["<a>.json", "b.json"]);
        assert!(page.contains("run B FAILED") && page.contains("&lt;script&gt;"), "{page}");
        assert!(page.contains("&lt;a&gt;.json") && !page.contains("<script"), "{page}");
        assert!(!page.contains("http:") && !page.contains("//"), "{page}");
    }
}

//! A page in one file: nothing is fetched, and whatever is put in as text stays text.

use std::fmt::{self, Write as _};

const STYLE: &str = include_str!("style.css");
/// Among others what a browser may load for the page: nothing but the style in it.
const HEAD: &str = include_str!("head.html");

/// A page that grows from top to bottom.
#[derive(Debug)]
pub struct Page {
    out: String,
}

/// Text in which `<`, `>`, `&` and quotes are what they look like.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl Page {
    /// A page with this title, and a line below it.
    pub fn new(title: &str, below: &str) -> Page {
        let (title, below) = (Text(title), Text(below));
        let out = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n{HEAD}\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <h1>{title}</h1>\n<p class=\"soft\">{below}</p>\n"
        );
        Page { out }
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        self.push(format_args!("<h2>{}</h2>\n", Text(text)));
    }

    /// A paragraph of a class of the style, or of none.
    pub fn paragraph(&mut self, class: &str, text: &str) {
        self.push(format_args!("<p class=\"{}\">{}</p>\n", Text(class), Text(text)));
    }

    /// Figures to see first: each a value and what it is.
    pub fn tiles(&mut self, tiles: &[(String, &str)]) {
        self.push(format_args!("<div class=\"tiles\">\n"));
        for (value, what) in tiles {
            let (value, what) = (Text(value), Text(what));
            self.push(format_args!(
                "<div class=\"tile\"><b>{value}</b><span>{what}</span></div>\n"
            ));
        }
        self.push(format_args!("</div>\n"));
    }

    /// A table of which the first column is text and the others are figures.
    pub fn figures(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let class = |column: usize| if column == 0 { "" } else { " class=\"n\"" };
        self.push(format_args!("<div class=\"scroll\"><table>\n<tr>"));
        for (column, cell) in head.iter().enumerate() {
            self.push(format_args!("<th{}>{}</th>", class(column), Text(cell)));
        }
        self.push(format_args!("</tr>\n"));
        for row in rows {
            self.push(format_args!("<tr>"));
            for (column, cell) in row.iter().enumerate() {
                self.push(format_args!("<td{}>{}</td>", class(column), Text(cell)));
            }
            self.push(format_args!("</tr>\n"));
        }
        self.push(format_args!("</table></div>\n"));
    }

    /// A table of names and texts.
    pub fn facts(&mut self, facts: &[(&str, String)]) {
        self.push(format_args!("<div class=\"scroll\"><table>\n"));
        for (name, value) in facts {
            let (name, value) = (Text(name), Text(value));
            self.push(format_args!("<tr><th>{name}</th><td>{value}</td></tr>\n"));
        }
        self.push(format_args!("</table></div>\n"));
    }

    /// Something that is markup already.
    pub fn push(&mut self, markup: impl fmt::Display) {
        write!(self.out, "{markup}").expect("a string takes everything");
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        self.out.push_str("</body>\n</html>\n");
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let evil = "<script>alert(1)</script>\"'&";
        let mut page = Page::new(evil, evil);
        page.heading(evil);
        page.paragraph("soft", evil);
        page.tiles(&[(evil.to_owned(), evil)]);
        page.figures(&[evil], &[vec![evil.to_owned()]]);
        page.facts(&[(evil, evil.to_owned())]);
        let page = page.finish();
        assert!(!page.contains("<script") && !page.contains("\"'&"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;").count(), 11);
    }
}

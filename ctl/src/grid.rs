//! Tables with borders, as `calicoctl ipam show` prints them.

/// Which way a column leans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    /// Numbers.
    Right,
}

/// With the headings in the middle, as `calicoctl node status` has them.
pub fn centred(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    table(columns, rows, true)
}

/// Every row has as many cells as there are columns.
pub fn render(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    table(columns, rows, false)
}

fn table(columns: &[(&str, Align)], rows: &[Vec<String>], centred: bool) -> String {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, (heading, _))| {
            rows.iter().map(|row| row[i].chars().count()).fold(heading.len(), usize::max)
        })
        .collect();
    let border: String =
        widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect::<String>() + "+\n";
    let line = |cells: &mut dyn Iterator<Item = (&str, Align)>| -> String {
        let cells = cells.zip(&widths).map(|((text, align), width)| match align {
            Align::Left => format!("| {text:<width$} "),
            Align::Right => format!("| {text:>width$} "),
        });
        cells.collect::<String>() + "|\n"
    };
    let headings = columns.iter().zip(&widths).map(|((heading, align), width)| match centred {
        true => (format!("{heading:^width$}"), *align),
        false => ((*heading).to_owned(), *align),
    });
    let headings: Vec<(String, Align)> = headings.collect();
    let mut text =
        border.clone() + &line(&mut headings.iter().map(|(text, align)| (text.as_str(), *align))) + &border;
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str).zip(columns.iter().map(|(_, align)| *align)));
    }
    text + &border
}

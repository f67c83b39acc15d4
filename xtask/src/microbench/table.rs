//! The figures for people: a table for Services and one for changes, a row for each stage, small and large cluster side by side.

use std::fmt::Write as _;

use super::figures::Figures;

/// A group of columns: title, decimals, and where the figure is.
type Column = (&'static str, usize, fn(&Figures) -> Option<f64>);

const COLUMNS: [Column; 5] = [
    ("CPU time, µs", 1, |figures| Some(figures.nanoseconds / 1000.0)),
    ("allocations", 1, |figures| Some(figures.allocations)),
    ("bytes allocated", 0, |figures| Some(figures.bytes)),
    ("instructions", 0, |figures| figures.instructions),
    ("resident bytes", 0, |figures| figures.resident),
];
/// Widths.
const STAGE: usize = 10;
const FIGURE: usize = 8;
const RATIO: usize = 6;

pub(super) fn table(cases: &[Figures]) -> String {
    let mut text = String::new();
    for (per, title) in [("service", "per Service, first load"), ("change", "per change (one of 10 endpoints replaced)")] {
        let cases: Vec<&Figures> = cases.iter().filter(|case| case.parts().1 == per).collect();
        let columns: Vec<&Column> = COLUMNS.iter().filter(|(_, _, figure)| cases.iter().any(|case| figure(case).is_some())).collect();
        let sizes = distinct(cases.iter().map(|case| case.parts().2));
        // Writing to a string cannot fail.
        let _ = write_table(&mut text, title, &cases, &columns, &sizes);
    }
    text
}

fn write_table(text: &mut String, title: &str, cases: &[&Figures], columns: &[&Column], sizes: &[&str]) -> std::fmt::Result {
    let group = sizes.len() * (FIGURE + 1) + RATIO + 1;
    write!(text, "\n{title}\n{:STAGE$}", "")?;
    columns.iter().try_for_each(|(name, _, _)| write!(text, "  {name:>group$}"))?;
    write!(text, "\n{:STAGE$}", "Services")?;
    for _ in columns {
        write!(text, "  ")?;
        sizes.iter().try_for_each(|size| write!(text, " {size:>FIGURE$}"))?;
        write!(text, " {:>RATIO$}", "ratio")?;
    }
    writeln!(text)?;
    for stage in distinct(cases.iter().map(|case| case.parts().0)) {
        write!(text, "{stage:STAGE$}")?;
        for (_, decimals, figure) in columns {
            let at =
                |size: &&str| cases.iter().find(|case| case.parts().0 == stage && case.parts().2 == *size).and_then(|case| figure(case));
            let figures: Vec<Option<f64>> = sizes.iter().map(at).collect();
            let shown = |figure: &Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.decimals$}"));
            write!(text, "  ")?;
            figures.iter().try_for_each(|figure| write!(text, " {:>FIGURE$}", shown(figure)))?;
            let ratio = match (figures.first(), figures.last()) {
                (Some(Some(small)), Some(Some(large))) if *small > 0.0 => format!("{:.2}", large / small),
                _ => "-".to_owned(),
            };
            write!(text, " {ratio:>RATIO$}")?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// Each once, in the order of appearance.
fn distinct<'a>(items: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    items.for_each(|item| {
        if !seen.contains(&item) {
            seen.push(item);
        }
    });
    seen
}

//! The figures that tables, plots and goals show, each computed from the raw measurements of all rounds.

use super::plan::Proxy;
use super::results::{Commit, Kind, Results, Run, Series};
use super::stats::{max, median, percentile, ratio};

/// One figure about a proxy at a number of Services.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Metric {
    /// Seconds from the start to the first working Service, the median of the rounds.
    First,
    /// The same to the last one.
    Last,
    /// CPU seconds until then, children included.
    StartCpu,
    /// Microseconds of writing everything to the kernel at the start, median.
    StartCommit,
    /// Microseconds from a write to its effect, this percentile of all rounds' changes.
    Latency(Kind, f64),
    /// Microseconds of the API server's write alone, median.
    Write(Kind),
    /// Microseconds from a write until a bare watch sees it, median.
    Seen(Kind),
    /// Microseconds from then to the effect, this percentile.
    Beyond(Kind, f64),
    /// Microseconds of writing one endpoint's change to the kernel.
    Commit,
    /// Microseconds of writing a change of this kind to the kernel, this percentile, while connections are tried all the time.
    CommitOf(Kind, f64),
    /// CPU microseconds for a change, children included.
    Cpu(Kind),
    /// CPU microseconds that the probes themselves take for a change.
    Probing(Kind),
    /// The most bytes that were resident at once.
    Memory,
    /// Microseconds of connecting directly, this percentile.
    Direct(f64),
    /// Microseconds of connecting through the virtual IP (without a proxy: directly again).
    Connect(f64),
    /// The ratio of the two medians; the median of the rounds' ratios, because a machine's speed changes between rounds.
    ConnectRatio,
}

impl Metric {
    /// The figure, if it was measured.
    pub(super) fn of(self, results: &Results, proxy: Proxy, services: usize) -> Option<f64> {
        let runs: Vec<&Run> = results.of(proxy, services).collect();
        let starts = || runs.iter().filter_map(|run| run.start.as_ref());
        let all = |kind| runs.iter().filter_map(move |run| run.series(kind));
        let connects = || runs.iter().filter_map(|run| run.connect.as_ref());
        match self {
            Metric::First => median(&starts().map(|start| start.first).collect::<Option<Vec<_>>>()?),
            Metric::Last => median(&starts().map(|start| start.last).collect::<Option<Vec<_>>>()?),
            Metric::StartCpu => median(&starts().map(|start| start.last.map(|_| start.cpu)).collect::<Option<Vec<_>>>()?),
            Metric::StartCommit => median(&starts().filter_map(|start| start.last.and(start.commit)).collect::<Vec<_>>()),
            Metric::Latency(kind, percent) => percentile(&merge(all(kind), |series| series.latency.clone()), percent),
            Metric::Write(kind) => median(&merge(all(kind), |series| series.write.clone())),
            Metric::Seen(kind) => median(&merge(all(kind), |series| series.seen.clone())),
            Metric::Beyond(kind, percent) => percentile(&merge(all(kind), Series::beyond), percent),
            Metric::Commit => commit(runs.iter().filter_map(|run| run.alone.as_ref()?.commit.as_ref())),
            Metric::CommitOf(kind, percent) => percentile(&merge(all(kind), each_commit), percent),
            Metric::Cpu(kind) => per_write(all(kind), |series| series.cpu),
            Metric::Probing(kind) => per_write(all(kind), |series| series.probing),
            Metric::Memory => max(&runs.iter().filter_map(|run| run.peak_memory).map(|bytes| bytes as f64).collect::<Vec<_>>()),
            Metric::Direct(percent) => percentile(&connects().flat_map(|c| c.direct.clone()).collect::<Vec<_>>(), percent),
            Metric::Connect(percent) => percentile(&connects().flat_map(|c| c.other.clone()).collect::<Vec<_>>(), percent),
            Metric::ConnectRatio => median(&connects().filter_map(|c| ratio(median(&c.other), median(&c.direct))).collect::<Vec<_>>()),
        }
    }

    /// A value of this figure with its unit.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Metric::First | Metric::Last | Metric::StartCpu => format!("{} s", digits(value)),
            Metric::Memory => format!("{} MB", digits(value / 1e6)),
            Metric::ConnectRatio => format!("{value:.3}"),
            Metric::Direct(_) | Metric::Connect(_) => format!("{} us", digits(value)),
            _ => format!("{} ms", digits(value / 1e3)),
        }
    }
}

fn merge<'a>(series: impl Iterator<Item = &'a Series>, values: impl Fn(&Series) -> Vec<f64>) -> Vec<f64> {
    series.flat_map(values).collect()
}

/// Those that were timed one by one.
fn each_commit(series: &Series) -> Vec<f64> {
    match &series.commit {
        Some(Commit::Each(micros)) => micros.clone(),
        _ => Vec::new(),
    }
}

/// Seconds over all writes as microseconds of one.
fn per_write<'a>(series: impl Iterator<Item = &'a Series>, seconds: impl Fn(&Series) -> f64) -> Option<f64> {
    let (sum, writes) = series.fold((0.0, 0), |(sum, writes), series| (sum + seconds(series), writes + series.writes));
    (writes > 0).then(|| sum * 1e6 / writes as f64)
}

/// The median of commits that were timed one by one, or else the mean of the means.
fn commit<'a>(commits: impl Iterator<Item = &'a Commit>) -> Option<f64> {
    let (mut each, mut sum, mut number) = (Vec::new(), 0.0, 0.0);
    for commit in commits {
        match commit {
            Commit::Each(micros) => each.extend(micros),
            Commit::Mean { count, micros } => {
                sum += count * micros;
                number += count;
            }
        }
    }
    median(&each).or_else(|| (number > 0.0).then(|| sum / number))
}

/// Three significant digits, as far as they are before or behind the point: 0.0123, 1.23, 123, 1234.
pub(super) fn digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor();
    // Between 0 and 5, so that no digit is lost over the conversion.
    let decimals = (2.0 - magnitude).clamp(0.0, 5.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_are_shown() {
        let shown = [0.012_345, 1.234, 99.96, 123.4, 1234.0, 0.0].map(digits);
        assert_eq!(shown, ["0.0123", "1.23", "100.0", "123", "1234", "0"]);
    }

    #[test]
    fn commits_one_by_one_give_a_median_and_means_are_weighted() {
        assert_eq!(commit([&Commit::Each(vec![1.0, 9.0]), &Commit::Each(vec![2.0])].into_iter()), Some(2.0));
        let means = [Commit::Mean { count: 1.0, micros: 10.0 }, Commit::Mean { count: 3.0, micros: 2.0 }];
        assert_eq!(commit(means.iter()), Some(4.0));
        assert_eq!(commit([].into_iter()), None);
    }
}

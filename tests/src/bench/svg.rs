//! Plots: a figure against the number of Services, both on logarithmic scales.

use std::fmt::Write as _;

use super::metric::Metric;
use super::plan::Proxy;
use super::results::{Kind, Results};

/// A plot, and the file that it goes into.
pub(super) struct Plot {
    pub(super) file: &'static str,
    pub(super) svg: String,
}

/// Titles and files, for the report.
pub(super) const FILES: [(&str, &str); 4] = [
    ("Start to last working Service", "benchmarks-start.svg"),
    ("EndpointSlice write to effect, p50", "benchmarks-endpointslice.svg"),
    ("CPU for an EndpointSlice change", "benchmarks-cpu.svg"),
    ("Peak memory", "benchmarks-memory.svg"),
];

const METRICS: [Metric; 4] = [Metric::Last, Metric::Latency(Kind::EndpointSlice, 50.0), Metric::Cpu(Kind::EndpointSlice), Metric::Memory];

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 180.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// A colour that those who see few colours tell from the others.
fn colour(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Ebpf => "#0072b2",
        Proxy::Nftables => "#009e73",
        Proxy::KubeProxyNftables => "#d55e00",
        Proxy::KubeProxyIptables => "#cc79a7",
        Proxy::None => "#777777",
    }
}

/// All plots.
pub(super) fn plots(results: &Results) -> Vec<Plot> {
    let plot = |((title, file), metric): ((&str, &'static str), Metric)| Plot { file, svg: plot(results, title, metric) };
    FILES.into_iter().zip(METRICS).map(plot).collect()
}

/// A proxy's points: number of Services and figure.
type Line = (Proxy, Vec<(f64, f64)>);

fn plot(results: &Results, title: &str, metric: Metric) -> String {
    let sizes = &results.plan.sizes;
    let point = |proxy, services: usize| Some((services as f64, metric.of(results, proxy, services).filter(|value| *value > 0.0)?));
    let line = |&proxy: &Proxy| (proxy, sizes.iter().filter_map(|&services| point(proxy, services)).collect::<Vec<_>>());
    let lines: Vec<Line> = results.plan.proxies.iter().map(line).filter(|(_, points)| !points.is_empty()).collect();
    let x = Axis::over(sizes.iter().map(|&services| services as f64), LEFT, WIDTH - RIGHT);
    let y = Axis::over(lines.iter().flat_map(|(_, points)| points.iter().map(|(_, y)| *y)), HEIGHT - BOTTOM, TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{title}</text>\n"
    );
    for value in y.ticks() {
        let at = y.place(value);
        let _ = writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/>", WIDTH - RIGHT);
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, at + 4.0, metric.show(value));
    }
    for &services in sizes {
        let at = x.place(services as f64);
        let _ = writeln!(svg, "<path d=\"M{at:.1} {TOP}V{:.1}\" stroke=\"#ddd\"/>", HEIGHT - BOTTOM);
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{services}</text>", HEIGHT - BOTTOM + 18.0);
    }
    let _ =
        writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">Services</text>", (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0);
    for (i, line) in lines.iter().enumerate() {
        svg += &drawn(line, &x, &y, TOP + 20.0 * i as f64);
    }
    svg + "</svg>\n"
}

fn drawn((proxy, points): &Line, x: &Axis, y: &Axis, legend: f64) -> String {
    let (mut svg, colour) = (String::new(), colour(*proxy));
    let places: Vec<(f64, f64)> = points.iter().map(|&(services, value)| (x.place(services), y.place(value))).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    let _ = writeln!(svg, "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join("L"));
    for (x, y) in places {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
    }
    let at = WIDTH - RIGHT + 20.0;
    let _ = writeln!(svg, "<path d=\"M{at} {legend:.1}h20\" stroke=\"{colour}\" stroke-width=\"2\"/>");
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{proxy}</text>", at + 26.0, legend + 4.0);
    svg
}

/// A logarithmic scale: from a power of ten to another, and where they are drawn.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values.map(f64::log10).fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return Self { low: 0.0, high: 1.0, from, to };
        }
        let (low, high) = (low.floor(), high.ceil());
        Self { low, high: if high > low { high } else { low + 1.0 }, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value.log10() - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// The powers of ten.
    fn ticks(&self) -> Vec<f64> {
        let mut ticks = vec![self.low];
        while ticks.last().is_some_and(|last| *last < self.high) {
            ticks.push(ticks[ticks.len() - 1] + 1.0);
        }
        ticks.into_iter().map(|power| 10_f64.powf(power)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_spans_whole_powers_of_ten() {
        let axis = Axis::over([20.0, 3_000.0].into_iter(), 0.0, 300.0);
        assert_eq!(axis.ticks(), [10.0, 100.0, 1_000.0, 10_000.0]);
        assert_eq!([10.0, 100.0, 10_000.0].map(|v| axis.place(v)), [0.0, 100.0, 300.0]);
        assert_eq!(Axis::over([].into_iter(), 0.0, 1.0).ticks(), [1.0, 10.0]);
        assert_eq!(Axis::over([10.0].into_iter(), 0.0, 1.0).ticks(), [10.0, 100.0]);
    }
}

//! Percentiles and ratios.

/// The value that `percent` of the values do not exceed (nearest rank); none of none.
pub(super) fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The rank is between 1 and the number of values, which no precision is lost over.
    let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

/// The middle one.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    percentile(values, 50.0)
}

/// The largest one.
pub(super) fn max(values: &[f64]) -> Option<f64> {
    percentile(values, 100.0)
}

/// How many times as much `a` is as `b`.
pub(super) fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    let (a, b) = (a?, b?);
    (b > 0.0).then(|| a / b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let found = [0.0, 1.0, 50.0, 90.0, 99.0, 100.0].map(|p| percentile(&values, p));
        assert_eq!(found, [1.0, 1.0, 50.0, 90.0, 99.0, 100.0].map(Some));
        assert_eq!((median(&[3.0, 1.0, 2.0]), max(&[3.0, 1.0])), (Some(2.0), Some(3.0)));
        assert_eq!((percentile(&[5.0], 99.0), percentile(&[], 50.0)), (Some(5.0), None));
    }

    #[test]
    fn a_ratio_needs_both_and_a_divisor() {
        assert_eq!(ratio(Some(6.0), Some(2.0)), Some(3.0));
        assert_eq!((ratio(None, Some(2.0)), ratio(Some(1.0), Some(0.0))), (None, None));
    }
}

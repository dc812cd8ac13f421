//! Ticks of an axis: round numbers, all with the same decimals.

/// Round numbers inside of a range, at most so many: steps of 1, 2 or 5 times a power of ten.
pub(super) fn ticks(range: &std::ops::Range<f64>, most: usize) -> Vec<f64> {
    let span = range.end - range.start;
    if !(span > 0.0 && span.is_finite()) {
        return Vec::new();
    }
    let unit = 10f64.powf((span / most.max(1) as f64).log10().floor());
    let fits = |step: &f64| (range.end / step).floor() - (range.start / step).ceil() < most as f64;
    let steps = [1.0, 2.0, 5.0, 10.0, 20.0].map(|s| s * unit);
    let step = steps.into_iter().find(fits).unwrap_or(50.0 * unit);
    let first = (range.start / step).ceil();
    let count = ((range.end / step).floor() - first).max(-1.0) as usize;
    (0..=count)
        .map(|i| (first + i as f64) * step)
        .filter(|v| range.contains(v))
        .collect()
}

/// Decimals that all of the ticks need.
pub(super) fn decimals(ticks: &[f64]) -> usize {
    let step = ticks
        .windows(2)
        .map(|w| w[1] - w[0])
        .fold(f64::INFINITY, f64::min);
    match step {
        s if s.is_finite() && s > 0.0 => {
            (-(s * 1.000_001).log10().floor()).clamp(0.0, 12.0) as usize
        }
        _ => 2,
    }
}

/// A tick's label.
pub(super) fn label(value: f64, decimals: usize) -> String {
    crate::rounding::number(value, decimals)
}

/// A number on an axis whose largest value is this: integers without decimals.
pub(super) fn axis_label(
    range: &std::ops::Range<f64>,
    most: usize,
) -> impl Fn(&f64) -> String + use<> {
    let decimals = decimals(&ticks(range, most));
    move |value| label(*value, decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_round_and_alike() {
        let all = ticks(&(0.43..0.83), 5);
        let labels: Vec<String> = all.iter().map(|v| label(*v, decimals(&all))).collect();
        assert_eq!(labels, ["0.5", "0.6", "0.7", "0.8"]);
        let all = ticks(&(-1.2..0.9), 4);
        let labels: Vec<String> = all.iter().map(|v| label(*v, decimals(&all))).collect();
        assert_eq!(labels, ["−1.0", "−0.5", "0.0", "0.5"]);
        assert_eq!(decimals(&ticks(&(0.0..210.0), 5)), 0);
        assert_eq!(ticks(&(0.0..210.0), 5), [0.0, 50.0, 100.0, 150.0, 200.0]);
        assert!(ticks(&(1.0..1.0), 5).is_empty());
    }
}

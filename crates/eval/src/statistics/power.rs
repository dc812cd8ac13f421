//! How many prompts a difference needs.

/// The difference in utility that a power note is about: two points of a hundred (ours).
pub const DIFFERENCE: f64 = 0.02;

/// Prompts that show a mean difference in four of five experiments, in a two-sided test at 5 %:
/// `((z₀.₉₇₅ + z₀.₈) s / difference)²` with the standard deviation `s` of the prompts' mean differences
/// (the usual normal approximation). `None` for fewer than two prompts.
pub fn prompts_needed(means: &[f64], difference: f64) -> Option<f64> {
    if means.len() < 2 {
        return None;
    }
    let n = means.len() as f64;
    let mean = means.iter().sum::<f64>() / n;
    let variance = means.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let z = 1.959_963_984_540_054 + 0.841_621_233_572_914_3;
    Some((z / difference).powi(2) * variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_difference_needs_a_hundred_times_the_prompts() {
        let means = [0.1, -0.1, 0.1, -0.1];
        let (one, two) = (prompts_needed(&means, 0.02), prompts_needed(&means, 0.002));
        // s² = 0.04/3; (2.8016 / 0.02)² · 0.01333 = 261.6.
        assert!(one.is_some_and(|n| (n - 261.63).abs() < 0.01), "{one:?}");
        assert!(
            two.zip(one)
                .is_some_and(|(a, b)| (a / b - 100.0).abs() < 1e-9)
        );
        assert_eq!(prompts_needed(&[0.5], 0.02), None);
    }
}

//! Quantiles of Student's t and of the normal distribution, for intervals over few clusters.

use std::f64::consts::{FRAC_2_PI, PI};

/// `P(|T| ≤ t)` of Student's t with `freedom` degrees (Abramowitz & Stegun 26.7.3 and 26.7.4: finite sums).
fn central(t: f64, freedom: usize) -> f64 {
    let angle = (t / (freedom as f64).sqrt()).atan();
    let (sine, square) = (angle.sin(), angle.cos().powi(2));
    let odd = freedom % 2 == 1;
    // Terms of the sum without the first factor; each from the one before.
    let mut term = if odd { angle.cos() } else { 1.0 };
    let mut sum = if freedom == 1 { 0.0 } else { term };
    let first = if odd { 3 } else { 2 };
    for k in (first..freedom - 1).step_by(2) {
        term *= square * (k - 1) as f64 / k as f64;
        sum += term;
    }
    match odd {
        true => FRAC_2_PI * (angle + sine * sum),
        false => sine * sum,
    }
}

/// The 97.5 % quantile of Student's t.
///
/// ```
/// use mope_eval::statistics::student;
/// assert!((student(7) - 2.364_624_251_592_784).abs() < 1e-10);
/// ```
///
/// # Panics
/// For no degree of freedom.
pub fn student(freedom: usize) -> f64 {
    assert!(freedom > 0, "degrees of freedom");
    let (mut low, mut high) = (0.0f64, 13.0f64);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        match central(middle, freedom) < 0.95 {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

/// `P(Z ≤ −x)` of the standard normal distribution for `x ≥ 0`: `½ − φ(x) Σ_k x^(2k+1) / (1·3·…·(2k+1))`.
fn beyond(x: f64) -> f64 {
    if x > 8.0 {
        return 0.0;
    }
    let (mut term, mut sum, mut k) = (x, x, 1.0);
    while term > 1e-18 * sum {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    (0.5 - sum * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()).max(0.0)
}

/// How much wider than a standard normal one an interval over `clusters` means is: `√(n/(n − 1)) t/z`; infinite for one.
pub(crate) fn widening(clusters: usize) -> f64 {
    match clusters {
        0 | 1 => f64::INFINITY,
        n => (n as f64 / (n - 1) as f64).sqrt() * student(n - 1),
    }
}

/// The share of draws that lies below a 95 % interval: `Φ(−√(n/(n − 1)) t)` for n clusters, 0.025 for very many
/// (Hesterberg 2015, "expanded percentile interval": the plain percentiles of few clusters are too narrow, because draws
/// vary by `(n − 1)/n` of the variance, and as if it were known).
pub(crate) fn tail(clusters: usize) -> f64 {
    beyond(widening(clusters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        // scipy.stats.t.ppf(0.975, freedom)
        for (freedom, expected) in [
            (1, 12.706_204_736_174_694),
            (2, 4.302_652_729_749_462),
            (3, 3.182_446_305_284_263),
            (11, 2.200_985_160_082_949),
            (30, 2.042_272_456_301_238),
            (99, 1.984_216_951_586_396),
        ] {
            let got = student(freedom);
            assert!((got - expected).abs() < 1e-10, "{freedom}: {got}");
        }
        // scipy.stats.norm.cdf(-x)
        for (x, expected) in [
            (0.0, 0.5),
            (1.959_963_984_540_054, 0.025),
            (3.5, 2.326_290_790_355_25e-4),
        ] {
            assert!((beyond(x) - expected).abs() < 1e-15, "{x}: {}", beyond(x));
        }
        assert_eq!((tail(1), tail(2)), (0.0, 0.0));
        assert!((tail(8) - 0.005_737).abs() < 1e-5, "{}", tail(8));
        assert!((tail(100_000) - 0.025).abs() < 1e-5);
    }
}

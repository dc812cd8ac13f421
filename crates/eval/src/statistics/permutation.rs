//! Tests of paired differences.

use super::Bootstrap;

/// Two-sided p-value that differences are as likely one way as the other: the share of sign draws whose
/// sum is at least as far from 0, a prompt's differences turning together, `(1 + hits) / (1 + draws)`
/// (Phipson & Smyth 2010: never 0).
///
/// # Panics
/// When there are other clusters than the draws were made for.
pub fn p_value(bootstrap: &Bootstrap, sums: &[f64]) -> f64 {
    assert_eq!(sums.len(), bootstrap.clusters(), "clusters");
    let observed = sums.iter().sum::<f64>().abs();
    // What differs by rounding alone is the same.
    let least = observed - 1e-9 * sums.iter().map(|s| s.abs()).sum::<f64>();
    let (mut hits, mut all) = (0, 0);
    bootstrap.each_signs(|signs| {
        let turn = |(sum, turned): (&f64, &bool)| if *turned { -sum } else { *sum };
        let sum: f64 = sums.iter().zip(signs).map(turn).sum();
        hits += usize::from(sum.abs() >= least);
        all += 1;
    });
    (1 + hits) as f64 / (1 + all) as f64
}

/// Holm's correction (1979) of a family's p-values, in their order.
///
/// ```
/// use mope_eval::statistics::permutation::holm;
/// assert_eq!(holm(&[0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]);
/// ```
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut out = vec![0.0; p.len()];
    let mut largest = 0.0f64;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p[i] * (p.len() - rank) as f64).min(1.0));
        out[i] = largest;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_clusters_give_the_exact_share() {
        // Of the 2⁵ sign patterns of five equal differences, two are as far from 0.
        let p = p_value(&Bootstrap::new(5), &[1.0; 5]);
        assert!((p - 2.0 / 32.0).abs() < 0.01, "{p}");
        assert_eq!(p_value(&Bootstrap::new(5), &[0.0; 5]), 1.0);
        let p = p_value(&Bootstrap::new(60), &[0.3; 60]);
        assert!(p < 2e-4 && p > 0.0, "{p}");
    }
}

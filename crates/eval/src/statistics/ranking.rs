//! Bradley-Terry ranking: strengths `s` with `P(i beats j) = σ(s_i − s_j)` (Bradley & Terry 1952).

use super::{Bootstrap, Estimate};

/// Wins that every pair is given each way, so that who never loses has a finite strength (ours).
pub const PRIOR: f64 = 0.5;

/// Newton's steps at most; from any start a handful is enough.
const STEPS: usize = 100;

/// Maximum-likelihood log-strengths of `wins[i·n + j]`, how often `i` beat `j` (ties count a half to
/// both), with [`PRIOR`] wins each way added; their mean is 0. Newton's method from `start`.
///
/// # Panics
/// When `wins` is not `[n, n]` for the length n of `start`.
///
/// ```
/// use mope_eval::statistics::ranking::{PRIOR, strengths};
/// let s = strengths(&[0.0, 29.5, 9.5, 0.0], &[0.0, 0.0]);
/// assert!((s[0] - s[1] - ((29.5 + PRIOR) / (9.5 + PRIOR) as f64).ln()).abs() < 1e-9);
/// ```
pub fn strengths(wins: &[f64], start: &[f64]) -> Vec<f64> {
    let n = start.len();
    assert_eq!(wins.len(), n * n, "wins");
    let mut s = start.to_vec();
    for _ in 0..STEPS {
        let mut gradient = vec![0.0; n];
        // The likelihood's curvature is blind to a common shift; 1/n everywhere fixes it.
        let mut curvature = vec![1.0 / n as f64; n * n];
        for i in 0..n {
            for j in (0..n).filter(|&j| j != i) {
                let (won, lost) = (wins[i * n + j] + PRIOR, wins[j * n + i] + PRIOR);
                let p = 1.0 / (1.0 + (s[j] - s[i]).exp());
                gradient[i] += won - (won + lost) * p;
                let weight = (won + lost) * p * (1.0 - p);
                curvature[i * n + i] += weight;
                curvature[i * n + j] -= weight;
            }
        }
        let mut step = solve(curvature, gradient);
        let largest = step.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        // Far from the solution a full step can overshoot.
        let scale = if largest > 1.0 { 1.0 / largest } else { 1.0 };
        step.iter_mut().for_each(|v| *v *= scale);
        s.iter_mut().zip(&step).for_each(|(s, d)| *s += d);
        if largest < 1e-12 {
            break;
        }
    }
    let mean = s.iter().sum::<f64>() / n.max(1) as f64;
    s.iter().map(|v| v - mean).collect()
}

/// Strengths of `n` competitors with their intervals: `wins[cluster][i·n + j]` is how often `i` beat `j` in a
/// cluster, and clusters are what is drawn. [`Estimate::count`] is that of the clusters.
///
/// # Panics
/// When there are other clusters than the draws were made for.
pub fn estimate(bootstrap: &Bootstrap, wins: &[Vec<f64>], n: usize) -> Vec<Estimate> {
    assert_eq!(wins.len(), bootstrap.clusters(), "clusters");
    // [clusters, n, n]
    let wins_of: Vec<f64> = wins.iter().flatten().copied().collect();
    assert_eq!(wins_of.len(), wins.len() * n * n, "wins");
    let mut sum = vec![0.0; n * n];
    let mut of = |clusters: &mut dyn Iterator<Item = usize>, start: &[f64]| {
        sum.fill(0.0);
        for cluster in clusters {
            let wins = &wins_of[cluster * n * n..][..n * n];
            sum.iter_mut().zip(wins).for_each(|(s, w)| *s += w);
        }
        strengths(&sum, start)
    };
    let mean = of(&mut (0..wins.len()), &vec![0.0; n]);
    let mut drawn: Vec<Vec<f64>> = vec![Vec::new(); n];
    bootstrap.each_draw(|draw| {
        let strengths = of(&mut draw.iter().map(|&i| i as usize), &mean);
        drawn
            .iter_mut()
            .zip(strengths)
            .for_each(|(all, s)| all.push(s));
    });
    let estimates = mean.iter().zip(drawn).map(|(&mean, drawn)| {
        let (low, high) = bootstrap.percentiles(drawn).unwrap_or((mean, mean));
        Estimate {
            mean,
            low,
            high,
            count: wins.len(),
        }
    });
    estimates.collect()
}

/// `A⁻¹ b` of a symmetric positive definite matrix, by Cholesky's factors.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for j in 0..n {
        for k in 0..j {
            let factor = a[j * n + k];
            for i in j..n {
                a[i * n + j] -= a[i * n + k] * factor;
            }
        }
        let pivot = a[j * n + j].sqrt();
        (j..n).for_each(|i| a[i * n + j] /= pivot);
    }
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| a[i * n + k] * b[k]).sum();
        b[i] = (b[i] - sum) / a[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k]).sum();
        b[i] = (b[i] - sum) / a[i * n + i];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strengths_are_where_expected_wins_equal_the_counted() {
        let wins = [0.0, 7.0, 3.0, 2.0, 0.0, 5.5, 6.0, 3.5, 0.0];
        let s = strengths(&wins, &[0.0; 3]);
        assert!(s.iter().sum::<f64>().abs() < 1e-12);
        for i in 0..3 {
            let (mut won, mut expected) = (0.0, 0.0);
            for j in (0..3).filter(|&j| j != i) {
                let games = wins[i * 3 + j] + wins[j * 3 + i] + 2.0 * PRIOR;
                won += wins[i * 3 + j] + PRIOR;
                expected += games / (1.0 + (s[j] - s[i]).exp());
            }
            assert!((won - expected).abs() < 1e-9, "{won} {expected}");
        }
        // From far away, and with one who always wins.
        let again = strengths(&wins, &[30.0, -30.0, 0.0]);
        assert!(s.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-9));
        let sure = strengths(&[0.0, 1000.0, 0.0, 0.0], &[0.0; 2]);
        assert!((sure[0] - sure[1] - (1000.5f64 / 0.5).ln()).abs() < 1e-9);
    }
}

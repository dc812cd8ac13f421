//! How far judges agree, and what length has to do with it.

/// Share of equal verdicts, by pair; a verdict is the share of a win. `None` without pairs.
pub fn agreement(pairs: &[(f64, f64)]) -> Option<f64> {
    let equal = pairs.iter().filter(|(a, b)| a == b).count();
    (!pairs.is_empty()).then(|| equal as f64 / pairs.len() as f64)
}

/// Cohen's κ (1960) of verdicts: agreement beyond chance. `None` without pairs, or where chance alone
/// agrees always.
pub fn kappa(pairs: &[(f64, f64)]) -> Option<f64> {
    let observed = agreement(pairs)?;
    let n = pairs.len() as f64;
    let chance: f64 = [0.0, 0.5, 1.0]
        .iter()
        .map(|verdict| {
            let first = pairs.iter().filter(|(a, _)| a == verdict).count() as f64;
            let second = pairs.iter().filter(|(_, b)| b == verdict).count() as f64;
            first / n * second / n
        })
        .sum();
    (chance < 1.0).then(|| (observed - chance) / (1.0 - chance))
}

/// Weight of the penalty that keeps coefficients finite where length tells everything (ours).
const RIDGE: f64 = 1e-3;

/// Length-controlled win rate (arXiv 2404.04475, without its term for the instruction's difficulty):
/// `P(win) = σ(θ + φ tanh(Δ / sd Δ))` is fitted to verdicts and differences in length, and `σ(θ)` is the win
/// rate at equal length. `None` without verdicts, and where all pairs differ by the same length, so that
/// strategy and length cannot be told apart.
pub fn length_controlled(verdicts: &[f64], differences: &[f64]) -> Option<f64> {
    if verdicts.is_empty() || verdicts.len() != differences.len() {
        return None;
    }
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n;
    if variance == 0.0 && mean != 0.0 {
        return None;
    }
    let sd = variance.sqrt().max(1e-9);
    let x: Vec<f64> = differences.iter().map(|d| (d / sd).tanh()).collect();
    let (mut theta, mut phi) = (0.0f64, 0.0f64);
    for _ in 0..100 {
        let (mut g, mut h) = ([-RIDGE * theta, -RIDGE * phi], [RIDGE, 0.0, RIDGE]);
        for (y, x) in verdicts.iter().zip(&x) {
            let p = 1.0 / (1.0 + (-(theta + phi * x)).exp());
            g[0] += y - p;
            g[1] += (y - p) * x;
            let w = p * (1.0 - p);
            h[0] += w;
            h[1] += w * x;
            h[2] += w * x * x;
        }
        let determinant = h[0] * h[2] - h[1] * h[1];
        let step = [
            (g[0] * h[2] - g[1] * h[1]) / determinant,
            (g[1] * h[0] - g[0] * h[1]) / determinant,
        ];
        // Far from the solution a full step can overshoot.
        let largest = step[0].abs().max(step[1].abs());
        let scale = if largest > 1.0 { 1.0 / largest } else { 1.0 };
        theta += scale * step[0];
        phi += scale * step[1];
        if largest < 1e-12 {
            break;
        }
    }
    Some(1.0 / (1.0 + (-theta).exp()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn kappa_of_a_textbook_table() {
        // 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: po 0.7, pe 0.5, κ 0.4.
        let cell = |a, b, n| std::iter::repeat_n((a, b), n);
        let pairs: Vec<(f64, f64)> = cell(1.0, 1.0, 20)
            .chain(cell(1.0, 0.0, 5))
            .chain(cell(0.0, 1.0, 10))
            .chain(cell(0.0, 0.0, 15))
            .collect();
        assert_eq!(agreement(&pairs), Some(0.7));
        assert!((kappa(&pairs).unwrap() - 0.4).abs() < 1e-12);
        assert_eq!(kappa(&[(1.0, 1.0)]), None);
        // With ties, by sklearn.metrics.cohen_kappa_score.
        let a = [1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.5, 0.5, 1.0, 0.0, 1.0, 0.0];
        let b = [1.0, 0.5, 0.5, 0.0, 1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0, 0.5];
        let pairs: Vec<(f64, f64)> = a.into_iter().zip(b).collect();
        assert!((agreement(&pairs).unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert!((kappa(&pairs).unwrap() - 0.494_736_842_105_263_14).abs() < 1e-12);
    }

    #[test]
    fn the_fit_is_that_of_statsmodels_and_scipy() {
        let differences = [12, -5, 30, 4, -18, 7, 0, 22, -9, 15, 3, -2].map(f64::from);
        let wins = [1.0, 0.0, 1.0, 0.5, 0.0, 1.0, 0.5, 1.0, 0.5, 0.0, 1.0, 1.0];
        let got = length_controlled(&wins, &differences).unwrap();
        // sm.GLM(wins, [1, tanh(d / d.std())], Binomial()); the ridge costs little.
        assert!((got - 0.564_493_045_851_650_3).abs() < 1e-4, "{got}");
        // scipy.optimize.minimize of the same likelihood with the ridge.
        assert!((got - 0.564_526_722_138_465_2).abs() < 1e-8, "{got}");
        // Seen from the other side it is the rest.
        let other = length_controlled(&wins.map(|w| 1.0 - w), &differences.map(|d| -d));
        assert!((got + other.unwrap() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_cannot_be_told_apart_has_no_rate() {
        assert_eq!(length_controlled(&[], &[]), None);
        assert_eq!(length_controlled(&[1.0, 1.0, 0.0], &[4.0; 3]), None);
        let even = length_controlled(&[1.0, 1.0, 0.0, 0.5], &[0.0; 4]).unwrap();
        assert!((even - 0.625).abs() < 1e-3, "{even}");
    }

    #[test]
    fn length_alone_explains_a_judge_who_likes_length() {
        let differences: Vec<f64> = (0..200).map(|i| f64::from(i % 20) - 4.5).collect();
        let longer: Vec<f64> = differences
            .iter()
            .map(|d| f64::from(u8::from(*d > 0.0)))
            .collect();
        let plain = longer.iter().sum::<f64>() / 200.0;
        let controlled = length_controlled(&longer, &differences).unwrap();
        assert!(
            plain == 0.75 && (controlled - 0.5).abs() < 0.1,
            "{controlled}"
        );
        // Where length tells nothing it changes nothing.
        let apart: Vec<f64> = (0..200).map(|i| f64::from(u8::from(i % 4 > 0))).collect();
        let even: Vec<f64> = (0..200)
            .map(|i| if (i / 4) % 2 == 0 { 3.0 } else { -3.0 })
            .collect();
        let controlled = length_controlled(&apart, &even).unwrap();
        assert!((controlled - 0.75).abs() < 1e-4, "{controlled}");
    }
}

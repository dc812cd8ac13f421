//! How much of the differences between held-out responses a fit explains, without the luck of choosing its epoch.
//!
//! The epoch that is kept is the one that pays least on the held-out prompts, so its own figure there is the best of
//! several and too high. Here every fold of prompts is judged at the epoch that the *other* folds would choose:
//!
//! ```text
//! explained = 1 − Σ_f L_f(e_f) / Σ_f A_f,   e_f = arg min_e Σ_{g ≠ f} P_g(e)
//! ```
//!
//! L what is left of the squares, A all of them, P what the fit pays. The standard error is that of a ratio of sums over
//! prompts (linearised, a prompt's pairs together).

use std::collections::BTreeMap;

/// Folds of prompts (ours; as many as there are prompts where these are fewer).
const FOLDS: usize = 10;

/// What held-out pairs of a prompt come to, by epoch; the first is the reference, before any.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Epochs {
    /// What is left of the regression's squares.
    pub left: Vec<f64>,
    /// All that the fit pays: that, and the price of divergence.
    pub paid: Vec<f64>,
}

/// Share of the squares that the fit explains, and its standard error; both 0 with fewer than two prompts.
pub(crate) fn explained(prompts: &BTreeMap<&str, Epochs>) -> (f64, f64) {
    let prompts: Vec<&Epochs> = prompts.values().collect();
    let n = prompts.len();
    let epochs = prompts.first().map_or(0, |p| p.left.len());
    if n < 2 || epochs == 0 {
        return (0.0, 0.0);
    }
    let folds = FOLDS.min(n);
    let mut parts = Vec::new();
    for fold in 0..folds {
        let others = || {
            prompts
                .iter()
                .enumerate()
                .filter(|(i, _)| i % folds != fold)
        };
        let paid = |epoch: usize| others().map(|(_, p)| p.paid[epoch]).sum::<f64>();
        // Of equals the first, as where the epoch is chosen.
        let mut chosen = 0;
        for epoch in 1..epochs {
            if paid(epoch) < paid(chosen) {
                chosen = epoch;
            }
        }
        let own = prompts.iter().skip(fold).step_by(folds);
        parts.extend(own.map(|p| (p.left[chosen], p.left[0])));
    }
    let sum = |get: fn(&(f64, f64)) -> f64| parts.iter().map(get).sum::<f64>();
    let (left, all) = (sum(|p| p.0), sum(|p| p.1));
    if all <= 0.0 {
        return (0.0, 0.0);
    }
    let ratio = left / all;
    let squares: f64 = parts.iter().map(|(l, a)| (l - ratio * a).powi(2)).sum();
    let error = (squares * n as f64 / (n - 1) as f64).sqrt() / all;
    (1.0 - ratio, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_judged_by_what_others_choose() {
        let epochs = |left: [f64; 3]| Epochs {
            left: left.into(),
            paid: left.into(),
        };
        // The second epoch is best for all together, and for each half alone another one.
        let prompts = [
            ("a", epochs([10.0, 8.0, 7.0])),
            ("b", epochs([10.0, 8.5, 9.8])),
        ];
        let (explained, error) = explained(&prompts.into());
        // 'a' is judged at b's choice, the second; 'b' at a's, the third.
        assert!(
            (explained - (1.0 - 17.8 / 20.0)).abs() < 1e-12,
            "{explained}"
        );
        // Residuals −0.9 and 0.9.
        assert!(
            (error - (2.0 * 0.81 * 2.0f64).sqrt() / 20.0).abs() < 1e-12,
            "{error}"
        );
        assert_eq!(super::explained(&BTreeMap::new()), (0.0, 0.0));
    }

    /// Six epochs that explain nothing: the best of them looks as if it did.
    #[test]
    fn the_luck_of_choosing_is_not_explained() {
        let mut state = 3u64;
        let mut noise = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64 - 0.5
        };
        let names: Vec<String> = (0..40).map(|i| format!("{i:02}")).collect();
        let (mut best, mut told, mut error, trials) = (0.0, 0.0, 0.0, 50);
        for _ in 0..trials {
            let prompts: BTreeMap<&str, Epochs> = names
                .iter()
                .map(|name| {
                    let mut left = vec![1.0];
                    left.extend((0..6).map(|_| 1.0 + noise()));
                    let paid = left.clone();
                    (name.as_str(), Epochs { left, paid })
                })
                .collect();
            let total = |e: usize| prompts.values().map(|p| p.left[e]).sum::<f64>() / 40.0;
            best += (1.0 - (1..7).map(total).fold(1.0, f64::min)) / f64::from(trials);
            let (explained, se) = explained(&prompts);
            told += explained / f64::from(trials);
            error += se / f64::from(trials);
        }
        assert!(best > 0.045, "{best}");
        assert!(told.abs() < 0.02 && told < 0.5 * best, "{told} {best}");
        assert!((0.02..0.07).contains(&error), "{error}");
    }
}

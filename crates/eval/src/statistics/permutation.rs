//! Tests of paired differences.

use super::RESAMPLES;

/// Clusters up to which every pattern of signs is tried, `2^20` at most.
const EXACT: usize = 20;

/// Draws of signs where there are more clusters: with a million, p can be small enough for every family that one would
/// test (ours).
pub const SIGN_DRAWS: usize = 1_000_000;

/// A p-value that is this large after the first [`RESAMPLES`] draws stays as it is (ours): more draws would not make it
/// small.
const PLAIN: f64 = 0.1;

/// Two-sided p-value that differences are as likely one way as the other: the share of patterns of signs whose
/// sum is at least as far from 0, a cluster's differences turning together. `sums`: those of each cluster.
///
/// Up to 20 clusters that differ at all every pattern is tried, and the p-value is exact. Of more, patterns are drawn:
/// `(1 + hits) / (1 + draws)` (Phipson & Smyth 2010: never 0), from [`SIGN_DRAWS`] draws, or from [`RESAMPLES`] where
/// these give 0.1 or more already. Draw `d` turns those clusters whose bit is set in the words `SplitMix64(d W + w)`, `w`
/// below W, 64 clusters a word.
///
/// ```
/// use mope_eval::statistics::permutation::p_value;
/// assert_eq!(p_value(&[1.0; 5]), 2.0 / 32.0);
/// ```
pub fn p_value(sums: &[f64]) -> f64 {
    // What does not differ is the same whichever way it is turned.
    let sums: Vec<f64> = sums.iter().copied().filter(|s| *s != 0.0).collect();
    let observed = sums.iter().sum::<f64>().abs();
    // What differs by rounding alone is the same.
    let least = observed - 1e-9 * sums.iter().map(|s| s.abs()).sum::<f64>();
    match sums.len() {
        0 => 1.0,
        n if n <= EXACT => exact(&sums, least),
        _ => drawn(&sums, least),
    }
}

/// Signed sums of some clusters under all patterns of their signs: bit i turns cluster i.
fn patterns(sums: &[f64]) -> Vec<f64> {
    let mut all = vec![sums.iter().sum::<f64>()];
    for sum in sums {
        let turned: Vec<f64> = all.iter().map(|v| v - 2.0 * sum).collect();
        all.extend(turned);
    }
    all
}

fn exact(sums: &[f64], least: f64) -> f64 {
    let (low, high) = sums.split_at(sums.len() / 2);
    let (low, high) = (patterns(low), patterns(high));
    let hits = |h: &f64| low.iter().filter(|l| (*l + h).abs() >= least).count();
    let hits: usize = high.iter().map(hits).sum();
    hits as f64 / (low.len() * high.len()) as f64
}

/// The word number `counter` of SplitMix64 (Steele, Lea & Flood 2014) from seed 0.
fn word(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn drawn(sums: &[f64], least: f64) -> f64 {
    // Eight clusters at a time, [bytes][patterns].
    let bytes: Vec<Vec<f64>> = sums.chunks(8).map(patterns).collect();
    let words = sums.len().div_ceil(64);
    let (mut hits, mut draws) = (0, 0);
    for last in [RESAMPLES, SIGN_DRAWS] {
        for draw in draws..last {
            let mut sum = 0.0;
            for (w, bytes) in bytes.chunks(8).enumerate() {
                let bits = word((draw * words + w) as u64).to_le_bytes();
                for (patterns, byte) in bytes.iter().zip(bits) {
                    // The last ones may be fewer than eight.
                    sum += patterns[usize::from(byte) & (patterns.len() - 1)];
                }
            }
            hits += usize::from(sum.abs() >= least);
        }
        draws = last;
        let p = (1 + hits) as f64 / (1 + draws) as f64;
        if p >= PLAIN {
            return p;
        }
    }
    (1 + hits) as f64 / (1 + draws) as f64
}

/// The least p-value that a test of so many clusters can give.
pub fn least_p(clusters: usize) -> f64 {
    match clusters {
        0 => 1.0,
        n if n <= EXACT => 2f64.powf(1.0 - n as f64),
        _ => 1.0 / (1 + SIGN_DRAWS) as f64,
    }
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
        assert_eq!(p_value(&[1.0; 5]), 2.0 / 32.0);
        assert_eq!(p_value(&[1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]), 2.0 / 32.0);
        assert_eq!((p_value(&[0.0; 5]), p_value(&[])), (1.0, 1.0));
        // 1, 2, 4 and 8: sums of 13 or more either way are ±15 and ±13.
        assert_eq!(p_value(&[-1.0, 2.0, 4.0, 8.0]), 4.0 / 16.0);
        assert_eq!(p_value(&[0.25; EXACT]), least_p(EXACT));
    }

    #[test]
    fn many_clusters_can_be_significant_in_a_large_family() {
        // 10,000 draws give 1e-4 at least: of 528 pairs none could pass Holm's correction.
        let p = p_value(&[0.3; 60]);
        assert_eq!(p, least_p(60));
        assert!(holm(&vec![p; 528])[0] < 0.001);
        // 32 differences, 22 one way: twice the tail of a binomial, 0.0501.
        let sums: Vec<f64> = (0..32).map(|i| if i < 22 { 1.0 } else { -1.0 }).collect();
        let p = p_value(&sums);
        assert!((p - 0.050_1).abs() < 0.001, "{p}");
        // 70 clusters need two words; 35 each way are as near as can be.
        let even: Vec<f64> = (0..70)
            .map(|i| if i % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        assert_eq!(p_value(&even), 1.0);
    }

    #[test]
    fn the_words_are_those_of_splitmix() {
        // The first three words of the reference implementation, seed 0.
        let words = [
            0xe220_a839_7b1d_cdaf,
            0x6e78_9e6a_a1b9_65f4,
            0x06c4_5d18_8009_454f,
        ];
        assert_eq!([word(0), word(1), word(2)], words);
    }
}

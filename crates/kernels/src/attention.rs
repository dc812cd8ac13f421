//! One query head over a lane's cached keys and values.
//!
//! Keys lie in blocks of 16 positions, dimension by dimension, so that the scores of a block are one
//! vector: no sum runs across it.

use std::ops::Range;

use crate::isa::Isa;
use crate::math::softmax_inner;

/// Positions whose keys lie interleaved, so that their scores are one vector.
pub const POSITIONS: usize = 16;

/// One attention head over the positions `span`: `out = softmax(query Kᵀ) V`. The query carries the
/// scale. Keys are `[positions / 16][width][16]`, values `[positions, width]`; `scores` has room for
/// all positions, in whole sixteens.
///
/// # Panics
/// When a slice is too short for the span.
pub fn attend(
    isa: Isa,
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    span: Range<usize>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions, or the Isa would not have been made.
        Isa::Avx512 => unsafe { avx512::attend(query, keys, values, span, scores, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2(query, keys, values, span, scores, out) },
        _ => portable(query, keys, values, span, scores, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    span: Range<usize>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    portable(query, keys, values, span, scores, out);
}

#[inline(always)]
fn portable(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    span: Range<usize>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let width = query.len();
    let block = POSITIONS * width;
    for at in span.start / POSITIONS..span.end.div_ceil(POSITIONS) {
        let mut sums = [0f32; POSITIONS];
        let keys = &keys[at * block..(at + 1) * block];
        for (q, keys) in query.iter().zip(keys.chunks_exact(POSITIONS)) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = q.mul_add(*key, *sum);
            }
        }
        scores[at * POSITIONS..(at + 1) * POSITIONS].copy_from_slice(&sums);
    }
    let scores = &mut scores[span.clone()];
    softmax_inner(scores);
    out.fill(0.0);
    for (score, value) in scores
        .iter()
        .zip(values[span.start * width..].chunks_exact(width))
    {
        for (out, v) in out.iter_mut().zip(value) {
            *out = score.mul_add(*v, *out);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::POSITIONS;
    use crate::math::softmax_inner;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
    pub fn attend(
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        span: Range<usize>,
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let width = query.len();
        let block = POSITIONS * width;
        let (mut at, last) = (span.start / POSITIONS, span.end.div_ceil(POSITIONS));
        // Several blocks at once are as many chains of multiply-adds.
        while at < last {
            let (keys, scores) = (&keys[at * block..], &mut scores[at * POSITIONS..]);
            at += match last - at {
                4.. => score::<4>(query, keys, scores),
                2.. => score::<2>(query, keys, scores),
                _ => score::<1>(query, keys, scores),
            };
        }
        let scores = &mut scores[span.clone()];
        softmax_inner(scores);
        let values = &values[span.start * width..span.end * width];
        let out = &mut out[..width];
        let mut at = 0;
        while at < width {
            at += match width - at {
                64.. => weigh::<4>(scores, values, width, at, out),
                16.. => weigh::<1>(scores, values, width, at, out),
                _ => {
                    out[at] = 0.0;
                    for (score, value) in scores.iter().zip(values.chunks_exact(width)) {
                        out[at] = score.mul_add(value[at], out[at]);
                    }
                    1
                }
            };
        }
    }

    /// Scores of `N` blocks of positions; returns `N`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn score<const N: usize>(query: &[f32], keys: &[f32], scores: &mut [f32]) -> usize {
        let block = POSITIONS * query.len();
        let (keys, scores) = (&keys[..N * block], &mut scores[..N * POSITIONS]);
        let mut sums = [_mm512_setzero_ps(); N];
        for (d, q) in query.iter().enumerate() {
            let q = _mm512_set1_ps(*q);
            for (n, sum) in sums.iter_mut().enumerate() {
                // SAFETY: inside of `N` blocks of 16 keys for each dimension.
                let key = unsafe { _mm512_loadu_ps(keys.as_ptr().add(n * block + d * POSITIONS)) };
                *sum = _mm512_fmadd_ps(q, key, *sum);
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            // SAFETY: inside of `N` blocks of 16 scores.
            unsafe { _mm512_storeu_ps(scores.as_mut_ptr().add(n * POSITIONS), sum) };
        }
        N
    }

    /// `N` vectors of the weighted sum of values; returns their width.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn weigh<const N: usize>(
        scores: &[f32],
        values: &[f32],
        width: usize,
        at: usize,
        out: &mut [f32],
    ) -> usize {
        assert!(at + N * 16 <= width && values.len() == scores.len() * width);
        let mut sums = [_mm512_setzero_ps(); N];
        for (t, score) in scores.iter().enumerate() {
            let score = _mm512_set1_ps(*score);
            for (n, sum) in sums.iter_mut().enumerate() {
                // SAFETY: inside of position `t`, checked above.
                let v = unsafe { _mm512_loadu_ps(values.as_ptr().add(t * width + at + n * 16)) };
                *sum = _mm512_fmadd_ps(score, v, *sum);
            }
        }
        let out = &mut out[at..at + N * 16];
        for (n, sum) in sums.into_iter().enumerate() {
            // SAFETY: inside of `out`.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(n * 16), sum) };
        }
        N * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_equals_its_formula() {
        let (width, positions) = (86, 37);
        let number = |i: usize| ((i * 7919 + 13) % 1000) as f32 / 500.0 - 1.0;
        let key = |t: usize, d: usize| number(t * 91 + d);
        let query: Vec<f32> = (0..width).map(|d| number(d) * 0.2).collect();
        let values: Vec<f32> = (0..positions * width).map(|i| number(i + 5)).collect();
        let mut keys = vec![0.0; 48 * width];
        for t in 0..positions {
            for d in 0..width {
                keys[(t / POSITIONS * width + d) * POSITIONS + t % POSITIONS] = key(t, d);
            }
        }
        for span in [0..1, 0..positions, 5..30, 16..17, 20..37] {
            let raw: Vec<f64> = span
                .clone()
                .map(|t| {
                    (0..width)
                        .map(|d| f64::from(query[d] * key(t, d)))
                        .sum::<f64>()
                        .exp()
                })
                .collect();
            let total: f64 = raw.iter().sum();
            let mut outs = Vec::new();
            for isa in Isa::available() {
                let (mut scores, mut out) = ([0.0; 48], vec![0.0; width]);
                attend(
                    isa,
                    &query,
                    &keys,
                    &values,
                    span.clone(),
                    &mut scores,
                    &mut out,
                );
                outs.push(out);
            }
            for d in 0..width {
                let weighed = raw.iter().zip(span.clone());
                let exact: f64 = weighed
                    .map(|(w, t)| w / total * f64::from(values[t * width + d]))
                    .sum();
                assert!((f64::from(outs[0][d]) - exact).abs() < 1e-5);
            }
            assert!(outs.iter().all(|out| *out == outs[0]));
        }
    }
}

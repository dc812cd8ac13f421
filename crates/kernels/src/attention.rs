//! The query heads of a group over a lane's cached keys and values.
//!
//! Keys lie in blocks of 16 positions, dimension by dimension, so that the scores of a block are one
//! vector: no sum runs across it. Heads that share keys and values are worked on together, so that each is
//! loaded once for up to four of them; every score and every output stays one chain of operations.
//!
//! ```
//! use mope_kernels::Isa;
//! use mope_kernels::attention::{Cached, POSITIONS, attend};
//!
//! // One position: its value is the result, whatever the scores.
//! let (keys, values) = ([0.5; 2 * POSITIONS], [3.0, 4.0]);
//! let cached = Cached { keys: &keys[..], values: &values[..], key_scales: &[], value_scales: &[] };
//! let (mut scores, mut out) = ([0.0; POSITIONS], [0.0; 2]);
//! attend(Isa::best(), 2, &[1.0, 2.0], cached, 0..1, &mut scores, &mut out);
//! assert_eq!(out, values);
//! ```

use std::ops::Range;

use crate::element::Element;
use crate::isa::{Isa, Set};
use crate::math::{multiply, soft_cap, softmax};

/// Positions whose keys lie interleaved, so that their scores are one vector.
pub const POSITIONS: usize = 16;

/// Heads that are worked on together.
const HEADS: usize = 4;

/// Keys and values of a head.
#[derive(Debug, Clone, Copy)]
pub struct Cached<'a, E> {
    /// `[positions / 16][width][16]`.
    pub keys: &'a [E],
    /// `[positions, width]`.
    pub values: &'a [E],
    /// What each position's key is a multiple of, `[positions]`; read where [`Element::SCALED`].
    pub key_scales: &'a [f32],
    /// The same of its value.
    pub value_scales: &'a [f32],
}

/// Attention heads over the positions `span`: `out = softmax(query Kᵀ) V` for each head. Queries are
/// `[heads, width]` and carry the scale; `scores` has room for all positions, in whole sixteens, of every
/// head, or of four.
///
/// # Panics
/// When a slice is too short for the span.
pub fn attend<E: Element>(
    isa: Isa,
    width: usize,
    queries: &[f32],
    cached: Cached<'_, E>,
    span: Range<usize>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    attend_capped(isa, width, queries, cached, span, None, scores, out);
}

/// The same with scores `s` that become `cap · tanh(s / cap)` before their softmax.
///
/// # Panics
/// Those of [`attend`].
#[allow(clippy::too_many_arguments, reason = "those of `attend` and the cap")]
pub fn attend_capped<E: Element>(
    isa: Isa,
    width: usize,
    queries: &[f32],
    cached: Cached<'_, E>,
    span: Range<usize>,
    cap: Option<f32>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let Cached { keys, values, .. } = cached;
    let scaled = cached.key_scales.len().min(cached.value_scales.len());
    assert!(
        !E::SCALED || scaled >= span.end,
        "scales of keys and values"
    );
    let room = span.end.next_multiple_of(POSITIONS);
    let heads = queries.len() / width;
    assert!(
        queries.len() == heads * width && out.len() == heads * width,
        "heads of a group"
    );
    assert!(
        keys.len() >= room * width && values.len() >= span.end * width,
        "keys and values"
    );
    assert!(
        scores.len() >= heads.min(HEADS) * room && span.start < span.end,
        "room for scores"
    );
    let mut first = 0;
    while first < heads {
        macro_rules! heads {
            ($n:literal) => {{
                let part = first * width..(first + $n) * width;
                let (queries, out) = (&queries[part.clone()], &mut out[part]);
                group::<$n, E>(isa, width, queries, cached, span.clone(), cap, scores, out);
                $n
            }};
        }
        first += match heads - first {
            HEADS.. => heads!(4),
            3 => heads!(3),
            2 => heads!(2),
            _ => heads!(1),
        };
    }
}

#[allow(clippy::too_many_arguments, reason = "a part of `attend`")]
fn group<const H: usize, E: Element>(
    isa: Isa,
    width: usize,
    queries: &[f32],
    cached: Cached<'_, E>,
    span: Range<usize>,
    cap: Option<f32>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let Cached { keys, values, .. } = cached;
    let room = span.end.next_multiple_of(POSITIONS);
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions, or the Isa would not have been made.
        Set::Avx512 => unsafe {
            avx512::score::<H, E>(width, queries, (keys, values), span.clone(), room, scores)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Set::Avx2 => unsafe {
            avx2::score::<H, E>(width, queries, (keys, values), span.clone(), room, scores)
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Set::Neon => unsafe {
            neon::score::<H, E>(width, queries, keys, span.clone(), room, scores)
        },
        _ => score::<H, E>(width, queries, keys, span.clone(), room, scores),
    }
    for head in 0..H {
        let scores = &mut scores[head * room..][span.clone()];
        if E::SCALED {
            multiply(isa, scores, &cached.key_scales[span.clone()]);
        }
        if let Some(cap) = cap {
            soft_cap(isa, scores, cap);
        }
        softmax(isa, scores);
        if E::SCALED {
            multiply(isa, scores, &cached.value_scales[span.clone()]);
        }
    }
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Set::Avx512 => unsafe { avx512::weigh::<H, E>(width, values, span, room, scores, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Set::Avx2 => unsafe { avx2::weigh::<H, E>(width, values, span, room, scores, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Set::Neon => unsafe { neon::weigh::<H, E>(width, values, span, room, scores, out) },
        _ => weigh::<H, E>(width, values, span, room, scores, out),
    }
}

/// `query Kᵀ` for the blocks of the span, `[H, room]`.
#[inline(always)]
fn score<const H: usize, E: Element>(
    width: usize,
    queries: &[f32],
    keys: &[E],
    span: Range<usize>,
    room: usize,
    scores: &mut [f32],
) {
    let block = POSITIONS * width;
    for at in span.start / POSITIONS..span.end.div_ceil(POSITIONS) {
        let keys = &keys[at * block..(at + 1) * block];
        for head in 0..H {
            let mut sums = [0f32; POSITIONS];
            let query = &queries[head * width..(head + 1) * width];
            for (q, keys) in query.iter().zip(keys.chunks_exact(POSITIONS)) {
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = q.mul_add(key.get(), *sum);
                }
            }
            let start = head * room + at * POSITIONS;
            scores[start..start + POSITIONS].copy_from_slice(&sums);
        }
    }
}

/// The weighted sums of values, `[H, width]`.
#[inline(always)]
fn weigh<const H: usize, E: Element>(
    width: usize,
    values: &[E],
    span: Range<usize>,
    room: usize,
    scores: &[f32],
    out: &mut [f32],
) {
    for head in 0..H {
        let out = &mut out[head * width..(head + 1) * width];
        out.fill(0.0);
        let scores = &scores[head * room..][span.clone()];
        let values = values[span.start * width..].chunks_exact(width);
        for (score, value) in scores.iter().zip(values) {
            for (out, v) in out.iter_mut().zip(value) {
                *out = score.mul_add(v.get(), *out);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;

    #[target_feature(enable = "avx2,fma")]
    pub fn score<const H: usize, E: Element>(
        width: usize,
        queries: &[f32],
        (keys, _): (&[E], &[E]),
        span: Range<usize>,
        room: usize,
        scores: &mut [f32],
    ) {
        super::score::<H, E>(width, queries, keys, span, room, scores);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn weigh<const H: usize, E: Element>(
        width: usize,
        values: &[E],
        span: Range<usize>,
        room: usize,
        scores: &[f32],
        out: &mut [f32],
    ) {
        super::weigh::<H, E>(width, values, span, room, scores, out);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx512f,avx2,fma")]
    pub fn score<const H: usize, E: Element>(
        width: usize,
        queries: &[f32],
        (keys, values): (&[E], &[E]),
        span: Range<usize>,
        room: usize,
        scores: &mut [f32],
    ) {
        let (mut at, last) = (span.start / POSITIONS, span.end.div_ceil(POSITIONS));
        // Several blocks at once are as many chains of multiply-adds.
        while at < last {
            at += match last - at {
                4.. => {
                    blocks::<H, 4, E>(width, queries, (keys, values), (at, span.end), room, scores)
                }
                2.. => {
                    blocks::<H, 2, E>(width, queries, (keys, values), (at, span.end), room, scores)
                }
                _ => {
                    blocks::<H, 1, E>(width, queries, (keys, values), (at, span.end), room, scores)
                }
            };
        }
    }

    /// Scores of `N` blocks of positions from `at` on; returns `N`.
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn blocks<const H: usize, const N: usize, E: Element>(
        width: usize,
        queries: &[f32],
        (keys, values): (&[E], &[E]),
        (at, end): (usize, usize),
        room: usize,
        scores: &mut [f32],
    ) -> usize {
        let block = POSITIONS * width;
        let keys = &keys[at * block..(at + N) * block];
        assert!(queries.len() == H * width && scores.len() >= H * room);
        assert!((at + N) * POSITIONS <= room, "room for scores");
        let (line, more) = (64 / size_of::<E>(), (at + N) * POSITIONS < end);
        let mut sums = [[_mm512_setzero_ps(); N]; H];
        for d in 0..width {
            // The next blocks' keys, and these blocks' values.
            for n in 0..N * POSITIONS / line {
                let next = keys
                    .as_ptr()
                    .wrapping_add(N * block + d * N * POSITIONS + n * line);
                if more {
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                }
                let value = values
                    .as_ptr()
                    .wrapping_add(at * block + d * N * POSITIONS + n * line);
                _mm_prefetch::<_MM_HINT_T0>(value.cast());
            }
            // SAFETY: inside of `N` blocks of 16 keys for each dimension.
            let keys: [__m512; N] = std::array::from_fn(|n| unsafe {
                E::load(keys.as_ptr().add(n * block + d * POSITIONS))
            });
            for (head, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a dimension of one of `H` queries.
                let q = _mm512_set1_ps(unsafe { *queries.as_ptr().add(head * width + d) });
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = _mm512_fmadd_ps(q, key, *sum);
                }
            }
        }
        for (head, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                let to = head * room + (at + n) * POSITIONS;
                // SAFETY: inside of the head's room, as asserted.
                unsafe { _mm512_storeu_ps(scores.as_mut_ptr().add(to), sum) };
            }
        }
        N
    }

    #[target_feature(enable = "avx512f,avx2,fma")]
    pub fn weigh<const H: usize, E: Element>(
        width: usize,
        values: &[E],
        span: Range<usize>,
        room: usize,
        scores: &[f32],
        out: &mut [f32],
    ) {
        let mut at = 0;
        while at < width {
            let span = span.clone();
            at += match width - at {
                64.. => columns::<H, 4, E>(width, values, at, span, room, scores, out),
                16.. => columns::<H, 1, E>(width, values, at, span, room, scores, out),
                _ => {
                    for head in 0..H {
                        let mut sum = 0.0;
                        for t in span.clone() {
                            sum =
                                scores[head * room + t].mul_add(values[t * width + at].get(), sum);
                        }
                        out[head * width + at] = sum;
                    }
                    1
                }
            };
        }
    }

    /// `N` vectors of the weighted sums from column `at` on; returns their width.
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn columns<const H: usize, const N: usize, E: Element>(
        width: usize,
        values: &[E],
        at: usize,
        span: Range<usize>,
        room: usize,
        scores: &[f32],
        out: &mut [f32],
    ) -> usize {
        assert!(at + N * 16 <= width && values.len() >= span.end * width);
        assert!(span.end <= room && scores.len() >= H * room && out.len() == H * width);
        let mut sums = [[_mm512_setzero_ps(); N]; H];
        for t in span {
            // SAFETY: inside of position `t`, as asserted.
            let values: [__m512; N] = std::array::from_fn(|n| unsafe {
                E::load(values.as_ptr().add(t * width + at + n * 16))
            });
            for (head, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a position of one of `H` heads, as asserted.
                let score = _mm512_set1_ps(unsafe { *scores.as_ptr().add(head * room + t) });
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = _mm512_fmadd_ps(score, value, *sum);
                }
            }
        }
        for (head, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                // SAFETY: inside of the head's part of `out`, as asserted.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(head * width + at + n * 16), sum) };
            }
        }
        N * 16
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::element::store;

    #[target_feature(enable = "neon")]
    pub fn score<const H: usize, E: Element>(
        width: usize,
        queries: &[f32],
        keys: &[E],
        span: Range<usize>,
        room: usize,
        scores: &mut [f32],
    ) {
        let (block, end) = (POSITIONS * width, span.end.div_ceil(POSITIONS));
        assert!(queries.len() == H * width && keys.len() >= end * block);
        for at in span.start / POSITIONS..end {
            let mut sums = [[vdupq_n_f32(0.0); 4]; H];
            for d in 0..width {
                // SAFETY: 16 keys of a block that is there, as asserted.
                let keys = unsafe { E::load(keys.as_ptr().add(at * block + d * POSITIONS)) };
                for (head, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: a dimension of one of `H` queries.
                    let q = unsafe { *queries.as_ptr().add(head * width + d) };
                    for (sum, key) in sums.iter_mut().zip(keys) {
                        *sum = vfmaq_n_f32(*sum, key, q);
                    }
                }
            }
            for (head, sums) in sums.into_iter().enumerate() {
                store(
                    sums,
                    &mut scores[head * room + at * POSITIONS..][..POSITIONS],
                );
            }
        }
    }

    #[target_feature(enable = "neon")]
    pub fn weigh<const H: usize, E: Element>(
        width: usize,
        values: &[E],
        span: Range<usize>,
        room: usize,
        scores: &[f32],
        out: &mut [f32],
    ) {
        assert!(values.len() >= span.end * width && out.len() == H * width);
        assert!(span.end <= room && scores.len() >= H * room);
        let full = width - width % 16;
        for at in (0..full).step_by(16) {
            let mut sums = [[vdupq_n_f32(0.0); 4]; H];
            for t in span.clone() {
                // SAFETY: inside of position `t`, as asserted.
                let values = unsafe { E::load(values.as_ptr().add(t * width + at)) };
                for (head, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: a position of one of `H` heads, as asserted.
                    let score = unsafe { *scores.as_ptr().add(head * room + t) };
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = vfmaq_n_f32(*sum, value, score);
                    }
                }
            }
            for (head, sums) in sums.into_iter().enumerate() {
                store(sums, &mut out[head * width + at..][..16]);
            }
        }
        for at in full..width {
            for head in 0..H {
                let scores = &scores[head * room..];
                out[head * width + at] = span.clone().fold(0.0, |sum, t| {
                    scores[t].mul_add(values[t * width + at].get(), sum)
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn plain<'a, E>(keys: &'a [E], values: &'a [E]) -> Cached<'a, E> {
        Cached {
            keys,
            values,
            key_scales: &[],
            value_scales: &[],
        }
    }

    #[test]
    fn bytes_are_what_they_stand_for() {
        let (width, room, heads) = (64, 48, 3);
        let byte = |i: usize| ((i * 7919 + 13) % 255) as u8 as i8;
        let keys: Vec<i8> = (0..room * width).map(byte).collect();
        let values: Vec<i8> = (0..room * width).map(|i| byte(i + 5)).collect();
        let scale = |i: usize| 0.5 + (i % 7) as f32 * 0.125;
        let key_scales: Vec<f32> = (0..room).map(|t| scale(t) / 16.0).collect();
        let value_scales: Vec<f32> = (0..room).map(|t| scale(t + 3)).collect();
        let queries: Vec<f32> = (0..heads * width)
            .map(|i| f32::from(byte(i + 9)) / 900.0)
            .collect();
        let wide = |t: usize, v: i8, scales: &[f32]| f32::from(v) * scales[t];
        let position = |i: usize| i / (POSITIONS * width) * POSITIONS + i % POSITIONS;
        let float_keys: Vec<f32> = (0..room * width)
            .map(|i| wide(position(i), keys[i], &key_scales))
            .collect();
        let float_values: Vec<f32> = (0..room * width)
            .map(|i| wide(i / width, values[i], &value_scales))
            .collect();
        let (mut scores, mut expected) = (vec![0.0; 4 * room], vec![0.0; heads * width]);
        let floats = plain(&float_keys, &float_values);
        attend(
            Isa::best(),
            width,
            &queries,
            floats,
            2..45,
            &mut scores,
            &mut expected,
        );
        let mut outs = Vec::new();
        for isa in Isa::available() {
            let cached = Cached {
                keys: &keys[..],
                values: &values[..],
                key_scales: &key_scales,
                value_scales: &value_scales,
            };
            let mut out = vec![0.0; heads * width];
            attend(isa, width, &queries, cached, 2..45, &mut scores, &mut out);
            for (a, b) in out.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "{a} {b}");
            }
            outs.push(out);
        }
        assert!(outs.iter().all(|out| *out == outs[0]));
    }

    #[test]
    fn attention_equals_its_formula() {
        let (width, positions, room) = (86, 37, 48);
        let number = |i: usize| ((i * 7919 + 13) % 1000) as f32 / 500.0 - 1.0;
        // 16 bits hold keys and values.
        let half = |i: usize| f16::from_f32(number(i)).to_f32();
        let key = |t: usize, d: usize| half(t * 91 + d);
        let values: Vec<f32> = (0..positions * width).map(|i| half(i + 5)).collect();
        let mut keys = vec![0.0; room * width];
        for t in 0..positions {
            for d in 0..width {
                keys[(t / POSITIONS * width + d) * POSITIONS + t % POSITIONS] = key(t, d);
            }
        }
        let short = |v: &[f32]| v.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>();
        let (short_keys, short_values) = (short(&keys), short(&values));
        for (heads, span) in [
            (1, 0..1),
            (2, 0..positions),
            (3, 5..30),
            (4, 16..17),
            (7, 20..37),
        ] {
            let queries: Vec<f32> = (0..heads * width).map(|d| number(d) * 0.2).collect();
            let mut outs = Vec::new();
            for isa in Isa::available() {
                let (mut scores, mut out) = (vec![0.0; 4 * room], vec![0.0; heads * width]);
                let cached = plain(&keys, &values);
                attend(
                    isa,
                    width,
                    &queries,
                    cached,
                    span.clone(),
                    &mut scores,
                    &mut out,
                );
                outs.push(out.clone());
                let cached = plain(&short_keys, &short_values);
                attend(
                    isa,
                    width,
                    &queries,
                    cached,
                    span.clone(),
                    &mut scores,
                    &mut out,
                );
                outs.push(out);
            }
            for head in 0..heads {
                let query = &queries[head * width..(head + 1) * width];
                let score = |t: usize| {
                    (0..width)
                        .map(|d| f64::from(query[d] * key(t, d)))
                        .sum::<f64>()
                        .exp()
                };
                let raw: Vec<f64> = span.clone().map(score).collect();
                let total: f64 = raw.iter().sum();
                for d in 0..width {
                    let weighed = raw.iter().zip(span.clone());
                    let exact: f64 = weighed
                        .map(|(w, t)| w / total * f64::from(values[t * width + d]))
                        .sum();
                    assert!((f64::from(outs[0][head * width + d]) - exact).abs() < 1e-5);
                }
                // Alone it is the same.
                let (mut scores, mut out) = (vec![0.0; room], vec![0.0; width]);
                let cached = plain(&keys, &values);
                attend(
                    Isa::best(),
                    width,
                    query,
                    cached,
                    span.clone(),
                    &mut scores,
                    &mut out,
                );
                assert_eq!(out, outs[0][head * width..(head + 1) * width]);
            }
            assert!(outs.iter().all(|out| *out == outs[0]));
        }
    }
}

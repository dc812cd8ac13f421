//! Vector functions: the same operations in the same order on every instruction set, so the results
//! are the same bits. Sums run in columns that are added at the end. Integers wrap explicitly: a check for
//! overflow in a loop keeps the compiler from vectorising it.
//!
//! ```
//! use mope_kernels::{Isa, math};
//!
//! let mut row = [0.0, 0.0];
//! math::log_softmax(Isa::best(), &mut row);
//! assert!(row.iter().all(|v| (v + std::f32::consts::LN_2).abs() < 1e-6));
//! ```

use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Set;

const WIDTH: usize = 16;

/// Compiles a function for each instruction set and calls the right one.
macro_rules! dispatch {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? = $inner:ident) => {
        $(#[$doc])*
        $visible fn $name(isa: Isa, $($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $out)? {
                $inner($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                $inner($($arg),*)
            }
            match isa.set() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the processor has these instructions, or the Isa would not have been made.
                Set::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Set::Avx2 => unsafe { avx2($($arg),*) },
                _ => $inner($($arg),*),
            }
        }
    };
}

/// 1.5 · 2²³: adding it to a number below 2²² rounds it to the nearest integer, ties to even.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// `eˣ` to about 1 unit in the last place (Cephes' polynomial); 0 below −87.3, at most `e^88`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let inside = if x > 88.0 { 88.0 } else { x };
    let inside = if inside < -87.3 { -87.3 } else { inside };
    // In `t` the lowest bits of the mantissa are the nearest integer.
    let t = inside.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-0.693_359_4, inside);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_65,
        0.5,
    ] {
        p = p.mul_add(r, c);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    let power = f32::from_bits(t.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { p * power }
}

/// `ln x` for positive normal `x` to about 1 unit in the last place (Cephes); −∞ for 0, NaN and ∞ stay as they are.
#[inline(always)]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let mut e = ((bits >> 23) as i32).wrapping_sub(126);
    let mut m = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    let small = m < std::f32::consts::FRAC_1_SQRT_2;
    e = e.wrapping_sub(i32::from(small));
    m = if small { m + m - 1.0 } else { m - 1.0 };
    let mut p = 7.037_683_6e-2f32;
    for c in [
        -0.115_146_1,
        0.116_769_984,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_57,
        0.200_007_14,
        -0.249_999_94,
        0.333_333_3,
    ] {
        p = p.mul_add(m, c);
    }
    let z = m * m;
    let e = e as f32;
    let y = e.mul_add(-2.121_944_4e-4, m * z * p);
    let y = z.mul_add(-0.5, y);
    let out = e.mul_add(0.693_359_4, m + y);
    let out = if x <= f32::MAX { out } else { x };
    if x < f32::MIN_POSITIVE {
        f32::NEG_INFINITY
    } else {
        out
    }
}

#[inline(always)]
fn max_of(values: &[f32]) -> f32 {
    let mut columns = [f32::NEG_INFINITY; DOT];
    let parts = values.chunks_exact(DOT);
    let rest = parts.remainder();
    for part in parts {
        for (m, v) in columns.iter_mut().zip(part) {
            *m = if *v > *m { *v } else { *m };
        }
    }
    let larger = |m: f32, v: &f32| if *v > m { *v } else { m };
    rest.iter()
        .fold(columns.iter().fold(f32::NEG_INFINITY, larger), larger)
}

/// [`max_of`], but what is NaN stays.
#[inline(always)]
fn peak_inner(values: &[f32]) -> f32 {
    let larger = |m: f32, v: f32| if v > m || v.is_nan() { v } else { m };
    let mut columns = [f32::NEG_INFINITY; DOT];
    let parts = values.chunks_exact(DOT);
    let rest = parts.remainder();
    for part in parts {
        for (m, v) in columns.iter_mut().zip(part) {
            *m = larger(*m, *v);
        }
    }
    let all = columns.iter().chain(rest).copied();
    all.fold(f32::NEG_INFINITY, larger)
}

/// No NaN and no infinity, by the bits of absolute values, which are ordered as these are.
#[inline(always)]
fn all_finite_inner(values: &[f32]) -> bool {
    let bits = values.iter().map(|v| v.abs().to_bits());
    bits.fold(0, u32::max) <= f32::MAX.to_bits()
}

/// Sum of `f` over the values, in 16 columns of at most 1,024 terms and then in double precision.
#[inline(always)]
fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0.0;
    for piece in values.chunks(WIDTH * 1024) {
        let mut columns = [0f32; WIDTH];
        let parts = piece.chunks_exact(WIDTH);
        for (c, v) in columns.iter_mut().zip(parts.remainder()) {
            *c += f(*v);
        }
        for part in parts {
            for (c, v) in columns.iter_mut().zip(part) {
                *c += f(*v);
            }
        }
        total += columns.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    total
}

#[inline(always)]
fn log_softmax_inner(row: &mut [f32]) -> f32 {
    let max = max_of(row);
    let total = sum_of(row, |v| exp(v - max)).ln() as f32;
    let shift = max + total;
    // Beside numbers of a size that nothing can be added to, the sum is lost, and the row would not be normalised.
    let kept = (shift - max - total).abs() <= 0.1;
    let shift = if kept { shift } else { f32::NAN };
    row.iter_mut().for_each(|v| *v -= shift);
    shift
}

#[inline(always)]
fn softmax_inner(row: &mut [f32]) {
    let max = max_of(row);
    row.iter_mut().for_each(|v| *v = exp(*v - max));
    let inverse = (1.0 / sum_of(row, |v| v)) as f32;
    row.iter_mut().for_each(|v| *v *= inverse);
}

#[inline(always)]
fn rms_norm_inner(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = sum_of(x, |v| v * v) / x.len() as f64;
    let inverse = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * w;
    }
}

#[inline(always)]
fn swiglu_inner(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
        *out = g / (1.0 + exp(-*g)) * u;
    }
}

/// To about 1e-7; ±1 at infinity, NaN stays.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[inline(always)]
fn geglu_inner(gate: &[f32], up: &[f32], out: &mut [f32]) {
    /// `√(2 / π)`.
    const ROOT: f32 = 0.797_884_6;
    for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
        let inner = ROOT * (g + 0.044_715 * g * g * g);
        *out = 0.5 * g * (1.0 + tanh(inner)) * u;
    }
}

#[inline(always)]
fn soft_cap_inner(row: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    row.iter_mut().for_each(|v| *v = cap * tanh(*v * inverse));
}

#[inline(always)]
fn multiply_inner(row: &mut [f32], by: &[f32]) {
    row.iter_mut().zip(by).for_each(|(v, b)| *v *= b);
}

/// The nearest multiples of `max |x| / 127`, and that scale; it is NaN or infinite where one of the numbers is.
#[inline(always)]
fn round_to_bytes_inner(x: &[f32], out: &mut [i8]) -> f32 {
    // Bits of absolute values are ordered as these are, infinity and then NaN behind all numbers.
    let mut columns = [0u32; WIDTH];
    for part in x.chunks(WIDTH) {
        for (m, v) in columns.iter_mut().zip(part) {
            let bits = v.abs().to_bits();
            *m = if bits > *m { bits } else { *m };
        }
    }
    let larger = |m: u32, v: &u32| if *v > m { *v } else { m };
    let largest = f32::from_bits(columns.iter().fold(0, larger));
    let inverse = 127.0 / largest;
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    for (out, v) in out.iter_mut().zip(x) {
        let rounded = (v * inverse + ROUND)
            .to_bits()
            .wrapping_sub(ROUND.to_bits());
        *out = rounded as i8;
    }
    largest / 127.0
}

/// `(a, b) ← scale · (a cos − b sin, b cos + a sin)` for the two halves of `head`.
#[inline(always)]
fn rotate_inner(head: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (a, b) = (*low, *high);
        *low = (a * cos - b * sin) * scale;
        *high = (b * cos + a * sin) * scale;
    }
}

#[inline(always)]
fn exp_add_inner(out: &mut [f32], weight: f32, row: &[f32]) {
    for (out, v) in out.iter_mut().zip(row) {
        *out = weight.mul_add(exp(*v), *out);
    }
}

/// `ln(1 + e)` for `e` in 0..=1, exact for small ones: `2 artanh(e / (2 + e))` by its series.
#[inline(always)]
fn ln_1p(e: f32) -> f32 {
    let s = e / (2.0 + e);
    let square = s * s;
    let mut p = 1.0 / 13.0f32;
    for c in [1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0] {
        p = p.mul_add(square, c);
    }
    2.0 * s * p
}

/// `ln(eᵘ − 1) = u + ln(1 − e⁻ᵘ)` for `u > 0`, the difference by its series where it is small.
#[inline(always)]
fn ln_exp_m1(u: f32) -> f32 {
    let mut p = -1.0 / 40_320.0f32;
    for c in [
        1.0 / 5_040.0,
        -1.0 / 720.0,
        1.0 / 120.0,
        -1.0 / 24.0,
        1.0 / 6.0,
        -0.5,
        1.0,
    ] {
        p = p.mul_add(u, c);
    }
    let large = 1.0 - exp(-u);
    u + ln(if u < 0.5 { p * u } else { large })
}

#[inline(always)]
fn softplus_add_inner(out: &mut [f32], weight: f32, shift: f32, a: &[f32], b: &[f32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        let x = shift + a - b;
        // Below this the exponential vanishes.
        let x = if x < -80.0 { -80.0 } else { x };
        let positive = if x > 0.0 { x } else { 0.0 };
        let size = if x > 0.0 { x } else { -x };
        *out = weight.mul_add(positive + ln_1p(exp(-size)), *out);
    }
}

#[inline(always)]
fn ln_exp_m1_inner(row: &mut [f32]) {
    row.iter_mut().for_each(|v| *v = ln_exp_m1(*v));
}

#[inline(always)]
fn exp_inner(row: &mut [f32]) {
    row.iter_mut().for_each(|v| *v = exp(*v));
}

#[inline(always)]
fn sum_inner(row: &[f32]) -> f64 {
    sum_of(row, |v| v)
}

/// `Σ e^p (p − q)`; what has no mass adds nothing.
#[inline(always)]
fn kl_inner(p: &[f32], q: &[f32]) -> f64 {
    let mut total = 0.0;
    for (p, q) in p.chunks(WIDTH * 64).zip(q.chunks(WIDTH * 64)) {
        let mut columns = [0f32; WIDTH];
        for (p, q) in p.chunks(WIDTH).zip(q.chunks(WIDTH)) {
            for ((c, p), q) in columns.iter_mut().zip(p).zip(q) {
                let mass = exp(*p);
                *c += if mass == 0.0 { 0.0 } else { mass * (p - q) };
            }
        }
        total += columns.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    total
}

/// `−Σ eˡ l`; what has no mass adds nothing.
#[inline(always)]
fn entropy_inner(logs: &[f32]) -> f64 {
    -sum_of(logs, |l| {
        let mass = exp(l);
        if mass == 0.0 { 0.0 } else { mass * l }
    })
}

/// `−Σ p ln p`; what is too small for a logarithm adds nothing.
#[inline(always)]
fn entropy_of_probabilities_inner(row: &[f32]) -> f64 {
    -sum_of(row, |p| {
        let term = p * ln(p);
        if p < f32::MIN_POSITIVE { 0.0 } else { term }
    })
}

#[inline(always)]
fn ln_inner(row: &mut [f32]) {
    row.iter_mut().for_each(|v| *v = ln(*v));
}

#[inline(always)]
fn axpy_inner(out: &mut [f32], weight: f32, row: &[f32]) {
    for (out, v) in out.iter_mut().zip(row) {
        *out = weight.mul_add(*v, *out);
    }
}

/// Columns of a dot product: enough chains to hide the latency of a multiply-add.
const DOT: usize = 4 * WIDTH;

#[inline(always)]
fn dot_inner(a: &[f32], b: &[f32]) -> f32 {
    let mut columns = [0f32; DOT];
    let (a_parts, b_parts) = (a.chunks_exact(DOT), b.chunks_exact(DOT));
    let rest = a_parts.remainder().iter().zip(b_parts.remainder());
    for (c, (a, b)) in columns.iter_mut().zip(rest) {
        *c = a.mul_add(*b, *c);
    }
    for (a, b) in a_parts.zip(b_parts) {
        for ((c, a), b) in columns.iter_mut().zip(a).zip(b) {
            *c = a.mul_add(*b, *c);
        }
    }
    let mut width = DOT;
    while width > 1 {
        width /= 2;
        let (low, high) = columns.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(l, h)| *l += *h);
    }
    columns[0]
}

/// Rounds to 16 bits, ties to even; not-a-numbers stay so.
#[inline(always)]
fn to_bf16_inner(x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        let bits = x.to_bits();
        let odd = bits >> 16 & 1;
        let rounded = bits.wrapping_add(0x7fff).wrapping_add(odd) >> 16;
        let quiet = bits >> 16 | 0x40;
        *out = if x.is_nan() { quiet } else { rounded } as u16;
    }
}

#[inline(always)]
fn rms_norm_backward_inner(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let n = x.len() as f64;
    let mean = sum_of(x, |v| v * v) / n;
    let inverse = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
    let mut columns = [0f32; WIDTH];
    for ((x, w), dy) in x
        .chunks(WIDTH)
        .zip(weight.chunks(WIDTH))
        .zip(dy.chunks(WIDTH))
    {
        for (((c, x), w), dy) in columns.iter_mut().zip(x).zip(w).zip(dy) {
            *c += x * w * dy;
        }
    }
    let along = columns.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let along = (along as f32) * inverse * inverse * inverse;
    for (((dx, x), w), dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
        *dx += inverse * w * dy - along * x;
    }
}

#[inline(always)]
fn swiglu_backward_inner(gate: &mut [f32], up: &mut [f32], d: &[f32]) {
    for ((gate, up), d) in gate.iter_mut().zip(up).zip(d) {
        let sigma = 1.0 / (1.0 + exp(-*gate));
        let silu = *gate * sigma;
        let d_gate = d * *up * (sigma + silu * (1.0 - sigma));
        (*gate, *up) = (d_gate, d * silu);
    }
}

dispatch! {
    /// The 16-bit floats nearest to `x`.
    pub fn to_bf16(x: &[f32], out: &mut [u16]) = to_bf16_inner
}
dispatch! {
    /// `dx ← dx + ∂ rms_norm(x)ᵀ dy`.
    pub fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) = rms_norm_backward_inner
}
dispatch! {
    /// `(gate, up) ← ∂ swiglu(gate, up)ᵀ d`.
    pub fn swiglu_backward(gate: &mut [f32], up: &mut [f32], d: &[f32]) = swiglu_backward_inner
}
dispatch! {
    /// `row ← row − ln Σ e^row`; returns that normaliser. It is NaN, and with it the whole row, where a number is
    /// NaN or +∞, all are −∞, or the sum is lost in the rounding of very large numbers.
    pub fn log_softmax(row: &mut [f32]) -> f32 = log_softmax_inner
}
dispatch! {
    /// `row ← e^row / Σ e^row`.
    pub fn softmax(row: &mut [f32]) = softmax_inner
}
dispatch! {
    /// `out = x / √(mean x² + eps) · weight`.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_inner
}
dispatch! {
    /// `out = gate · σ(gate) · up`.
    pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_inner
}
dispatch! {
    /// `out = gelu(gate) · up`, with `gelu(x) = x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`
    /// ([arXiv 1606.08415](https://arxiv.org/abs/1606.08415), its approximation).
    pub fn geglu(gate: &[f32], up: &[f32], out: &mut [f32]) = geglu_inner
}
dispatch! {
    /// `row ← cap · tanh(row / cap)`, number by number (Gemma 2, [arXiv 2408.00118](https://arxiv.org/abs/2408.00118)).
    pub fn soft_cap(row: &mut [f32], cap: f32) = soft_cap_inner
}
dispatch! {
    /// `row ← row · by`, number by number.
    pub fn multiply(row: &mut [f32], by: &[f32]) = multiply_inner
}
dispatch! {
    /// Bytes that stand for `x` as multiples of `max |x| / 127`, and that scale; 0 for zeros, NaN or infinite where one
    /// of the numbers is.
    pub(crate) fn round_to_bytes(x: &[f32], out: &mut [i8]) -> f32 = round_to_bytes_inner
}
dispatch! {
    /// Rotary positions ([arXiv 2104.09864](https://arxiv.org/abs/2104.09864)) in the half-split layout:
    /// `(a, b) ← scale · (a cos − b sin, b cos + a sin)` for the two halves of `head`.
    pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) = rotate_inner
}
dispatch! {
    /// `out ← out + weight · e^row`.
    pub fn exp_add(out: &mut [f32], weight: f32, row: &[f32]) = exp_add_inner
}
dispatch! {
    /// `row ← e^row`.
    pub fn exp_all(row: &mut [f32]) = exp_inner
}
dispatch! {
    /// `out ← out + weight · ln(1 + e^(shift + a − b))`, differences below −80 taken for −80.
    pub fn softplus_add(out: &mut [f32], weight: f32, shift: f32, a: &[f32], b: &[f32]) = softplus_add_inner
}
dispatch! {
    /// `row ← ln(e^row − 1)` for positive numbers.
    pub fn ln_exp_m1_all(row: &mut [f32]) = ln_exp_m1_inner
}
dispatch! {
    /// The largest number; −∞ of none.
    pub fn largest(row: &[f32]) -> f32 = max_of
}
dispatch! {
    /// The largest number, −∞ of none; NaN where one of them is NaN.
    pub fn peak(row: &[f32]) -> f32 = peak_inner
}
dispatch! {
    /// None of the numbers is NaN or infinite.
    pub fn all_finite(row: &[f32]) -> bool = all_finite_inner
}
dispatch! {
    /// `Σ row`.
    pub fn sum(row: &[f32]) -> f64 = sum_inner
}
dispatch! {
    /// Kullback-Leibler divergence `Σ e^p (p − q)` of two distributions given as log-probabilities, in
    /// nats; infinite where `q` rules out what `p` allows.
    pub fn kl(p: &[f32], q: &[f32]) -> f64 = kl_inner
}
dispatch! {
    /// Entropy of a distribution given as log-probabilities, in nats.
    pub fn entropy(logs: &[f32]) -> f64 = entropy_inner
}
dispatch! {
    /// Entropy of a distribution given as probabilities, in nats.
    pub fn entropy_of_probabilities(row: &[f32]) -> f64 = entropy_of_probabilities_inner
}
dispatch! {
    /// `row ← ln row`.
    pub fn ln_all(row: &mut [f32]) = ln_inner
}
dispatch! {
    /// `out ← out + weight · row`.
    pub fn axpy(out: &mut [f32], weight: f32, row: &[f32]) = axpy_inner
}
dispatch! {
    /// `Σ a b`.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = dot_inner
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn relative(got: f32, exact: f64) -> f64 {
        (f64::from(got) - exact).abs() / exact.abs().max(1e-30)
    }

    #[test]
    fn exp_and_ln_are_accurate_over_their_range() {
        for i in -870..880 {
            let x = i as f32 * 0.1 + 0.03;
            if x < 87.9 {
                assert!(relative(exp(x), f64::from(x).exp()) < 2e-7, "{x}");
            }
            let y = f64::from(x).exp() as f32;
            if y.is_normal() && x.abs() > 0.1 {
                assert!(relative(ln(y), f64::from(y).ln()) < 2e-7, "{y}");
            }
        }
        assert_eq!(
            (exp(0.0), exp(-200.0), exp(f32::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
        assert_eq!((ln(1.0), ln(0.0)), (0.0, f32::NEG_INFINITY));
        assert!(ln(f32::NAN).is_nan() && exp(f32::NAN).is_nan());
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert!(relative(ln(f32::MAX), f64::from(f32::MAX).ln()) < 2e-7);
    }

    #[test]
    fn a_row_without_a_normaliser_is_nan_from_end_to_end() {
        for n in [1, 5, 64, 200] {
            for at in [0, n / 2, n - 1] {
                for wrong in [f32::NAN, f32::INFINITY] {
                    let mut row = vec![0.5; n];
                    row[at] = wrong;
                    for isa in Isa::available() {
                        let mut row = row.clone();
                        assert!(log_softmax(isa, &mut row).is_nan());
                        assert!(row.iter().all(|v| v.is_nan()));
                    }
                }
            }
            let mut row = vec![f32::NEG_INFINITY; n];
            assert!(log_softmax(Isa::best(), &mut row).is_nan());
            // Equals of a size that their number is lost beside, and one alone of that size.
            row.fill(1e30);
            assert_eq!(log_softmax(Isa::best(), &mut row).is_nan(), n > 1);
            row.fill(-1e30);
            row[0] = 1e30;
            assert_eq!(log_softmax(Isa::best(), &mut row), 1e30);
            row.fill(f32::NEG_INFINITY);
            row[n - 1] = 2.0;
            assert_eq!(log_softmax(Isa::best(), &mut row), 2.0);
        }
    }

    #[test]
    fn gelu_and_caps_are_accurate() {
        for i in -400..400 {
            let x = i as f32 * 0.05;
            let (mut gelu, mut capped) = ([0.0], [x]);
            geglu(Isa::best(), &[x], &[2.0], &mut gelu);
            soft_cap(Isa::best(), &mut capped, 3.0);
            let x = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let exact = x * (1.0 + inner.tanh());
            assert!(
                (f64::from(gelu[0]) - exact).abs() < 2e-6 * x.abs().max(1.0),
                "{x}"
            );
            assert!(
                (f64::from(capped[0]) - 3.0 * (x / 3.0).tanh()).abs() < 1e-6,
                "{x}"
            );
        }
        let mut row = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        soft_cap(Isa::best(), &mut row, 3.0);
        assert_eq!(row[..2], [3.0, -3.0]);
        assert!(row[2].is_nan());
    }

    #[test]
    fn softplus_and_its_inverse_are_accurate_over_their_range() {
        for i in -790..880 {
            let x = i as f32 * 0.1 + 0.03;
            let mut row = [0.0];
            softplus_add(Isa::best(), &mut row, 1.0, x, &[0.5], &[0.5]);
            let exact = f64::from(x).max(0.0) + (-f64::from(x).abs()).exp().ln_1p();
            assert!(relative(row[0], exact) < 1e-6, "{x}");
            ln_exp_m1_all(Isa::best(), &mut row);
            // It is the inverse: ln(e^softplus(x) − 1) = x.
            assert!(
                (row[0] - x).abs() < 1e-6 * x.abs().max(1.0),
                "{x}: {}",
                row[0]
            );
        }
    }

    #[test]
    fn divergence_equals_the_direct_sum() {
        let row = |seed: f32| {
            let mut row: Vec<f32> = (0..5_003).map(|i| (i as f32 * seed).sin() * 6.0).collect();
            log_softmax(Isa::best(), &mut row);
            row
        };
        let (mut p, q) = (row(0.7), row(1.3));
        p[7] = f32::NEG_INFINITY;
        let direct = p.iter().zip(&q).filter(|(p, _)| p.is_finite());
        let direct: f64 = direct
            .map(|(p, q)| (f64::from(*p), f64::from(*q)))
            .map(|(p, q)| p.exp() * (p - q))
            .sum();
        assert!((kl(Isa::best(), &p, &q) - direct).abs() < 1e-5 * direct);
        assert_eq!(kl(Isa::best(), &q, &q), 0.0);
        assert_eq!(kl(Isa::best(), &q, &p), f64::INFINITY);
        let direct: f64 = p
            .iter()
            .filter(|l| l.is_finite())
            .map(|l| -f64::from(*l) * f64::from(*l).exp())
            .sum();
        assert!((entropy(Isa::best(), &p) - direct).abs() < 1e-6 * direct);
        exp_all(Isa::best(), &mut p);
        assert!((entropy_of_probabilities(Isa::best(), &p) - direct).abs() < 1e-6 * direct);
    }

    proptest! {
        #[test]
        fn all_instruction_sets_give_the_same_bits(
            x in prop::collection::vec(-90.0f32..90.0, 1..200),
            y in prop::collection::vec(-3.0f32..3.0, 200),
            weight in 0.0f32..1.0,
        ) {
            let n = x.len();
            let all = |isa: Isa| {
                let mut out = Vec::new();
                let mut buffer = x.clone();
                log_softmax(isa, &mut buffer);
                out.extend(buffer.clone());
                exp_add(isa, &mut buffer, weight, &y[..n]);
                out.extend(buffer.clone());
                softmax(isa, &mut buffer);
                out.extend(buffer.clone());
                ln_all(isa, &mut buffer);
                out.extend(buffer.clone());
                rms_norm(isa, &x, &y[..n], 1e-5, &mut buffer);
                out.extend(buffer.clone());
                swiglu(isa, &x, &y[..n], &mut buffer);
                out.extend(buffer.clone());
                geglu(isa, &x, &y[..n], &mut buffer);
                out.extend(buffer.clone());
                soft_cap(isa, &mut buffer, 3.0);
                out.extend(buffer.clone());
                axpy(isa, &mut buffer, weight, &x);
                out.extend(buffer.clone());
                softplus_add(isa, &mut buffer, weight, weight, &x, &y[..n]);
                out.extend(buffer.clone());
                buffer.iter_mut().for_each(|v| *v = v.abs() + 1e-6);
                ln_exp_m1_all(isa, &mut buffer);
                out.extend(buffer.clone());
                out.push(dot(isa, &x, &y[..n]));
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            for isa in Isa::available() {
                prop_assert_eq!(all(isa), all(Isa::PORTABLE));
            }
        }

        #[test]
        fn what_is_no_number_is_seen_at_every_place(
            x in prop::collection::vec(any::<f32>(), 1..200),
            at in any::<prop::sample::Index>(),
        ) {
            let mut x: Vec<f32> = x.into_iter().map(|v| if v.is_nan() { 0.0 } else { v }).collect();
            let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for isa in Isa::available() {
                prop_assert_eq!(peak(isa, &x), top);
                prop_assert_eq!(all_finite(isa, &x), x.iter().all(|v| v.is_finite()));
            }
            let at = at.index(x.len());
            x[at] = f32::NAN;
            for isa in Isa::available() {
                prop_assert!(peak(isa, &x).is_nan() && !all_finite(isa, &x));
            }
        }

        #[test]
        fn log_softmax_is_normalised(x in prop::collection::vec(-30.0f32..30.0, 1..300)) {
            let mut row = x.clone();
            log_softmax(Isa::best(), &mut row);
            let total: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-5);
        }
    }
}

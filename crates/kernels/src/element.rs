//! The numbers that keys, values and side paths are kept in.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Set;
use crate::math::round_to_bytes;

/// How keys, values and side paths are kept: as 32- or 16-bit floats, or as 8-bit integers with a scale.
/// Arithmetic is in 32 bits.
pub trait Element: Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// The numbers stand for multiples of a scale.
    const SCALED: bool = false;

    /// The number itself; finite ones only.
    fn get(self) -> f32;

    /// The nearest numbers, ties to even, and what they are multiples of: 1 where they have no scale. Both
    /// slices are equally long.
    fn round(isa: Isa, from: &[f32], to: &mut [Self]) -> f32;

    /// 16 numbers.
    ///
    /// # Safety
    /// They can be read, and the processor has AVX-512 F.
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    unsafe fn load(from: *const Self) -> std::arch::x86_64::__m512;

    /// 16 numbers.
    ///
    /// # Safety
    /// They can be read, and the processor has NEON.
    #[cfg(target_arch = "aarch64")]
    #[doc(hidden)]
    unsafe fn load(from: *const Self) -> [std::arch::aarch64::float32x4_t; 4];
}

impl Element for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }

    fn round(_isa: Isa, from: &[f32], to: &mut [Self]) -> f32 {
        to.copy_from_slice(from);
        1.0
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> std::arch::x86_64::__m512 {
        // SAFETY: the caller's.
        unsafe { std::arch::x86_64::_mm512_loadu_ps(from) }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(from: *const Self) -> [std::arch::aarch64::float32x4_t; 4] {
        // SAFETY: the caller's.
        std::array::from_fn(|i| unsafe { std::arch::aarch64::vld1q_f32(from.add(i * 4)) })
    }
}

impl Element for f16 {
    /// Exponent and mantissa moved to their places, and the difference of the exponents' biases made up
    /// for by a multiplication, which is exact: loops over it vectorise on every instruction set.
    #[inline(always)]
    fn get(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
    }

    fn round(isa: Isa, from: &[f32], to: &mut [Self]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if isa.set() == Set::Avx512 {
            // SAFETY: the processor has these instructions, or the Isa would not have been made.
            unsafe { round_avx512(from, to) };
            return 1.0;
        }
        let _ = isa;
        const PART: usize = 64;
        let largest = f16::MAX.to_f32();
        for (from, to) in from.chunks(PART).zip(to.chunks_mut(PART)) {
            let mut inside = [0f32; PART];
            for (inside, v) in inside.iter_mut().zip(from) {
                *inside = v.clamp(-largest, largest);
            }
            to.convert_from_f32_slice(&inside[..from.len()]);
        }
        1.0
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps};
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[cfg(target_arch = "aarch64")]
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(from: *const Self) -> [std::arch::aarch64::float32x4_t; 4] {
        use std::arch::aarch64::{vcvt_f32_f16, vld1_u16, vreinterpret_f16_u16};
        std::array::from_fn(|i| {
            // SAFETY: the caller's.
            let bits = unsafe { vld1_u16(from.add(i * 4).cast()) };
            vcvt_f32_f16(vreinterpret_f16_u16(bits))
        })
    }
}

impl Element for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    fn get(self) -> f32 {
        f32::from(self)
    }

    fn round(isa: Isa, from: &[f32], to: &mut [Self]) -> f32 {
        round_to_bytes(isa, from, to)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::{_mm_loadu_si128, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps};
        // SAFETY: the caller's.
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe {
            _mm_loadu_si128(from.cast())
        }))
    }

    #[cfg(target_arch = "aarch64")]
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(from: *const Self) -> [std::arch::aarch64::float32x4_t; 4] {
        use std::arch::aarch64::*;
        // SAFETY: the caller's.
        let bytes = unsafe { vld1q_s8(from) };
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        [
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ]
        .map(|v| vcvtq_f32_s32(v))
    }
}

/// Writes 16 numbers.
#[cfg(target_arch = "aarch64")]
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn store(from: [std::arch::aarch64::float32x4_t; 4], to: &mut [f32]) {
    assert_eq!(to.len(), 16);
    for (to, from) in to.chunks_exact_mut(4).zip(from) {
        // SAFETY: four floats.
        unsafe { std::arch::aarch64::vst1q_f32(to.as_mut_ptr(), from) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn round_avx512(from: &[f32], to: &mut [f16]) {
    use std::arch::x86_64::*;
    let largest = _mm512_set1_ps(f16::MAX.to_f32());
    let least = _mm512_set1_ps(f16::MIN.to_f32());
    for (from, to) in from.chunks(16).zip(to.chunks_mut(16)) {
        let mask = (1u32 << from.len().min(to.len())).wrapping_sub(1) as u16;
        // SAFETY: as many numbers as the mask says.
        unsafe {
            let v = _mm512_maskz_loadu_ps(mask, from.as_ptr());
            let v = _mm512_min_ps(_mm512_max_ps(v, least), largest);
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
            _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, half);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_within_half_a_step_on_every_instruction_set() {
        for n in [1, 16, 64, 70] {
            let floats: Vec<f32> = (0..n)
                .map(|i| (i * 7919 % 1000) as f32 / 300.0 - 1.7)
                .collect();
            let mut first = None;
            for isa in Isa::available() {
                let mut bytes = vec![0i8; n];
                let scale = i8::round(isa, &floats, &mut bytes);
                for (byte, float) in bytes.iter().zip(&floats) {
                    assert!((byte.get() * scale - float).abs() <= scale * 0.501);
                }
                let got = (bytes, scale);
                assert_eq!(first.get_or_insert(got.clone()), &got);
            }
            let mut zeros = vec![3i8; n];
            assert_eq!(i8::round(Isa::best(), &vec![0.0; n], &mut zeros), 0.0);
            assert_eq!(zeros, vec![0; n]);
        }
    }

    #[test]
    fn every_finite_half_is_itself() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                for isa in Isa::available() {
                    let mut again = [f16::ZERO; 3];
                    f16::round(isa, &[half.to_f32() * 1.0001; 3], &mut again);
                    let near = f16::from_f32(half.to_f32() * 1.0001);
                    let near = if near.is_finite() { near } else { half };
                    assert_eq!(again.map(f16::to_bits), [near.to_bits(); 3]);
                }
                assert_eq!(half.get().to_bits(), half.to_f32().to_bits(), "{bits:04x}");
            }
        }
    }
}

//! The instruction sets that kernels are written for, and which of them this processor has.

/// An instruction set that this processor has.
///
/// Safe functions run its instructions without asking again, so only detection makes one: [`Isa::best`] and
/// [`Isa::available`]. Plain Rust ([`Isa::PORTABLE`]) is always there.
///
/// ```
/// use mope_kernels::{Isa, math};
///
/// let row = |isa| {
///     let mut row = [1.0, 2.0, 4.0];
///     math::softmax(isa, &mut row);
///     row
/// };
/// for isa in Isa::available() {
///     assert_eq!(row(isa), row(Isa::PORTABLE), "{isa:?}");
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Set);

/// What kernels tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    #[cfg(target_arch = "x86_64")]
    /// AVX-512 (F, BW, VL, DQ) with 8-bit dot products (VNNI); AVX2, FMA and F16C, too.
    Avx512,
    #[cfg(target_arch = "x86_64")]
    /// AVX2 with FMA and F16C.
    Avx2,
    #[cfg(target_arch = "aarch64")]
    /// NEON with 8-bit dot products.
    Neon,
    /// Plain Rust; what the compiler vectorises for the target.
    Portable,
}

impl Isa {
    /// Plain Rust.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// The best one that this processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 =
                has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
            if avx2 && avx512 && has!("avx512vnni") {
                return Self(Set::Avx512);
            }
            if avx2 {
                return Self(Set::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("neon") && has!("dotprod") {
                return Self(Set::Neon);
            }
        }
        Self::PORTABLE
    }

    /// All that this processor has, the best one first, the portable one last. For tests that compare them.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::best()];
        // AVX-512 is only taken where AVX2 is, too.
        #[cfg(target_arch = "x86_64")]
        if all[0].0 == Set::Avx512 {
            all.push(Self(Set::Avx2));
        }
        if all[0] != Self::PORTABLE {
            all.push(Self::PORTABLE);
        }
        all
    }

    /// What to run.
    #[inline(always)]
    pub(crate) fn set(self) -> Set {
        self.0
    }
}

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_ones_begin_with_the_best_and_end_with_the_portable_one() {
        let all = Isa::available();
        assert_eq!(all.first(), Some(&Isa::best()));
        assert_eq!(all.last(), Some(&Isa::PORTABLE));
        for (i, isa) in all.iter().enumerate() {
            assert!(!all[..i].contains(isa), "{isa:?} twice");
        }
    }
}

/// Instruction sets that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with 8-bit dot products (VNNI).
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// NEON with 8-bit dot products.
    Neon,
    /// Plain Rust; what the compiler vectorises for the target.
    Portable,
}

impl Isa {
    /// The best one that this processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni")
            {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("neon") && has!("dotprod") {
                return Self::Neon;
            }
        }
        Self::Portable
    }

    /// Those that this processor has, the portable one last.
    pub fn available() -> Vec<Self> {
        let all: &[Self] = match cfg!(target_arch = "aarch64") {
            true => &[Self::Neon, Self::Portable],
            false => &[Self::Avx512, Self::Avx2, Self::Portable],
        };
        let best = Self::best();
        all.iter().copied().skip_while(|isa| *isa != best).collect()
    }
}

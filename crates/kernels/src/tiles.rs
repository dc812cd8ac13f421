//! Products of 16-bit floats on the matrix units of recent x86 processors (AMX), or with the dot products of
//! AVX-512 BF16.
//!
//! A weight matrix is packed in tiles of 16 outputs by 32 inputs, pairs of inputs side by side, as
//! `TDPBF16PS` and `VDPBF16PS` read them. One call of a kernel makes a square of 32 rows by 32 outputs.

/// Inputs of a tile.
pub(crate) const DEPTH: usize = 32;
/// Rows and outputs of the square that one call makes: two tiles each way.
pub(crate) const SQUARE: usize = 32;
/// 16-bit numbers in a tile.
const TILE: usize = 16 * DEPTH;

/// A matrix `[outputs, inputs]` packed for the matrix units, zeros around it.
#[derive(Debug, Clone)]
pub(crate) struct Tiles {
    /// `[outputs / 16][inputs / 32][16 pairs][16 outputs][2]`.
    data: Vec<u16>,
    pub outputs: usize,
    /// Inputs in whole tiles.
    pub padded: usize,
}

impl Tiles {
    /// Packs `outputs · inputs` numbers, `at(output, input)` each.
    pub fn pack(outputs: usize, inputs: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let padded = inputs.next_multiple_of(DEPTH);
        let rounded = outputs.next_multiple_of(SQUARE);
        let mut data = vec![0; rounded * padded];
        for (index, value) in data.iter_mut().enumerate() {
            let (tile, inside) = (index / TILE, index % TILE);
            let (block, depth) = (tile / (padded / DEPTH), tile % (padded / DEPTH));
            let output = block * 16 + inside / 2 % 16;
            let input = depth * DEPTH + inside / 32 * 2 + inside % 2;
            if output < outputs && input < inputs {
                *value = half::bf16::from_f32(at(output, input)).to_bits();
            }
        }
        Self {
            data,
            outputs,
            padded,
        }
    }

    /// One weight.
    pub fn get(&self, output: usize, input: usize) -> f32 {
        let tile = output / 16 * (self.padded / DEPTH) + input / DEPTH;
        let inside = input % DEPTH / 2 * 32 + output % 16 * 2 + input % 2;
        half::bf16::from_bits(self.data[tile * TILE + inside]).to_f32()
    }

    pub fn bytes(&self) -> usize {
        self.data.len() * 2
    }

    /// `y[rows, outputs] (+)= x[rows, padded] · Wᵀ` with a unit that this process has.
    ///
    /// `x` has its rows in whole squares (their content beyond `rows` does not matter).
    #[cfg(target_arch = "x86_64")]
    pub fn multiply(&self, unit: Unit, x: &[u16], rows: usize, y: &mut [f32], add: bool) {
        let depths = self.padded / DEPTH;
        assert!(x.len() >= rows.next_multiple_of(SQUARE) * self.padded);
        assert!(y.len() >= rows * self.outputs);
        let mut square = [0f32; SQUARE * SQUARE];
        for column in (0..self.outputs).step_by(SQUARE) {
            let weights = &self.data[column * self.padded..(column + SQUARE) * self.padded];
            for row in (0..rows).step_by(SQUARE) {
                let part = &x[row * self.padded..(row + SQUARE) * self.padded];
                let many = SQUARE.min(rows - row);
                match unit {
                    #[cfg(target_os = "linux")]
                    // SAFETY: both parts hold whole tiles; the unit is there, or it would not have been made.
                    Unit::Amx => unsafe { amx::square(part, weights, depths, &mut square) },
                    // SAFETY: as above.
                    Unit::Avx512 => unsafe {
                        avx512::square(part, weights, depths, many, &mut square)
                    },
                }
                let width = SQUARE.min(self.outputs - column);
                for (i, from) in square.chunks(SQUARE).take(rows - row).enumerate() {
                    let start = (row + i) * self.outputs + column;
                    let to = &mut y[start..start + width];
                    if add {
                        to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
                    } else {
                        to.copy_from_slice(&from[..width]);
                    }
                }
            }
        }
    }
}

/// What multiplies tiles.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// The matrix units.
    #[cfg(target_os = "linux")]
    Amx,
    /// Dot products of pairs.
    Avx512,
}

#[cfg(target_arch = "x86_64")]
impl Unit {
    /// The best one that this process may use: the processor has it and, for the matrix units, the kernel
    /// was asked.
    pub fn best() -> Option<Self> {
        static BEST: std::sync::OnceLock<Option<Unit>> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| {
            #[cfg(target_os = "linux")]
            if amx::detected() && amx::ask() {
                return Some(Self::Amx);
            }
            use std::arch::is_x86_feature_detected as has;
            (has!("avx512f") && has!("avx512bf16")).then_some(Self::Avx512)
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{DEPTH, SQUARE, TILE};

    /// `out[many, 32] = x[many, 32 · depths] · w[32, 32 · depths]ᵀ`, `w` in tiles.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn square(
        x: &[u16],
        w: &[u16],
        depths: usize,
        many: usize,
        out: &mut [f32; SQUARE * SQUARE],
    ) {
        let width = depths * DEPTH;
        assert!(many <= SQUARE && x.len() >= many * width && w.len() >= 2 * depths * TILE);
        let mut row = 0;
        while row < many {
            let (x, out) = (&x[row * width..], &mut out[row * SQUARE..]);
            row += match many - row {
                8.. => strip::<8>(x, w, depths, out),
                4.. => strip::<4>(x, w, depths, out),
                2.. => strip::<2>(x, w, depths, out),
                _ => strip::<1>(x, w, depths, out),
            };
        }
    }

    /// Some rows of a square, both halves of its outputs at once; returns how many.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn strip<const M: usize>(x: &[u16], w: &[u16], depths: usize, out: &mut [f32]) -> usize {
        let width = depths * DEPTH;
        let (x, out) = (&x[..M * width], &mut out[..M * SQUARE]);
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        for pair in 0..width / 2 {
            // SAFETY: 16 pairs of 16 outputs in each of `depths` tiles, twice.
            let w = [0, depths * TILE].map(|half| unsafe {
                let from = w.as_ptr().add(half + pair * 32);
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast()))
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a pair of a row of `width` numbers.
                let x = unsafe {
                    let from = x.as_ptr().add(row * width + pair * 2).cast::<i32>();
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(
                        from.read_unaligned(),
                    ))
                };
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm512_dpbf16_ps(*sum, w, x);
                }
            }
        }
        for (out, sums) in out.chunks_exact_mut(SQUARE).zip(sums) {
            for (out, sum) in out.chunks_exact_mut(16).zip(sums) {
                // SAFETY: 16 numbers.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
            }
        }
        M
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use super::{DEPTH, SQUARE, TILE};

    /// CPUID leaf 7: bit 22 is AMX-BF16, bit 24 AMX-TILE (Intel SDM, table 3-8); and the operating
    /// system saves extended states (leaf 1, ECX bit 27).
    pub fn detected() -> bool {
        let leaves = __cpuid(0).eax;
        let saves = __cpuid(1).ecx & 1 << 27 != 0;
        let both = 1 << 22 | 1 << 24;
        leaves >= 7 && saves && __cpuid_count(7, 0).edx & both == both
    }

    /// Asks Linux for the state of the tiles, as every process must once (`arch_prctl`,
    /// `ARCH_REQ_XCOMP_PERM`, feature 18).
    pub fn ask() -> bool {
        let mut result: i64 = 158;
        // SAFETY: the system call changes nothing but this process's permission.
        unsafe {
            asm!("syscall", inout("rax") result, in("rdi") 0x1023, in("rsi") 18,
                 out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }

    /// Layout of `LDTILECFG`'s memory: palette 1, eight tiles of 16 rows by 64 bytes.
    #[repr(C, align(64))]
    struct Shape {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SHAPE: Shape = Shape {
        palette: 1,
        start: 0,
        reserved: [0; 14],
        bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// `out[32, 32] = x[32, 32 · depths] · w[32, 32 · depths]ᵀ`, `w` in tiles.
    ///
    /// # Safety
    /// The matrix units may be used.
    pub unsafe fn square(x: &[u16], w: &[u16], depths: usize, out: &mut [f32; SQUARE * SQUARE]) {
        let width = depths * DEPTH;
        assert!(depths > 0 && x.len() >= SQUARE * width && w.len() >= 2 * depths * TILE);
        // SAFETY: the loads stay inside of the slices as asserted, the stores inside of `out`; the
        // tiles are configured and released in here.
        unsafe {
            asm!(
                "ldtilecfg [{shape}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{x0} + {stride} * 1]",
                "tileloadd tmm6, [{w0} + {wide} * 1]",
                "tileloadd tmm7, [{w1} + {wide} * 1]",
                "tileloadd tmm5, [{x1} + {stride} * 1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x0}, 64",
                "add {x1}, 64",
                "add {w0}, 1024",
                "add {w1}, 1024",
                "dec {depths}",
                "jnz 2b",
                "mov {stride}, 128",
                "tilestored [{out} + {stride} * 1], tmm0",
                "tilestored [{out} + {stride} * 1 + 64], tmm1",
                "tilestored [{out} + {stride} * 1 + 2048], tmm2",
                "tilestored [{out} + {stride} * 1 + 2112], tmm3",
                "tilerelease",
                shape = in(reg) &SHAPE,
                x0 = inout(reg) x.as_ptr() => _,
                x1 = inout(reg) x.as_ptr().add(16 * width) => _,
                w0 = inout(reg) w.as_ptr() => _,
                w1 = inout(reg) w.as_ptr().add(depths * TILE) => _,
                stride = inout(reg) width * 2 => _,
                wide = in(reg) 64usize,
                depths = inout(reg) depths => _,
                out = in(reg) out.as_mut_ptr(),
                options(nostack),
            );
        }
    }
}

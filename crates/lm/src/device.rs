//! The devices of a build, by the names that configs and the command line use.

pub use burn::tensor::Device;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

use crate::packed::Weights;
use crate::{Error, Result};

/// A compute device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceSpec {
    /// The processor, in pure Rust; always there.
    #[default]
    Flex,
    /// The processor through libtorch (feature `tch`).
    Libtorch,
    /// An NVIDIA GPU through libtorch (feature `tch`).
    LibtorchCuda(usize),
    /// A GPU or a software driver through WebGPU (feature `wgpu`).
    Wgpu(WgpuKind),
    /// An NVIDIA GPU through CUDA (feature `cuda`).
    Cuda(usize),
}

/// Which adapter of the WebGPU driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WgpuKind {
    /// A software driver such as Mesa's.
    Cpu,
    /// A GPU in the processor's package.
    Integrated(usize),
    /// A GPU of its own.
    Discrete(usize),
}

impl DeviceSpec {
    /// Reads the notation of configs, `Flex`, `Libtorch`, `Wgpu(Cpu)`, …
    ///
    /// # Errors
    /// An unknown device, with the known ones.
    pub fn parse(text: &str) -> Result<Self> {
        ron::from_str(text).map_err(|_| {
            Error::Argument(format!(
                "unknown device '{text}'; known: Flex, Libtorch, LibtorchCuda(0), Wgpu(Cpu), \
                 Wgpu(Integrated(0)), Wgpu(Discrete(0)), Cuda(0)"
            ))
        })
    }

    /// The devices that this build can open, as far as that is known before trying.
    pub fn built() -> Vec<Self> {
        let mut devices = vec![Self::Flex];
        if cfg!(feature = "tch") {
            devices.push(Self::Libtorch);
        }
        if cfg!(feature = "wgpu") {
            devices.push(Self::Wgpu(WgpuKind::Cpu));
        }
        if cfg!(feature = "cuda") {
            devices.push(Self::Cuda(0));
        }
        devices
    }

    /// Checks that the device is there and computes with such weights.
    ///
    /// # Errors
    /// Those of [`Self::open`]; a number format that the device lacks, and which it has.
    pub fn offers(&self, weights: Weights) -> Result<()> {
        let device = self.open()?;
        match self {
            Self::Flex => Ok(()),
            _ => float_format(&device, weights).map(|_| ()),
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// When the program was built without the device's feature.
    pub fn open(&self) -> Result<Device> {
        match *self {
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "tch")]
            #[allow(
                deprecated,
                reason = "burn 0.22 is the last line with it; nothing replaces it"
            )]
            Self::Libtorch => Ok(Device::libtorch()),
            #[cfg(feature = "tch")]
            #[allow(
                deprecated,
                reason = "burn 0.22 is the last line with it; nothing replaces it"
            )]
            Self::LibtorchCuda(index) => Ok(Device::libtorch_cuda(index)),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(kind) => {
                use burn::tensor::DeviceKind;
                Ok(Device::wgpu(match kind {
                    WgpuKind::Cpu => DeviceKind::Cpu,
                    WgpuKind::Integrated(index) => DeviceKind::IntegratedGpu(index),
                    WgpuKind::Discrete(index) => DeviceKind::DiscreteGpu(index),
                }))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => Ok(Device::cuda(index)),
            #[allow(unreachable_patterns, reason = "with all features nothing is left")]
            _ => {
                let feature = match self {
                    Self::Wgpu(_) => "wgpu",
                    Self::Cuda(_) => "cuda",
                    _ => "tch",
                };
                Err(Error::Argument(format!(
                    "device {self}: built without feature '{feature}'; build with \
                     `cargo build --release --features {feature}`"
                )))
            }
        }
    }
}

/// Number format of the matrices that burn's operations multiply on `device`.
///
/// # Errors
/// A format that only packed weights have, or that the device does not compute in.
pub(crate) fn float_format(device: &Device, weights: Weights) -> Result<FloatDType> {
    let format = match weights {
        Weights::F32 => FloatDType::F32,
        Weights::Bf16 => FloatDType::BF16,
        Weights::Q8 | Weights::Q4 => {
            let message = format!("weights {weights:?} need device Flex; others have F32 and Bf16");
            return Err(Error::Argument(message));
        }
    };
    if !device.supports_dtype(format) {
        let message =
            format!("weights {weights:?}: the device does not compute in them, but in F32");
        return Err(Error::Argument(message));
    }
    Ok(format)
}

impl std::fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

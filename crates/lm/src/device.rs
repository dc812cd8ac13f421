//! The devices of a build, by the names that configs and the command line use.

pub use burn::tensor::Device;
use burn::tensor::{FloatDType, Tensor};
use serde::de::{Deserializer, EnumAccess, Error as _, VariantAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::{Error, Format, Result};

/// A compute device.
///
/// ```
/// use mope_lm::DeviceSpec;
///
/// assert_eq!(DeviceSpec::parse("Cpu")?, DeviceSpec::default());
/// assert!(DeviceSpec::parse("Flex").is_err());
/// # Ok::<(), mope_lm::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub enum DeviceSpec {
    /// The processor, through packed kernels of our own; always there.
    #[default]
    Cpu,
    /// The processor, through burn's Flex; always there. For comparisons: it is slower than `Cpu`.
    BurnFlex,
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
    /// Reads the notation of configs, `Cpu`, `Libtorch`, `Wgpu(Cpu)`, …
    ///
    /// # Errors
    /// An unknown device, with the known ones; `Flex`, with the two that it may have meant.
    pub fn parse(text: &str) -> Result<Self> {
        match text.trim() {
            "Flex" => Err(Error::AmbiguousDevice),
            text => ron::from_str(text).map_err(|_| Error::UnknownDevice(text.into())),
        }
    }

    /// What stands for the device in keys of content. `Cpu` keeps the name that it had when keys were first made,
    /// so that rows of earlier runs are found again.
    pub fn content_key(&self) -> serde_json::Value {
        match self {
            Self::Cpu => serde_json::json!("Flex"),
            other => serde_json::json!(other),
        }
    }

    /// The devices that this build can open, as far as that is known before trying.
    pub fn built() -> Vec<Self> {
        let mut devices = vec![Self::Cpu, Self::BurnFlex];
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

    /// Checks that the device is there and computes in such a number format.
    ///
    /// # Errors
    /// Those of [`Self::open`]; [`Error::NoDevice`]; a number format that the device lacks, and which it has.
    pub fn offers(&self, format: Format) -> Result<()> {
        let device = self.open()?;
        if *self == Self::Cpu {
            return Ok(());
        }
        #[cfg(any(feature = "tch", feature = "wgpu", feature = "cuda"))]
        self.is_there(&device)?;
        float_format(&device, format).map(|_| ())
    }

    /// Checks that the machine has the device: burn itself only finds out when it is used, and panics then.
    #[cfg(any(feature = "tch", feature = "wgpu", feature = "cuda"))]
    fn is_there(&self, device: &Device) -> Result<()> {
        use burn::tensor::DeviceType;
        /// Most devices of a kind that are looked for.
        const MOST: usize = 16;
        let numbers = || 0..MOST;
        let (kind, candidates): (_, Vec<Self>) = match self {
            #[cfg(feature = "tch")]
            Self::LibtorchCuda(_) => {
                let candidates = numbers().map(Self::LibtorchCuda);
                (DeviceType::LibTorch, candidates.collect())
            }
            #[cfg(feature = "wgpu")]
            Self::Wgpu(_) => {
                let of = |kind: fn(usize) -> WgpuKind| numbers().map(move |i| Self::Wgpu(kind(i)));
                let software = [Self::Wgpu(WgpuKind::Cpu)].into_iter();
                let all = software.chain(of(WgpuKind::Integrated));
                (
                    DeviceType::Wgpu,
                    all.chain(of(WgpuKind::Discrete)).collect(),
                )
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => {
                let candidates = numbers().map(Self::Cuda);
                (DeviceType::Cuda, candidates.collect())
            }
            _ => return Ok(()),
        };
        let there = Device::enumerate(kind).into_vec();
        if there.contains(device) {
            return Ok(());
        }
        let opens = |spec: &Self| spec.open().is_ok_and(|d| there.contains(&d));
        let names = candidates.iter().filter(|spec| opens(spec));
        Err(Error::NoDevice {
            device: self.to_string(),
            there: names.map(Self::to_string).collect(),
        })
    }

    /// Opens the device for burn's operations; on `Cpu` those run through Flex.
    ///
    /// # Errors
    /// When the program was built without the device's feature.
    pub fn open(&self) -> Result<Device> {
        match *self {
            Self::Cpu | Self::BurnFlex => Ok(Device::flex()),
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
                Err(Error::MissingFeature {
                    what: format!("device {self}"),
                    feature,
                })
            }
        }
    }
}

/// Number format of the matrices that burn's operations multiply on `device`.
///
/// # Errors
/// A format that only packed matrices have, or that the device does not compute in.
pub(crate) fn float_format(device: &Device, format: Format) -> Result<FloatDType> {
    let float = match format {
        Format::F32 => FloatDType::F32,
        Format::Bf16 => FloatDType::BF16,
        Format::Q8 | Format::Q4 => {
            let reason = "needs device Cpu; others have F32 and Bf16";
            return Err(Error::NumberFormat { format, reason });
        }
    };
    if !device.supports_dtype(float) {
        let reason = "the device does not compute in it, but in F32";
        return Err(Error::NumberFormat { format, reason });
    }
    Ok(float)
}

const VARIANTS: &[&str] = &[
    "Cpu",
    "BurnFlex",
    "Libtorch",
    "LibtorchCuda",
    "Wgpu",
    "Cuda",
];

/// As derived, but for `Flex`, which gets an error of its own.
impl<'de> Deserialize<'de> for DeviceSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_enum("DeviceSpec", VARIANTS, SpecVisitor)
    }
}

struct SpecVisitor;

impl<'de> Visitor<'de> for SpecVisitor {
    type Value = DeviceSpec;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a device")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<DeviceSpec, A::Error> {
        let (Name(name), content) = data.variant()?;
        let unit = |spec| move |()| spec;
        match name.as_str() {
            "Cpu" => content.unit_variant().map(unit(DeviceSpec::Cpu)),
            "BurnFlex" => content.unit_variant().map(unit(DeviceSpec::BurnFlex)),
            "Libtorch" => content.unit_variant().map(unit(DeviceSpec::Libtorch)),
            "LibtorchCuda" => content.newtype_variant().map(DeviceSpec::LibtorchCuda),
            "Wgpu" => content.newtype_variant().map(DeviceSpec::Wgpu),
            "Cuda" => content.newtype_variant().map(DeviceSpec::Cuda),
            other => Err(A::Error::unknown_variant(other, VARIANTS)),
        }
    }
}

/// Name of a device.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the name of a device")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Name, E> {
        match name {
            "Flex" => Err(E::custom(Error::AmbiguousDevice)),
            name if VARIANTS.contains(&name) => Ok(Name(name.into())),
            other => Err(E::unknown_variant(other, VARIANTS)),
        }
    }
}

impl std::fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Brings a tensor's values to the host, row-major.
///
/// # Errors
/// [`Error::Device`].
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let failed = |e: &dyn std::fmt::Debug| Error::Device(format!("{e:?}"));
    let data = tensor.try_into_data().map_err(|e| failed(&e))?;
    data.convert::<f32>().try_into_vec().map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_read_as_it_is_written() {
        for spec in [
            DeviceSpec::Cpu,
            DeviceSpec::BurnFlex,
            DeviceSpec::Libtorch,
            DeviceSpec::LibtorchCuda(1),
            DeviceSpec::Wgpu(WgpuKind::Cpu),
            DeviceSpec::Wgpu(WgpuKind::Discrete(2)),
            DeviceSpec::Cuda(3),
        ] {
            assert_eq!(
                DeviceSpec::parse(&spec.to_string()).ok(),
                Some(spec.clone())
            );
            let json = serde_json::to_string(&spec).unwrap_or_default();
            assert_eq!(
                serde_json::from_str(&json).ok(),
                Some(spec.clone()),
                "{json}"
            );
            assert!(VARIANTS.iter().any(|name| json.contains(name)), "{json}");
        }
    }

    #[test]
    fn flex_alone_is_refused_with_both_names() {
        for error in [
            DeviceSpec::parse("Flex").map_err(|e| e.to_string()),
            ron::from_str("Flex").map_err(|e| e.to_string()),
            serde_json::from_str("\"Flex\"").map_err(|e| e.to_string()),
        ] {
            let error = error.err().unwrap_or_default();
            assert!(
                error.contains("Cpu") && error.contains("BurnFlex"),
                "{error}"
            );
            assert!(error.contains("which Flex was"), "{error}");
        }
        let error = ron::from_str::<DeviceSpec>("Flax").map_err(|e| e.to_string());
        let error = error.err().unwrap_or_default();
        assert!(
            error.contains("`BurnFlex`") && !error.contains("`Flex`"),
            "{error}"
        );
    }

    #[test]
    fn keys_of_content_are_those_of_earlier_runs() {
        let key = |spec: DeviceSpec| spec.content_key().to_string();
        assert_eq!(key(DeviceSpec::Cpu), "\"Flex\"");
        assert_eq!(key(DeviceSpec::BurnFlex), "\"BurnFlex\"");
        assert_eq!(key(DeviceSpec::Wgpu(WgpuKind::Cpu)), "{\"Wgpu\":\"Cpu\"}");
    }
}

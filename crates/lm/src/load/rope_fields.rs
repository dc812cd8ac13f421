//! The rotary embeddings of a `config.json`: `rope_parameters` as transformers 5 writes them, also nested by the types
//! of layers, and `rope_theta` and `rope_scaling` of older files.

use serde_json::{Map, Value};

use super::families::Defaults;
use super::fields::Fields;
use crate::Error;
use crate::Result;
use crate::config::{Rope, RopeScaling};

/// What the fields say.
pub(super) struct Ropes {
    pub main: Rope,
    /// Of layers with a sliding window, where it may be another.
    pub local: Option<Rope>,
    /// Dimensions of a head that are rotated; `None` is all of them.
    pub rotated: Option<usize>,
    /// Context length that the scaling makes of the original one, 0 where it says nothing.
    pub stretched: usize,
}

/// Families whose layers are of several types, so that each type may have its parameters.
const NESTED: [&str; 7] = [
    "gemma2",
    "gemma3_text",
    "olmo3",
    "smollm3",
    "qwen2",
    "qwen3",
    "qwen2_moe",
];

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Reads them.
///
/// # Errors
/// A scaling that is not known, by its name; a field of another type or one that its scaling needs.
pub(super) fn ropes(
    f: &Fields<'_>,
    family: &str,
    d: &Defaults,
    head_dim: usize,
    context: usize,
) -> Result<Ropes> {
    let object = |name: &str| match f.get(name) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => {
            let message = format!("field '{name}' is {other}, not an object");
            Err(Error::format(f.path, message))
        }
    };
    let empty = Map::new();
    let (scaling, parameters) = (object("rope_scaling")?, object("rope_parameters")?);
    let scaling = scaling.filter(|s| !s.is_empty());
    let by_type =
        parameters.filter(|p| p.get(FULL).or(p.get(SLIDING)).is_some_and(Value::is_object));
    if let Some(parameters) = parameters
        && let Some((layers, _)) = parameters.iter().find(|(_, v)| v.is_object())
        && !(NESTED.contains(&family) && by_type.is_some())
    {
        let what = format!("rope_parameters of their own for '{layers}' layers");
        return Err(f.unsupported(what, "one rope for all layers"));
    }
    let part = |name: &str| by_type.and_then(|p| p.get(name)?.as_object());
    let local = matches!(family, "gemma3_text" | "olmo3") || part(SLIDING).is_some();
    let main = match by_type {
        Some(_) => part(FULL).unwrap_or(&empty),
        None => scaling.or(parameters).unwrap_or(&empty),
    };
    let read = |map: &Map<String, Value>, theta: f64| {
        let parameters = Parameters {
            of: Fields { path: f.path, map },
            all: f,
            family,
            context,
        };
        parameters.rope(theta)
    };
    let theta = f.number("rope_theta", d.theta)?;
    let rotated = rotated(f, main, family, head_dim)?;
    let (main, stretched) = read(main, f64::from(theta))?;
    let local_theta = match family {
        "gemma3_text" => f64::from(f.number("rope_local_base_freq", 1e4)?),
        // As transformers: `rope_theta` is that of the other layers.
        "olmo3" => d.theta,
        _ => f64::from(theta),
    };
    let local = match local {
        true => Some(read(part(SLIDING).unwrap_or(&empty), local_theta)?.0),
        false => None,
    };
    Ok(Ropes {
        main,
        local,
        rotated,
        stretched,
    })
}

/// `partial_rotary_factor`, in the rope's parameters or beside them.
fn rotated(
    f: &Fields<'_>,
    main: &Map<String, Value>,
    family: &str,
    head_dim: usize,
) -> Result<Option<usize>> {
    let inside = Fields {
        path: f.path,
        map: main,
    };
    let default = if matches!(family, "glm" | "glm4") {
        0.5
    } else {
        1.0
    };
    let beside = f64::from(f.number("partial_rotary_factor", default)?);
    let factor = inside.number("partial_rotary_factor", beside)?;
    if factor == 1.0 {
        return Ok(None);
    }
    if !matches!(family, "phi3" | "glm" | "glm4") {
        let what = format!("partial_rotary_factor {factor}");
        return Err(f.unsupported(what, "heads that are rotated whole"));
    }
    let rotated = (head_dim as f64 * f64::from(factor)) as usize;
    Ok(Some(rotated.next_multiple_of(2)))
}

/// The parameters of one rope.
struct Parameters<'a> {
    of: Fields<'a>,
    /// The config's fields.
    all: &'a Fields<'a>,
    family: &'a str,
    context: usize,
}

impl Parameters<'_> {
    fn needed(&self, name: &str) -> Result<f32> {
        let number = self.of.number_or_null(name, None)?;
        number.ok_or_else(|| self.missing(name, "number"))
    }

    fn missing(&self, name: &str, what: &str) -> Error {
        let map: String = Value::Object(self.of.map.clone())
            .to_string()
            .chars()
            .take(200)
            .collect();
        let message = format!("rope_scaling has no {what} '{name}': {map}");
        Error::format(self.of.path, message)
    }

    fn factors(&self, name: &str) -> Result<Vec<f32>> {
        let list = self.of.numbers(name)?;
        list.ok_or_else(|| self.missing(name, "list of numbers"))
    }

    /// Context length before the stretch: Phi-3 has it beside the parameters, others inside.
    fn original(&self) -> Result<f32> {
        let name = "original_max_position_embeddings";
        if self.family == "phi3" {
            return self.all.number(name, 4096.0);
        }
        let inside = self.of.number(name, self.context as f64)?;
        self.all.number(name, f64::from(inside))
    }

    /// The rope, and the context length that its scaling makes.
    fn rope(&self, theta: f64) -> Result<(Rope, usize)> {
        let theta = self.of.number("rope_theta", theta)?;
        let kind = match self.of.text("rope_type")? {
            Some(kind) => kind,
            None => self.of.text("type")?.unwrap_or("default"),
        };
        let phi = self.family == "phi3" && matches!(kind, "su" | "yarn");
        let kind = if phi { "longrope" } else { kind };
        let mut stretched = 0;
        let scaling = match kind {
            "default" => RopeScaling::Plain,
            "linear" => RopeScaling::Linear(self.needed("factor")?),
            "llama3" => RopeScaling::Llama3 {
                factor: self.needed("factor")?,
                low_freq_factor: self.needed("low_freq_factor")?,
                high_freq_factor: self.needed("high_freq_factor")?,
                original_context: self.original()?,
            },
            "dynamic" => {
                let factor = self.needed("factor")?;
                stretched = (self.context as f64 * f64::from(factor)) as usize;
                RopeScaling::Dynamic {
                    factor,
                    original_context: self.context as f32,
                }
            }
            "yarn" => {
                let scaling = self.yarn()?;
                if let RopeScaling::Yarn {
                    factor,
                    original_context,
                    ..
                } = scaling
                {
                    stretched = (f64::from(original_context) * f64::from(factor)) as usize;
                }
                scaling
            }
            "longrope" => self.longrope()?,
            other => {
                let what = format!("rope_scaling of type '{other}'");
                let supported = "default, linear, llama3, dynamic, yarn, longrope";
                return Err(self.of.unsupported(what, supported));
            }
        };
        // What is beyond any context says nothing.
        let stretched = if stretched > 1 << 30 { 0 } else { stretched };
        Ok((Rope { theta, scaling }, stretched))
    }

    /// `modeling_rope_utils._compute_yarn_parameters`.
    fn yarn(&self) -> Result<RopeScaling> {
        let original_context = self.original()?;
        let factor = self.of.number_or_null("factor", None)?;
        let factor = factor.unwrap_or(self.context as f32 / original_context);
        let scale = |of: f32| match factor <= 1.0 {
            true => 1.0,
            false => 0.1 * of * factor.ln() + 1.0,
        };
        let given = |name: &str| {
            let number = self.of.number_or_null(name, None)?;
            Ok::<_, Error>(number.filter(|v| *v != 0.0))
        };
        let derived = match (given("mscale")?, given("mscale_all_dim")?) {
            (Some(of), Some(all)) => scale(of) / scale(all),
            _ => scale(1.0),
        };
        let attention_factor = self.of.number_or_null("attention_factor", None)?;
        Ok(RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast: given("beta_fast")?.unwrap_or(32.0),
            beta_slow: given("beta_slow")?.unwrap_or(1.0),
            truncate: self.of.flag("truncate", true)?,
            attention_factor: attention_factor.unwrap_or(derived),
        })
    }

    /// `modeling_rope_utils._compute_longrope_parameters`.
    fn longrope(&self) -> Result<RopeScaling> {
        let original_context = self.original()?;
        let factor = self.of.number_or_null("factor", None)?;
        let factor = factor.unwrap_or(self.context as f32 / original_context);
        let derived = match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + factor.ln() / original_context.ln()).sqrt(),
        };
        let attention_factor = self.of.number_or_null("attention_factor", None)?;
        Ok(RopeScaling::LongRope {
            short: self.factors("short_factor")?,
            long: self.factors("long_factor")?,
            original_context,
            attention_factor: attention_factor.unwrap_or(derived),
        })
    }
}

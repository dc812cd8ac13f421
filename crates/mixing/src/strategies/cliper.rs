//! Classifier guidance: one pass of a language model, its candidates rated by a small classifier,
//!
//! ```text
//! p(y) ∝ p_0(y) Π_k P(k | y_<t, y)^{s w_k}
//! ```
//!
//! CLIPer (arXiv 2605.07162). `P(k | ·)` is the chance that a response that goes on with y will be one for
//! direction k, as in FUDGE (arXiv 2104.05218).
//!
//! 1. The classifier is ours ([`experts::classifier`]): linear in the embeddings of the candidate and of the tokens
//!    before it, so that all candidates are rated at once. It does not read the prompt.
//! 2. It is fitted to beginnings of sampled responses that a scorer puts above or below others to the same prompt.
//! 3. Both ends of a dimension share one probability: that of the low end is what the high end's lacks.
//! 4. Exponents are a strength times the preference's shares.

use std::path::PathBuf;

use experts::classifier::{Classifier, ClassifierCard};
use kernels::{Isa, math};
use serde::{Deserialize, Serialize};

use super::single::known;
use super::{Instance, InstanceContext, Method, Parts, Strategy};
use crate::error::not_negative;
use crate::mixer::same_experts;
use crate::{
    BASE, Error, Mixed, Mixer, Plan, Preference, Requirements, Result, Step, normalise, owned,
};

/// A model guided by a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cliper {
    /// Folder of the classifier.
    pub model: PathBuf,
    /// Sum of the exponents. Default 16 (ours).
    #[serde(default = "default_strength")]
    pub strength: f64,
    /// Who is guided. Default: the base model (paper).
    #[serde(default = "default_expert")]
    pub expert: String,
}

fn default_strength() -> f64 {
    16.0
}

fn default_expert() -> String {
    BASE.into()
}

impl Method for Cliper {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        known(&self.expert, experts)?;
        not_negative("strength", self.strength)?;
        let card = ClassifierCard::load(&self.model)?;
        let mut guides = Vec::new();
        for (direction, share) in preference.shares()? {
            let Some((dimension, sign)) = card.locate(&direction) else {
                return Err(Error::NotTrainedFor {
                    model: "the classifier",
                    direction,
                    known: owned(&card.directions()),
                });
            };
            guides.push(Guide {
                dimension,
                sign,
                exponent: (self.strength * share) as f32,
            });
        }
        let mixer = Guided {
            model: self.model.clone(),
            guides,
            open: None,
        };
        // What one model's likeliest tokens leave out stays out; nothing else is multiplied with them.
        let requirements = Requirements::LIKELIEST;
        Ok(Plan::new(vec![self.expert.clone()], requirements, mixer))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::model(&mut self.model, |folder| {
            Classifier::load(folder)?;
            Ok(())
        })
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn at_strength(&self, strength: f64) -> Option<Strategy> {
        Some(Strategy::Cliper(Self {
            strength,
            ..self.clone()
        }))
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let guided = |strength| {
            Instance::new(Self {
                model: context.classifier.into(),
                strength,
                expert: BASE.into(),
            })
            .multiplies()
        };
        vec![guided(3.0).reference("cliper"), guided(0.0)]
    }
}

/// One direction's factor.
#[derive(Clone)]
struct Guide {
    dimension: usize,
    /// 1 at the high end of the dimension, −1 at the low one.
    sign: f32,
    exponent: f32,
}

#[derive(Clone)]
struct Guided {
    model: PathBuf,
    guides: Vec<Guide>,
    /// Many plans are made that never decode: the classifier, and zeros `[vocab]`.
    open: Option<(Classifier, Vec<f32>)>,
}

impl Mixer for Guided {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        same_experts(step, 1)?;
        if self.open.is_none() {
            let classifier = Classifier::load(&self.model)?;
            let zeros = vec![0.0; classifier.vocab()];
            self.open = Some((classifier, zeros));
        }
        let Some((classifier, zeros)) = &self.open else {
            return Err(Error::NotReady("the classifier is not open"));
        };
        if classifier.vocab() != step.next.vocab {
            return Err(Error::OtherBase(format!(
                "{}: the classifier rates {} tokens, the model has {}; it was trained for another base ({})",
                self.model.display(),
                classifier.vocab(),
                step.next.vocab,
                classifier.card().base
            )));
        }
        let guides = &self.guides;
        mixed.each(step, |sequence, out, weights| {
            out.copy_from_slice(step.next.row(0, sequence));
            weights.fill(1.0);
            let mut moved = false;
            for guide in guides.iter().filter(|g| g.exponent > 0.0) {
                let before = &step.history[sequence].tokens;
                let (d, sign, power) = (guide.dimension, guide.sign, -guide.exponent);
                let (context, token) = (classifier.context(d, before), classifier.token(d));
                // ln σ(x) = −ln(1 + e^−x)
                let (plus, minus) = if sign > 0.0 {
                    (&zeros[..], token)
                } else {
                    (token, &zeros[..])
                };
                math::softplus_add(Isa::best(), out, power, -sign * context, plus, minus);
                moved = true;
            }
            if moved {
                normalise(out);
            }
        });
        Ok(())
    }
}

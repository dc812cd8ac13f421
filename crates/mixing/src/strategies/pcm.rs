//! The Preference Control Model (arXiv 2407.04181): `p(y_t) = Σ_i α_i(x, y_<t, ξ) p_i(y_t)`, the weights of
//! every token given by a small model that reads preference and context.
//!
//! Where we differ from the paper:
//!
//! 1. only the experts that the preference names run and get weight; the softmax is over them
//! 2. the PCM reads the importances as a vector, too, and so serves degrees of a preference
//! 3. weights may be made hard, held for some tokens, or applied to log-probabilities, as ablations
//! 4. in log space they may go beyond the experts, as in DeRa: `p ∝ p_0 Π_i (p_i / p_0)^(s α_i)`
//! 5. a PCM with gates (`pcm::Output::Gates`) is trained for that form, each expert's gate on its own

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use experts::NextTokens;
use kernels::{Isa, Team, math};
use lm::LanguageModel;
use pcm::{Output, PcmConfig, Runner, Sequence, Support};
use serde::{Deserialize, Serialize};

use super::{Method, Space};
use crate::mixer::same_experts;
use crate::{BASE, Mixed, Mixer, Needs, Plan, Preference, Result, Step, mix_logs, refuse};

/// How logits become weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// Softmax (paper).
    #[default]
    Soft,
    /// All weight on the largest (as in Collab, arXiv 2503.21720).
    Hard,
}

/// Weights by a trained PCM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pcm {
    /// Folder of the PCM.
    pub model: PathBuf,
    /// How logits become weights. Default `Soft` (paper).
    #[serde(default)]
    pub choice: Choice,
    /// Tokens that weights are kept for. Default 1 (paper).
    #[serde(default = "one")]
    pub hold: usize,
    /// Where distributions are averaged. Default `None`: as the PCM was trained (paper: probabilities).
    #[serde(default)]
    pub space: Option<Space>,
    /// How far to go from the base in log space, 1 being the experts or a PCM's own gates. Default 1 (paper).
    #[serde(default = "whole")]
    pub strength: f64,
}

fn one() -> usize {
    1
}

fn whole() -> f64 {
    1.0
}

impl Method for Pcm {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        preference.directions(experts)?;
        let config = PcmConfig::load(&self.model)?;
        if (self.beyond() || config.output.reads_base()) && !experts.contains(&BASE) {
            return refuse(format!("gates and strength need an expert called '{BASE}'"));
        }
        self.plan_over(&config, Model::Folder, preference)
    }

    fn needs(&self) -> Needs {
        // A folder that cannot be read is told of when it is planned with.
        let output = PcmConfig::load(&self.model).map_or(Output::default(), |c| c.output);
        match self.beyond() {
            true => Needs::FULL,
            false => self.space_of(output).needs(),
        }
    }

    fn one_hot(&self) -> bool {
        false
    }
}

impl Pcm {
    /// The weights of a PCM that was not trained to go beyond the experts shall do so.
    fn beyond(&self) -> bool {
        self.strength != 1.0
    }

    fn space_of(&self, output: Output) -> Space {
        self.space.unwrap_or(match output {
            Output::Probabilities => Space::Probability,
            Output::Logs | Output::Gates { .. } => Space::Log,
        })
    }

    /// How a PCM in memory serves a preference; a training's own, for instance. Where experts are multiplied,
    /// `keep` likeliest tokens of each step are recorded ([`Response::records`](crate::Response::records)).
    ///
    /// # Errors
    /// A preference that names an expert which the PCM does not know.
    pub fn plan_with(&self, model: pcm::Pcm, preference: &Preference, keep: usize) -> Result<Plan> {
        let config = model.config().clone();
        let keep = if config.output.is_product() { keep } else { 0 };
        let model = Model::Loaded(Box::new(model), keep);
        self.plan_over(&config, model, preference)
    }

    fn plan_over(&self, config: &PcmConfig, model: Model, preference: &Preference) -> Result<Plan> {
        let (known, space) = (&config.experts, self.space_of(config.output));
        if self.hold == 0 {
            return refuse("hold is 0; weights are kept for at least one token");
        }
        if self.beyond() && (space != Space::Log || !self.strength.is_finite()) {
            let strength = self.strength;
            return refuse(format!(
                "strength is {strength}; other than 1 it needs space: Log, and must be a number"
            ));
        }
        if config.output.reads_base() && space != Space::Log {
            return refuse("this PCM's gates multiply experts; leave space out");
        }
        let (mut names, shares): (Vec<String>, Vec<f64>) = preference.shares()?.into_iter().unzip();
        let place = |name: &String| {
            let found = known.iter().position(|k| k == name);
            found.map_or_else(
                || {
                    refuse(format!(
                        "the PCM was not trained for '{name}'; it knows: {}",
                        known.join(", ")
                    ))
                },
                Ok,
            )
        };
        let places: Vec<usize> = names.iter().map(place).collect::<Result<_>>()?;
        let mut all = vec![0.0; known.len()];
        for (place, share) in places.iter().zip(&shares) {
            all[*place] = *share as f32;
        }
        let with_base = self.beyond() || config.output.reads_base();
        let base_at = with_base.then(|| {
            let at = names.partition_point(|name| name.as_str() < BASE);
            names.insert(at, BASE.into());
            at
        });
        let mixer = PcmMixer {
            base_at,
            output: config.output,
            space,
            strategy: self.clone(),
            text: preference.text.clone(),
            model,
            shares: all,
            places,
            open: None,
            preference: Vec::new(),
            held: HashMap::new(),
        };
        Ok(Plan::new(names, mixer))
    }
}

/// Where the PCM's weights are before decoding begins. Many plans are made that never decode.
enum Model {
    /// In the strategy's folder.
    Folder,
    /// Here, with the tokens of each step to record.
    Loaded(Box<pcm::Pcm>, usize),
}

/// What decoding needs.
struct Open {
    base: Arc<LanguageModel>,
    runner: Runner,
}

struct PcmMixer {
    strategy: Pcm,
    output: Output,
    space: Space,
    /// The preference in words.
    text: String,
    model: Model,
    /// Importance of each of the PCM's experts.
    shares: Vec<f32>,
    /// Place among the PCM's experts of each expert that runs, the base left out.
    places: Vec<usize>,
    /// Which expert is the base, where it takes part.
    base_at: Option<usize>,
    open: Option<Open>,
    /// Token ids of the preference in words.
    preference: Vec<u32>,
    /// Weights by request, where they are kept.
    held: HashMap<usize, Vec<f32>>,
}

/// Statistics of each sequence's experts at their places among the PCM's, `[sequences, width]`; empty where the
/// PCM reads none.
fn features(
    config: &PcmConfig,
    places: &[usize],
    experts: &[usize],
    next: &NextTokens,
) -> Vec<f32> {
    if !config.statistics {
        return Vec::new();
    }
    let width = config.statistics_width();
    let mut out = vec![0.0; next.sequences * width];
    Team::global().for_each_row(&mut out, width, |sequence, own| {
        let rows = experts.iter().map(|&e| next.row(e, sequence));
        let rows: Vec<&[f32]> = rows.collect();
        let (each, divergence) = statistics(&rows);
        for (place, (entropy, top)) in places.iter().zip(each) {
            (own[2 * place], own[2 * place + 1]) = (entropy, top);
        }
        own[width - 1] = divergence;
    });
    out
}

/// Entropy in nats and top-1 probability of each distribution of log-probabilities, and their
/// Jensen-Shannon divergence in nats.
pub fn statistics(rows: &[&[f32]]) -> (Vec<(f32, f32)>, f32) {
    let isa = Isa::best();
    let mut mean = vec![0.0; rows.first().map_or(0, |r| r.len())];
    let (mut each, mut total) = (Vec::new(), 0.0);
    for row in rows {
        let own = math::entropy(isa, row);
        each.push((own as f32, math::largest(isa, row).exp()));
        total += own / rows.len() as f64;
        math::exp_add(isa, &mut mean, 1.0 / rows.len() as f32, row);
    }
    let divergence = (math::entropy_of_probabilities(isa, &mean) - total).max(0.0);
    (each, divergence as f32)
}

impl Mixer for PcmMixer {
    fn open(&mut self, model: &Arc<LanguageModel>) -> Result<()> {
        let pcm = match &self.model {
            Model::Folder => pcm::Pcm::load(&self.strategy.model)?,
            Model::Loaded(pcm, _) => pcm.as_ref().clone(),
        };
        let (width, reads) = (model.config().hidden_size, pcm.config().embedding);
        if let Some(origin) = &pcm.config().origin {
            let (own, vocabulary) = (origin.vocabulary, model.config().vocab_size);
            if own != vocabulary {
                return refuse(format!(
                    "the PCM reads a vocabulary of {own} tokens, the model's has {vocabulary}; it was trained for \
                     another base"
                ));
            }
        } else if width != reads {
            return refuse(format!(
                "the PCM reads embeddings of width {reads}, the model's are {width} wide; it was trained \
                 for another base"
            ));
        }
        self.preference = model.tokenizer.encode(&self.text, false)?;
        self.open = Some(Open {
            base: model.clone(),
            runner: Runner::new(pcm),
        });
        Ok(())
    }

    fn reads_context(&self) -> bool {
        true
    }

    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        let next = step.next;
        same_experts(
            step,
            self.places.len() + usize::from(self.base_at.is_some()),
        )?;
        let own = (0..next.experts).filter(|e| Some(*e) != self.base_at);
        let own: Vec<usize> = own.collect();
        let with_gates = self.output.reads_base();
        let Some(Open { base, runner }) = &mut self.open else {
            return refuse("the PCM was not opened with a model");
        };
        let config = runner.pcm().config();
        let features = features(config, &self.places, &own, next);
        let width = features.len() / next.sequences.max(1);
        let reads_text = config.preference != pcm::PreferenceInput::Weights;
        let contexts: Vec<Vec<u32>> = step
            .history
            .iter()
            .map(|h| match (h.tokens.is_empty(), reads_text) {
                (true, true) => [self.preference.as_slice(), &h.context].concat(),
                (true, false) => h.context.clone(),
                (false, _) => Vec::new(),
            })
            .collect();
        let sequences: Vec<Sequence<'_>> = step
            .history
            .iter()
            .zip(&contexts)
            .enumerate()
            .map(|(i, (history, context))| Sequence {
                id: history.request,
                context,
                response: &history.tokens,
                shares: &self.shares,
                statistics: &features[i * width..(i + 1) * width],
            })
            .collect();
        let logits = runner.step(&sequences, &|token, out: &mut [f32]| {
            // Tokens come from this model; one from elsewhere reads as nothing.
            if base.engine.embedding(token, out).is_err() {
                out.fill(0.0);
            }
        })?;
        let n = self.shares.len();
        let mut weights = Vec::with_capacity(next.sequences * self.places.len());
        for (logits, history) in logits.chunks(n).zip(step.history) {
            let all = self.output.weights(logits, &self.shares);
            let mut own: Vec<f32> = self.places.iter().map(|p| all[*p] as f32).collect();
            if self.strategy.choice == Choice::Hard {
                let best = own.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                let best = best.map_or(0, |(i, _)| i);
                let whole = if with_gates { own[best] } else { 1.0 };
                own.fill(0.0);
                own[best] = whole;
            }
            if self.strategy.hold > 1 {
                if history.tokens.len().is_multiple_of(self.strategy.hold) {
                    self.held.insert(history.request, own.clone());
                } else if let Some(held) = self.held.get(&history.request) {
                    own.clone_from(held);
                }
            }
            weights.extend(own);
        }
        mixed.features = features;
        let (experts, strength) = (self.places.len(), self.strategy.strength as f32);
        let (base_at, space) = (self.base_at, self.space);
        let of = |sequence: usize| &weights[sequence * experts..(sequence + 1) * experts];
        let weigh = |sequence: usize, used: &mut [f32]| {
            let weights = of(sequence);
            let moved = own.iter().zip(weights);
            match base_at {
                None => used.copy_from_slice(weights),
                Some(base) => {
                    moved.for_each(|(&place, w)| used[place] = strength * w);
                    let sum: f32 = if with_gates {
                        weights.iter().sum()
                    } else {
                        1.0
                    };
                    used[base] = 1.0 - strength * sum;
                }
            }
        };
        match space {
            Space::Probability => mixed.probabilities(step, weigh),
            Space::Log => mixed.each(step, |sequence, out, used| {
                weigh(sequence, used);
                let rows: Vec<&[f32]> = (0..next.experts).map(|e| next.row(e, sequence)).collect();
                mix_logs(&rows, used, out);
            }),
        }
        if let Model::Loaded(_, keep @ 1..) = self.model {
            let all: Vec<Mutex<Vec<f32>>> = (0..next.sequences).map(|_| Mutex::default()).collect();
            Team::global().for_each(next.sequences, |sequence| {
                let rows: Vec<&[f32]> = own.iter().map(|&e| next.row(e, sequence)).collect();
                let weights: Vec<f64> = of(sequence).iter().map(|w| f64::from(*w)).collect();
                let base = base_at.map(|base| next.row(base, sequence));
                let width = mixed.log_probs.len() / next.sequences;
                let out = &mixed.log_probs[sequence * width..(sequence + 1) * width];
                let mut record = all[sequence].lock().unwrap_or_else(|e| e.into_inner());
                Support::record(keep, out, &rows, base, &weights, &mut record);
            });
            let all = all.into_iter();
            let all = all.map(|own| own.into_inner().unwrap_or_else(|e| e.into_inner()));
            mixed.records = all.flatten().collect();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_known_distributions() {
        let (even, sure) = ([0.5f32.ln(); 2], [0.0, f32::NEG_INFINITY]);
        let (each, divergence) = statistics(&[&even, &sure]);
        let near = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 1e-6, "{a} {b}");
        near(each[0].0, 2f64.ln());
        near(each[0].1, 0.5);
        near(each[1].0, 0.0);
        near(each[1].1, 1.0);
        // H(3/4, 1/4) less the mean of ln 2 and 0.
        let mixed = -(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        near(divergence, mixed - 2f64.ln() / 2.0);
        near(statistics(&[&even, &even]).1, 0.0);
        // A mean below the smallest normal number has no logarithm of its own.
        let (hardly, never) = ([0.0, -87.0], [0.0, -89.0]);
        near(statistics(&[&hardly, &never, &never]).1, 0.0);
    }
}

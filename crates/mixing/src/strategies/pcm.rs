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

use super::{Instance, InstanceContext, Method, Parts, Space, Strategy};
use crate::error::at_least_one;
use crate::mixer::same_experts;
use crate::{
    BASE, Error, History, Mixed, Mixer, Plan, Preference, Requirements, Result, Step, mix_logs,
};

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
    #[serde(default = "default_hold")]
    pub hold: usize,
    /// Where distributions are averaged. Default `None`: as the PCM was trained (paper: probabilities).
    #[serde(default)]
    pub space: Option<Space>,
    /// How far to go from the base in log space, 1 being the experts or a PCM's own gates. Default 1 (paper).
    #[serde(default = "default_strength")]
    pub strength: f64,
}

fn default_hold() -> usize {
    1
}

fn default_strength() -> f64 {
    1.0
}

impl Method for Pcm {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        preference.directions(experts)?;
        let config = PcmConfig::load(&self.model)?;
        if self.reads_base(config.output) && !experts.contains(&BASE) {
            return Err(Error::Combination(
                "gates and strength need an expert called 'base'",
            ));
        }
        self.plan_over(&config, Model::Folder, preference)
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::model(&mut self.model, |folder| {
            pcm::Pcm::load(folder)?;
            Ok(())
        })
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    /// Only log space goes past a PCM's own weights.
    fn at_strength(&self, strength: f64) -> Option<Strategy> {
        let beyond = strength != 1.0;
        Some(Strategy::Pcm(Self {
            strength,
            space: if beyond { Some(Space::Log) } else { self.space },
            ..self.clone()
        }))
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let plain = Self::of(context.pcm);
        let held = Self {
            choice: Choice::Hard,
            hold: 3,
            ..plain.clone()
        };
        let beyond = Self {
            space: Some(Space::Log),
            strength: 1.5,
            ..plain.clone()
        };
        vec![
            Instance::new(plain),
            Instance::new(held),
            Instance::new(beyond).multiplies(),
        ]
    }
}

impl Pcm {
    /// The PCM in a folder, used as it was trained.
    pub fn of(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            choice: Choice::default(),
            hold: default_hold(),
            space: None,
            strength: default_strength(),
        }
    }

    /// The weights of a PCM that was not trained to go beyond the experts shall do so.
    fn beyond(&self) -> bool {
        self.strength != 1.0
    }

    /// The base runs, too.
    fn reads_base(&self, output: Output) -> bool {
        self.beyond() || output.reads_base()
    }

    fn space_of(&self, output: Output) -> Space {
        self.space.unwrap_or(match output {
            Output::Probabilities => Space::Probability,
            Output::Logs | Output::Gates { .. } => Space::Log,
        })
    }

    /// How a PCM in memory serves a preference; a training's own, for instance. Where experts are multiplied,
    /// the `keep` likeliest tokens of each step are recorded
    /// ([`Response::truncated_distributions`](crate::Response::truncated_distributions)).
    ///
    /// # Errors
    /// A preference that names an expert which the PCM does not know.
    pub fn plan_with(&self, model: pcm::Pcm, preference: &Preference, keep: usize) -> Result<Plan> {
        let config = model.config().clone();
        let keep = if config.output.is_product() { keep } else { 0 };
        let model = Model::Loaded(Arc::new(model), keep);
        self.plan_over(&config, model, preference)
    }

    /// Checks the parameters against the PCM's kind of output.
    fn check(&self, output: Output) -> Result<()> {
        at_least_one("hold", self.hold)?;
        let space = self.space_of(output);
        if self.beyond() && (space != Space::Log || !self.strength.is_finite()) {
            let expected = "1; any other number needs space: Log";
            return Err(Error::parameter("strength", self.strength, expected));
        }
        if output.reads_base() && space != Space::Log {
            return Err(Error::Combination(
                "this PCM's gates multiply experts; leave space out",
            ));
        }
        Ok(())
    }

    fn plan_over(&self, config: &PcmConfig, model: Model, preference: &Preference) -> Result<Plan> {
        self.check(config.output)?;
        let (mut names, stated): (Vec<String>, Vec<f64>) = preference.shares()?.into_iter().unzip();
        let known = &config.experts;
        let mut indices = Vec::with_capacity(names.len());
        let mut shares = vec![0.0; known.len()];
        for (name, share) in names.iter().zip(stated) {
            let Some(index) = known.iter().position(|expert| expert == name) else {
                return Err(Error::NotTrainedFor {
                    model: "the PCM",
                    direction: name.clone(),
                    known: known.clone(),
                });
            };
            shares[index] = share as f32;
            indices.push(index);
        }
        let base_at = self.reads_base(config.output).then(|| {
            let at = names.partition_point(|name| name.as_str() < BASE);
            names.insert(at, BASE.into());
            at
        });
        let space = self.space_of(config.output);
        let requirements = match self.beyond() {
            true => Requirements::FULL,
            false => space.requirements(),
        };
        let mixer = PcmMixer {
            base_at,
            output: config.output,
            space,
            strategy: self.clone(),
            text: preference.text.clone(),
            model,
            shares,
            indices,
            open: None,
            preference: Vec::new(),
            held: HashMap::new(),
        };
        Ok(Plan::new(names, requirements, mixer))
    }
}

/// Where the PCM's parameters are before decoding begins. Many plans are made that never decode.
#[derive(Clone)]
enum Model {
    /// In the strategy's folder.
    Folder,
    /// Here, with the number of tokens of each step to record.
    Loaded(Arc<pcm::Pcm>, usize),
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
    /// Which of the PCM's experts each one that runs is, the base left out.
    indices: Vec<usize>,
    /// Which expert is the base, where it takes part.
    base_at: Option<usize>,
    open: Option<Open>,
    /// Token ids of the preference in words.
    preference: Vec<u32>,
    /// Weights by request, where they are kept.
    held: HashMap<usize, Vec<f32>>,
}

impl Clone for PcmMixer {
    /// A mixer for the same preference that is not open and has read nothing.
    fn clone(&self) -> Self {
        Self {
            strategy: self.strategy.clone(),
            output: self.output,
            space: self.space,
            text: self.text.clone(),
            model: self.model.clone(),
            shares: self.shares.clone(),
            indices: self.indices.clone(),
            base_at: self.base_at,
            open: None,
            preference: Vec::new(),
            held: HashMap::new(),
        }
    }
}

/// Statistics of each sequence's experts, where the PCM reads them, `[sequences, width]`; empty where it reads none.
/// `experts` are those that run without the base, `indices` say which of the PCM's they are.
fn expert_statistics(
    config: &PcmConfig,
    indices: &[usize],
    experts: &[usize],
    next: &NextTokens,
) -> Vec<f32> {
    if !config.statistics {
        return Vec::new();
    }
    let width = config.statistics_width();
    let mut out = vec![0.0; next.sequences * width];
    Team::global().for_each_row(&mut out, width, |sequence, row| {
        let rows = experts.iter().map(|&e| next.row(e, sequence));
        let rows: Vec<&[f32]> = rows.collect();
        let (by_expert, divergence) = statistics(&rows);
        for (index, (entropy, top)) in indices.iter().zip(by_expert) {
            (row[2 * index], row[2 * index + 1]) = (entropy, top);
        }
        row[width - 1] = divergence;
    });
    out
}

/// Entropy in nats and top-1 probability of each distribution of log-probabilities, and their
/// Jensen-Shannon divergence in nats.
pub fn statistics(rows: &[&[f32]]) -> (Vec<(f32, f32)>, f32) {
    let isa = Isa::best();
    let mut mean = vec![0.0; rows.first().map_or(0, |r| r.len())];
    let (mut by_expert, mut mean_entropy) = (Vec::new(), 0.0);
    for row in rows {
        let entropy = math::entropy(isa, row);
        by_expert.push((entropy as f32, math::largest(isa, row).exp()));
        mean_entropy += entropy / rows.len() as f64;
        math::exp_add(isa, &mut mean, 1.0 / rows.len() as f32, row);
    }
    let divergence = (math::entropy_of_probabilities(isa, &mean) - mean_entropy).max(0.0);
    (by_expert, divergence as f32)
}

impl PcmMixer {
    /// The PCM's outputs for the next token of each sequence, `[sequences, all of the PCM's experts]`.
    fn logits(&mut self, step: &Step<'_>, statistics: &[f32]) -> Result<Vec<f32>> {
        let Some(Open { base, runner }) = &mut self.open else {
            return Err(NOT_OPEN);
        };
        let reads_text = runner.pcm().config().preference != pcm::PreferenceInput::Weights;
        let context = |history: &History| match (history.tokens.is_empty(), reads_text) {
            (true, true) => [self.preference.as_slice(), &history.context].concat(),
            (true, false) => history.context.clone(),
            (false, _) => Vec::new(),
        };
        let contexts: Vec<Vec<u32>> = step.history.iter().map(context).collect();
        let width = statistics.len() / step.next.sequences.max(1);
        let histories = step.history.iter().zip(&contexts).enumerate();
        let sequences = histories.map(|(i, (history, context))| Sequence {
            id: history.request,
            context,
            response: &history.tokens,
            shares: &self.shares,
            statistics: &statistics[i * width..(i + 1) * width],
        });
        let embed = |token, out: &mut [f32]| {
            // Tokens come from this model; one from elsewhere reads as nothing.
            if base.engine.embedding(token, out).is_err() {
                out.fill(0.0);
            }
        };
        Ok(runner.step(&sequences.collect::<Vec<_>>(), &embed)?)
    }

    /// Weights of the experts that run, the base left out, `[sequences, experts]`.
    fn weights(&mut self, logits: &[f32], histories: &[History]) -> Vec<f32> {
        let mut weights = Vec::with_capacity(histories.len() * self.indices.len());
        for (logits, history) in logits.chunks(self.shares.len()).zip(histories) {
            let all = self.output.weights(logits, &self.shares);
            let mut row: Vec<f32> = self.indices.iter().map(|i| all[*i] as f32).collect();
            if self.strategy.choice == Choice::Hard {
                let largest = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                let largest = largest.map_or(0, |(i, _)| i);
                let gate = if self.output.reads_base() {
                    row[largest]
                } else {
                    1.0
                };
                row.fill(0.0);
                row[largest] = gate;
            }
            if self.strategy.hold > 1 {
                if history.tokens.len().is_multiple_of(self.strategy.hold) {
                    self.held.insert(history.request, row.clone());
                } else if let Some(held) = self.held.get(&history.request) {
                    row.clone_from(held);
                }
            }
            weights.extend(row);
        }
        weights
    }

    /// Mixes with these weights; `experts` are those that run without the base. What they leave over is the base's.
    fn combine(&self, step: &Step<'_>, experts: &[usize], weights: &[f32], mixed: &mut Mixed) {
        let (count, strength) = (experts.len(), self.strategy.strength as f32);
        let with_gates = self.output.reads_base();
        let weigh = |sequence: usize, used: &mut [f32]| {
            let weights = &weights[sequence * count..(sequence + 1) * count];
            let Some(base) = self.base_at else {
                return used.copy_from_slice(weights);
            };
            for (expert, weight) in experts.iter().zip(weights) {
                used[*expert] = strength * weight;
            }
            let sum: f32 = if with_gates {
                weights.iter().sum()
            } else {
                1.0
            };
            used[base] = 1.0 - strength * sum;
        };
        match self.space {
            Space::Probability => mixed.probabilities(step, weigh),
            Space::Log => mixed.each(step, |sequence, out, used| {
                weigh(sequence, used);
                let rows = (0..step.next.experts).map(|e| step.next.row(e, sequence));
                mix_logs(&rows.collect::<Vec<_>>(), used, out);
            }),
        }
    }

    /// The `keep` likeliest tokens of each mixed distribution as a training needs them, `[sequences, width]`.
    fn truncate(
        &self,
        next: &NextTokens,
        experts: &[usize],
        weights: &[f32],
        log_probs: &[f32],
        keep: usize,
    ) -> Vec<f32> {
        let records: Vec<Mutex<Vec<f32>>> = (0..next.sequences).map(|_| Mutex::default()).collect();
        Team::global().for_each(next.sequences, |sequence| {
            let rows: Vec<&[f32]> = experts.iter().map(|&e| next.row(e, sequence)).collect();
            let count = experts.len();
            let weights = weights[sequence * count..(sequence + 1) * count].iter();
            let weights: Vec<f64> = weights.map(|w| f64::from(*w)).collect();
            let base = self.base_at.map(|base| next.row(base, sequence));
            let mixed = &log_probs[sequence * next.vocab..(sequence + 1) * next.vocab];
            let mut record = records[sequence].lock().unwrap_or_else(|e| e.into_inner());
            Support::record(keep, mixed, &rows, base, &weights, &mut record);
        });
        let records = records.into_iter();
        let records = records.map(|record| record.into_inner().unwrap_or_else(|e| e.into_inner()));
        records.flatten().collect()
    }
}

const NOT_OPEN: Error = Error::NotReady("the PCM was not opened with a model");

impl Mixer for PcmMixer {
    fn open(&mut self, model: &Arc<LanguageModel>) -> Result<()> {
        let pcm = match &self.model {
            Model::Folder => pcm::Pcm::load(&self.strategy.model)?,
            Model::Loaded(pcm, _) => pcm.as_ref().clone(),
        };
        let (width, reads) = (model.config().hidden_size, pcm.config().embedding);
        if let Some(origin) = &pcm.config().origin {
            let (expected, vocabulary) = (origin.vocabulary, model.config().vocab_size);
            if expected != vocabulary {
                return Err(Error::OtherBase(format!(
                    "the PCM reads a vocabulary of {expected} tokens, the model's has {vocabulary}; it was trained \
                     for another base"
                )));
            }
        } else if width != reads {
            return Err(Error::OtherBase(format!(
                "the PCM reads embeddings of width {reads}, the model's are {width} wide; it was trained \
                 for another base"
            )));
        }
        self.preference = model.tokenizer.encode_text(&self.text)?;
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
        let running = self.indices.len() + usize::from(self.base_at.is_some());
        same_experts(step, running)?;
        let experts = (0..next.experts).filter(|e| Some(*e) != self.base_at);
        let experts: Vec<usize> = experts.collect();
        let config = self.open.as_ref().ok_or(NOT_OPEN)?.runner.pcm().config();
        let statistics = expert_statistics(config, &self.indices, &experts, next);
        let logits = self.logits(step, &statistics)?;
        let weights = self.weights(&logits, step.history);
        mixed.expert_statistics = statistics;
        self.combine(step, &experts, &weights, mixed);
        if let Model::Loaded(_, keep @ 1..) = self.model {
            let log_probs = &mixed.log_probs;
            mixed.truncated_distributions =
                self.truncate(next, &experts, &weights, log_probs, keep);
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
        let (by_expert, divergence) = statistics(&[&even, &sure]);
        let near = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 1e-6, "{a} {b}");
        near(by_expert[0].0, 2f64.ln());
        near(by_expert[0].1, 0.5);
        near(by_expert[1].0, 0.0);
        near(by_expert[1].1, 1.0);
        // H(3/4, 1/4) less the mean of ln 2 and 0.
        let mixed = -(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        near(divergence, mixed - 2f64.ln() / 2.0);
        near(statistics(&[&even, &even]).1, 0.0);
        // A mean below the smallest normal number has no logarithm of its own.
        let (hardly, never) = ([0.0, -87.0], [0.0, -89.0]);
        near(statistics(&[&hardly, &never, &never]).1, 0.0);
    }
}

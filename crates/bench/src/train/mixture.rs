//! Online training of the Preference Control Model: responses of the current mixture, their utility, a fit to
//! the records; again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use eval::dimension::{Dimensions, locate};
use eval::rewards::Reward;
use eval::utility::Stated;
use experts::training::Checkpoint;
use experts::{Expert, ExpertPool};
use lm::sampling::{Draws, Sampling, permutation};
use lm::{DeviceSpec, LanguageModel};
use mixing::strategies::Choice;
use mixing::{Generation, Generator, Plan, Preference, Request, Response, Strategy, TemperatureOf};
use pcm::{Context, Fit, Pcm, PcmTrainer, PreferenceInput, Rollout, read_rollouts, write_rollouts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::file::{PcmTraining, Preferences, Training};
use super::{Standing, resume, write};
use crate::cli::TrainArgs;
use crate::commands::Global;
use crate::failure::usage;
use crate::models::Models;
use crate::progress::Progress;
use crate::prompts::{self, NamedPrompt};
use crate::run::folder::parquet_files;

/// Sequences decoded together (ours).
const WIDTH: usize = 16;

/// Wordings of a direction; other fields are allowed and ignored.
#[derive(Debug, Deserialize)]
struct Wordings {
    train: Vec<String>,
}

/// What an iteration did.
#[derive(Debug, Serialize)]
struct Round {
    iteration: u64,
    utility: f64,
    /// Divergence from the base in nats per token, where it is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<f64>,
    length: f64,
    ended: f64,
    #[serde(flatten)]
    fit: Fit,
}

/// What an iteration sampled, and what it was like.
struct Sampled {
    rollouts: Vec<Rollout>,
    round: Round,
}

/// Whom an iteration serves.
struct Wish {
    preference: Preference,
    prompts: Vec<usize>,
    draws: u64,
}

pub fn train(
    global: &Global,
    args: &TrainArgs,
    training: &Training,
    recipe: &PcmTraining,
    out: &Path,
    inputs: &Value,
) -> Result<()> {
    let mixture = Mixture::open(training, recipe)?;
    let names: Vec<&str> = recipe.experts.names();
    let mut config = recipe
        .shape
        .config(&names, mixture.base.config().hidden_size);
    config.preference = recipe.input.preference;
    config.context = recipe.input.context;
    config.statistics = recipe.input.statistics;
    config.output = recipe.output;
    let mut pcm = Pcm::new(&config, training.seed).map_err(|e| usage(e.to_string()))?;
    let file = out.join("checkpoint.safetensors");
    let mut values = pcm.values().to_vec();
    let known = json!({"training": training, "inputs": inputs});
    let (adam, mut standing) = resume(&file, known, 0.0, &mut values)?;
    pcm.set_values(&values);
    let steps = recipe.total_steps();
    let mut trainer = PcmTrainer::new(pcm, recipe.settings.fit.clone(), adam, steps)?;
    let rollouts = out.join("rollouts");
    std::fs::create_dir_all(&rollouts).with_context(|| rollouts.display().to_string())?;
    let began = Instant::now();
    let total = recipe.settings.iterations;
    let end = args
        .stop_after
        .map_or(total, |n| total.min(standing.done + n as u64));
    let mut progress = Progress::new("train", "iterations", total);
    progress.skip(standing.done);
    let save = |trainer: &PcmTrainer, standing: &Standing| {
        let checkpoint = Checkpoint {
            values: trainer.pcm.values().to_vec(),
            adam: trainer.adam.state.clone(),
            progress: standing.clone(),
        };
        checkpoint.save(&file)
    };
    let given = mixture.given()?;
    if standing.done == 0 && !given.is_empty() {
        let fit = mixture.replay(&given, &mut trainer, 0)?;
        eprintln!(
            "{} recorded responses explain {:.1} % of held-out pairs",
            given.len(),
            100.0 * fit.explained
        );
        if total == 0 {
            standing.note(&mixture.recorded(&given, fit))?;
        }
    }
    while standing.done < end {
        let number = standing.done;
        let records = mixture.sample(number, &trainer)?;
        write_rollouts(
            &rollouts.join(format!("{number:05}.parquet")),
            &records.rollouts,
        )?;
        let fit = match recipe.settings.replay {
            true => {
                let mut all = given.clone();
                for before in 0..=number {
                    all.extend(read_rollouts(
                        &rollouts.join(format!("{before:05}.parquet")),
                    )?);
                }
                mixture.replay(&all, &mut trainer, number)?
            }
            false => mixture.fit(&records.rollouts, &mut trainer, number)?,
        };
        let round = Round {
            fit,
            ..records.round
        };
        progress.message(format!(
            "utility {:.3}{} entropy {:.2} length {:.0}",
            round.utility,
            round.kl.map_or(String::new(), |kl| format!(" KL {kl:.2}")),
            round.fit.entropy,
            round.length
        ));
        standing.note(&round)?;
        progress.advance(1);
        save(&trainer, &standing)?;
    }
    progress.finish();
    standing.close(began);
    save(&trainer, &standing)?;
    let folder = out.join("pcm");
    trainer.pcm.save(&folder)?;
    write(training, out, &standing, &args.file, inputs)?;
    let finished = standing.done >= total;
    let document = json!({
        "training": training.name,
        "finished": finished,
        "done": standing.done,
        "pcm": folder.display().to_string(),
        "last": standing.metrics.last(),
    });
    global.print(document, || {
        let state = if finished { "trained" } else { "interrupted" };
        let done = standing.done;
        format!("{state} after {done} iterations; PCM: {}", folder.display())
    })
}

/// Everything that responses and their worth come from.
struct Mixture<'a> {
    training: &'a Training,
    recipe: &'a PcmTraining,
    base: Arc<LanguageModel>,
    experts: HashMap<String, Expert>,
    prompts: Vec<NamedPrompt>,
    dimensions: Dimensions,
    rewards: BTreeMap<String, Box<dyn Reward>>,
    wordings: BTreeMap<String, Wordings>,
    /// Normalised rewards of the base's response by prompt.
    references: std::sync::Mutex<HashMap<usize, Vec<f64>>>,
}

impl<'a> Mixture<'a> {
    fn open(training: &'a Training, recipe: &'a PcmTraining) -> Result<Self> {
        let mut models = Models::on(&DeviceSpec::Flex, training.sampling_weights)?;
        let base = models.open(&training.model)?;
        let mut experts = HashMap::new();
        for (name, spec) in recipe.experts.iter() {
            experts.insert(name.to_string(), models.expert(name, spec, &base)?);
        }
        let text = std::fs::read_to_string(&recipe.texts)
            .map_err(|e| usage(format!("{}: {e}", recipe.texts.display())))?;
        let wordings: BTreeMap<String, Wordings> = serde_json::from_str(&text)
            .map_err(|e| usage(format!("{}: {e}", recipe.texts.display())))?;
        let dimensions: Dimensions = recipe
            .dimensions
            .iter()
            .map(|(n, d)| (n.to_string(), d.clone()))
            .collect();
        for dimension in dimensions.values() {
            for direction in [&dimension.low, &dimension.high] {
                if wordings.get(direction).is_none_or(|w| w.train.is_empty()) {
                    let file = recipe.texts.display();
                    return Err(usage(format!(
                        "{file}: there are no words for '{direction}'"
                    )));
                }
            }
        }
        let mut rewards = BTreeMap::new();
        for (name, dimension) in &dimensions {
            rewards.insert(name.clone(), dimension.scorer.open()?);
        }
        Ok(Self {
            training,
            recipe,
            base,
            experts,
            prompts: prompts::load(&recipe.prompts)?,
            rewards,
            dimensions,
            wordings,
            references: std::sync::Mutex::default(),
        })
    }

    /// Rollouts of earlier trainings.
    fn given(&self) -> Result<Vec<Rollout>> {
        let mut all = Vec::new();
        for folder in &self.recipe.records {
            let paths = parquet_files(folder).map_err(|e| usage(format!("records: {e:#}")))?;
            for path in &paths {
                all.extend(read_rollouts(path)?);
            }
            if all.is_empty() {
                return Err(usage(format!(
                    "records: {}: there are no rollouts (*.parquet)",
                    folder.display()
                )));
            }
        }
        Ok(all)
    }

    /// Fits to what was just sampled.
    fn fit(&self, rollouts: &[Rollout], trainer: &mut PcmTrainer, number: u64) -> Result<Fit> {
        let seed = self.training.seed.to_le_bytes();
        let parts: [&[u8]; 3] = [&seed, b"fit", &number.to_le_bytes()];
        Ok(trainer.fit(rollouts, &|token, out| self.embed(token, out), &parts)?)
    }

    /// Fits to everything, anew.
    fn replay(&self, all: &[Rollout], trainer: &mut PcmTrainer, number: u64) -> Result<Fit> {
        let seed = self.training.seed.to_le_bytes();
        let parts: [&[u8]; 3] = [&seed, b"replay", &number.to_le_bytes()];
        let fresh = Pcm::new(trainer.pcm.config(), self.training.seed)?;
        Ok(trainer.replay(all, &fresh, &|token, out| self.embed(token, out), &parts)?)
    }

    /// What a training that samples nothing has to tell of the records that it was given.
    fn recorded(&self, all: &[Rollout], fit: Fit) -> Round {
        let n = all.len() as f64;
        let tokens: usize = all.iter().map(|r| r.tokens.len()).sum();
        let ended = |r: &&Rollout| {
            r.tokens
                .last()
                .is_some_and(|t| self.base.end_tokens.contains(t))
        };
        Round {
            iteration: 0,
            utility: all.iter().map(|r| r.utility).sum::<f64>() / n,
            kl: None,
            length: tokens as f64 / n,
            ended: all.iter().filter(ended).count() as f64 / n,
            fit,
        }
    }

    fn embed(&self, token: u32, out: &mut [f32]) {
        // Tokens come from this model; one from elsewhere would read as nothing.
        if self.base.engine.embedding(token, out).is_err() {
            out.fill(0.0);
        }
    }

    /// Samples and scores once.
    fn sample(&self, number: u64, trainer: &PcmTrainer) -> Result<Sampled> {
        let mut rollouts = Vec::new();
        let (mut ended, mut tokens, mut kl, mut utility) = (0.0, 0.0, 0.0, 0.0);
        for wish in self.wishes(number)? {
            let (plan, shares) = self.plan(&trainer.pcm, &wish.preference)?;
            let responses = self.respond(plan, &wish.prompts, wish.draws, 2)?;
            for (i, response) in responses.iter().enumerate() {
                ended += f64::from(u8::from(response.ended));
                tokens += response.tokens.len() as f64;
                let prompt = wish.prompts[i / 2];
                let divergence = divergence(response);
                kl += divergence;
                let mut rollout =
                    self.record(prompt, &wish.preference, &shares, response, trainer)?;
                utility += rollout.utility;
                rollout.utility -= self.recipe.settings.kl * divergence;
                rollouts.push(rollout);
            }
        }
        let n = rollouts.len() as f64;
        let round = Round {
            iteration: number,
            utility: utility / n,
            kl: (self.recipe.settings.kl > 0.0).then_some(kl / n),
            length: tokens / n,
            ended: ended / n,
            fit: Fit::default(),
        };
        Ok(Sampled { rollouts, round })
    }

    /// Preferences of an iteration, each with its prompts: a walk through permutations of all prompts.
    fn wishes(&self, number: u64) -> Result<Vec<Wish>> {
        let settings = &self.recipe.settings;
        let seed = self.training.seed.to_le_bytes();
        let all = self.prompts.len() as u64;
        let names: Vec<&String> = self.dimensions.keys().collect();
        let mut wishes = Vec::new();
        for i in 0..settings.preferences as u64 {
            let place = number * settings.preferences as u64 + i;
            let mut draws = Draws::new(&[&seed, b"wish", &place.to_le_bytes()]);
            let mut count = 0;
            let mut draw = || {
                count += 1;
                draws.uniform(count)
            };
            let mut weights: Vec<(String, f64)> = Vec::new();
            match self.recipe.preferences {
                Preferences::Enumerated => {
                    for (bit, name) in names.iter().enumerate() {
                        let dimension = &self.dimensions[*name];
                        let high = place >> bit & 1 == 1;
                        let end = if high {
                            &dimension.high
                        } else {
                            &dimension.low
                        };
                        weights.push((end.clone(), 1.0));
                    }
                }
                Preferences::Dirichlet { alpha } => {
                    let order = permutation(names.len(), &[&seed, b"subset", &place.to_le_bytes()]);
                    let size = 1 + (draw() * names.len() as f64) as usize;
                    for index in order.into_iter().take(size) {
                        let dimension = &self.dimensions[names[index]];
                        let end = if draw() < 0.5 {
                            &dimension.high
                        } else {
                            &dimension.low
                        };
                        weights.push((end.clone(), gamma(alpha, &mut draw).max(1e-3)));
                    }
                }
            }
            weights.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            let texts = weights.iter().map(|(direction, _)| {
                let known = &self.wordings[direction].train;
                known[((draw() * known.len() as f64) as usize).min(known.len() - 1)].as_str()
            });
            let text = texts.collect::<Vec<_>>().join(" ");
            let prompts = (0..settings.prompts as u64).map(|j| {
                let at = place * settings.prompts as u64 + j;
                let round = (at / all).to_le_bytes();
                permutation(all as usize, &[&seed, b"prompts", &round])[(at % all) as usize]
            });
            wishes.push(Wish {
                preference: Preference {
                    text,
                    weights: weights.into_iter().collect(),
                },
                prompts: prompts.collect(),
                draws: place,
            });
        }
        Ok(wishes)
    }

    fn plan(&self, pcm: &Pcm, preference: &Preference) -> Result<(Plan, Vec<f32>)> {
        let strategy = mixing::strategies::Pcm {
            model: Default::default(),
            choice: Choice::Soft,
            hold: 1,
            space: None,
            strength: 1.0,
        };
        let stated: BTreeMap<String, f64> = preference.shares()?.into_iter().collect();
        let share = |name: &String| stated.get(name).map_or(0.0, |s| *s as f32);
        let shares = pcm.config().experts.iter().map(share).collect();
        let keep = self.recipe.settings.keep;
        Ok((strategy.plan_with(pcm.clone(), preference, keep)?, shares))
    }

    fn respond(
        &self,
        plan: Plan,
        prompts: &[usize],
        draws: u64,
        samples: u64,
    ) -> Result<Vec<Response>> {
        let expert = |name: &String| match self.experts.get(name) {
            Some(expert) => expert.clone(),
            None => Expert {
                name: name.clone(),
                model: self.base.clone(),
                adapter: None,
                instruction: None,
                top_k: None,
            },
        };
        let experts = plan.experts.iter().map(expert).collect();
        let pool = match self.recipe.settings.kl > 0.0 {
            true => ExpertPool::with_reference(experts, expert(&mixing::BASE.to_string()), false)?,
            false => ExpertPool::new(experts)?,
        };
        let mut generator = Generator::new(&pool, plan, &self.base.end_tokens)?;
        let seed = self.training.seed.to_le_bytes();
        let mut requests = Vec::new();
        for &prompt in prompts {
            for sample in 0..samples {
                let id = self.prompts[prompt].id.as_bytes();
                let parts: [&[u8]; 4] = [&seed, &draws.to_le_bytes(), id, &sample.to_le_bytes()];
                requests.push(Request {
                    prompt: self.prompts[prompt].prompt.clone(),
                    draws: Draws::new(&parts),
                });
            }
        }
        let settings = Generation {
            max_new_tokens: self.recipe.settings.max_new_tokens,
            sampling: Sampling {
                temperature: self.recipe.settings.temperature,
                ..Sampling::GREEDY
            },
            temperature_of: TemperatureOf::Experts,
        };
        Ok(generator.generate(requests, WIDTH, &settings, |_, _| ())?)
    }

    /// Normalised rewards by dimension, growing towards the high ends.
    fn rewards(&self, prompt: usize, response: &Response) -> Result<Vec<f64>> {
        let kept = match response.tokens.split_last() {
            Some((_, rest)) if response.ended => rest,
            _ => response.tokens.as_slice(),
        };
        let text = self.base.tokenizer.decode(kept)?;
        let prompt = &self.prompts[prompt].prompt;
        let each = self.rewards.iter().map(|(name, reward)| {
            let normaliser = self.dimensions[name].normaliser;
            let normaliser = normaliser.unwrap_or_else(|| reward.normaliser());
            Ok(normaliser.apply(reward.score(prompt, &text)?))
        });
        each.collect()
    }

    /// The base's rewards for a prompt, from a response that only prompt and seed decide.
    fn reference(&self, prompt: usize) -> Result<Vec<f64>> {
        let mut known = self.references.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = known.get(&prompt) {
            return Ok(found.clone());
        }
        // Prompts of an iteration stand together: a whole block is cheaper than one.
        let block =
            prompt / WIDTH * WIDTH..(prompt / WIDTH * WIDTH + WIDTH).min(self.prompts.len());
        let prompts: Vec<usize> = block.collect();
        let base = Strategy::Base(mixing::strategies::Base {});
        let plan = base.plan(&Preference::default(), &[mixing::BASE])?;
        let responses = self.respond(plan, &prompts, u64::MAX, 1)?;
        for (prompt, response) in prompts.iter().zip(&responses) {
            known.insert(*prompt, self.rewards(*prompt, response)?);
        }
        Ok(known[&prompt].clone())
    }

    fn record(
        &self,
        prompt: usize,
        preference: &Preference,
        shares: &[f32],
        response: &Response,
        trainer: &PcmTrainer,
    ) -> Result<Rollout> {
        let config = trainer.pcm.config();
        let rewards = self.rewards(prompt, response)?;
        let reference = self.reference(prompt)?;
        let names: Vec<&String> = self.dimensions.keys().collect();
        let mut stated = Vec::new();
        for (direction, share) in preference.shares()? {
            let (name, sign) = locate(&self.dimensions, &direction)?;
            let place = names.iter().position(|n| *n == name).unwrap_or(0);
            stated.push(Stated {
                share,
                reward: sign * rewards[place],
                reference: sign * reference[place],
            });
        }
        // From the experts that ran, in their order, to all of the PCM's.
        let mut ran: Vec<Option<usize>> = preference
            .shares()?
            .iter()
            .map(|(name, _)| config.experts.iter().position(|e| e == name))
            .collect();
        if config.output.reads_base() {
            let before = |(name, _): &(String, f64)| name.as_str() < mixing::BASE;
            ran.insert(preference.shares()?.partition_point(before), None);
        }
        let n = config.experts.len();
        let mut log_probs = vec![0.0; response.tokens.len() * n];
        let mut base = Vec::new();
        for (to, from) in log_probs
            .chunks_mut(n)
            .zip(response.expert_log_probs.chunks(ran.len()))
        {
            for (place, value) in ran.iter().zip(from) {
                match place {
                    Some(place) => to[*place] = *value,
                    None => base.push(*value),
                }
            }
        }
        let question = &self.prompts[prompt];
        let mut tokens = match config.preference {
            PreferenceInput::Weights => Vec::new(),
            _ => self.base.tokenizer.encode(&preference.text, false)?,
        };
        tokens.extend(self.base.prompt_tokens(&question.prompt)?);
        Ok(Rollout {
            prompt: question.id.clone(),
            context: Context {
                tokens,
                shares: shares.to_vec(),
                statistics: response.features.clone(),
            },
            tokens: response.tokens.clone(),
            log_probs,
            base,
            support: response.records.clone(),
            behaviour: response.log_probs.clone(),
            utility: self.recipe.utility.of(&stated),
            rewards,
            temperature: self.recipe.settings.temperature,
            seed: self.training.seed,
        })
    }
}

/// Mean divergence of a response's tokens from the base in nats; 0 where it was not measured.
fn divergence(response: &Response) -> f64 {
    let sum: f64 = response.kl.iter().map(|kl| f64::from(*kl)).sum();
    sum / response.kl.len().max(1) as f64
}

/// A Gamma-distributed number of scale 1 (Marsaglia and Tsang 2000; below 1 by the power of a uniform one).
fn gamma(alpha: f64, draw: &mut impl FnMut() -> f64) -> f64 {
    if alpha < 1.0 {
        let power = draw().max(1e-300).powf(1.0 / alpha);
        return gamma(alpha + 1.0, draw) * power;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let radius = (-2.0 * (1.0 - draw()).ln()).sqrt();
        let x = radius * (2.0 * std::f64::consts::PI * draw()).cos();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - draw()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_has_its_mean_and_variance() {
        for alpha in [0.5, 1.0, 3.0] {
            let mut draws = Draws::new(&[b"gamma"]);
            let mut count = 0;
            let mut draw = || {
                count += 1;
                draws.uniform(count)
            };
            let all: Vec<f64> = (0..20_000).map(|_| gamma(alpha, &mut draw)).collect();
            let mean = all.iter().sum::<f64>() / 20_000.0;
            let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
            assert!((mean / alpha - 1.0).abs() < 0.05, "{mean}");
            assert!((variance / alpha - 1.0).abs() < 0.1, "{variance}");
        }
    }
}

//! Online training of the Preference Control Model: responses of the current mixture, their utility, a fit to
//! the records; again.

mod records;
mod wishes;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use eval::dimension::Dimensions;
use eval::rewards::Reward;
use experts::training::Checkpoint;
use experts::{Expert, ExpertPool};
use lm::sampling::{Draws, Sampling};
use lm::{DeviceSpec, LanguageModel};
use mixing::strategies::Choice;
use mixing::{Generation, Generator, Plan, Preference, Request, Response, TemperatureOf};
use pcm::{Fit, Pcm, PcmConfig, PcmTrainer, Rollout, read_rollouts, write_rollouts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::file::{PcmTraining, Training};
use super::{Standing, resume, write};
use crate::cli::TrainArgs;
use crate::failure::usage;
use crate::models::{Models, resolve};
use crate::progress::Progress;
use crate::prompts::{self, NamedPrompt};
use crate::run::folder::parquet_files;

use records::Reference;

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

pub fn train(
    args: &TrainArgs,
    training: &Training,
    recipe: &PcmTraining,
    out: &Path,
    inputs: &Value,
) -> Result<(Value, String)> {
    let mixture = Mixture::open(training, recipe)?;
    let names: Vec<&str> = recipe.experts.names();
    let mut config = recipe
        .shape
        .config(&names, mixture.base.config().hidden_size);
    config.preference = recipe.input.preference;
    config.context = recipe.input.context;
    config.statistics = recipe.input.statistics;
    config.output = recipe.output;
    let fresh = match &recipe.pretrained {
        None => Pcm::new(&config, training.seed),
        Some(model) => {
            let (path, tokenizer) = (resolve(model)?, &mixture.base.tokenizer);
            Pcm::pretrained(&config, &path, tokenizer, training.seed)
        }
    };
    let fresh = fresh.map_err(|e| usage(e.to_string()))?;
    let config = fresh.config().clone();
    let mut pcm = fresh.clone();
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
    let given = mixture.given(&config)?;
    if standing.done == 0 && !given.is_empty() {
        let fit = mixture.replay(&given, &fresh, &mut trainer, 0)?;
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
                    let path = rollouts.join(format!("{before:05}.parquet"));
                    all.extend(read_rollouts(&path)?);
                }
                mixture.replay(&all, &fresh, &mut trainer, number)?
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
    let state = if finished { "trained" } else { "interrupted" };
    let (done, folder) = (standing.done, folder.display());
    let text = format!("{state} after {done} iterations; PCM: {folder}");
    Ok((document, text))
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
    /// The base's responses by prompt.
    references: std::sync::Mutex<HashMap<usize, Reference>>,
}

impl<'a> Mixture<'a> {
    fn open(training: &'a Training, recipe: &'a PcmTraining) -> Result<Self> {
        let mut models = Models::on(&DeviceSpec::Cpu, training.sampling_weights)?;
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

    /// Rollouts of earlier trainings, worth what this one pays.
    fn given(&self, config: &PcmConfig) -> Result<Vec<Rollout>> {
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
        let measured = all.iter().any(|r| r.divergence > 0.0);
        if self.recipe.settings.kl > 0.0 && !all.is_empty() && !measured {
            return Err(usage(
                "records: the divergence from the base was not measured; leave settings: kl out",
            ));
        }
        for rollout in &mut all {
            self.value(config, rollout)?;
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
    fn replay(
        &self,
        all: &[Rollout],
        fresh: &Pcm,
        trainer: &mut PcmTrainer,
        number: u64,
    ) -> Result<Fit> {
        let seed = self.training.seed.to_le_bytes();
        let parts: [&[u8]; 3] = [&seed, b"replay", &number.to_le_bytes()];
        Ok(trainer.replay(all, fresh, &|token, out| self.embed(token, out), &parts)?)
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
            kl: self
                .measures()
                .then(|| all.iter().map(|r| r.divergence).sum::<f64>() / n),
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
                let rollout = self.record(prompt, &wish.preference, &shares, response, trainer)?;
                kl += rollout.divergence;
                utility += rollout.utility + self.recipe.settings.kl * rollout.divergence;
                rollouts.push(rollout);
            }
        }
        let n = rollouts.len() as f64;
        let round = Round {
            iteration: number,
            utility: utility / n,
            kl: self.measures().then_some(kl / n),
            length: tokens / n,
            ended: ended / n,
            fit: Fit::default(),
        };
        Ok(Sampled { rollouts, round })
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

    /// The divergence from the base is measured: where it has a price, or costs no pass.
    fn measures(&self) -> bool {
        self.recipe.settings.kl > 0.0 || self.recipe.output.reads_base()
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
        let pool = match self.measures() {
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
}

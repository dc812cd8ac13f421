//! Trainings of an adapter: fine-tuning, DPO, REBEL, REBEL's regression on the best and the worst, and MORL.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use experts::training::offline::{Objective, Offline, OfflineConfig};
use experts::training::rebel::Rebel;
use experts::training::{Checkpoint, Trainer};
use lm::Adapter;
use lm::load::Checkpoint as ModelFile;
use lm::save::Precision;
use lm::tuning::{AdamW, Item, LoraParameters, Optimisation, TuningDecoder};

use super::file::{Recipe, Training};
use super::rollouts::Rollouts;
use super::session::{TrainingState, checkpoint_file, resume};
use super::{Job, Outcome, Product, best_worst, card, data, results};
use harness::failure::usage;
use harness::models::resolve_adapter;
use harness::progress::Progress;

/// Steps of a training on given responses between two checkpoints (ours).
const STEPS_SAVED: u64 = 10;

/// Trains, resumes, or only writes a finished adapter with another strength or precision.
///
/// # Errors
/// Data, a model or a start that cannot be read; a checkpoint of another training.
pub(super) fn train(job: &Job<'_>) -> Result<Outcome> {
    let training = job.training;
    let model = ModelFile::open(&job.model)?;
    let mut decoder = TuningDecoder::load(&model, &training.device, training.format)?;
    let mut run = Run::open(job, start(training, &decoder)?)?;
    let began = Instant::now();
    if !run.state.finished {
        run.state.finished = run.learn(&mut decoder)?;
    }
    run.state.finish_session(began);
    run.save()?;
    let folder = run.write_adapter(&decoder)?;
    results::write(job, &run.state)?;
    let last = run.state.last();
    let product = Product::Adapter { folder, last };
    Ok(job.outcome(run.state.finished, run.state.done, product))
}

/// The adapter before the first step.
fn start(training: &Training, decoder: &TuningDecoder) -> Result<LoraParameters> {
    let (lora, config) = (&training.lora, decoder.config());
    match &training.start {
        None => LoraParameters::new(lora, config, training.seed).map_err(|e| usage(e.to_string())),
        Some(folder) => {
            let adapter = Adapter::load(&resolve_adapter(folder)?, config)?;
            LoraParameters::from_adapter(&adapter, lora, config)
                .map_err(|e| usage(format!("start: {}: {e}", folder.display())))
        }
    }
}

/// The optimiser of a recipe, and the weight of the KL divergence that it begins with.
fn optimisation(recipe: &Recipe) -> (Optimisation, f64) {
    match recipe {
        Recipe::Sft(t) | Recipe::Dpo(t) => (t.settings.optimisation, 0.0),
        Recipe::BestWorst(t) => (t.settings.optimisation, 0.0),
        Recipe::Morl(t) => (t.settings.optimisation, 0.0),
        Recipe::Rebel(t) => (t.settings.optimisation, t.settings.kl),
        Recipe::Pcm(t) => (t.settings.fit.optimisation, 0.0),
        Recipe::Reward(t) => (t.settings.optimisation, 0.0),
        Recipe::Classifier(_) => (Optimisation::default(), 0.0),
    }
}

/// A training of an adapter in this process.
struct Run<'a> {
    job: &'a Job<'a>,
    trainer: Trainer,
    state: TrainingState,
}

impl<'a> Run<'a> {
    /// From the checkpoint if there is one, else from the start.
    fn open(job: &'a Job<'a>, mut lora: LoraParameters) -> Result<Self> {
        // What is only done to the finished adapter is no reason to train again.
        let trained = Training {
            strength: 1.0,
            precision: Precision::F32,
            ..job.training.clone()
        };
        let (optimisation, beta) = optimisation(&job.training.recipe);
        let (adam, state) = resume(job, &trained, beta, &mut lora.values)?;
        let trainer = Trainer {
            lora,
            adam: AdamW::new(optimisation.adamw, adam),
            optimisation,
            steps: 0,
        };
        Ok(Self {
            job,
            trainer,
            state,
        })
    }

    fn save(&self) -> Result<()> {
        let checkpoint = Checkpoint {
            values: self.trainer.lora.values.clone(),
            adam: self.trainer.adam.state.clone(),
            progress: self.state.clone(),
        };
        Ok(checkpoint.save(&checkpoint_file(self.job.out()))?)
    }

    /// Writes the adapter with the training's strength in place of an earlier one; its folder.
    fn write_adapter(&self, decoder: &TuningDecoder) -> Result<PathBuf> {
        let training = self.job.training;
        let folder = self.job.out().join("adapter");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let mut adapter = self.trainer.lora.adapter();
        for pair in adapter.pairs.values_mut() {
            pair.b.iter_mut().for_each(|b| *b *= training.strength);
        }
        let (config, precision) = (decoder.config(), training.precision);
        let base = card::base(&training.model);
        adapter.save(&folder, config, Some(&base), precision)?;
        card::write(self.job, &folder, &self.state.last())?;
        Ok(folder)
    }

    /// Does what the recipe says. True when it came to the end.
    fn learn(&mut self, decoder: &mut TuningDecoder) -> Result<bool> {
        let (training, model) = (self.job.training, &self.job.model);
        match &training.recipe {
            Recipe::Sft(t) => {
                let items = data::responses(&t.data, model)?;
                self.offline(decoder, Objective::Nll, &items, &t.settings)
            }
            Recipe::Dpo(t) => {
                let items = data::pairs(&t.data, t.swap, model)?;
                self.offline(decoder, Objective::Dpo, &items, &t.settings)
            }
            Recipe::Rebel(t) => {
                decoder.temperature = t.settings.temperature;
                let limits = (t.settings.max_new_tokens, t.settings.temperature);
                let mut rollouts = Rollouts::open(training, &t.prompts, &t.reward, limits, model)?;
                let rebel = Rebel {
                    config: &t.settings,
                    decoder,
                    prompts: &rollouts.tokens()?,
                    seed: training.seed,
                };
                self.rebel(&rebel, &mut rollouts)
            }
            Recipe::BestWorst(t) => {
                decoder.temperature = t.temperature;
                let (items, rewards) = best_worst::pairs(training, t, model)?;
                self.offline(decoder, Objective::Rebel(rewards), &items, &t.settings)
            }
            Recipe::Morl(t) => {
                decoder.temperature = t.temperature;
                let (items, rewards) = best_worst::of_preferences(training, t, model)?;
                self.offline(decoder, Objective::Rebel(rewards), &items, &t.settings)
            }
            Recipe::Pcm(_) | Recipe::Reward(_) | Recipe::Classifier(_) => Ok(false),
        }
    }

    /// Steps on given responses. True when it came to the end.
    fn offline(
        &mut self,
        decoder: &TuningDecoder,
        objective: Objective,
        items: &[Item],
        config: &OfflineConfig,
    ) -> Result<bool> {
        let offline = Offline {
            config,
            objective,
            decoder,
            items,
            seed: self.job.training.seed,
        };
        let total = config.epochs * config.steps(items.len());
        self.trainer.steps = total;
        let reference = offline.reference()?;
        let mut progress = Progress::new("train", "steps", total);
        progress.skip(self.state.done);
        let end = self.job.end(self.state.done, total);
        while self.state.done < end {
            let step = offline.step(self.state.done, &reference, &mut self.trainer)?;
            progress.message(format!("loss {:.3}", step.loss));
            self.state.record_round(&step)?;
            progress.advance(1);
            if self.state.done.is_multiple_of(STEPS_SAVED) {
                self.save()?;
            }
        }
        progress.finish();
        Ok(self.state.done == total)
    }

    /// Iterations on the model's own responses. True when it came to the end.
    fn rebel(&mut self, rebel: &Rebel<'_>, rollouts: &mut Rollouts) -> Result<bool> {
        let total = rebel.config.iterations;
        self.trainer.steps = rebel.config.total_steps();
        let mut progress = Progress::new("train", "iterations", total);
        progress.skip(self.state.done);
        let end = self.job.end(self.state.done, total);
        while self.state.done < end {
            let (number, mut beta) = (self.state.done, self.state.beta);
            let round = rebel.iterate(number, &mut beta, &mut self.trainer, rollouts)?;
            self.state.beta = beta;
            self.state.samples = rollouts.samples();
            progress.message(format!(
                "reward {:+.2} KL {:.3} length {:.0} ended {:.0} %",
                round.reward,
                round.kl,
                round.length,
                100.0 * round.ended
            ));
            self.state.record_round(&round)?;
            progress.advance(1);
            self.save()?;
        }
        progress.finish();
        Ok(self.state.done == total)
    }
}

//! Trainings of an adapter: fine-tuning, DPO, REBEL, REBEL's regression on the best and the worst, and MORL.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use experts::training::offline::{Objective, Offline, OfflineConfig};
use experts::training::rebel::Rebel;
use experts::training::{Checkpoint, Trainer};
use lm::Adapter;
use lm::load::Checkpoint as ModelFile;
use lm::save::Precision;
use lm::tuning::{AdamW, AdamWState, LoraParameters, Optimisation, TuningDecoder};
use serde_json::{Value, json};

use super::file::{Recipe, Training};
use super::rollouts::Rollouts;
use super::{Standing, best_worst, data, resume, write};
use crate::cli::TrainArgs;
use crate::failure::usage;
use crate::progress::Progress;

/// Trains, resumes, or only writes a finished adapter with another strength or precision.
///
/// # Errors
/// What the recipe's data, model or checkpoint report.
pub fn train(
    args: &TrainArgs,
    training: &Training,
    path: &Path,
    out: &Path,
    inputs: &Value,
) -> Result<(Value, String)> {
    let model = ModelFile::open(path)?;
    let mut decoder = TuningDecoder::load(&model, training.weights)?;
    let lora = start(training, &decoder)?;
    let file = out.join("checkpoint.safetensors");
    // What is only done to the finished adapter is no reason to train again.
    let trained = Training {
        strength: 1.0,
        precision: Precision::F32,
        ..training.clone()
    };
    let known = json!({"training": trained, "inputs": inputs});
    let mut run = Run::open(training, &file, lora, known)?;
    let began = Instant::now();
    if !run.standing.finished {
        let work = Work {
            training,
            file: &file,
            until: args.stop_after.map(|n| run.standing.done + n as u64),
        };
        run.standing.finished = work.learn(&mut run, &mut decoder, path)?;
    }
    run.standing.close(began);
    run.save(&file)?;
    let adapter = out.join("adapter");
    if adapter.exists() {
        std::fs::remove_dir_all(&adapter).with_context(|| adapter.display().to_string())?;
    }
    let (mut trained, config) = (run.trainer.lora.adapter(), decoder.config());
    for pair in trained.pairs.values_mut() {
        pair.b.iter_mut().for_each(|b| *b *= training.strength);
    }
    trained.save(&adapter, config, Some(&training.model), training.precision)?;
    write(training, out, &run.standing, &args.file, inputs)?;
    let finished = run.standing.finished;
    let last = run.standing.metrics.last().cloned().unwrap_or_default();
    let document = json!({
        "training": training.name,
        "finished": finished,
        "done": run.standing.done,
        "adapter": adapter.display().to_string(),
        "last": last,
    });
    let state = if finished { "trained" } else { "interrupted" };
    let done = run.standing.done;
    let adapter = adapter.display();
    Ok((
        document,
        format!("{state} after {done} rounds; adapter: {adapter}"),
    ))
}

/// The adapter before the first step.
fn start(training: &Training, decoder: &TuningDecoder) -> Result<LoraParameters> {
    let (lora, config) = (&training.lora, decoder.config());
    let made = match &training.start {
        None => LoraParameters::new(lora, config, training.seed),
        Some(folder) => {
            let adapter = Adapter::load(folder, config)?;
            LoraParameters::from_adapter(&adapter, lora, config)
                .map_err(|e| format!("start: {}: {e}", folder.display()))
        }
    };
    made.map_err(usage)
}

/// A training on its way.
struct Run {
    trainer: Trainer,
    standing: Standing,
}

impl Run {
    /// From the checkpoint if there is one, else from the start.
    fn open(training: &Training, file: &Path, lora: LoraParameters, known: Value) -> Result<Self> {
        let (optimisation, beta) = match &training.recipe {
            Recipe::Sft(t) | Recipe::Dpo(t) => (t.settings.optimisation, 0.0),
            Recipe::BestWorst(t) => (t.settings.optimisation, 0.0),
            Recipe::Morl(t) => (t.settings.optimisation, 0.0),
            Recipe::Rebel(t) => (t.settings.optimisation, t.settings.kl),
            Recipe::Pcm(t) => (t.settings.fit.optimisation, 0.0),
            Recipe::Reward(t) => (t.settings.optimisation, 0.0),
            Recipe::Classifier(_) => (Optimisation::default(), 0.0),
        };
        let mut lora = lora;
        let (adam, standing) = resume(file, known, beta, &mut lora.values)?;
        let trainer = trainer(lora, adam, optimisation);
        Ok(Self { trainer, standing })
    }

    fn save(&self, file: &Path) -> Result<()> {
        let checkpoint = Checkpoint {
            values: self.trainer.lora.values.clone(),
            adam: self.trainer.adam.state.clone(),
            progress: self.standing.clone(),
        };
        Ok(checkpoint.save(file)?)
    }
}

fn trainer(lora: LoraParameters, state: AdamWState, optimisation: Optimisation) -> Trainer {
    Trainer {
        lora,
        adam: AdamW::new(optimisation.adamw, state),
        optimisation,
        steps: 0,
    }
}

/// What there is to do.
struct Work<'a> {
    training: &'a Training,
    file: &'a Path,
    until: Option<u64>,
}

impl Work<'_> {
    /// What the recipe says. True when it came to the end.
    fn learn(&self, run: &mut Run, decoder: &mut TuningDecoder, model: &Path) -> Result<bool> {
        let training = self.training;
        match &training.recipe {
            Recipe::Sft(t) => {
                let items = data::responses(&t.data, model)?;
                self.offline(run, decoder, Objective::Nll, &items, &t.settings)
            }
            Recipe::Dpo(t) => {
                let items = data::pairs(&t.data, t.swap, model)?;
                self.offline(run, decoder, Objective::Dpo, &items, &t.settings)
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
                self.rebel(run, &rebel, &mut rollouts)
            }
            Recipe::BestWorst(t) => {
                decoder.temperature = t.temperature;
                let (items, rewards) = best_worst::pairs(training, t, model)?;
                self.offline(run, decoder, Objective::Rebel(rewards), &items, &t.settings)
            }
            Recipe::Morl(t) => {
                decoder.temperature = t.temperature;
                let (items, rewards) = best_worst::of_preferences(training, t, model)?;
                self.offline(run, decoder, Objective::Rebel(rewards), &items, &t.settings)
            }
            Recipe::Pcm(_) | Recipe::Reward(_) | Recipe::Classifier(_) => Ok(false),
        }
    }

    fn end(&self, total: u64) -> u64 {
        self.until.map_or(total, |until| until.min(total))
    }

    /// True when it came to the end.
    fn offline(
        &self,
        run: &mut Run,
        decoder: &TuningDecoder,
        objective: Objective,
        items: &[lm::tuning::Item],
        config: &OfflineConfig,
    ) -> Result<bool> {
        let offline = Offline {
            config,
            objective,
            decoder,
            items,
            seed: self.training.seed,
        };
        let total = config.epochs * config.steps(items.len());
        run.trainer.steps = total;
        let reference = offline.reference()?;
        let mut progress = Progress::new("train", "steps", total);
        progress.skip(run.standing.done);
        while run.standing.done < self.end(total) {
            let step = offline.step(run.standing.done, &reference, &mut run.trainer)?;
            progress.message(format!("loss {:.3}", step.loss));
            run.standing.note(&step)?;
            progress.advance(1);
            if run.standing.done.is_multiple_of(10) {
                run.save(self.file)?;
            }
        }
        progress.finish();
        Ok(run.standing.done == total)
    }

    fn rebel(&self, run: &mut Run, rebel: &Rebel<'_>, rollouts: &mut Rollouts) -> Result<bool> {
        let total = rebel.config.iterations;
        run.trainer.steps = rebel.config.total_steps();
        let mut progress = Progress::new("train", "iterations", total);
        progress.skip(run.standing.done);
        while run.standing.done < self.end(total) {
            let number = run.standing.done;
            let mut beta = run.standing.beta;
            let done = rebel.iterate(number, &mut beta, &mut run.trainer, rollouts)?;
            run.standing.beta = beta;
            run.standing.samples = rollouts.samples();
            progress.message(format!(
                "reward {:+.2} KL {:.3} length {:.0} ended {:.0} %",
                done.reward,
                done.kl,
                done.length,
                100.0 * done.ended
            ));
            run.standing.note(&done)?;
            progress.advance(1);
            run.save(self.file)?;
        }
        progress.finish();
        Ok(run.standing.done == total)
    }
}

//! Online training of the Preference Control Model: responses of the current mixture, their utility, a fit to
//! the records; again.

mod records;
mod reference;
mod round;
mod sampled_preferences;
mod sampler;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use experts::training::Checkpoint;
use pcm::{Fit, Pcm, PcmConfig, PcmTrainer, Rollout, read_rollouts, write_rollouts};

use super::file::PcmTraining;
use super::session::{TrainingState, checkpoint_file, resume};
use super::{Job, Outcome, Product, results};
use harness::failure::usage;
use harness::models::resolve;
use harness::progress::{self, Progress};
use harness::store::folder::parquet_files;

use round::Round;
use sampler::Sampler;

/// Trains, or resumes.
///
/// # Errors
/// Models, prompts or records that cannot be read; a checkpoint of another training.
pub(super) fn train(job: &Job<'_>, recipe: &PcmTraining) -> Result<Outcome> {
    let mut run = Run::open(job, recipe)?;
    let began = Instant::now();
    run.learn()?;
    run.state.finish_session(began);
    run.save()?;
    let folder = job.out().join("pcm");
    run.trainer.pcm.save(&folder)?;
    results::write(job, &run.state)?;
    let last = run.state.last();
    let finished = run.state.done >= recipe.settings.iterations;
    let product = Product::Pcm { folder, last };
    Ok(job.outcome(finished, run.state.done, product))
}

/// The model before the first step.
fn fresh(job: &Job<'_>, recipe: &PcmTraining, sampler: &Sampler<'_>) -> Result<Pcm> {
    let (base, seed) = (&sampler.base, job.training.seed);
    let names = recipe.experts.names();
    let shape = recipe.shape.config(&names, base.config().hidden_size);
    let config = PcmConfig {
        preference: recipe.input.preference,
        context: recipe.input.context,
        statistics: recipe.input.statistics,
        output: recipe.output,
        ..shape
    };
    let pcm = match &recipe.pretrained {
        None => Pcm::new(&config, seed),
        Some(model) => Pcm::pretrained(&config, &resolve(model)?, &base.tokenizer, seed),
    };
    pcm.map_err(|e| usage(e.to_string()))
}

/// A training of a PCM in this process.
struct Run<'a> {
    job: &'a Job<'a>,
    recipe: &'a PcmTraining,
    sampler: Sampler<'a>,
    /// The model before the first step, from which every replay starts.
    fresh: Pcm,
    trainer: PcmTrainer,
    state: TrainingState,
}

impl<'a> Run<'a> {
    /// From the checkpoint if there is one, else from the start.
    fn open(job: &'a Job<'a>, recipe: &'a PcmTraining) -> Result<Self> {
        let sampler = Sampler::open(job.training, recipe)?;
        let fresh = fresh(job, recipe, &sampler)?;
        let mut pcm = fresh.clone();
        let mut values = pcm.values().to_vec();
        let (adam, state) = resume(job, job.training, 0.0, &mut values)?;
        pcm.set_values(&values);
        let fit = recipe.settings.fit.clone();
        let trainer = PcmTrainer::new(pcm, fit, adam, recipe.total_steps())?;
        let run = Self {
            job,
            recipe,
            sampler,
            fresh,
            trainer,
            state,
        };
        let rollouts = run.rollouts();
        std::fs::create_dir_all(&rollouts).with_context(|| rollouts.display().to_string())?;
        Ok(run)
    }

    /// The folder of what was sampled.
    fn rollouts(&self) -> PathBuf {
        self.job.out().join("rollouts")
    }

    fn rollouts_of(&self, iteration: u64) -> PathBuf {
        self.rollouts().join(format!("{iteration:05}.parquet"))
    }

    fn save(&self) -> Result<()> {
        let checkpoint = Checkpoint {
            values: self.trainer.pcm.values().to_vec(),
            adam: self.trainer.adam.state.clone(),
            progress: self.state.clone(),
        };
        Ok(checkpoint.save(&checkpoint_file(self.job.out()))?)
    }

    /// All iterations that are left, or as many as this process is to do.
    fn learn(&mut self) -> Result<()> {
        let total = self.recipe.settings.iterations;
        let end = self.job.end(self.state.done, total);
        let mut progress = Progress::new("train", "iterations", total);
        progress.skip(self.state.done);
        let given = self.given()?;
        if self.state.done == 0 && !given.is_empty() {
            let fit = self.replay(&given, 0)?;
            progress::say(&format!(
                "{} recorded responses explain {:.1} ± {:.1} % of held-out pairs",
                given.len(),
                100.0 * fit.explained,
                100.0 * fit.explained_error
            ));
            if total == 0 {
                let round = self.recorded(&given, fit);
                self.state.record_round(&round)?;
            }
        }
        while self.state.done < end {
            let round = self.iterate(&given)?;
            progress.message(format!(
                "utility {:.3}{} entropy {:.2} length {:.0}",
                round.utility,
                round.kl.map_or(String::new(), |kl| format!(" KL {kl:.2}")),
                round.fit.entropy,
                round.length
            ));
            self.state.record_round(&round)?;
            progress.advance(1);
            self.save()?;
        }
        progress.finish();
        Ok(())
    }

    /// Samples, and fits to that or to everything so far.
    fn iterate(&mut self, given: &[Rollout]) -> Result<Round> {
        let number = self.state.done;
        let (rollouts, round) = self.sampler.sample(number, &self.trainer.pcm)?;
        write_rollouts(&self.rollouts_of(number), &rollouts)?;
        let fit = if self.recipe.settings.replay {
            let mut all = given.to_vec();
            for iteration in 0..=number {
                all.extend(read_rollouts(&self.rollouts_of(iteration))?);
            }
            self.replay(&all, number)?
        } else {
            self.fit(&rollouts, number)?
        };
        Ok(Round { fit, ..round })
    }

    /// Fits to what was just sampled.
    fn fit(&mut self, rollouts: &[Rollout], number: u64) -> Result<Fit> {
        let seed = self.job.training.seed.to_le_bytes();
        let parts: [&[u8]; 3] = [&seed, b"fit", &number.to_le_bytes()];
        let embed = |token: u32, out: &mut [f32]| self.sampler.embed(token, out);
        Ok(self.trainer.fit(rollouts, &embed, &parts)?)
    }

    /// Fits to everything, from the start.
    fn replay(&mut self, all: &[Rollout], number: u64) -> Result<Fit> {
        let seed = self.job.training.seed.to_le_bytes();
        let parts: [&[u8]; 3] = [&seed, b"replay", &number.to_le_bytes()];
        let embed = |token: u32, out: &mut [f32]| self.sampler.embed(token, out);
        Ok(self.trainer.replay(all, &self.fresh, &embed, &parts)?)
    }

    /// Rollouts of earlier trainings, with the utility that this one gives them.
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
        let measured = all.iter().any(|r| r.divergence > 0.0);
        if self.recipe.settings.kl > 0.0 && !all.is_empty() && !measured {
            return Err(usage(
                "records: the divergence from the base was not measured; leave settings: kl out",
            ));
        }
        for rollout in &mut all {
            self.sampler.set_utility(self.fresh.config(), rollout)?;
        }
        Ok(all)
    }

    /// The only round of a training that samples nothing: means over the records that it was given.
    fn recorded(&self, all: &[Rollout], fit: Fit) -> Round {
        let count = all.len() as f64;
        let end_tokens = &self.sampler.base.end_tokens;
        let ended = |r: &&Rollout| r.tokens.last().is_some_and(|t| end_tokens.contains(t));
        let tokens: usize = all.iter().map(|r| r.tokens.len()).sum();
        let divergence = || all.iter().map(|r| r.divergence).sum::<f64>() / count;
        Round {
            iteration: 0,
            utility: all.iter().map(|r| r.utility).sum::<f64>() / count,
            kl: self.sampler.measures().then(divergence),
            length: tokens as f64 / count,
            ended: all.iter().filter(ended).count() as f64 / count,
            fit,
        }
    }
}

//! Training of a reward model: minutes at most, so it is fitted in one go.

use anyhow::Result;
use eval::rewards::{PreferencePair, RewardModel};
use serde_json::json;

use super::file::RewardTraining;
use super::{Job, Outcome, Product, data, results};
use harness::progress;

pub(super) fn train(job: &Job<'_>, recipe: &RewardTraining) -> Result<Outcome> {
    let training = job.training;
    let pairs: Vec<PreferencePair> = data::lines(&recipe.data)?;
    let say = |stage: &str| progress::say(&format!("reward: {stage}"));
    let (config, device, seed) = (&recipe.settings, &training.device, training.seed);
    let model = RewardModel::fit(&training.model, &pairs, config, device, seed, say)?;
    let folder = job.out().join("reward");
    model.save(&folder)?;
    let held_out = model.card().held_out.clone();
    results::write_manifest(
        job.out(),
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "training": training,
            "inputs": job.inputs,
            "held_out": held_out,
        }),
    )?;
    Ok(job.outcome(true, 1, Product::Reward { folder, held_out }))
}

//! What a training records of a response, and the utility of it.

use anyhow::Result;
use lm::chat::Prompt;
use mixing::{BASE, Preference, Response, Strategy};
use pcm::{Context, PcmConfig, PreferenceInput, Prefixes, Rollout};

use super::reference::Reference;
use super::sampler::{Sampler, WIDTH};
use harness::failure::usage;

impl Sampler<'_> {
    /// Normalised rewards of texts, `[texts][dimensions]`, growing towards the high ends.
    fn rewards(&self, prompt: &Prompt, texts: &[String]) -> Result<Vec<Vec<f64>>> {
        let items: Vec<(&Prompt, &str)> = texts.iter().map(|t| (prompt, t.as_str())).collect();
        let rewards = self.scorer.rewards(&items)?;
        Ok(rewards.into_iter().map(|r| r.normalised).collect())
    }

    /// Rewards of the beginnings of the base's response, from draws that only prompt and seed decide; one beyond
    /// its end is the whole.
    fn reference(&self, prompt: usize, lengths: &[usize]) -> Result<Vec<Vec<f64>>> {
        let mut known = self.references.lock().unwrap_or_else(|e| e.into_inner());
        if !known.contains_key(&prompt) {
            // Prompts of an iteration stand together: a whole block is cheaper than one.
            let first = prompt / WIDTH * WIDTH;
            let prompts: Vec<usize> = (first..(first + WIDTH).min(self.prompts.len())).collect();
            let base = Strategy::Base(mixing::strategies::Base {});
            let plan = base.plan(&Preference::default(), &[BASE])?;
            let responses = self.respond(plan, &prompts, u64::MAX, 1)?;
            for (prompt, response) in prompts.into_iter().zip(responses) {
                let reference = Reference {
                    tokens: said(&response).to_vec(),
                    ..Reference::default()
                };
                known.insert(prompt, reference);
            }
        }
        let reference = known.entry(prompt).or_default();
        let end = reference.tokens.len();
        let mut missing: Vec<usize> = lengths.iter().map(|l| (*l).min(end)).collect();
        missing.retain(|l| !reference.rewards.contains_key(l));
        missing.dedup();
        let texts = missing
            .iter()
            .map(|l| Ok(self.base.tokenizer.decode(&reference.tokens[..*l])?));
        let texts: Vec<String> = texts.collect::<Result<_>>()?;
        let scored = self.rewards(&self.prompts[prompt].prompt, &texts)?;
        reference.rewards.extend(missing.into_iter().zip(scored));
        let rewards = |length: &usize| reference.rewards[&(*length).min(end)].clone();
        Ok(lengths.iter().map(rewards).collect())
    }

    /// Utility to importances of the PCM's experts, beside the reference's rewards.
    fn utility(
        &self,
        config: &PcmConfig,
        shares: &[f32],
        rewards: &[f64],
        references: &[f64],
    ) -> Result<f64> {
        let stated = config.experts.iter().zip(shares);
        let stated = stated.filter(|(_, share)| **share > 0.0);
        let stated = stated.map(|(direction, share)| (direction, f64::from(*share)));
        Ok(self.scorer.utility(stated, rewards, references)?)
    }

    /// Sets the utility of a recorded response by this training's definition of it and price of divergence.
    ///
    /// # Errors
    /// A record of other dimensions or experts.
    pub(super) fn set_utility(&self, config: &PcmConfig, rollout: &mut Rollout) -> Result<()> {
        if !config.statistics {
            rollout.context.statistics.clear();
        }
        let dimensions = self.dimensions.len();
        let fits = |values: &[f64], rows: usize| values.len() == rows * dimensions;
        let Prefixes {
            cuts,
            rewards,
            references,
            divergences,
            ..
        } = &rollout.prefixes;
        let rows = cuts.len();
        let responses = fits(&rollout.rewards, 1) && fits(&rollout.references, 1);
        let prefixes = fits(rewards, rows) && fits(references, rows) && divergences.len() == rows;
        if !responses || !prefixes || rollout.context.shares.len() != config.experts.len() {
            return Err(usage(format!(
                "records: a response to '{}' was scored in other than {dimensions} dimensions, or for other than {} \
                 experts; record again with these",
                rollout.prompt,
                config.experts.len()
            )));
        }
        let shares = &rollout.context.shares;
        let price = self.recipe.settings.kl;
        let utility = self.utility(config, shares, &rollout.rewards, &rollout.references)?;
        rollout.utility = utility - price * rollout.divergence;
        let rows = rewards
            .chunks(dimensions)
            .zip(references.chunks(dimensions));
        let utilities = rows.zip(divergences).map(|((rewards, references), kl)| {
            Ok(self.utility(config, shares, rewards, references)? - price * kl)
        });
        rollout.prefixes.utilities = utilities.collect::<Result<_>>()?;
        Ok(())
    }

    /// The record of a response to a prompt, its utility included; `shares` are importances of the PCM's experts.
    ///
    /// # Errors
    /// Tokens that cannot be decoded, a scorer that fails.
    pub(super) fn record(
        &self,
        prompt: usize,
        preference: &Preference,
        shares: &[f32],
        response: &Response,
        config: &PcmConfig,
    ) -> Result<Rollout> {
        let question = &self.prompts[prompt];
        let segment = self.recipe.settings.segment;
        let cuts = cuts(response.tokens.len(), segment);
        let said = said(response);
        let texts = cuts.iter().map(|&cut| {
            let tokens = &said[..cut.min(said.len())];
            Ok(self.base.tokenizer.decode(tokens)?)
        });
        let texts: Vec<String> = texts.collect::<Result<_>>()?;
        let mut rewards = self.rewards(&question.prompt, &texts)?;
        // The whole is compared with the whole reference.
        let mut beside = cuts.clone();
        if let Some(last) = beside.last_mut() {
            *last = usize::MAX;
        }
        let mut references = self.reference(prompt, &beside)?;
        let prefixes = match segment {
            0 => Prefixes::default(),
            _ => Prefixes {
                cuts: cuts.iter().map(|c| *c as u32).collect(),
                utilities: Vec::new(),
                rewards: rewards.concat(),
                references: references.concat(),
                divergences: cuts.iter().map(|&c| divergence(&response.kl, c)).collect(),
            },
        };
        let (log_probs, base) = expert_log_probs(config, preference, response)?;
        let mut tokens = match config.preference {
            PreferenceInput::Weights => Vec::new(),
            _ => self.base.tokenizer.encode_text(&preference.text)?,
        };
        tokens.extend(self.base.prompt_tokens(&question.prompt)?);
        let mut rollout = Rollout {
            prompt: question.id.clone(),
            context: Context {
                tokens,
                shares: shares.to_vec(),
                statistics: response.expert_statistics.clone(),
            },
            tokens: response.tokens.clone(),
            log_probs,
            base,
            support: response.truncated_distributions.clone(),
            behaviour: response.log_probs.clone(),
            rewards: rewards.pop().unwrap_or_default(),
            references: references.pop().unwrap_or_default(),
            divergence: divergence(&response.kl, response.tokens.len()),
            utility: 0.0,
            prefixes,
            temperature: self.recipe.settings.temperature,
            seed: self.training.seed,
        };
        self.set_utility(config, &mut rollout)?;
        Ok(rollout)
    }
}

/// Lengths in tokens after which a response is scored: every `segment` tokens and at its end, or only there.
fn cuts(length: usize, segment: usize) -> Vec<usize> {
    match segment {
        0 => vec![length],
        segment => {
            let inner = (1..).map(|k| k * segment).take_while(|c| *c < length);
            inner.chain([length]).collect()
        }
    }
}

/// Log-probabilities of a response's tokens by all experts of the PCM, `[tokens, experts]`, 0 of those that did
/// not run; and by the base, `[tokens]`, where it ran beside them.
fn expert_log_probs(
    config: &PcmConfig,
    preference: &Preference,
    response: &Response,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let shares = preference.shares()?;
    // For each expert that ran, in their order, its column among the PCM's experts; none for the base.
    let mut columns: Vec<Option<usize>> = shares
        .iter()
        .map(|(name, _)| config.experts.iter().position(|e| e == name))
        .collect();
    if config.output.reads_base() {
        let before = |(name, _): &(String, f64)| name.as_str() < BASE;
        columns.insert(shares.partition_point(before), None);
    }
    let experts = config.experts.len();
    let mut log_probs = vec![0.0; response.tokens.len() * experts];
    let mut base = Vec::new();
    for (to, from) in log_probs
        .chunks_mut(experts)
        .zip(response.expert_log_probs.chunks(columns.len()))
    {
        for (column, value) in columns.iter().zip(from) {
            match column {
                Some(column) => to[*column] = *value,
                None => base.push(*value),
            }
        }
    }
    Ok((log_probs, base))
}

/// A response's tokens without the one that ends it.
fn said(response: &Response) -> &[u32] {
    match response.tokens.split_last() {
        Some((_, rest)) if response.ended => rest,
        _ => &response.tokens,
    }
}

/// Mean divergence of the first tokens from the base in nats; 0 where it was not measured.
fn divergence(kl: &[f32], tokens: usize) -> f64 {
    let kl = &kl[..tokens.min(kl.len())];
    kl.iter().map(|kl| f64::from(*kl)).sum::<f64>() / kl.len().max(1) as f64
}

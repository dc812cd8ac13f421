//! Bounds of a run: those of the base's responses to its prompts.

use anyhow::{Context, Result};
use eval::bounds::{Bounds, Traits};
use eval::metrics::repetition;
use eval::rewards::Reward;
use eval::rows::GenerationRow;
use lm::chat::Prompt;

use super::scorer::{by_id, prompt_of};
use crate::plan::RunPlan;

/// The bounds of a run, with what measures them.
pub struct RunBounds {
    bounds: Bounds,
    relevance: Option<Box<dyn Reward>>,
}

impl RunBounds {
    /// Those of an experiment that has some, by the base's responses.
    ///
    /// # Errors
    /// A scorer of relevance that cannot be opened, or that fails.
    pub(super) fn of(plan: &RunPlan<'_>, references: &[GenerationRow]) -> Result<Option<Self>> {
        let Some(spec) = &plan.experiment.bounds else {
            return Ok(None);
        };
        let relevance = spec.relevance.as_ref().map(|scorer| scorer.open());
        let mut bounds = Self {
            bounds: Bounds::of(Vec::new()),
            relevance: relevance.transpose().context("bounds: relevance")?,
        };
        let prompts = by_id(&plan.splits.prompts);
        let mut base = Vec::with_capacity(references.len());
        for row in references {
            let (tokens, log_probs) = (&row.tokens, &row.base_log_probs);
            base.push(bounds.traits(
                prompt_of(&prompts, row)?,
                &row.response,
                tokens,
                log_probs,
            )?);
        }
        bounds.bounds = Bounds::of(base);
        Ok(Some(bounds))
    }

    fn traits(&self, prompt: &Prompt, text: &str, tokens: &[u32], base: &[f32]) -> Result<Traits> {
        let relevance = self
            .relevance
            .as_ref()
            .map(|scorer| scorer.score(prompt, text));
        let measured = !tokens.is_empty() && base.len() == tokens.len();
        let nats = base.iter().map(|p| -f64::from(*p)).sum::<f64>();
        Ok(Traits {
            tokens: tokens.len(),
            relevance: relevance.transpose().context("bounds: relevance")?,
            repetition: repetition(tokens),
            surprise: measured.then(|| nats / tokens.len() as f64),
        })
    }

    /// Whether a response loses outright.
    ///
    /// # Errors
    /// A scorer of relevance that fails.
    pub(super) fn crossed(
        &self,
        prompt: &Prompt,
        text: &str,
        tokens: &[u32],
        base: &[f32],
    ) -> Result<bool> {
        let traits = self.traits(prompt, text, tokens, base)?;
        Ok(self.bounds.crossed(&traits).is_some())
    }
}

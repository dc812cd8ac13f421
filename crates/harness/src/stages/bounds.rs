//! Bounds of a run: those of the base's responses to its prompts.

use anyhow::{Context, Result};
use eval::bounds::{Bounds, Traits};
use eval::metrics::repetition;
use eval::rewards::Reward;
use eval::rows::GenerationRow;
use lm::chat::Prompt;

use super::scorer::{by_id, prompt_of};
use crate::plan::RunPlan;

/// Responses whose relevance is told together (ours).
const TOGETHER: usize = 64;

/// A response to its prompt, and what the base gives it.
pub(super) struct Answer<'a> {
    pub prompt: &'a Prompt,
    pub text: &'a str,
    pub tokens: &'a [u32],
    /// Empty where it was not measured.
    pub base_log_probs: &'a [f32],
}

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
        let answers = references.iter().map(|row| {
            Ok(Answer {
                prompt: prompt_of(&prompts, row)?,
                text: &row.response,
                tokens: &row.tokens,
                base_log_probs: &row.base_log_probs,
            })
        });
        let answers: Vec<Answer<'_>> = answers.collect::<Result<_>>()?;
        bounds.bounds = Bounds::of(bounds.traits(&answers)?);
        Ok(Some(bounds))
    }

    /// What of responses is bounded; a model that tells relevance reads many together.
    fn traits(&self, answers: &[Answer<'_>]) -> Result<Vec<Traits>> {
        let mut relevance = vec![None; answers.len()];
        if let Some(scorer) = &self.relevance {
            for (scores, some) in relevance.chunks_mut(TOGETHER).zip(answers.chunks(TOGETHER)) {
                let items: Vec<_> = some.iter().map(|a| (a.prompt, a.text)).collect();
                let told = scorer.score_all(&items).context("bounds: relevance")?;
                scores
                    .iter_mut()
                    .zip(told)
                    .for_each(|(to, score)| *to = Some(score));
            }
        }
        let traits = answers.iter().zip(relevance).map(|(answer, relevance)| {
            let (tokens, base) = (answer.tokens, answer.base_log_probs);
            let measured = !tokens.is_empty() && base.len() == tokens.len();
            let nats = base.iter().map(|p| -f64::from(*p)).sum::<f64>();
            Traits {
                tokens: tokens.len(),
                relevance,
                repetition: repetition(tokens),
                surprise: measured.then(|| nats / tokens.len() as f64),
            }
        });
        Ok(traits.collect())
    }

    /// Which of some responses lose outright.
    ///
    /// # Errors
    /// A scorer of relevance that fails.
    pub(super) fn crossed(&self, answers: &[Answer<'_>]) -> Result<Vec<bool>> {
        let traits = self.traits(answers)?;
        Ok(traits
            .iter()
            .map(|t| self.bounds.crossed(t).is_some())
            .collect())
    }
}

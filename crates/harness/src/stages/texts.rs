//! Rows of texts that no model here made, fixed or recorded, with what the base thinks of them.

use anyhow::{Context, Result};
use eval::rows::GenerationRow;
use lm::chat::Prompt;
use mixing::strategies::Base;
use mixing::{BASE, Generator, Preference, Strategy};

use super::generate::identity;
use crate::models::Pools;
use crate::plan::{Entry, RunPlan};
use crate::prompts::NamedPrompt;

/// The rows of an entry that answers with its plan's text, cut at the limit of new tokens like any response. Its divergence
/// at each token is `−ln p` under the base: that of a distribution which says nothing else.
///
/// # Errors
/// A prompt that does not fit.
pub(super) fn rows(
    plan: &RunPlan<'_>,
    pools: &Pools,
    entry: &Entry,
    requests: &[(&NamedPrompt, u32)],
) -> Result<Vec<GenerationRow>> {
    let text = entry.plan.text.as_ref().context("its text is fixed")?;
    let base = pools.base();
    let mut tokens = base.tokenizer.encode(text, false)?;
    tokens.extend(base.end_tokens.first());
    let ended = tokens.len() <= plan.experiment.generation.max_new_tokens;
    tokens.truncate(plan.experiment.generation.max_new_tokens);
    let prompts: Vec<Prompt> = requests.iter().map(|(p, _)| p.prompt.clone()).collect();
    let responses = vec![tokens.clone(); prompts.len()];
    let log_probs = match plan.experiment.kl {
        true => under_base(plan, pools, &prompts, &responses)?,
        false => vec![Vec::new(); prompts.len()],
    };
    let rows = requests
        .iter()
        .zip(log_probs)
        .map(|(request, base_log_probs)| {
            Ok(GenerationRow {
                identity: identity(entry, request),
                question: request.0.prompt.question().into(),
                response: base.tokenizer.decode(&tokens)?,
                pieces: base.tokenizer.increments(&tokens)?,
                log_probs: vec![0.0; tokens.len()],
                kl: base_log_probs.iter().map(|p| -p).collect(),
                base_log_probs,
                experts: Vec::new(),
                weights: Vec::new(),
                tokens: tokens.clone(),
                ended,
            })
        });
    rows.collect()
}

/// Tells of texts that were made elsewhere what the base gives them, where divergence is measured: `−ln p` at each token
/// stands for the divergence of a distribution that says nothing else. Texts that do not fit into the base's context
/// beside their prompt stay unmeasured.
///
/// # Errors
/// A model that fails.
pub(super) fn measure(
    plan: &RunPlan<'_>,
    pools: &Pools,
    requests: &[(&NamedPrompt, u32)],
    rows: &mut [GenerationRow],
) -> Result<()> {
    if !plan.experiment.kl {
        return Ok(());
    }
    let base = pools.expert(BASE)?;
    let limit = base.model.config().context_length;
    let (mut fitting, mut prompts) = (Vec::new(), Vec::new());
    for (number, (request, row)) in requests.iter().zip(rows.iter()).enumerate() {
        let prompt = &request.0.prompt;
        if !row.tokens.is_empty() && base.tokens(prompt)?.len() + row.tokens.len() <= limit {
            fitting.push(number);
            prompts.push(prompt.clone());
        }
    }
    let responses = fitting.iter().map(|&i| rows[i].tokens.clone());
    let responses: Vec<Vec<u32>> = responses.collect();
    let log_probs = under_base(plan, pools, &prompts, &responses)?;
    for (number, log_probs) in fitting.into_iter().zip(log_probs) {
        rows[number].kl = log_probs.iter().map(|p| -p).collect();
        rows[number].base_log_probs = log_probs;
    }
    Ok(())
}

/// Log-probability of every token of responses under the base, in nats.
///
/// # Errors
/// A prompt or a response that does not fit.
pub(super) fn under_base(
    plan: &RunPlan<'_>,
    pools: &Pools,
    prompts: &[Prompt],
    responses: &[Vec<u32>],
) -> Result<Vec<Vec<f32>>> {
    let alone = Strategy::Base(Base {}).plan(&Preference::default(), &[BASE])?;
    let pool = pools.pool(&alone, false)?;
    let mut generator = Generator::new(&pool, alone, &pools.base().end_tokens)?;
    let width = plan.experiment.batch_size;
    let mut out = Vec::with_capacity(prompts.len());
    for (prompts, responses) in prompts.chunks(width).zip(responses.chunks(width)) {
        let scored = generator.score(prompts, responses)?.into_iter();
        out.extend(scored.map(|response| response.log_probs));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use eval::bounds::{Bound, Bounds, Traits};
    use eval::dimension::Dimension;
    use eval::rewards::Scorer;
    use eval::scoring::ResponseScorer;
    use eval::utility::Utility;
    use mixing::strategies::{Canned, Empty};

    use super::*;

    /// What a small model answers.
    const ANSWER: &str = "The sky looks blue because of how sunlight moves through the air. Sunlight is made of many \
                          colours, and the gases in the atmosphere scatter the short waves of blue light much more than \
                          the long waves of red light, so blue light reaches our eyes from every direction.";

    /// Mean utility over the eight composite preferences.
    fn mean(strategy: &Strategy) -> f64 {
        let dimension = |scorer, low: &str, high: &str| Dimension {
            scorer,
            low: low.into(),
            high: high.into(),
            normaliser: None,
        };
        let dimensions = [
            (
                "expertise",
                dimension(Scorer::Readability, "elementary", "specialist"),
            ),
            (
                "informativeness",
                dimension(Scorer::Informativeness, "concise", "informative"),
            ),
            ("style", dimension(Scorer::Style, "unfriendly", "friendly")),
        ];
        let open = dimensions
            .iter()
            .map(|(name, dimension)| (*name, dimension));
        let mut scorer = ResponseScorer::open(open, Utility::BradleyTerry).unwrap();
        let prompt = Prompt::Raw("Why is the sky blue?".into());
        scorer.set_reference("sky", &prompt, ANSWER).unwrap();
        let mut total = 0.0;
        for i in 0..8 {
            let ends = dimensions.iter().enumerate();
            let stated = ends.map(|(k, (_, d))| if i >> k & 1 == 1 { &d.high } else { &d.low });
            let importances = stated.map(|direction| (direction.clone(), 1.0)).collect();
            let text = String::new();
            let preference = Preference { text, importances };
            let said = strategy.plan(&preference, &[BASE]).unwrap().text.unwrap();
            let rewards = scorer.reward(&prompt, &said).unwrap().normalised;
            let reference = scorer.reference("sky").unwrap().normalised.clone();
            let shares = preference.shares().unwrap();
            total += scorer.utility(shares, &rewards, &reference).unwrap() / 8.0;
        }
        total
    }

    /// Every scorer alone is pleased by a fool: the reason for bounds and for these rows in every table.
    #[test]
    fn texts_that_ignore_the_question_please_every_scorer() {
        let canned = mean(&Strategy::Canned(Canned::default()));
        assert!(canned > 0.8, "{canned}");
        // What reads no preference has a half by symmetry, however empty.
        let empty = mean(&Strategy::Empty(Empty {}));
        assert!((empty - 0.5).abs() < 1e-9, "{empty}");
    }

    /// Where the base's responses bound what counts, they lose.
    #[test]
    fn bounds_stop_them() {
        let base = (0..64).map(|i| Traits {
            tokens: 40 + i % 24,
            relevance: Some(0.4 + 0.005 * i as f64),
            repetition: 0.001 * i as f64,
            surprise: Some(1.0 + 0.01 * i as f64),
        });
        let bounds = Bounds::of(base.collect());
        let canned = Traits {
            tokens: 7,
            relevance: Some(0.05),
            repetition: 0.0,
            surprise: Some(4.0),
        };
        assert_eq!(bounds.crossed(&canned), Some(Bound::Relevance));
        let unseen = Traits {
            relevance: None,
            ..canned
        };
        assert_eq!(bounds.crossed(&unseen), Some(Bound::Surprise));
    }
}

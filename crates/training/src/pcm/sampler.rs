//! Where a PCM's rollouts come from: the experts, the prompts, and the rewards of what they answer.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use eval::dimension::Dimensions;
use eval::scoring::ResponseScorer;
use experts::{Expert, ExpertPool, PromptCache};
use lm::LanguageModel;
use lm::sampling::{Draws, Sampling};
use mixing::strategies::Choice;
use mixing::{BASE, Generation, Generator, Plan, Preference, Request, Response, TemperatureOf};
use pcm::{Fit, Pcm, Rollout};
use serde::Deserialize;

use super::reference::Reference;
use super::round::Round;
use crate::file::{PcmTraining, Training};
use harness::failure::usage;
use harness::models::Models;
use harness::prompts::{self, NamedPrompt};

/// Sequences decoded together (ours).
pub(super) const WIDTH: usize = 16;
/// Responses to a prompt, of which pairs are made.
const RESPONSES: u64 = 2;

/// Wordings of a direction; other fields are allowed and ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Wordings {
    pub train: Vec<String>,
}

/// Everything that responses and their utility come from.
pub(super) struct Sampler<'a> {
    pub training: &'a Training,
    pub recipe: &'a PcmTraining,
    pub base: Arc<LanguageModel>,
    experts: HashMap<String, Expert>,
    pub prompts: Vec<NamedPrompt>,
    pub dimensions: Dimensions,
    pub scorer: ResponseScorer,
    pub wordings: BTreeMap<String, Wordings>,
    /// The base's responses by prompt.
    pub references: Mutex<HashMap<usize, Reference>>,
    /// What the experts, which stay the same, have read in any iteration.
    read: Arc<PromptCache>,
}

/// Reads the wordings and checks that every direction has some.
fn wordings(file: &Path, dimensions: &Dimensions) -> Result<BTreeMap<String, Wordings>> {
    let wrong = |e: &dyn std::fmt::Display| usage(format!("{}: {e}", file.display()));
    let text = lm::load::read_text(file).map_err(|e| usage(e.to_string()))?;
    let wordings: BTreeMap<String, Wordings> =
        serde_json::from_str(&text).map_err(|e| wrong(&e))?;
    for dimension in dimensions.values() {
        for direction in [&dimension.low, &dimension.high] {
            if wordings.get(direction).is_none_or(|w| w.train.is_empty()) {
                return Err(wrong(&format!("there are no words for '{direction}'")));
            }
        }
    }
    Ok(wordings)
}

impl<'a> Sampler<'a> {
    /// Opens the models, the prompts and the scorers.
    ///
    /// # Errors
    /// A model, an adapter, prompts, wordings or a scorer that cannot be opened.
    pub fn open(training: &'a Training, recipe: &'a PcmTraining) -> Result<Self> {
        let mut models = Models::on(&training.device, training.sampling_format)?;
        let base = models.open(&training.model)?;
        let mut experts = HashMap::new();
        for (name, spec) in recipe.experts.iter() {
            experts.insert(name.to_string(), models.expert(name, spec, &base)?);
        }
        let named = recipe.dimensions.iter();
        let dimensions: Dimensions = named.map(|(n, d)| (n.to_string(), d.clone())).collect();
        let wordings = wordings(&recipe.texts, &dimensions)?;
        let scorer = ResponseScorer::open_on(&dimensions, recipe.utility, &training.device)?;
        Ok(Self {
            training,
            recipe,
            base,
            experts,
            prompts: prompts::load(&recipe.prompts).context("prompts")?,
            scorer,
            dimensions,
            wordings,
            references: Mutex::default(),
            read: Arc::new(PromptCache::of_this_machine()),
        })
    }

    /// The base's embedding of a token.
    pub fn embed(&self, token: u32, out: &mut [f32]) {
        // Tokens come from this model; one from elsewhere would read as nothing.
        if self.base.engine.embedding(token, out).is_err() {
            out.fill(0.0);
        }
    }

    /// Samples and scores once: the rollouts of an iteration, and what they were like.
    pub fn sample(&self, number: u64, pcm: &Pcm) -> Result<(Vec<Rollout>, Round)> {
        let mut rollouts = Vec::new();
        let (mut ended, mut tokens, mut kl, mut utility) = (0.0, 0.0, 0.0, 0.0);
        for sampled in self.sample_preferences(number)? {
            let (plan, shares) = self.plan(pcm, &sampled.preference)?;
            let responses = self.respond(plan, &sampled.prompts, sampled.draws, RESPONSES)?;
            for (i, response) in responses.iter().enumerate() {
                ended += f64::from(u8::from(response.ended));
                tokens += response.tokens.len() as f64;
                let prompt = sampled.prompts[i / RESPONSES as usize];
                let rollout =
                    self.record(prompt, &sampled.preference, &shares, response, pcm.config())?;
                kl += rollout.divergence;
                utility += rollout.utility + self.recipe.settings.kl * rollout.divergence;
                rollouts.push(rollout);
            }
        }
        let count = rollouts.len() as f64;
        let round = Round {
            iteration: number,
            utility: utility / count,
            kl: self.measures().then_some(kl / count),
            length: tokens / count,
            ended: ended / count,
            fit: Fit::default(),
        };
        Ok((rollouts, round))
    }

    /// How the PCM serves a preference, and the importances of its experts.
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
    pub fn measures(&self) -> bool {
        self.recipe.settings.kl > 0.0 || self.recipe.output.reads_base()
    }

    /// The expert of that name; the base where there is none.
    fn expert(&self, name: &str) -> Expert {
        match self.experts.get(name) {
            Some(expert) => expert.clone(),
            None => Expert {
                name: name.to_string(),
                model: self.base.clone(),
                adapter: None,
                instruction: None,
                top_k: None,
            },
        }
    }

    /// Responses of a mixture, `[prompts, samples]`; `draws` tells them from those of other preferences.
    pub fn respond(
        &self,
        plan: Plan,
        prompts: &[usize],
        draws: u64,
        samples: u64,
    ) -> Result<Vec<Response>> {
        let experts = plan.experts.iter().map(|name| self.expert(name)).collect();
        let pool = if self.measures() {
            ExpertPool::with_reference(experts, self.expert(BASE), false)?
        } else {
            ExpertPool::new(experts)?
        };
        let pool = pool.with_prompts(self.read.clone());
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
            ..Generation::default()
        };
        Ok(generator.generate(requests, WIDTH, &settings, |_, _| ())?)
    }
}

//! Where REBEL's responses and rewards come from: the policy as it is decoded, and scorers of text.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use eval::rewards::{Shaped, ShapedReward};
use experts::training::rebel::{Environment, Sampled};
use experts::{Error, Expert, ExpertPool, ExpertSpec, PromptCache};
use lm::chat::Prompt;
use lm::sampling::{Draws, Sampling};
use lm::{Adapter, LanguageModel};
use mixing::strategies::Single;
use mixing::{Generation, Generator, Preference, Request, Strategy};

use super::file::Training;
use harness::prompts;

/// Sequences decoded together (ours, not tuned).
const WIDTH: usize = 32;
/// Responses shown in `samples.md`.
const SHOWN: usize = 12;

/// The current policy over the training's prompts.
pub struct Rollouts {
    model: Arc<LanguageModel>,
    prompts: Vec<Prompt>,
    /// The reward of all prompts, or one for each.
    rewards: Vec<Shaped>,
    max_new_tokens: usize,
    temperature: f32,
    shown: Vec<(usize, String, f64, bool)>,
}

impl Rollouts {
    /// Opens the model that samples, the prompts and the scorers.
    ///
    /// # Errors
    /// Prompts, a reward or a model that cannot be opened.
    pub fn open(
        training: &Training,
        prompts: &Path,
        reward: &ShapedReward,
        (max_new_tokens, temperature): (usize, f32),
        model: &Path,
    ) -> Result<Self> {
        let prompts = prompts::load(prompts).context("prompts")?;
        let prompts = prompts.into_iter().map(|p| p.prompt).collect();
        let limits = (max_new_tokens, temperature);
        Self::of(
            training,
            prompts,
            vec![reward.open(&training.device)?],
            limits,
            model,
        )
    }

    /// Opens the model that samples, over given prompts with one reward for all or one for each.
    ///
    /// # Errors
    /// A model that cannot be opened.
    pub fn of(
        training: &Training,
        prompts: Vec<Prompt>,
        rewards: Vec<Shaped>,
        (max_new_tokens, temperature): (usize, f32),
        model: &Path,
    ) -> Result<Self> {
        let (device, format) = (&training.device, training.sampling_format);
        Ok(Self {
            model: Arc::new(LanguageModel::open(model, device, format)?),
            prompts,
            rewards,
            max_new_tokens,
            temperature,
            shown: Vec::new(),
        })
    }

    /// Token ids of every prompt.
    ///
    /// # Errors
    /// A prompt that the model's template refuses.
    pub fn tokens(&self) -> Result<Vec<Vec<u32>>> {
        let tokens = |p: &Prompt| Ok(self.model.prompt_tokens(p)?);
        self.prompts.iter().map(tokens).collect()
    }

    /// Some responses of the last iteration, as Markdown.
    pub fn samples(&self) -> String {
        let mut out = String::from("# Samples of the last iteration\n");
        for (prompt, response, reward, ended) in &self.shown {
            let question = self.prompts[*prompt].question();
            let mark = if *ended { "" } else { " …" };
            let quoted = response.trim().replace('\n', "\n> ");
            out += &format!("\n**{question}** ({reward:+.2})\n\n> {quoted}{mark}\n");
        }
        out
    }
}

fn failed(e: &dyn std::fmt::Display) -> Error {
    Error::Environment(e.to_string())
}

impl Environment for Rollouts {
    fn respond(
        &mut self,
        adapter: &Adapter,
        prompts: &[(usize, Draws)],
    ) -> experts::Result<Vec<Sampled>> {
        self.shown.clear();
        self.sample(self.expert(Some(adapter)), prompts)
    }

    fn reward(&mut self, prompt: usize, response: &Sampled) -> experts::Result<f64> {
        let (text, reward) = self.scored(prompt, response)?;
        if self.shown.len() < SHOWN {
            self.shown.push((prompt, text, reward, response.ended));
        }
        Ok(reward)
    }
}

impl Rollouts {
    /// Text of a response and its reward.
    ///
    /// # Errors
    /// Tokens that cannot be decoded, a scorer that fails.
    pub fn scored(&self, prompt: usize, response: &Sampled) -> experts::Result<(String, f64)> {
        let kept = match response.tokens.split_last() {
            Some((_, rest)) if response.ended => rest,
            _ => response.tokens.as_slice(),
        };
        let text = self.model.tokenizer.decode(kept)?;
        let reward = &self.rewards[prompt.min(self.rewards.len() - 1)];
        let reward = reward.score(&self.prompts[prompt], &text);
        Ok((text, reward.map_err(|e| failed(&e))?))
    }

    /// The base, perhaps with an adapter.
    fn expert(&self, adapter: Option<&Adapter>) -> Expert {
        Expert {
            name: "policy".into(),
            model: self.model.clone(),
            adapter: adapter.map(|a| Arc::new(a.clone())),
            instruction: None,
            top_k: None,
        }
    }

    /// Opens another expert that is to respond.
    ///
    /// # Errors
    /// An adapter that cannot be read, and an expert with a model of its own: only the base responds here.
    pub fn candidate(&self, spec: &ExpertSpec) -> experts::Result<Expert> {
        Expert::open("candidate", spec, &self.model, |name| {
            Err(lm::Error::OnlyBase(name.into()))
        })
    }

    /// Samples a response to each prompt.
    ///
    /// # Errors
    /// An expert that fails, or a prompt that leaves no room for the response.
    pub fn sample(
        &self,
        expert: Expert,
        prompts: &[(usize, Draws)],
    ) -> experts::Result<Vec<Sampled>> {
        let requests = prompts.iter().map(|(prompt, draws)| Request {
            prompt: self.prompts[*prompt].clone(),
            draws: draws.clone(),
        });
        let limits = (self.max_new_tokens, self.temperature);
        sample(expert, requests.collect(), limits)
    }
}

/// Responses of one expert, untruncated.
///
/// # Errors
/// An expert that fails, or a prompt that leaves no room for the response.
pub fn sample(
    expert: Expert,
    requests: Vec<Request>,
    (max_new_tokens, temperature): (usize, f32),
) -> experts::Result<Vec<Sampled>> {
    let name = expert.name.clone();
    let ends = expert.model.end_tokens.clone();
    // Samples of a prompt start from one reading of it.
    let pool =
        ExpertPool::new(vec![expert])?.with_prompts(Arc::new(PromptCache::of_this_machine()));
    let strategy = Strategy::Single(Single {
        expert: name.clone(),
    });
    let plan = strategy
        .plan(&Preference::default(), &[&name])
        .map_err(|e| failed(&e))?;
    let mut generator = Generator::new(&pool, plan, &ends).map_err(|e| failed(&e))?;
    let settings = Generation {
        max_new_tokens,
        sampling: Sampling {
            temperature,
            ..Sampling::GREEDY
        },
        ..Generation::default()
    };
    let responses = generator
        .generate(requests, WIDTH, &settings, |_, _| ())
        .map_err(|e| failed(&e))?;
    let sampled = responses.into_iter().map(|r| Sampled {
        tokens: r.tokens,
        ended: r.ended,
    });
    Ok(sampled.collect())
}

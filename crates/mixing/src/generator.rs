//! The decode loop: prompts in, responses with per-token weights out.

use experts::{ExpertPool, NextTokens};
use lm::chat::Prompt;
use lm::sampling::{Draws, Sampling};
use serde::{Deserialize, Serialize};

use crate::{Mixed, Plan, Result, Step, refuse};

/// Limits of a response and how its tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generation {
    /// Longest response in tokens, the end token included. Default 128 (ours).
    pub max_new_tokens: usize,
    /// Choice of each token, from the mixture's distribution: the temperature divides the log-
    /// probabilities of the mixture, not those of the experts.
    pub sampling: Sampling,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            sampling: Sampling::default(),
        }
    }
}

/// One response to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked.
    pub prompt: Prompt,
    /// Randomness of this response alone.
    pub draws: Draws,
}

/// A finished response.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Response {
    /// Token ids, the end token included where there is one.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the mixture, before temperature and filters, in nats.
    pub log_probs: Vec<f32>,
    /// Weights of the experts at each token, `[tokens, experts]`.
    pub weights: Vec<f32>,
    /// It ended by itself, not at the limit.
    pub ended: bool,
}

/// Decodes with a pool of experts under a plan.
#[derive(Debug)]
pub struct Generator<'a> {
    pool: &'a ExpertPool,
    plan: Plan,
    end_tokens: Vec<u32>,
}

impl<'a> Generator<'a> {
    /// A generator over a pool that holds the plan's experts in the plan's order.
    ///
    /// # Errors
    /// When it holds others.
    pub fn new(pool: &'a ExpertPool, plan: Plan, end_tokens: &[u32]) -> Result<Self> {
        let names: Vec<&str> = pool.experts().iter().map(|e| e.name.as_str()).collect();
        if names != plan.experts {
            return refuse(format!(
                "the plan mixes {:?}, the pool has {names:?}",
                plan.experts
            ));
        }
        Ok(Self {
            pool,
            plan,
            end_tokens: end_tokens.to_vec(),
        })
    }

    /// The experts, in the order of the weights.
    pub fn experts(&self) -> &[String] {
        &self.plan.experts
    }

    /// Responds to every request, all in one batch. `on_token` hears of each token as it is chosen:
    /// index of the request, the response so far.
    ///
    /// # Errors
    /// A prompt that the experts refuse or that is too long, settings that make no sense.
    pub fn generate(
        &mut self,
        requests: Vec<Request>,
        settings: &Generation,
        mut on_token: impl FnMut(usize, &Response),
    ) -> Result<Vec<Response>> {
        settings.sampling.validate().or_else(refuse)?;
        let (prompts, mut draws): (Vec<_>, Vec<_>) =
            requests.into_iter().map(|r| (r.prompt, r.draws)).unzip();
        let limit = settings.max_new_tokens;
        let end_tokens = self.end_tokens.clone();
        self.decode(&prompts, limit, |request, response, mixed| {
            let uniform = draws[request].uniform(response.tokens.len());
            let token = settings.sampling.pick(mixed, uniform);
            response.tokens.push(token);
            response.log_probs.push(mixed[token as usize]);
            response.ended = end_tokens.contains(&token);
            on_token(request, response);
            !response.ended && response.tokens.len() < limit
        })
    }

    /// Reads given responses token by token and returns the mixture's log-probabilities and weights.
    ///
    /// # Errors
    /// Another number of responses than prompts, a token outside of the vocabulary, a prompt that the
    /// experts refuse or that is too long.
    pub fn score(&mut self, prompts: &[Prompt], responses: &[Vec<u32>]) -> Result<Vec<Response>> {
        if prompts.len() != responses.len() {
            return refuse(format!(
                "{} responses to {} prompts",
                responses.len(),
                prompts.len()
            ));
        }
        let vocab = self.pool.vocab();
        if let Some(id) = responses.iter().flatten().find(|&&id| id as usize >= vocab) {
            return refuse(format!(
                "token {id} is outside of the vocabulary of {vocab}"
            ));
        }
        let limit = responses.iter().map(Vec::len).max().unwrap_or(0);
        let end_tokens = self.end_tokens.clone();
        self.decode(prompts, limit, |request, response, mixed| {
            let Some(&token) = responses[request].get(response.tokens.len()) else {
                return false;
            };
            response.tokens.push(token);
            response.log_probs.push(mixed[token as usize]);
            response.ended = end_tokens.contains(&token);
            response.tokens.len() < responses[request].len()
        })
    }

    /// Steps through all prompts together. `advance` gets a request's index, its response and the
    /// mixture's log-probabilities, adds a token, and says whether the response goes on.
    fn decode(
        &mut self,
        prompts: &[Prompt],
        limit: usize,
        mut advance: impl FnMut(usize, &mut Response, &[f32]) -> bool,
    ) -> Result<Vec<Response>> {
        let mut responses = vec![Response::default(); prompts.len()];
        if prompts.is_empty() || limit == 0 {
            return Ok(responses);
        }
        let instructed = match &self.plan.instruction {
            Some(text) => prompts
                .iter()
                .map(|p| p.instructed(text))
                .collect::<Result<_, _>>()?,
            None => prompts.to_vec(),
        };
        let experts = self.plan.experts.len();
        let (mut next, mut mixed) = (NextTokens::default(), Mixed::default());
        let mut state = self.pool.begin(&instructed, limit, &mut next)?;
        // Which request each running sequence serves; a finished one may still run along.
        let mut running: Vec<(usize, bool)> = (0..prompts.len()).map(|i| (i, true)).collect();
        loop {
            self.plan.mixer.mix(&Step { next: &next }, &mut mixed)?;
            let mut tokens = Vec::with_capacity(running.len());
            let rows = mixed
                .log_probs
                .chunks(next.vocab)
                .zip(mixed.weights.chunks(experts));
            for ((request, open), (log_probs, weights)) in running.iter_mut().zip(rows) {
                let response = &mut responses[*request];
                if *open {
                    let before = response.tokens.len();
                    *open = advance(*request, response, log_probs);
                    if response.tokens.len() > before {
                        response.weights.extend_from_slice(weights);
                    }
                }
                // What a finished sequence reads has no effect on the others.
                tokens.push(response.tokens.last().copied().unwrap_or(0));
            }
            let open: Vec<usize> = (0..running.len()).filter(|&i| running[i].1).collect();
            if open.is_empty() {
                return Ok(responses);
            }
            // Where leaving copies the caches, it pays only when half of the lanes would be wasted.
            let few = open.len() * 2 <= running.len() || self.pool.leaves_freely(&state);
            if open.len() < running.len() && few {
                self.pool.retain(&mut state, &open)?;
                tokens = open.iter().map(|&i| tokens[i]).collect();
                running = open.iter().map(|&i| running[i]).collect();
            }
            self.pool.step(&mut state, &tokens, &mut next)?;
        }
    }
}

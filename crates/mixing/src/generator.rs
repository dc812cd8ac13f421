//! The decode loop: prompts in, responses with per-token weights out.

use experts::{ExpertPool, NextTokens, PoolState};
use kernels::{Isa, Team, math};
use lm::chat::{Day, Prompt};
use lm::sampling::{Draws, Sampling};
use serde::{Deserialize, Serialize};

use crate::{Error, History, Mixed, Plan, Result, Step, owned};

/// Limits of a response and how its tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generation {
    /// Longest response in tokens, the end token included. Default 128 (ours).
    pub max_new_tokens: usize,
    /// Choice of each token, from the mixture's distribution.
    pub sampling: Sampling,
    /// What the temperature divides. Default `Mixture`.
    pub temperature_of: TemperatureOf,
    /// The day that chat templates see as today. Default 26 July 2024, LLaMA 3.x's own fallback, so that runs repeat.
    #[serde(skip_serializing_if = "Day::is_default")]
    pub date: Day,
}

/// What a temperature divides the logits of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TemperatureOf {
    /// The mixture: `p ∝ (Σ α_i p_i)^{1/τ}`.
    #[default]
    Mixture,
    /// Each expert: `p = Σ α_i p_i^{1/τ} / Z_i`, whose log-probability follows from the experts' own; what a
    /// PCM is trained with. Greedy decoding (τ = 0) is that of the mixture.
    Experts,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            sampling: Sampling::default(),
            temperature_of: TemperatureOf::Mixture,
            date: Day::default(),
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
    /// Log-probability of each token under each expert, `[tokens, experts]`, in nats.
    pub expert_log_probs: Vec<f32>,
    /// Statistics of the experts that the mixer looked at ([`Mixed::expert_statistics`]), `[tokens, width]`.
    pub expert_statistics: Vec<f32>,
    /// Each distribution cut down to what a training needs ([`Mixed::truncated_distributions`]), `[tokens, width]`.
    pub truncated_distributions: Vec<f32>,
    /// Kullback-Leibler divergence of the mixture from the pool's reference at each token, both over the
    /// whole vocabulary and before the mixture's temperature and filters, in nats; empty without one.
    pub kl: Vec<f32>,
    /// Log-probability of each token under the reference, in nats; empty without one.
    pub reference_log_probs: Vec<f32>,
    /// It ended by itself, not at the limit.
    pub ended: bool,
}

/// Picks a token: the request's number, the token's place in the response, log-probabilities `[vocab]` in nats. `None`
/// where none can be picked.
type Choose<'a> = dyn Fn(usize, usize, &[f32]) -> Option<u32> + Sync + 'a;

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
    pub fn new(pool: &'a ExpertPool, mut plan: Plan, end_tokens: &[u32]) -> Result<Self> {
        if !plan.candidates.is_empty() {
            let names = plan.candidates.iter().map(|c| c.name.clone());
            let candidates = names.collect();
            return Err(Error::NotChosen { candidates });
        }
        if plan.text.is_some() {
            return Err(Error::FixedText);
        }
        if plan.recorded.is_some() {
            return Err(Error::NotDecoded);
        }
        let names: Vec<&str> = pool.experts().iter().map(|e| e.name.as_str()).collect();
        if names != plan.experts {
            return Err(Error::Pool {
                pool: owned(&names),
                planned: plan.experts,
            });
        }
        plan.mixer.open(&pool.experts()[0].model)?;
        Ok(Self {
            pool,
            plan,
            end_tokens: end_tokens.to_vec(),
        })
    }

    /// What it decodes by.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The experts, in the order of the weights.
    pub fn experts(&self) -> &[String] {
        &self.plan.experts
    }

    /// Responds to every request, at most `width` of them at a time: where sequences are independent, a
    /// finished one makes room for the next at once; elsewhere a batch is finished first. `on_token`
    /// hears of each token as it is chosen: index of the request, the response so far.
    ///
    /// # Errors
    /// A prompt that the experts refuse or that is too long, settings that make no sense, a plan that makes
    /// several responses to choose from, [`Error::NoNumbers`].
    pub fn generate(
        &mut self,
        requests: Vec<Request>,
        width: usize,
        settings: &Generation,
        on_token: impl FnMut(usize, &Response),
    ) -> Result<Vec<Response>> {
        self.one_each()?;
        self.all(requests, width, settings, on_token)
    }

    /// Best of n needs a utility.
    fn one_each(&self) -> Result<()> {
        if self.plan.samples <= 1 {
            return Ok(());
        }
        Err(Error::NeedsUtility)
    }

    fn all(
        &mut self,
        requests: Vec<Request>,
        width: usize,
        settings: &Generation,
        on_token: impl FnMut(usize, &Response),
    ) -> Result<Vec<Response>> {
        settings.sampling.validate()?;
        let (prompts, draws): (Vec<_>, Vec<_>) =
            requests.into_iter().map(|r| (r.prompt, r.draws)).unzip();
        let limits = vec![settings.max_new_tokens; prompts.len()];
        let mut sampling = settings.sampling;
        let of_experts = settings.temperature_of == TemperatureOf::Experts;
        let inner = (of_experts && sampling.temperature > 0.0).then_some(sampling.temperature);
        if inner.is_some() {
            sampling.temperature = 1.0;
        }
        let choose = |request: usize, at: usize, log_probs: &[f32]| {
            let uniform = draws[request].clone().uniform(at);
            sampling.pick(log_probs, uniform).ok()
        };
        let work = Work {
            prompts: &prompts,
            limits: &limits,
            width,
            stop_at_end: true,
            temperature: inner,
        };
        self.decode(&work, &choose, on_token)
    }

    /// Responds as often to each request as the plan says, and keeps the response that `utility` rates
    /// highest, of equals the first. Attempts differ in nothing but their draws; the first is that of
    /// [`Self::generate`].
    ///
    /// # Errors
    /// Those of [`Self::generate`] and of `utility`, which gets a request's index and a response.
    pub fn best<E: From<crate::Error>>(
        &mut self,
        requests: Vec<Request>,
        width: usize,
        settings: &Generation,
        mut utility: impl FnMut(usize, &Response) -> Result<f64, E>,
        mut on_token: impl FnMut(usize, &Response),
    ) -> Result<Vec<Response>, E> {
        let attempts = self.plan.samples.max(1);
        let attempt = |request: &Request, n: usize| Request {
            prompt: request.prompt.clone(),
            draws: request.draws.attempt(n),
        };
        let all = requests
            .iter()
            .flat_map(|r| (0..attempts).map(move |n| attempt(r, n)));
        let all = all.collect();
        let made = self.all(all, width, settings, |i, r| on_token(i / attempts, r))?;
        let mut best: Vec<(f64, Response)> = Vec::with_capacity(requests.len());
        for (i, response) in made.into_iter().enumerate() {
            let rated = utility(i / attempts, &response)?;
            match best.get_mut(i / attempts) {
                None => best.push((rated, response)),
                Some(leader) if rated > leader.0 || leader.0.is_nan() => {
                    *leader = (rated, response)
                }
                Some(_) => {}
            }
        }
        Ok(best.into_iter().map(|(_, response)| response).collect())
    }

    /// Reads given responses token by token and returns the mixture's log-probabilities and weights.
    ///
    /// # Errors
    /// Another number of responses than prompts, a token outside of the vocabulary, a prompt that the
    /// experts refuse or that is too long, [`Error::NoNumbers`].
    pub fn score(&mut self, prompts: &[Prompt], responses: &[Vec<u32>]) -> Result<Vec<Response>> {
        self.one_each()?;
        if prompts.len() != responses.len() {
            let (responses, prompts) = (responses.len(), prompts.len());
            let message = format!("{responses} responses to {prompts} prompts");
            return Err(Error::Request(message));
        }
        let vocab = self.pool.vocab();
        if let Some(id) = responses.iter().flatten().find(|&&id| id as usize >= vocab) {
            let message = format!("token {id} is outside of the vocabulary of {vocab}");
            return Err(Error::Request(message));
        }
        let limits: Vec<usize> = responses.iter().map(Vec::len).collect();
        let work = Work {
            prompts,
            limits: &limits,
            width: prompts.len(),
            stop_at_end: false,
            temperature: None,
        };
        let given = |request: usize, at: usize, log_probs: &[f32]| {
            let top = math::peak(Isa::best(), log_probs);
            top.is_finite().then(|| responses[request][at])
        };
        self.decode(&work, &given, |_, _| ())
    }

    /// Steps through all prompts. `choose` gets a request's index, the number of its next token and the
    /// mixture's log-probabilities, and names the token; `None` where these are no numbers.
    fn decode(
        &mut self,
        work: &Work<'_>,
        choose: &Choose<'_>,
        mut on_token: impl FnMut(usize, &Response),
    ) -> Result<Vec<Response>> {
        let mut responses = vec![Response::default(); work.prompts.len()];
        let prompts: Vec<Prompt> = work
            .prompts
            .iter()
            .map(|p| self.plan.prompt(p))
            .collect::<Result<_>>()?;
        let independent = self.pool.supports_continuous_batching();
        let mut mixed = Mixed::default();
        let mut next = NextTokens {
            temperature: work.temperature,
            ..NextTokens::default()
        };
        let mut waiting = (0..prompts.len()).filter(|&i| work.limits[i] > 0);
        let mut running = Running::default();
        loop {
            let room = work.width.max(1) - running.requests.len();
            if room > 0 && (independent || running.requests.is_empty()) {
                let fresh: Vec<usize> = waiting.by_ref().take(room).collect();
                if !fresh.is_empty() {
                    let of = |all: &[Prompt]| -> Vec<Prompt> {
                        fresh.iter().map(|&i| all[i].clone()).collect()
                    };
                    let (read, asked) = (of(&prompts), of(work.prompts));
                    let limit = fresh.iter().map(|&i| work.limits[i]).max().unwrap_or(0);
                    let pool = self.pool;
                    let state = pool.begin_beside(&read, &asked, limit, &mut next);
                    let state = state.map_err(|e| placed(e.into(), &fresh, &responses))?;
                    let mut joining = Running {
                        histories: self.histories(&fresh, &read)?,
                        requests: fresh,
                        state: Some(state),
                    };
                    self.choose(&mut joining, choose, &next, &mut mixed, &mut responses)?;
                    joining
                        .requests
                        .iter()
                        .for_each(|&i| on_token(i, &responses[i]));
                    self.leave(work, &mut joining, &responses)?;
                    running.join(joining, self.pool)?;
                    continue;
                }
            }
            let Some(state) = running.state.as_mut() else {
                return Ok(responses);
            };
            let last = |&i: &usize| responses[i].tokens.last().copied().unwrap_or(0);
            let tokens: Vec<u32> = running.requests.iter().map(last).collect();
            self.pool
                .step(state, &tokens, &mut next)
                .map_err(|e| placed(e.into(), &running.requests, &responses))?;
            self.choose(&mut running, choose, &next, &mut mixed, &mut responses)?;
            running
                .requests
                .iter()
                .for_each(|&i| on_token(i, &responses[i]));
            self.leave(work, &mut running, &responses)?;
        }
    }

    /// The beginnings of sequences.
    fn histories(&self, requests: &[usize], prompts: &[Prompt]) -> Result<Vec<History>> {
        let experts = self.plan.experts.len();
        let likelihoods = match self.plan.mixer.reads_prompt() {
            true => self.pool.prompt_nll(prompts)?,
            false => vec![Vec::new(); prompts.len()],
        };
        let model = &self.pool.experts()[0].model;
        let context = |prompt: &Prompt| match self.plan.mixer.reads_context() {
            true => Ok(model.prompt_tokens(prompt)?),
            false => Ok(Vec::new()),
        };
        let contexts: Vec<Vec<u32>> = prompts.iter().map(context).collect::<Result<_>>()?;
        let pairs = requests.iter().zip(contexts).zip(likelihoods);
        Ok(pairs
            .map(|((&request, context), prompt)| History {
                request,
                context,
                tokens: Vec::new(),
                log_probs: vec![0.0; experts],
                prompt,
            })
            .collect())
    }

    /// Mixes a step and adds a token to every running response, several at once.
    fn choose(
        &mut self,
        running: &mut Running,
        choose: &Choose<'_>,
        next: &NextTokens,
        mixed: &mut Mixed,
        responses: &mut [Response],
    ) -> Result<()> {
        let step = Step {
            next,
            history: &running.histories,
        };
        self.plan
            .mixer
            .mix(&step, mixed)
            .map_err(|e| placed(e, &running.requests, responses))?;
        let experts = self.plan.experts.len();
        // Token and divergence.
        let mut chosen = vec![(None, 0.0); running.requests.len()];
        let (log_probs, done) = (&mixed.log_probs, &*responses);
        Team::global().for_each_row(&mut chosen, 1, |row, chosen| {
            let request = running.requests[row];
            let log_probs = &log_probs[row * next.vocab..(row + 1) * next.vocab];
            let token = choose(request, done[request].tokens.len(), log_probs);
            let kl = next
                .reference
                .map_or(0.0, |r| math::kl(Isa::best(), log_probs, next.row(r, row)));
            chosen[0] = (token, kl);
        });
        for (row, (&request, (token, kl))) in running.requests.iter().zip(chosen).enumerate() {
            let response = &mut responses[request];
            let Some(token) = token else {
                let names: Vec<String> =
                    self.plan.experts.iter().map(|e| format!("'{e}'")).collect();
                let who = format!("the mixture of {}", names.join(", "));
                return Err(without(who, request, response));
            };
            response.tokens.push(token);
            let log_prob = mixed.log_probs[row * next.vocab + token as usize];
            response.log_probs.push(log_prob);
            let weights = &mixed.weights[row * experts..(row + 1) * experts];
            response.weights.extend_from_slice(weights);
            let of = |all: &[f32]| {
                let width = all.len() / running.requests.len();
                all[row * width..(row + 1) * width].to_vec()
            };
            let statistics = of(&mixed.expert_statistics);
            response.expert_statistics.extend(statistics);
            let distribution = of(&mixed.truncated_distributions);
            response.truncated_distributions.extend(distribution);
            let by_expert = (0..experts).map(|e| next.row(e, row)[token as usize]);
            response.expert_log_probs.extend(by_expert);
            if let Some(reference) = next.reference {
                let log_prob = next.row(reference, row)[token as usize];
                response.reference_log_probs.push(log_prob);
                response.kl.push(kl as f32);
            }
            response.ended = self.end_tokens.contains(&token);
            let history = &mut running.histories[row];
            history.tokens.push(token);
            for (e, sum) in history.log_probs.iter_mut().enumerate() {
                *sum += f64::from(next.row(e, row)[token as usize]);
            }
        }
        Ok(())
    }

    /// Sequences that are finished leave.
    fn leave(&self, work: &Work<'_>, running: &mut Running, responses: &[Response]) -> Result<()> {
        let open: Vec<usize> = (0..running.requests.len())
            .filter(|&row| {
                let request = running.requests[row];
                work.open(request, &responses[request])
            })
            .collect();
        if open.len() == running.requests.len() {
            return Ok(());
        }
        if open.is_empty() {
            *running = Running::default();
            return Ok(());
        }
        if let Some(state) = &mut running.state {
            self.pool.retain(state, &open)?;
        }
        let mut histories = std::mem::take(&mut running.histories);
        let kept = open.iter().map(|&row| std::mem::take(&mut histories[row]));
        running.histories = kept.collect();
        running.requests = open.iter().map(|&row| running.requests[row]).collect();
        Ok(())
    }
}

/// What a decode loop has to do.
struct Work<'a> {
    prompts: &'a [Prompt],
    /// Tokens of each response at most.
    limits: &'a [usize],
    /// Sequences at a time.
    width: usize,
    /// An end token ends a response.
    stop_at_end: bool,
    /// Divides each expert's logits.
    temperature: Option<f32>,
}

impl Work<'_> {
    /// The response goes on.
    fn open(&self, request: usize, response: &Response) -> bool {
        let ended = self.stop_at_end && response.ended;
        !ended && response.tokens.len() < self.limits[request]
    }
}

/// Sequences under way.
#[derive(Debug, Default)]
struct Running {
    /// The request of each.
    requests: Vec<usize>,
    histories: Vec<History>,
    state: Option<PoolState>,
}

impl Running {
    fn join(&mut self, other: Self, pool: &ExpertPool) -> Result<()> {
        match (&mut self.state, other.state) {
            (Some(state), Some(other)) => pool.join(state, other)?,
            (None, other) => self.state = other,
            (_, None) => {}
        }
        self.requests.extend(other.requests);
        self.histories.extend(other.histories);
        Ok(())
    }
}

/// The error of a response that cannot go on.
fn without(who: String, request: usize, response: &Response) -> Error {
    Error::NoNumbers {
        who,
        request,
        token: response.tokens.len(),
        prompt: request.to_string(),
    }
}

/// Says at which token of which request an expert or a PCM gave no numbers; `requests` are those of a step.
fn placed(error: Error, requests: &[usize], responses: &[Response]) -> Error {
    let (who, request) = match &error {
        Error::Experts(experts::Error::NoNumbers { expert, sequence }) => {
            let request = requests.get(*sequence).copied();
            (format!("expert '{expert}'"), request)
        }
        Error::Pcm(pcm::Error::NoNumbers { sequence, .. }) => ("the PCM".into(), Some(*sequence)),
        _ => return error,
    };
    match request.and_then(|request| Some((request, responses.get(request)?))) {
        Some((request, response)) => without(who, request, response),
        None => error,
    }
}

//! `mope generate` and `mope score`.

use std::io::IsTerminal;

use anyhow::Result;
use eval::plots::colour;
use eval::rows::Identity;
use lm::sampling::Sampling;
use mixing::{Generation, Generator, Request, Response};
use serde_json::{Value, json};

use super::selection::Selected;
use super::{Global, say, shown};
use crate::cli::{GenerateArgs, ScoreArgs};
use harness::failure::usage;
use harness::stages::generate::{draws, with_prompt_id};

fn settings(selected: &Selected, args: &GenerateArgs) -> Result<Generation> {
    // Without a config the default is greedy: the same answer twice is what a script expects.
    let mut settings = selected.generation.unwrap_or(Generation {
        sampling: Sampling::GREEDY,
        ..Generation::default()
    });
    let sampling = &mut settings.sampling;
    sampling.temperature = args.temperature.unwrap_or(sampling.temperature);
    sampling.top_k = args.top_k.unwrap_or(sampling.top_k);
    sampling.top_p = args.top_p.unwrap_or(sampling.top_p);
    sampling.min_p = args.min_p.unwrap_or(sampling.min_p);
    sampling.validate().map_err(|e| usage(e.to_string()))?;
    settings.max_new_tokens = args.max_new_tokens.unwrap_or(settings.max_new_tokens);
    Ok(settings)
}

pub fn generate(global: &Global, args: &GenerateArgs) -> Result<()> {
    let selected = Selected::open(global, &args.selection)?;
    let settings = settings(&selected, args)?;
    let identity = Identity {
        strategy: args.selection.strategy.clone().unwrap_or_default(),
        preference: args.selection.stated.preference.clone().unwrap_or_default(),
        prompt: selected.prompt.question().to_string(),
        sample: 0,
    };
    let request = Request {
        prompt: selected.prompt.clone(),
        draws: draws(selected.seed, &identity),
    };
    let base = selected.base.clone();
    let mut generator = Generator::new(&selected.pool, selected.plan, &base.end_tokens)?;
    let experts = generator.experts().to_vec();
    let mut stream = base.tokenizer.stream();
    let mut failed = None;
    // What is coloured is written with its legend, when the response is there.
    let live = !global.json && !args.show_weights;
    let responses = generator.generate(vec![request], 1, &settings, |_, response| {
        if let Some(&last) = response.tokens.last().filter(|_| live) {
            let piece = stream.push(last).map_err(anyhow::Error::from);
            if let Err(e) = piece.and_then(|text| say(&shown(&text))) {
                failed.get_or_insert(e);
            }
        }
    });
    let responses = responses.map_err(|e| with_prompt(e, selected.prompt.question()))?;
    if let Some(e) = failed {
        return Err(e);
    }
    let response = responses.into_iter().next().unwrap_or_default();
    if global.json {
        let mut document = json!({
            "text": base.tokenizer.decode(&response.tokens)?,
            "tokens": response.tokens,
            "log_probs": response.log_probs,
            "ended": response.ended,
        });
        if selected.mixture {
            document["experts"] = json!(experts);
            document["weights"] = weights(&response, experts.len());
        }
        return global.print(document, String::new);
    }
    if args.show_weights {
        let pieces = base.tokenizer.increments(&response.tokens)?;
        let pieces: Vec<String> = pieces.iter().map(|p| shown(p).into_owned()).collect();
        return say(&coloured(&pieces, &response, &experts));
    }
    say("\n")
}

/// Names the prompt in an error by its beginning: it has no id.
fn with_prompt(error: mixing::Error, question: &str) -> anyhow::Error {
    let mut beginning: String = question.chars().take(40).collect();
    if beginning.len() < question.len() {
        beginning.push('…');
    }
    with_prompt_id(error.into(), |_| Some(&beginning))
}

/// Rows of weights, one a token.
fn weights(response: &Response, experts: usize) -> Value {
    json!(response.weights.chunks(experts).collect::<Vec<_>>())
}

/// The response with each token on the colour of its leading expert, and a legend.
fn coloured(pieces: &[String], response: &Response, experts: &[String]) -> String {
    // https://no-color.org: set and not empty.
    let set = |variable: &str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    let colours = std::io::stdout().is_terminal() || set("CLICOLOR_FORCE");
    let plain = set("NO_COLOR") || !colours;
    let paint = |expert: usize, text: &str| {
        let c = colour(expert);
        match plain {
            true => format!("[{expert}]{text}"),
            false => format!(
                "\x1b[38;2;255;255;255;48;2;{};{};{}m{text}\x1b[0m",
                c.0, c.1, c.2
            ),
        }
    };
    let mut out = String::new();
    let mut before = None;
    for (piece, weights) in pieces.iter().zip(response.weights.chunks(experts.len())) {
        let better = |best: usize, i: usize| if weights[i] > weights[best] { i } else { best };
        let leader = (0..weights.len()).fold(0, better);
        match plain && before == Some(leader) {
            true => out.push_str(piece),
            false => out.push_str(&paint(leader, piece)),
        }
        before = Some(leader);
    }
    out.push('\n');
    for (i, name) in experts.iter().enumerate() {
        let tokens = response.weights.len() / experts.len();
        let weights = response.weights.iter().skip(i).step_by(experts.len());
        let mean = weights.sum::<f32>() / tokens.max(1) as f32;
        out.push_str(&format!("{}  mean weight {mean:.3}\n", paint(i, name)));
    }
    out
}

pub fn score(global: &Global, args: &ScoreArgs) -> Result<()> {
    let selected = Selected::open(global, &args.selection)?;
    let base = selected.base.clone();
    let tokens = base.tokenizer.encode_text(&args.response)?;
    if tokens.is_empty() {
        return Err(usage("--response: the response has no token"));
    }
    let mut generator = Generator::new(&selected.pool, selected.plan, &base.end_tokens)?;
    let experts = generator.experts().to_vec();
    let question = selected.prompt.question().to_string();
    let scored = generator.score(&[selected.prompt], &[tokens]);
    let scored = scored.map_err(|e| with_prompt(e, &question))?;
    let response = scored.into_iter().next().unwrap_or_default();
    let total: f64 = response.log_probs.iter().map(|v| f64::from(*v)).sum();
    let mut document = json!({
        "tokens": response.tokens,
        "log_probs": response.log_probs,
        "total": total,
    });
    if selected.mixture {
        document["experts"] = json!(experts);
        document["weights"] = weights(&response, experts.len());
    }
    let pieces = base.tokenizer.increments(&response.tokens)?;
    global.print(document, || {
        let rows = pieces.iter().zip(&response.log_probs);
        let lines: String = rows
            .map(|(piece, v)| format!("{v:>10.4}  {piece:?}\n"))
            .collect();
        format!("{lines}{total:>10.4}  total (nats)")
    })
}

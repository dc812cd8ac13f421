//! Which model or mixture a command uses, and what it is asked.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use experts::{ExpertPool, ExpertSpec};
use lm::chat::{Message, Prompt};
use lm::source::hub::{located, located_folder};
use lm::{DecoderConfig, LanguageModel};
use mixing::merging::{Recipe, Source};
use mixing::{BASE, Generation, Plan, Preference, Strategy};

use super::Global;
use crate::cli::{Selection, Stated};
use harness::experiment::Experiment;
use harness::failure::usage;
use harness::models::{Models, Pools};
use harness::prompts::check;

/// Opened and ready.
pub struct Selected {
    pub base: Arc<LanguageModel>,
    pub pool: ExpertPool,
    pub plan: Plan,
    pub prompt: Prompt,
    /// The config's settings, where there is one.
    pub generation: Option<Generation>,
    pub seed: u64,
    /// A strategy of a config, whose weights are of interest.
    pub mixture: bool,
}

impl Selected {
    /// Opens what the arguments name.
    ///
    /// # Errors
    /// Mistakes in them, or models that can't be opened.
    pub fn open(global: &Global, selection: &Selection) -> Result<Self> {
        let prompt = prompt(selection)?;
        match &selection.config {
            Some(_) => Self::of_config(global, selection, prompt),
            None => Self::of_model(global, selection, prompt),
        }
    }

    fn of_model(global: &Global, selection: &Selection, prompt: Prompt) -> Result<Self> {
        let device = global.device.clone().unwrap_or_default();
        let mut models = Models::on(&device, global.format.unwrap_or_default())?;
        let name = selection.model.as_deref().context("no model")?;
        let base = models.open(name)?;
        let spec = match &selection.adapter {
            Some(folder) => ExpertSpec::Adapter(located_folder(Path::new(""), folder)),
            None => ExpertSpec::Base,
        };
        let expert = models.expert(BASE, &spec, &base)?;
        let nobody = Preference {
            text: String::new(),
            importances: Default::default(),
        };
        let plan = Strategy::Base(mixing::strategies::Base {}).plan(&nobody, &[BASE])?;
        Ok(Self {
            base,
            pool: ExpertPool::new(vec![expert])?,
            plan,
            prompt,
            generation: None,
            seed: global.seed.unwrap_or(0),
            mixture: false,
        })
    }

    fn of_config(global: &Global, selection: &Selection, prompt: Prompt) -> Result<Self> {
        let file = selection.config.as_deref().context("no config")?;
        let mut experiment = Experiment::load(file)?;
        if let Some(model) = &selection.model {
            experiment.model = located(Path::new(""), model);
        }
        let strategy = selection.strategy.as_deref().context("no strategy")?;
        let preference = preference(&experiment, &selection.stated)?;
        let plan = experiment
            .strategy(strategy)
            .and_then(|spec| experiment.resolve_strategy(spec, &preference))
            .map_err(|e| usage(format!("strategy '{strategy}': {e:#}")))?;
        if plan.recorded.is_some() {
            let error = mixing::Error::NotDecoded;
            return Err(usage(format!("strategy '{strategy}': {error}")));
        }
        if let Some(device) = &global.device {
            experiment.device = device.clone();
        }
        experiment.format = global.format.unwrap_or(experiment.format);
        let mut pools = Pools::open(&experiment)?;
        pools.open_experts(&experiment, &plan)?;
        Ok(Self {
            base: pools.base().clone(),
            pool: pools.pool(&plan, false)?,
            plan,
            prompt,
            generation: Some(experiment.generation),
            seed: global.seed.unwrap_or(experiment.seed),
            mixture: true,
        })
    }
}

/// The parameters that a recipe of an experiment merges.
pub fn sources(
    models: &mut Models,
    experiment: &Experiment,
    recipe: &Recipe,
    base: &DecoderConfig,
) -> Result<Vec<Source>> {
    let names = recipe.experts.iter();
    names
        .map(|name| models.source(name, &experiment.expert(name), base))
        .collect()
}

/// All of stdin, without the line end that programs put behind a text.
fn from_stdin() -> Result<String> {
    let text = std::io::read_to_string(std::io::stdin()).context("--prompt: reading stdin")?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_string())
}

fn prompt(selection: &Selection) -> Result<Prompt> {
    if let Some(json) = &selection.messages {
        let messages: Vec<Message> =
            serde_json::from_str(json).map_err(|e| usage(format!("--messages: {e}")))?;
        check(&messages).map_err(|e| usage(format!("--messages: {e}")))?;
        return Ok(Prompt::Chat(messages));
    }
    let text = match selection.prompt.as_deref() {
        Some("-") => from_stdin()?,
        text => text.unwrap_or_default().to_string(),
    };
    if text.is_empty() {
        return Err(usage("--prompt: the prompt is empty"));
    }
    Ok(match selection.raw {
        true => Prompt::Raw(text),
        false => Prompt::Chat(vec![Message::user(text)]),
    })
}

/// The preference that the arguments name.
///
/// # Errors
/// None or an unknown one where there is a choice.
pub fn preference(experiment: &Experiment, selection: &Stated) -> Result<Preference> {
    let names = experiment.preferences.names();
    let Some(given) = &selection.preference else {
        if let [only] = names[..] {
            let only = experiment.preferences.get(only).context("it is listed")?;
            return Ok(only.clone());
        }
        let known = names.join(", ");
        return Err(usage(format!(
            "--preference is needed: weights such as 'a=0.7,b=0.3', or one of: {known}"
        )));
    };
    let mut preference = match experiment.preferences.get(given) {
        Some(entry) => entry.clone(),
        None => parse_weights(given).map_err(|e| {
            let known = names.join(", ");
            usage(format!(
                "--preference '{given}': {e}; the config has: {known}"
            ))
        })?,
    };
    if let Some(text) = &selection.preference_text {
        preference.text = text.clone();
    }
    Ok(preference)
}

/// Reads `a=0.7,b=0.3`; the text names the directions by importance.
fn parse_weights(text: &str) -> Result<Preference, String> {
    let mut weights = std::collections::BTreeMap::new();
    for part in text.split(',') {
        let (name, weight) = part
            .split_once('=')
            .ok_or_else(|| format!("'{part}' is not of the form direction=weight"))?;
        let weight: f64 = weight
            .trim()
            .parse()
            .map_err(|_| format!("'{weight}' is not a number"))?;
        if weights.insert(name.trim().to_string(), weight).is_some() {
            return Err(format!("'{}' comes twice", name.trim()));
        }
    }
    let mut preference = Preference {
        text: String::new(),
        importances: weights,
    };
    let mut shares = preference.shares().map_err(|e| e.to_string())?;
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let named: Vec<String> = shares
        .iter()
        .map(|(name, share)| format!("{name} ({:.0} %)", share * 100.0))
        .collect();
    preference.text = format!("Answer in this style: {}.", named.join(", "));
    Ok(preference)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn weights_become_a_preference() {
        let preference = parse_weights("concise=0.3, friendly=0.7").unwrap();
        assert_eq!(preference.importances["friendly"], 0.7);
        assert_eq!(
            preference.text,
            "Answer in this style: friendly (70 %), concise (30 %)."
        );
        for (text, message) in [
            ("concise", "not of the form"),
            ("concise=x", "'x' is not a number"),
            ("a=1,a=2", "'a' comes twice"),
            ("a=-1", "not above 0"),
        ] {
            let error = parse_weights(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}

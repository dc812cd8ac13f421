//! Responses that were made elsewhere, as a strategy of the run: [`Recorded`](mixing::strategies::Recorded).
//!
//! A file has a row for every prompt, preference and sample of the experiment:
//!
//! | column | holds |
//! |---|---|
//! | `prompt` | the prompt's id, or its text where that is no id |
//! | `preference` | the preference's name; without the column every response serves all preferences |
//! | `sample` | number of the sample from 0; may be left out where there is one |
//! | `text` or `response` | the response |
//! | `ended` | it ended by itself, not at a limit; true where it is left out |
//!
//! Other columns are ignored, so the rows of a run folder can be read, too.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::prompts;
//! use mope_harness::recorded::Responses;
//!
//! let folder = tempfile::tempdir()?;
//! let experiment = Experiment::load(&pico::experiment(folder.path()))?;
//! let prompts = prompts::load(&experiment.prompts)?;
//! let file = folder.path().join("elsewhere.csv");
//! std::fs::write(&file, "prompt,preference,text\n1,kind,Blue.\nWhy?,kind,Because.\n")?;
//! let responses = Responses::load(&file, &experiment, &prompts)?;
//! assert_eq!(responses.get("kind", "2", 0)?.text, "Because.");
//! # anyhow::Ok(())
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mixing::Strategy;
use serde_json::Value;

use crate::experiment::Experiment;
use crate::failure::{nearest, usage};
use crate::foreign::{Row, rows};
use crate::prompts::NamedPrompt;

/// Most tokens of a recorded response (ours): what reads a run folder stops there.
pub const LONGEST: usize = 1 << 16;

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its text.
    pub text: String,
    /// It ended by itself.
    pub ended: bool,
}

/// All responses of one file.
pub struct Responses {
    path: PathBuf,
    /// By preference, prompt and sample.
    responses: HashMap<(String, String, u32), Response>,
}

/// The responses that the recorded strategies of an experiment name, by file.
///
/// # Errors
/// Those of [`Responses::load`], with the strategy's name.
pub fn load_all(
    experiment: &Experiment,
    prompts: &[NamedPrompt],
) -> Result<BTreeMap<PathBuf, Responses>> {
    let mut all = BTreeMap::new();
    for (name, strategy) in experiment.strategies.iter() {
        if let Strategy::Recorded(recorded) = strategy {
            let responses = Responses::load(&recorded.0, experiment, prompts);
            let responses = responses.with_context(|| format!("strategy '{name}'"))?;
            all.insert(recorded.0.clone(), responses);
        }
    }
    Ok(all)
}

/// What rows are compared with.
struct Asked<'a> {
    ids: HashMap<&'a str, usize>,
    /// Prompts by their text; `None` where several have it.
    texts: HashMap<&'a str, Option<usize>>,
    preferences: Vec<&'a str>,
    samples: u32,
}

impl<'a> Asked<'a> {
    fn new(experiment: &'a Experiment, prompts: &'a [NamedPrompt]) -> Self {
        let mut texts: HashMap<&str, Option<usize>> = HashMap::new();
        for (number, prompt) in prompts.iter().enumerate() {
            let text = texts.entry(prompt.prompt.question());
            text.and_modify(|several| *several = None)
                .or_insert(Some(number));
        }
        let ids = prompts.iter().enumerate().map(|(i, p)| (p.id.as_str(), i));
        Self {
            ids: ids.collect(),
            texts,
            preferences: experiment.preferences.names(),
            samples: experiment.samples,
        }
    }

    /// The prompt that a row answers, by its number.
    fn prompt(&self, row: &Row) -> Result<usize, String> {
        let name = match row.cells.get("prompt") {
            Some(Value::String(name)) => name.clone(),
            Some(other) => other.to_string(),
            None => return Err("there is no `prompt`: a prompt's id or text".into()),
        };
        if let Some(&number) = self.ids.get(name.as_str()) {
            return Ok(number);
        }
        match self.texts.get(name.as_str()) {
            Some(Some(number)) => Ok(*number),
            Some(None) => Err(format!("several prompts are '{name}'; name them by id")),
            None => Err(format!(
                "no prompt has the id or text '{name}'{}",
                nearest(&name, self.ids.keys().copied())
            )),
        }
    }

    /// The preferences that a row's response serves: the one that it names, or all where rows name none.
    fn preferences(&self, row: &Row, named: bool) -> Result<Vec<&'a str>, String> {
        match row.cells.get("preference") {
            Some(Value::String(name)) => {
                let known = self.preferences.iter().find(|known| *known == name);
                let known = known.ok_or_else(|| {
                    let hint = nearest(name, self.preferences.iter().copied());
                    let known = self.preferences.join(", ");
                    format!("no preference '{name}'{hint}; there are: {known}")
                })?;
                Ok(vec![known])
            }
            Some(other) => Err(format!("the preference {other} is no name")),
            None if named => Err("there is no `preference`, which other rows name".into()),
            None => Ok(self.preferences.clone()),
        }
    }

    fn sample(&self, row: &Row) -> Result<u32, String> {
        let sample = match row.cells.get("sample") {
            None => Some(0),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(other) => other.as_u64().and_then(|n| n.try_into().ok()),
        };
        sample.filter(|n| *n < self.samples).ok_or_else(|| {
            let sample = &row.cells["sample"];
            let samples = self.samples;
            format!("the sample {sample} is none of the experiment's, which are 0 to {samples} − 1")
        })
    }
}

fn response(row: &Row) -> Result<Response, String> {
    let text = match (row.cells.get("text"), row.cells.get("response")) {
        (Some(_), Some(_)) => return Err("both `text` and `response`".into()),
        (None, None) => return Err("there is neither `text` nor `response`".into()),
        (Some(Value::String(text)), None) | (None, Some(Value::String(text))) => text.clone(),
        (Some(other), None) | (None, Some(other)) => {
            return Err(format!("the response {other} is no text"));
        }
    };
    let ended = match row.cells.get("ended") {
        None => true,
        Some(Value::Bool(ended)) => *ended,
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => true,
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => false,
        Some(other) => return Err(format!("ended is {other}, neither true nor false")),
    };
    Ok(Response { text, ended })
}

impl Responses {
    /// Reads a file and checks that it has every response of the experiment once, and no other.
    ///
    /// # Errors
    /// A file that cannot be read; with the row, one of an unknown prompt, preference or sample, or that comes twice;
    /// responses that are missing.
    pub fn load(path: &Path, experiment: &Experiment, prompts: &[NamedPrompt]) -> Result<Self> {
        let columns = [
            "prompt",
            "preference",
            "sample",
            "text",
            "response",
            "ended",
        ];
        let rows = rows(path, &columns)?;
        let asked = Asked::new(experiment, prompts);
        let named = rows.iter().any(|row| row.cells.contains_key("preference"));
        let mut responses: HashMap<(String, String, u32), Response> = HashMap::new();
        let mut first: HashMap<(String, String, u32), usize> = HashMap::new();
        for row in &rows {
            let number = row.number;
            let fail = |m: String| usage(format!("{}: row {number}: {m}", path.display()));
            let prompt = &prompts[asked.prompt(row).map_err(fail)?].id;
            let sample = asked.sample(row).map_err(fail)?;
            let response = response(row).map_err(fail)?;
            for preference in asked.preferences(row, named).map_err(fail)? {
                let key = (preference.to_string(), prompt.clone(), sample);
                if let Some(before) = first.insert(key.clone(), number) {
                    return Err(fail(format!(
                        "the response {} comes twice; it is in row {before}, too",
                        described(&key)
                    )));
                }
                responses.insert(key, response.clone());
            }
        }
        let responses = Self {
            path: path.into(),
            responses,
        };
        responses.complete(experiment, prompts)?;
        Ok(responses)
    }

    fn complete(&self, experiment: &Experiment, prompts: &[NamedPrompt]) -> Result<()> {
        let mut missing = Vec::new();
        for preference in experiment.preferences.names() {
            for prompt in prompts {
                for sample in 0..experiment.samples {
                    let key = (preference.to_string(), prompt.id.clone(), sample);
                    if !self.responses.contains_key(&key) {
                        missing.push(key);
                    }
                }
            }
        }
        let Some(first) = missing.first() else {
            return Ok(());
        };
        let others = match missing.len() - 1 {
            0 => String::new(),
            n => format!(", and {n} more"),
        };
        let (path, first) = (self.path.display(), described(first));
        Err(usage(format!(
            "{path}: there is no response {first}{others}; it needs one for every prompt, preference and sample"
        )))
    }

    /// The response to a prompt, for a preference.
    ///
    /// # Errors
    /// One that the experiment did not ask for when the file was read.
    pub fn get(&self, preference: &str, prompt: &str, sample: u32) -> Result<&Response> {
        let key = (preference.to_string(), prompt.to_string(), sample);
        let response = self.responses.get(&key);
        response
            .with_context(|| format!("{}: no response {}", self.path.display(), described(&key)))
    }
}

fn described((preference, prompt, sample): &(String, String, u32)) -> String {
    format!("to prompt '{prompt}' for preference '{preference}', sample {sample}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::prompts;

    fn load(name: &str, content: &str) -> Result<Responses> {
        let folder = tempfile::tempdir().unwrap();
        let mut experiment = Experiment::load(&pico::experiment(folder.path())).unwrap();
        experiment.samples = 2;
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let prompts = prompts::load(&experiment.prompts).unwrap();
        Responses::load(&file, &experiment, &prompts)
    }

    #[test]
    fn prompts_by_id_or_text_and_one_response_for_all_preferences() {
        let text = concat!(
            "prompt,sample,response,ended,model\n",
            "Why?,1,d,false,x\n",
            "1,0,a,true,x\n",
            "2,0,\"c, c\",TRUE,x\n",
            "Why is the sky blue?,1,,True,x\n"
        );
        // An empty cell is none; an empty response is quoted.
        let error = load("r.csv", text).err().unwrap().to_string();
        assert!(error.contains("row 4: there is neither `text`"), "{error}");
        let responses = load("r.csv", &text.replace(",1,,True", ",1,\"\",True")).unwrap();
        let get = |prompt, sample| responses.get("kind", prompt, sample).unwrap();
        assert_eq!((get("1", 0).text.as_str(), get("1", 0).ended), ("a", true));
        assert_eq!((get("2", 1).text.as_str(), get("2", 1).ended), ("d", false));
        assert_eq!(get("1", 1).text, "");
        assert_eq!(get("2", 0).text, "c, c");
    }

    #[test]
    fn rows_that_do_not_fit_are_named() {
        let line = |prompt: &str, preference: &str, sample: u32| {
            format!(
                "{{\"prompt\": \"{prompt}\", \"preference\": \"{preference}\", \"sample\": {sample}, \"text\": \"x\"}}\n"
            )
        };
        let whole = [
            line("1", "kind", 0),
            line("1", "kind", 1),
            line("2", "kind", 0),
        ]
        .concat();
        for (more, message) in [
            (
                String::new(),
                "no response to prompt '2' for preference 'kind', sample 1; it needs",
            ),
            (
                line("3", "kind", 0),
                "row 4: no prompt has the id or text '3'",
            ),
            (
                line("1", "kidn", 0),
                "row 4: no preference 'kidn' (did you mean 'kind'?)",
            ),
            (line("1", "kind", 2), "row 4: the sample 2 is none"),
            (line("1", "kind", 1), "sample 1 comes twice; it is in row 2"),
            ("{\"text\": \"x\"}\n".into(), "row 4: there is no `prompt`"),
            (
                "{\"prompt\": 2, \"sample\": 1, \"text\": \"x\"}\n".into(),
                "row 4: there is no `preference`, which other rows name",
            ),
            (
                "{\"prompt\": 2, \"preference\": \"kind\", \"sample\": 1, \"text\": 3}\n".into(),
                "row 4: the response 3 is no text",
            ),
        ] {
            let error = load("r.jsonl", &(whole.clone() + &more)).err().unwrap();
            assert!(crate::failure::is_usage(&error));
            assert!(error.to_string().contains(message), "{error}");
        }
        load("r.jsonl", &(whole + &line("2", "kind", 1))).unwrap();
        let error = load("r.jsonl", "").err().unwrap().to_string();
        assert!(error.contains("sample 0, and 3 more; it needs"), "{error}");
    }
}

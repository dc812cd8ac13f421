//! Sweeps: one file, many runs, with fields set from outside.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::sweep::{Setting, grid};
//!
//! let folder = tempfile::tempdir()?;
//! let experiment = Experiment::load(&pico::experiment(folder.path()))?;
//! let settings: Vec<Setting> = ["seed=1,2", "generation.max_new_tokens=8"]
//!     .map(|text| text.parse().unwrap())
//!     .into();
//! let runs = grid(&experiment, &settings)?;
//! let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
//! assert_eq!(names, ["seed=1", "seed=2"]);
//! assert_eq!((runs[1].1.seed, runs[1].1.generation.max_new_tokens), (2, 8));
//! # anyhow::Ok(())
//! ```

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::experiment::Experiment;
use crate::failure::usage;

/// Combinations of one command at most (ours).
const COMBINATIONS: usize = 10_000;

/// Bytes of a value in a run's name; of a longer one the beginning and a hash.
const VALUE: usize = 100;

/// Bytes of a run's name, which is that of a folder; file systems have 255.
const NAME: usize = 200;

/// A field and the values that it takes: `generation.sampling.temperature=0.5,0.7`.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    path: Vec<String>,
    values: Vec<(String, Value)>,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "expected FIELD=VALUE or FIELD=VALUE,VALUE, such as seed=1,2,3";
        let (path, values) = text.split_once('=').ok_or(wanted)?;
        let path: Vec<String> = path.split('.').map(|p| p.trim().to_string()).collect();
        if path.iter().any(String::is_empty) || values.is_empty() {
            return Err(wanted.into());
        }
        let read = |text: &str| {
            let text = text.trim();
            // A number, a list, a quoted text; anything else is a name.
            let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            (text.to_string(), value)
        };
        let values = separate(values).into_iter().map(|v| read(&v)).collect();
        Ok(Self { path, values })
    }
}

impl Setting {
    /// What each value is called in the name of a run. Where two would be called the same, or one is long, a hash of
    /// the value tells which it is.
    ///
    /// # Errors
    /// A value that comes twice.
    fn labels(&self) -> Result<Vec<String>> {
        let plain = |c: char| {
            if c.is_alphanumeric() || ".-+_".contains(c) {
                c
            } else {
                '_'
            }
        };
        let texts: Vec<&str> = self.values.iter().map(|(text, _)| text.as_str()).collect();
        let labels = texts.iter().map(|text| text.chars().map(plain).collect());
        let labels: Vec<String> = labels.collect();
        let mut uses: HashMap<&str, usize> = HashMap::new();
        labels
            .iter()
            .for_each(|label| *uses.entry(label).or_default() += 1);
        let mut seen = HashSet::new();
        if let Some(text) = texts.iter().find(|text| !seen.insert(**text)) {
            let path = self.path.join(".");
            return Err(usage(format!("--set {path}: the value {text} comes twice")));
        }
        let distinct = |(label, text): (&String, &&str)| {
            if uses[label.as_str()] == 1 && label.len() <= VALUE {
                return label.clone();
            }
            let hash = lm::source::hex(&Sha256::digest(text.as_bytes())[..4]);
            let cut = label.floor_char_boundary(VALUE);
            format!("{}.{hash}", &label[..cut])
        };
        Ok(labels.iter().zip(&texts).map(distinct).collect())
    }
}

/// Parts between commas that are in no brackets and no quotes.
fn separate(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut quoted) = (vec![String::new()], 0i32, false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' | '(' if !quoted => depth += 1,
            ']' | '}' | ')' if !quoted => depth -= 1,
            _ => {}
        }
        match parts.last_mut() {
            Some(_) if c == ',' && depth == 0 && !quoted => parts.push(String::new()),
            Some(part) => part.push(c),
            None => {}
        }
    }
    parts
}

/// Every combination of the settings: a name for those that vary, and the experiment.
///
/// # Errors
/// A field that is not there, or a value that does not fit.
pub fn grid(experiment: &Experiment, settings: &[Setting]) -> Result<Vec<(String, Experiment)>> {
    let open = |(name, mut set): (String, Experiment)| {
        // A document sorts by name; the file's order says what tables begin with and compare to.
        set.dimensions.sort_like(&experiment.dimensions.names());
        set.experts.sort_like(&experiment.experts.names());
        set.preferences.sort_like(&experiment.preferences.names());
        set.strategies.sort_like(&experiment.strategies.names());
        set.frontier.sort_like(&experiment.frontier.names());
        let from = if settings.is_empty() { "" } else { "--set: " };
        set.validate().map_err(|e| usage(format!("{from}{e:#}")))?;
        Ok((name, set))
    };
    combinations(experiment, settings)?
        .into_iter()
        .map(open)
        .collect()
}

/// Every combination of the settings over any file: a name for those that vary, and the file with its names sorted.
///
/// # Errors
/// A field that is not there, a value that does not fit or comes twice, more combinations than a command may have.
pub fn combinations<T>(file: &T, settings: &[Setting]) -> Result<Vec<(String, T)>>
where
    T: Serialize + DeserializeOwned,
{
    let counts = settings.iter().map(|setting| setting.values.len());
    let count = counts.fold(1, usize::saturating_mul);
    if count > COMBINATIONS {
        return Err(usage(format!(
            "--set: {count} combinations, more than {COMBINATIONS}; make several commands of them"
        )));
    }
    let mut runs = vec![(String::new(), serde_json::to_value(file)?)];
    for setting in settings {
        let labels = setting.labels()?;
        let field = setting.path.last().map_or("", String::as_str);
        let mut next = Vec::new();
        for (name, document) in &runs {
            for (label, (_, value)) in labels.iter().zip(&setting.values) {
                let mut document = document.clone();
                set(&mut document, &setting.path, value.clone())?;
                let name = match (setting.values.len(), name.as_str()) {
                    (1, _) => name.clone(),
                    (_, "") => format!("{field}={label}"),
                    (_, before) => format!("{before},{field}={label}"),
                };
                if name.len() > NAME {
                    return Err(usage(format!(
                        "--set: the run's name '{name}' has more than {NAME} bytes; set fewer fields at once"
                    )));
                }
                next.push((name, document));
            }
        }
        runs = next;
    }
    let open = |(name, document): (String, Value)| {
        let set = serde_json::from_value(document).map_err(|e| usage(format!("--set: {e}")))?;
        Ok((name, set))
    };
    runs.into_iter().map(open).collect()
}

fn set(document: &mut Value, path: &[String], value: Value) -> Result<()> {
    let Some((first, rest)) = path.split_first() else {
        *document = value;
        return Ok(());
    };
    let fields = document.as_object_mut().ok_or_else(|| {
        usage(format!(
            "--set: '{first}' is looked for where there are no fields"
        ))
    })?;
    if rest.is_empty() {
        // Fields that are left out are not in the document; unknown ones are found when it is read.
        fields.insert(first.clone(), value);
        return Ok(());
    }
    let names: Vec<String> = fields.keys().cloned().collect();
    let inner = fields.get_mut(first).ok_or_else(|| {
        let hint = crate::failure::nearest(first, names.iter().map(String::as_str));
        let known = names.join(", ");
        usage(format!(
            "--set: no field '{first}'{hint}; there are: {known}"
        ))
    })?;
    set(inner, rest, value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn settings_are_read() {
        let setting: Setting = "a.b=1,\"x,y\",[1,2],Log".parse().unwrap();
        assert_eq!(setting.path, ["a", "b"]);
        let values: Vec<&Value> = setting.values.iter().map(|(_, v)| v).collect();
        let expected = serde_json::json!([1, "x,y", [1, 2], "Log"]);
        assert_eq!(
            values,
            expected.as_array().unwrap().iter().collect::<Vec<_>>()
        );
        for wrong in ["a", "=1", "a.=1", "a="] {
            assert!(wrong.parse::<Setting>().is_err(), "{wrong}");
        }
    }

    /// Fields of any name.
    type Fields = std::collections::BTreeMap<String, Value>;

    fn names(settings: &[&str]) -> Result<Vec<String>> {
        let settings: Vec<Setting> = settings.iter().map(|s| s.parse().unwrap()).collect();
        let runs = combinations(&Fields::new(), &settings)?;
        Ok(runs.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn every_run_has_a_name_of_its_own() {
        assert_eq!(
            names(&["a=1,2", "b=x", "c=0.5,Log(2)"]).unwrap(),
            ["a=1,c=0.5", "a=1,c=Log_2_", "a=2,c=0.5", "a=2,c=Log_2_"]
        );
        let long = "x".repeat(300);
        let long = format!("text={long}a,{long}b,Be brief!,Be brief?,Be brief");
        let named = names(&[&long]).unwrap();
        let distinct: HashSet<&String> = named.iter().collect();
        assert_eq!(distinct.len(), 5, "{named:?}");
        assert!(named.iter().all(|name| name.len() <= NAME));
        assert!(named[2].starts_with("text=Be_brief_."), "{named:?}");
        assert_eq!(named[4], "text=Be_brief");
        // The same value has the same name, whatever stands before it.
        let other = names(&["text=Be brief?,Be brief!"]).unwrap();
        assert_eq!((&other[0], &other[1]), (&named[3], &named[2]));
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_it_is_made() {
        let error = names(&["a=1,2,1"]).unwrap_err().to_string();
        assert!(
            error.contains("--set a: the value 1 comes twice"),
            "{error}"
        );
        let hundred: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        let fields = ["a", "b", "c", "d"].map(|f| format!("{f}={}", hundred.join(",")));
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        assert_eq!(names(&fields[..2]).unwrap().len(), 10_000);
        let error = names(&fields).unwrap_err().to_string();
        assert!(
            error.contains("100000000 combinations, more than 10000"),
            "{error}"
        );
        let value = format!("{}1,{}2", "x".repeat(90), "x".repeat(90));
        let long = ["a", "b", "c"].map(|f| format!("{f}={value}"));
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        let error = names(&long).unwrap_err().to_string();
        assert!(error.contains("more than 200 bytes"), "{error}");
    }
}

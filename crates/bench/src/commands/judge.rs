//! `mope judge`: judges compare the responses of a run in pairs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use eval::comparison::interval;
use eval::dimension::locate;
use eval::judges::{
    Asked, Beside, Criteria, Endpoint, Judge, JudgeSpec, Local, Question, Record, Reply, Rewarded,
    StatedPreference, Store, TOGETHER, Verdict, agreement, kappa, length_controlled, together,
};
use eval::rewards::Scorer;
use eval::rows::{GenerationRow, Identity, ScoreRow};
use eval::statistics::{Bootstrap, Estimate, win};
use eval::table::{markdown, parquet, write_all};
use lm::chat::Prompt;
use lm::sampling::permutation;
use mixing::Named;
use polars::prelude::{Column, DataFrame};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Global;
use super::run::records;
use harness::config;
use harness::experiment::Experiment;
use harness::failure::{nearest, usage};
use harness::models::{Models, hashes};
use harness::progress::{Progress, say};
use harness::prompts::{self, NamedPrompt};
use harness::stages::report::read_rows;
use harness::store::folder::{lock_part, read_only};
use harness::store::manifest::Manifest;

/// A file of judges.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Judges {
    /// The judges by name.
    judges: Named<JudgeSpec>,
    /// Questions that are asked of every pair, by name; `{preference}` in them is the preference in words. Default: none.
    #[serde(default)]
    criteria: Named<String>,
    /// Questions by direction, asked where the preference states it; where only its opposite has one, that counts the
    /// other way round. Default: none, or those of the protocol.
    #[serde(default)]
    directions: Named<String>,
    /// A protocol of others. Default: none.
    #[serde(default)]
    protocol: Option<Protocol>,
    /// Strategies that are judged. Default: all.
    #[serde(default)]
    strategies: Vec<String>,
    /// The strategy that they are judged against. Default: the run's first strategy.
    #[serde(default)]
    against: Option<String>,
    /// Prompts at most. Default: all.
    #[serde(default)]
    prompts: Option<usize>,
    /// Draws these prompts instead of taking the first ones; `--seed` replaces it. Default: the first.
    #[serde(default)]
    seed: Option<u64>,
}

/// How others have judged: one question for each stated direction, in both orders, and one win of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Protocol {
    /// That of arXiv 2407.04181: all prompts of the run.
    Paper,
    /// That of arXiv 2310.11564 (personalised soups): 50 prompts for each preference.
    PSoups,
}

/// Prompts of [`Protocol::PSoups`].
const PSOUPS: usize = 50;

/// Two responses to the same prompt, for the same preference.
struct Pair<'a> {
    row: &'a GenerationRow,
    other: &'a GenerationRow,
    prompt: &'a Prompt,
}

/// A judge's verdicts on a pair.
struct Judged {
    judge: String,
    criterion: String,
    strategy: String,
    identity: Identity,
    said: Said,
    longer: f64,
    /// What the run says: by its utility where the preference is asked for, by the reward of a direction where that is.
    utility: Option<f64>,
}

/// What a judge said.
enum Said {
    /// Verdicts in both orders, seen from the first, and 1 where the response that they name is the better one, or −1.
    Verdicts([Verdict; 2], f64),
    /// One win of several directions.
    Together(Option<f64>),
}

/// Asks what has not been asked and writes the tables.
///
/// # Errors
/// A file with mistakes, a judge that fails for good; verdicts so far are kept.
pub fn judge(global: &Global, folder: &Path, file: &Path) -> Result<()> {
    let spec = Judges::load(file)?;
    let manifest = Manifest::load(folder)?;
    let (generations, scores) = read_rows(&read_only(folder))?;
    let prompts = answered_prompts(&manifest)?;
    let wrong = |message: String| usage(format!("{}: {message}", file.display()));
    let known = manifest.experiment.strategies.names();
    let against = spec.against.clone().unwrap_or(known[0].to_string());
    for name in spec.strategies.iter().chain([&against]) {
        if !known.contains(&name.as_str()) {
            let hint = nearest(name, known.iter().copied());
            let known = known.join(", ");
            return Err(wrong(format!(
                "no strategy '{name}'{hint} in this run; there are: {known}"
            )));
        }
    }
    let asked = spec.asked(&prompts, global.seed);
    let pairs = spec.pairs(&generations, &against, &asked);
    if pairs.is_empty() {
        return Err(wrong(format!(
            "nothing to judge: '{against}' is all that is left, or no prompt is"
        )));
    }
    let scores: HashMap<&Identity, &ScoreRow> = scores.iter().map(|s| (&s.identity, s)).collect();
    let criteria = spec.criteria(&manifest.experiment).map_err(wrong)?;
    let out = folder.join("judgements");
    let _lock = lock_part(folder, "judgements")?;
    let mut judged = Vec::new();
    for (name, judge) in spec.judges.iter() {
        let path = out.join(format!("{name}.jsonl"));
        let asking = Asking {
            global,
            name,
            spec: judge,
            criteria: &criteria,
            experiment: &manifest.experiment,
            pairs: &pairs,
            scores: &scores,
        };
        judged.extend(asking.ask(Store::open(&path)?)?);
    }
    let (verdicts, agreements) = write_tables(&judged, &against, &out)?;
    let document = json!({"verdicts": records(&verdicts)?, "agreement": records(&agreements)?});
    let text = format!("{}\n{}", markdown(&verdicts)?, markdown(&agreements)?);
    global.print(document, || text)
}

impl Judges {
    /// Reads and checks a file of judges.
    ///
    /// # Errors
    /// With the file, and with line and column where the text is wrong.
    fn load(file: &Path) -> Result<Self> {
        let mut spec: Self = config::load(file)?;
        let wrong = |message: String| usage(format!("{}: {message}", file.display()));
        let folder = file.parent().unwrap_or(Path::new("."));
        for (name, judge) in spec.judges.iter_mut() {
            config::validate_name("judge", name).map_err(|e| wrong(e.to_string()))?;
            let checked = judge.validate();
            checked.map_err(|e| wrong(format!("judge '{name}': {e}")))?;
            if name == UTILITY {
                return Err(wrong(format!(
                    "judge '{name}': the table of agreement calls the run's own utility so; choose \
                     another name"
                )));
            }
            judge.resolve(folder);
        }
        if spec.judges.is_empty() {
            return Err(wrong("judges: at least one is needed".into()));
        }
        if spec.criteria.is_empty() && spec.directions.is_empty() && spec.protocol.is_none() {
            let none = "criteria: at least one is needed, or directions, or a protocol";
            return Err(wrong(none.into()));
        }
        if spec.criteria.names().contains(&TOGETHER) {
            let taken =
                "criteria: 'together' is what all directions are called; choose another name";
            return Err(wrong(taken.into()));
        }
        Ok(spec)
    }

    /// What is asked: the file's questions and those of its protocol.
    ///
    /// # Errors
    /// A direction that the run does not have.
    fn criteria(&self, experiment: &Experiment) -> std::result::Result<Criteria, String> {
        let owned = |named: &Named<String>| -> Vec<(String, String)> {
            let all = named.iter();
            all.map(|(name, text)| (name.to_string(), text.clone()))
                .collect()
        };
        let dimensions = experiment.dimensions();
        for name in self.directions.names() {
            locate(&dimensions, name).map_err(|e| format!("directions: {e}"))?;
        }
        let mut names = self.criteria.names().into_iter();
        if let Some(name) = names.find(|name| locate(&dimensions, name).is_ok()) {
            return Err(format!(
                "criteria: '{name}' is a direction of the run; put its question under directions, which are asked where \
                 they are stated"
            ));
        }
        let mut directions = owned(&self.directions);
        if self.protocol.is_some() {
            let others = Criteria::paper().directions;
            let missing = others
                .into_iter()
                .filter(|(d, _)| self.directions.get(d).is_none());
            directions.extend(missing.collect::<Vec<_>>());
        }
        Ok(Criteria {
            always: owned(&self.criteria),
            directions,
        })
    }

    /// The prompts whose responses are judged, by id; `seed` replaces the file's.
    fn asked<'a>(
        &self,
        prompts: &'a [NamedPrompt],
        seed: Option<u64>,
    ) -> HashMap<&'a str, &'a Prompt> {
        let order = match seed.or(self.seed) {
            Some(seed) => permutation(prompts.len(), &[b"judged prompts", &seed.to_le_bytes()]),
            None => (0..prompts.len()).collect(),
        };
        let most = match self.protocol {
            Some(Protocol::PSoups) => PSOUPS,
            _ => usize::MAX,
        };
        let asked = order.into_iter().take(self.prompts.unwrap_or(most));
        asked
            .map(|i| (prompts[i].id.as_str(), &prompts[i].prompt))
            .collect()
    }

    /// The responses that are judged, each beside that of the strategy `against`.
    fn pairs<'a>(
        &self,
        generations: &'a [GenerationRow],
        against: &str,
        asked: &HashMap<&str, &'a Prompt>,
    ) -> Vec<Pair<'a>> {
        let key = |i: &Identity| (i.preference.clone(), i.prompt.clone(), i.sample);
        let others = generations
            .iter()
            .filter(|g| g.identity.strategy == against);
        let others: HashMap<_, &GenerationRow> = others.map(|g| (key(&g.identity), g)).collect();
        let wanted = |g: &&GenerationRow| {
            let name = &g.identity.strategy;
            *name != against && (self.strategies.is_empty() || self.strategies.contains(name))
        };
        let pair = |row: &'a GenerationRow| {
            Some(Pair {
                row,
                other: others.get(&key(&row.identity)).copied()?,
                prompt: asked.get(row.identity.prompt.as_str())?,
            })
        };
        generations.iter().filter(wanted).filter_map(pair).collect()
    }
}

/// Writes the tables of verdicts and of agreement, and what they follow from; returns the two.
fn write_tables(judged: &[Judged], against: &str, out: &Path) -> Result<(DataFrame, DataFrame)> {
    let clusters: BTreeSet<&str> = judged.iter().map(|j| j.identity.prompt.as_str()).collect();
    let bootstrap = Bootstrap::new(clusters.len());
    let mut verdicts = verdict_table(judged, against, &clusters, &bootstrap)?;
    let mut agreements = agreement_table(judged)?;
    let path = out.join("pairs.parquet");
    eval::write_atomic(&path, &parquet(&path, &mut pair_frame(judged)?)?)?;
    bootstrap.write(&out.join("resamples.parquet"))?;
    write_all(out, "verdicts", &mut verdicts)?;
    write_all(out, "agreement", &mut agreements)?;
    Ok((verdicts, agreements))
}

/// What the table of agreement calls the run's own utility.
const UTILITY: &str = "utility";

/// The prompts that a run answered.
///
/// # Errors
/// A file that is gone or has changed since.
fn answered_prompts(manifest: &Manifest) -> Result<Vec<NamedPrompt>> {
    let path = &manifest.experiment.prompts;
    let prompts = prompts::load(path).context("prompts of the run")?;
    let then = manifest
        .inputs
        .get("prompts")
        .and_then(|i| i.get("prompts"));
    if then.is_some_and(|then| lm::source::sha256(path).ok().as_ref() != Some(then)) {
        return Err(usage(format!(
            "{}: not the prompts that the run answered; restore the file, or run the experiment again",
            path.display()
        )));
    }
    Ok(prompts)
}

/// One judge over all pairs.
struct Asking<'a> {
    global: &'a Global,
    name: &'a str,
    spec: &'a JudgeSpec,
    criteria: &'a Criteria,
    experiment: &'a Experiment,
    pairs: &'a [Pair<'a>],
    scores: &'a HashMap<&'a Identity, &'a ScoreRow>,
}

impl Asking<'_> {
    /// What the judge's verdicts follow from: without key and patience, files by content.
    fn fingerprint(&self, models: &mut Option<Models>) -> Result<serde_json::Value> {
        Ok(match self.spec {
            JudgeSpec::Endpoint(e) => json!([e.url, e.model, e.max_tokens]),
            JudgeSpec::RewardModel(folder) => json!(hashes(folder)?),
            JudgeSpec::Local(model) => {
                let device = self.global.device.clone().unwrap_or_default();
                let format = self.global.format.unwrap_or_default();
                let models = match models {
                    Some(models) => models,
                    None => models.insert(Models::on(&device, format)?),
                };
                let path: PathBuf = models.path(model)?;
                json!([hashes(&path)?, device.to_string(), format])
            }
        })
    }

    fn open(&self, models: &mut Option<Models>) -> Result<Box<dyn Judge>> {
        Ok(match self.spec {
            JudgeSpec::Endpoint(spec) => {
                if spec.sends_key_in_clear() {
                    say(&format!(
                        "warning: judge '{}': the key goes unencrypted to another machine ({}); use https",
                        self.name, spec.url
                    ));
                }
                Box::new(Endpoint::new(spec).map_err(|e| usage(e.to_string()))?)
            }
            JudgeSpec::RewardModel(folder) => {
                Box::new(Rewarded(Scorer::Model(folder.clone()).open()?))
            }
            JudgeSpec::Local(model) => {
                let models = models.as_mut().context("models are open")?;
                Box::new(Local::new(models.open(model)?)?)
            }
        })
    }

    fn ask(&self, mut store: Store) -> Result<Vec<Judged>> {
        let context = || format!("judge '{}'", self.name);
        let mut models = None;
        let fingerprint = self.fingerprint(&mut models).with_context(context)?;
        let asked = self.pairs.iter().map(|pair| self.asked(pair));
        let asked: Vec<Vec<Asked>> = asked.collect::<Result<_>>()?;
        let total = 2 * asked.iter().map(Vec::len).sum::<usize>();
        let mut progress = Progress::new(self.name, "verdicts", total as u64);
        // Opened for the first question that is not answered yet.
        let mut judge: Option<Box<dyn Judge>> = None;
        let mut out = Vec::new();
        for (pair, asked) in self.pairs.iter().zip(&asked) {
            let mut directions = Vec::new();
            for question in asked {
                let mut verdicts = [Verdict::Unreadable; 2];
                for (order, verdict) in verdicts.iter_mut().enumerate() {
                    let shown = match order {
                        0 => [pair.row, pair.other],
                        _ => [pair.other, pair.row],
                    };
                    *verdict = match self.known(&fingerprint, question, pair, shown, &store) {
                        Ok(verdict) => {
                            progress.skip(1);
                            verdict
                        }
                        Err(key) => {
                            if judge.is_none() {
                                judge = Some(self.open(&mut models).with_context(context)?);
                            }
                            let judge = judge.as_mut().context("the judge is open")?;
                            let reply = judge
                                .ask(&put(question, pair, shown))
                                .with_context(context)?;
                            progress.advance(1);
                            let verdict = reply.verdict;
                            store.put(record(key, question, pair, shown, reply))?;
                            verdict
                        }
                    };
                }
                let said = Said::Verdicts(verdicts, question.sign);
                let judged = self.judged(&question.criterion, pair, said, question.beside);
                if question.beside == Beside::Reward {
                    directions.push(judged.win());
                }
                out.push(judged);
            }
            if !directions.is_empty() {
                let said = Said::Together(together(&directions));
                out.push(self.judged(TOGETHER, pair, said, Beside::Utility));
            }
        }
        progress.finish();
        Ok(out)
    }

    /// What is asked of a pair.
    fn asked(&self, pair: &Pair<'_>) -> Result<Vec<Asked>> {
        let preference = self.experiment.preference(&pair.row.identity.preference)?;
        let dimensions = self.experiment.dimensions();
        let mut stated = Vec::new();
        for direction in preference.importances.keys() {
            let (dimension, sign) = locate(&dimensions, direction)?;
            let dimension = &dimensions[dimension];
            let opposite = if sign > 0.0 {
                &dimension.low
            } else {
                &dimension.high
            };
            stated.push((direction.as_str(), opposite.as_str()));
        }
        let text = preference.text.as_str();
        Ok(self.criteria.of(&StatedPreference { text, stated }))
    }

    /// The verdict where it is known, or the key of the question.
    fn known(
        &self,
        fingerprint: &serde_json::Value,
        question: &Asked,
        pair: &Pair<'_>,
        shown: [&GenerationRow; 2],
        store: &Store,
    ) -> std::result::Result<Verdict, String> {
        let responses = shown.map(|r| r.response.as_str());
        if responses[0] == responses[1] {
            // Nobody can tell them apart, and a judge who tries names a place.
            return Ok(Verdict::Tie);
        }
        // With the question as it is worded, so that another wording is asked again.
        let text = put(question, pair, shown).text();
        let key = json!([fingerprint, text, pair.prompt, responses]).to_string();
        let key = lm::source::hex(&Sha256::digest(key.as_bytes())[..12]);
        store.get(&key).map(|record| record.verdict).ok_or(key)
    }

    fn judged(&self, criterion: &str, pair: &Pair<'_>, said: Said, beside: Beside) -> Judged {
        let of = |row: &GenerationRow| -> Option<f64> {
            let score = self.scores.get(&row.identity)?;
            match beside {
                Beside::Utility => Some(score.utility),
                Beside::Nothing => None,
                Beside::Reward => {
                    let dimensions = self.experiment.dimensions();
                    let (dimension, sign) = locate(&dimensions, criterion).ok()?;
                    Some(sign * score.dimensions.get(dimension)?.reward)
                }
            }
        };
        Judged {
            judge: self.name.into(),
            criterion: criterion.into(),
            strategy: pair.row.identity.strategy.clone(),
            identity: pair.row.identity.clone(),
            said,
            longer: pair.row.tokens.len() as f64 - pair.other.tokens.len() as f64,
            utility: of(pair.row).zip(of(pair.other)).map(|(a, b)| win(a, b)),
        }
    }
}

/// A question as a judge gets it.
fn put<'a>(question: &'a Asked, pair: &Pair<'a>, shown: [&'a GenerationRow; 2]) -> Question<'a> {
    Question {
        criterion: &question.text,
        prompt: pair.prompt,
        responses: shown.map(|r| r.response.as_str()),
    }
}

/// What is kept of a reply.
fn record(
    key: String,
    question: &Asked,
    pair: &Pair<'_>,
    shown: [&GenerationRow; 2],
    reply: Reply,
) -> Record {
    let i = &pair.row.identity;
    Record {
        key,
        criterion: question.criterion.clone(),
        strategies: shown.map(|r| r.identity.strategy.clone()),
        preference: i.preference.clone(),
        prompt: i.prompt.clone(),
        sample: i.sample,
        verdict: reply.verdict,
        raw: reply.raw,
    }
}

impl Judged {
    /// Share of a win of the judged strategy, signed by what the preference wants.
    fn win(&self) -> Option<f64> {
        match self.said {
            Said::Verdicts([first, swapped], sign) => {
                let win = Verdict::of_both(first, swapped)?;
                Some(0.5 + sign * (win - 0.5))
            }
            Said::Together(win) => win,
        }
    }

    fn flips(&self) -> bool {
        match self.said {
            Said::Verdicts([first, swapped], _) => Verdict::flips(first, swapped),
            Said::Together(_) => false,
        }
    }
}

/// What the tables follow from: one row a judge, criterion and pair.
fn pair_frame(judged: &[Judged]) -> Result<DataFrame> {
    let text = |name: &str, get: fn(&Judged) -> &str| {
        Column::new(name.into(), judged.iter().map(get).collect::<Vec<_>>())
    };
    let number = |name: &str, get: fn(&Judged) -> Option<f64>| {
        Column::new(name.into(), judged.iter().map(get).collect::<Vec<_>>())
    };
    let samples: Vec<u32> = judged.iter().map(|j| j.identity.sample).collect();
    let mut columns = vec![
        text("judge", |j| &j.judge),
        text("criterion", |j| &j.criterion),
        text("strategy", |j| &j.strategy),
        text("preference", |j| &j.identity.preference),
        text("prompt", |j| &j.identity.prompt),
        Column::new("sample".into(), samples),
    ];
    for (order, name) in ["own_first", "own_second"].into_iter().enumerate() {
        let said = judged.iter().map(|j| match j.said {
            Said::Verdicts(verdicts, _) => Some(format!("{:?}", verdicts[order])),
            Said::Together(_) => None,
        });
        columns.push(Column::new(name.into(), said.collect::<Vec<_>>()));
    }
    columns.push(number("sign", |j| match j.said {
        Said::Verdicts(_, sign) => Some(sign),
        Said::Together(_) => None,
    }));
    columns.push(number("win", Judged::win));
    columns.push(number("longer", |j| Some(j.longer)));
    columns.push(number("utility", |j| j.utility));
    Ok(DataFrame::new_infer_height(columns)?)
}

/// One row a judge, criterion and strategy; `prompts` are what `bootstrap` draws.
fn verdict_table(
    judged: &[Judged],
    against: &str,
    prompts: &BTreeSet<&str>,
    bootstrap: &Bootstrap,
) -> Result<DataFrame> {
    type Key<'a> = (&'a str, &'a str, &'a str);
    let mut groups: Vec<(Key<'_>, Vec<&Judged>)> = Vec::new();
    for j in judged {
        let key = (j.judge.as_str(), j.criterion.as_str(), j.strategy.as_str());
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, group)) => group.push(j),
            None => groups.push((key, vec![j])),
        }
    }
    let mut rates: Vec<Option<Estimate>> = Vec::new();
    let mut numbers: [Vec<Option<f64>>; 4] = Default::default();
    for (_, group) in &groups {
        let mut clusters: BTreeMap<&str, Vec<f64>> =
            prompts.iter().map(|p| (*p, Vec::new())).collect();
        let (mut wins, mut longer) = (Vec::new(), Vec::new());
        for j in group {
            if let Some(win) = j.win() {
                clusters.entry(&j.identity.prompt).or_default().push(win);
                wins.push(win);
                longer.push(j.longer);
            }
        }
        rates.push(bootstrap.mean(&clusters.into_values().collect::<Vec<_>>()));
        let share = |f: &dyn Fn(&Judged) -> bool| {
            group.iter().filter(|j| f(j)).count() as f64 / group.len() as f64
        };
        let figures = [
            length_controlled(&wins, &longer),
            Some(share(&|j| j.win() == Some(0.5))),
            Some(share(&Judged::flips)),
            Some(share(&|j| j.win().is_none())),
        ];
        numbers.iter_mut().zip(figures).for_each(|(n, v)| n.push(v));
    }
    let text = |name: &str, get: fn(&Key<'_>) -> String| {
        let values: Vec<String> = groups.iter().map(|(k, _)| get(k)).collect();
        Column::new(name.into(), values)
    };
    let mut columns = vec![
        text("judge", |k| k.0.into()),
        text("criterion", |k| k.1.into()),
        text("strategy", |k| k.2.into()),
        Column::new("opponent".into(), vec![against; groups.len()]),
    ];
    columns.extend(interval("win_rate", &rates));
    let names = ["length_controlled", "ties", "flips", "unreadable"];
    let rest = names.iter().zip(&numbers);
    columns.extend(rest.map(|(name, values)| Column::new((*name).into(), values)));
    let counts: Vec<u32> = groups.iter().map(|(_, g)| g.len() as u32).collect();
    columns.push(Column::new("pairs".into(), counts));
    Ok(DataFrame::new_infer_height(columns)?)
}

/// One row a criterion and pair of judges, the run's utility among them.
fn agreement_table(judged: &[Judged]) -> Result<DataFrame> {
    type Verdicts<'a> = HashMap<&'a Identity, f64>;
    let mut criteria: Vec<&str> = Vec::new();
    for j in judged {
        if !criteria.contains(&j.criterion.as_str()) {
            criteria.push(&j.criterion);
        }
    }
    let mut text: [Vec<String>; 3] = Default::default();
    let mut numbers: [Vec<Option<f64>>; 2] = Default::default();
    let mut counts: Vec<u32> = Vec::new();
    for criterion in criteria {
        let mut judges: Vec<(&str, Verdicts<'_>)> = vec![(UTILITY, HashMap::new())];
        for j in judged.iter().filter(|j| j.criterion == criterion) {
            if let Some(utility) = j.utility {
                judges[0].1.insert(&j.identity, utility);
            }
            if !judges.iter().any(|(name, _)| *name == j.judge) {
                judges.push((&j.judge, HashMap::new()));
            }
            let judge = judges.iter_mut().find(|(name, _)| *name == j.judge);
            if let (Some((_, wins)), Some(win)) = (judge, j.win()) {
                wins.insert(&j.identity, win);
            }
        }
        for (i, (second, seconds)) in judges.iter().enumerate() {
            for (first, firsts) in &judges[..i] {
                let both = firsts
                    .iter()
                    .filter_map(|(k, a)| Some((*a, *seconds.get(k)?)));
                let both: Vec<(f64, f64)> = both.collect();
                // What asks the same whatever is wanted says nothing of the utility.
                if both.is_empty() && *first == UTILITY {
                    continue;
                }
                text[0].push(criterion.into());
                text[1].push((*first).into());
                text[2].push((*second).into());
                numbers[0].push(agreement(&both));
                numbers[1].push(kappa(&both));
                counts.push(both.len() as u32);
            }
        }
    }
    let columns = vec![
        Column::new("criterion".into(), &text[0]),
        Column::new("judge".into(), &text[1]),
        Column::new("other".into(), &text[2]),
        Column::new("agreement".into(), &numbers[0]),
        Column::new("kappa".into(), &numbers[1]),
        Column::new("pairs".into(), counts),
    ];
    Ok(DataFrame::new_infer_height(columns)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_files_of_the_book_and_of_the_experiments_are_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let book = read("docs/src/judges.md");
        let example = book.split("```ron\n").nth(1).unwrap().split("```").next();
        let shipped = read("experiments/judges/judges.ron");
        for text in [example.unwrap(), &shipped] {
            let judges: Judges = config::parse(Path::new("judges.ron"), text).unwrap();
            assert!(!judges.judges.is_empty());
            for (name, judge) in judges.judges.iter() {
                judge.validate().unwrap();
                config::validate_name("judge", name).unwrap();
            }
        }
    }
}

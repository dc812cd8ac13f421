//! Every output strategy against NumPy (`scripts/fixtures/strategies.py`), and what must hold for any
//! distributions.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use experts::NextTokens;
use experts::classifier::{Classifier, ClassifierCard, Telling, Told};
use lm::sampling::log_softmax;
use mope_mixing::strategies::{
    Cliper, DExperts, DeRa, Divergence, Fixed, Instance, InstanceContext, Mato, Mod,
    ModelArithmetic, Operand, PackLlm, Space, Term, TopK, Uniform,
};
use mope_mixing::{History, Mixed, Preference, Step, Strategy};
use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};
use proptest::strategy::Strategy as _;
use serde::Deserialize;

/// Distributions of all experts by name.
#[derive(Clone, Debug, Deserialize)]
struct Case {
    experts: Vec<String>,
    /// `[experts][sequences][vocab]`.
    log_probs: Vec<Vec<Vec<f64>>>,
    /// `[sequences][experts]`.
    history: Vec<Vec<f64>>,
    /// `[sequences][experts]`.
    prompt: Vec<Vec<f64>>,
    /// Responses so far.
    tokens: Vec<Vec<u32>>,
    #[serde(default)]
    expected: BTreeMap<String, Vec<Vec<f64>>>,
    #[serde(default)]
    weights: BTreeMap<String, Vec<Vec<f64>>>,
}

fn preference() -> Preference {
    Preference {
        text: "be good".into(),
        importances: [("concise".to_string(), 3.0), ("friendly".to_string(), 1.0)].into(),
    }
}

impl Case {
    fn names(&self) -> Vec<&str> {
        self.experts.iter().map(String::as_str).collect()
    }

    /// What a strategy makes of it: experts and result.
    fn mix(&self, strategy: &Strategy) -> (Vec<String>, Mixed) {
        self.mix_for(strategy, &preference())
    }

    fn mix_for(&self, strategy: &Strategy, preference: &Preference) -> (Vec<String>, Mixed) {
        let mut plan = strategy.plan(preference, &self.names()).unwrap();
        let indices: Vec<usize> = plan
            .experts
            .iter()
            .map(|n| self.experts.iter().position(|e| e == n).unwrap())
            .collect();
        let pick = |all: &[f64]| -> Vec<f64> { indices.iter().map(|&i| all[i]).collect() };
        let rows = indices
            .iter()
            .flat_map(|&i| self.log_probs[i].iter().flatten());
        let next = NextTokens {
            reference: None,
            experts: indices.len(),
            sequences: self.history.len(),
            vocab: self.log_probs[0][0].len(),
            log_probs: rows.map(|v| *v as f32).collect(),
            temperature: None,
        };
        let history: Vec<History> = (0..self.history.len())
            .map(|s| History {
                request: s,
                tokens: self.tokens[s].clone(),
                context: vec![],
                log_probs: pick(&self.history[s]),
                prompt: pick(&self.prompt[s]),
            })
            .collect();
        let mut mixed = Mixed::default();
        let step = Step {
            next: &next,
            history: &history,
        };
        plan.mixer.mix(&step, &mut mixed).unwrap();
        (plan.experts, mixed)
    }

    fn vocab(&self) -> usize {
        self.log_probs[0][0].len()
    }
}

fn expert(name: &str, weight: f64) -> Term {
    Term {
        weight,
        of: Operand::Expert(name.into()),
    }
}

fn mod_of(divergence: Divergence) -> Strategy {
    Strategy::Mod(Mod {
        weights: None,
        divergence,
    })
}

/// The script's classifier.
#[derive(Deserialize)]
struct Tables {
    window: usize,
    /// `[dimensions][vocab]`.
    token: Vec<Vec<f32>>,
    context: Vec<Vec<f32>>,
}

/// A folder with the script's classifier.
fn classifier() -> PathBuf {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        #[derive(Deserialize)]
        struct Script {
            classifier: Tables,
        }
        let script: Script =
            serde_json::from_str(include_str!("fixtures/strategies.json")).unwrap();
        let told = |name: &str, low: &str, high: &str| Told {
            name: name.into(),
            low: low.into(),
            high: high.into(),
            held_out: Telling::default(),
        };
        let tables = script.classifier;
        let card = ClassifierCard {
            base: "none".into(),
            window: tables.window,
            dimensions: vec![
                told("style", "friendly", "rude"),
                told("length", "terse", "concise"),
            ],
        };
        let made = Classifier::new(card, tables.token.concat(), tables.context.concat()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        made.save(folder.path()).unwrap();
        folder
    });
    FOLDER.path().to_path_buf()
}

fn cliper(strength: f64) -> Strategy {
    Strategy::Cliper(Cliper {
        model: classifier(),
        strength,
        expert: "base".into(),
    })
}

/// A folder with a PCM that knows the preference's directions.
fn pcm() -> PathBuf {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let config = pcm::PcmConfig::tiny(&["concise", "friendly"], 16);
        let folder = tempfile::tempdir().unwrap();
        pcm::Pcm::new(&config, 1)
            .unwrap()
            .save(folder.path())
            .unwrap();
        folder
    });
    FOLDER.path().to_path_buf()
}

/// Instances of every strategy that turns distributions into one by itself: neither a choice among others nor a merge,
/// and without a model that reads the context.
fn mixtures() -> Vec<Instance> {
    let context = InstanceContext {
        directions: &["concise", "friendly"],
        other: "rude",
        classifier: &classifier(),
        pcm: &pcm(),
    };
    let mut all = Strategy::instances(&context);
    all.retain(|instance| {
        let experts = ["base", "concise", "friendly", "rude"];
        let plan = instance.strategy.plan(&preference(), &experts).unwrap();
        plan.candidates.is_empty() && plan.merged.is_empty() && !plan.mixer.reads_context()
    });
    all
}

#[test]
fn every_strategy_equals_its_reference() {
    let case: Case = serde_json::from_str(include_str!("fixtures/strategies.json")).unwrap();
    let mut seen = Vec::new();
    for Instance {
        strategy,
        reference,
        ..
    } in mixtures()
    {
        let Some(key) = reference else { continue };
        seen.push(key.to_string());
        let (experts, mixed) = case.mix(&strategy);
        let expected = case.expected[key].iter().flatten();
        let differences = mixed.log_probs.iter().zip(expected);
        let worst = differences
            .map(|(got, p)| (f64::from(*got).exp() - p).abs())
            .fold(0.0, f64::max);
        assert!(worst < 1e-6, "{key}: largest difference {worst}");
        println!("{key}: largest difference {worst:e}");
        let Some(weights) = case.weights.get(key) else {
            continue;
        };
        // The script's weights are those of concise and friendly.
        for (s, expected) in weights.iter().enumerate() {
            for (direction, w) in ["concise", "friendly"].iter().zip(expected) {
                let index = experts.iter().position(|e| e == direction).unwrap();
                let got = f64::from(mixed.weights[s * experts.len() + index]);
                assert!((got - w).abs() < 1e-6, "{key} {direction}: {got} {w}");
            }
        }
    }
    seen.sort_unstable();
    assert!(seen.iter().eq(case.expected.keys()), "{seen:?}");
}

/// Random distributions and histories of four experts.
fn cases() -> impl proptest::strategy::Strategy<Value = Case> {
    let rows = prop::collection::vec(prop::collection::vec(-15f32..5.0, 19), 4);
    let sums = prop::collection::vec(-60f64..0.0, 4);
    let prompt = prop::collection::vec(0f64..6.0, 4);
    let tokens = prop::collection::vec(0u32..19, 0..7);
    (rows, sums, prompt, tokens).prop_map(|(mut rows, sums, prompt, tokens)| {
        rows.iter_mut().for_each(|row| {
            log_softmax(row);
        });
        let names = ["base", "concise", "friendly", "rude"];
        Case {
            experts: names.map(String::from).to_vec(),
            log_probs: rows
                .into_iter()
                .map(|row| vec![row.into_iter().map(f64::from).collect()])
                .collect(),
            history: vec![sums],
            prompt: vec![prompt],
            tokens: vec![tokens],
            expected: BTreeMap::new(),
            weights: BTreeMap::new(),
        }
    })
}

fn probabilities(mixed: &Mixed) -> Vec<f64> {
    mixed
        .log_probs
        .iter()
        .map(|l| f64::from(*l).exp())
        .collect()
}

fn worst(a: &Mixed, b: &Mixed) -> f64 {
    let pairs = probabilities(a).into_iter().zip(probabilities(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

proptest! {
    #[test]
    fn results_are_distributions_and_weights_are_recorded(case in cases()) {
        for Instance { strategy, .. } in mixtures() {
            let (experts, mixed) = case.mix(&strategy);
            let total: f64 = probabilities(&mixed).iter().sum();
            prop_assert!((total - 1.0).abs() < 1e-4, "{:?}: {}", strategy, total);
            prop_assert_eq!(mixed.weights.len(), experts.len());
            let sum: f32 = mixed.weights.iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-4, "{:?}: {:?}", strategy, mixed.weights);
        }
    }

    #[test]
    fn the_order_of_experts_does_not_matter(case in cases()) {
        let turned = |v: &[f64]| v.iter().rev().copied().collect::<Vec<_>>();
        let other = Case {
            experts: case.experts.iter().rev().cloned().collect(),
            log_probs: case.log_probs.iter().rev().cloned().collect(),
            history: case.history.iter().map(|h| turned(h)).collect(),
            prompt: case.prompt.iter().map(|h| turned(h)).collect(),
            ..case.clone()
        };
        for Instance { strategy, .. } in mixtures() {
            let (a, b) = (case.mix(&strategy), other.mix(&strategy));
            prop_assert_eq!(a.0, b.0);
            prop_assert_eq!(a.1.log_probs, b.1.log_probs, "{:?}", strategy);
        }
    }

    #[test]
    fn all_weight_on_one_expert_is_that_expert_bit_for_bit(case in cases()) {
        let mut seen = std::collections::BTreeSet::new();
        for Instance { strategy, .. } in mixtures() {
            if !strategy.reproduces_single_expert() {
                continue;
            }
            for only in ["concise", "friendly", "rude"] {
                // All weight is on an expert that is given it, and on the only one that is asked for.
                let given = ["concise", "friendly", "rude"]
                    .map(|n| (n.to_string(), f64::from(u8::from(n == only))));
                let hot = strategy.weighted(given.into()).unwrap_or(strategy.clone());
                let alone = Preference { importances: [(only.into(), 2.0)].into(), ..preference() };
                for (hot, preference) in [(&hot, preference()), (&strategy, alone)] {
                    let (experts, mixed) = case.mix_for(hot, &preference);
                    let Some(one) = mixed.weights.iter().position(|w| *w == 1.0) else { continue };
                    seen.insert((hot.name(), experts[one].clone()));
                    let expert = case.experts.iter().position(|e| *e == experts[one]).unwrap();
                    let row: Vec<f32> = case.log_probs[expert][0].iter().map(|v| *v as f32).collect();
                    prop_assert_eq!(mixed.log_probs, row, "{:?} {}", hot, only);
                }
            }
        }
        for name in ["Fixed", "Uniform", "Mod", "DeRa", "Mato"] {
            for only in ["concise", "friendly", "rude"] {
                prop_assert!(seen.contains(&(name, only.to_string())), "{} {}", name, only);
            }
        }
        for (name, only) in [("Base", "base"), ("Single", "concise"), ("ModelArithmetic", "rude")] {
            prop_assert!(seen.contains(&(name, only.to_string())), "{} {}", name, only);
        }
    }

    #[test]
    fn limits_are_what_the_papers_say(case in cases()) {
        let mix = |strategy: Strategy| case.mix(&strategy).1;
        // At the beginning the forms of MOD differ by their divergence alone.
        let fresh = Case { history: vec![vec![0.0; 4]], ..case.clone() };
        let small = fresh.mix(&mod_of(Divergence::Alpha(1e-3))).1;
        let reverse = fresh.mix(&mod_of(Divergence::ReverseKl)).1;
        prop_assert!(worst(&small, &reverse) < 2e-2);
        let one = mix(mod_of(Divergence::Alpha(1.0)));
        prop_assert!(worst(&one, &mix(mod_of(Divergence::ForwardKl))) < 1e-6);
        // Far ahead of the base Jensen-Shannon is forward KL, far behind it is reverse KL.
        let with_base = |base: f64| Case { history: vec![vec![base, -1000.0, -1000.0, -1000.0]], ..case.clone() };
        let shannon = |case: &Case| case.mix(&mod_of(Divergence::JensenShannon)).1;
        let ahead = with_base(-1300.0);
        prop_assert!(worst(&shannon(&ahead), &ahead.mix(&mod_of(Divergence::ForwardKl)).1) < 1e-5);
        let behind = with_base(-700.0);
        prop_assert!(worst(&shannon(&behind), &behind.mix(&mod_of(Divergence::ReverseKl)).1) < 1e-4);
        // λ: 0 is the base, 1 the mixture.
        let dera = |lambda| Strategy::DeRa(DeRa { lambda, weights: None });
        let base: Vec<f32> = case.log_probs[0][0].iter().map(|v| *v as f32).collect();
        prop_assert_eq!(&mix(dera(0.0)).log_probs, &base);
        let log = Strategy::Fixed(Fixed { weights: None, space: Space::Log });
        prop_assert!(worst(&mix(dera(1.0)), &mix(log.clone())) < 1e-5);
        // Weights that hold firm never move; a hot softmax is uniform.
        let firm = Mato { tau: 1e9, ..Mato::default() };
        prop_assert!(worst(&mix(Strategy::Mato(firm)), &mix(log)) < 1e-5);
        let even = PackLlm { tau: 1e9, space: Space::Log };
        let uniform = Strategy::Uniform(Uniform { space: Space::Log });
        prop_assert!(worst(&mix(Strategy::PackLlm(even)), &mix(uniform)) < 1e-5);
        // A union of one expert is that expert; anti-experts equal to their experts leave the base.
        let same = DExperts {
            anti: ["concise", "friendly"].map(|n| (n.to_string(), n.to_string())).into(),
            strength: 3.0,
            base: "base".into(),
            weights: None,
        };
        let left: Vec<f32> = case.log_probs[0][0].iter().map(|v| *v as f32).collect();
        let mixed = mix(Strategy::DExperts(same));
        for (a, b) in mixed.log_probs.iter().zip(&left) {
            prop_assert!((a - b).abs() < 1e-4);
        }
        // No strength is the base; without end, it is the token that the classifier likes best.
        prop_assert_eq!(&mix(cliper(0.0)).log_probs, &base);
        let near = mix(cliper(1e-5)).log_probs;
        prop_assert!(near.iter().zip(&base).all(|(a, b)| (a - b).abs() < 1e-3));
        let guide = Classifier::load(&classifier()).unwrap();
        let log = |dimension: usize, sign: f32, token: usize| {
            let logit = guide.token(dimension)[token] + guide.context(dimension, &case.tokens[0]);
            -(-sign * logit).exp().ln_1p()
        };
        let liked = |t: &usize| 0.75 * log(1, 1.0, *t) + 0.25 * log(0, -1.0, *t);
        let best = (0..case.vocab()).max_by(|a, b| liked(a).total_cmp(&liked(b))).unwrap();
        let gap = (0..case.vocab()).filter(|t| *t != best).map(|t| liked(&best) - liked(&t));
        if gap.fold(f32::INFINITY, f32::min) > 0.01 {
            prop_assert!(probabilities(&mix(cliper(4000.0)))[best] > 0.99);
        }
        // All tokens seen is all.
        let all = TopK { k: case.vocab(), of: Box::new(Strategy::Fixed(Fixed::default())) };
        let plain = mix(Strategy::Fixed(Fixed::default()));
        prop_assert_eq!(mix(Strategy::TopK(all)).log_probs, plain.log_probs);
    }

    #[test]
    fn what_an_expert_rules_out_is_out_or_at_least_a_number(case in cases(), of in 0usize..4) {
        let mut case = case;
        let mut row: Vec<f32> = case.log_probs[of][0].iter().map(|v| *v as f32).collect();
        row[0] = f32::NEG_INFINITY;
        log_softmax(&mut row);
        case.log_probs[of][0] = row.into_iter().map(f64::from).collect();
        for Instance { strategy, multiplies, .. } in mixtures() {
            let (experts, mixed) = case.mix(&strategy);
            prop_assert!(mixed.log_probs.iter().all(|v| !v.is_nan()), "{:?}", strategy);
            prop_assert!(mixed.weights.iter().all(|v| v.is_finite()), "{:?}", strategy);
            let total: f64 = probabilities(&mixed)[1..].iter().sum();
            let expert = experts.iter().position(|name| *name == case.experts[of]);
            let used = expert.is_some_and(|e| mixed.weights[e] != 0.0);
            if used && multiplies {
                prop_assert_eq!(mixed.log_probs[0], f32::NEG_INFINITY, "{:?}", strategy);
                prop_assert!((total - 1.0).abs() < 1e-4, "{:?}: {}", strategy, total);
            }
        }
    }

    #[test]
    fn mato_moves_weight_to_the_objective_that_lags(case in cases()) {
        let mato = Strategy::Mato(Mato::default());
        let (experts, mixed) = case.mix(&mato);
        let weight = |n: &str| mixed.weights[experts.iter().position(|e| e == n).unwrap()];
        let (c, f) = (weight("concise"), weight("friendly"));
        let lags = case.history[0][1] < case.history[0][2];
        // 3 to 1 is where they start.
        prop_assert_eq!(lags, c > 3.0 * f, "{} {}", c, f);
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let experts = ["base", "concise", "friendly", "rude"];
    let refused = |strategy: Strategy| {
        let plan = strategy.plan(&preference(), &experts);
        plan.unwrap_err().to_string()
    };
    let anti = |pairs: &[(&str, &str)]| {
        let anti = pairs.iter().map(|(e, a)| (e.to_string(), a.to_string()));
        Strategy::DExperts(DExperts {
            anti: anti.collect(),
            strength: 1.0,
            base: "base".into(),
            weights: None,
        })
    };
    let formula = |terms| Strategy::ModelArithmetic(ModelArithmetic { terms });
    let log = Strategy::Fixed(Fixed {
        weights: None,
        space: Space::Log,
    });
    for (strategy, message) in [
        (mod_of(Divergence::Alpha(0.0)), "alpha is 0"),
        (
            Strategy::DeRa(DeRa {
                lambda: -1.0,
                weights: None,
            }),
            "lambda is -1",
        ),
        (
            anti(&[("concise", "rude")]),
            "no anti-expert is named for 'friendly'",
        ),
        (anti(&[("concise", "nobody")]), "no expert 'nobody'"),
        (formula(vec![expert("base", 0.4)]), "sum to 0.4, not to 1"),
        (formula(vec![expert("bass", 1.0)]), "no expert 'bass'"),
        (
            Strategy::Mato(Mato {
                tau: 0.0,
                ..Mato::default()
            }),
            "tau is 0",
        ),
        (
            Strategy::PackLlm(PackLlm {
                tau: f64::NAN,
                ..PackLlm::default()
            }),
            "tau is NaN",
        ),
        (cliper(-1.0), "strength is -1"),
        (
            Strategy::Cliper(Cliper {
                model: classifier(),
                strength: 1.0,
                expert: "nobody".into(),
            }),
            "no expert 'nobody'",
        ),
        (
            Strategy::Cliper(Cliper {
                model: "nowhere".into(),
                strength: 1.0,
                expert: "base".into(),
            }),
            "nowhere/classifier.json",
        ),
        (
            Strategy::TopK(TopK {
                k: 5,
                of: Box::new(log),
            }),
            "needs full next-token distributions",
        ),
    ] {
        let error = refused(strategy);
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_classifier_of_other_directions_or_tokens_is_refused() {
    let mut stated = preference();
    stated.importances.insert("sad".into(), 1.0);
    let error = cliper(1.0).plan(&stated, &["base"]).unwrap_err();
    let told = "not trained for 'sad'; it knows: friendly, rude, terse, concise";
    assert!(error.to_string().contains(told), "{error}");
    let mut plan = cliper(1.0).plan(&preference(), &["base"]).unwrap();
    let next = NextTokens {
        experts: 1,
        sequences: 1,
        vocab: 3,
        log_probs: vec![-1.0; 3],
        ..NextTokens::default()
    };
    let step = Step {
        next: &next,
        history: &[History::default()],
    };
    let error = plan.mixer.mix(&step, &mut Mixed::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("rates 19 tokens, the model has 3"),
        "{error}"
    );
}

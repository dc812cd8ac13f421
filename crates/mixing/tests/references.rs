//! Every output strategy against NumPy (`scripts/fixtures/strategies.py`), and what must hold for any
//! distributions.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use experts::NextTokens;
use experts::classifier::{Classifier, ClassifierCard, Telling, Told};
use lm::sampling::log_softmax;
use mixing::strategies::{
    Cliper, DExperts, DeRa, Divergence, Fixed, Mato, Mod, ModelArithmetic, Operand, Pack, Space,
    Term, TopK, Uniform,
};
use mixing::{History, Mixed, Preference, Step, Strategy};
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
        weights: [("concise".to_string(), 3.0), ("friendly".to_string(), 1.0)].into(),
    }
}

impl Case {
    fn names(&self) -> Vec<&str> {
        self.experts.iter().map(String::as_str).collect()
    }

    /// What a strategy makes of it: experts and result.
    fn mix(&self, strategy: &Strategy) -> (Vec<String>, Mixed) {
        let mut plan = strategy.plan(&preference(), &self.names()).unwrap();
        let places: Vec<usize> = plan
            .experts
            .iter()
            .map(|n| self.experts.iter().position(|e| e == n).unwrap())
            .collect();
        let pick = |all: &[f64]| -> Vec<f64> { places.iter().map(|&p| all[p]).collect() };
        let rows = places
            .iter()
            .flat_map(|&p| self.log_probs[p].iter().flatten());
        let next = NextTokens {
            reference: None,
            experts: places.len(),
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

/// The strategies of the script, by its names.
fn strategies() -> Vec<(&'static str, Strategy)> {
    let names = |list: &[&str]| list.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let fixed = |space| {
        Strategy::Fixed(Fixed {
            weights: None,
            space,
        })
    };
    let pack = |tau, space| Strategy::Pack(Pack { tau, space });
    let anti = [("concise", "rude"), ("friendly", "base")];
    let anti = anti.map(|(e, a)| (e.to_string(), a.to_string())).into();
    let formula = vec![
        expert("base", 1.5),
        Term {
            weight: 0.8,
            of: Operand::Union(names(&["concise", "friendly"])),
        },
        Term {
            weight: -1.3,
            of: Operand::Intersection(names(&["rude", "base"])),
        },
    ];
    vec![
        ("fixed", fixed(Space::Probability)),
        ("fixed_log", fixed(Space::Log)),
        ("mod_reverse", mod_of(Divergence::ReverseKl)),
        ("mod_forward", mod_of(Divergence::ForwardKl)),
        ("mod_alpha", mod_of(Divergence::Alpha(0.3))),
        ("mod_jensen_shannon", mod_of(Divergence::JensenShannon)),
        (
            "dera",
            Strategy::DeRa(DeRa {
                lambda: 2.5,
                weights: None,
            }),
        ),
        (
            "dexperts",
            Strategy::DExperts(DExperts {
                anti,
                strength: 1.5,
                base: "base".into(),
                weights: None,
            }),
        ),
        (
            "arithmetic",
            Strategy::ModelArithmetic(ModelArithmetic { terms: formula }),
        ),
        (
            "mato",
            Strategy::Mato(Mato {
                beta: 2.0,
                tau: 5.0,
                strength: 0.7,
                weights: None,
            }),
        ),
        ("cliper", cliper(3.0)),
        ("pack", pack(0.5, Space::Log)),
        ("pack_linear", pack(2.0, Space::Probability)),
        (
            "top_k",
            Strategy::TopK(TopK {
                k: 4,
                of: Box::new(fixed(Space::Probability)),
            }),
        ),
    ]
}

#[test]
fn every_strategy_equals_its_reference() {
    let case: Case = serde_json::from_str(include_str!("fixtures/strategies.json")).unwrap();
    assert_eq!(case.expected.len(), strategies().len());
    for (name, strategy) in strategies() {
        let (experts, mixed) = case.mix(&strategy);
        let expected = case.expected[name].iter().flatten();
        let differences = mixed.log_probs.iter().zip(expected);
        let worst = differences
            .map(|(got, p)| (f64::from(*got).exp() - p).abs())
            .fold(0.0, f64::max);
        assert!(worst < 1e-6, "{name}: largest difference {worst}");
        println!("{name}: largest difference {worst:e}");
        let Some(weights) = case.weights.get(name) else {
            continue;
        };
        // The script's weights are those of concise and friendly.
        for (s, expected) in weights.iter().enumerate() {
            for (direction, w) in ["concise", "friendly"].iter().zip(expected) {
                let place = experts.iter().position(|e| e == direction).unwrap();
                let got = f64::from(mixed.weights[s * experts.len() + place]);
                assert!((got - w).abs() < 1e-6, "{name} {direction}: {got} {w}");
            }
        }
    }
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

/// The same strategy with all weight on `only`, where it takes weights.
fn one_hot(strategy: &Strategy, only: &str) -> Option<Strategy> {
    let weights = Some(
        ["concise", "friendly", "rude"]
            .map(|n| (n.to_string(), f64::from(u8::from(n == only))))
            .into(),
    );
    Some(match strategy.clone() {
        Strategy::Fixed(s) => Strategy::Fixed(Fixed { weights, ..s }),
        Strategy::Mod(s) => Strategy::Mod(Mod { weights, ..s }),
        Strategy::DeRa(_) => Strategy::DeRa(DeRa {
            lambda: 1.0,
            weights,
        }),
        Strategy::Mato(s) => Strategy::Mato(Mato {
            strength: 1.0,
            weights,
            ..s
        }),
        Strategy::ModelArithmetic(_) => Strategy::ModelArithmetic(ModelArithmetic {
            terms: vec![expert(only, 1.0)],
        }),
        _ => return None,
    })
}

proptest! {
    #[test]
    fn results_are_distributions_and_weights_are_recorded(case in cases()) {
        for (name, strategy) in strategies() {
            let (experts, mixed) = case.mix(&strategy);
            let total: f64 = probabilities(&mixed).iter().sum();
            prop_assert!((total - 1.0).abs() < 1e-4, "{}: {}", name, total);
            prop_assert_eq!(mixed.weights.len(), experts.len());
            let sum: f32 = mixed.weights.iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-4, "{}: {:?}", name, mixed.weights);
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
        for (name, strategy) in strategies() {
            let (a, b) = (case.mix(&strategy), other.mix(&strategy));
            prop_assert_eq!(a.0, b.0);
            prop_assert_eq!(a.1.log_probs, b.1.log_probs, "{}", name);
        }
    }

    #[test]
    fn all_weight_on_one_expert_is_that_expert_bit_for_bit(case in cases()) {
        for (name, strategy) in strategies() {
            for (e, only) in ["concise", "friendly", "rude"].iter().enumerate() {
                let Some(hot) = one_hot(&strategy, only) else { continue };
                prop_assert!(hot.one_hot(), "{} declares it", name);
                let expected: Vec<f32> = case.log_probs[e + 1][0].iter().map(|v| *v as f32).collect();
                prop_assert_eq!(case.mix(&hot).1.log_probs, expected, "{} {}", name, only);
            }
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
        let place = |base: f64| Case { history: vec![vec![base, -1000.0, -1000.0, -1000.0]], ..case.clone() };
        let shannon = |case: &Case| case.mix(&mod_of(Divergence::JensenShannon)).1;
        let ahead = place(-1300.0);
        prop_assert!(worst(&shannon(&ahead), &ahead.mix(&mod_of(Divergence::ForwardKl)).1) < 1e-5);
        let behind = place(-700.0);
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
        let even = Pack { tau: 1e9, space: Space::Log };
        let uniform = Strategy::Uniform(Uniform { space: Space::Log });
        prop_assert!(worst(&mix(Strategy::Pack(even)), &mix(uniform)) < 1e-5);
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
        case.log_probs[of][0][0] = f64::NEG_INFINITY;
        for (name, strategy) in strategies() {
            let (experts, mixed) = case.mix(&strategy);
            prop_assert!(mixed.log_probs.iter().all(|v| !v.is_nan()), "{}", name);
            prop_assert!(mixed.weights.iter().all(|v| v.is_finite()), "{}", name);
            let total: f64 = probabilities(&mixed)[1..].iter().sum();
            let used = experts.contains(&case.experts[of]);
            let product = !["fixed", "pack_linear", "top_k", "arithmetic"].contains(&name);
            if used && product {
                prop_assert_eq!(mixed.log_probs[0], f32::NEG_INFINITY, "{}", name);
                prop_assert!((total - 1.0).abs() < 1e-4, "{}: {}", name, total);
            }
        }
    }

    #[test]
    fn mato_moves_weight_to_the_objective_that_lags(case in cases()) {
        let mato = Strategy::Mato(Mato::default());
        let (experts, mixed) = case.mix(&mato);
        let place = |n: &str| experts.iter().position(|e| e == n).unwrap();
        let (c, f) = (mixed.weights[place("concise")], mixed.weights[place("friendly")]);
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
            Strategy::Pack(Pack {
                tau: f64::NAN,
                ..Pack::default()
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
    stated.weights.insert("sad".into(), 1.0);
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

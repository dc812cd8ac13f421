//! Strategies over real pools of tiny models: lanes against separate runs, endpoints, order.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use experts::ExpertPool;
use lm::chat::{Message, Prompt};
use lm::sampling::{Draws, Sampling};
use mope_mixing::strategies::{
    BestOfN, BestSingle, DeRa, Example, FewShot, Fixed, InstanceContext, Oracle, Single, Space,
    TopK, Uniform,
};
use mope_mixing::{
    Generation, Generator, History, Mixed, Mixer, Plan, Preference, Request, Response, Step,
    Strategy,
};
use pico::experts;
use tempfile::TempDir;

fn requests() -> Vec<Request> {
    let turns = vec![
        Message::user("one"),
        Message {
            role: lm::chat::Role::Assistant,
            content: "two".into(),
        },
        Message::user("three?"),
    ];
    let prompts = [
        Prompt::Chat(vec![Message::user("Why?")]),
        Prompt::Chat(turns),
        Prompt::Chat(vec![Message::user("a rather long question")]),
        Prompt::Chat(vec![Message::user("b")]),
    ];
    let numbered = prompts.into_iter().enumerate();
    numbered
        .map(|(i, prompt)| Request {
            prompt,
            draws: Draws::new(&[b"pico", &[i as u8]]),
        })
        .collect()
}

const SETTINGS: Generation = Generation {
    max_new_tokens: 24,
    sampling: Sampling {
        temperature: 0.8,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    },
    temperature_of: mope_mixing::TemperatureOf::Mixture,
    date: lm::chat::Day::DEFAULT,
};

fn preference() -> Preference {
    let names = ["full", "patterns", "plain", "prompted"];
    Preference {
        text: "be good".into(),
        importances: names
            .iter()
            .zip(1..)
            .map(|(n, w)| (n.to_string(), f64::from(w)))
            .collect(),
    }
}

/// Calls `work` with a generator over exactly the experts that the strategy's plan names.
fn with_generator<T>(strategy: &Strategy, work: impl FnOnce(&mut Generator<'_>) -> T) -> T {
    let plan = strategy.plan(&preference(), &NAMES).unwrap();
    let pool = pico::pool(&experts(), &plan.experts);
    work(&mut Generator::new(&pool, plan, &[2]).unwrap())
}

/// The experts' names.
const NAMES: [&str; 5] = ["base", "full", "patterns", "plain", "prompted"];

fn generate(strategy: &Strategy, requests: Vec<Request>) -> Vec<Response> {
    with_generator(strategy, |generator| respond(generator, requests))
}

/// Responses; where a plan makes several of which one is kept, the first.
fn respond(generator: &mut Generator<'_>, requests: Vec<Request>) -> Vec<Response> {
    let alike = |_: usize, _: &Response| Ok::<f64, mope_mixing::Error>(0.0);
    let made = match generator.plan().samples {
        1 => generator.generate(requests, 3, &SETTINGS, |_, _| ()),
        _ => generator.best(requests, 3, &SETTINGS, alike, |_, _| ()),
    };
    made.unwrap()
}

/// Instances of every strategy.
fn instances() -> Vec<Strategy> {
    static CLASSIFIER: LazyLock<TempDir> =
        LazyLock::new(|| pico::classifier(&[["full", "plain"], ["prompted", "patterns"]]));
    let context = InstanceContext {
        directions: &NAMES[1..],
        other: "plain",
        classifier: CLASSIFIER.path(),
        pcm: &pcm(),
    };
    let instances = Strategy::instances(&context).into_iter();
    instances.map(|instance| instance.strategy).collect()
}

/// Those of them that these experts can run: neither a choice among others nor a merge.
fn strategies() -> Vec<Strategy> {
    let runs = |strategy: &Strategy| {
        let plan = strategy.plan(&preference(), &NAMES).unwrap();
        plan.candidates.is_empty() && plan.merged.is_empty()
    };
    instances().into_iter().filter(runs).collect()
}

/// A folder with a PCM over the experts beside the base.
fn pcm() -> PathBuf {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let width = experts()[0].model.config().hidden_size;
        let config = pcm::PcmConfig::tiny(&NAMES[1..], width);
        let pcm = pcm::Pcm::new(&config, 3).unwrap();
        pcm.save(folder.path()).unwrap();
        folder
    });
    FOLDER.path().to_path_buf()
}

fn few_shot(instruction: bool) -> Strategy {
    let names = ["full", "patterns", "plain", "prompted"];
    let examples = names.map(|name| {
        let example = Example {
            prompt: format!("{}?", &name[..2]),
            response: format!("{}!", &name[..2]),
        };
        (name.to_string(), vec![example])
    });
    Strategy::FewShot(FewShot {
        examples: examples.into(),
        instruction,
    })
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst <= tolerance, "largest difference {worst}");
}

#[test]
fn a_reference_beside_changes_nothing_and_its_divergence_is_the_direct_sum() {
    let all = experts();
    let base = all.iter().find(|e| e.name == "base").unwrap();
    for strategy in strategies() {
        let plain = generate(&strategy, requests());
        let plan = strategy.plan(&preference(), &NAMES).unwrap();
        let rephrased = plan.instruction.is_some() || !plan.examples.is_empty();
        let mixed = plan.experts.iter();
        let mixed = mixed.map(|n| all.iter().find(|e| e.name == *n).unwrap().clone());
        let pool = ExpertPool::with_reference(mixed.collect(), base.clone(), rephrased).unwrap();
        let member = plan.experts.iter().any(|n| n == "base") && !rephrased;
        assert_eq!(pool.passes(), plan.experts.len() + usize::from(!member));
        let mut generator = Generator::new(&pool, plan, &[2]).unwrap();
        let beside = respond(&mut generator, requests());
        for (plain, beside) in plain.iter().zip(beside) {
            assert_eq!(plain.tokens, beside.tokens, "{strategy:?}");
            let lengths = (beside.kl.len(), beside.reference_log_probs.len());
            assert_eq!(lengths, (beside.tokens.len(), beside.tokens.len()));
            assert!(beside.kl.iter().all(|v| *v > -1e-5), "{:?}", beside.kl);
        }
    }
    // Of one expert: against the direct sum over both distributions.
    let plain = all.iter().find(|e| e.name == "plain").unwrap();
    let prompts: Vec<Prompt> = requests().into_iter().map(|r| r.prompt).collect();
    let pool = ExpertPool::new(vec![base.clone(), plain.clone()]).unwrap();
    let mut next = Default::default();
    pool.begin(&prompts, 8, &mut next).unwrap();
    let single = Strategy::Single(Single {
        expert: "plain".into(),
    });
    let plan = single.plan(&preference(), &NAMES).unwrap();
    let pool = ExpertPool::with_reference(vec![plain.clone()], base.clone(), false).unwrap();
    let mut generator = Generator::new(&pool, plan, &[2]).unwrap();
    let made = generator.generate(requests(), 3, &SETTINGS, |_, _| ());
    for (s, response) in made.unwrap().iter().enumerate() {
        let (p, q) = (next.row(1, s), next.row(0, s));
        let pairs = p.iter().zip(q).map(|(p, q)| (f64::from(*p), f64::from(*q)));
        let direct: f64 = pairs.map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((f64::from(response.kl[0]) - direct).abs() < 1e-6 && direct > 1e-4);
        let expected = q[response.tokens[0] as usize];
        assert!((response.reference_log_probs[0] - expected).abs() < 1e-5);
    }
}

#[test]
fn one_plan_serves_any_number_of_generators() {
    for strategy in strategies() {
        let expected = generate(&strategy, requests());
        let plan = strategy.plan(&preference(), &NAMES).unwrap();
        let pool = pico::pool(&experts(), &plan.experts);
        let mut generator = Generator::new(&pool, plan.clone(), &[2]).unwrap();
        assert_eq!(
            respond(&mut generator, requests()),
            expected,
            "{strategy:?}"
        );
        // Neither a clone of what was decoded with nor the plan itself has anything of that.
        for plan in [generator.plan().clone(), plan] {
            let mut generator = Generator::new(&pool, plan, &[2]).unwrap();
            let mut fewer = requests();
            fewer.reverse();
            fewer.truncate(3);
            let mut responses = respond(&mut generator, fewer);
            responses.reverse();
            assert_eq!(responses, expected[1..], "{strategy:?}");
        }
    }
}

#[test]
fn a_pcm_goes_from_the_base_through_its_experts_and_beyond() {
    let all = experts();
    let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).collect();
    let width = all[0].model.config().hidden_size;
    let pcm = pcm::Pcm::new(&pcm::PcmConfig::tiny(&["patterns", "plain"], width), 3).unwrap();
    let stated = Preference {
        text: "be good".into(),
        importances: [("patterns".to_string(), 1.0), ("plain".to_string(), 2.0)].into(),
    };
    let decode = |plan: mope_mixing::Plan| {
        let pool = pico::pool(&all, &plan.experts);
        respond(&mut Generator::new(&pool, plan, &[2]).unwrap(), requests())
    };
    let with = |space, strength| mope_mixing::strategies::Pcm {
        space: Some(space),
        strength,
        ..mope_mixing::strategies::Pcm::of("")
    };
    let log = decode(
        with(Space::Log, 1.0)
            .plan_with(pcm.clone(), &stated, 0)
            .unwrap(),
    );
    let near = decode(
        with(Space::Log, 1.0 + 1e-6)
            .plan_with(pcm.clone(), &stated, 0)
            .unwrap(),
    );
    let none = decode(
        with(Space::Log, 0.0)
            .plan_with(pcm.clone(), &stated, 0)
            .unwrap(),
    );
    let beyond = decode(
        with(Space::Log, 3.0)
            .plan_with(pcm.clone(), &stated, 0)
            .unwrap(),
    );
    let single = Strategy::Single(Single {
        expert: "base".into(),
    });
    let base = decode(single.plan(&stated, &names).unwrap());
    for i in 0..log.len() {
        assert_eq!(log[i].tokens, near[i].tokens);
        close(&log[i].log_probs, &near[i].log_probs, 1e-4);
        assert_eq!(none[i].tokens, base[i].tokens);
        close(&none[i].log_probs, &base[i].log_probs, 1e-5);
        for weights in beyond[i].weights.chunks(3) {
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert_eq!(weights[0], -2.0);
        }
    }
    assert!((0..log.len()).any(|i| beyond[i].log_probs != log[i].log_probs));
    let error = with(Space::Probability, 2.0).plan_with(pcm, &stated, 0);
    assert!(error.unwrap_err().to_string().contains("space: Log"));
}

#[test]
fn gates_begin_as_equal_steps_and_their_records_say_what_other_gates_would_do() {
    let all = experts();
    let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).collect();
    let width = all[0].model.config().hidden_size;
    let stated = Preference {
        text: "be good".into(),
        importances: [("patterns".to_string(), 2.0), ("plain".to_string(), 2.0)].into(),
    };
    let strategy = mope_mixing::strategies::Pcm::of("");
    let pool = |plan: &mope_mixing::Plan| pico::pool(&all, &plan.experts);
    for output in [pcm::Output::Gates { limit: 2.0 }, pcm::Output::Logs] {
        let config = pcm::PcmConfig {
            output,
            ..pcm::PcmConfig::tiny(&["patterns", "plain"], width)
        };
        let fresh = pcm::Pcm::new(&config, 3).unwrap();
        let mut values = fresh.values().to_vec();
        let draws = Draws::new(&[b"other"]);
        let head = values.len() - 2 * config.hidden;
        for (i, value) in values[head..].iter_mut().enumerate() {
            *value = 0.02 * (draws.clone().uniform(i) as f32 - 0.5);
        }
        let mut other = fresh.clone();
        other.set_values(&values);
        let plan = strategy.plan_with(fresh.clone(), &stated, 24).unwrap();
        let lanes = pool(&plan);
        let mut generator = Generator::new(&lanes, plan, &[2]).unwrap();
        let settings = Generation {
            max_new_tokens: 12,
            ..SETTINGS
        };
        let made = generator.generate(requests(), 3, &settings, |_, _| ());
        let made = made.unwrap();
        // Two gates of 1 go as far as DeRa with λ = 2; two halves are the product of experts.
        let lambda = if output == pcm::Output::Logs {
            1.0
        } else {
            2.0
        };
        let same = Strategy::DeRa(DeRa {
            lambda,
            weights: None,
        });
        let prompts: Vec<Prompt> = requests().into_iter().map(|r| r.prompt).collect();
        let tokens: Vec<Vec<u32>> = made.iter().map(|r| r.tokens.clone()).collect();
        let plan = same.plan(&stated, &names).unwrap();
        let dera_lanes = pool(&plan);
        let mut dera = Generator::new(&dera_lanes, plan, &[2]).unwrap();
        for (a, b) in made.iter().zip(dera.score(&prompts, &tokens).unwrap()) {
            close(&a.log_probs, &b.log_probs, 1e-4);
        }
        // What other gates give those tokens, by the records and by running the experts again.
        let plan = strategy.plan_with(other.clone(), &stated, 0).unwrap();
        let exact = Generator::new(&lanes, plan, &[2])
            .unwrap()
            .score(&prompts, &tokens);
        let base = generator.experts().iter().position(|e| e == "base");
        let model = &all[0].model;
        for ((made, exact), prompt) in made.iter().zip(exact.unwrap()).zip(&prompts) {
            let lanes = generator.experts().len();
            let rows = made.expert_log_probs.chunks(lanes);
            let by_expert = rows.clone().flat_map(|row| {
                let named = row.iter().enumerate().filter(|(i, _)| Some(*i) != base);
                named.map(|(_, l)| *l).collect::<Vec<f32>>()
            });
            let context = [
                model.tokenizer.encode(&stated.text, false).unwrap(),
                model.prompt_tokens(prompt).unwrap(),
            ];
            let rollout = pcm::Rollout {
                context: pcm::Context {
                    tokens: context.concat(),
                    shares: vec![0.5, 0.5],
                    statistics: Vec::new(),
                },
                tokens: made.tokens.clone(),
                log_probs: by_expert.collect(),
                base: base.map_or(Vec::new(), |at| rows.clone().map(|row| row[at]).collect()),
                support: made.truncated_distributions.clone(),
                behaviour: made.log_probs.clone(),
                ..pcm::Rollout::default()
            };
            rollout.check(2, output).unwrap();
            let embed = |token: u32, out: &mut [f32]| model.engine.embedding(token, out).unwrap();
            let under = |pcm: &pcm::Pcm| {
                let items = [(&rollout.context, rollout.tokens.as_slice())];
                let logits = pcm.logits(&items, &embed).unwrap().remove(0);
                rollout.mixed(&logits, output)
            };
            close(&under(&fresh), &made.log_probs, 1e-4);
            close(&under(&other), &exact.log_probs, 2e-2);
            assert!(
                under(&other)
                    .iter()
                    .zip(&made.log_probs)
                    .any(|(a, b)| (a - b).abs() > 3e-2)
            );
        }
    }
}

#[test]
fn a_batch_equals_each_request_alone_in_every_strategy() {
    for strategy in strategies() {
        let together = generate(&strategy, requests());
        for (i, request) in requests().into_iter().enumerate() {
            let alone = generate(&strategy, vec![request]).remove(0);
            assert_eq!(alone.tokens, together[i].tokens, "{strategy:?} {i}");
            assert_eq!(alone.weights, together[i].weights);
            close(&alone.log_probs, &together[i].log_probs, 1e-5);
        }
    }
}

#[test]
fn one_hot_weights_are_the_expert_itself() {
    for only in ["base", "full", "patterns", "plain", "prompted"] {
        let single = generate(
            &Strategy::Single(Single {
                expert: only.into(),
            }),
            requests(),
        );
        for space in [Space::Probability, Space::Log] {
            let all = ["base", "full", "patterns", "plain", "prompted"];
            let weights: BTreeMap<String, f64> = all
                .iter()
                .map(|n| (n.to_string(), f64::from(u8::from(*n == only))))
                .collect();
            let fixed = Fixed {
                weights: Some(weights),
                space,
            };
            let mixed = generate(&Strategy::Fixed(fixed), requests());
            for (mixed, single) in mixed.iter().zip(&single) {
                assert_eq!(mixed.tokens, single.tokens, "{only} {space:?}");
                close(&mixed.log_probs, &single.log_probs, 1e-5);
            }
        }
    }
    // Equal weights over one stated direction are that expert, too.
    let stated = Preference {
        text: "be kind".into(),
        importances: [("plain".to_string(), 3.0)].into(),
    };
    for strategy in [
        Strategy::Uniform(Uniform::default()),
        Strategy::Fixed(Fixed::default()),
    ] {
        assert_eq!(
            strategy.plan(&stated, &["base", "plain"]).unwrap().experts,
            ["plain"]
        );
    }
}

#[test]
fn scoring_a_response_gives_the_log_probs_it_was_made_with() {
    let once = |s: &Strategy| s.plan(&preference(), &NAMES).unwrap().samples == 1;
    for strategy in strategies().into_iter().filter(once) {
        let made = generate(&strategy, requests());
        let prompts: Vec<Prompt> = requests().into_iter().map(|r| r.prompt).collect();
        let tokens: Vec<Vec<u32>> = made.iter().map(|r| r.tokens.clone()).collect();
        let scored = with_generator(&strategy, |g| g.score(&prompts, &tokens).unwrap());
        for (scored, made) in scored.iter().zip(&made) {
            assert_eq!((&scored.tokens, scored.ended), (&made.tokens, made.ended));
            close(&scored.log_probs, &made.log_probs, 1e-5);
            assert_eq!(scored.weights, made.weights);
        }
    }
}

#[test]
fn examples_stand_between_system_message_and_question() {
    let names = ["base"];
    let mut wanted = preference();
    wanted.importances.retain(|name, _| name.starts_with('p'));
    let asked = Prompt::Chat(vec![Message::system("sys"), Message::user("Why?")]);
    let shown = |instruction| {
        let plan = few_shot(instruction).plan(&wanted, &names).unwrap();
        let Prompt::Chat(turns) = plan.prompt(&asked).unwrap() else {
            panic!("it was a conversation")
        };
        let text = turns.iter().map(|m| m.content.as_str());
        text.collect::<Vec<_>>().join("|")
    };
    let turns = "pa?|pa!|pl?|pl!|pr?|pr!|Why?";
    assert_eq!(shown(false), format!("sys|{turns}"));
    assert_eq!(shown(true), format!("sys\n\nbe good|{turns}"));
    let plan = few_shot(false).plan(&wanted, &names).unwrap();
    assert!(plan.prompt(&Prompt::Raw("x".into())).is_err());
    wanted.importances.insert("rude".into(), 1.0);
    let error = few_shot(true).plan(&wanted, &names).unwrap_err();
    assert!(
        error.to_string().contains("no example of 'rude'"),
        "{error}"
    );
}

#[test]
fn the_best_of_several_is_the_best_of_the_same_attempts_made_apart() {
    let inner = || {
        Box::new(Strategy::Single(Single {
            expert: "plain".into(),
        }))
    };
    let best = |n: usize| {
        let strategy = Strategy::BestOfN(BestOfN { n, of: inner() });
        with_generator(&strategy, |generator| {
            let utility = |_, r: &Response| Ok::<f64, mope_mixing::Error>(worth(r));
            let best = generator.best(requests(), 3, &SETTINGS, utility, |_, _| ());
            best.unwrap()
        })
    };
    // More of the letter "e" is better.
    fn worth(response: &Response) -> f64 {
        response.tokens.iter().filter(|t| **t == 72).count() as f64
    }
    assert_eq!(best(1), generate(&inner(), requests()));
    let chosen = best(4);
    let attempts = requests().into_iter().flat_map(|request| {
        (0..4).map(move |n| Request {
            prompt: request.prompt.clone(),
            draws: request.draws.attempt(n),
        })
    });
    let made = generate(&inner(), attempts.collect());
    for (i, attempts) in made.chunks(4).enumerate() {
        let most = attempts.iter().map(worth).fold(0.0, f64::max);
        let first = attempts.iter().find(|r| worth(r) == most).unwrap();
        assert_eq!(chosen[i].tokens, first.tokens);
        assert_ne!(attempts[0].tokens, attempts[1].tokens);
    }
    let strategy = Strategy::BestOfN(BestOfN { n: 2, of: inner() });
    with_generator(&strategy, |generator| {
        let made = generator.generate(requests(), 3, &SETTINGS, |_, _| ());
        let scored = generator.score(&[], &[]);
        for error in [made.unwrap_err(), scored.unwrap_err()] {
            assert!(error.to_string().contains("needs rewards"), "{error}");
        }
    });
}

#[test]
fn the_oracle_keeps_the_best_of_all_weights() {
    let (steps, space) = (2, Space::Probability);
    let oracle = Oracle {
        steps,
        space,
        lambda: 1.0,
    };
    with_generator(&Strategy::Oracle(oracle.clone()), |generator| {
        // Four directions share two halves in ten ways.
        assert_eq!(
            (generator.plan().samples, generator.experts().len()),
            (10, 4)
        );
        let mut seen = std::collections::BTreeSet::new();
        let utility = |_: usize, r: &Response| {
            seen.insert(format!("{:?}", &r.weights[..4]));
            Ok::<f64, mope_mixing::Error>(f64::from(r.weights[2]))
        };
        let best = generator.best(requests(), 3, &SETTINGS, utility, |_, _| ());
        for response in best.unwrap() {
            let mut weights = response.weights.chunks(4);
            assert!(weights.all(|w| w == [0.0, 0.0, 1.0, 0.0]), "{response:?}");
        }
        assert_eq!(seen.len(), 10);
    });
    let far = Oracle {
        space: Space::Log,
        lambda: 2.0,
        ..oracle.clone()
    };
    with_generator(&Strategy::Oracle(far), |generator| {
        let utility =
            |_: usize, r: &Response| Ok::<f64, mope_mixing::Error>(f64::from(r.weights[1]));
        let best = generator.best(requests(), 3, &SETTINGS, utility, |_, _| ());
        assert_eq!(generator.experts()[0], "base");
        for response in best.unwrap() {
            assert_eq!(response.weights[..5], [-1.0, 2.0, 0.0, 0.0, 0.0]);
        }
    });
    let names: Vec<String> = experts().iter().map(|e| e.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (wrong, expected) in [
        (
            Oracle {
                steps: 0,
                ..oracle.clone()
            },
            "steps is 0",
        ),
        (
            Oracle {
                lambda: 2.0,
                ..oracle
            },
            "space: Log",
        ),
    ] {
        let error = Strategy::Oracle(wrong)
            .plan(&preference(), &names)
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_pcm_mixes_what_is_seen_of_truncated_experts() {
    let pcm = Strategy::Pcm(mope_mixing::strategies::Pcm::of(pcm()));
    let seen = |k| {
        let of = Box::new(pcm.clone());
        generate(&Strategy::TopK(TopK { k, of }), requests())
    };
    let vocab = experts()[0].model.config().vocab_size;
    let plain = generate(&pcm, requests());
    for (all, plain) in seen(vocab).iter().zip(&plain) {
        assert_eq!((&all.tokens, &all.weights), (&plain.tokens, &plain.weights));
    }
    assert_ne!(seen(1)[0].log_probs, plain[0].log_probs);
}

#[test]
fn what_is_still_to_be_chosen_does_not_run() {
    let all = experts();
    let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).collect();
    let best = |among: Option<&[&str]>| {
        let among = among.map(|a| a.iter().map(|n| n.to_string()).collect());
        Strategy::BestSingle(BestSingle { among }).plan(&preference(), &names)
    };
    let plan = best(None).unwrap();
    assert_eq!(plan.experts, ["full", "patterns", "plain", "prompted"]);
    let pool = ExpertPool::new(all[1..].to_vec()).unwrap();
    let error = Generator::new(&pool, plan, &[2]).unwrap_err().to_string();
    assert!(error.contains("chosen on a validation set"), "{error}");
    assert!(best(Some(&["plain"])).unwrap().candidates.is_empty());
    for outer in [
        Strategy::TopK(TopK {
            k: 3,
            of: Box::new(Strategy::BestSingle(BestSingle::default())),
        }),
        Strategy::BestOfN(BestOfN {
            n: 3,
            of: Box::new(Strategy::BestSingle(BestSingle::default())),
        }),
    ] {
        let error = outer.plan(&preference(), &names).unwrap_err().to_string();
        assert!(error.contains("still to be chosen"), "{error}");
    }
    assert!(best(Some(&["nobody"])).is_err());
    assert!(best(Some(&[])).is_err());
}

#[test]
fn histories_are_what_the_experts_said_alone() {
    #[derive(Clone)]
    struct Watch(Arc<std::sync::Mutex<Vec<History>>>);
    impl Mixer for Watch {
        fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> mope_mixing::Result<()> {
            self.0.lock().unwrap().extend_from_slice(step.history);
            mixed.each(step, |sequence, out, weights| {
                out.copy_from_slice(step.next.row(0, sequence));
                weights.copy_from_slice(&[1.0, 0.0]);
            });
            Ok(())
        }

        fn reads_prompt(&self) -> bool {
            true
        }
    }
    let all = experts();
    let pool = ExpertPool::new(vec![all[2].clone(), all[3].clone()]).unwrap();
    let seen = Arc::default();
    let plan = Plan::new(
        vec!["patterns".into(), "plain".into()],
        mope_mixing::Requirements::LIKELIEST,
        Watch(Arc::clone(&seen)),
    );
    let mut generator = Generator::new(&pool, plan, &[2]).unwrap();
    // Fewer lanes than requests: sequences join while others are under way.
    let made = generator
        .generate(requests(), 2, &SETTINGS, |_, _| ())
        .unwrap();
    let seen: Vec<History> = std::mem::take(&mut seen.lock().unwrap());
    for (i, request) in requests().iter().enumerate() {
        let histories: Vec<&History> = seen.iter().filter(|h| h.request == i).collect();
        assert_eq!(histories.len(), made[i].tokens.len());
        for (t, history) in histories.iter().enumerate() {
            assert_eq!(history.tokens, made[i].tokens[..t]);
        }
        let last = histories.last().unwrap();
        for (e, expert) in [&all[2], &all[3]].into_iter().enumerate() {
            let adapters = expert.model.engine.adapters(&[expert.adapter.as_deref()]);
            let prompt = expert.tokens(&request.prompt).unwrap();
            let scored = |prompt: &[u32], response: &[u32]| -> f64 {
                let model = &expert.model;
                let all = model.log_probs(&[prompt], &[response], Some(&adapters));
                all.unwrap()[0].iter().map(|v| f64::from(*v)).sum()
            };
            assert!((last.log_probs[e] - scored(&prompt, &last.tokens)).abs() < 1e-4);
            let nll = -scored(&prompt[..1], &prompt[1..]) / (prompt.len() - 1) as f64;
            assert!((last.prompt[e] - nll).abs() < 1e-5);
        }
    }
}

#[test]
fn the_order_of_experts_does_not_matter() {
    let turned = ["plain", "base", "full", "prompted", "patterns"];
    for strategy in instances() {
        let plan = |names: &[&str]| strategy.plan(&preference(), names).unwrap().experts;
        assert_eq!(plan(&turned), plan(&NAMES), "{strategy:?}");
    }
}

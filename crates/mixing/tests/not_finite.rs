//! What is no number is nobody's token: experts, mixtures, PCMs and classifiers with NaN, infinity or very large numbers
//! end in an error that says who, at which token, of which prompt.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use experts::classifier::{Classifier, ClassifierCard, Telling, Told};
use experts::{Expert, ExpertPool};
use lm::adapter::{LowRank, Target};
use lm::chat::{Message, Prompt};
use lm::sampling::{Draws, Sampling};
use lm::{Adapter, DeviceSpec, Format, LanguageModel};
use mope_mixing::strategies::{Choice, Fixed, Space, Uniform};
use mope_mixing::{
    Error, Generation, Generator, Mixed, Mixer, Plan, Preference, Request, Response, Step, Strategy,
};
use pcm::{Output, Pcm, PcmConfig};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    let fixtures = "../lm/tests/fixtures/pico";
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(fixtures)
        .join(name)
}

fn open(weights: Format) -> Arc<LanguageModel> {
    let model = LanguageModel::open(&fixture("llama"), &DeviceSpec::Cpu, weights);
    Arc::new(model.unwrap())
}

fn expert(name: &str, model: &Arc<LanguageModel>, adapter: Option<Adapter>) -> Expert {
    Expert {
        name: name.into(),
        model: model.clone(),
        adapter: adapter.map(Arc::new),
        instruction: None,
        top_k: None,
    }
}

/// An adapter whose products overflow, on one projection.
fn wild(model: &LanguageModel, target: Target) -> Adapter {
    let (inputs, outputs) = target.size(model.config());
    let pair = LowRank {
        rank: 2,
        a: vec![1e30; inputs * 2],
        b: vec![1e30; outputs * 2],
    };
    Adapter {
        pairs: [((1, target), pair)].into(),
    }
}

fn prompts() -> Vec<Prompt> {
    let turn = |text: &str| Prompt::Chat(vec![Message::user(text)]);
    vec![turn("Why?"), turn("a rather long question"), turn("b")]
}

fn requests() -> Vec<Request> {
    let numbered = prompts().into_iter().enumerate();
    numbered
        .map(|(i, prompt)| Request {
            prompt,
            draws: Draws::new(&[b"not finite", &[i as u8]]),
        })
        .collect()
}

fn settings(sampling: Sampling) -> Generation {
    Generation {
        max_new_tokens: 6,
        sampling,
        ..Generation::default()
    }
}

fn samplings() -> [Sampling; 3] {
    let warm = Sampling {
        temperature: 0.8,
        ..Sampling::GREEDY
    };
    [Sampling::GREEDY, warm, Sampling { top_k: 5, ..warm }]
}

#[test]
fn an_expert_without_numbers_is_named_with_token_and_prompt() {
    if !pico::on_one_thread_and_on_two("an_expert_without_numbers_is_named_with_token_and_prompt") {
        return;
    }
    let mut saturated = Vec::new();
    for weights in [Format::F32, Format::Bf16, Format::Q8, Format::Q4] {
        let model = open(weights);
        for target in Target::ALL {
            let experts = vec![
                expert("calm", &model, None),
                expert("wild", &model, Some(wild(&model, target))),
            ];
            let pool = ExpertPool::new(experts).unwrap();
            let preference = Preference {
                text: "be good".into(),
                importances: [("calm".to_string(), 1.0), ("wild".to_string(), 1.0)].into(),
            };
            let strategy = Strategy::Uniform(Uniform {
                space: Space::Probability,
            });
            let plan = || strategy.plan(&preference, &["calm", "wild"]).unwrap();
            let mut next = Default::default();
            let outcome = pool.begin(&prompts(), 4, &mut next).map(drop);
            let Err(error) = outcome else {
                // What saturates on the way is a distribution.
                for i in 0..6 {
                    let row = next.row(i / 3, i % 3).iter();
                    let total: f64 = row.map(|v| f64::from(*v).exp()).sum();
                    assert!((total - 1.0).abs() < 0.2, "{weights:?} {target:?} {total}");
                }
                saturated.push((weights, target));
                continue;
            };
            let error = error.to_string();
            assert!(
                error.starts_with("expert 'wild' gave no numbers"),
                "{weights:?} {error}"
            );
            let error = pool.prompt_nll(&prompts()).unwrap_err().to_string();
            assert!(
                error.starts_with("expert 'wild' gave no numbers"),
                "{error}"
            );
            let mut generator = Generator::new(&pool, plan(), &[2]).unwrap();
            for sampling in samplings() {
                let made = generator.generate(requests(), 3, &settings(sampling), |_, _| ());
                let error = made.unwrap_err().to_string();
                let expected =
                    "expert 'wild' gave no numbers (NaN or infinity) at token 0 of prompt 0;";
                assert!(error.starts_with(expected), "{error}");
            }
            let given = vec![vec![5, 6], vec![7], vec![8, 9]];
            let error = generator.score(&prompts(), &given).unwrap_err();
            assert!(
                matches!(error, Error::NoNumbers { token: 0, .. }),
                "{error}"
            );
        }
    }
}

/// Copies the first expert and, at one token of one request, writes a number into some places.
#[derive(Clone)]
struct Broken {
    token: usize,
    request: usize,
    value: f32,
    places: fn(usize) -> bool,
}

impl Mixer for Broken {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> mope_mixing::Result<()> {
        mixed.each(step, |i, out, weights| {
            out.copy_from_slice(step.next.row(0, i));
            weights.fill(1.0);
            let history = &step.history[i];
            if (history.tokens.len(), history.request) == (self.token, self.request) {
                let places = (0..out.len()).filter(|v| (self.places)(*v));
                places.for_each(|v| out[v] = self.value);
            }
        });
        Ok(())
    }
}

#[test]
fn a_mixture_without_numbers_is_refused_at_its_token_and_ruled_out_tokens_are_not() {
    let model = open(Format::F32);
    let pool = ExpertPool::new(vec![expert("calm", &model, None)]).unwrap();
    let one: fn(usize) -> bool = |v| v == 77;
    let all: fn(usize) -> bool = |_| true;
    let half: fn(usize) -> bool = |v| v.is_multiple_of(2);
    for (value, places, fine) in [
        (f32::NAN, one, false),
        (f32::NAN, all, false),
        (f32::INFINITY, one, false),
        (f32::NEG_INFINITY, all, false),
        (f32::NEG_INFINITY, half, true),
    ] {
        let plan = || {
            let broken = Broken {
                token: 2,
                request: 1,
                value,
                places,
            };
            Plan::new(
                vec!["calm".into()],
                mope_mixing::Requirements::LIKELIEST,
                broken,
            )
        };
        // No end token: every response reaches the place.
        let mut generator = Generator::new(&pool, plan(), &[]).unwrap();
        let mut outcomes = Vec::new();
        for sampling in samplings() {
            outcomes.push(generator.generate(requests(), 3, &settings(sampling), |_, _| ()));
        }
        let given = vec![vec![5; 4]; 3];
        outcomes.push(generator.score(&prompts(), &given));
        for outcome in outcomes {
            match outcome {
                Ok(_) => assert!(fine, "{value}"),
                Err(error) => {
                    let error = error.to_string();
                    let expected = "the mixture of 'calm' gave no numbers (NaN or infinity) at token 2 of prompt 1;";
                    assert!(!fine && error.starts_with(expected), "{error}");
                }
            }
        }
    }
}

#[test]
fn of_several_responses_one_that_is_worth_no_number_is_not_kept() {
    let model = open(Format::F32);
    let pool = ExpertPool::new(vec![expert("calm", &model, None)]).unwrap();
    let preference = Preference {
        text: "be good".into(),
        importances: [("calm".to_string(), 1.0)].into(),
    };
    let strategy = Strategy::Fixed(Fixed {
        weights: None,
        space: Space::Probability,
    });
    let mut plan = strategy.plan(&preference, &["calm"]).unwrap();
    plan.samples = 3;
    let mut generator = Generator::new(&pool, plan, &[2]).unwrap();
    let mut heard = Vec::new();
    let utility = |_: usize, response: &Response| -> mope_mixing::Result<f64> {
        heard.push(response.clone());
        Ok([f64::NAN, 0.5, 0.25][(heard.len() - 1) % 3])
    };
    let [_, warm, _] = samplings();
    let kept = generator.best(requests(), 3, &settings(warm), utility, |_, _| ());
    let kept = kept.unwrap();
    assert_eq!(kept.len(), 3);
    for (kept, heard) in kept.iter().zip(heard.chunks(3)) {
        assert_eq!(*kept, heard[1]);
    }
}

const OUTPUTS: [Output; 3] = [
    Output::Probabilities,
    Output::Logs,
    Output::Gates { limit: 2.0 },
];

fn control(output: Output, width: usize) -> Pcm {
    let config = PcmConfig {
        hidden: 16,
        layers: 1,
        heads: 2,
        intermediate: 24,
        statistics: true,
        output,
        ..PcmConfig::tiny(&["one", "two"], width)
    };
    let mut pcm = Pcm::new(&config, 3).unwrap();
    let mut draws = Draws::new(&[b"scramble"]);
    let numbers = draws.uniforms(pcm.values().len());
    let values = pcm.values().iter().zip(numbers);
    let values: Vec<f32> = values.map(|(v, u)| v + 0.1 * (u as f32 - 0.5)).collect();
    pcm.set_values(&values);
    pcm
}

fn with_pcm(pool: &ExpertPool, pcm: Pcm, choice: Choice) -> mope_mixing::Result<Vec<Response>> {
    let preference = Preference {
        text: "be good".into(),
        importances: [("one".to_string(), 1.0), ("two".to_string(), 2.0)].into(),
    };
    let strategy = mope_mixing::strategies::Pcm {
        model: Default::default(),
        choice,
        hold: 1,
        space: None,
        strength: 1.0,
    };
    let plan = strategy.plan_with(pcm, &preference, 0)?;
    let mut generator = Generator::new(pool, plan, &[2])?;
    generator.generate(requests(), 3, &settings(samplings()[1]), |_, _| ())
}

fn pcm_pool(base: bool) -> ExpertPool {
    let model = open(Format::F32);
    let plain = |name: &str| Adapter::load(&fixture(name), model.config()).unwrap();
    let mut experts = vec![
        expert("one", &model, Some(plain("adapter_plain"))),
        expert("two", &model, Some(plain("adapter_patterns"))),
    ];
    if base {
        experts.insert(0, expert("base", &model, None));
    }
    ExpertPool::new(experts).unwrap()
}

fn finite(responses: &[Response]) -> bool {
    let all = responses
        .iter()
        .flat_map(|r| r.log_probs.iter().chain(&r.weights));
    all.into_iter().all(|v| v.is_finite())
}

#[test]
fn a_pcm_with_numbers_that_are_none_or_large_mixes_nothing_by_them() {
    if !pico::on_one_thread_and_on_two(
        "a_pcm_with_numbers_that_are_none_or_large_mixes_nothing_by_them",
    ) {
        return;
    }
    let width = open(Format::F32).config().hidden_size;
    for output in OUTPUTS {
        let pool = pcm_pool(output.reads_base());
        for choice in [Choice::Soft, Choice::Hard] {
            let clean = control(output, width);
            let expected = with_pcm(&pool, clean.clone(), choice).unwrap();
            let count = clean.values().len();
            // Some places in each of its parts, and all at once.
            let places = (0..8)
                .map(|i| vec![i * (count - 1) / 7])
                .chain([(0..count).collect()]);
            for places in places {
                for value in [f32::NAN, f32::INFINITY, 1e30] {
                    let mut pcm = clean.clone();
                    let mut values = clean.values().to_vec();
                    places.iter().for_each(|&p| values[p] = value);
                    pcm.set_values(&values);
                    match with_pcm(&pool, pcm, choice) {
                        Err(Error::NoNumbers { who, token: 0, .. }) => assert_eq!(who, "the PCM"),
                        Err(other) => panic!("{other}"),
                        Ok(made) if value.is_nan() => assert_eq!(made, expected, "{places:?}"),
                        Ok(made) => assert!(finite(&made)),
                    }
                }
            }
        }
    }
}

/// Writes a number over one of a tensor's in a file of 32-bit floats.
fn patch(path: &Path, tensor: &str, at: usize, value: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let (header, file) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let start = 8 + header + file.info(tensor).unwrap().data_offsets.0 + 4 * at;
    bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn folders_of_pcms_and_classifiers_are_refused_by_tensor_and_position() {
    let folder = tempfile::tempdir().unwrap();
    let card = ClassifierCard {
        base: "llama".into(),
        window: 3,
        dimensions: ["a", "b"]
            .map(|name| Told {
                name: name.into(),
                low: format!("low {name}"),
                high: format!("high {name}"),
                held_out: Telling::default(),
            })
            .to_vec(),
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let pcm = control(Output::Logs, 32);
        pcm.save(folder.path()).unwrap();
        Pcm::load(folder.path()).unwrap();
        patch(
            &folder.path().join("model.safetensors"),
            "values",
            12,
            value,
        );
        let error = Pcm::load(folder.path()).unwrap_err().to_string();
        let expected = format!("model.safetensors: tensor 'values' holds {value} at [12]");
        assert!(error.contains(&expected), "{error}");
        for name in ["token", "context"] {
            let numbers = || vec![0.5; 2 * 96];
            let fine = Classifier::new(card.clone(), numbers(), numbers()).unwrap();
            fine.save(folder.path()).unwrap();
            Classifier::load(folder.path()).unwrap();
            patch(
                &folder.path().join("classifier.safetensors"),
                name,
                96 + 7,
                value,
            );
            let error = Classifier::load(folder.path()).unwrap_err().to_string();
            let expected =
                format!("classifier.safetensors: tensor '{name}' holds {value} at [1, 7]");
            assert!(error.contains(&expected), "{error}");
        }
        let mut numbers = vec![0.5; 2 * 96];
        numbers[3] = value;
        assert!(Classifier::new(card.clone(), numbers, vec![0.5; 2 * 96]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_drawn_from_what_is_no_distribution(
        mut row in prop::collection::vec(-20.0f32..0.0, 1..200),
        index in any::<prop::sample::Index>(),
        infinite in any::<bool>(),
        uniform in 0.0f64..1.0,
    ) {
        for sampling in samplings() {
            let token = sampling.pick(&row, uniform).unwrap();
            prop_assert!(row[token as usize].is_finite());
        }
        let index = index.index(row.len());
        row[index] = if infinite { f32::INFINITY } else { f32::NAN };
        for sampling in samplings() {
            prop_assert!(sampling.pick(&row, uniform).is_err());
        }
        row.fill(f32::NEG_INFINITY);
        prop_assert!(samplings().iter().all(|s| s.pick(&row, uniform).is_err()));
        row[index] = -0.5;
        for sampling in samplings() {
            prop_assert_eq!(sampling.pick(&row, uniform).unwrap() as usize, index);
        }
    }
}

//! The pool over tiny models: lanes against separate runs, order, common beginnings, what is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use lm::chat::{Message, Prompt, Role};
use mope_experts::{Expert, ExpertPool, ExpertSpec};
use pico::experts;

fn prompts() -> Vec<Prompt> {
    let turns = vec![
        Message::user("one"),
        Message {
            role: Role::Assistant,
            content: "two".into(),
        },
        Message::user("three?"),
    ];
    vec![
        Prompt::Chat(vec![Message::user("Why?")]),
        Prompt::Chat(turns),
        Prompt::Chat(vec![Message::user("a rather long question")]),
        Prompt::Chat(vec![Message::user("b")]),
    ]
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
fn lanes_together_equal_each_expert_and_sequence_alone() {
    let prompts = prompts();
    let all = experts();
    let pool = ExpertPool::new(all.clone()).unwrap();
    let mut together = Default::default();
    let mut state = pool.begin(&prompts, 8, &mut together).unwrap();
    let mut steps = vec![together.clone()];
    for token in [[5, 9, 14, 3], [70, 6, 6, 8]] {
        pool.step(&mut state, &token, &mut together).unwrap();
        steps.push(together.clone());
    }
    for (e, expert) in all.iter().enumerate() {
        let alone = ExpertPool::new(vec![expert.clone()]).unwrap();
        for (s, prompt) in prompts.iter().enumerate() {
            let mut next = Default::default();
            let one = std::slice::from_ref(prompt);
            let mut state = alone.begin(one, 8, &mut next).unwrap();
            close(steps[0].row(e, s), next.row(0, 0), 1e-5);
            for (step, token) in [[5, 9, 14, 3], [70, 6, 6, 8]].iter().enumerate() {
                alone.step(&mut state, &token[s..=s], &mut next).unwrap();
                close(steps[step + 1].row(e, s), next.row(0, 0), 1e-5);
            }
        }
    }
}

#[test]
fn a_limited_expert_shows_its_likeliest_tokens() {
    let base = pico::model("llama");
    let unlimited = pico::spec("plain");
    let limited = ExpertSpec::Limited {
        top_k: 3,
        of: Box::new(unlimited.clone()),
    };
    let row = |spec: &ExpertSpec| {
        let pool = ExpertPool::new(vec![pico::expert("plain", spec, &base)]).unwrap();
        let mut next = Default::default();
        let prompts = &prompts()[..1];
        pool.begin(prompts, 1, &mut next).unwrap();
        next.log_probs
    };
    let (all, seen) = (row(&unlimited), row(&limited));
    assert_eq!(seen.iter().filter(|v| v.is_finite()).count(), 3);
    let mass: f32 = all
        .iter()
        .zip(&seen)
        .filter(|(_, s)| s.is_finite())
        .map(|(a, _)| a.exp())
        .sum();
    for (seen, all) in seen.iter().zip(&all).filter(|(s, _)| s.is_finite()) {
        assert!((seen.exp() - all.exp() / mass).abs() < 1e-6);
    }
    let mut sorted = all.clone();
    sorted.sort_by(f32::total_cmp);
    assert!((mass - sorted[93..].iter().map(|v| v.exp()).sum::<f32>()).abs() < 1e-6);
    assert_eq!(limited.capabilities().top_k, Some(3));
}

#[test]
fn common_beginnings_change_no_bit() {
    let ask =
        |end: &str| Prompt::Chat(vec![Message::user(format!("a rather long question {end}"))]);
    let prompts = [ask("one"), ask("two"), ask("one"), ask("one more")];
    let pool = ExpertPool::new(experts()).unwrap();
    let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut together = Default::default();
    let mut state = pool.begin(&prompts, 4, &mut together).unwrap();
    let first = together.clone();
    pool.step(&mut state, &[7, 8, 7, 9], &mut together).unwrap();
    for (s, prompt) in prompts.iter().enumerate() {
        let mut alone = Default::default();
        let one = std::slice::from_ref(prompt);
        let mut state = pool.begin(one, 4, &mut alone).unwrap();
        for e in 0..5 {
            assert_eq!(bits(first.row(e, s)), bits(alone.row(e, 0)));
        }
        pool.step(&mut state, &[[7, 8, 7, 9][s]], &mut alone)
            .unwrap();
        for e in 0..5 {
            assert_eq!(bits(together.row(e, s)), bits(alone.row(e, 0)));
        }
    }
}

#[test]
fn experts_that_do_not_fit_are_refused_by_name() {
    let folder = pico::copy("qwen3");
    let tokenizer = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap();
    let swapped = text
        .replace("\"A\"", "\"@\"x")
        .replacen("\"@\":", "\"A\":", 1);
    std::fs::write(&tokenizer, swapped.replace("\"@\"x", "\"@\"")).unwrap();
    let base = pico::model("llama");
    let spec = ExpertSpec::Full("other".into());
    let other = Expert::open("other", &spec, &base, |_| pico::open(folder.path())).unwrap();
    let base_alone = Expert::open("base", &ExpertSpec::Base, &base, |_| {
        pico::open(folder.path())
    })
    .unwrap();
    let error = ExpertPool::new(vec![base_alone.clone(), other])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("'base' and 'other' have different vocabularies"),
        "{error}"
    );
    let error = ExpertPool::new(vec![base_alone.clone(), base_alone])
        .unwrap_err()
        .to_string();
    assert!(error.contains("two experts are called 'base'"), "{error}");

    let pool = ExpertPool::new(experts()).unwrap();
    let long = Prompt::Chat(vec![Message::user("x".repeat(130))]);
    let error = pool
        .begin(&[long], 1, &mut Default::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("do not fit into 128"), "{error}");
    let raw = Expert::open("p", &ExpertSpec::Prompted("kind".into()), &base, |_| {
        pico::open(folder.path())
    });
    let error = raw
        .unwrap()
        .tokens(&Prompt::Raw("x".into()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("needs a chat prompt"), "{error}");
}

/// The base with `rows` rows of its embedding, those behind its own filled up.
fn padded(rows: usize) -> tempfile::TempDir {
    use safetensors::tensor::{SafeTensors, TensorView};
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let text = std::fs::read_to_string(pico::path("llama").join(name)).unwrap();
        let size = format!("\"vocab_size\": {rows}");
        let text = text.replace("\"vocab_size\": 96", &size);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let bytes = std::fs::read(pico::path("llama").join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = file.tensors();
    let embedding = tensors
        .iter()
        .position(|(n, _)| n == "model.embed_tokens.weight");
    let view = tensors.swap_remove(embedding.unwrap()).1;
    let width = view.shape()[1];
    let mut data = view.data().to_vec();
    // Large numbers, whose share of a softmax would be seen.
    data.extend((96 * width..rows * width).flat_map(|_| 3f32.to_le_bytes()));
    let view = TensorView::new(view.dtype(), vec![rows, width], &data).unwrap();
    tensors.push(("model.embed_tokens.weight".into(), view));
    let path = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    folder
}

#[test]
fn embeddings_that_are_filled_up_are_one_vocabulary() {
    let base = pico::model("llama");
    let folder = padded(104);
    let open = |name: &str, spec: ExpertSpec| {
        Expert::open(name, &spec, &base, |_| pico::open(folder.path())).unwrap()
    };
    let unchanged = open("own", ExpertSpec::Base);
    let adapted = open("adapted", pico::spec("plain"));
    let other = open("other", ExpertSpec::Full("padded".into()));
    let prompts = prompts();
    for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
        let all = [&unchanged, &other, &adapted].map(Clone::clone);
        let pool = ExpertPool::new(order.map(|i| all[i].clone()).to_vec()).unwrap();
        assert_eq!(pool.vocab(), 96);
        let at = |which: usize| order.iter().position(|i| *i == which).unwrap();
        let mut next = Default::default();
        let mut state = pool.begin(&prompts, 4, &mut next).unwrap();
        for step in 0..2 {
            for s in 0..prompts.len() {
                close(next.row(at(0), s), next.row(at(1), s), 1e-6);
                assert_ne!(next.row(at(0), s), next.row(at(2), s));
                let mass: f32 = next.row(at(1), s).iter().map(|v| v.exp()).sum();
                assert!((mass - 1.0).abs() < 1e-4, "{mass}");
            }
            pool.step(&mut state, &[5, 9, 14 + step, 3], &mut next)
                .unwrap();
        }
    }
    // A row that is a token's is no filling.
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut token = tokenizer["added_tokens"][2].clone();
    token["id"] = 96.into();
    token["content"] = "<late>".into();
    tokenizer["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(token);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let late = open("late", ExpertSpec::Full("padded".into()));
    let error = ExpertPool::new(vec![unchanged, late])
        .unwrap_err()
        .to_string();
    let expected = "96 and 104 entries: only one of them has token 96, \"<late>\"";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn the_order_of_experts_does_not_matter() {
    let prompts = prompts();
    let mut reversed = experts();
    reversed.reverse();
    let (one, other) = (
        ExpertPool::new(experts()).unwrap(),
        ExpertPool::new(reversed).unwrap(),
    );
    let (mut a, mut b) = Default::default();
    one.begin(&prompts, 4, &mut a).unwrap();
    other.begin(&prompts, 4, &mut b).unwrap();
    for e in 0..5 {
        for s in 0..prompts.len() {
            close(a.row(e, s), b.row(4 - e, s), 1e-5);
        }
    }
}

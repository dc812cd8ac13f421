//! Whole merges over tiny models: adapters, models, and both together.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use lm::load::Checkpoint;
use lm::save::Precision;
use lm::{DeviceSpec, Engine, Format};
use mope_mixing::merging::{
    Average, Dare, Merged, Method, ModelStock, Recipe, Soup, Source, TaskArithmetic, Ties,
};
use pico::checkpoint;

fn adapter(name: &str) -> Source {
    Source::Adapter(Arc::new(pico::adapter(name)))
}

/// The same adapter, merged into the base beforehand.
fn whole(name: &str) -> Source {
    let adapter = pico::adapter(name);
    let edit = move |name: &str, _: &[usize], mut values: Vec<f32>| {
        adapter.add_to(name, &mut values)?;
        Ok(values)
    };
    let merged = checkpoint("llama").edited(Box::new(edit));
    Source::Full(Arc::new(merged))
}

fn recipe(method: Method, weights: &[f64]) -> Recipe {
    let names = ["plain", "patterns", "third"];
    Recipe {
        method,
        experts: names[..weights.len()]
            .iter()
            .map(|n| n.to_string())
            .collect(),
        weights: weights.to_vec(),
        seed: 4,
    }
}

fn soup(average: Average) -> Method {
    Method::Soup(Soup { average })
}

fn logits(merged: &Merged) -> Vec<f32> {
    let base = checkpoint("llama");
    let (checkpoint, adapter) = match merged {
        Merged::Adapter(adapter) => (&base, Some(adapter)),
        Merged::Model(model) => (&**model, None),
    };
    let engine = Engine::load(checkpoint, &DeviceSpec::Cpu, Format::F32).unwrap();
    let stack = adapter.map(|a| engine.adapters(&[Some(a)]));
    let ids: Vec<u32> = (0..24).map(|i| (7 * i * i + 3 * i + 1) % 96).collect();
    let mut out = Vec::new();
    engine
        .all_logits(&[&ids], stack.as_ref(), |_, _, row| {
            out.extend_from_slice(row)
        })
        .unwrap();
    out
}

fn close(a: &Merged, b: &Merged) {
    let (a, b) = (logits(a), logits(b));
    let pairs = a.iter().zip(&b);
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "largest difference {worst}");
}

#[test]
fn adapters_and_models_merge_to_the_same() {
    let base = || checkpoint("llama");
    for method in [
        soup(Average::Delta),
        Method::TaskArithmetic(TaskArithmetic { scale: 0.6 }),
        Method::Ties(Ties::default()),
        Method::Dare(Dare::default()),
        Method::ModelStock(ModelStock {}),
    ] {
        let recipe = recipe(method, &[0.3, 0.7]);
        let sources = [adapter("plain"), adapter("patterns")];
        let wholes = [whole("plain"), whole("patterns")];
        let low = recipe.merge(base(), sources.to_vec()).unwrap();
        let exact = matches!(recipe.method, Method::Soup(_) | Method::TaskArithmetic(_));
        assert_eq!(matches!(low, Merged::Adapter(_)), exact);
        close(&low, &recipe.merge(base(), wholes.to_vec()).unwrap());
        let [first, _] = sources;
        let [_, second] = wholes;
        close(&low, &recipe.merge(base(), vec![first, second]).unwrap());
    }
}

#[test]
fn all_weight_on_one_expert_is_that_expert() {
    let base = || checkpoint("llama");
    let only = |merged: &Merged, source: Source| {
        let alone = recipe(soup(Average::Delta), &[1.0]);
        close(merged, &alone.merge(base(), vec![source]).unwrap());
    };
    let hot = recipe(soup(Average::Delta), &[0.0, 1.0]);
    let sources = vec![adapter("plain"), adapter("patterns")];
    let merged = hot.merge(base(), sources).unwrap();
    let Merged::Adapter(got) = &merged else {
        panic!("adapters make an adapter")
    };
    let Source::Adapter(expected) = adapter("patterns") else {
        panic!("it is one")
    };
    assert_eq!(got, &*expected);
    only(&merged, whole("patterns"));
    let shared = recipe(soup(Average::Delta), &[0.0, 0.0, 1.0]);
    let sources = vec![whole("plain"), adapter("plain"), Source::Base];
    let merged = shared.merge(base(), sources).unwrap();
    only(&merged, Source::Base);
}

#[test]
fn a_merged_model_is_written_as_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(Method::Ties(Ties::default()), &[0.5, 0.5]);
    let sources = || vec![adapter("plain"), adapter("patterns")];
    let Merged::Model(model) = recipe.merge(checkpoint("llama.gguf"), sources()).unwrap() else {
        panic!("signs are elected on whole matrices")
    };
    let out = folder.path().join("out");
    model.export(&out, Precision::F32, None).unwrap();
    let again = Checkpoint::open(&out).unwrap();
    close(
        &Merged::Model(Box::new(again)),
        &recipe.merge(checkpoint("llama"), sources()).unwrap(),
    );
}

#[test]
fn models_with_permuted_tokens_are_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(pico::path("llama")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocab["A"].clone(), vocab["B"].clone());
    vocab.insert("A".into(), b);
    vocab.insert("B".into(), a.clone());
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let other = || Source::Full(Arc::new(Checkpoint::open(folder.path()).unwrap()));
    for sources in [vec![other(), adapter("plain")], vec![Source::Base, other()]] {
        let recipe = recipe(soup(Average::Delta), &[0.5, 0.5]);
        let merged = recipe.merge(checkpoint("llama"), sources);
        let error = merged.unwrap_err().to_string();
        assert!(error.contains("has other tokens than the base"), "{error}");
        assert!(error.contains(&format!("token {a} is")), "{error}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let refused = |recipe: Recipe, sources: Vec<Source>| {
        let merged = recipe.merge(checkpoint("llama"), sources);
        merged.unwrap_err().to_string()
    };
    let factor = || recipe(soup(Average::Factor), &[0.5, 0.5]);
    for (recipe, sources, message) in [
        (
            factor(),
            vec![adapter("plain"), adapter("patterns")],
            "take Soup(average: Delta)",
        ),
        (
            factor(),
            vec![whole("plain"), whole("patterns")],
            "for whole models take Soup()",
        ),
        (
            factor(),
            vec![adapter("plain"), Source::Base],
            "the base has no factors",
        ),
        (
            recipe(soup(Average::Delta), &[0.5, 0.5]),
            vec![
                adapter("plain"),
                Source::Full(Arc::new(checkpoint("qwen3"))),
            ],
            "expert 'patterns'",
        ),
        (
            recipe(soup(Average::Delta), &[0.5, 0.5]),
            vec![adapter("plain")],
            "differ in number",
        ),
    ] {
        let error = refused(recipe, sources);
        assert!(error.contains(message), "{error}");
    }
    // One and the same adapter twice: both averages are that adapter.
    let same = || vec![adapter("plain"), adapter("plain")];
    let base = || checkpoint("llama");
    let delta = recipe(soup(Average::Delta), &[0.5, 0.5]);
    close(
        &factor().merge(base(), same()).unwrap(),
        &delta.merge(base(), same()).unwrap(),
    );
}

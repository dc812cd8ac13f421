//! Every merging method against mergekit (`scripts/fixtures/merging.py`), and what must hold for any
//! tensors.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeSet, HashMap};

use mope_mixing::merging::{
    Breadcrumbs, Dare, Della, Instance, Method, ModelStock, Part, Ram, Slerp, Soup, TaskArithmetic,
    Tensors, Ties,
};
use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};
use safetensors::SafeTensors;

const NAMES: [&str; 2] = [
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.input_layernorm.weight",
];

/// The script's numbers.
fn uniform(model: usize, count: usize) -> Vec<f64> {
    let start = 0.31 * (model + 1) as f64;
    let numbers = (0..count).map(|i| (i as f64 * 0.618_033_988_749_894_9 + start) % 1.0);
    numbers.collect()
}

fn fixture() -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = include_bytes!("fixtures/merging.safetensors");
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, tensor)| {
        let values = tensor
            .data()
            .chunks(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        (name, (tensor.shape().to_vec(), values.collect()))
    });
    tensors.collect()
}

#[test]
fn methods_equal_mergekit() {
    let fixture = fixture();
    let (mut failed, mut seen) = (Vec::new(), Vec::new());
    for Instance {
        method, reference, ..
    } in Method::instances()
    {
        let Some((key, models)) = reference else {
            continue;
        };
        for name in NAMES {
            let (shape, base) = &fixture[&format!("base.{name}")];
            let parts: Vec<Part> = models
                .iter()
                .map(|(m, _)| Part::Whole(fixture[&format!("{m}.{name}")].1.clone()))
                .collect();
            let weights: Vec<f64> = models.iter().map(|(_, w)| *w).collect();
            let merged = method.merge(&Tensors {
                shape,
                base,
                parts: &parts,
                weights: &weights,
                chance: &|model| uniform(model, base.len()),
            });
            let expected = &fixture[&format!("{key}.{name}")].1;
            let pairs = merged.iter().zip(expected);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{key} {name}: largest difference {worst:e}");
            if worst >= 1e-6 {
                failed.push(format!("{key} {name}: {worst}"));
            }
        }
        seen.push(key);
    }
    assert!(failed.is_empty(), "{failed:#?}");
    // What the script made, and nothing else.
    let models = ["base", "a", "b", "c"];
    let keys = fixture.keys().filter_map(|key| key.split('.').next());
    let expected: BTreeSet<&str> = keys.filter(|key| !models.contains(key)).collect();
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
}

fn merge(method: &Method, base: &[f32], parts: &[Part], weights: &[f64]) -> Vec<f32> {
    method.merge(&Tensors {
        shape: &[base.len() / 4, 4],
        base,
        parts,
        weights,
        chance: &|model| uniform(model, base.len()),
    })
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

proptest! {
    #[test]
    fn what_holds_for_any_tensors(
        base in prop::collection::vec(-1f32..1.0, 16),
        one in prop::collection::vec(-1f32..1.0, 16),
        two in prop::collection::vec(-1f32..1.0, 16),
        share in 0.1f64..0.9,
    ) {
        let wholes = [Part::Whole(one.clone()), Part::Whole(two.clone())];
        let delta = |v: &[f32]| Part::Delta(v.iter().zip(&base).map(|(v, b)| v - b).collect());
        let deltas = [delta(&one), delta(&two)];
        let weights = [share, 1.0 - share];
        for Instance { method, random, .. } in Method::instances() {
            // Without differences there is nothing to do.
            prop_assert_eq!(&merge(&method, &base, &[Part::Same, Part::Same], &weights), &base);
            // A change counts the same however it is given.
            let (a, b) = (merge(&method, &base, &wholes, &weights), merge(&method, &base, &deltas, &weights));
            prop_assert!(worst(&a, &b) < 1e-5, "{:?}", method);
            if method.reproduces_single_expert() {
                prop_assert_eq!(&merge(&method, &base, &wholes, &[1.0, 0.0]), &one, "{:?}", method);
                prop_assert_eq!(&merge(&method, &base, &wholes, &[0.0, 1.0]), &two, "{:?}", method);
            }
            // The order of experts does not matter, except to chance.
            if !random {
                let turned = [wholes[1].clone(), wholes[0].clone()];
                let other = merge(&method, &base, &turned, &[1.0 - share, share]);
                prop_assert!(worst(&a, &other) < 1e-5, "{:?}", method);
            }
            if !method.weighted() {
                prop_assert_eq!(&a, &merge(&method, &base, &wholes, &[0.5, 0.5]), "{:?}", method);
            }
        }
        // Methods that drop nothing are task arithmetic, or its sign election.
        let plain = merge(&Method::TaskArithmetic(TaskArithmetic::default()), &base, &wholes, &weights);
        let all = Dare { density: 1.0, ..Dare::default() };
        prop_assert!(worst(&merge(&Method::Dare(all), &base, &wholes, &weights), &plain) < 1e-5);
        let none = Breadcrumbs { smallest: 0.0, largest: 0.0, scale: 1.0 };
        prop_assert!(worst(&merge(&Method::Breadcrumbs(none), &base, &wholes, &weights), &plain) < 1e-5);
        let elected = merge(&Method::Ties(Ties { density: 1.0, scale: 1.0 }), &base, &wholes, &weights);
        let even = Della { density: 1.0, window: 0.0, ..Della::default() };
        prop_assert!(worst(&merge(&Method::Della(even), &base, &wholes, &weights), &elected) < 1e-5);
    }

    #[test]
    fn random_drops_keep_the_mean(density in 0.2f64..1.0) {
        // Rescaled drops of equal differences: what is lost and what is gained cancel.
        let n = 40_000;
        let (base, part) = (vec![0.0; n], [Part::Delta(vec![1.0; n])]);
        let window = 0.2f64.min(2.0 * (1.0 - density)).min(density);
        for method in [
            Method::Dare(Dare { density, ..Dare::default() }),
            Method::Della(Della { density, window, ..Della::default() }),
        ] {
            let merged = merge(&method, &base, &part, &[1.0]);
            if matches!(method, Method::Dare(_)) {
                let mean = merged.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
                prop_assert!((mean - 1.0).abs() < 0.03, "{:?}: {}", method, mean);
            }
            prop_assert!(merged.iter().all(|v| *v == 0.0 || *v >= 0.99));
        }
    }
}

#[test]
fn values_by_hand() {
    let base = [0.0, 0.0, 0.0, 0.0];
    let one = Part::Delta(vec![4.0, -1.0, 0.5, 0.0]);
    let two = Part::Delta(vec![-2.0, -3.0, 0.0, 0.0]);
    let parts = [one, two];
    // Kept: {4, -1} and {-2, -3}; the sum of the first column is positive, so -2 is left out.
    let ties = Method::Ties(Ties {
        density: 0.5,
        scale: 1.0,
    });
    assert_eq!(
        merge(&ties, &base, &parts, &[0.5, 0.5]),
        [4.0, -2.0, 0.0, 0.0]
    );
    // Shared changes are averaged, the third column is one expert's own.
    let ram = Method::Ram(Ram::default());
    assert_eq!(
        merge(&ram, &base, &parts, &[0.5, 0.5]),
        [1.0, -2.0, 0.5, 0.0]
    );
    assert_eq!(
        merge(&ram, &base, &parts, &[1.0, 0.0]),
        [4.0, -1.0, 0.5, 0.0]
    );
    // The largest and the two smallest of each are left out.
    let crumbs = Method::Breadcrumbs(Breadcrumbs {
        smallest: 0.5,
        largest: 0.25,
        scale: 2.0,
    });
    assert_eq!(
        merge(&crumbs, &base, &parts, &[0.5, 0.5]),
        [-2.0, -1.0, 0.0, 0.0]
    );
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for (method, experts, message) in [
        (Method::Slerp(Slerp {}), 3, "an arc has two ends, not 3"),
        (Method::ModelStock(ModelStock {}), 1, "at least two experts"),
        (Method::Soup(Soup::default()), 0, "at least one expert"),
        (
            Method::Ties(Ties {
                density: 0.0,
                scale: 1.0,
            }),
            2,
            "density is 0",
        ),
        (
            Method::Dare(Dare {
                density: 1.5,
                ..Dare::default()
            }),
            2,
            "density is 1.5",
        ),
        (
            Method::Della(Della {
                density: 0.95,
                ..Della::default()
            }),
            2,
            "chances run from",
        ),
        (
            Method::Breadcrumbs(Breadcrumbs {
                smallest: 0.9,
                largest: 0.1,
                scale: 1.0,
            }),
            2,
            "leave nothing",
        ),
        (
            Method::TaskArithmetic(TaskArithmetic { scale: f64::NAN }),
            2,
            "scale is NaN",
        ),
        (Method::Ram(Ram { threshold: -1.0 }), 2, "threshold is -1"),
    ] {
        let error = method.check(experts).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

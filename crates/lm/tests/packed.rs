//! The packed decoder on tiny models of every shape: against transformers and peft, and lanes that never
//! feel each other, bit for bit.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{close, expected, pico_ids};
use mope_lm::Adapter;
use mope_lm::Format;
use mope_lm::packed::{PackedAdapters, PackedCache, PackedDecoder};

const SHAPES: [&str; 6] = [
    "llama",
    "llama_untied_biases",
    "llama3_rope",
    "mistral_window",
    "qwen2",
    "qwen3",
];
const VOCAB: usize = 96;
const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Q8, Format::Q4];

fn pico(name: &str, weights: Format) -> PackedDecoder {
    PackedDecoder::load(&pico::checkpoint(name), weights).unwrap()
}

fn all(decoder: &PackedDecoder, lanes: &[&[u32]], adapters: Option<&PackedAdapters>) -> Vec<f32> {
    let longest = lanes.iter().map(|l| l.len()).max().unwrap();
    let mut cache = decoder.cache(lanes.len(), longest);
    let mut out = Vec::new();
    decoder
        .all_logits(lanes, &mut cache, adapters, |_, row| {
            out.extend_from_slice(row)
        })
        .unwrap();
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn logits_equal_transformers() {
    for shape in SHAPES {
        let expected = expected(&format!("pico/{shape}/expected.safetensors"), "logits");
        close(
            shape,
            &all(&pico(shape, Format::F32), &[&pico_ids()], None),
            &expected,
            1e-4,
        );
    }
}

#[test]
fn adapters_equal_peft_alone_and_together() {
    let decoder = pico("llama", Format::F32);
    let load = |name: &str| {
        let folder = pico::path(&format!("adapter_{name}"));
        Adapter::load(&folder, decoder.config()).unwrap()
    };
    let (plain, patterns) = (load("plain"), load("patterns"));
    let adapters = [Some(&plain), None, Some(&patterns)];
    let ids = pico_ids();
    let packed = decoder.adapters(&adapters);
    let together = all(&decoder, &[ids.as_slice(); 3], Some(&packed));
    for (i, name) in ["logits_plain", "logits", "logits_patterns"]
        .into_iter()
        .enumerate()
    {
        let lane = &together[i * 24 * VOCAB..][..24 * VOCAB];
        close(
            name,
            lane,
            &expected("pico/llama/expected.safetensors", name),
            1e-4,
        );
        let alone = decoder.adapters(&adapters[i..=i]);
        assert_eq!(bits(lane), bits(&all(&decoder, &[&ids], Some(&alone))));
    }
}

/// Prefill in pieces, other lanes, other lengths: always the same bits.
#[test]
fn a_lane_is_the_same_in_any_company() {
    let ids = pico_ids();
    for shape in SHAPES {
        for weights in FORMATS {
            let decoder = pico(shape, weights);
            let expected_all = all(&decoder, &[&ids], None);
            let lanes: [&[u32]; 4] = [&ids[3..9], &ids, &ids[1..2], &ids[..20]];
            let ragged = all(&decoder, &lanes, None);
            assert_eq!(
                bits(&ragged[6 * VOCAB..][..24 * VOCAB]),
                bits(&expected_all),
                "{shape} {weights:?}"
            );

            let mut cache = decoder.cache(3, 40);
            let mut scratch = Default::default();
            let mut logits = vec![0.0; 3 * VOCAB];
            let mut at = 0;
            for step in [7, 1, 1, 5, 1, 9] {
                let part = &ids[at..at + step];
                let lanes: [&[u32]; 3] = [&ids[..1], part, &ids[2..4]];
                decoder
                    .next_logits(&lanes, &mut cache, None, &mut scratch, &mut logits)
                    .unwrap();
                at += step;
                let expected = &expected_all[(at - 1) * VOCAB..at * VOCAB];
                assert_eq!(
                    bits(&logits[VOCAB..2 * VOCAB]),
                    bits(expected),
                    "{shape} {weights:?}"
                );
            }
        }
    }
}

/// How many threads work follows from what else runs on the machine, and may change in the middle of a pass.
#[test]
fn the_number_of_threads_changes_no_bit() {
    if !pico::on_one_thread_and_on_two("the_number_of_threads_changes_no_bit") {
        return;
    }
    let team = kernels::Team::global();
    let lanes: Vec<Vec<u32>> = (0..3)
        .map(|l| (0..70).map(|i| (i * i + l) % 96).collect())
        .collect();
    let views: Vec<&[u32]> = lanes.iter().map(Vec::as_slice).collect();
    for weights in FORMATS {
        let decoder = pico("qwen3", weights);
        team.limit(1);
        let alone = bits(&all(&decoder, &views, None));
        team.limit(team.size());
        assert_eq!(bits(&all(&decoder, &views, None)), alone, "{weights:?}");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for members in (1..=team.size()).cycle() {
                    team.limit(members);
                    std::thread::sleep(Duration::from_micros(20));
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            for _ in 0..20 {
                assert_eq!(bits(&all(&decoder, &views, None)), alone, "{weights:?}");
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn some_lanes_read_while_others_wait() {
    let ids = pico_ids();
    for shape in SHAPES {
        for weights in FORMATS {
            let decoder = pico(shape, weights);
            let expected = all(&decoder, &[&ids], None);
            let row = |at: usize| bits(&expected[(at - 1) * VOCAB..at * VOCAB]);
            let mut cache = decoder.cache_of(&[24, 0, 12]);
            let mut logits = vec![0.0; 2 * VOCAB];
            let fill = |cache: &mut PackedCache, lanes: [&[u32]; 3], logits: Option<&mut [f32]>| {
                let mut scratch = Default::default();
                let read = decoder.fill(&lanes, cache, None, &mut scratch, logits);
                read.unwrap();
            };
            fill(&mut cache, [&ids[..9], &[], &[]], None);
            assert_eq!(cache.lengths(), [9, 0, 0]);
            // Another lane goes on from a part of what the first has read.
            let part = cache.prefix(0, 5, 24).unwrap();
            assert_eq!(part.lengths(), [5]);
            cache.replace(1, part).unwrap();
            let lanes: [&[u32]; 3] = [&[], &ids[5..24], &ids[..12]];
            fill(&mut cache, lanes, Some(&mut logits));
            assert_eq!(
                bits(&logits),
                [row(24), row(12)].concat(),
                "{shape} {weights:?}"
            );
            let lanes: [&[u32]; 3] = [&ids[9..24], &[], &[]];
            fill(&mut cache, lanes, Some(&mut logits[..VOCAB]));
            assert_eq!(bits(&logits[..VOCAB]), row(24), "{shape} {weights:?}");
            assert!(cache.prefix(3, 1, 1).is_err());
            assert!(cache.replace(0, decoder.cache(2, 4)).is_err());
        }
    }
}

#[test]
fn lanes_leave_fork_and_forget() {
    let decoder = pico("qwen3", Format::Q8);
    let ids = pico_ids();
    let mut cache = decoder.cache(2, 40);
    let mut scratch = Default::default();
    let mut logits = vec![0.0; 2 * VOCAB];
    let lanes: [&[u32]; 2] = [&ids[..6], &ids[..9]];
    decoder
        .next_logits(&lanes, &mut cache, None, &mut scratch, &mut logits)
        .unwrap();
    cache.truncate(0, 4);
    cache.truncate(1, 5);
    assert_eq!(cache.lengths(), [4, 5]);
    let mut forked = cache.fork(&[1, 0, 1]).unwrap();
    let next: [&[u32]; 3] = [&ids[5..7], &ids[4..8], &ids[5..6]];
    let mut logits = vec![0.0; 3 * VOCAB];
    decoder
        .next_logits(&next, &mut forked, None, &mut scratch, &mut logits)
        .unwrap();
    for (lane, end) in [7, 8, 6].into_iter().enumerate() {
        let at_once = all(&decoder, &[&ids[..end]], None);
        assert_eq!(
            bits(&logits[lane * VOCAB..][..VOCAB]),
            bits(&at_once[(end - 1) * VOCAB..])
        );
    }
    forked.retain(&[2, 0]).unwrap();
    assert_eq!(forked.lengths(), [6, 7]);
    let mut logits = vec![0.0; 2 * VOCAB];
    let next: [&[u32]; 2] = [&ids[6..8], &ids[7..8]];
    decoder
        .next_logits(&next, &mut forked, None, &mut scratch, &mut logits)
        .unwrap();
    assert_eq!(bits(&logits[..VOCAB]), bits(&logits[VOCAB..]));
    assert!(cache.fork(&[2]).is_err() && cache.retain(&[0, 0]).is_err());
}

/// More rows than one pass holds.
#[test]
fn long_prompts_are_read_in_several_passes() {
    let decoder = pico("mistral_window", Format::F32);
    let lanes: Vec<Vec<u32>> = (0..5)
        .map(|l| (0..100).map(|i| (i * i + l) % 96).collect())
        .collect();
    let views: Vec<&[u32]> = lanes.iter().map(Vec::as_slice).collect();
    let together = all(&decoder, &views, None);
    for (i, lane) in views.iter().enumerate() {
        let alone = all(&decoder, &[lane], None);
        assert_eq!(
            bits(&together[i * 100 * VOCAB..][..100 * VOCAB]),
            bits(&alone)
        );
    }
}

#[test]
fn impossible_requests_are_refused_and_change_nothing() {
    let decoder = pico("llama", Format::F32);
    let mut cache = decoder.cache(2, 16);
    let stack = decoder.adapters(&[None, None, None]);
    let long: Vec<u32> = vec![1; 200];
    let cases: [(&[&[u32]], _, &str); 6] = [
        (&[&[1]], None, "1 lanes of tokens for a cache of 2"),
        (&[&[], &[1]], None, "no token to continue from"),
        (
            &[&[1], &[96]],
            None,
            "token 96 is outside of the vocabulary of 96",
        ),
        (
            &[&[1], &long],
            None,
            "200 tokens do not fit into 128 (the model's context)",
        ),
        (
            &[&[1], &long[..17]],
            None,
            "17 tokens do not fit into 16 (the capacity",
        ),
        (&[&[1], &[2]], Some(&stack), "2 lanes for 3 experts"),
    ];
    for (lanes, adapters, message) in cases {
        let (mut scratch, mut logits) = (Default::default(), vec![0.0; 2 * VOCAB]);
        let result = decoder.next_logits(lanes, &mut cache, adapters, &mut scratch, &mut logits);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(cache.lengths(), [0, 0]);
    }
}

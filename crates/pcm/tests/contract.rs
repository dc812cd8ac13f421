//! The contract of mixing probabilities: an epoch runs no expert and builds nothing as wide as their vocabulary.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use lm::tuning::AdamWState;
use mope_pcm::{
    Context, Credit, Pcm, PcmConfig, PcmTrainer, Prefixes, Rollout, TrainerConfig, read_rollouts,
    write_rollouts,
};

/// The largest piece of memory that was asked for.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Watching;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Twenty times that of SmolLM2, so that one distribution is larger than any buffer of a matrix product.
const VOCAB: usize = 1_000_000;
const EXPERTS: usize = 6;
const TOKENS: usize = 24;

fn rollout(number: usize) -> Rollout {
    let token = |t: usize| ((number * 7919 + t * 104_729) % VOCAB) as u32;
    Rollout {
        prompt: (number / 2).to_string(),
        context: Context {
            tokens: (0..20).map(token).collect(),
            shares: vec![1.0 / EXPERTS as f32; EXPERTS],
            statistics: Vec::new(),
        },
        tokens: (20..20 + TOKENS).map(token).collect(),
        log_probs: (0..TOKENS * EXPERTS)
            .map(|i| -1.0 - ((i + number) % 7) as f32)
            .collect(),
        behaviour: vec![-2.0; TOKENS],
        utility: (number % 3) as f64,
        prefixes: Prefixes {
            cuts: vec![8, 16, TOKENS as u32],
            utilities: vec![0.5, 1.0, (number % 3) as f64],
            ..Prefixes::default()
        },
        ..Rollout::default()
    }
}

#[test]
fn an_epoch_runs_no_expert_and_builds_nothing_as_wide_as_their_vocabulary() {
    // What the crate cannot name it cannot run.
    let manifest = include_str!("../Cargo.toml");
    for other in ["experts", "eval", "mixing"] {
        let names = manifest
            .lines()
            .filter_map(|line| line.split(['.', ' ', '=']).next());
        assert!(names.into_iter().all(|name| name != other), "{other}");
    }
    // Records of a million kinds of tokens; they alone are what it learns from.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollouts.parquet");
    let all: Vec<Rollout> = (0..16).map(rollout).collect();
    write_rollouts(&path, &all).unwrap();
    let rollouts = read_rollouts(&path).unwrap();
    let names = ["a", "b", "c", "d", "e", "f"];
    let config = PcmConfig {
        hidden: 16,
        layers: 2,
        heads: 2,
        intermediate: 32,
        ..PcmConfig::tiny(&names, 16)
    };
    let embed = |token: u32, out: &mut [f32]| {
        for (i, out) in out.iter_mut().enumerate() {
            *out = ((token as usize + i) % 5) as f32 - 2.0;
        }
    };
    for credit in [Credit::Response, Credit::Segments { lambda: 0.5 }] {
        let settings = TrainerConfig {
            credit,
            epochs: 1,
            ..TrainerConfig::default()
        };
        let pcm = Pcm::new(&config, 1).unwrap();
        let mut trainer = PcmTrainer::new(pcm, settings, AdamWState::default(), 0).unwrap();
        let before = trainer.pcm.values().to_vec();
        LARGEST.store(0, Ordering::Relaxed);
        trainer.fit(&rollouts, &embed, &[]).unwrap();
        let largest = LARGEST.load(Ordering::Relaxed);
        assert_ne!(before, trainer.pcm.values());
        // One distribution of one expert would be this large.
        assert!(largest < VOCAB * size_of::<f32>(), "{largest} bytes");
    }
}

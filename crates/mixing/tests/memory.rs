//! Decoding takes no more memory the longer it goes on. A test of its own: it counts this process's
//! allocations.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use experts::{Expert, ExpertPool};
use lm::Format;
use lm::chat::Prompt;
use lm::sampling::{Draws, Sampling};
use mope_mixing::strategies::Uniform;
use mope_mixing::{Generation, Generator, Preference, Request, Strategy};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn memory_stays_flat_over_10_000_tokens() {
    for format in [Format::F32, Format::Q8] {
        let base = pico::open_in(&pico::path("llama"), format).unwrap();
        let experts: Vec<Expert> = ["patterns", "plain"]
            .iter()
            .map(|name| pico::expert(name, &pico::spec(name), &base))
            .collect();
        let names: Vec<&str> = experts.iter().map(|e| e.name.as_str()).collect();
        let preference = Preference {
            text: String::new(),
            importances: names.iter().map(|n| (n.to_string(), 1.0)).collect(),
        };
        let plan = Strategy::Uniform(Uniform::default()).plan(&preference, &names);
        let pool = ExpertPool::new(experts.clone()).unwrap();
        // Nothing ends by itself.
        let mut generator = Generator::new(&pool, plan.unwrap(), &[]).unwrap();
        let settings = Generation {
            max_new_tokens: 100,
            sampling: Sampling {
                temperature: 0.7,
                ..Sampling::GREEDY
            },
            ..Generation::default()
        };
        let (mut live, mut peak, mut tokens) = (0, 0, 0);
        for round in 0..26 {
            let request = |i: usize| Request {
                prompt: Prompt::Raw("one two".into()),
                draws: Draws::new(&[&[round as u8, i as u8]]),
            };
            PEAK.store(LIVE.load(Relaxed), Relaxed);
            // Sequences leave and join: two at a time of four.
            let requests = (0..4).map(request).collect();
            let made = generator
                .generate(requests, 2, &settings, |_, _| ())
                .unwrap();
            tokens += made.iter().map(|r| r.tokens.len()).sum::<usize>();
            drop(made);
            let now = (LIVE.load(Relaxed), PEAK.load(Relaxed));
            if round == 1 {
                (live, peak) = now;
            } else if round > 1 {
                assert_eq!(now, (live, peak), "{format:?}, round {round}");
            }
        }
        assert!(tokens > 10_000, "{tokens}");
        // Within a response a step makes a few small vectors, late as early; its own grow now and then.
        let long = Generation {
            max_new_tokens: 110,
            ..settings
        };
        let request = Request {
            prompt: Prompt::Raw("one two".into()),
            draws: Draws::new(&[b"long"]),
        };
        let mut calls = Vec::with_capacity(200);
        let count = |_: usize, _: &mope_mixing::Response| calls.push(CALLS.load(Relaxed));
        generator.generate(vec![request], 1, &long, count).unwrap();
        let steps: Vec<usize> = calls.windows(2).map(|w| w[1] - w[0]).collect();
        let mut sorted = steps.clone();
        sorted.sort_unstable();
        let usual = sorted[sorted.len() / 2];
        assert!(usual < 10, "{steps:?}");
        let late = &steps[steps.len() / 2..];
        let more = late.iter().filter(|s| **s > usual).count();
        assert!(more <= 1, "{steps:?}");
    }
}

//! Prompts that are read once: nothing that follows changes by a bit, what is kept fits into its memory, and what is
//! needed soonest stays.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use lm::Format;
use lm::chat::{Message, Prompt};
use mope_experts::prompts::PromptKey;
use mope_experts::{Expert, ExpertPool, NextTokens, PromptCache};

fn ask(text: &str) -> Prompt {
    Prompt::Chat(vec![Message::user(text)])
}

fn bits(next: &NextTokens) -> Vec<u32> {
    next.log_probs.iter().map(|v| v.to_bits()).collect()
}

/// The distributions after the prompts and after each of a few tokens.
fn respond(pool: &ExpertPool, prompts: &[Prompt]) -> Vec<Vec<u32>> {
    let mut next = NextTokens::default();
    let mut state = pool.begin(prompts, 4, &mut next).unwrap();
    let mut all = vec![bits(&next)];
    for token in [7, 30, 11] {
        let tokens: Vec<u32> = (token..).take(prompts.len()).collect();
        pool.step(&mut state, &tokens, &mut next).unwrap();
        all.push(bits(&next));
    }
    all
}

fn pool(experts: &[Expert], prompts: &Arc<PromptCache>) -> ExpertPool {
    let pool = ExpertPool::new(experts.to_vec()).unwrap();
    pool.with_prompts(prompts.clone())
}

/// Batches that repeat prompts, within themselves and of each other, and that share beginnings of all lengths.
fn batches() -> [Vec<Prompt>; 5] {
    [
        vec![ask("why is the sky blue?"), ask("b")],
        vec![ask("b"), ask("why is the sky green?"), ask("b")],
        vec![
            ask("why is the sky green, if it is?"),
            ask("why is the sky"),
        ],
        vec![ask("why is the sky blue?"); 3],
        vec![
            ask("c"),
            ask("why is the sea blue?"),
            ask("why is the sea?"),
        ],
    ]
}

#[test]
fn what_was_read_before_changes_no_bit_in_any_format() {
    for format in [Format::F32, Format::Bf16, Format::Q8, Format::Q4] {
        let base = pico::open_in(&pico::path("llama"), format).unwrap();
        let names = ["base", "full", "patterns", "plain", "prompted"];
        let open = |name: &&str| pico::expert(name, &pico::spec(name), &base);
        let experts: Vec<Expert> = names.iter().map(open).collect();
        let prompts = Arc::new(PromptCache::new(1 << 24));
        // Pools of some of the experts share what was read.
        for chosen in [&experts[2..4], &experts[..], &experts[..1], &experts[1..]] {
            for batch in batches() {
                let alone = ExpertPool::new(chosen.to_vec()).unwrap();
                let expected = respond(&alone, &batch);
                assert_eq!(
                    respond(&pool(chosen, &prompts), &batch),
                    expected,
                    "{format:?}"
                );
            }
        }
        let reading = prompts.reading();
        // Eight questions, each once for every expert; "base" and "prompted" read different ones.
        assert_eq!(
            (reading.asked, reading.read),
            (13 * 12, 5 * 8),
            "{format:?}"
        );
        assert!(
            reading.tokens_read < reading.tokens_asked / 3,
            "{reading:?}"
        );
        prompts.clear();
        assert_eq!(prompts.used(), 0);
    }
}

#[test]
fn likelihoods_of_prompts_are_the_same_and_read_once() {
    let experts = pico::experts();
    let batch = [ask("why?"), ask("b"), ask("why?")];
    let expected = ExpertPool::new(experts.clone()).unwrap();
    let expected = expected.prompt_nll(&batch).unwrap();
    let prompts = Arc::new(PromptCache::new(1 << 20));
    let pool = pool(&experts, &prompts);
    assert_eq!(pool.prompt_nll(&batch).unwrap(), expected);
    let read = prompts.reading().read;
    assert_eq!(pool.prompt_nll(&batch[1..]).unwrap(), expected[1..]);
    assert_eq!(prompts.reading().read, read);
}

#[test]
fn what_is_needed_soonest_stays_within_the_budget() {
    let experts = &pico::experts()[..1];
    let questions = ["a?", "b?", "c?", "d?"].map(ask);
    let keys = questions.clone().map(|question| {
        let tokens = experts[0].tokens(&question).unwrap();
        PromptKey::new(&experts[0], tokens)
    });
    // Room for two of them.
    let measure = Arc::new(PromptCache::new(1 << 20));
    respond(&pool(experts, &measure), &questions[..1]);
    let budget = measure.used() * 5 / 2;
    // By question, the steps that ask for it.
    let uses = [vec![0, 5], vec![1, 3, 4], vec![2, 6], vec![7]];
    let mut steps = [0; 8];
    for (question, uses) in uses.iter().enumerate() {
        uses.iter()
            .for_each(|&step| steps[step as usize] = question);
    }
    let read = |known: bool| {
        let prompts = Arc::new(PromptCache::new(budget));
        let pool = pool(experts, &prompts);
        if known {
            prompts.expect(keys.clone().into_iter().zip(uses.clone()));
        }
        let mut reads = Vec::new();
        for (step, &question) in steps.iter().enumerate() {
            prompts.begin(step as u64);
            let before = prompts.reading();
            respond(&pool, &questions[question..=question]);
            assert!(prompts.used() <= budget);
            reads.push((prompts.reading() - before).read);
        }
        (reads, prompts.used())
    };
    // Step 2 reads "c?", whose next use is farther away than those of "a?" and "b?".
    assert_eq!(read(true), (vec![1, 1, 1, 0, 0, 0, 1, 1], 0));
    // Without knowing: "a?" is the one that was used longest ago when "c?" comes.
    let (reads, used) = read(false);
    assert_eq!(reads, [1, 1, 1, 0, 0, 1, 1, 1]);
    assert!(used > 0);
    // A prompt that fits nowhere is read each time.
    let none = Arc::new(PromptCache::new(1));
    let pool = pool(experts, &none);
    let expected = respond(&pool, &questions[..1]);
    assert_eq!(respond(&pool, &questions[..1]), expected);
    assert_eq!((none.reading().read, none.used()), (2, 0));
}

#[test]
fn experts_that_are_gone_are_not_taken_for_new_ones() {
    let batch = [ask("why?")];
    let prompts = Arc::new(PromptCache::new(1 << 24));
    let base = pico::model(pico::BASE);
    // Adapters that come and go may lie in the same memory.
    for name in ["plain", "patterns", "plain", "patterns"] {
        let expert = pico::expert(name, &pico::spec(name), &base);
        let expected = respond(&ExpertPool::new(vec![expert.clone()]).unwrap(), &batch);
        assert_eq!(respond(&pool(&[expert], &prompts), &batch), expected);
    }
    assert_eq!(prompts.reading().read, 4);
}

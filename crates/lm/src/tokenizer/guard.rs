//! What stands between the program and a tokenizer that a stranger wrote: the library panics on some files that its
//! reader accepts, and some normalisers make a text longer without bound.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use serde_json::Value;

/// How often a byte of a text may be there after normalising (ours). T5, LLaMA and all published ones stay under 4.
const GROWTH: usize = 256;
/// Longest text that a normaliser may put before each piece, in bytes (ours).
const PREPENDED: usize = 256;

thread_local! {
    /// A panic on this thread will be reported as an error.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of the library; a panic in it becomes an error, and nothing of it reaches stderr.
pub(super) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                before(panic);
            }
        }));
    });
    let quiet = QUIET.replace(true);
    // What panicked is not used again, or is only read.
    let result = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(quiet);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        let text: String = text.unwrap_or("no message").chars().take(200).collect();
        format!("the tokenizer is damaged: it broke off ({text})")
    })
}

/// Refuses normalisers and decoders that may make a text over [`GROWTH`] times as long.
pub(super) fn bounded(tokenizer: &Value) -> Result<(), String> {
    for part in ["normalizer", "decoder"] {
        let factor = tokenizer.get(part).map_or(Ok(1), growth)?;
        if factor > GROWTH {
            return Err(format!(
                "its {part} may make a text {factor} times as long; {GROWTH} are allowed"
            ));
        }
    }
    Ok(())
}

/// How many bytes may come out for one that goes in.
fn growth(part: &Value) -> Result<usize, String> {
    let length = |key: &str| part.get(key).and_then(Value::as_str).map_or(0, str::len);
    match part.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let parts = ["normalizers", "decoders"];
            let parts = parts.iter().filter_map(|key| part.get(*key)?.as_array());
            parts.flatten().try_fold(1usize, |product, part| {
                Ok(product.saturating_mul(growth(part)?))
            })
        }
        Some("Replace") => {
            let pattern = part.pointer("/pattern/String").and_then(Value::as_str);
            // A regular expression may match a single byte, or none.
            let (from, more) =
                pattern.map_or((1, 1), |p| (p.len().max(1), usize::from(p.is_empty())));
            Ok((length("content").div_ceil(from) + more).max(1))
        }
        Some("Prepend") if length("prepend") == 0 || length("prepend") > PREPENDED => {
            let bytes = length("prepend");
            Err(format!(
                "its normaliser prepends {bytes} bytes, not 1 to {PREPENDED}"
            ))
        }
        _ => Ok(1),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn growth_is_the_product_of_a_sequence() {
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
        assert_eq!(growth(&replace(" ", "▁")), Ok(3));
        assert_eq!(growth(&replace("``", "\"")), Ok(1));
        assert_eq!(
            growth(&sequence(vec![replace("a", "bbbb"), replace("b", "aaaa")])),
            Ok(16)
        );
        let doubling = sequence(vec![replace("a", "aa"); 60]);
        assert!(bounded(&json!({"normalizer": doubling})).is_err());
        assert!(bounded(&json!({"normalizer": null, "decoder": sequence(vec![])})).is_ok());
    }

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let broken = caught(|| -> u32 { panic!("number {}", 7) });
        assert_eq!(
            broken,
            Err("the tokenizer is damaged: it broke off (number 7)".into())
        );
        assert_eq!(caught(|| 5), Ok(5));
    }
}

//! What a chat template may use. A template is a program that comes with a model, so a stranger wrote it: its
//! instructions, the texts and lists that it makes, and its output are counted while it runs.
//!
//! minijinja counts instructions. Here the compiled template gets further instructions: each value that an operator,
//! a call or a filter made is looked through once ([`settle`]), at the price of its bytes, before anything else can be
//! done with it. Whatever doubles in a loop ends there, while it is still small.

use std::cell::Cell;

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Instructions of one rendering (ours). LLaMA 3.1's template takes about 150 a message.
pub(super) const FUEL: u64 = 4_000_000;
/// Bytes that one rendering may look at or make, beyond [`BYTES_PER_BYTE`] times the messages (ours).
const BYTES: u64 = 128 << 20;
const BYTES_PER_BYTE: u64 = 64;
/// Longest text that a template may make beyond four times the messages, in bytes (ours).
const TEXT: u64 = 4 << 20;
/// Values within values (ours).
const DEPTH: usize = 64;
/// What a value costs beside its text, in bytes: about what minijinja allocates for it.
const NODE: u64 = 32;
/// Raw text up to this length is paid by its instruction alone.
const SHORT: usize = 64;

/// Name of the filter [`settle`]; no template can spell it after a `|`.
pub(super) const SETTLE: &str = "mope.settle";
/// Name of the filter [`store`].
pub(super) const STORE: &str = "mope.store";
/// Name of the filter that spends as many bytes as its argument says.
pub(super) const SPEND: &str = "mope.spend";
/// Name of the filter that does a slice, `value[start:stop:step]`.
pub(super) const PART: &str = "mope.part";

thread_local! {
    /// Bytes that the rendering on this thread may still use.
    static LEFT: Cell<u64> = const { Cell::new(0) };
    /// Longest text in bytes that it may make.
    static LONGEST: Cell<u64> = const { Cell::new(0) };
}

/// Begins to count for a rendering of messages of so many bytes.
pub(super) fn begin(messages: usize) {
    let messages = messages as u64;
    LEFT.set(BYTES.saturating_add(messages.saturating_mul(BYTES_PER_BYTE)));
    LONGEST.set(TEXT.saturating_add(messages.saturating_mul(4)));
}

/// Longest text in bytes that the rendering on this thread may make.
pub(super) fn longest() -> u64 {
    LONGEST.get()
}

pub(super) fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// Counts bytes.
pub(super) fn spend(bytes: u64) -> Result<(), Error> {
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(refused(
            "the template makes more than a chat template may: it never ends or grows without bound",
        )),
    }
}

/// Refuses a text that is longer than a template may make.
pub(super) fn fits(bytes: u64) -> Result<(), Error> {
    match bytes <= longest() {
        true => Ok(()),
        false => Err(refused(format!(
            "the template makes a text of {bytes} bytes; {} are allowed for these messages",
            longest()
        ))),
    }
}

/// Macros and loops hold values that cannot be looked at, others of their kind among them.
fn opaque(value: &Value) -> bool {
    let inner = [
        "macro_object",
        "loop_object",
        "closure_object",
        "module_object",
    ];
    let name = value.as_object().map_or("", |object| object.type_name());
    value.kind() == ValueKind::Plain || inner.iter().any(|part| name.contains(part))
}

/// Looks through a value, at the price of its bytes.
pub(super) fn weigh(value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(refused(format!("values within values, over {DEPTH} deep")));
    }
    spend(NODE)?;
    if depth > 0 && opaque(value) {
        return Err(refused("a macro or a loop as part of a value"));
    }
    match value.kind() {
        ValueKind::String => {
            let bytes = value.as_str().map_or(0, str::len) as u64;
            fits(bytes)?;
            spend(bytes)
        }
        ValueKind::Bytes => spend(value.as_bytes().map_or(0, <[u8]>::len) as u64),
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .try_for_each(|item| weigh(&item, depth + 1)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            weigh(&key, depth + 1)?;
            weigh(&value.get_item(&key)?, depth + 1)
        }),
        _ => Ok(()),
    }
}

/// Looks through a value and makes a list of what would be made anew at each look.
pub(super) fn settle(value: &Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        weigh(value, 0)?;
        return Ok(value.clone());
    }
    let mut list = Vec::new();
    for item in value.try_iter()? {
        weigh(&item, 1)?;
        list.push(item);
    }
    Ok(Value::from(list))
}

/// As [`settle`], for what a namespace is to hold: no macro, which might hold another.
pub(super) fn store(value: &Value) -> Result<Value, Error> {
    weigh(value, 1)?;
    Ok(value.clone())
}

/// The same instructions with those that count. Lines stay; jumps lead to where they led.
pub(super) fn counted<'s>(from: &Instructions<'s>) -> Instructions<'s> {
    let mut out = Instructions::new(from.name(), from.source());
    let length = from.len() as u32;
    let mut starts = Vec::with_capacity(from.len() + 1);
    for at in 0..length {
        starts.push(out.len() as u32);
        let Some(instruction) = from.get(at) else {
            break;
        };
        let line = from.get_line(at).map_or(1, |line| line as u16);
        for instruction in around(instruction) {
            out.add_with_line(instruction, line);
        }
    }
    starts.push(out.len() as u32);
    for at in 0..out.len() as u32 {
        let Some(instruction) = out.get_mut(at) else {
            break;
        };
        match instruction {
            Instruction::Iterate(to)
            | Instruction::Jump(to)
            | Instruction::JumpIfFalse(to)
            | Instruction::JumpIfFalseOrPop(to)
            | Instruction::JumpIfTrueOrPop(to)
            | Instruction::BuildMacro(_, to, _) => {
                if let Some(start) = starts.get(*to as usize) {
                    *to = *start;
                }
            }
            _ => {}
        }
    }
    out
}

/// An instruction with what counts before and behind it.
fn around<'s>(instruction: &Instruction<'s>) -> Vec<Instruction<'s>> {
    use Instruction as I;
    let filter = |name| I::ApplyFilter(name, Some(1), u8::MAX);
    let instruction = instruction.clone();
    match &instruction {
        // They make a value.
        I::Add
        | I::Mul
        | I::StringConcat
        | I::BuildList(_)
        | I::BuildMap(_)
        | I::ApplyFilter(..)
        | I::CallFunction(..)
        | I::CallMethod(..)
        | I::CallObject(_)
        | I::EndCapture => vec![instruction, filter(SETTLE)],
        // They walk through the value on top; comparisons end with the shorter of two.
        I::PushLoop(_)
        | I::PerformTest(..)
        | I::Eq
        | I::Ne
        | I::Lt
        | I::Lte
        | I::Gt
        | I::Gte
        | I::In
        | I::CompareAndPreserve(_) => vec![filter(SETTLE), instruction],
        // They walk through a value further down.
        I::GetItem => vec![I::Swap, filter(SETTLE), I::Swap, instruction],
        I::Slice => vec![I::ApplyFilter(PART, Some(4), u8::MAX)],
        I::SetAttr(_) => vec![I::Swap, filter(STORE), I::Swap, instruction],
        I::EmitRaw(text) if text.len() > SHORT => {
            let bytes = I::LoadConst(Value::from(text.len()));
            vec![bytes, filter(SPEND), I::DiscardTop, instruction]
        }
        _ => vec![instruction],
    }
}

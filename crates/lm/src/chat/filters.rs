//! Filters, methods and functions of chat templates: minijinja's, with limits on what they are given and make.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions};
use serde::Serialize;

use super::bounds::{
    PART, SETTLE, SPEND, STORE, fits, longest, refused, settle, spend, store, weigh,
};

/// Widest indentation, and most rows of a batch or columns of a slice (ours).
const WIDTH: i64 = 1000;
/// Widest field of a format (ours).
const FIELD: u64 = 10_000;

/// Adds all of them to an environment.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter(SETTLE, |value: Value| settle(&value));
    environment.add_filter(STORE, |value: Value| store(&value));
    environment.add_filter(SPEND, |bytes: u64| spend(bytes));
    environment.add_filter(PART, part);
    for (name, filter) in originals() {
        environment.add_filter(name, move |state: &State<'_, '_>, args: Rest<Value>| {
            allowed(name, &args)?;
            filter.call(state, &args)
        });
    }
    environment.add_filter("tojson", to_json);
    environment.set_unknown_method_callback(|state, value, method, args| {
        let all: Vec<Value> = [std::slice::from_ref(value), args].concat();
        allowed(method, &all)?;
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    for (name, function) in [
        ("dict", Value::from_function(functions::dict)),
        ("namespace", Value::from_function(functions::namespace)),
    ] {
        environment.add_function(name, move |state: &State<'_, '_>, args: Rest<Value>| {
            args.iter().try_for_each(|value| weigh(value, 1))?;
            function.call(state, &args)
        });
    }
    environment.remove_global("debug");
    environment.set_formatter(|out, state, value| {
        fits(printed(value)?)?;
        minijinja::escape_formatter(out, state, value)
    });
}

/// minijinja's filters, as far as Jinja has them.
fn originals() -> Vec<(&'static str, Value)> {
    macro_rules! all {
        ($($name:literal: $filter:ident),* $(,)?) => {
            vec![$(($name, Value::from_function(filters::$filter))),*]
        };
    }
    all![
        "abs": abs, "attr": attr, "batch": batch, "bool": bool, "capitalize": capitalize,
        "chain": chain, "count": length, "d": default, "default": default, "dictsort": dictsort,
        "e": escape, "escape": escape, "first": first, "float": float, "format": format,
        "groupby": groupby, "indent": indent, "int": int, "items": items, "join": join,
        "last": last, "length": length, "lines": lines, "list": list, "lower": lower, "map": map,
        "max": max, "min": min, "pprint": pprint, "reject": reject, "rejectattr": rejectattr,
        "replace": replace, "reverse": reverse, "round": round, "safe": safe, "select": select,
        "selectattr": selectattr, "slice": slice, "sort": sort, "split": split, "string": string,
        "sum": sum, "title": title, "trim": trim, "unique": unique, "upper": upper, "zip": zip,
    ]
}

/// Looks through the arguments of a filter or method, and refuses those from which it would make too much.
fn allowed(name: &str, args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(|value| weigh(value, 0))?;
    let text = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    let (first, bytes) = (text(0), |text: &str| text.len() as u64);
    match name {
        "batch" | "slice" => narrow(name, args).map(|_| ()),
        "indent" => {
            let width = narrow(name, args)?;
            let lines = first.matches('\n').count() as u64 + 1;
            fits(bytes(first).saturating_add(lines.saturating_mul(width)))
        }
        "replace" => {
            let (from, to) = (text(1), text(2));
            let times = first.matches(from).count() as u64;
            fits(bytes(first).saturating_add(times.saturating_mul(bytes(to))))
        }
        "join" => {
            // A filter has the list first, a method the text between.
            let (list, between) = match first {
                "" if !args.is_empty() => (args.first(), text(1)),
                between => (args.get(1), between),
            };
            let pieces = list.and_then(Value::len).unwrap_or(0) as u64;
            fits(pieces.saturating_mul(bytes(between)))
        }
        "format" => {
            let fields = first.matches(['%', '{']).count() as u64;
            let numbers = first.split(|c: char| !c.is_ascii_digit());
            let wide = |n: &str| n.len() > 5 || n.parse().is_ok_and(|n: u64| n > FIELD);
            // Widths may also come as arguments: `%*d`, `{:{width}}`.
            let from_arguments =
                first.contains('*') || first.split('}').any(|piece| piece.matches('{').count() > 1);
            let too_wide = |v: &Value| v.as_i64().is_some_and(|n| n.unsigned_abs() > FIELD);
            if numbers.into_iter().any(wide) || (from_arguments && args.iter().any(too_wide)) {
                return Err(refused(format!("format of a field over {FIELD} wide")));
            }
            let longest = args.iter().skip(1).map(printed);
            let longest = longest.collect::<Result<Vec<u64>, _>>()?.into_iter().max();
            let widest = FIELD.max(longest.unwrap_or(0));
            fits(fields.saturating_mul(widest))
        }
        // It indents by four for each level.
        "pprint" => (0..16).try_for_each(|_| weigh(&args[0], 0)),
        _ => Ok(()),
    }
}

/// The largest number among the arguments, named ones too.
fn narrow(name: &str, args: &[Value]) -> Result<u64, Error> {
    let mut widest = 0;
    let mut look = |value: &Value| {
        if value.kind() != ValueKind::Number {
            return Ok(());
        }
        match value.as_i64().filter(|n| (0..=WIDTH).contains(n)) {
            Some(n) => {
                widest = widest.max(n as u64);
                Ok(())
            }
            None => Err(refused(format!(
                "{name} with {value}, not a number from 0 to {WIDTH}"
            ))),
        }
    };
    for value in args.iter().skip(1) {
        if value.kind() == ValueKind::Map {
            for key in value.try_iter()? {
                look(&value.get_item(&key)?)?;
            }
        }
        look(value)?;
    }
    Ok(widest)
}

/// `value[start:stop:step]`, at the price of the whole value.
fn part(
    state: &State<'_, '_>,
    value: Value,
    start: Value,
    stop: Value,
    step: Value,
) -> Result<Value, Error> {
    weigh(&value, 0)?;
    let slice = state.env().compile_expression("value[start:stop:step]")?;
    settle(&slice.eval(minijinja::context! { value, start, stop, step })?)
}

/// Length in bytes of a value as it is printed, at the price of it.
fn printed(value: &Value) -> Result<u64, Error> {
    if let Some(text) = value.as_str() {
        spend(text.len() as u64)?;
        return Ok(text.len() as u64);
    }
    let mut counter = Counter { bytes: 0 };
    weigh(value, 0)?;
    std::fmt::write(&mut counter, format_args!("{value}"))
        .map_err(|_| refused("the template prints more than it may"))?;
    Ok(counter.bytes)
}

/// Counts what is written, up to the longest text.
struct Counter {
    bytes: u64,
}

impl std::fmt::Write for Counter {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.bytes += text.len() as u64;
        match self.bytes <= longest() && spend(text.len() as u64).is_ok() {
            true => Ok(()),
            false => Err(std::fmt::Error),
        }
    }
}

/// Keeps what is written, up to the longest text.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) text: String,
}

impl std::fmt::Write for Kept {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if (self.text.len() + text.len()) as u64 > longest() {
            return Err(std::fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

impl std::io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(std::io::Error::other)?;
        std::fmt::Write::write_str(self, text)
            .map_err(|_| std::io::Error::other("JSON longer than a template may make"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes JSON the way Python's `json.dumps` does: a space after each comma and colon.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// JSON as transformers' templates make it: nothing escaped for HTML, `indent` as Python's.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    weigh(&value, 0)?;
    let invalid = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent: Option<Value> = options.get("indent")?;
    let mut out = Kept::default();
    match indent.filter(|width| !width.is_none()) {
        Some(width) => {
            let width = narrow("tojson", &[Value::UNDEFINED, width])?;
            let spaces = " ".repeat(width as usize);
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut out, format,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, PythonJson,
        )),
    }
    .map_err(invalid)?;
    spend(out.text.len() as u64)?;
    Ok(out.text)
}

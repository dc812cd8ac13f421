//! Numbers as people read them: rounded, with a minus sign; files keep them in full.
//!
//! ```
//! use mope_eval::rounding::{bytes, number, p_value, seconds};
//! assert_eq!(number(-0.1472, 3), "−0.147");
//! assert_eq!((p_value(0.4712), p_value(0.00002)), ("p = 0.47".into(), "p < 0.001".into()));
//! assert_eq!((bytes(588_400_000.0), seconds(0.0183)), ("588 MB".into(), "18 ms".into()));
//! ```

/// So many decimals, and a minus sign where something is left of the number.
pub fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(zero) if zero.chars().all(|c| c == '0' || c == '.') => zero.into(),
        Some(size) => format!("−{size}"),
        None => text,
    }
}

/// With its sign, also where it is positive.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    match text.chars().any(|c| c.is_ascii_digit() && c != '0') && !text.starts_with('−') {
        true => format!("+{text}"),
        false => text,
    }
}

/// Decimals that show three digits of the largest of some numbers, and at least so many that it is not 0.
pub fn decimals(largest: f64) -> usize {
    match largest.abs() {
        v if !v.is_finite() || v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        v if v >= 0.01 || v == 0.0 => 3,
        v => (1.0 - v.log10().floor()).min(12.0) as usize,
    }
}

/// A p-value with its sign of relation.
pub fn p_value(p: f64) -> String {
    match p {
        p if p < 0.001 => "p < 0.001".into(),
        p if p < 0.01 => format!("p = {p:.3}"),
        p if p >= 0.995 => "p = 1".into(),
        p => format!("p = {p:.2}"),
    }
}

/// Memory in units of a thousand.
pub fn bytes(value: f64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.iter().find(|(size, _)| value >= *size);
    match unit {
        Some((size, name)) if value / size < 10.0 => format!("{:.1} {name}", value / size),
        Some((size, name)) => format!("{:.0} {name}", value / size),
        None => format!("{value:.0} B"),
    }
}

/// Time in the unit that fits it.
pub fn seconds(value: f64) -> String {
    let units = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")];
    let unit = units.iter().find(|(size, _)| value >= *size);
    let (size, name) = unit.unwrap_or(&units[2]);
    match value / size {
        v if v < 10.0 => format!("{v:.1} {name}"),
        v => format!("{v:.0} {name}"),
    }
}

/// Names in a sentence: `a`, `a and b`, `a, b and c`.
pub fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [name] => (*name).into(),
        [names @ .., last] => format!("{} and {last}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges() {
        assert_eq!(number(-0.0004, 3), "0.000");
        assert_eq!(
            (signed(0.1, 2), signed(-0.1, 2)),
            ("+0.10".into(), "−0.10".into())
        );
        assert_eq!(signed(0.0, 2), "0.00");
        assert_eq!(
            [1234.0, 123.0, 12.0, 0.5, 0.0, 0.004].map(decimals),
            [0, 1, 2, 3, 3, 4]
        );
        assert_eq!(
            (p_value(0.004), p_value(1.0)),
            ("p = 0.004".into(), "p = 1".into())
        );
        assert_eq!(
            (bytes(1.5e9), bytes(12.0)),
            ("1.5 GB".into(), "12 B".into())
        );
        assert_eq!(
            (seconds(2.0), seconds(0.0), seconds(5e-5)),
            ("2.0 s".into(), "0.0 µs".into(), "50 µs".into())
        );
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }
}

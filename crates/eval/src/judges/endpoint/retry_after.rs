//! The header `Retry-After` (RFC 9110, 10.2.3).

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Seconds that a `Retry-After` header asks to wait: a number, or a date (RFC 9110, 10.2.3). `None` for anything
/// else.
pub(super) fn seconds(header: &str, now: SystemTime) -> Option<f64> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<f64>() {
        return (seconds.is_finite() && seconds >= 0.0).then_some(seconds);
    }
    let since = now.duration_since(UNIX_EPOCH).ok()?;
    Some((date(header)? as f64 - since.as_secs_f64()).max(0.0))
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date(text: &str) -> Option<i64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words.as_slice() else {
        return None;
    };
    let number = |text: &str| text.parse::<i64>().ok();
    let month = MONTHS.iter().position(|m| m == month)? as i64 + 1;
    let (day, year) = (number(day)?, number(year)?);
    let clock = time.split(':').map(number).collect::<Option<Vec<_>>>()?;
    let [hour, minute, second] = clock.as_slice() else {
        return None;
    };
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    // Days of the civil calendar, the year beginning in March.
    let (y, m) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let of_day = hour
        .checked_mul(3600)?
        .checked_add(minute.checked_mul(60)?)?;
    (days * 86_400).checked_add(of_day.checked_add(*second)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_and_dates() {
        // `date -u -d '1994-11-06 08:49:37' +%s`
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777 - 90);
        assert_eq!(seconds(" 7 ", now), Some(7.0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(90.0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:48:00 GMT", now), Some(0.0));
        assert_eq!(date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        assert_eq!(date("Sat, 01 Jan 2000 00:00:00 GMT"), Some(946_684_800));
        let wrong = [
            "",
            "soon",
            "-1",
            "NaN",
            "inf",
            "Sun, 06 Now 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 9223372036854775807:49:37 GMT",
        ];
        for header in wrong {
            assert_eq!(seconds(header, now), None, "{header}");
        }
    }
}

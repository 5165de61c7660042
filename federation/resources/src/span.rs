//! Lengths of time as Gateway API writes them (GEP-2257).

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest that can be written.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A length of time, written like `90s`, `1m30s` or `500ms`; at most a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

impl Span {
    /// As the standard library has it.
    pub fn duration(self) -> Duration {
        self.0
    }

    /// Reads one: up to four of a number (up to five digits) and `h`, `m`, `s` or `ms`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut sum = Duration::ZERO;
        for _ in 0..4 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u32 = rest.get(..digits).filter(|_| digits <= 5)?.parse().ok()?;
            rest = &rest[digits..];
            let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = rest.split_at(letters);
            let unit = match unit {
                "h" => Duration::from_secs(3600),
                "m" => Duration::from_secs(60),
                "s" => Duration::from_secs(1),
                "ms" => Duration::from_millis(1),
                _ => return None,
            };
            sum += unit * number;
            rest = after;
            if rest.is_empty() {
                return (sum <= LONGEST).then_some(Self(sum));
            }
        }
        None
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let parts = [
            (millis / 3_600_000, "h"),
            (millis / 60_000 % 60, "m"),
            (millis / 1_000 % 60, "s"),
            (millis % 1_000, "ms"),
        ];
        if millis == 0 {
            return f.write_str("0s");
        }
        parts
            .iter()
            .filter(|(number, _)| *number > 0)
            .try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
            "maxLength": 28,
        })
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a length of time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_odd() {
        for (text, millis) in [
            ("90s", 90_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("0s", 0),
        ] {
            let span = Span::parse(text).unwrap();
            assert_eq!(span.duration(), Duration::from_millis(millis));
            assert_eq!(Span::parse(&span.to_string()), Some(span));
        }
        assert_eq!(Span::parse("90s").unwrap().to_string(), "1m30s");
        for odd in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "1d",
            "25h",
            "100000s",
            "1h1m1s1ms1ms",
            "1 s",
            "é",
        ] {
            assert_eq!(Span::parse(odd), None, "{odd}");
        }
    }
}

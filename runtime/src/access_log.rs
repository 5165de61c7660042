//! Of how many requests and connections a line is written.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The part of all that get a line: none, all, or some, by chance. Written as `false`, `true`, or a
/// number from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AccessLog(f64);

// Between 0 and 1 all numbers are equal to themselves.
impl Eq for AccessLog {}

impl AccessLog {
    /// No lines.
    pub const OFF: Self = Self(0.0);
    /// A line for each.
    pub const ALL: Self = Self(1.0);

    /// That part of all, if it is one.
    #[must_use]
    pub fn part(part: f64) -> Option<Self> {
        (0.0..=1.0).contains(&part).then_some(Self(part))
    }

    /// Whether this one gets a line.
    #[must_use]
    pub fn draw(self) -> bool {
        // Without chance where it has no say: that is the usual case.
        self.0 >= 1.0 || (self.0 > 0.0 && rand::random::<f64>() < self.0)
    }
}

impl<'de> Deserialize<'de> for AccessLog {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = AccessLog;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true`, `false`, or a part of all, 0 to 1")
            }

            fn visit_bool<E: de::Error>(self, all: bool) -> Result<AccessLog, E> {
                Ok(if all { AccessLog::ALL } else { AccessLog::OFF })
            }

            fn visit_f64<E: de::Error>(self, part: f64) -> Result<AccessLog, E> {
                let fault = || E::invalid_value(de::Unexpected::Float(part), &self);
                AccessLog::part(part).ok_or_else(fault)
            }

            fn visit_u64<E: de::Error>(self, part: u64) -> Result<AccessLog, E> {
                let fault = || E::invalid_value(de::Unexpected::Unsigned(part), &self);
                AccessLog::part(part as f64).ok_or_else(fault)
            }

            fn visit_i64<E: de::Error>(self, part: i64) -> Result<AccessLog, E> {
                Err(E::invalid_value(de::Unexpected::Signed(part), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for AccessLog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::OFF => serializer.serialize_bool(false),
            Self::ALL => serializer.serialize_bool(true),
            Self(part) => serializer.serialize_f64(part),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AccessLog, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_off_on_or_a_part() {
        for (text, expected, written) in [
            ("false", AccessLog::OFF, "false"),
            ("0", AccessLog::OFF, "false"),
            ("true", AccessLog::ALL, "true"),
            ("1", AccessLog::ALL, "true"),
            ("0.25", AccessLog(0.25), "0.25"),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
            assert_eq!(serde_json::to_string(&expected).unwrap(), written);
        }
        for text in ["2", "-1", "1.5", "-0.5", "\"on\"", "null"] {
            let error = read(text).unwrap_err();
            assert!(error.contains("a part of all, 0 to 1"), "{text}: {error}");
        }
    }

    #[test]
    fn chance_draws_the_part_that_is_asked_for() {
        let drawn = |log: AccessLog| (0..10_000).filter(|_| log.draw()).count();
        assert_eq!((drawn(AccessLog::OFF), drawn(AccessLog::ALL)), (0, 10_000));
        // Ten standard deviations.
        assert!((700..1_300).contains(&drawn(AccessLog(0.1))));
    }
}

//! Which span something belongs to, as the header `traceparent` says it (W3C Trace Context, level 1).

use std::{fmt, str::FromStr};

/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// The flag that says whether the caller records.
const SAMPLED: u8 = 1;

/// One span of one trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanContext {
    /// The trace; never 0.
    pub trace: u128,
    /// The span in it; never 0.
    pub span: u64,
    /// Whether it is recorded, so that what it causes should be, too.
    pub sampled: bool,
}

/// A text is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no W3C traceparent")]
pub struct NoContext;

impl FromStr for SpanContext {
    type Err = NoContext;

    /// Strict for version 00; of later versions it takes the fields that it knows, as the standard
    /// wants.
    fn from_str(text: &str) -> Result<Self, NoContext> {
        let bytes = text.as_bytes();
        let hex = |of: std::ops::Range<usize>| {
            let digits = bytes.get(of).ok_or(NoContext)?;
            let lower = digits
                .iter()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            let digits = std::str::from_utf8(digits).map_err(|_| NoContext)?;
            if !lower {
                return Err(NoContext);
            }
            u128::from_str_radix(digits, 16).map_err(|_| NoContext)
        };
        let version = hex(0..2)?;
        let longer = bytes.len() > LENGTH && (version == 0 || bytes[LENGTH] != b'-');
        if version == 0xff || longer || [2, 35, 52].iter().any(|at| bytes.get(*at) != Some(&b'-')) {
            return Err(NoContext);
        }
        let (trace, span, flags) = (hex(3..35)?, hex(36..52)?, hex(53..55)?);
        let span = u64::try_from(span).map_err(|_| NoContext)?;
        if trace == 0 || span == 0 {
            return Err(NoContext);
        }
        Ok(Self {
            trace,
            span,
            sampled: flags & u128::from(SAMPLED) != 0,
        })
    }
}

impl fmt::Display for SpanContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled) * SAMPLED;
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read() {
        let context: SpanContext = GOOD.parse().unwrap();
        assert_eq!(context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.span, 0x00f0_67aa_0ba9_02b7);
        assert!(context.sampled);
        assert_eq!(context.to_string(), GOOD);
        let other = GOOD.replace("-01", "-00");
        assert_eq!(other.parse::<SpanContext>().unwrap().to_string(), other);
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        for text in ["cc-", "01-"].map(|version| GOOD.replacen("00-", version, 1)) {
            assert!(text.parse::<SpanContext>().is_ok(), "{text}");
            assert!(format!("{text}-more").parse::<SpanContext>().is_ok());
            assert!(format!("{text}.more").parse::<SpanContext>().is_err());
        }
    }

    #[test]
    fn what_is_not_one_is_refused() {
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        for text in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-"),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &GOOD.replace("4bf9", "+bf9"),
            &GOOD.replace("4bf9", "é00"),
            &zero_trace,
            &zero_span,
        ] {
            assert_eq!(text.parse::<SpanContext>(), Err(NoContext), "{text}");
        }
    }
}

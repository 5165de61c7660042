//! Looking for a secret in what others may read, in each form in which it could stand there.

/// It is looked for in stretches of so many bytes, which are in nothing by chance: whatever shows
/// fifteen bytes of it in a row is found.
const STRETCH: usize = 8;

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The forms in which a stretch of `secret` stands in `text`: as it is, hexadecimal, base64 at
/// whatever place of a longer text, or as a list of numbers. None of them if all is well.
///
/// # Panics
/// If the secret is shorter than a stretch: nothing could be found.
pub fn traces(secret: &[u8], text: &[u8]) -> Vec<&'static str> {
    assert!(secret.len() >= STRETCH, "too short to look for");
    let readable = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    for part in secret.chunks_exact(STRETCH) {
        if text.windows(STRETCH).any(|here| here == part) {
            found.push("raw");
        }
        let forms = forms(part).into_iter();
        found.extend(
            forms
                .filter(|(_, form)| readable.contains(form))
                .map(|(name, _)| name),
        );
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn forms(part: &[u8]) -> Vec<(&'static str, String)> {
    let each = |show: fn(&u8) -> String, between: &str| {
        let all: Vec<_> = part.iter().map(show).collect();
        all.join(between)
    };
    let mut forms = vec![
        ("hex", each(|byte| format!("{byte:02x}"), "")),
        ("HEX", each(|byte| format!("{byte:02X}"), "")),
        ("hex list", each(|byte| format!("{byte:02x}"), ":")),
        ("numbers", each(u8::to_string, ", ")),
        ("numbers", each(u8::to_string, ",")),
        ("numbers", each(u8::to_string, " ")),
        // As `{:#?}` has them.
        ("numbers", each(u8::to_string, ",\n    ")),
    ];
    for before in 0..3 {
        forms.push(("base64", base64(part, before, STANDARD)));
        forms.push(("base64url", base64(part, before, URL_SAFE)));
    }
    forms
}

/// The characters of `part` that depend on nothing else, where `before` more bytes stand in front.
fn base64(part: &[u8], before: usize, alphabet: &[u8; 64]) -> String {
    let bit = |at: usize| match (at / 8).checked_sub(before) {
        Some(byte) => part[byte] >> (7 - at % 8) & 1,
        None => 0,
    };
    let (first, last) = ((before * 8).div_ceil(6), (before + part.len()) * 8 / 6);
    let character = |at: usize| {
        let value = (at * 6..at * 6 + 6).fold(0, |value, at| value << 1 | bit(at));
        char::from(alphabet[usize::from(value)])
    };
    (first..last).map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> Vec<u8> {
        (0..32_u8)
            .map(|n| n.wrapping_mul(73).wrapping_add(200))
            .collect()
    }

    /// What this finds nowhere is not there: it finds each of the forms.
    #[test]
    fn each_form_is_found_and_nothing_else() {
        let secret = secret();
        for part in secret.chunks_exact(STRETCH) {
            for (name, form) in forms(part) {
                let found = traces(&secret, format!("{{\"a\": \"{form}\"}}").as_bytes());
                assert!(found.contains(&name), "{name} {form}: {found:?}");
                let first = name.split(['u', ' ']).next().unwrap();
                assert!(found.iter().all(|of| of.starts_with(first)), "{found:?}");
            }
        }
        // Where it stands in the middle of more.
        for at in 0..=secret.len() - 15 {
            let part = &secret[at..at + 15];
            assert_eq!(traces(&secret, part), ["raw"]);
            for before in 0..3 {
                let whole = base64(&[&vec![7; before], part].concat(), 0, URL_SAFE);
                assert!(traces(&secret, whole.as_bytes()).contains(&"base64url"));
            }
            let shown = format!("{part:?}");
            assert_eq!(traces(&secret, shown.as_bytes()), ["numbers"]);
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let mut other = secret();
        other.reverse();
        for (_, form) in other.chunks_exact(STRETCH).flat_map(forms) {
            assert!(traces(&secret(), form.as_bytes()).is_empty());
        }
        assert!(traces(&secret(), b"").is_empty());
    }

    #[test]
    fn base64_is_that_of_everybody_else() {
        // RFC 4648, section 10, and the same behind one and two bytes.
        assert_eq!(base64(b"foobar", 0, STANDARD), "Zm9vYmFy");
        assert_eq!(base64(b"oobar", 1, STANDARD), "9vYmFy");
        assert_eq!(base64(b"obar", 2, STANDARD), "vYmFy");
        assert_eq!(base64(&[0xfb, 0xff, 0xff], 0, URL_SAFE), "-___");
    }
}

//! What the code says: the string literals of its sources, without those of tests.

use std::{fs, path::Path, path::PathBuf};

use super::VARIES;

/// String literals, each on one line, with [`VARIES`] where something is put in.
pub(crate) struct Literals(Vec<String>);

impl Literals {
    /// Of all Rust files below these folders.
    pub(crate) fn of(folders: impl Iterator<Item = PathBuf>) -> Self {
        let mut files = Vec::new();
        for folder in folders {
            walk(&folder, &mut files);
        }
        let mut all = Vec::new();
        for file in files.iter().filter(|file| is_ours(file)) {
            let text = fs::read_to_string(file).expect("a readable source");
            // Only unit tests, which come last, say what nobody else does.
            let text = text.split("#[cfg(test)]\nmod tests {").next();
            let literals = of_source(text.unwrap_or_default());
            all.extend(literals.iter().map(|literal| pattern(literal)));
        }
        Self(all)
    }

    /// Whether one of them has all the fixed pieces of a message, in their order.
    pub(crate) fn say(&self, message: &str) -> bool {
        let pieces: Vec<_> = message.split(VARIES).map(str::trim).collect();
        self.0.iter().any(|literal| {
            let mut rest = literal.as_str();
            pieces.iter().all(|piece| {
                let found = rest.find(piece);
                rest = found.map_or("", |at| &rest[at + piece.len()..]);
                found.is_some()
            })
        })
    }
}

/// All files below a folder, but what is built and what is hidden.
pub(crate) fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).expect("a readable folder");
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match path.is_dir() {
            _ if name.starts_with('.') || name == "target" => {}
            true => walk(&path, into),
            false => into.push(path),
        }
    }
}

fn is_ours(file: &Path) -> bool {
    let parts = file.iter().map(|part| part.to_string_lossy());
    let test = parts
        .into_iter()
        .any(|part| part == "tests" || part == "tests.rs" || part.starts_with("testing"));
    file.extension().is_some_and(|ending| ending == "rs") && !test
}

/// `{…}` is put in when it runs; `{{` is a brace. White space counts as one blank.
fn pattern(literal: &str) -> String {
    let mut text = String::new();
    let mut rest = literal.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '{' | '}' if rest.peek() == Some(&c) => text.extend(rest.next()),
            '{' => {
                rest.by_ref().find(|c| *c == '}');
                text.push(VARIES);
            }
            _ => text.push(c),
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The string literals of a source, as the compiler reads them.
fn of_source(source: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut rest = source;
    let mut in_word = false;
    while let Some(c) = rest.chars().next() {
        let raw = (!in_word).then(|| raw_start(rest)).flatten();
        in_word = c.is_alphanumeric() || c == '_';
        if let Some((from, end)) = raw {
            let body = &rest[from..];
            let to = body.find(&end).unwrap_or(body.len());
            literals.push(body[..to].to_owned());
            rest = body.get(to + end.len()..).unwrap_or_default();
        } else if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |at| &rest[at..]);
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, after)| after);
        } else if c == '"' {
            let (literal, after) = quoted(&rest[1..]);
            literals.push(literal);
            rest = after;
        } else if c == '\'' {
            rest = after_quote(rest);
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    literals
}

/// Where the text of a raw literal begins, and what ends it.
fn raw_start(rest: &str) -> Option<(usize, String)> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].strip_prefix('"')?;
    let from = rest.len() - after.len() + hashes + 1;
    Some((from, format!("\"{}", "#".repeat(hashes))))
}

/// A literal from after its first quote, and what comes after its last one.
fn quoted(rest: &str) -> (String, &str) {
    let mut literal = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (literal, &rest[at + 1..]),
            '\\' => match chars.next() {
                // The literal goes on in the next line, without its indentation.
                Some((at, '\n')) => {
                    let (more, after) = quoted(rest[at..].trim_start());
                    return (literal + &more, after);
                }
                Some((_, escaped @ ('"' | '\\' | '\''))) => literal.push(escaped),
                Some(_) => literal.push(' '),
                None => {}
            },
            _ => literal.push(c),
        }
    }
    (literal, "")
}

/// Past a character, or past the quote of a lifetime.
fn after_quote(rest: &str) -> &str {
    let body = &rest[1..];
    if let Some(escape) = body.strip_prefix('\\') {
        // `'\''`: the first one belongs to the escape.
        let end = escape.get(1..).and_then(|tail| tail.find('\''));
        return end.map_or("", |at| &escape[at + 2..]);
    }
    let mut chars = body.chars();
    match (chars.next(), chars.next()) {
        (Some(_), Some('\'')) => chars.as_str(),
        _ => body,
    }
}

#[test]
fn literals_are_read_as_the_compiler_does() {
    let source = r####"
        // "not this"
        fn f<'a>(c: char) -> &'a str {
            let _ = (c == '"', c == '\'', b"bytes", r#"raw "one""#);
            error("said {what} over \
                   two lines: \"{{it}}\" {0:?}")
        }
    "####;
    let found: Vec<_> = of_source(source).iter().map(|of| pattern(of)).collect();
    assert_eq!(
        found,
        [
            "bytes",
            r#"raw "one""#,
            r#"said … over two lines: "{it}" …"#
        ]
    );
    let literals = Literals(found);
    assert!(literals.say("said … over two lines"));
    assert!(literals.say("said … lines: \"{it}\" …"));
    assert!(!literals.say("over … said"));
    assert!(!literals.say("said it over two lines"));
}

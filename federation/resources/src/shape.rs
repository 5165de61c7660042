//! What is allowed where in a kind, as data; and the walk that compares a document with it.

use crate::rules::TextRule;
use crate::yaml::{Node, Value};

/// The rules for one place of a document.
pub(crate) enum Shape {
    /// Text that keeps to a rule.
    Text(TextRule),
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A whole number in this range, both ends included.
    Integer(i64, i64),
    /// `true` or `false`.
    Bool,
    /// A list whose items have this shape.
    List(&'static Self),
    /// A mapping of free names: rule for names, rule for texts.
    Texts(TextRule, TextRule),
    /// A mapping of known names.
    Object(&'static ObjectShape),
    /// Anything; accepted as written and not read.
    Ignored,
}

/// The rules for a mapping of known names.
pub(crate) struct ObjectShape {
    pub(crate) fields: &'static [Field],
    /// Whether other names are tolerated (kinds that are not ours have fields we do not read).
    pub(crate) open: bool,
    /// Rules that concern several fields at once.
    pub(crate) across: fn(&Node, &str, &mut Findings),
}

/// A known name of a mapping.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) required: bool,
}

/// A field that may be left out.
pub(crate) const fn optional(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: false,
    }
}

/// A field that must be there.
pub(crate) const fn required(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: true,
    }
}

/// No rules across fields.
pub(crate) fn none_across(_: &Node, _: &str, _: &mut Findings) {}

/// What a walk has found wrong so far.
#[derive(Default)]
pub(crate) struct Findings(Vec<Finding>);

/// One thing wrong, before it is known in which file.
pub(crate) struct Finding {
    pub(crate) line: u64,
    pub(crate) field: String,
    pub(crate) found: String,
    pub(crate) fix: String,
}

impl Findings {
    /// Records one thing wrong.
    pub(crate) fn add(
        &mut self,
        line: u64,
        field: &str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let (found, fix) = (found.into(), fix.into());
        self.0.push(Finding {
            line,
            field: field.to_owned(),
            found,
            fix,
        });
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order of the lines.
    pub(crate) fn into_sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.line);
        self.0
    }
}

/// Compares `node` with `shape` and records every difference.
pub(crate) fn check(node: &Node, shape: &Shape, path: &str, findings: &mut Findings) {
    match (shape, &node.value) {
        (Shape::Ignored, _) => {}
        (Shape::Text(rule), Value::Text(text)) => check_text(node, text, *rule, path, findings),
        (Shape::OneOf(choices), Value::Text(text)) if choices.contains(&text.as_str()) => {}
        (Shape::Integer(low, high), Value::Integer(number))
            if (i128::from(*low)..=i128::from(*high)).contains(number) => {}
        (Shape::Bool, Value::Bool(_)) => {}
        (Shape::List(item), Value::List(items)) => {
            for (index, node) in items.iter().enumerate() {
                check(node, item, &format!("{path}[{index}]"), findings);
            }
        }
        (Shape::Texts(key_rule, value_rule), Value::Map(entries)) => {
            check_texts(entries, *key_rule, *value_rule, path, findings);
        }
        (Shape::Object(object), Value::Map(entries)) => {
            check_object(node, entries, object, path, findings);
        }
        _ => findings.add(node.line, path, describe(node), expected(shape)),
    }
}

fn check_text(node: &Node, text: &str, rule: TextRule, path: &str, findings: &mut Findings) {
    if let Err(fix) = rule(text) {
        findings.add(node.line, path, describe(node), fix);
    }
}

fn check_texts(
    entries: &[(String, Node)],
    key_rule: TextRule,
    value_rule: TextRule,
    path: &str,
    findings: &mut Findings,
) {
    for (name, node) in entries {
        let path = join(path, name);
        if let Err(fix) = key_rule(name) {
            findings.add(
                node.line,
                &path,
                format!("found the key {}", quote(name)),
                fix,
            );
        }
        match &node.value {
            Value::Text(text) => check_text(node, text, value_rule, &path, findings),
            _ => findings.add(
                node.line,
                &path,
                describe(node),
                "write text; put it in quotes if it looks like a number",
            ),
        }
    }
}

fn check_object(
    node: &Node,
    entries: &[(String, Node)],
    object: &ObjectShape,
    path: &str,
    findings: &mut Findings,
) {
    for (name, child) in entries {
        match object.fields.iter().find(|field| field.name == name) {
            // An empty value is what YAML makes of a field that was left out.
            Some(_) if matches!(child.value, Value::Null) => {}
            Some(field) => check(child, &field.shape, &join(path, name), findings),
            None if object.open => {}
            None => {
                let fix = unknown_fix(name, object);
                findings.add(child.line, &join(path, name), "found an unknown field", fix);
            }
        }
    }
    for field in object
        .fields
        .iter()
        .filter(|field| field.required && node.get(field.name).is_none())
    {
        findings.add(
            node.line,
            &join(path, field.name),
            "is missing",
            expected(&field.shape),
        );
    }
    (object.across)(node, path, findings);
}

fn unknown_fix(name: &str, object: &ObjectShape) -> String {
    let close = object
        .fields
        .iter()
        .map(|field| field.name)
        .find(|known| resembles(known, name));
    if let Some(known) = close {
        return format!("did you mean `{known}`?");
    }
    let names: Vec<_> = object
        .fields
        .iter()
        .map(|field| format!("`{}`", field.name))
        .collect();
    format!("remove it; known here: {}", names.join(", "))
}

/// Whether the names differ only in case and separators, or by one missing or added character.
fn resembles(known: &str, name: &str) -> bool {
    let plain = |s: &str| {
        s.chars()
            .filter(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_ascii_lowercase()
    };
    let (known, name) = (plain(known), plain(name));
    known == name || without_one(&known, &name) || without_one(&name, &known)
}

/// Whether `short` is `long` without one of its characters.
fn without_one(long: &str, short: &str) -> bool {
    long.len() == short.len() + 1
        && (0..long.len()).any(|gap| long[..gap] == short[..gap] && long[gap + 1..] == short[gap..])
}

fn expected(shape: &Shape) -> String {
    match shape {
        Shape::Text(rule) => rule("").err().unwrap_or_else(|| "write text".into()),
        Shape::OneOf(choices) => {
            let choices: Vec<_> = choices.iter().map(|choice| format!("`{choice}`")).collect();
            format!("write {}", choices.join(" or "))
        }
        Shape::Integer(low, high) => format!("write a whole number from {low} to {high}"),
        Shape::Bool => "write `true` or `false`".into(),
        Shape::List(_) => "write a list (`- …` lines)".into(),
        Shape::Texts(..) => "write a mapping of names to texts (`name: text` lines)".into(),
        Shape::Object(object) => {
            let names: Vec<_> = object
                .fields
                .iter()
                .map(|field| format!("`{}`", field.name))
                .collect();
            format!("write a mapping with {}", names.join(", "))
        }
        Shape::Ignored => "leave it out".into(),
    }
}

/// What stands at `node`, short enough for a message.
pub(crate) fn describe(node: &Node) -> String {
    match &node.value {
        Value::Null => "found nothing".into(),
        Value::Bool(value) => format!("found `{value}`"),
        Value::Integer(number) => format!("found `{number}`"),
        Value::Float(number) => format!("found `{number}`"),
        Value::Text(text) => format!("found {}", quote(text)),
        Value::List(items) => format!("found a list of {}", items.len()),
        Value::Map(_) => "found a mapping".into(),
    }
}

/// Text in quotes, cut where it is long; line breaks stay visible.
pub(crate) fn quote(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().count() > SHOWN {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// `path.name`, or `name` at the root; keys with dots in brackets.
pub(crate) fn join(path: &str, name: &str) -> String {
    let name = if name.contains(['.', '/', ' ']) {
        format!("[{name}]")
    } else {
        name.to_owned()
    };
    match (path.is_empty(), name.starts_with('[')) {
        (true, _) => name,
        (false, true) => format!("{path}{name}"),
        (false, false) => format!("{path}.{name}"),
    }
}

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
    /// Other names that may be there and are not read: kinds that are not ours have them.
    pub(crate) ignored: &'static [&'static str],
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

/// Records a list or mapping under `field` that holds too much.
pub(crate) fn at_most(
    parent: &Node,
    path: &str,
    field: &str,
    most: usize,
    findings: &mut Findings,
) {
    let Some(node) = parent.get(field) else {
        return;
    };
    let count = match &node.value {
        Value::List(items) => items.len(),
        Value::Map(entries) => entries.len(),
        _ => 0,
    };
    if count > most {
        let found = format!("found {count} entries");
        let fix = format!("write at most {most}");
        findings.add(node.line, &join(path, field), found, fix);
    }
}

/// What a walk has found wrong so far.
#[derive(Default)]
pub(crate) struct Findings(Vec<Finding>);

/// One thing wrong, before it is known in which file.
pub(crate) struct Finding {
    pub(crate) line: u64,
    /// Where it is one place of the line that is wrong, not a field.
    pub(crate) column: Option<u64>,
    pub(crate) field: String,
    pub(crate) found: String,
    pub(crate) fix: String,
}

impl Findings {
    /// Records that the text is wrong there, whatever field it was meant to be.
    pub(crate) fn add_at(&mut self, line: u64, column: u64, found: String, fix: &str) {
        self.add(line, "", found, fix);
        if let Some(finding) = self.0.last_mut() {
            finding.column = Some(column);
        }
    }

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
            column: None,
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
            None if object.ignored.contains(&name.as_str()) => {}
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
    let read = object.fields.iter().map(|field| field.name);
    let known = read.chain(object.ignored.iter().copied());
    let near = known.filter_map(|known| Some((distance(known, name)?, known)));
    match near.min_by_key(|(slips, _)| *slips) {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => format!("remove it; known here: {}", names(object)),
    }
}

/// Names that are read here, for messages.
fn names(object: &ObjectShape) -> String {
    let read = object.fields.iter();
    let read = read.filter(|field| !matches!(field.shape, Shape::Ignored));
    let quoted: Vec<_> = read.map(|field| format!("`{}`", field.name)).collect();
    quoted.join(", ")
}

/// By how many slips (a character too few, too many, another, two swapped) a name differs from a
/// known one, but for case and separators; `None` where it is too many to be meant.
fn distance(known: &str, name: &str) -> Option<usize> {
    let plain = |text: &str| {
        let plain = text.chars().filter(char::is_ascii_alphanumeric);
        plain.map(|c| c.to_ascii_lowercase()).collect::<String>()
    };
    let (known, name) = (plain(known), plain(name));
    // Two slips make another word of a short one.
    let most = if known.len() < 6 { 1 } else { 2 };
    if known.len().abs_diff(name.len()) > most {
        return None;
    }
    Some(strsim::osa_distance(&known, &name)).filter(|slips| *slips <= most)
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
        Shape::Object(object) => format!("write a mapping with {}", names(object)),
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

//! From what `schemars` derives to what an API server takes: a *structural* schema.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

/// The schema of one Rust type, without references.
pub(super) fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    clean(&mut schema);
    schema
}

/// Keys that say nothing to an API server, or that it refuses. Unknown fields are refused by its
/// strict mode instead of `additionalProperties: false`; defaults are applied by the reader, so
/// that what is stored is what was written.
const DROPPED: &[&str] = &["$schema", "title", "nullable", "default", "components"];

/// Formats that an API server knows.
const FORMATS: &[&str] = &["int32", "int64", "date-time"];

fn clean(schema: &mut Value) {
    let Value::Object(object) = schema else {
        return;
    };
    for key in DROPPED {
        object.remove(*key);
    }
    or_null(object);
    let unknown = |format: &Value| format.as_str().is_none_or(|name| !FORMATS.contains(&name));
    if object.get("format").is_some_and(unknown) {
        object.remove("format");
    }
    if object.get("additionalProperties") == Some(&Value::Bool(false)) {
        object.remove("additionalProperties");
    }
    words(object);
    if let Some(Value::String(description)) = object.get_mut("description") {
        // Links between types mean nothing there.
        let plain = description.replace("[`", "`").replace("`]", "`");
        *description = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            clean(inner);
        }
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(clean);
    }
}

/// An enum that may be left out comes as `anyOf` itself and null; to leave it out is enough.
fn or_null(object: &mut Map<String, Value>) {
    let Some(Value::Array(mut variants)) = object.remove("anyOf") else {
        return;
    };
    if let Value::Object(first) = variants.swap_remove(0) {
        for (key, value) in first {
            object.entry(key).or_insert(value);
        }
    }
}

/// An enum whose variants have descriptions comes as `oneOf` single words.
fn words(object: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = object.remove("oneOf") else {
        return;
    };
    let words = variants.iter().flat_map(|variant| {
        let several = variant["enum"].as_array().cloned().unwrap_or_default();
        several.into_iter().chain(variant.get("const").cloned())
    });
    let words: Vec<_> = words.collect();
    object.insert("enum".into(), Value::Array(words));
    object.insert("type".into(), "string".into());
}

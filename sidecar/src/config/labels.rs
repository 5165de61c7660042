//! Labels of a pod, as Kubernetes' downward API writes them into a file: a line `name="value"` each.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::Path};

/// Labels of a pod are some, of 63 characters and a prefix; what is longer is another file.
const MAX_FILE: u64 = 256 * 1024;

pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| format!("cannot be read ({error})"))?;
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
    match read {
        Ok(bytes) if bytes as u64 > MAX_FILE => Err("is too long for labels".to_owned()),
        Ok(_) => parse(&text),
        Err(error) => Err(format!("cannot be read ({error})")),
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(line).collect()
}

/// The value is quoted; a label's value has nothing that would have to be escaped.
fn line(line: &str) -> Result<(String, String), String> {
    let parts = line.trim().split_once('=');
    let unquoted = parts.and_then(|(name, value)| {
        let value = value.strip_prefix('"')?.strip_suffix('"')?;
        (!name.is_empty() && !value.contains(['"', '\\'])).then_some((name, value))
    });
    let (name, value) = unquoted.ok_or_else(|| {
        let shown: String = line.chars().take(80).collect();
        format!("has the line {shown:?}; each is to be name=\"value\"")
    })?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_downward_api_is_read() {
        let text = "app=\"checkout\"\nexample.com/tier=\"\"\npod-template-hash=\"6d4cf56db6\"";
        let labels = parse(text).unwrap();
        assert_eq!(labels["app"], "checkout");
        assert_eq!(labels["example.com/tier"], "");
        assert_eq!(labels.len(), 3);
        assert_eq!(parse("\n").unwrap(), BTreeMap::new());
    }

    #[test]
    fn what_is_no_label_is_told() {
        for bad in ["app=checkout", "app", "=\"a\"", "a=\"b", r#"a="b\"c""#] {
            assert!(parse(bad).unwrap_err().contains("name="), "{bad}");
        }
        assert!(read(Path::new("/nowhere")).unwrap_err().contains("read"));
    }
}

//! A page of Markdown, as far as it matters here.

use std::collections::BTreeSet;

/// Heading of the column that quotes.
const SEEN: &str = "You see";

/// One page.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    name: String,
    text: String,
}

/// What a line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind<'a> {
    Prose,
    /// Fenced, with its word, or indented, with none.
    Block(&'a str),
    Fence,
}

impl Page {
    pub(crate) fn new(name: String, text: String) -> Self {
        Self { name, text }
    }

    /// Its path from the root of the repository.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Line and target of every link.
    pub(crate) fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (line, kind, text) in self.lines() {
            if kind != Kind::Prose {
                continue;
            }
            for part in text.split("](").skip(1) {
                let target = part.split([')', ' ']).next().unwrap_or_default();
                links.push((line, target.to_owned()));
            }
        }
        links
    }

    /// What a link to a heading may end with, as GitHub and others make it.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        for (_, kind, text) in self.lines() {
            let heading = text.trim_start_matches('#');
            if kind != Kind::Prose || heading.len() == text.len() || !heading.starts_with(' ') {
                continue;
            }
            let slug = slug(heading.trim());
            let same = |number: &usize| match number {
                0 => slug.clone(),
                _ => format!("{slug}-{number}"),
            };
            let free = (0..).map(|number| same(&number));
            let first = free.into_iter().find(|one| !anchors.contains(one));
            anchors.extend(first);
        }
        anchors
    }

    /// Line and text of each message that is quoted as seen: what a cell begins with as code, in the
    /// first column of a table that is headed so.
    pub(crate) fn messages(&self) -> Vec<(usize, String)> {
        let mut messages = Vec::new();
        let mut seen = false;
        for (line, _, text) in self.lines() {
            let cell = text
                .strip_prefix("| ")
                .and_then(|row| row.split(" | ").next());
            let Some(cell) = cell else {
                seen &= text.starts_with("|-");
                continue;
            };
            seen |= cell == SEEN;
            if let Some(message) = code(cell).filter(|_| seen) {
                messages.push((line, message.trim().to_owned()));
            }
        }
        messages
    }

    /// Line and text of each command that begins with `linkspan`, in prose and in blocks of commands,
    /// up to where the shell ends it.
    pub(crate) fn commands(&self) -> Vec<(usize, String)> {
        let mut commands = Vec::new();
        for (line, kind, text) in self.lines() {
            match kind {
                Kind::Prose => {
                    let spans = text.split('`').skip(1).step_by(2);
                    let ours = spans.filter(|span| span.starts_with("linkspan "));
                    // In a table a bar would end the cell.
                    commands.extend(ours.map(|span| (line, span.replace("\\|", "|"))));
                }
                Kind::Block("" | "sh" | "bash") => {
                    let text = text.split(" # ").next().unwrap_or_default();
                    // As a word of its own, and not as the package of a cargo command.
                    let word = |before: &str| {
                        before.is_empty()
                            || before.ends_with([' ', '(']) && !before.ends_with("-p ")
                    };
                    let starts = text.match_indices("linkspan ").map(|(at, _)| at);
                    for at in starts.filter(|at| word(&text[..*at])) {
                        let end = [" | ", ";", " > ", " >", " <", " &", ")", " …"];
                        let rest = &text[at..];
                        let ends = end.iter().filter_map(|end| rest.find(end)).min();
                        commands.push((line, rest[..ends.unwrap_or(rest.len())].to_owned()));
                    }
                }
                Kind::Block(_) | Kind::Fence => {}
            }
        }
        commands
    }

    fn lines(&self) -> impl Iterator<Item = (usize, Kind<'_>, &str)> {
        let mut fence: Option<&str> = None;
        let mut paragraph = false;
        self.text.lines().enumerate().map(move |(at, text)| {
            let kind = match (text.trim_start().strip_prefix("```"), fence) {
                (Some(word), None) => {
                    fence = Some(word.trim());
                    Kind::Fence
                }
                (Some(_), Some(_)) => {
                    fence = None;
                    Kind::Fence
                }
                (None, Some(word)) => Kind::Block(word),
                // Within a paragraph or a list indentation means nothing.
                (None, None) if text.starts_with("    ") && !paragraph => Kind::Block(""),
                (None, None) => Kind::Prose,
            };
            paragraph = kind == Kind::Prose && !text.trim().is_empty() && !text.starts_with('#');
            (at + 1, kind, text)
        })
    }
}

/// The span of code that a text begins with, between as many backticks as it begins with.
fn code(text: &str) -> Option<&str> {
    let body = text.trim_start_matches('`');
    let fence = &text[..text.len() - body.len()];
    let mut ends = body.match_indices(fence).map(|(at, _)| at);
    let whole = |at: &usize| !body[at + fence.len()..].starts_with('`');
    let end = ends.find(whole)?;
    (!fence.is_empty()).then_some(&body[..end])
}

/// Small letters, digits, hyphens and underscores of the visible text.
fn slug(heading: &str) -> String {
    let mut visible = String::new();
    let mut rest = heading;
    while let Some((before, after)) = rest.split_once("](") {
        visible.push_str(before);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    visible.push_str(rest);
    let kept = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ if c.is_alphanumeric() => Some(c),
        _ => None,
    };
    visible.to_lowercase().chars().filter_map(kept).collect()
}

#[test]
fn headings_become_what_links_to_them_say() {
    assert_eq!(
        slug("3. Ejections: outlier detection"),
        "3-ejections-outlier-detection"
    );
    assert_eq!(slug("`linkspan failover set`"), "linkspan-failover-set");
    assert_eq!(slug("503, 502 / [x](y)"), "503-502--x");
}

#[test]
fn messages_links_and_commands_are_told_apart() {
    let text = "\
# One

See [two](b.md#c) and `linkspan status`.

    linkspan link list | cat
    kubectl exec x/linkspan-x -- linkspan status -o json
    cargo build -p linkspan -p more

| You see | Why |
|---|---|
| `first … line`, `not this` | `not this` |
| ``with `…` inside`` | |
| in words | |

| else | |
|---|---|
| `not this` | |

# One
";
    let page = Page::new("a.md".into(), text.into());
    assert_eq!(page.links(), [(3, "b.md#c".into())]);
    assert_eq!(
        page.messages(),
        [(11, "first … line".into()), (12, "with `…` inside".into())]
    );
    assert_eq!(
        page.commands(),
        [
            (3, "linkspan status".into()),
            (5, "linkspan link list".into()),
            (6, "linkspan status -o json".into())
        ]
    );
    assert!(page.anchors().contains("one") && page.anchors().contains("one-1"));
}

//! The documentation says what is: its links lead somewhere, the commands that it names are there,
//! and what it quotes as seen is what the code says.

mod page;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use linkspan::args::Cli;

use page::Page;
use source::Literals;

/// What stands for the parts of a message that vary.
const VARIES: char = '…';
/// Where messages come from: what users run.
const SOURCES: &[&str] = &[
    "cli",
    "dataplane",
    "federation",
    "gateway",
    "routing",
    "runtime",
    "sidecar",
    "trust",
];
/// A quotation with fewer fixed letters would be found anywhere.
const LEAST: usize = 10;

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let mut links = 0;
    let mut wrong = Vec::new();
    for page in pages.values() {
        for (line, target) in page.links() {
            links += 1;
            if let Err(problem) = follow(&pages, page, &target) {
                wrong.push(format!("{}:{line}: {target}: {problem}", page.name()));
            }
        }
    }
    assert!(links > 100, "only {links} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_message_quoted_as_seen_is_one_of_ours() {
    let pages = pages();
    let page = &pages[&root().join("docs/troubleshooting.md")];
    let literals = Literals::of(SOURCES.iter().map(|source| root().join(source)));
    let messages = page.messages();
    assert!(messages.len() > 40, "only {} were found", messages.len());
    let mut wrong = Vec::new();
    for (line, message) in messages {
        let fixed = message.chars().filter(|c| c.is_alphabetic()).count();
        if fixed < LEAST {
            wrong.push(format!("{line}: too short to tell: {message}"));
        } else if !literals.say(&message) {
            wrong.push(format!("{line}: nothing in the code says: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}:{}", page.name(), wrong.join("\n"));
}

#[test]
fn every_command_is_one_of_ours() {
    let cli = Cli::command();
    let mut commands = 0;
    let mut wrong = BTreeSet::new();
    for page in pages().values() {
        for (line, command) in page.commands() {
            commands += 1;
            if let Err(problem) = understood(&cli, &command) {
                wrong.insert(format!("{}:{line}: `{command}`: {problem}", page.name()));
            }
        }
    }
    assert!(commands > 100, "only {commands} commands were found");
    let wrong: Vec<_> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_wrong_is_found() {
    let cli = Cli::command();
    for good in [
        "linkspan status -o json",
        "linkspan link accept --file x",
        "linkspan run federation|gateway --config FILE",
        "linkspan link invite|revoke",
        "linkspan help link",
        "linkspan VERB --anything",
    ] {
        assert_eq!(understood(&cli, good), Ok(()), "{good}");
    }
    for bad in [
        "linkspan drain west",
        "linkspan link invit",
        "linkspan status --soket x",
    ] {
        assert!(understood(&cli, bad).is_err(), "{bad}");
    }
    let pages = pages();
    let page = &pages[&root().join("README.md")];
    for bad in [
        "docs/nowhere.md",
        "docs/routing.md#nothing",
        "#nothing",
        "/tmp",
    ] {
        assert!(follow(&pages, page, bad).is_err(), "{bad}");
    }
    assert_eq!(follow(&pages, page, "docs/routing.md#defaults"), Ok(()));
}

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("the workspace")
}

/// README.md and all of docs/, by path.
fn pages() -> BTreeMap<PathBuf, Page> {
    let root = root();
    let mut files = vec![root.join("README.md")];
    source::walk(&root.join("docs"), &mut files);
    files.retain(|file| file.extension().is_some_and(|ending| ending == "md"));
    let page = |file: PathBuf| {
        let text = fs::read_to_string(&file).expect("a readable page");
        let name = file.strip_prefix(&root).expect("below").display();
        (file.clone(), Page::new(name.to_string(), text))
    };
    files.into_iter().map(page).collect()
}

/// Whether a link of a page leads to a file or folder, and a heading in it.
fn follow(pages: &BTreeMap<PathBuf, Page>, page: &Page, target: &str) -> Result<(), &'static str> {
    if target.contains("://") {
        return Ok(());
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = root().join(page.name());
    let file = match path {
        "" => file,
        _ => file.parent().expect("a folder").join(path),
    };
    let file = file.canonicalize().map_err(|_| "there is no such file")?;
    if !file.starts_with(root()) {
        return Err("it leads out of the repository");
    }
    if anchor.is_empty() {
        return Ok(());
    }
    let text = fs::read_to_string(&file).map_err(|_| "it is no page")?;
    let page = pages.get(&file).cloned();
    let page = page.unwrap_or_else(|| Page::new(String::new(), text));
    match page.anchors().contains(anchor) {
        true => Ok(()),
        false => Err("there is no such heading"),
    }
}

/// Whether verb and options are there. Values are not looked at: `FILE` is as good as a file.
fn understood(cli: &clap::Command, command: &str) -> Result<(), String> {
    let mut at = vec![cli];
    for word in command.split_whitespace().skip(1) {
        let word = word.trim_matches(['[', ']', '"', '\'', ',']);
        let last = at[at.len() - 1];
        if last.has_subcommands() && word.chars().all(|c| c.is_ascii_uppercase()) {
            return Ok(());
        }
        if let Some(option) = word.strip_prefix("--") {
            let name = option.split(['=', '|']).next().unwrap_or_default();
            let known = |of: &clap::Command| {
                of.get_arguments()
                    .any(|argument| argument.get_long() == Some(name))
            };
            if !name.is_empty() && name != "help" && !at.iter().any(|of| known(of)) {
                return Err(format!("there is no `--{name}`"));
            }
        } else if last.has_subcommands() && word != "help" && !word.starts_with('-') {
            for one in word.split('|').filter(|one| !one.is_empty()) {
                let found = last.find_subcommand(one);
                at.push(found.ok_or_else(|| format!("there is no verb `{one}`"))?);
            }
        }
    }
    Ok(())
}

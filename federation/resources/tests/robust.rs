//! Any text gives objects or problems, never a panic; and a message is never empty.

use linkspan_resources::parse_documents;
use proptest::prelude::*;

const SAMPLE: &str = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  labels: {x: y}\nspec:\n  \
                      selector: {app: a}\n  ports:\n  - {name: http, port: 80, targetPort: 8080}\n---\n\
                      apiVersion: linkspan.io/v1alpha1\nkind: ClusterLink\nmetadata: {name: west}\nspec:\n  \
                      trustDomain: west.test\n  addresses: [{host: 'é', port: 1}]\n  bundle: |\n    x\n";

fn reads_or_tells(text: &str) -> Result<(), TestCaseError> {
    if let Err(problems) = parse_documents("f", text) {
        prop_assert!(!problems.is_empty());
        let lines = text.lines().count() as u64 + 1;
        for problem in problems {
            prop_assert!(
                (1..=lines).contains(&problem.line),
                "{problem} ({lines} lines)"
            );
            prop_assert!(
                !problem.found.is_empty() && !problem.fix.is_empty(),
                "{problem}"
            );
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,200}|[-a-z:{}\\[\\]*&!|> \n]{0,200}") {
        reads_or_tells(&text)?;
    }

    #[test]
    fn a_damaged_file(at in 0..SAMPLE.len(), cut in 0usize..20, put in "[-:{}\\[\\]'\"é*&!|> \n0-9a]{0,3}") {
        let floor = |mut at: usize| { while !SAMPLE.is_char_boundary(at) { at -= 1; } at };
        let (start, end) = (floor(at), floor((at + cut).min(SAMPLE.len())));
        reads_or_tells(&format!("{}{put}{}", &SAMPLE[..start], &SAMPLE[end..]))?;
    }
}

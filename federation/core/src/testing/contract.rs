//! What every backend must keep, as functions that its tests call. They wait on
//! snapshots, never on time; put a time-out around them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use super::{link, service};
use crate::backend::{Journal, Removals, Sink, Source};
use crate::declared::Declared;
use crate::model::{ClusterId, Condition, ConditionStatus, Link, ServiceKey};
use crate::plan::Desired;

/// Snapshots that a source may take to show a change: backends may show intermediate
/// complete states, but not without end.
const PATIENCE: usize = 32;

/// A place of declared resources that a test can change.
pub trait SourceBench {
    /// The source under test.
    type Source: Source;

    /// Starts a source on what is declared now.
    fn source(&mut self) -> impl Future<Output = Self::Source>;
    /// Declares a document under a name of the test's own, replacing what was there. A backend
    /// that looks at documents as they are declared may refuse one, and says why.
    fn put(&mut self, name: &str, document: &str) -> impl Future<Output = Result<(), String>>;
    /// Removes what is declared under that name.
    fn remove(&mut self, name: &str) -> impl Future<Output = ()>;
}

/// A place of statuses that a test can read.
pub trait SinkBench {
    /// The sink under test.
    type Sink: Sink;

    /// The sink.
    fn sink(&mut self) -> impl Future<Output = Self::Sink>;
    /// The conditions of a ServiceExport as they can be read there now.
    fn export_conditions(&mut self, service: &ServiceKey) -> impl Future<Output = Vec<Condition>>;
}

fn service_document(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  selector: {{app: {name}}}\n  ports: [{{port: {port}}}]\n"
    )
}

fn export_document(name: &str) -> String {
    format!(
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n\
         metadata: {{name: {name}, namespace: shop}}\n"
    )
}

/// Runs the contract of [`Source`] on an empty bench.
///
/// # Panics
/// When the source breaks it.
pub async fn source_contract(bench: &mut impl SourceBench) {
    let documents = [
        ("checkout", service_document("checkout", "80")),
        ("export", export_document("checkout")),
        ("cart", service_document("cart", "81")),
    ];
    for (name, document) in documents {
        good(bench, name, &document).await;
    }
    let mut source = bench.source().await;
    the_first_snapshot_is_complete(&mut source).await;
    what_is_added_is_seen(bench, &mut source).await;
    a_bad_object_leaves_the_last_good_one(bench, &mut source).await;
    what_is_mended_is_seen(bench, &mut source).await;
    what_is_removed_is_gone(bench, &mut source).await;
    what_cannot_be_read_is_a_problem_until_it_is_mended(bench, &mut source).await;
}

async fn the_first_snapshot_is_complete(source: &mut impl Source) {
    let first = source.next().await.expect("the first snapshot");
    // A cluster has Services of its own, too.
    let ours = |key: &&ServiceKey| key.namespace.as_str() == "shop";
    let services = first.services.keys().filter(ours).map(ToString::to_string);
    let services: Vec<_> = services.collect();
    assert_eq!(
        services,
        ["shop/cart", "shop/checkout"],
        "the first snapshot must hold everything"
    );
    assert!(first.exports.contains_key(&service("shop/checkout")));
    assert_eq!(first.problems, Vec::<String>::new());
}

async fn what_is_added_is_seen(bench: &mut impl SourceBench, source: &mut impl Source) {
    good(bench, "mail", &service_document("mail", "82")).await;
    until(source, "an added Service", |declared| {
        declared.services.contains_key(&service("shop/mail"))
    })
    .await;
}

async fn a_bad_object_leaves_the_last_good_one(
    bench: &mut impl SourceBench,
    source: &mut impl Source,
) {
    let bad = service_document("checkout", "70000");
    let problem = match bench.put("checkout", &bad).await {
        // Refused where it was declared, it is nothing that a snapshot could show; the next
        // change shows that nothing else has happened.
        Err(refused) => {
            good(bench, "extra", &service_document("extra", "83")).await;
            let declared = until(source, "another Service", |declared| {
                declared.services.contains_key(&service("shop/extra"))
            })
            .await;
            nothing_else_changed(&declared);
            refused
        }
        Ok(()) => {
            let declared = until(source, "a problem", |declared| {
                !declared.problems.is_empty()
            })
            .await;
            nothing_else_changed(&declared);
            declared.problems.join("\n")
        }
    };
    assert!(
        problem.contains("spec.ports[0].port") && problem.contains("65535"),
        "{problem}"
    );
}

fn nothing_else_changed(declared: &Declared) {
    assert_eq!(
        port_of(declared, "shop/checkout"),
        Some(80),
        "the last good object stays in force"
    );
    assert!(
        declared.services.contains_key(&service("shop/cart")),
        "others are not touched"
    );
}

/// What only the reader can tell to be wrong: the text has the form of a certificate.
async fn what_cannot_be_read_is_a_problem_until_it_is_mended(
    bench: &mut impl SourceBench,
    source: &mut impl Source,
) {
    let unreadable = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    good(bench, "west", &link_document(unreadable)).await;
    let declared = until(source, "a problem", |declared| {
        !declared.problems.is_empty()
    })
    .await;
    let problem = declared.problems.join("\n");
    assert!(
        problem.contains("west") && problem.contains("spec.bundle"),
        "{problem}"
    );
    assert!(declared.links.is_empty());
    let west = link("west");
    good(bench, "west", &link_document(&west.bundle.to_pem())).await;
    let declared = until(source, "the link", |declared| !declared.links.is_empty()).await;
    assert_eq!(declared.problems, Vec::<String>::new());
    let read = declared.links.values().next().expect("the link");
    assert_eq!(read.trust_domain, west.trust_domain);
    assert_eq!(read.bundle.roots, west.bundle.roots);
    what_is_wrong_takes_no_link_out(bench, source, (&west, unreadable)).await;
    bench.remove("west").await;
    until(source, "the link's end", |declared| {
        declared.links.is_empty()
    })
    .await;
}

/// Neither a bad edit of it, nor another one that claims its trust domain and comes first.
async fn what_is_wrong_takes_no_link_out(
    bench: &mut impl SourceBench,
    source: &mut impl Source,
    (west, unreadable): (&Link, &str),
) {
    let good_bundle = west.bundle.to_pem();
    let rival = link_document(&good_bundle).replace("{name: west}", "{name: alpha}");
    good(bench, "alpha", &rival).await;
    good(bench, "west", &link_document(unreadable)).await;
    let declared = until(source, "both problems", |declared| {
        let problems = declared.problems.join("\n");
        problems.contains("spec.bundle") && problems.contains("alpha")
    })
    .await;
    let links: Vec<_> = declared.links.keys().collect();
    assert_eq!(links, [&west.cluster], "{:?}", declared.problems);
    let held = &declared.links[&west.cluster];
    assert_eq!(held.bundle.roots, west.bundle.roots);
    assert!(declared.links_in_doubt);
    bench.remove("alpha").await;
    good(bench, "west", &link_document(&good_bundle)).await;
    let mended = until(source, "what was mended", |declared| {
        declared.problems.is_empty()
    })
    .await;
    assert!(!mended.links_in_doubt);
}

fn link_document(bundle: &str) -> String {
    let bundle: String = bundle.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: ClusterLink\nmetadata: {{name: west}}\n\
         spec:\n  trustDomain: west.test\n  bundle: |\n{bundle}"
    )
}

async fn good(bench: &mut impl SourceBench, name: &str, document: &str) {
    if let Err(refused) = bench.put(name, document).await {
        panic!("{name} is good, but: {refused}");
    }
}

async fn what_is_mended_is_seen(bench: &mut impl SourceBench, source: &mut impl Source) {
    good(bench, "checkout", &service_document("checkout", "8080")).await;
    until(source, "the mended object", |declared| {
        port_of(declared, "shop/checkout") == Some(8080) && declared.problems.is_empty()
    })
    .await;
}

async fn what_is_removed_is_gone(bench: &mut impl SourceBench, source: &mut impl Source) {
    bench.remove("export").await;
    bench.remove("cart").await;
    until(source, "the removal", |declared| {
        declared.exports.is_empty() && !declared.services.contains_key(&service("shop/cart"))
    })
    .await;
}

fn port_of(declared: &Declared, key: &str) -> Option<u16> {
    declared
        .services
        .get(&service(key))
        .map(|service| service.ports[0].service_port.port)
}

async fn until(
    source: &mut impl Source,
    what: &str,
    seen: impl Fn(&Declared) -> bool,
) -> Arc<Declared> {
    for _ in 0..PATIENCE {
        let declared = source.next().await.expect("the source goes on");
        if seen(&declared) {
            return declared;
        }
    }
    panic!("{what} was not seen within {PATIENCE} snapshots");
}

/// Runs the contract of [`Sink`] on a bench in which ServiceExport `shop/checkout` is declared.
///
/// # Panics
/// When the sink breaks it.
pub async fn sink_contract(bench: &mut impl SinkBench) {
    let key = service("shop/checkout");
    let mut sink = bench.sink().await;
    for status in [ConditionStatus::False, ConditionStatus::True] {
        let conditions = vec![Condition::new(
            "Valid",
            status,
            "Reason",
            "for people: \"yes\"",
        )];
        let desired = Desired {
            export_conditions: BTreeMap::from([(key.clone(), conditions.clone())]),
            ..Desired::default()
        };
        let first = sink.apply(&desired, Removals::Made).await.expect("applies");
        assert!(first.written > 0, "a new status must be written");
        assert_eq!(bench.export_conditions(&key).await, conditions);
        let again = sink
            .apply(&desired, Removals::Made)
            .await
            .expect("applies again");
        assert_eq!(
            again.written, 0,
            "applying the same again must write nothing"
        );
    }
    sink.apply(&Desired::default(), Removals::Made)
        .await
        .expect("applies nothing");
    assert_eq!(
        bench.export_conditions(&key).await,
        vec![],
        "a status without its reason must go"
    );
}

/// A place of journals that a test can damage.
pub trait JournalBench {
    /// The journal under test.
    type Journal: Journal;

    /// The journal, as it would be opened after a restart.
    fn journal(&mut self) -> impl Future<Output = Self::Journal>;
    /// Takes away a piece of what is kept of a peer, as a failing disk would.
    fn damage(&mut self, peer: &str) -> impl Future<Output = ()>;
}

/// Runs the contract of [`Journal`] on an empty bench.
///
/// # Panics
/// When the journal breaks it.
pub async fn journal_contract(bench: &mut impl JournalBench) {
    let (west, north) = (id("west"), id("north.example"));
    let mut journal = bench.journal().await;
    assert_eq!(journal.load().await.expect("loads"), [], "nothing is kept");
    journal
        .forget(&west)
        .await
        .expect("there is nothing to forget");
    // Not compressible, larger than one object of an API server may be, then smaller.
    let (large, small) = (noise(3_000_000), noise(10));
    for content in [&small, &large, &small, &large] {
        journal.save(&west, content).await.expect("saves");
        journal.save(&north, &small).await.expect("saves another");
        let mut reopened = bench.journal().await;
        assert_eq!(entry(&mut reopened, &west).await, Some(Ok(content.clone())));
        assert_eq!(entry(&mut reopened, &north).await, Some(Ok(small.clone())));
    }
    bench.damage("west").await;
    let mut reopened = bench.journal().await;
    assert_ne!(entry(&mut reopened, &west).await, Some(Ok(large.clone())));
    assert_eq!(
        entry(&mut reopened, &north).await,
        Some(Ok(small.clone())),
        "damage to one peer's journal is that one's alone"
    );
    journal.save(&west, &large).await.expect("mends");
    assert_eq!(entry(&mut journal, &west).await, Some(Ok(large)));
    journal.forget(&west).await.expect("forgets");
    let mut reopened = bench.journal().await;
    assert_eq!(entry(&mut reopened, &west).await, None);
    assert_eq!(entry(&mut reopened, &north).await, Some(Ok(small)));
    let too_large = vec![0; crate::backend::MAX_JOURNAL + 1];
    journal
        .save(&north, &too_large)
        .await
        .expect_err("it is bounded");
}

async fn entry(journal: &mut impl Journal, peer: &ClusterId) -> Option<Result<Vec<u8>, String>> {
    let entries = journal.load().await.expect("loads");
    let mut of = entries.into_iter().filter(|entry| entry.peer == *peer);
    let entry = of.next();
    assert!(of.next().is_none(), "{peer} is there twice");
    entry.map(|entry| entry.content)
}

fn id(text: &str) -> ClusterId {
    text.parse().expect("samples are valid")
}

/// Bytes without a pattern, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

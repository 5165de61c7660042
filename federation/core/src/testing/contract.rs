//! What every backend must keep, as functions that its tests call. They wait on
//! snapshots, never on time; put a time-out around them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use super::service;
use crate::backend::{Sink, Source};
use crate::declared::Declared;
use crate::model::{Condition, ConditionStatus, ServiceKey};
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
    /// Declares a document under a name of the test's own, replacing what was there.
    fn put(&mut self, name: &str, document: &str) -> impl Future<Output = ()>;
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
    bench
        .put("checkout", &service_document("checkout", "80"))
        .await;
    bench.put("export", &export_document("checkout")).await;
    bench.put("cart", &service_document("cart", "81")).await;
    let mut source = bench.source().await;
    the_first_snapshot_is_complete(&mut source).await;
    what_is_added_is_seen(bench, &mut source).await;
    a_bad_object_leaves_the_last_good_one(bench, &mut source).await;
    what_is_mended_is_seen(bench, &mut source).await;
    what_is_removed_is_gone(bench, &mut source).await;
}

async fn the_first_snapshot_is_complete(source: &mut impl Source) {
    let first = source.next().await.expect("the first snapshot");
    let services: Vec<_> = first.services.keys().map(ToString::to_string).collect();
    assert_eq!(
        services,
        ["shop/cart", "shop/checkout"],
        "the first snapshot must hold everything"
    );
    assert!(first.exports.contains_key(&service("shop/checkout")));
    assert_eq!(first.problems, Vec::<String>::new());
}

async fn what_is_added_is_seen(bench: &mut impl SourceBench, source: &mut impl Source) {
    bench.put("mail", &service_document("mail", "82")).await;
    until(source, "an added Service", |declared| {
        declared.services.contains_key(&service("shop/mail"))
    })
    .await;
}

async fn a_bad_object_leaves_the_last_good_one(
    bench: &mut impl SourceBench,
    source: &mut impl Source,
) {
    bench
        .put("checkout", &service_document("checkout", "eighty"))
        .await;
    let declared = until(source, "a problem", |declared| {
        !declared.problems.is_empty()
    })
    .await;
    assert_eq!(
        port_of(&declared, "shop/checkout"),
        Some(80),
        "the last good object stays in force"
    );
    assert!(
        declared.services.contains_key(&service("shop/cart")),
        "others are not touched"
    );
    let problem = declared.problems.join("\n");
    assert!(
        problem.contains("spec.ports[0].port") && problem.contains("65535"),
        "{problem}"
    );
}

async fn what_is_mended_is_seen(bench: &mut impl SourceBench, source: &mut impl Source) {
    bench
        .put("checkout", &service_document("checkout", "8080"))
        .await;
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
        let first = sink.apply(&desired).await.expect("applies");
        assert!(first.written > 0, "a new status must be written");
        assert_eq!(bench.export_conditions(&key).await, conditions);
        let again = sink.apply(&desired).await.expect("applies again");
        assert_eq!(
            again.written, 0,
            "applying the same again must write nothing"
        );
    }
    sink.apply(&Desired::default())
        .await
        .expect("applies nothing");
    assert_eq!(
        bench.export_conditions(&key).await,
        vec![],
        "a status without its reason must go"
    );
}

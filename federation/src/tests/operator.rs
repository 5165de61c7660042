//! What the command line asks.

use std::{fs, os::unix::fs::PermissionsExt as _};

use linkspan_api::v1;
use tonic::Code;

use crate::{
    bound::{BindError, bind},
    testing::{Home, service_yaml},
};

fn export(name: &str) -> v1::ExportRequest {
    v1::ExportRequest {
        key: key(name),
        unmeshed_clients: None,
    }
}

fn key(name: &str) -> Option<v1::ServiceKey> {
    Some(v1::ServiceKey {
        namespace: "shop".into(),
        name: name.into(),
    })
}

#[tokio::test]
async fn the_socket_and_all_secrets_are_the_owners_alone() {
    let home = Home::new("east");
    let federation = home.start().await;
    federation.token("shop", "checkout").await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.state()), 0o700);
    assert_eq!(mode(&federation.addresses.operator), 0o600);
    for file in ["ca/root.key", "ca/intermediate.pem", "tokens.json", "epoch"] {
        assert_eq!(mode(&home.state().join(file)), 0o600, "{file}");
    }
    federation.stop().await;
}

#[tokio::test]
async fn a_second_federation_on_the_same_state_is_refused() {
    let home = Home::new("east");
    let federation = home.start().await;
    let error = bind(home.config()).await.err().unwrap();
    assert!(matches!(error, BindError::State(_)), "{error}");
    federation.stop().await;
}

#[tokio::test]
async fn an_export_is_declared_once_and_only_for_a_service() {
    let home = Home::new("east");
    home.declare("checkout.yaml", &service_yaml("checkout"));
    let federation = home.start().await;
    federation
        .until("the Service", |world| world.declared.services.len() == 1)
        .await;
    let mut operator = federation.operator().await;

    let status = operator.export(export("cart")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("shop/checkout"), "{status}");

    let made = operator.export(export("checkout")).await.unwrap();
    let made = made.into_inner();
    assert!(made.created);
    let expected = home.resources().join("serviceexport-shop-checkout.yaml");
    assert_eq!(made.path, expected.display().to_string());
    let text = fs::read_to_string(&expected).unwrap();
    assert!(text.contains("creationTimestamp"), "{text}");

    federation
        .until("the export", |world| world.declared.exports.len() == 1)
        .await;
    let again = operator.export(export("checkout")).await.unwrap();
    assert!(!again.into_inner().created);

    let status = operator
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (status.cluster.as_str(), status.clusterset.as_str()),
        ("east", "demo")
    );
    let service = &status.services[0];
    assert!(service.declared && service.exported, "{service:?}");
    federation.stop().await;
}

#[tokio::test]
async fn the_bundle_names_the_parts() {
    let home = Home::new("east");
    let federation = home.start().await;
    let bundle = federation
        .operator()
        .await
        .bundle(v1::BundleRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(bundle.trust_domain, "east.demo.linkspan.internal");
    assert!(
        bundle
            .gateway_spiffe_id
            .ends_with("/ns/linkspan-system/sa/linkspan-gateway")
    );
    assert!(bundle.pem.contains("BEGIN CERTIFICATE") && !bundle.pem.contains("PRIVATE"));
    federation.stop().await;
}

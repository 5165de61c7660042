//! Who gets which certificate.

use std::time::{Duration, SystemTime};

use linkspan_api::v1::{self, discover_request::Message as Said};
use linkspan_trust::{CertificateAuthority, SpiffeId};
use tonic::Code;

use super::proxy::{Proxy, workload};
use crate::testing::{Home, Material, domain, issue};

#[tokio::test]
async fn a_token_gives_its_identity_and_the_certificate_renews_itself() {
    let home = Home::new("east");
    let federation = home.start().await;
    let token = federation.token("shop", "checkout").await;
    let first = issue(federation.anonymous().await, &token).await.unwrap();
    let id = "spiffe://east.demo.linkspan.internal/ns/shop/sa/checkout";
    assert_eq!(first.id().as_str(), id);

    let channel = federation.channel(&first.1).await.unwrap();
    let renewed = issue(channel, "").await.unwrap();
    assert_eq!(renewed.id(), first.id());

    // A process that restarts has no key on disk: the token serves again.
    issue(federation.anonymous().await, &token).await.unwrap();
    federation.stop().await;

    let federation = home.start().await;
    issue(federation.anonymous().await, &token).await.unwrap();
    let channel = federation.channel(&renewed.1).await.unwrap();
    issue(channel, "").await.unwrap();
    federation.stop().await;
}

#[tokio::test]
async fn without_proof_there_is_no_certificate() {
    let home = Home::new("east");
    let federation = home.start().await;
    for token in ["", "lsj1.wrong", "nonsense"] {
        let status = issue(federation.anonymous().await, token)
            .await
            .err()
            .unwrap();
        assert_eq!(status.code(), Code::Unauthenticated, "{token}: {status}");
    }
    federation.stop().await;
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let home = Home::new("east");
    let federation = home.start().await;
    let token = federation.token("shop", "checkout").await;
    federation.stop().await;
    // What a day does to the file.
    let path = home.state().join("tokens.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let past = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        - 1;
    let mut entries: serde_json::Value = serde_json::from_str(&text).unwrap();
    entries[0]["expiresUnix"] = past.into();
    std::fs::write(&path, entries.to_string()).unwrap();

    let federation = home.start().await;
    let status = issue(federation.anonymous().await, &token)
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    federation.stop().await;
}

async fn token_with(
    federation: &crate::testing::Federation,
    request: v1::CreateJoinTokenRequest,
) -> v1::CreateJoinTokenResponse {
    let mut operator = federation.operator().await;
    let request = v1::CreateJoinTokenRequest {
        namespace: "shop".into(),
        service_account: "checkout".into(),
        ..request
    };
    operator
        .create_join_token(request)
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn a_revoked_token_ends_renewals_and_streams_and_lets_others_be() {
    let home = Home::new("east");
    let federation = home.start().await;
    let [one, other] = [
        token_with(&federation, v1::CreateJoinTokenRequest::default()).await,
        token_with(&federation, v1::CreateJoinTokenRequest::default()).await,
    ];
    let first = issue(federation.anonymous().await, &one.token)
        .await
        .unwrap();
    let channel = federation.channel(&first.1).await.unwrap();
    let renewed = issue(channel, "").await.unwrap();
    let kept = issue(federation.anonymous().await, &other.token)
        .await
        .unwrap();
    let mut proxies = Vec::new();
    for (uid, material) in [("one", &renewed), ("other", &kept)] {
        let proxy = Proxy::open(&federation, material).await.unwrap();
        proxy.say(Said::Workload(workload(uid, "checkout"))).await;
        proxy.subscribe(&[]).await;
        proxies.push(proxy);
    }
    for proxy in &mut proxies {
        proxy.until(|proxy| proxy.complete).await;
    }
    let mut operator = federation.operator().await;
    let listed = operator
        .list_join_tokens(v1::ListJoinTokensRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.tokens.len(), 2);
    assert!(
        listed
            .tokens
            .iter()
            .all(|token| token.last_used_unix.is_some())
    );
    let request = v1::RevokeJoinTokenRequest { id: one.id.clone() };
    let answer = operator.revoke_join_token(request.clone()).await.unwrap();
    assert_eq!(answer.into_inner().spiffe_id, first.id().to_string());
    let again = operator.revoke_join_token(request).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound, "{again}");

    let status = proxies[0].refusal().await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("revoked"), "{status}");
    for material in [&first, &renewed] {
        let channel = federation.channel(&material.1).await.unwrap();
        let status = issue(channel, "").await.err().unwrap();
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        let opened = Proxy::open(&federation, material).await;
        assert_eq!(opened.err().unwrap().code(), Code::PermissionDenied);
    }
    let status = issue(federation.anonymous().await, &one.token)
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    // The other one of the same identity is not concerned.
    let channel = federation.channel(&kept.1).await.unwrap();
    issue(channel, "").await.unwrap();
    proxies[1]
        .say(Said::Workload(workload("other", "checkout")))
        .await;
    let reopened = Proxy::open(&federation, &kept).await;
    assert!(reopened.is_ok());
    federation.stop().await;
}

#[tokio::test]
async fn labels_that_a_token_binds_are_registered_exactly() {
    let home = Home::new("east");
    let federation = home.start().await;
    let bound = |app: &str| [("app".to_owned(), app.to_owned())].into();
    let request = v1::CreateJoinTokenRequest {
        labels: bound("checkout"),
        ..v1::CreateJoinTokenRequest::default()
    };
    let token = token_with(&federation, request).await;
    let joined = issue(federation.anonymous().await, &token.token)
        .await
        .unwrap();
    let renewed = issue(federation.channel(&joined.1).await.unwrap(), "")
        .await
        .unwrap();
    for (material, labels, good) in [
        (&joined, bound("ledger"), false),
        (&renewed, Default::default(), false),
        (&renewed, bound("checkout"), true),
    ] {
        let mut proxy = Proxy::open(&federation, material).await.unwrap();
        let said = v1::WorkloadRegistration {
            labels,
            ..workload("one", "checkout")
        };
        proxy.say(Said::Workload(said)).await;
        proxy.subscribe(&[]).await;
        if good {
            proxy.until(|proxy| proxy.complete).await;
        } else {
            let status = proxy.refusal().await;
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        }
    }
    federation.stop().await;
}

#[tokio::test]
async fn renewals_end_when_the_token_says() {
    let home = Home::new("east");
    let federation = home.start().await;
    let token = federation.token("shop", "checkout").await;
    let joined = issue(federation.anonymous().await, &token).await.unwrap();
    federation.stop().await;
    // What a year does to the file.
    let path = home.state().join("tokens.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut entries: serde_json::Value = serde_json::from_str(&text).unwrap();
    entries[0]["renewsUntilUnix"] = 1.into();
    std::fs::write(&path, entries.to_string()).unwrap();

    let federation = home.start().await;
    let channel = federation.channel(&joined.1).await.unwrap();
    let status = issue(channel, "").await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    issue(federation.anonymous().await, &token).await.unwrap();
    federation.stop().await;
}

#[tokio::test]
async fn reserved_identities_get_no_token() {
    let home = Home::new("east");
    let federation = home.start().await;
    for service_account in ["linkspan-federation", "linkspan-unmeshed-client", "other"] {
        let request = v1::CreateJoinTokenRequest {
            namespace: "linkspan-system".into(),
            service_account: service_account.into(),
            ttl_seconds: 60,
            ..v1::CreateJoinTokenRequest::default()
        };
        let status = federation
            .operator()
            .await
            .create_join_token(request)
            .await
            .unwrap_err();
        assert_eq!(
            status.code(),
            Code::PermissionDenied,
            "{service_account}: {status}"
        );
    }
    let gateway = federation.gateway().await;
    assert_eq!(gateway.id(), SpiffeId::gateway(&federation.domain));
    federation.stop().await;
}

#[tokio::test]
async fn a_malformed_request_is_refused() {
    let home = Home::new("east");
    let federation = home.start().await;
    let token = federation.token("shop", "checkout").await;
    let mut client = v1::identity_client::IdentityClient::new(federation.anonymous().await);
    for csr in [Vec::new(), vec![0; 64], vec![0x30; 20_000]] {
        let request = v1::IssueRequest {
            issued_for: 0,
            csr: csr.into(),
            join_token: token.clone(),
        };
        let status = client.issue(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    federation.stop().await;
}

#[tokio::test]
async fn strangers_do_not_get_past_the_handshake() {
    let home = Home::new("east");
    let federation = home.start().await;
    let roots = federation.bundle().await;
    // The right name under the wrong root, and a domain that is not linked.
    for (of, id) in [
        ("east", SpiffeId::gateway(&domain("east"))),
        ("north", SpiffeId::federation(&domain("north"))),
    ] {
        let authority = CertificateAuthority::create(&domain(of), SystemTime::now()).unwrap();
        let stranger = Material::foreign(&authority, id, &federation, roots.clone());
        // TLS 1.3: the client may believe itself connected until it reads.
        if let Ok(channel) = federation.channel(&stranger.1).await {
            issue(channel, "").await.err().unwrap();
        }
    }
    federation.stop().await;
}

#[tokio::test]
async fn certificates_live_as_long_as_configured() {
    let mut home = Home::new("east");
    home.timers.svid_lifetime = Duration::from_secs(3600);
    let federation = home.start().await;
    let member = federation.member("shop", "checkout").await;
    let left = member
        .1
        .current()
        .svid()
        .not_after()
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(left <= Duration::from_secs(3600), "{left:?}");
    federation.stop().await;
}

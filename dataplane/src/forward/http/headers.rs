//! Headers that belong to one hop only, and what changes between HTTP/1.1 and HTTP/2.
//!
//! RFC 9110 §7.6.1 (connection-specific fields), RFC 9113 §8.2.2 and §8.3.1 (HTTP/2's own rules),
//! and Envoy's `x-forwarded-client-cert` for the application's knowledge of its caller.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use linkspan_trust::SpiffeId;

/// Names the caller to the application; what a client sends under this name is dropped.
pub const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A request that does not say clearly where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request names no valid host, or several")]
pub struct BadAuthority;

/// Removes what was meant for this hop alone: `connection` and the fields that it names, and the
/// other connection-specific fields. `te: trailers` stays, because trailers are passed on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let trailers = accepts_trailers(headers);
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Makes the head of a request fit for HTTP/2, whatever it came by: `host` becomes `:authority`
/// (`fallback` where there is neither), and the URI gets the scheme that it needs.
///
/// # Errors
/// If the host is no authority, or if there are several `host` fields: whoever reads another one
/// than we do would take the request for another one.
pub fn for_http2(head: &mut Parts, fallback: &Authority) -> Result<(), BadAuthority> {
    strip_hop_by_hop(&mut head.headers);
    let host = host(&head.headers)?;
    let authority = head.uri.authority().cloned().or(host);
    let authority = authority.unwrap_or_else(|| fallback.clone());
    head.headers.remove(header::HOST);
    let path = path_of(&head.uri);
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(authority)
        .path_and_query(path);
    head.uri = uri.build().map_err(|_| BadAuthority)?;
    head.version = Version::HTTP_2;
    Ok(())
}

/// Makes the head of a request fit for HTTP/1.1: `:authority` becomes `host`, the target its
/// origin form, and cookies one field (RFC 9113 §8.2.3). A request that names no host, as HTTP/2
/// allows, gets `fallback`, since HTTP/1.1 requires one.
///
/// # Errors
/// As [`for_http2`].
pub fn for_http1(head: &mut Parts, fallback: &Authority) -> Result<(), BadAuthority> {
    strip_hop_by_hop(&mut head.headers);
    let host = host(&head.headers)?;
    // RFC 9112 §3.2.2: the target's authority wins over a `host` field.
    let authority = head.uri.authority().cloned().or(host);
    let authority = authority.unwrap_or_else(|| fallback.clone());
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BadAuthority)?;
    head.headers.insert(header::HOST, host);
    if head.headers.contains_key(header::TE) {
        // RFC 9110 §10.1.4: `te` concerns this hop, and must say so.
        head.headers
            .insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    join_cookies(&mut head.headers);
    head.uri = path_of(&head.uri).into();
    head.version = Version::HTTP_11;
    Ok(())
}

/// RFC 9112 §3.2: one field at most.
fn host(headers: &HeaderMap) -> Result<Option<Authority>, BadAuthority> {
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadAuthority);
    }
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return Ok(None);
    };
    Authority::try_from(host.as_bytes())
        .map(Some)
        .map_err(|_| BadAuthority)
}

fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() < 2 {
        return;
    }
    // Each part is a valid value, and so is their list.
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Tells the application who calls, in the form that Envoy uses: `By=<own id>;URI=<caller's id>`.
/// Replaces whatever the client claimed, also under spellings with `_` for `-`, which CGI and its
/// heirs give to the application under the same name.
///
/// To be called last: what strips hop-by-hop fields removes whatever `connection` names, and the
/// client decides what that is.
pub fn set_caller(headers: &mut HeaderMap, own: &SpiffeId, caller: &SpiffeId) {
    for name in claims(headers) {
        headers.remove(name);
    }
    // SPIFFE IDs hold none of the characters that the form or a header would need quoted.
    if let Ok(value) = HeaderValue::from_str(&format!("By={own};URI={caller}")) {
        headers.insert(FORWARDED_CLIENT_CERT, value);
    }
}

/// All names under which an application might take a field for the caller's.
fn claims(headers: &HeaderMap) -> Vec<HeaderName> {
    let same = |name: &&HeaderName| {
        let name = name.as_str().bytes();
        let plain = name.map(|byte| if byte == b'_' { b'-' } else { byte });
        plain.eq(FORWARDED_CLIENT_CERT.as_str().bytes())
    };
    headers.keys().filter(same).cloned().collect()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn strips_this_hop_and_what_connection_names() {
        let mut head = head(
            Request::get("/")
                .header("connection", "close, X-Private")
                .header("x-private", "1")
                .header("keep-alive", "timeout=5")
                .header("proxy-connection", "keep-alive")
                .header("transfer-encoding", "chunked")
                .header("upgrade", "websocket")
                .header("te", "gzip, trailers")
                .header("x-kept", "1"),
        );
        strip_hop_by_hop(&mut head.headers);
        assert_eq!(names(&head.headers), ["x-kept", "te"]);
        assert_eq!(head.headers["te"], "trailers");
    }

    #[test]
    fn host_becomes_authority() {
        let fallback = Authority::from_static("checkout.shop");
        let mut with = head(Request::get("/a?b=c").header("host", "example.org:8080"));
        for_http2(&mut with, &fallback).unwrap();
        assert_eq!(with.uri, "http://example.org:8080/a?b=c");
        assert!(with.headers.is_empty() && with.version == Version::HTTP_2);
        let mut without = head(Request::get("/"));
        for_http2(&mut without, &fallback).unwrap();
        assert_eq!(without.uri, "http://checkout.shop/");
        let mut odd = head(Request::get("/").header("host", "a b"));
        assert_eq!(for_http2(&mut odd, &fallback), Err(BadAuthority));
    }

    #[test]
    fn authority_becomes_host_and_cookies_one_field() {
        let request = Request::get("http://example.org/a?b")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("te", "trailers");
        let mut head = head(request);
        for_http1(&mut head, &Authority::from_static("x")).unwrap();
        assert_eq!(head.uri, "/a?b");
        assert_eq!(head.headers["host"], "example.org");
        assert_eq!(head.headers["cookie"], "a=1; b=2");
        assert_eq!(head.headers["connection"], "te");
    }

    #[test]
    fn asterisk_form_survives_both_ways() {
        let fallback = Authority::from_static("x");
        let mut head = head(Request::options("*").header("host", "a"));
        for_http2(&mut head, &fallback).unwrap();
        assert_eq!(head.uri.path(), "*");
        for_http1(&mut head, &fallback).unwrap();
        assert_eq!(head.uri, "*");
    }

    #[test]
    fn one_host_whatever_came() {
        let fallback = Authority::from_static("checkout.shop");
        let twice =
            |request: http::request::Builder| head(request.header("host", "a").header("host", "b"));
        for request in [Request::get("/"), Request::get("http://a/")] {
            let mut twice = twice(request);
            let http2 = for_http2(&mut twice.clone(), &fallback);
            assert_eq!(http2, Err(BadAuthority));
            assert_eq!(for_http1(&mut twice, &fallback), Err(BadAuthority));
        }
        for empty in [Request::get("/"), Request::get("/").header("host", "")] {
            let mut none = head(empty);
            for_http1(&mut none, &fallback).unwrap();
            assert_eq!(none.headers["host"], "checkout.shop");
        }
    }

    #[test]
    fn a_forged_caller_is_dropped() {
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        let request = Request::get("/")
            .header(
                "x-forwarded-client-cert",
                "URI=spiffe://east.test/ns/shop/sa/admin",
            )
            .header(
                "x-forwarded-client-cert",
                "URI=spiffe://east.test/ns/shop/sa/root",
            )
            .header(
                "x-forwarded_client-cert",
                "URI=spiffe://east.test/ns/shop/sa/root",
            );
        let mut head = head(request);
        set_caller(
            &mut head.headers,
            &id("spiffe://west.test/ns/shop/sa/checkout"),
            &id("spiffe://east.test/ns/shop/sa/frontend"),
        );
        assert_eq!(names(&head.headers), ["x-forwarded-client-cert"]);
        let values: Vec<_> = head.headers.get_all(FORWARDED_CLIENT_CERT).iter().collect();
        assert_eq!(
            values,
            [
                "By=spiffe://west.test/ns/shop/sa/checkout;URI=spiffe://east.test/ns/shop/sa/frontend"
            ]
        );
    }
}

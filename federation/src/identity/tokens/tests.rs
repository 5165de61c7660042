use std::path::PathBuf;

use super::*;
use crate::state::files;

fn id(name: &str) -> SpiffeId {
    format!("spiffe://east.test/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

fn wanted(name: &str, ttl: Duration) -> Wanted {
    Wanted {
        id: id(name),
        ttl,
        renew_for: DEFAULT_RENEW_FOR,
        binding: Binding::default(),
    }
}

fn open() -> (tempfile::TempDir, PathBuf, JoinTokens) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens.json");
    let tokens = JoinTokens::open(&path).unwrap();
    (directory, path, tokens)
}

#[test]
fn a_token_names_its_identity_until_it_expires_also_after_a_restart() {
    let (_directory, path, tokens) = open();
    let now = SystemTime::now();
    let minute = Duration::from_secs(60);
    let made = tokens.create(wanted("checkout", minute), now).unwrap();
    let again = JoinTokens::open(&path).unwrap();
    for store in [&tokens, &again] {
        for _ in 0..2 {
            let found = store.identity(&made.secret, now).unwrap();
            assert_eq!(found, (made.id.clone(), id("checkout")));
        }
        let late = now + minute + Duration::from_secs(1);
        assert_eq!(store.identity(&made.secret, late), None);
    }
}

#[test]
fn a_revoked_token_is_nobodys_and_renews_nothing() {
    let (_directory, path, tokens) = open();
    let now = SystemTime::now();
    let made = tokens.create(wanted("a", DEFAULT_TTL), now).unwrap();
    let other = tokens.create(wanted("b", DEFAULT_TTL), now).unwrap();
    assert!(tokens.renews(&made.id, now));
    let mut revocations = tokens.revocations();
    assert_eq!(tokens.revoke(&made.id, now).unwrap(), id("a"));
    assert!(revocations.has_changed().unwrap());
    revocations.mark_unchanged();
    assert!(matches!(
        tokens.revoke(&made.id, now),
        Err(TokenError::Unknown(_))
    ));
    for store in [&tokens, &JoinTokens::open(&path).unwrap()] {
        assert_eq!(store.identity(&made.secret, now), None);
        assert!(!store.renews(&made.id, now));
        assert_eq!(store.binding(&made.id), None);
        let left: Vec<_> = store.list(now).into_iter().map(|of| of.id).collect();
        assert_eq!(left, [other.id.as_str()]);
    }
}

#[test]
fn renewals_end_when_the_token_says() {
    let (_directory, _, tokens) = open();
    let now = SystemTime::now();
    let wanted = Wanted {
        renew_for: 2 * DEFAULT_TTL,
        ..wanted("a", DEFAULT_TTL)
    };
    let made = tokens.create(wanted, now).unwrap();
    let expired = now + DEFAULT_TTL + Duration::from_secs(1);
    assert!(tokens.renews(&made.id, expired));
    assert!(!tokens.renews(&made.id, now + 3 * DEFAULT_TTL));
}

#[test]
fn what_a_token_binds_and_its_last_use_are_listed_and_kept() {
    let (_directory, path, tokens) = open();
    let now = SystemTime::now();
    let binding = Binding {
        labels: BTreeMap::from([("app".into(), "checkout".into())]),
        any_address: true,
        ..Binding::default()
    };
    let wanted = Wanted {
        binding: binding.clone(),
        ..wanted("a", DEFAULT_TTL)
    };
    let made = tokens.create(wanted, now).unwrap();
    assert_eq!(tokens.list(now)[0].last_used_unix, None);
    tokens.used(&made.id, now + 24 * DEFAULT_TTL, now);
    tokens.write_uses(now).unwrap();
    let again = JoinTokens::open(&path).unwrap();
    // Expired, but what was issued for it lives.
    let listed = again.list(now + 2 * DEFAULT_TTL).remove(0);
    assert_eq!(
        (listed.binding, listed.last_used_unix),
        (binding, Some(unix(now)))
    );
    assert!(again.list(now + 25 * DEFAULT_TTL).is_empty());
}

#[test]
fn a_file_of_an_earlier_version_is_read() {
    let (_directory, path, _) = open();
    let json = format!(
        r#"[{{"hash":"{}","spiffeId":"{}","expiresUnix":4000000000}}]"#,
        hash(b"token"),
        id("a")
    );
    files::write_atomic(&path, json.as_bytes(), files::PRIVATE_FILE).unwrap();
    let tokens = JoinTokens::open(&path).unwrap();
    let listed = tokens.list(SystemTime::now()).remove(0);
    assert!(tokens.renews(&listed.id, SystemTime::now()));
}

#[test]
fn a_malformed_entry_is_damage_and_no_panic() {
    let (_directory, path, _) = open();
    let good = hash(b"token");
    for (hash, expires) in [(good.as_str(), u64::MAX), ("short", 4_000_000_000)] {
        let json = format!(
            r#"[{{"hash":"{hash}","spiffeId":"{}","expiresUnix":{expires}}}]"#,
            id("a")
        );
        files::write_atomic(&path, json.as_bytes(), files::PRIVATE_FILE).unwrap();
        let opened = JoinTokens::open(&path);
        assert!(matches!(opened, Err(StateError::Damaged { .. })), "{json}");
    }
}

#[test]
fn neither_file_nor_list_holds_the_token() {
    let (_directory, path, tokens) = open();
    let now = SystemTime::now();
    let made = tokens.create(wanted("a", DEFAULT_TTL), now).unwrap();
    let secret = made.secret.strip_prefix(PREFIX).unwrap();
    let text = String::from_utf8(files::read_private(&path).unwrap().unwrap()).unwrap();
    assert!(!text.contains(secret));
    assert!(!format!("{:?}", tokens.list(now)).contains(secret));
}

#[test]
fn unknown_and_malformed_tokens_are_nobody() {
    let (_directory, _, tokens) = open();
    let now = SystemTime::now();
    tokens.create(wanted("a", DEFAULT_TTL), now).unwrap();
    let unknown = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([7_u8; 32]));
    for token in ["", "lsj1.", "lsj1.!!!", "other", &unknown] {
        assert_eq!(tokens.identity(token, now), None, "{token}");
    }
}

#[test]
fn expired_tokens_leave_the_file() {
    let (_directory, path, tokens) = open();
    let now = SystemTime::now();
    let second = Duration::from_secs(1);
    tokens.create(wanted("a", second), now).unwrap();
    tokens
        .create(wanted("b", DEFAULT_TTL), now + 5 * second)
        .unwrap();
    let text = String::from_utf8(files::read_private(&path).unwrap().unwrap()).unwrap();
    assert!(!text.contains("sa/a") && text.contains("sa/b"), "{text}");
}

#[test]
fn lifetimes_are_bounded() {
    let (_directory, _, tokens) = open();
    let now = SystemTime::now();
    let second = Duration::from_secs(1);
    for ttl in [Duration::ZERO, MAX_TTL + second] {
        let refused = tokens.create(wanted("a", ttl), now);
        assert!(matches!(refused, Err(TokenError::Lifetime(_))));
    }
    for renew_for in [Duration::ZERO, MAX_RENEW_FOR + second] {
        let wanted = Wanted {
            renew_for,
            ..wanted("a", DEFAULT_TTL)
        };
        let refused = tokens.create(wanted, now);
        assert!(matches!(refused, Err(TokenError::RenewFor(_))));
    }
}

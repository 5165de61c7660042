//! One question of the API server and its answer: a pure function from bytes to bytes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use linkspan_core::inject::{Capture, Done, Injection, NotInjected, inject_pod};
use serde::Deserialize;
use serde_json::{Value, json};

const VERSION: &str = "admission.k8s.io/v1";
/// What an API server answers for what is well-formed and cannot be.
const UNPROCESSABLE: u16 = 422;

/// Values in one question: some hundred times what large pods have. Each costs some hundred bytes
/// while it is looked at, however short it is written.
const MAX_VALUES: usize = 50_000;

/// By what a pod is judged, beside itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    /// What sidecars of the cluster have in common.
    pub(crate) injection: &'a Injection,
    /// What holds for pods that do not say it.
    pub(crate) capture: Capture,
}

/// Why there is no answer: the API server then refuses the pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("this is no AdmissionReview")]
    NoReview(#[from] serde_json::Error),
    #[error("this has more than {MAX_VALUES} values, which is no pod")]
    TooMuch,
    #[error("this is `{0}`, and not an AdmissionReview of {VERSION} with a request")]
    OtherKind(String),
    #[error("pods are reviewed here as they are made, and this is {operation} of {kind}")]
    NoPod { kind: String, operation: String },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

#[derive(Debug, Deserialize)]
struct Request {
    uid: String,
    kind: Kind,
    operation: String,
    object: Value,
}

#[derive(Debug, Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    kind: String,
}

/// Answers a review of a pod that is to have a sidecar: by a patch that puts it in, by a refusal that
/// says why it cannot have one, or, where the pod says that it wants none, by leaving it as it is.
pub(crate) fn review(bytes: &[u8], context: Context<'_>) -> Result<Vec<u8>, Malformed> {
    if has_more_values(bytes, MAX_VALUES) {
        return Err(Malformed::TooMuch);
    }
    let review: Review = serde_json::from_slice(bytes)?;
    let named = format!("{} {}", review.api_version, review.kind);
    let ours = review.api_version == VERSION && review.kind == "AdmissionReview";
    let request = review.request.filter(|_| ours);
    let request = request.ok_or(Malformed::OtherKind(clipped(&named)))?;
    if request.kind.kind != "Pod" || !request.kind.group.is_empty() || request.operation != "CREATE"
    {
        return Err(Malformed::NoPod {
            kind: clipped(&request.kind.kind),
            operation: clipped(&request.operation),
        });
    }
    let answer = json!({
        "apiVersion": VERSION,
        "kind": "AdmissionReview",
        "response": response(&request, context),
    });
    Ok(answer.to_string().into_bytes())
}

/// Whether this JSON may have more values than so many: each but the first follows one of these signs.
fn has_more_values(json: &[u8], most: usize) -> bool {
    let (mut in_text, mut escaped, mut values) = (false, false, 0);
    for byte in json {
        match (in_text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'{' | b'[' | b',') => values += 1,
            _ => {}
        }
    }
    values > most
}

fn response(request: &Request, context: Context<'_>) -> Value {
    let mut pod = request.object.clone();
    match inject_pod(&mut pod, context.injection, context.capture) {
        Ok(Done::Nothing) => json!({ "uid": request.uid, "allowed": true }),
        Ok(done) => injected(request, &pod, done, context.capture),
        Err(error) => refused(request, &error),
    }
}

fn injected(request: &Request, pod: &Value, done: Done, capture: Capture) -> Value {
    let mut response = json!({ "uid": request.uid, "allowed": true });
    let patch = patch(&request.object, pod);
    if !patch.is_empty() {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(Value::from(patch).to_string()));
    }
    if done == Done::Listeners && capture == Capture::Forbidden {
        response["warnings"] = json!([
            "linkspan: the namespace enforces a Pod Security profile; calls are not captured",
            "linkspan: name the services that the pod calls in annotation linkspan.io/outbound",
        ]);
    }
    response
}

fn refused(request: &Request, error: &NotInjected) -> Value {
    let message = format!(
        "the pod is labelled to have a sidecar of Linkspan, and cannot: {error}; or label it \
         `linkspan.io/inject: \"false\"`"
    );
    json!({
        "uid": request.uid,
        "allowed": false,
        "status": { "code": UNPROCESSABLE, "message": message },
    })
}

/// What injection has changed, field by field of the pod's two parts. Adding what is there replaces it,
/// and injection takes nothing away.
fn patch(before: &Value, after: &Value) -> Vec<Value> {
    let mut patch = Vec::new();
    for part in ["metadata", "spec"] {
        for (field, value) in after[part].as_object().into_iter().flatten() {
            if before[part].get(field) != Some(value) {
                // No field of a pod has a name that a pointer would have to escape.
                let path = format!("/{part}/{field}");
                patch.push(json!({ "op": "add", "path": path, "value": value }));
            }
        }
    }
    patch
}

/// Enough of somebody's text to recognize it.
fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use linkspan_core::{
        Locality,
        inject::{CAPTURE_CONTAINER, CONTAINER, INJECT},
    };
    use proptest::prelude::*;

    use super::*;

    fn injection() -> Injection {
        Injection {
            cluster: "east".parse().unwrap(),
            trust_domain: "east.test".parse().unwrap(),
            federation: "federation.test:15010".into(),
            roots: "-----BEGIN CERTIFICATE-----\n".into(),
            locality: Locality::unknown(),
            image: "linkspan:dev".into(),
            image_pull_policy: "Never".into(),
        }
    }

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "generateName": "web-", "labels": { INJECT: "true" } },
            "spec": { "containers": [{ "name": "app", "image": "app" }] },
        })
    }

    fn asked(pod: &Value) -> Value {
        json!({
            "apiVersion": VERSION, "kind": "AdmissionReview",
            "request": {
                "uid": "7", "operation": "CREATE", "namespace": "shop",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "object": pod,
            },
        })
    }

    fn answer(pod: &Value, capture: Capture) -> Value {
        let injection = injection();
        let context = Context {
            injection: &injection,
            capture,
        };
        let answer = review(asked(pod).to_string().as_bytes(), context).unwrap();
        let mut answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&json!(VERSION), &json!("AdmissionReview"))
        );
        assert_eq!(answer["response"]["uid"], "7");
        answer["response"].take()
    }

    /// As the API server applies it.
    fn patched(pod: &Value, response: &Value) -> Value {
        let mut pod = pod.clone();
        let Some(patch) = response["patch"].as_str() else {
            return pod;
        };
        assert_eq!(response["patchType"], "JSONPatch");
        let patch: Vec<Value> = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
        for operation in patch {
            assert_eq!(operation["op"], "add");
            let path = operation["path"].as_str().unwrap();
            let (parent, key) = path.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[key] = operation["value"].clone();
        }
        pod
    }

    #[test]
    fn a_pod_comes_back_with_a_sidecar_and_again_unchanged() {
        let response = answer(&pod(), Capture::Yes);
        assert_eq!(response["allowed"], true);
        assert_eq!(response["warnings"], Value::Null);
        let once = patched(&pod(), &response);
        let mut whole = pod();
        inject_pod(&mut whole, &injection(), Capture::Yes).unwrap();
        assert_eq!(once, whole, "nothing is left out");
        let containers = &once["spec"]["initContainers"];
        assert_eq!(containers[0]["name"], CAPTURE_CONTAINER);
        assert_eq!(containers[1]["name"], CONTAINER);
        let again = answer(&once, Capture::Yes);
        assert_eq!(
            (&again["allowed"], &again["patch"]),
            (&json!(true), &Value::Null)
        );
    }

    #[test]
    fn where_capture_is_forbidden_it_is_said() {
        let response = answer(&pod(), Capture::Forbidden);
        let pod = patched(&pod(), &response);
        assert_eq!(pod["spec"]["initContainers"][0]["name"], CONTAINER);
        assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 1);
        let warnings = response["warnings"].as_array().unwrap();
        // The API server cuts longer ones.
        assert!(
            warnings
                .iter()
                .all(|text| text.as_str().unwrap().len() <= 120)
        );
        assert!(
            warnings[1]
                .as_str()
                .unwrap()
                .contains("linkspan.io/outbound")
        );
    }

    #[test]
    fn who_wants_none_is_left_alone() {
        let mut pod = pod();
        pod["metadata"]["labels"][INJECT] = json!("false");
        let response = answer(&pod, Capture::Yes);
        assert_eq!(response, json!({ "uid": "7", "allowed": true }));
    }

    #[test]
    fn who_cannot_have_one_is_refused_and_told_why() {
        let mut pod = pod();
        pod["spec"]["hostNetwork"] = json!(true);
        let response = answer(&pod, Capture::Yes);
        assert_eq!(response["allowed"], false);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(
            message.contains("hostNetwork") && message.contains("\"false\""),
            "{message}"
        );
    }

    #[test]
    fn what_is_no_review_of_a_pod_gets_no_answer() {
        let injection = injection();
        let refused = |bytes: &[u8]| {
            let context = Context {
                injection: &injection,
                capture: Capture::Yes,
            };
            review(bytes, context).unwrap_err().to_string()
        };
        let changed = |pointer: &str, value: Value| {
            let mut review = asked(&pod());
            *review.pointer_mut(pointer).unwrap() = value;
            refused(review.to_string().as_bytes())
        };
        assert!(refused(b"").contains("no AdmissionReview"));
        assert!(refused(b"[]").contains("no AdmissionReview"));
        assert!(changed("/kind", json!("Pod")).contains("not an AdmissionReview"));
        assert!(changed("/apiVersion", json!("admission.k8s.io/v2")).contains("v2"));
        assert!(changed("/request", Value::Null).contains("with a request"));
        assert!(changed("/request/operation", json!("UPDATE")).contains("UPDATE of Pod"));
        assert!(changed("/request/kind/kind", json!("Node")).contains("of Node"));
        assert!(changed("/request/kind/group", json!("apps")).contains("of Pod"));
        // A pod of the wrong shape is refused as a pod.
        for object in [json!(null), json!({}), json!({ "metadata": 7, "spec": {} })] {
            assert_eq!(answer(&object, Capture::Yes)["allowed"], false);
        }
    }

    #[test]
    fn what_has_more_values_than_a_pod_is_not_looked_at() {
        let text = r#"{"a\",[{":[1,{"b":",,,"}]}"#;
        assert!(has_more_values(text.as_bytes(), 3));
        assert!(!has_more_values(text.as_bytes(), 4));
        let mut pod = pod();
        let injection = injection();
        let mut ask = |maps: usize| {
            pod["spec"]["many"] = vec![json!({ "": 0 }); maps].into();
            let context = Context {
                injection: &injection,
                capture: Capture::Yes,
            };
            review(asked(&pod).to_string().as_bytes(), context)
        };
        ask(20_000).unwrap();
        assert!(matches!(ask(30_000), Err(Malformed::TooMuch)));
    }

    /// Anything that JSON can say, out of the words that matter here.
    fn anything() -> impl Strategy<Value = Value> {
        let words = [
            "metadata",
            "labels",
            "annotations",
            "spec",
            "containers",
            "initContainers",
            "volumes",
            "name",
            "ports",
            "containerPort",
            "securityContext",
            "runAsUser",
            "hostNetwork",
            "readinessProbe",
            "httpGet",
            "port",
            "linkspan.io/inject",
            "linkspan.io/capture",
            "linkspan.io/capture-except",
            "linkspan.io/outbound",
            "linkspan-sidecar",
            "true",
        ];
        let word = proptest::sample::select(words.to_vec());
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u32>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 6, move |inner| {
            let fields = prop::collection::btree_map(
                word.clone().prop_map(str::to_owned),
                inner.clone(),
                0..6,
            );
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// It is refused, or comes back with a sidecar; it never ends the webhook.
        #[test]
        fn whatever_a_pod_is_it_gets_an_answer(object in anything(), spec in anything()) {
            let whole = json!({ "metadata": object.clone(), "spec": {
                "containers": [spec.clone(), spec.clone()], "initContainers": spec,
            } });
            for pod in [object, whole] {
                let allowed = answer(&pod, Capture::Yes)["allowed"].clone();
                prop_assert!(allowed.is_boolean());
            }
        }
    }
}

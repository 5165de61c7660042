//! Accounts and what they may do: exactly what the code does, and each right with its reason.

use serde_json::{Value, json};

use super::{
    SYSTEM_NAMESPACE, federation, gateway,
    manifest::{cluster_wide, namespaced},
};

/// One thing that federation does with the API.
pub(super) struct Right {
    pub(super) group: &'static str,
    pub(super) resources: &'static [&'static str],
    pub(super) verbs: &'static [&'static str],
    /// Only these objects; all where there are none.
    pub(super) names: &'static [&'static str],
    /// For people: also a row of docs/kubernetes.md.
    pub(super) why: &'static str,
}

const MCS: &str = "multicluster.x-k8s.io";
const OWN: &str = "linkspan.io";

/// In all namespaces.
pub(super) const EVERYWHERE: &[Right] = &[
    Right {
        group: "",
        resources: &["namespaces"],
        verbs: &["list", "watch"],
        names: &[],
        why: "where imports belong",
    },
    Right {
        group: "",
        resources: &["services"],
        verbs: &["list", "watch", "create", "patch", "delete"],
        names: &[],
        why: "what is there to be exported; one Service for each import, with its address",
    },
    Right {
        group: "discovery.k8s.io",
        resources: &["endpointslices"],
        verbs: &["list", "watch", "create", "patch", "delete"],
        names: &[],
        why: "which pods serve what is exported, and at which number of a named port; where the addresses of imports lead",
    },
    Right {
        group: "",
        resources: &["nodes"],
        verbs: &["list", "watch"],
        names: &[],
        why: "in which zone and region pods are; their addresses, to which no peer is led; with `--expose NodePort`, those that peers are told",
    },
    Right {
        group: MCS,
        resources: &["serviceexports"],
        verbs: &["get", "list", "watch", "create", "delete"],
        names: &[],
        why: "what is exported; `linkspan export` and `unexport`",
    },
    Right {
        group: MCS,
        resources: &["serviceimports"],
        verbs: &["list", "watch", "create", "patch", "delete"],
        names: &[],
        why: "writing what the clusterset offers, by server-side apply",
    },
    Right {
        group: MCS,
        resources: &["serviceexports/status", "serviceimports/status"],
        verbs: &["patch"],
        names: &[],
        why: "conditions",
    },
    Right {
        group: OWN,
        resources: &["clusterlinks", "failoverpolicies"],
        verbs: &["get", "list", "watch", "create", "update", "delete"],
        names: &[],
        why: "links and policies; `linkspan link`, `failover` and `drain`",
    },
    Right {
        group: OWN,
        resources: &["clusterlinks/status", "failoverpolicies/status"],
        verbs: &["patch"],
        names: &[],
        why: "conditions",
    },
    Right {
        group: "authentication.k8s.io",
        resources: &["tokenreviews"],
        verbs: &["create"],
        names: &[],
        why: "whose a projected token is",
    },
    Right {
        group: "admissionregistration.k8s.io",
        resources: &["mutatingwebhookconfigurations"],
        verbs: &["get", "patch"],
        names: &[linkspan_federation::webhook::CONFIGURATION],
        why: "the roots by which the API server knows the webhook",
    },
    Right {
        group: "",
        resources: &["pods"],
        verbs: &["get", "list", "watch"],
        names: &[],
        why: "whether the pod that a token was given to lives; which pods have a sidecar, and which addresses and labels the others have: only to such pods are peers led",
    },
];

/// In the system namespace.
pub(super) const SYSTEM: &[Right] = &[
    Right {
        group: "coordination.k8s.io",
        resources: &["leases"],
        verbs: &["create"],
        names: &[],
        why: "the Lease by which one replica writes (the name of what is made cannot be restricted)",
    },
    Right {
        group: "coordination.k8s.io",
        resources: &["leases"],
        verbs: &["get", "update"],
        names: &[federation::NAME],
        why: "taking, renewing and giving up that Lease",
    },
    Right {
        group: "",
        resources: &["secrets"],
        verbs: &["get", "update"],
        names: &federation::SECRETS,
        why: "the authority and what else must outlive the pod; `linkspan install` makes them, empty",
    },
    Right {
        group: "",
        resources: &["configmaps"],
        verbs: &["get", "list", "create", "update", "delete"],
        names: &[],
        why: "the journal of what peers told, one set for each peer, and the published roots",
    },
];

pub(super) fn objects() -> Vec<Value> {
    let everywhere: Vec<_> = EVERYWHERE.iter().map(rule).collect();
    let mut role = cluster_wide(RBAC, "ClusterRole", federation::NAME);
    role["rules"] = json!(everywhere);
    role["metadata"]["annotations"] = reasons(EVERYWHERE);
    let mut own = namespaced(RBAC, "Role", federation::NAME);
    own["rules"] = SYSTEM.iter().map(rule).collect();
    own["metadata"]["annotations"] = reasons(SYSTEM);
    vec![
        account(federation::NAME),
        account(gateway::NAME),
        binding(
            cluster_wide(RBAC, "ClusterRoleBinding", federation::NAME),
            "ClusterRole",
        ),
        role,
        binding(namespaced(RBAC, "RoleBinding", federation::NAME), "Role"),
        own,
    ]
}

/// For who reviews the manifests: rules have no place for comments.
fn reasons(rights: &[Right]) -> Value {
    let reason = |right: &Right| format!("{}: {}", right.resources.join(", "), right.why);
    let reasons: Vec<_> = rights.iter().map(reason).collect();
    json!({ "linkspan.io/why": reasons.join("; ") })
}

pub(super) const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// Pods say for themselves whether they need a token.
fn account(name: &str) -> Value {
    let mut account = namespaced("v1", "ServiceAccount", name);
    account["automountServiceAccountToken"] = json!(false);
    account
}

fn binding(mut binding: Value, role: &str) -> Value {
    binding["roleRef"] = json!({
        "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": federation::NAME,
    });
    binding["subjects"] = json!([{
        "kind": "ServiceAccount", "name": federation::NAME, "namespace": SYSTEM_NAMESPACE,
    }]);
    binding
}

fn rule(right: &Right) -> Value {
    let mut rule = json!({
        "apiGroups": [right.group],
        "resources": right.resources,
        "verbs": right.verbs,
    });
    if !right.names.is_empty() {
        rule["resourceNames"] = json!(right.names);
    }
    rule
}

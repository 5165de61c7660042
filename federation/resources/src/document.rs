//! Files of YAML documents to typed objects.

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::shape::{Finding, Findings, ObjectShape, Shape, check, describe, quote};
use crate::yaml::{self, Node, SyntaxError, Value};
use crate::{
    ClusterLink, EndpointSlice, FailoverPolicy, Metadata, ResourceProblem, Service, ServiceExport,
};
use crate::{cluster_link, endpoint_slice, failover_policy, service, service_export};

/// A resource of any kind that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `v1 Service`.
    Service(Service),
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice(EndpointSlice),
    /// `multicluster.x-k8s.io ServiceExport`.
    ServiceExport(ServiceExport),
    /// `linkspan.io ClusterLink`.
    ClusterLink(ClusterLink),
    /// `linkspan.io FailoverPolicy`.
    FailoverPolicy(FailoverPolicy),
}

impl Object {
    /// Name of the kind, as written in `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::ServiceExport(_) => "ServiceExport",
            Self::ClusterLink(_) => "ClusterLink",
            Self::FailoverPolicy(_) => "FailoverPolicy",
        }
    }

    /// The `apiVersion` in which [`Object::to_yaml`] writes it.
    pub fn api_version(&self) -> &'static str {
        match self {
            Self::Service(_) => "v1",
            Self::EndpointSlice(_) => "discovery.k8s.io/v1",
            Self::ServiceExport(_) => "multicluster.x-k8s.io/v1beta1",
            Self::ClusterLink(_) | Self::FailoverPolicy(_) => "linkspan.io/v1alpha1",
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Service(service) => &service.metadata,
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::ServiceExport(export) => &export.metadata,
            Self::ClusterLink(link) => &link.metadata,
            Self::FailoverPolicy(policy) => &policy.metadata,
        }
    }

    /// The object as one YAML document, which [`parse_documents`] reads back.
    ///
    /// # Errors
    /// When the object holds what YAML cannot express; no value that was parsed does.
    pub fn to_yaml(&self) -> Result<String, String> {
        let body = match self {
            Self::Service(service) => serde_json::to_value(service),
            Self::EndpointSlice(slice) => serde_json::to_value(slice),
            Self::ServiceExport(export) => serde_json::to_value(export),
            Self::ClusterLink(link) => serde_json::to_value(link),
            Self::FailoverPolicy(policy) => serde_json::to_value(policy),
        };
        let mut document =
            serde_json::json!({"apiVersion": self.api_version(), "kind": self.kind()});
        if let (Some(document), Json::Object(body)) = (
            document.as_object_mut(),
            body.map_err(|error| error.to_string())?,
        ) {
            document.extend(body);
        }
        yaml::write(&document)
    }
}

/// Reads a file of YAML documents separated by `---` lines; empty ones are skipped.
/// `file_name` is only used in messages.
///
/// # Errors
/// Everything that is wrong, in the order of the lines; then none of the file's objects
/// is given, so that a file is never applied in part.
pub fn parse_documents(file_name: &str, text: &str) -> Result<Vec<Object>, Vec<ResourceProblem>> {
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    for (lines_before, document) in yaml::documents(text) {
        match parse_document(&document) {
            Ok(object) => objects.push(object),
            Err(findings) => {
                problems.extend(findings.into_sorted().into_iter().map(|finding| {
                    ResourceProblem {
                        file: file_name.to_owned(),
                        line: lines_before + finding.line,
                        column: finding.column,
                        field: finding.field,
                        found: finding.found,
                        fix: finding.fix,
                    }
                }));
            }
        }
    }
    if problems.is_empty() {
        Ok(objects)
    } else {
        Err(problems)
    }
}

/// Reads one object as an API server keeps it; `origin` is only used in messages.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_object(origin: &str, object: &Json) -> Result<Object, Vec<ResourceProblem>> {
    let findings = match read_node(&Node::from(object)) {
        Ok(object) => return Ok(object),
        Err(findings) => findings,
    };
    let problem = |finding: Finding| ResourceProblem {
        file: origin.to_owned(),
        line: 0,
        column: None,
        field: finding.field,
        found: finding.found,
        fix: finding.fix,
    };
    Err(findings.into_sorted().into_iter().map(problem).collect())
}

fn parse_document(text: &str) -> Result<Object, Findings> {
    let node = match yaml::parse(text) {
        Ok(node) => node,
        Err(error) => {
            let mut findings = Findings::default();
            let (found, fix) = not_yaml(text, &error);
            findings.add_at(error.line, error.column, found, fix);
            return Err(findings);
        }
    };
    read_node(&node)
}

fn read_node(node: &Node) -> Result<Object, Findings> {
    let mut findings = Findings::default();
    match kind_of(node, &mut findings) {
        Some(Kind::Service) => typed(node, &service::SHAPE, Object::Service, findings),
        Some(Kind::EndpointSlice) => {
            let shape = &endpoint_slice::SHAPE;
            typed(node, shape, Object::EndpointSlice, findings)
        }
        Some(Kind::ServiceExport) => typed(
            node,
            &service_export::SHAPE,
            Object::ServiceExport,
            findings,
        ),
        Some(Kind::ClusterLink) => typed(node, &cluster_link::SHAPE, Object::ClusterLink, findings),
        Some(Kind::FailoverPolicy) => {
            let shape = &failover_policy::SHAPE;
            typed(node, shape, Object::FailoverPolicy, findings)
        }
        None => Err(findings),
    }
}

/// What stands there, and what to look at.
fn not_yaml(text: &str, error: &SyntaxError) -> (String, &'static str) {
    let at = usize::try_from(error.line - 1).unwrap_or(usize::MAX);
    let line = text.lines().nth(at).unwrap_or_default();
    let indentation = &line[..line.len() - line.trim_start().len()];
    let fix = match indentation.contains('\t') {
        true => "indent with spaces: this line begins with a tab",
        false => {
            "check indentation there and in the line before, a `:` without a space after it, \
             and quotes and brackets that do not close"
        }
    };
    let found = match line.trim() {
        "" => format!("is not YAML: {}", error.message),
        there => format!("is not YAML: {} at {}", error.message, quote(there)),
    };
    (found, fix)
}

enum Kind {
    Service,
    EndpointSlice,
    ServiceExport,
    ClusterLink,
    FailoverPolicy,
}

/// Which kind a document declares.
fn kind_of(node: &Node, findings: &mut Findings) -> Option<Kind> {
    if !matches!(node.value, Value::Map(_)) {
        findings.add(
            node.line,
            "",
            describe(node),
            "write a mapping that begins with `apiVersion` and `kind`",
        );
        return None;
    }
    let text = |field| node.get(field).and_then(Node::text);
    let line = |field: &str| node.get(field).map_or(node.line, |node| node.line);
    let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        for field in ["apiVersion", "kind"]
            .into_iter()
            .filter(|field| text(field).is_none())
        {
            findings.add(
                line(field),
                field,
                "is missing",
                format!("write one of {KINDS}"),
            );
        }
        return None;
    };
    let (kind, versions): (_, &[&str]) = match kind {
        "Service" => (Kind::Service, &["v1"]),
        "EndpointSlice" => (Kind::EndpointSlice, &["discovery.k8s.io/v1"]),
        "ServiceExport" => (
            Kind::ServiceExport,
            &[
                "multicluster.x-k8s.io/v1beta1",
                "multicluster.x-k8s.io/v1alpha1",
            ],
        ),
        "ClusterLink" => (Kind::ClusterLink, &["linkspan.io/v1alpha1"]),
        "FailoverPolicy" => (Kind::FailoverPolicy, &["linkspan.io/v1alpha1"]),
        other => {
            let found = format!("found {}", quote(other));
            findings.add(line("kind"), "kind", found, format!("write one of {KINDS}"));
            return None;
        }
    };
    if !versions.contains(&version) {
        let found = format!("found {}", quote(version));
        findings.add(
            line("apiVersion"),
            "apiVersion",
            found,
            format!("write `{}`", versions.join("` or `")),
        );
        return None;
    }
    Some(kind)
}

const KINDS: &str = "`v1 Service`, `discovery.k8s.io/v1 EndpointSlice`, `multicluster.x-k8s.io/v1beta1 ServiceExport`, `linkspan.io/v1alpha1 ClusterLink`, `linkspan.io/v1alpha1 FailoverPolicy`";

/// Checks a document against its kind's shape; then, and only then, makes it typed.
fn typed<T: DeserializeOwned>(
    node: &Node,
    shape: &'static ObjectShape,
    object: fn(T) -> Object,
    mut findings: Findings,
) -> Result<Object, Findings> {
    let body = body_of(node);
    check(&body, &Shape::Object(shape), "", &mut findings);
    if !findings.is_empty() {
        return Err(findings);
    }
    match serde_json::from_value(body.to_json()) {
        Ok(value) => Ok(object(value)),
        Err(error) => {
            // A shape is meant to be at least as strict as its type.
            findings.add(
                node.line,
                "",
                format!("is refused: {error}"),
                "compare it with the reference of its kind",
            );
            Err(findings)
        }
    }
}

/// A document without what says its kind, and without what controllers report.
fn body_of(node: &Node) -> Node {
    let mut body = node.clone();
    if let Value::Map(entries) = &mut body.value {
        entries.retain(|(name, _)| !["apiVersion", "kind", "status"].contains(&name.as_str()));
    }
    body
}

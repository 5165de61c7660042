//! Whole files in, objects or problems out: each rule of each kind is broken once, and
//! its message must name the line, the field and the fix.

use linkspan_resources::{
    AppProtocol, ClusterLink, Object, ResourceProblem, Service, ServiceType, SessionAffinity,
    parse_documents,
};

const PEM: &str = "-----BEGIN CERTIFICATE-----\n    MIIB\n    -----END CERTIFICATE-----";

fn problems(text: &str) -> Vec<ResourceProblem> {
    parse_documents("east.yaml", text).expect_err("the text must be refused")
}

/// The one problem of `text` stands in `line` at `field`, and its message contains `words`.
#[track_caller]
fn refused(text: &str, line: u64, field: &str, words: &[&str]) {
    let problems = problems(text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    let problem = &problems[0];
    let message = problem.to_string();
    assert_eq!(
        (problem.line, problem.field.as_str()),
        (line, field),
        "{message}"
    );
    assert!(
        message.starts_with(&format!("east.yaml:{line}: {field}")),
        "{message}"
    );
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

fn service(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: checkout, namespace: shop}}\nspec:\n{spec}"
    )
}

fn port(port: &str) -> String {
    service(&format!("  ports:\n  - {port}\n"))
}

fn link(spec: &str) -> String {
    let head =
        "apiVersion: linkspan.io/v1alpha1\nkind: ClusterLink\nmetadata: {name: west}\nspec:\n";
    format!("{head}  trustDomain: west.test\n  bundle: |\n    {PEM}\n{spec}")
}

fn one_service(text: &str) -> Service {
    match parse_documents("east.yaml", text).expect("good").remove(0) {
        Object::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

fn one_link(text: &str) -> ClusterLink {
    match parse_documents("east.yaml", text).expect("good").remove(0) {
        Object::ClusterLink(link) => link,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_a_file_of_several_documents() {
    let text = format!(
        "# a comment\n---\n{}---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n\
         metadata: {{name: checkout, namespace: shop}}\n---\n\n---\n{}",
        port("{port: 80, targetPort: 9001, appProtocol: http}"),
        link("")
    );
    let objects = parse_documents("east.yaml", &text).expect("good");
    let kinds: Vec<_> = objects.iter().map(Object::kind).collect();
    assert_eq!(kinds, ["Service", "ServiceExport", "ClusterLink"]);
}

#[test]
fn a_file_without_documents_has_no_objects() {
    for text in ["", "\n", "# nothing\n", "---\n---\n# nothing\n...\n"] {
        assert_eq!(parse_documents("east.yaml", text), Ok(vec![]), "{text:?}");
    }
}

#[test]
fn services_have_the_defaults_of_kubernetes() {
    let service = one_service(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: [{port: 80}]\n",
    );
    assert_eq!(service.metadata.namespace(), "default");
    assert_eq!(service.spec.service_type, ServiceType::ClusterIP);
    assert_eq!(service.spec.session_affinity, SessionAffinity::None);
    assert!(!service.spec.is_headless());
    assert_eq!(service.spec.ports[0].target_port(), 80);
}

#[test]
fn a_target_port_of_zero_is_the_service_port() {
    assert_eq!(
        one_service(&port("{port: 80, targetPort: 0}")).spec.ports[0].target_port(),
        80
    );
    assert_eq!(
        one_service(&port("{port: 80, targetPort: 9001}"))
            .spec
            .ports[0]
            .target_port(),
        9001
    );
}

#[test]
fn cluster_ip_none_is_headless_and_may_lack_ports() {
    assert!(
        one_service(&service("  clusterIP: None\n"))
            .spec
            .is_headless()
    );
}

#[test]
fn standard_fields_that_are_not_ours_are_tolerated() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, uid: x, resourceVersion: '7', managedFields: [{}]}\n\
                spec:\n  ipFamilies: [IPv4]\n  ports: [{port: 80, nodePort: 30000}]\nstatus: {loadBalancer: {}}\n";
    assert_eq!(one_service(text).spec.ports[0].port, 80);
}

/// As `kubectl get service -o yaml` writes it, with all that a ServiceSpec may have.
#[test]
fn a_manifest_of_a_real_cluster_is_accepted() {
    let text = "
apiVersion: v1
kind: Service
metadata:
  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}'}
  creationTimestamp: '2026-01-01T00:00:00Z'
  deletionGracePeriodSeconds: 30
  deletionTimestamp: '2026-01-02T00:00:00Z'
  finalizers: [service.kubernetes.io/load-balancer-cleanup]
  generateName: checkout-
  generation: 2
  labels: {app: checkout}
  managedFields: [{manager: kubectl, operation: Update}]
  name: checkout
  namespace: shop
  ownerReferences: [{apiVersion: v1, kind: Pod, name: a, uid: b}]
  resourceVersion: '7'
  selfLink: /api/v1/namespaces/shop/services/checkout
  uid: 0b1f
spec:
  allocateLoadBalancerNodePorts: true
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  externalIPs: [192.0.2.1]
  externalName: ''
  externalTrafficPolicy: Cluster
  healthCheckNodePort: 30001
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  loadBalancerClass: example.com/lb
  loadBalancerIP: 192.0.2.2
  loadBalancerSourceRanges: [192.0.2.0/24]
  ports: [{name: http, nodePort: 30000, port: 80, protocol: TCP, targetPort: 8080, appProtocol: http}]
  publishNotReadyAddresses: false
  selector: {app: checkout}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
  trafficDistribution: PreferClose
  type: LoadBalancer
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}]}, conditions: []}
";
    assert_eq!(
        one_service(text).spec.service_type,
        ServiceType::LoadBalancer
    );
}

#[test]
fn a_typo_in_a_service_is_refused_with_the_name_that_was_meant() {
    for (spec, line, field, meant) in [
        (
            "  selectr: {app: a}\n  ports: [{port: 80}]\n",
            5,
            "spec.selectr",
            "`selector`",
        ),
        (
            "  seletcor: {app: a}\n  ports: [{port: 80}]\n",
            5,
            "spec.seletcor",
            "`selector`",
        ),
        (
            "  selectr:\n  ports: [{port: 80}]\n",
            5,
            "spec.selectr",
            "`selector`",
        ),
        (
            "  ports: [{port: 80, targetport: 1}]\n",
            5,
            "spec.ports[0].targetport",
            "`targetPort`",
        ),
        (
            "  ports: [{port: 80, nodeport: 1}]\n",
            5,
            "spec.ports[0].nodeport",
            "`nodePort`",
        ),
        (
            "  ports: [{port: 80}]\n  sesionAffinty: None\n",
            6,
            "spec.sesionAffinty",
            "`sessionAffinity`",
        ),
        (
            "  ports: [{port: 80}]\n  colour: red\n",
            6,
            "spec.colour",
            "known here: `selector`",
        ),
    ] {
        refused(&service(spec), line, field, &["unknown field", meant]);
    }
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, lables: {}}\nspeck: {}\nspec: {ports: [{port: 80}]}\n";
    let found: Vec<_> = problems(text).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "east.yaml:3: metadata.lables: found an unknown field; did you mean `labels`?",
            "east.yaml:4: speck: found an unknown field; did you mean `spec`?"
        ]
    );
}

#[test]
fn what_is_no_yaml_is_shown_with_line_and_column_and_what_to_look_at() {
    let text = "# two\n---\napiVersion: v1\nkind: Service\nmetadata:\n\tname: a\n";
    let problem = problems(text).remove(0);
    assert_eq!(
        (problem.line, problem.column.is_some()),
        (6, true),
        "{problem}"
    );
    let message = problem.to_string();
    for part in [
        "east.yaml:6: column ",
        "is not YAML",
        "\"name: a\"",
        "begins with a tab",
    ] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a\nspec: {ports: [{port: 80}]}\n";
    let message = problems(text).remove(0).to_string();
    for part in ["column ", "is not YAML", "brackets that do not close"] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn app_protocols_mean_what_kubernetes_says() {
    let meaning = |name: &str| {
        one_service(&port(&format!("{{port: 80, appProtocol: {name}}}")))
            .spec
            .ports[0]
            .app_protocol()
    };
    assert_eq!(
        one_service(&port("{port: 80}")).spec.ports[0].app_protocol(),
        AppProtocol::Detect
    );
    for http in ["http", "HTTP", "kubernetes.io/ws"] {
        assert_eq!(meaning(http), AppProtocol::Http, "{http}");
    }
    for http2 in ["kubernetes.io/h2c", "grpc", "http2"] {
        assert_eq!(meaning(http2), AppProtocol::Http2, "{http2}");
    }
    for opaque in [
        "tcp",
        "https",
        "tls",
        "kubernetes.io/wss",
        "example.com/own",
    ] {
        assert_eq!(meaning(opaque), AppProtocol::Tcp, "{opaque}");
    }
}

#[test]
fn both_versions_of_service_export_are_read() {
    for version in ["v1beta1", "v1alpha1"] {
        let text = format!(
            "apiVersion: multicluster.x-k8s.io/{version}\nkind: ServiceExport\nmetadata: {{name: a}}\nstatus: {{}}\n"
        );
        assert_eq!(
            parse_documents("e", &text).expect("good")[0].kind(),
            "ServiceExport"
        );
    }
}

#[test]
fn links_import_all_but_reserved_namespaces_by_default() {
    let spec = one_link(&link("")).spec;
    assert!(spec.imports("shop", "checkout"));
    assert!(!spec.imports("kube-system", "kube-dns"));
    assert!(!spec.imports("linkspan-system", "x"));
    let named = one_link(&link(
        "  imports: [{namespace: kube-*, name: dns*}, {namespace: '*', name: a*z}]\n",
    ))
    .spec;
    assert!(named.imports("kube-system", "dns-1"));
    assert!(
        !named.imports("kube-system", "az"),
        "a leading star never means a reserved namespace"
    );
    assert!(named.imports("shop", "abcz"));
    assert!(!named.imports("shop", "abc"));
    assert!(
        !one_link(&link("  imports: []\n"))
            .spec
            .imports("shop", "checkout")
    );
}

#[test]
fn what_is_written_is_read_back() {
    let text = format!(
        "{}---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n\
         metadata: {{name: a, namespace: b, creationTimestamp: '2026-01-02T03:04:05Z', annotations: {{n: 'x: y'}}}}\n\
         spec: {{exportedLabels: {{l: v}}}}\n---\n{}",
        port("{name: http, port: 80, targetPort: 9001, appProtocol: http}"),
        link(
            "  addresses: [{host: 10.0.0.1, port: 15443}]\n  allowLoopback: true\n  imports: [{namespace: shop}]\n"
        )
    );
    let objects = parse_documents("east.yaml", &text).expect("good");
    let written: Vec<_> = objects
        .iter()
        .map(|object| object.to_yaml().expect("writes"))
        .collect();
    assert_eq!(
        parse_documents("again.yaml", &written.join("---\n")),
        Ok(objects)
    );
}

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_lines() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: Check_out\nspec:\n  ports:\n  - port: 0\n  - port: http\n\
                ---\nkind: Deployment\napiVersion: apps/v1\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    let problems = problems(text);
    let places: Vec<_> = problems
        .iter()
        .map(|p| (p.line, p.field.as_str()))
        .collect();
    assert_eq!(
        places,
        [
            (4, "metadata.name"),
            (7, "spec.ports[0].port"),
            (7, "spec.ports[0].name"),
            (8, "spec.ports[1].port"),
            (8, "spec.ports[1].name"),
            (10, "kind"),
            (13, "spec"),
        ],
        "{problems:#?}"
    );
}

#[test]
fn a_broken_document_does_not_hide_the_next() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a\n---\napiVersion: v1\nkind: Service\n\
                metadata: {name: B}\nspec: {ports: [{port: 1}]}\n";
    let problems = problems(text);
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(
        problems[0].line <= 4 && problems[0].found.contains("is not YAML"),
        "{problems:#?}"
    );
    assert_eq!(
        (problems[1].line, problems[1].field.as_str()),
        (7, "metadata.name")
    );
}

#[test]
fn documents_need_a_known_kind_and_version() {
    refused("- a\n", 1, "", &["found a list", "apiVersion"]);
    refused(
        "kind: Service\n",
        1,
        "apiVersion",
        &["is missing", "v1 Service"],
    );
    refused(
        "apiVersion: v1\n",
        1,
        "kind",
        &["is missing", "ClusterLink"],
    );
    refused(
        "apiVersion: v1\nkind: Pod\n",
        2,
        "kind",
        &["\"Pod\"", "v1 Service"],
    );
    refused(
        "apiVersion: v2\nkind: Service\n",
        1,
        "apiVersion",
        &["\"v2\"", "`v1`"],
    );
}

#[test]
fn yaml_errors_name_the_line() {
    let problems = problems("apiVersion: v1\nkind: Service\nmetadata: [a\n");
    assert!((3..=4).contains(&problems[0].line), "{problems:#?}");
    assert!(
        problems[0].to_string().contains("check indentation"),
        "{problems:#?}"
    );
}

#[test]
fn a_repeated_key_is_refused() {
    let problems = problems("apiVersion: v1\nkind: Service\nkind: Service\n");
    assert!(problems[0].line >= 2, "{problems:#?}");
}

#[test]
fn metadata_rules() {
    let with = |metadata: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  {metadata}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    };
    refused(
        &with("namespace: shop"),
        4,
        "metadata.name",
        &["is missing", "DNS label"],
    );
    refused(
        &with("name: a.b"),
        4,
        "metadata.name",
        &["\"a.b\"", "DNS label"],
    );
    refused(&with("name: 7"), 4, "metadata.name", &["`7`", "DNS label"]);
    refused(
        &with("{name: a, namespace: -x}"),
        4,
        "metadata.namespace",
        &["\"-x\"", "DNS label"],
    );
    refused(
        &with("{name: a, labels: {a: 7}}"),
        4,
        "metadata.labels.a",
        &["`7`", "quotes"],
    );
    refused(
        &with("{name: a, labels: {a: '-'}}"),
        4,
        "metadata.labels.a",
        &["\"-\"", "label value"],
    );
    refused(
        &with("{name: a, labels: {'a b': c}}"),
        4,
        "metadata.labels[a b]",
        &["\"a b\"", "label key"],
    );
    refused(
        &with("{name: a, annotations: []}"),
        4,
        "metadata.annotations",
        &["a list", "mapping"],
    );
    refused(
        &with("{name: a, creationTimestamp: today}"),
        4,
        "metadata.creationTimestamp",
        &["\"today\"", "RFC 3339"],
    );
}

#[test]
fn service_rules() {
    refused(
        &service("  selector: {app: a}\n"),
        5,
        "spec.ports",
        &["is missing", "- port: 80"],
    );
    refused(
        &service("  ports: []\n"),
        5,
        "spec.ports",
        &["is missing", "- port: 80"],
    );
    refused(
        &port("{port: 70000}"),
        6,
        "spec.ports[0].port",
        &["`70000`", "1 to 65535"],
    );
    refused(
        &port("{name: a}"),
        6,
        "spec.ports[0].port",
        &["is missing", "1 to 65535"],
    );
    refused(
        &port("{port: 80, targetPort: web}"),
        6,
        "spec.ports[0].targetPort",
        &["\"web\"", "0 to 65535"],
    );
    refused(
        &port("{port: 80, protocol: UDP}"),
        6,
        "spec.ports[0].protocol",
        &["\"UDP\"", "`TCP`"],
    );
    refused(
        &port("{port: 80, name: Web}"),
        6,
        "spec.ports[0].name",
        &["\"Web\"", "DNS label"],
    );
    refused(
        &service("  ports: [{port: 80}]\n  type: Clusterip\n"),
        6,
        "spec.type",
        &["\"Clusterip\"", "`ClusterIP`"],
    );
    refused(
        &service("  ports: [{port: 80}]\n  sessionAffinity: ip\n"),
        6,
        "spec.sessionAffinity",
        &["`ClientIP`"],
    );
    let two = |a: &str, b: &str| service(&format!("  ports:\n  - {a}\n  - {b}\n"));
    refused(
        &two("{port: 1, name: a}", "{port: 2}"),
        7,
        "spec.ports[1].name",
        &["is missing", "name each port"],
    );
    refused(
        &two("{port: 1, name: a}", "{port: 2, name: a}"),
        7,
        "spec.ports[1].name",
        &["\"a\" again", "of its own"],
    );
    refused(
        &two("{port: 1, name: a}", "{port: 1, name: b}"),
        7,
        "spec.ports[1].port",
        &["`1` again", "of its own"],
    );
}

#[test]
fn service_export_rules() {
    let with = |rest: &str| {
        format!(
            "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: a}}\n{rest}\n"
        )
    };
    refused(
        &with("extra: 1"),
        4,
        "extra",
        &["unknown field", "remove it"],
    );
    refused(
        &with("specs: {}"),
        4,
        "specs",
        &["unknown field", "did you mean `spec`?"],
    );
    refused(
        &with("spec: {exportLabels: {}}"),
        4,
        "spec.exportLabels",
        &["unknown field", "`exportedLabels`"],
    );
}

#[test]
fn cluster_link_rules() {
    let head = "apiVersion: linkspan.io/v1alpha1\nkind: ClusterLink\n";
    let bare = |spec: &str| format!("{head}metadata: {{name: west}}\nspec:\n  {spec}\n");
    let pem = "bundle: '-----BEGIN CERTIFICATE----- MIIB -----END CERTIFICATE-----'";
    refused(
        &bare(pem),
        5,
        "spec.trustDomain",
        &["is missing", "without `spiffe://`"],
    );
    refused(
        &bare("trustDomain: west.test"),
        5,
        "spec.bundle",
        &["is missing", "PEM"],
    );
    refused(
        &bare(&format!("{{trustDomain: 'spiffe://west', {pem}}}")),
        5,
        "spec.trustDomain",
        &["without `spiffe://`"],
    );
    refused(
        &bare("{trustDomain: west.test, bundle: roots.pem}"),
        5,
        "spec.bundle",
        &["\"roots.pem\"", "block scalar"],
    );
    refused(
        &bare("{trustDomain: west.test, bundle: '-----BEGIN PRIVATE KEY-----'}"),
        5,
        "spec.bundle",
        &["remove the private key"],
    );
    let named = |name: &str| link("").replace("{name: west}", name);
    refused(
        &named("{name: West}"),
        3,
        "metadata.name",
        &["\"West\"", "cluster id"],
    );
    refused(
        &named("{name: west, namespace: shop}"),
        3,
        "metadata.namespace",
        &["\"shop\"", "remove it"],
    );
    // The certificate takes lines 6 to 9.
    refused(
        &link("  addresses: [{host: 'a:1', port: 1}]\n"),
        10,
        "spec.addresses[0].host",
        &["\"a:1\"", "field of its own"],
    );
    refused(
        &link("  addresses: [{host: 1.2.3, port: 1}]\n"),
        10,
        "spec.addresses[0].host",
        &["\"1.2.3\"", "IP address"],
    );
    refused(
        &link("  addresses: [{host: a}]\n"),
        10,
        "spec.addresses[0].port",
        &["is missing", "1 to 65535"],
    );
    refused(
        &link("  gatewayID: gateway\n"),
        10,
        "spec.gatewayID",
        &["\"gateway\"", "SPIFFE ID"],
    );
    refused(
        &link("  federationID: spiffe://east.test/ns/a/sa/b\n"),
        10,
        "spec.federationID",
        &["of the link's own trust domain", "spiffe://west.test/"],
    );
    refused(
        &link("  allowLoopback: 'yes'\n"),
        10,
        "spec.allowLoopback",
        &["\"yes\"", "`true` or `false`"],
    );
    refused(
        &link("  allowloopback: true\n"),
        10,
        "spec.allowloopback",
        &["did you mean `allowLoopback`?"],
    );
    refused(
        &link("  imports: [{namespace: 'a/b'}]\n"),
        10,
        "spec.imports[0].namespace",
        &["\"a/b\"", "`*` stands for"],
    );
    refused(
        &link("  imports: shop\n"),
        10,
        "spec.imports",
        &["\"shop\"", "a list"],
    );
}

fn slice(rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: old\n  labels: \
         {{kubernetes.io/service-name: a}}\naddressType: IPv4\n{rest}\n"
    )
}

#[test]
fn a_slice_lists_servers_and_their_ports() {
    let text = slice(
        "endpoints:\n- {addresses: [10.0.0.1], zone: a, nodeName: n, conditions: {serving: true}}\n\
         - {addresses: [10.0.0.2], conditions: {ready: false}}\nports: [{name: web, port: 9001}]",
    );
    let objects = parse_documents("slice.yaml", &text).expect("good");
    let [Object::EndpointSlice(slice)] = &objects[..] else {
        panic!("{objects:?}");
    };
    assert_eq!(slice.service(), Some("a"));
    let ready = slice.endpoints.iter().map(|of| of.conditions.is_ready());
    assert_eq!(ready.collect::<Vec<_>>(), [true, false]);
    assert_eq!((slice.ports[0].name(), slice.ports[0].port), ("web", 9001));
    let written = objects[0].to_yaml().expect("writes");
    assert_eq!(parse_documents("again.yaml", &written), Ok(objects));
}

#[test]
fn a_slice_that_is_wrong_is_refused() {
    for (rest, field, words) in [
        (
            "endpoints: [{addresses: []}]",
            "endpoints[0].addresses",
            "is empty",
        ),
        (
            "endpoints: [{addresses: ['::1']}]",
            "endpoints[0].addresses",
            "found `::1`",
        ),
        (
            "endpoints: [{addresses: [a.example]}]",
            "endpoints[0].addresses[0]",
            "a.example",
        ),
        (
            "endpoints: []\nports: [{port: 1}, {port: 2}]",
            "ports[1].name",
            "again",
        ),
        ("ports: []", "endpoints", "is missing"),
    ] {
        let problems = problems(&slice(rest));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert_eq!(problems[0].field, field, "{problems:#?}");
        assert!(problems[0].found.contains(words), "{problems:#?}");
    }
    let nameless = slice("endpoints: []").replace("kubernetes.io/service-name", "app");
    assert_eq!(problems(&nameless)[0].field, "metadata.labels");
}

//! The Helm chart and the kustomize bases: linted and rendered by Helm's own library, checked against the schemas of
//! Kubernetes, and the configuration in them by the program itself. Where one of the tools cannot be had, it is said.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use warmpath_tests::{binary, python_with};

/// Helm 4's library.
const HELM: &str = "helm-python-sdk==0.2.2";
/// The OpenAPI schemas of Kubernetes.
const SCHEMAS: &str = "kubernetes-validate==1.37.0";
/// The oldest and the newest version that the objects are checked for.
const VERSIONS: [&str; 2] = ["1.25.0", "1.37.0"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The `bin` folder of an environment, made once; none where it cannot be had.
fn tool(place: &'static OnceLock<Option<PathBuf>>, name: &str, requirement: &str) -> Option<&'static Path> {
    let made = place.get_or_init(|| match python_with(name, requirement) {
        Ok(bin) => Some(bin),
        Err(why) => {
            eprintln!("skipped: {requirement} cannot be had: {why}");
            None
        }
    });
    made.as_deref()
}

fn helm() -> Option<&'static Path> {
    static HELM_ENVIRONMENT: OnceLock<Option<PathBuf>> = OnceLock::new();
    tool(&HELM_ENVIRONMENT, "helm", HELM)
}

fn schemas() -> Option<&'static Path> {
    static SCHEMAS_ENVIRONMENT: OnceLock<Option<PathBuf>> = OnceLock::new();
    tool(&SCHEMAS_ENVIRONMENT, "kubernetes-validate", SCHEMAS)
}

/// What Helm makes of the chart.
struct Rendered {
    lint: Value,
    /// Why the values are refused.
    refused: Option<String>,
    manifests: Vec<(String, String)>,
}

impl Rendered {
    /// None where Helm cannot be had.
    fn of(values: &Value) -> Option<Self> {
        let asked =
            json!({"chart": root().join("deploy/helm/warmpath"), "values": values, "namespace": "inference"});
        let mut child = Command::new(helm()?.join("python"))
            .arg(root().join("tests/charts/render.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "the chart cannot be rendered for {values}");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let manifests = said["manifests"].as_object().unwrap().iter();
        Some(Self {
            lint: said["lint"].clone(),
            refused: said["refused"].as_str().map(str::to_owned),
            manifests: manifests
                .map(|(path, text)| (path.clone(), text.as_str().unwrap().to_owned()))
                .collect(),
        })
    }

    /// Every object.
    fn objects(&self) -> Vec<Value> {
        let files = self.manifests.iter().filter(|(path, _)| !path.ends_with("NOTES.txt"));
        files.flat_map(|(_, text)| documents(text)).collect()
    }

    fn object(&self, kind: &str) -> Option<Value> {
        self.objects().into_iter().find(|object| object["kind"] == kind)
    }
}

fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---\n").map(|document| document.trim_start_matches("---"));
    let read = |document: &str| serde_saphyr::from_str::<Value>(document).unwrap();
    documents.map(read).filter(|document| !document.is_null()).collect()
}

/// Values of each kind of installation.
fn installations() -> Vec<Value> {
    vec![
        json!({}),
        json!({
            "kind": "DaemonSet",
            "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
            "networkPolicy": {"enabled": true},
            "config": {"discovery": {"kubernetes": [
                {"service": "vllm"}, {"pods": "app=vllm", "namespace": "*"}, {"inference_pool": "pool", "namespace": "other"},
            ]}},
        }),
        json!({
            "autoscaling": {"enabled": true}, "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
            "networkPolicy": {
                "enabled": true, "clients": [{"namespaceSelector": {}}], "operators": [{"podSelector": {}}],
                "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}],
            },
            "adminToken": {"existingSecret": "mine"}, "rbac": {"create": false}, "serviceAccount": {"create": false},
            "env": [{"name": "KEY", "value": "x"}], "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"},
            "image": {"pullSecrets": [{"name": "registry"}]}, "priorityClassName": "high",
            "tolerations": [{"operator": "Exists"}], "nodeSelector": {"a": "b"},
            "extraVolumes": [{"name": "x", "emptyDir": {}}], "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
        }),
        json!({"config": {"discovery": null, "workers": ["http://10.0.0.1:8000"]}}),
    ]
}

#[test]
fn the_chart_is_clean_and_its_objects_are_what_kubernetes_takes() {
    for values in installations() {
        let Some(rendered) = Rendered::of(&values) else { return };
        let errors = rendered.lint["errors"].as_array().unwrap();
        assert!(errors.is_empty(), "{values}: {errors:?}");
        assert_eq!(rendered.refused, None, "{values}");
        let objects = rendered.objects();
        assert!(objects.len() >= 5, "{values}: {} objects", objects.len());
        check(&objects);
    }
}

/// Holds objects against the schemas; kinds of other people's are none of theirs.
fn check(objects: &[Value]) {
    let Some(schemas) = schemas() else { return };
    let directory = TempDir::new().unwrap();
    let known = objects.iter().filter(|object| object["kind"] != "ServiceMonitor");
    let paths: Vec<PathBuf> = known
        .enumerate()
        .map(|(number, object)| {
            let path = directory.path().join(format!("{number}.json"));
            std::fs::write(&path, object.to_string()).unwrap();
            path
        })
        .collect();
    for version in VERSIONS {
        let validate = schemas.join("kubernetes-validate");
        let output = Command::new(validate).args(["--strict", "-k", version]).args(&paths).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn the_configuration_in_the_chart_is_right() {
    for values in installations() {
        let Some(rendered) = Rendered::of(&values) else { return };
        check_configuration(&rendered.object("ConfigMap").unwrap());
    }
}

fn check_configuration(config_map: &Value) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("warmpath.yaml");
    std::fs::write(&path, config_map["data"]["warmpath.yaml"].as_str().unwrap()).unwrap();
    let mut check = Command::new(binary());
    check.args(["check", "--offline"]).arg(&path).env("WARMPATH_ADMIN_TOKEN", "a-token-of-the-test");
    let output = check.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn rules_are_those_that_the_sources_need_and_no_others() {
    let Some(rendered) = Rendered::of(&installations()[1]) else { return };
    let rules = |kind: &str, namespace: Option<&str>| {
        let is_it = |object: &Value| {
            object["kind"] == kind && namespace.is_none_or(|name| object["metadata"]["namespace"] == name)
        };
        let role = rendered.objects().into_iter().find(is_it).unwrap();
        role["rules"].clone()
    };
    let rule = |group: &str, resource: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": ["list", "watch"]});
    assert_eq!(rules("ClusterRole", None), json!([rule("", "pods")]));
    assert_eq!(rules("Role", Some("inference")), json!([rule("discovery.k8s.io", "endpointslices")]));
    let pool = rule("inference.networking.k8s.io", "inferencepools");
    assert_eq!(rules("Role", Some("other")), json!([rule("", "pods"), pool]));
    let none = Rendered::of(&installations()[3]).unwrap();
    assert!(none.object("Role").is_none(), "nothing is asked of the API server");
    let pod = &none.object("Deployment").unwrap()["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
}

#[test]
fn probes_drain_and_privileges_are_as_the_documents_say() {
    let Some(rendered) = Rendered::of(&json!({"drainSeconds": 60, "preStopSeconds": 7})) else { return };
    let pod = rendered.object("Deployment").unwrap()["spec"]["template"]["spec"].clone();
    let container = &pod["containers"][0];
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/ready");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health");
    assert_eq!(container["lifecycle"]["preStop"]["exec"]["command"], json!(["sleep", "7"]));
    assert_eq!(pod["terminationGracePeriodSeconds"], 77);
    let config = rendered.object("ConfigMap").unwrap();
    assert!(config["data"]["warmpath.yaml"].as_str().unwrap().contains("drain_timeout: 60s"));
    assert_eq!((&pod["securityContext"]["runAsNonRoot"], &pod["hostNetwork"]), (&json!(true), &Value::Null));
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));

    let node = Rendered::of(&json!({"kind": "DaemonSet"})).unwrap().object("DaemonSet").unwrap();
    let pod = &node["spec"]["template"]["spec"];
    assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&json!(true), &json!("ClusterFirstWithHostNet")));
    let capabilities = &pod["containers"][0]["securityContext"]["capabilities"];
    assert_eq!(*capabilities, json!({"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]}));
    let bpffs =
        pod["volumes"].as_array().unwrap().iter().any(|volume| volume["hostPath"]["path"] == "/sys/fs/bpf");
    assert!(bpffs, "{}", pod["volumes"]);
}

#[test]
fn wrong_values_are_refused_by_their_schema() {
    for (values, word) in [
        (json!({"replica": 3}), "replica"),
        (json!({"kind": "StatefulSet"}), "kind"),
        (json!({"ports": {"http": 70_000}}), "ports"),
        (json!({"config": {"listen": "127.0.0.1:8080"}}), "listen"),
    ] {
        let Some(rendered) = Rendered::of(&values) else { return };
        let refused = rendered.refused.unwrap_or_else(|| panic!("{values} is taken"));
        assert!(refused.contains(word), "{refused}");
    }
}

#[test]
fn the_kustomize_base_is_what_the_chart_makes() {
    let base = root().join("deploy/kustomize/base");
    let committed = std::fs::read_to_string(base.join("warmpath.yaml")).unwrap();
    let objects = documents(&committed);
    let config_map = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    check_configuration(config_map);
    check(&objects);
    let Some(helm) = helm() else { return };
    let output = Command::new(helm.join("python"))
        .arg(root().join("tests/charts/render.py"))
        .arg("base")
        .arg(root().join("deploy/helm/warmpath"))
        .arg(base.join("values.json"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), committed, "see tests/charts/render.py");
}

#[test]
fn the_kustomize_overlays_can_be_built() {
    let kubectl = Command::new("kubectl").args(["version", "--client"]).output();
    let has_kustomize =
        kubectl.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Kustomize Version: v5"));
    if !has_kustomize {
        eprintln!("skipped: there is no kubectl with kustomize 5");
        return;
    }
    for (overlay, kind) in [("production", "Deployment"), ("bare-metal", "DaemonSet")] {
        let path = root().join("deploy/kustomize/overlays").join(overlay);
        let output = Command::new("kubectl").arg("kustomize").arg(&path).output().unwrap();
        assert!(output.status.success(), "{overlay}: {}", String::from_utf8_lossy(&output.stderr));
        let objects = documents(&String::from_utf8(output.stdout).unwrap());
        assert!(objects.iter().any(|object| object["kind"] == kind), "{overlay} has no {kind}");
        let config_map = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
        check_configuration(config_map);
        check(&objects);
    }
}

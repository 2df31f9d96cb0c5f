//! A real Kubernetes API server with an etcd of its own: free ports on loopback, gone when dropped.
//!
//! Nothing else of Kubernetes runs: no controller, scheduler or kubelet. So pods are what the test says, a
//! deleted namespace stays `Terminating`, and no namespace has service accounts but those the test creates.
//! A start takes some seconds and the server half a gigabyte: tests that do not disturb one another use
//! [`KubeServer::shared`]. The program is `$KUBEBUILDER_ASSETS/kube-apiserver` or what `scripts/apiserver` built.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::{self, ApiCapabilities, Scope};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::etcd::{EtcdServer, free_port};
use super::process::Process;
use super::require;
use crate::backend::config::{KubernetesConfig, StoreConfig};
use crate::kubernetes::ApiGroup;

const READY: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Between choosing a free port and binding it another process may take it: then choose again.
const ATTEMPTS: usize = 5;
const ADMIN_TOKEN: &str = "test-admin";
/// Names whoever applies, in the objects' managed fields.
const MANAGER: &str = "bulrush-tests";

/// `None` once it is gone, and until it was started.
static SHARED: Mutex<Weak<KubeServer>> = Mutex::const_new(Weak::new());

/// An API server and its etcd.
pub struct KubeServer {
    program: PathBuf,
    openssl: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    extra: Vec<String>,
    files: AtomicUsize,
    // Dropped in this order: the API server before the etcd it talks to.
    process: Option<Process>,
    etcd: EtcdServer,
}

impl KubeServer {
    /// Starts both and waits until they are ready. `None`: something is not installed, and the test is to return.
    ///
    /// # Panics
    /// When it does not start, or something is missing with `BULRUSH_REQUIRE=1`.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with more arguments, e.g. `--max-requests-inflight=2`.
    pub async fn start_with(extra: &[&str]) -> Option<Self> {
        let program = program()?;
        let openssl = require::program("openssl")?;
        let mut server = Self {
            program,
            openssl,
            dir: tempfile::tempdir().expect("a temporary directory can be made"),
            port: 0,
            extra: extra.iter().map(|argument| (*argument).to_owned()).collect(),
            files: AtomicUsize::new(0),
            process: None,
            etcd: EtcdServer::start().await?,
        };
        server.write_credentials();
        for _ in 0..ATTEMPTS {
            server.port = free_port();
            if server.try_restart().await {
                return Some(server);
            }
        }
        panic!("kube-apiserver did not start in {ATTEMPTS} attempts; its log:\n{}", server.log());
    }

    /// The server of this test process: started by the first test that asks, gone with the last one that holds
    /// it. Each test keeps to namespaces and names of its own.
    pub async fn shared() -> Option<Arc<Self>> {
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::start().await?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// `https://127.0.0.1:port`; the same after `restart`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// What vouches for the server.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("certs/apiserver.crt")
    }

    /// Token of a member of `system:masters`.
    pub fn admin_token(&self) -> &'static str {
        ADMIN_TOKEN
    }

    /// Kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_for(ADMIN_TOKEN)
    }

    /// Kubeconfig of whom `token` identifies.
    pub fn kubeconfig_for(&self, token: &str) -> PathBuf {
        self.write_kubeconfig(&json!({ "token": token }))
    }

    /// Kubeconfig that names the file with the token, for tests that change it.
    pub fn kubeconfig_for_file(&self, token_file: &Path) -> PathBuf {
        self.write_kubeconfig(&json!({ "tokenFile": token_file }))
    }

    /// Kubeconfig with a client certificate for `user` in `group`.
    pub fn kubeconfig_for_certificate(&self, user: &str, group: &str) -> PathBuf {
        let name = format!("client-{}", self.files.fetch_add(1, Ordering::Relaxed));
        let subject = format!("/O={group}/CN={user}");
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -subj {subject} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile client.ext -out {name}.pem"
        ));
        let file = |end: &str| self.dir.path().join(format!("{name}.{end}"));
        self.write_kubeconfig(&json!({ "client-certificate": file("pem"), "client-key": file("key") }))
    }

    /// The datastore, as the administrator.
    pub fn config(&self) -> StoreConfig {
        let kubeconfig = Some(self.kubeconfig());
        StoreConfig::Kubernetes(KubernetesConfig { kubeconfig, ..KubernetesConfig::default() })
    }

    /// A client of the administrator, for the runtime that calls.
    pub async fn client(&self) -> kube::Client {
        self.client_of(&self.kubeconfig()).await
    }

    /// A client of whom `token` identifies.
    pub async fn client_for(&self, token: &str) -> kube::Client {
        self.client_of(&self.kubeconfig_for(token)).await
    }

    /// A client of the identity in one of this server's kubeconfigs.
    ///
    /// # Panics
    /// When the file is none.
    pub async fn client_of(&self, kubeconfig: &Path) -> kube::Client {
        try_client(kubeconfig).await.unwrap_or_else(|error| panic!("{}: {error}", kubeconfig.display()))
    }

    /// Where its etcd is, e.g. to compact it.
    pub fn etcd_endpoint(&self) -> String {
        self.etcd.endpoint()
    }

    /// Ends the API server in good order; etcd goes on.
    pub fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop();
        }
    }

    /// Kills the API server (-9); etcd goes on.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the API server again on the same etcd and port, ending it first if it runs.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        self.stop();
        assert!(self.try_restart().await, "kube-apiserver did not start again; its log:\n{}", self.log());
    }

    /// Throws all data away and starts on the same port: another history.
    pub async fn restart_empty(&mut self) {
        self.stop();
        self.etcd.restart_empty().await;
        self.restart().await;
    }

    /// Stops the API server's clock (SIGSTOP): connections stay open, nothing answers.
    pub async fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause().await;
        }
    }

    pub fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Server-side apply of every document of `yaml`, in order; unknown fields are refused. A status is written
    /// too, where the kind has one of its own. Custom resource definitions are waited for.
    ///
    /// # Panics
    /// When the server refuses one.
    pub async fn apply(&self, yaml: &str) {
        if let Err((object, error)) = self.apply_documents(yaml).await {
            panic!("{object}: {error}");
        }
    }

    /// The same, ending at the first document that the server refuses.
    pub async fn try_apply(&self, yaml: &str) -> kube::Result<()> {
        self.apply_documents(yaml).await.map_err(|(_, error)| error)
    }

    /// With an error, the object that it is about.
    async fn apply_documents(&self, yaml: &str) -> Result<(), (String, kube::Error)> {
        let client = self.client().await;
        let mut kinds: HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)> = HashMap::new();
        let mut defined: Vec<Value> = Vec::new();
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let object = Value::deserialize(document).expect("the document is YAML");
            if object.is_null() {
                continue;
            }
            let gvk = kind_of(&object);
            let named = |error| (format!("{} {}", gvk.kind, object["metadata"]["name"]), error);
            if gvk.kind == "CustomResourceDefinition" {
                defined.push(object.clone());
            } else {
                self.wait_for_definitions(&client, &std::mem::take(&mut defined)).await;
            }
            if !kinds.contains_key(&gvk) {
                kinds.insert(gvk.clone(), discovery::pinned_kind(&client, &gvk).await.map_err(named)?);
            }
            let (resource, capabilities) = &kinds[&gvk];
            apply_object(&client, resource, capabilities, &object).await.map_err(named)?;
        }
        self.wait_for_definitions(&client, &defined).await;
        Ok(())
    }

    /// Calico's custom resource definitions of one group (`deploy/crds/`).
    ///
    /// # Panics
    /// When the server refuses one.
    pub async fn install_crds(&self, group: ApiGroup) {
        let folder = match group {
            ApiGroup::V1 => "crds/v1",
            ApiGroup::V3 => "crds/v3",
        };
        self.apply_folder(folder).await;
    }

    /// Every object in a folder of `deploy/`.
    ///
    /// # Panics
    /// When the server refuses one.
    pub async fn apply_folder(&self, folder: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(folder);
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
            .filter(|path| !path.ends_with("kustomization.yaml"))
            .collect();
        files.sort();
        let documents: Vec<_> =
            files.iter().map(|file| std::fs::read_to_string(file).expect("the file is readable")).collect();
        self.apply(&documents.join("\n---\n")).await;
    }

    /// A token for an existing service account, as a pod of it would get.
    ///
    /// # Panics
    /// When there is no such service account.
    pub async fn service_account_token(&self, namespace: &str, name: &str) -> String {
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        Api::<ServiceAccount>::namespaced(self.client().await, namespace)
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .unwrap_or_else(|error| panic!("token of {namespace}/{name}: {error}"))
            .status
            .expect("an answered request has a status")
            .token
    }

    fn write_kubeconfig(&self, user: &Value) -> PathBuf {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "test",
                "cluster": { "server": self.url(), "certificate-authority": self.ca_file() },
            }],
            "users": [{ "name": "test", "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        });
        let name = format!("kubeconfig-{}", self.files.fetch_add(1, Ordering::Relaxed));
        let path = self.dir.path().join(name);
        // JSON is YAML.
        std::fs::write(&path, config.to_string()).expect("the temporary directory is writable");
        path
    }

    /// The administrator's token, the key that signs service-account tokens, the CA of client certificates.
    fn write_credentials(&self) {
        let write = |name: &str, content: &str| {
            std::fs::write(self.dir.path().join(name), content).expect("the temporary directory is writable");
        };
        write("tokens.csv", &format!("{ADMIN_TOKEN},admin,admin,system:masters\n"));
        // Certificates without an extension are of version 1, which rustls refuses.
        write("client.ext", "extendedKeyUsage=clientAuth\n");
        self.openssl("genrsa -out sa.key 2048");
        self.openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem");
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new(&self.openssl);
        let output = command.current_dir(self.dir.path()).args(arguments.split(' ')).output();
        let output = output.expect("openssl can be started");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn spawn(&mut self) -> io::Result<()> {
        let file = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(&self.program);
        command
            .args(["--etcd-servers", &self.etcd.endpoint()])
            .args(["--bind-address", "127.0.0.1", "--secure-port", &self.port.to_string()])
            // Otherwise it looks for the machine's address, and there may be no network.
            .args(["--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none"])
            .arg("--cert-dir")
            .arg(file("certs"))
            .arg("--client-ca-file")
            .arg(file("ca.pem"))
            .arg("--token-auth-file")
            .arg(file("tokens.csv"))
            .args(["--authorization-mode", "RBAC"])
            .arg("--service-account-key-file")
            .arg(file("sa.key"))
            .arg("--service-account-signing-key-file")
            .arg(file("sa.key"))
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .args(["--service-cluster-ip-range", "10.96.0.0/16"])
            // Nobody makes the `default` service accounts that it asks for.
            .args(["--disable-admission-plugins", "ServiceAccount"])
            .arg("--allow-privileged=true")
            .args(&self.extra);
        self.process = Some(Process::spawn(&mut command, &file("log"))?);
        Ok(())
    }

    async fn try_restart(&mut self) -> bool {
        self.spawn().expect("kube-apiserver can be started");
        let kubeconfig = self.kubeconfig();
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            if self.process.as_mut().is_none_or(Process::exited) {
                self.process = None;
                return false;
            }
            if self.ready(&kubeconfig).await {
                return true;
            }
            tokio::time::sleep(POLL).await;
        }
        false
    }

    /// Ready by its own word, and the namespace that every test expects is there.
    async fn ready(&self, kubeconfig: &Path) -> bool {
        let attempt = async {
            let client = try_client(kubeconfig).await.ok()?;
            for path in ["/readyz", "/api/v1/namespaces/default"] {
                let request = http::Request::get(path).body(Vec::new()).ok()?;
                client.request_text(request).await.ok()?;
            }
            Some(())
        };
        matches!(tokio::time::timeout(Duration::from_secs(5), attempt).await, Ok(Some(())))
    }

    /// Until every version that the definitions serve can be listed and is discovered.
    async fn wait_for_definitions(&self, client: &kube::Client, definitions: &[Value]) {
        let deadline = Instant::now() + READY;
        for definition in definitions {
            let text =
                |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let versions = definition.pointer("/spec/versions").and_then(Value::as_array);
            for version in versions.into_iter().flatten().filter(|version| version["served"] == json!(true)) {
                let version = version["name"].as_str().unwrap_or_default();
                let gvk = GroupVersionKind::gvk(text("/spec/group"), version, text("/spec/names/kind"));
                while !is_served(client, &gvk).await {
                    assert!(Instant::now() < deadline, "{gvk:?} is not served; log:\n{}", self.log());
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }
}

/// An error also while the server has not made its certificate yet.
async fn try_client(kubeconfig: &Path) -> Result<kube::Client, Box<dyn std::error::Error>> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let options = KubeConfigOptions::default();
    Ok(kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?.try_into()?)
}

async fn is_served(client: &kube::Client, gvk: &GroupVersionKind) -> bool {
    let Ok((resource, _)) = discovery::pinned_kind(client, gvk).await else { return false };
    let objects = Api::<DynamicObject>::all_with(client.clone(), &resource);
    objects.list(&ListParams::default().limit(1)).await.is_ok()
}

fn kind_of(object: &Value) -> GroupVersionKind {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    GroupVersionKind::gvk(group, version, text("kind"))
}

async fn apply_object(
    client: &kube::Client,
    resource: &ApiResource,
    capabilities: &ApiCapabilities,
    object: &Value,
) -> kube::Result<()> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let objects: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), resource),
        Scope::Namespaced => {
            let namespace = text("/metadata/namespace").unwrap_or("default");
            Api::namespaced_with(client.clone(), namespace, resource)
        }
    };
    let name = text("/metadata/name").unwrap_or_default();
    let params = PatchParams::apply(MANAGER).force().validation_strict();
    objects.patch(name, &params, &Patch::Apply(object)).await?;
    let has_status = capabilities.subresources.iter().any(|(subresource, _)| subresource.plural == "status");
    if has_status && object.get("status").is_some() {
        objects.patch_status(name, &params, &Patch::Apply(object)).await?;
    }
    Ok(())
}

/// Where the program is, or `None` after saying that the test is skipped.
fn program() -> Option<PathBuf> {
    const NAME: &str = "kube-apiserver";
    let found = match std::env::var_os("KUBEBUILDER_ASSETS") {
        Some(folder) => Some(PathBuf::from(folder).join(NAME)),
        // Beside the profile's folder of the target directory that this test was built into.
        None => std::env::current_exe().ok().and_then(|test| {
            test.ancestors().map(|dir| dir.join("apiserver").join(NAME)).find(|file| file.is_file())
        }),
    };
    let found = found.filter(|file| file.is_file());
    if found.is_none() {
        assert!(!require::required(), "no {NAME}: run scripts/apiserver; BULRUSH_REQUIRE=1");
        println!("SKIPPED: no {NAME}: run scripts/apiserver or set KUBEBUILDER_ASSETS");
    }
    found
}

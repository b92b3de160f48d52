//! An Iceberg REST catalog in a simulation: it keeps the metadata of tables, checks what a commit requires, and applies its updates.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use dosql_actors::host::simulation::Outside;
use dosql_actors::{CatalogAccess, CatalogSettings, HttpMethod, HttpRequest, HttpResponse};
use iceberg::spec::{FormatVersion, PartitionSpec, Schema, SortOrder, TableMetadata, TableMetadataBuilder};
use iceberg::{TableRequirement, TableUpdate};
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

pub(crate) const URI: &str = "http://catalog";

pub(crate) fn settings() -> CatalogSettings {
    CatalogSettings {
        uri: URI.to_owned(),
        warehouse: None,
        namespace: vec!["default".to_owned()],
        access: CatalogAccess::Anyone,
    }
}

#[derive(Default)]
pub(crate) struct Catalog {
    has_namespace: Cell<bool>,
    tables: RefCell<BTreeMap<String, TableMetadata>>,
    /// Commits that were made, and those refused since the table was not as they require.
    pub(crate) committed: Cell<u64>,
    pub(crate) refused: Cell<u64>,
}

/// Status, type and message.
struct Refusal(u16, &'static str, String);

impl Catalog {
    pub(crate) fn answer(&self, request: &HttpRequest, outside: &Outside<'_>) -> HttpResponse {
        let path = request.url.strip_prefix(URI).unwrap();
        let body = || serde_json::from_slice(&request.body).unwrap();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let outcome = match (request.method, &parts[..]) {
            (HttpMethod::Get, ["v1", "config"]) => Ok(json!({"defaults": {}, "overrides": {}})),
            (HttpMethod::Post, ["v1", "namespaces"]) => {
                self.has_namespace.set(true);
                Ok(body())
            }
            (_, ["v1", "namespaces", "default", "tables", ..]) if !self.has_namespace.get() => {
                Err(Refusal(404, "NoSuchNamespaceException", "there is no such namespace".to_owned()))
            }
            (HttpMethod::Get, ["v1", "namespaces", "default", "tables"]) => Ok(self.list()),
            (HttpMethod::Post, ["v1", "namespaces", "default", "tables"]) => self.create(body(), outside),
            (HttpMethod::Get, ["v1", "namespaces", "default", "tables", name]) => self.load(name),
            (HttpMethod::Post, ["v1", "namespaces", "default", "tables", name]) => self.commit(name, body(), outside),
            (method, _) => panic!("nobody asks a catalog for this: {method:?} {path}"),
        };
        let (status, body) = match outcome {
            Ok(body) => (200, body),
            Err(Refusal(code, kind, message)) => {
                (code, json!({"error": {"code": code, "type": kind, "message": message}}))
            }
        };
        HttpResponse { status, headers: Vec::new(), body: body.to_string().into() }
    }

    fn list(&self) -> Json {
        let tables = self.tables.borrow();
        let identifiers: Vec<Json> =
            tables.keys().map(|name| json!({"namespace": ["default"], "name": name})).collect();
        json!({"identifiers": identifiers})
    }

    fn load(&self, name: &str) -> Result<Json, Refusal> {
        let tables = self.tables.borrow();
        let metadata = tables.get(name);
        let metadata = metadata.ok_or_else(|| Refusal(404, "NoSuchTableException", format!("there is no {name}")))?;
        Ok(json!({"metadata-location": format!("memory:///{}", metadata_path(name)), "metadata": metadata}))
    }

    fn create(&self, mut wanted: Json, outside: &Outside<'_>) -> Result<Json, Refusal> {
        let name: String = part(&mut wanted, "name");
        if self.tables.borrow().contains_key(&name) {
            return Err(Refusal(409, "AlreadyExistsException", format!("{name} is there already")));
        }
        let schema: Schema = part(&mut wanted, "schema");
        let spec: PartitionSpec = part(&mut wanted, "partition-spec");
        let order: SortOrder = part(&mut wanted, "write-order");
        let properties: HashMap<String, String> = part(&mut wanted, "properties");
        let location = format!("memory:///warehouse/default/{name}");
        let builder = TableMetadataBuilder::new(schema, spec, order, location, FormatVersion::V2, properties).unwrap();
        let mut document = serde_json::to_value(builder.build().unwrap().metadata).unwrap();
        // The crate takes both from the process.
        let number = self.tables.borrow().len() + 1;
        document["table-uuid"] = format!("00000000-0000-4000-8000-{number:012}").into();
        document["last-updated-ms"] = outside.now_ms().into();
        self.keep(&name, serde_json::from_value(document).unwrap(), outside);
        self.load(&name)
    }

    fn commit(&self, name: &str, mut wanted: Json, outside: &Outside<'_>) -> Result<Json, Refusal> {
        self.load(name)?;
        let old = self.tables.borrow()[name].clone();
        let requirements: Vec<TableRequirement> = part(&mut wanted, "requirements");
        let updates: Vec<TableUpdate> = part(&mut wanted, "updates");
        if let Some(error) = requirements.iter().find_map(|required| required.check(Some(&old)).err()) {
            self.refused.set(self.refused.get() + 1);
            return Err(Refusal(409, "CommitFailedException", error.to_string()));
        }
        let mut builder = TableMetadataBuilder::new_from_metadata(old.clone(), None);
        for update in updates {
            builder = update.apply(builder).unwrap();
        }
        let metadata = builder.build().unwrap().metadata;
        let newest = metadata.snapshots().map(|snapshot| snapshot.timestamp_ms()).max().unwrap_or(0);
        let mut document = serde_json::to_value(metadata).unwrap();
        document["last-updated-ms"] = newest.max(old.last_updated_ms()).into();
        self.committed.set(self.committed.get() + 1);
        self.keep(name, serde_json::from_value(document).unwrap(), outside);
        self.load(name)
    }

    /// Makes this a table's metadata, also where readers of the lake look for it.
    fn keep(&self, name: &str, metadata: TableMetadata, outside: &Outside<'_>) {
        let bytes = Bytes::from(serde_json::to_vec(&metadata).unwrap());
        outside.put(&metadata_path(name), bytes);
        self.tables.borrow_mut().insert(name.to_owned(), metadata);
    }
}

fn metadata_path(name: &str) -> String {
    format!("warehouse/default/{name}/metadata/v1.metadata.json")
}

fn part<T: DeserializeOwned>(document: &mut Json, name: &str) -> T {
    serde_json::from_value(document[name].take()).unwrap()
}

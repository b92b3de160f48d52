//! The VSchema after an `ALTER VSCHEMA` statement, and after a changed document.

use std::collections::BTreeMap;

use dosql_proto::{Error, ErrorCode};

use super::read::refused;
use super::{AutoIncrement, ColumnVindex, SequenceEntry, TableEntry, VSchema, VindexChoice, VindexEntry};
use crate::catalog::unsupported;
use crate::plan::{AlterVSchema, Using};

impl VSchema {
    /// The VSchema after this statement.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`, `NOT_FOUND` and `CONFLICT` naming the vindex or table; what is wrong with a vindex's parameters.
    pub(crate) fn altered(&self, statement: &AlterVSchema) -> Result<Self, Error> {
        let mut after = self.clone();
        match statement {
            AlterVSchema::CreateVindex { name, using } => {
                if self.vindex_named(name).is_some() {
                    return Err(exists(format!("the vindex {name} exists already")));
                }
                after.vindexes.insert(name.clone(), entry(using)?);
            }
            AlterVSchema::DropVindex { name } => {
                let users: Vec<&str> = self.users_of(name).collect();
                if !users.is_empty() {
                    return Err(conflict(format!("the vindex {name} is in use by table {}", users.join(", "))));
                }
                let known = self.vindex_named(name).ok_or_else(|| missing(format!("there is no vindex {name}")))?;
                after.vindexes.remove(known);
            }
            AlterVSchema::AddTable { table, using } => {
                if self.table(table).is_some() {
                    return Err(exists(format!("the VSchema has table {table} already")));
                }
                after.tables.insert(table.clone(), unsharded(using.as_ref())?);
            }
            AlterVSchema::DropTable { table } => after.remove(table)?,
            AlterVSchema::AddSequence { name, params } => {
                if self.sequence_named(name).is_some() {
                    return Err(exists(format!("the sequence {name} exists already")));
                }
                after.sequences.insert(name.clone(), sequence(params)?);
            }
            AlterVSchema::DropSequence { name } => {
                let user = self.tables.iter().find(|(_, entry)| {
                    matches!(entry, TableEntry::Sharded { auto_increment: Some(increment), .. }
                        if increment.sequence.eq_ignore_ascii_case(name))
                });
                if let Some((table, _)) = user {
                    return Err(conflict(format!("the sequence {name} is in use by table {table}")));
                }
                let known = self.sequence_named(name).ok_or_else(|| missing(format!("there is no sequence {name}")))?;
                after.sequences.remove(known);
            }
            AlterVSchema::AddAutoIncrement { table, column, sequence } => {
                if self.sequence_named(sequence).is_none() {
                    return Err(missing(format!("there is no sequence {sequence}")));
                }
                match after.auto_increment_of(table)? {
                    Some(other) if other.column.eq_ignore_ascii_case(column) && other.sequence == *sequence => {}
                    Some(other) => {
                        return Err(conflict(format!("a sequence fills {} of table {table} already", other.column)));
                    }
                    none => *none = Some(AutoIncrement { column: column.clone(), sequence: sequence.clone() }),
                }
            }
            AlterVSchema::DropAutoIncrement { table } => {
                if after.auto_increment_of(table)?.take().is_none() {
                    return Err(missing(format!("no sequence fills a column of table {table}")));
                }
            }
            AlterVSchema::AddColumnVindex { table, vindex, column, using } => {
                let choice = after.choose(vindex, using.as_ref())?;
                if after.vindex(&choice).is_some_and(|vindex| vindex.lookup().is_some()) {
                    after.add_lookup(table, column, choice)?;
                } else {
                    after.shard_table(self, table, column, choice)?;
                }
            }
            AlterVSchema::DropColumnVindex { table, vindex } => {
                let Some(TableEntry::Sharded { vindex: known, .. }) = self.table(table) else {
                    return Err(missing(format!("table {table} has no vindex")));
                };
                if !after.drop_lookup(table, vindex) {
                    if !known.name().eq_ignore_ascii_case(vindex) {
                        return Err(missing(format!("table {table} has no vindex {vindex}")));
                    }
                    after.remove(table)?;
                    after.tables.insert(table.clone(), TableEntry::Unsharded { shard: None });
                }
            }
        }
        let mut faults = Vec::new();
        after.validate(&mut faults);
        if faults.is_empty() { Ok(after) } else { Err(refused(&faults)) }
    }

    /// What comes of this VSchema, which was `before` when its document was given, under a changed document. What SQL has changed
    /// since stays where the document says the same as before.
    pub(crate) fn merged(&self, before: &Self, document: Self) -> Self {
        Self {
            vindexes: merged(&self.vindexes, &before.vindexes, document.vindexes),
            sequences: merged(&self.sequences, &before.sequences, document.sequences),
            tables: merged(&self.tables, &before.tables, document.tables),
            ..document
        }
    }

    /// Has a table be sharded by a column, as far as `before` allows.
    fn shard_table(&mut self, before: &Self, table: &str, column: &str, choice: VindexChoice) -> Result<(), Error> {
        let (mut auto_increment, mut lookups) = (None, Vec::new());
        if let Some(TableEntry::Sharded { column: other, vindex, auto_increment: known, lookups: kept }) =
            before.table(table)
        {
            if !other.eq_ignore_ascii_case(column) {
                return Err(conflict(format!("table {table} is sharded by {other} already; drop that vindex first")));
            }
            if before.vindex(vindex) != self.vindex(&choice) {
                return Err(conflict(format!("table {table} has another vindex already; drop that first")));
            }
            auto_increment.clone_from(known);
            lookups.clone_from(kept);
        }
        if before.table(table).is_some() {
            self.remove(table)?;
        }
        let entry = TableEntry::Sharded { column: column.to_owned(), vindex: choice, auto_increment, lookups };
        self.tables.insert(table.to_owned(), entry);
        Ok(())
    }

    /// Gives a column of a sharded table a lookup vindex.
    fn add_lookup(&mut self, table: &str, column: &str, choice: VindexChoice) -> Result<(), Error> {
        let entry = self.tables.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(table));
        let Some((_, TableEntry::Sharded { lookups, .. })) = entry else {
            return Err(conflict(format!(
                "the VSchema does not shard table {table}: give it the vindex that it is sharded by first"
            )));
        };
        match lookups.iter().find(|lookup| lookup.column.eq_ignore_ascii_case(column)) {
            Some(lookup) if lookup.vindex == choice => {}
            Some(_) => {
                return Err(conflict(format!("{table}.{column} has another vindex already; drop that first")));
            }
            None => lookups.push(ColumnVindex { column: column.to_owned(), vindex: choice }),
        }
        Ok(())
    }

    /// Takes a lookup vindex from a table; whether the table had it.
    pub(crate) fn drop_lookup(&mut self, table: &str, vindex: &str) -> bool {
        let entry = self.tables.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(table));
        let Some((_, TableEntry::Sharded { lookups, .. })) = entry else { return false };
        let before = lookups.len();
        lookups.retain(|lookup| !lookup.vindex.name().eq_ignore_ascii_case(vindex));
        lookups.len() < before
    }

    /// The vindex of a new entry: one that exists, one that `using` describes, or a type's name.
    fn choose(&mut self, name: &str, using: Option<&Using>) -> Result<VindexChoice, Error> {
        let described = using.map(entry).transpose()?;
        match (self.vindex_named(name).map(str::to_owned), described) {
            (Some(known), None) => Ok(VindexChoice::Named(known)),
            (Some(known), Some(vindex)) if self.vindexes[&known] == vindex => Ok(VindexChoice::Named(known)),
            (Some(known), Some(_)) => {
                Err(conflict(format!("the vindex {known} exists, of type {}", self.vindexes[&known].kind())))
            }
            (None, Some(vindex)) => {
                self.vindexes.insert(name.to_owned(), vindex);
                Ok(VindexChoice::Named(name.to_owned()))
            }
            (None, None) => match entry(&Using { kind: name.to_owned(), params: Vec::new() }) {
                Ok(vindex) => Ok(VindexChoice::Own(vindex)),
                Err(_) => Err(missing(format!("there is no vindex {name}; say USING and its type"))),
            },
        }
    }

    /// A sequence's name as the VSchema has it.
    pub(super) fn sequence_named(&self, name: &str) -> Option<&str> {
        self.sequences.keys().find(|known| known.eq_ignore_ascii_case(name)).map(String::as_str)
    }

    fn auto_increment_of(&mut self, table: &str) -> Result<&mut Option<AutoIncrement>, Error> {
        let entry = self.tables.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(table));
        match entry {
            Some((_, TableEntry::Sharded { auto_increment, .. })) => Ok(auto_increment),
            _ => Err(unsupported(format!(
                "AUTO_INCREMENT of table {table} is not supported: the VSchema does not shard it, so SQLite generates its keys"
            ))),
        }
    }

    fn vindex_named(&self, name: &str) -> Option<&str> {
        self.vindexes.keys().find(|known| known.eq_ignore_ascii_case(name)).map(String::as_str)
    }

    fn users_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = move |choice: &VindexChoice| matches!(choice, VindexChoice::Named(vindex) if vindex.eq_ignore_ascii_case(name));
        self.tables.iter().filter_map(move |(table, entry)| match entry {
            TableEntry::Sharded { vindex, lookups, .. }
                if named(vindex) || lookups.iter().any(|lookup| named(&lookup.vindex)) =>
            {
                Some(table.as_str())
            }
            _ => None,
        })
    }

    fn remove(&mut self, table: &str) -> Result<(), Error> {
        let known = self.tables.keys().find(|known| known.eq_ignore_ascii_case(table)).cloned();
        let known = known.ok_or_else(|| missing(format!("the VSchema has no table {table}")))?;
        self.tables.remove(&known);
        Ok(())
    }
}

fn merged<T: Clone + PartialEq>(
    now: &BTreeMap<String, T>,
    before: &BTreeMap<String, T>,
    mut document: BTreeMap<String, T>,
) -> BTreeMap<String, T> {
    for name in before.keys() {
        // The document says of it what it said before, and SQL has taken it away or changed it.
        if document.get(name) == before.get(name) {
            match now.get(name) {
                Some(entry) => document.insert(name.clone(), entry.clone()),
                None => document.remove(name),
            };
        }
    }
    for (name, entry) in now {
        if !before.contains_key(name) && !document.keys().any(|known| known.eq_ignore_ascii_case(name)) {
            document.insert(name.clone(), entry.clone());
        }
    }
    document
}

/// A vindex of a type and its parameters.
fn entry(using: &Using) -> Result<VindexEntry, Error> {
    let mut fields = serde_json::Map::new();
    for (name, value) in &using.params {
        let field = if name.eq_ignore_ascii_case("virtual_nodes") { "virtualNodes" } else { name.as_str() };
        // Numbers and lists are written as JSON, and names as they are.
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.as_str().into());
        fields.insert(field.to_owned(), value);
    }
    fields.insert("type".to_owned(), using.kind.to_ascii_lowercase().into());
    serde_json::from_value(fields.into()).map_err(|error| Error::invalid(format!("vindex {}: {error}", using.kind)))
}

fn sequence(params: &[(String, String)]) -> Result<SequenceEntry, Error> {
    let fields: serde_json::Map<String, serde_json::Value> = params
        .iter()
        .map(|(name, value)| (name.clone(), serde_json::from_str(value).unwrap_or_else(|_| value.as_str().into())))
        .collect();
    serde_json::from_value(fields.into()).map_err(|error| Error::invalid(format!("sequence: {error}")))
}

fn unsharded(using: Option<&Using>) -> Result<TableEntry, Error> {
    let Some(using) = using else { return Ok(TableEntry::Unsharded { shard: None }) };
    let shard = |name: &str| using.params.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let unknown = using.params.iter().find(|(name, _)| !name.eq_ignore_ascii_case("shard"));
    match using.kind.to_ascii_lowercase().as_str() {
        "unsharded" if unknown.is_none() => {
            Ok(TableEntry::Unsharded { shard: shard("shard").map(|(_, value)| value.clone()) })
        }
        "reference" if using.params.is_empty() => Ok(TableEntry::Reference {}),
        _ => Err(unsupported("ADD TABLE takes USING unsharded [WITH shard=...] or USING reference")),
    }
}

fn exists(message: String) -> Error {
    Error::new(ErrorCode::AlreadyExists, message)
}

fn missing(message: String) -> Error {
    Error::new(ErrorCode::NotFound, message)
}

fn conflict(message: String) -> Error {
    Error::new(ErrorCode::Conflict, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alter(vschema: &VSchema, sql: &str) -> Result<VSchema, Error> {
        vschema.altered(&AlterVSchema::parse(sql).unwrap())
    }

    #[test]
    fn statements_make_a_document() {
        let mut vschema = VSchema::default();
        for sql in [
            "ALTER VSCHEMA CREATE VINDEX ring USING consistent_hash WITH virtual_nodes=64",
            r#"ALTER VSCHEMA CREATE VINDEX years USING range WITH ranges='[{"shard": "old", "max": "2026"}, {"shard": "new", "min": "2026"}]'"#,
            "ALTER VSCHEMA ON users ADD VINDEX ring(tenant)",
            "ALTER VSCHEMA ON orders ADD VINDEX by_hash(id) USING hash",
            "ALTER VSCHEMA ON items ADD VINDEX xxhash(id)",
            "ALTER VSCHEMA ON events ADD VINDEX years(at)",
            "ALTER VSCHEMA ADD TABLE countries USING reference",
            "ALTER VSCHEMA ADD TABLE jobs USING unsharded WITH shard=shard-1",
            "ALTER VSCHEMA ADD TABLE other",
            "ALTER VSCHEMA DROP TABLE other",
            "ALTER VSCHEMA ADD SEQUENCE ids",
            "ALTER VSCHEMA ADD SEQUENCE big WITH start=1000, cache=10",
            "ALTER VSCHEMA ON items ADD AUTO_INCREMENT id USING ids",
            "ALTER VSCHEMA CREATE VINDEX by_name USING lookup WITH table=items_by_name, from=name, to=id, owner=items",
            "ALTER VSCHEMA ON items ADD VINDEX by_name(name)",
            "ALTER VSCHEMA ON items ADD VINDEX by_code(code) USING lookup_unique WITH table=items_by_code",
        ] {
            vschema = alter(&vschema, sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        let expected = VSchema::parse(
            r#"{"vindexes": {
                "by_name": {"type": "lookup", "table": "items_by_name", "from": "name", "to": "id", "owner": "items"},
                "by_code": {"type": "lookup_unique", "table": "items_by_code"},
                "by_hash": {"type": "hash"}, "ring": {"type": "consistent_hash", "virtualNodes": 64},
                "years": {"type": "range", "ranges": [{"shard": "old", "max": "2026"}, {"shard": "new", "min": "2026"}]}},
              "tables": {
                "users": {"type": "sharded", "column": "tenant", "vindex": "ring"},
                "orders": {"type": "sharded", "column": "id", "vindex": "by_hash"},
                "items": {"type": "sharded", "column": "id", "vindex": {"type": "xxhash"},
                    "autoIncrement": {"column": "id", "sequence": "ids"},
                    "lookups": [{"column": "name", "vindex": "by_name"}, {"column": "code", "vindex": "by_code"}]},
                "events": {"type": "sharded", "column": "at", "vindex": "years"},
                "countries": {"type": "reference"}, "jobs": {"type": "unsharded", "shard": "shard-1"}},
              "sequences": {"ids": {}, "big": {"start": 1000, "cache": 10}}}"#,
        )
        .unwrap();
        assert_eq!(vschema, expected);
        for (sql, code) in [
            ("ALTER VSCHEMA CREATE VINDEX RING USING hash", ErrorCode::AlreadyExists),
            ("ALTER VSCHEMA CREATE VINDEX x USING nix", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA CREATE VINDEX x USING hash WITH a=1", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA DROP VINDEX ring", ErrorCode::Conflict),
            ("ALTER VSCHEMA DROP VINDEX nix", ErrorCode::NotFound),
            ("ALTER VSCHEMA ADD TABLE users", ErrorCode::AlreadyExists),
            ("ALTER VSCHEMA DROP TABLE nix", ErrorCode::NotFound),
            ("ALTER VSCHEMA ON users ADD VINDEX hash(other)", ErrorCode::Conflict),
            ("ALTER VSCHEMA ON users ADD VINDEX hash(tenant)", ErrorCode::Conflict),
            ("ALTER VSCHEMA ON new ADD VINDEX nix(a)", ErrorCode::NotFound),
            ("ALTER VSCHEMA ON new ADD VINDEX ring(a) USING hash", ErrorCode::Conflict),
            ("ALTER VSCHEMA ON users DROP VINDEX years", ErrorCode::NotFound),
            ("ALTER VSCHEMA ADD SEQUENCE IDS", ErrorCode::AlreadyExists),
            ("ALTER VSCHEMA ADD SEQUENCE x WITH cache=0", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA ADD SEQUENCE x WITH nix=0", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA DROP SEQUENCE ids", ErrorCode::Conflict),
            ("ALTER VSCHEMA DROP SEQUENCE nix", ErrorCode::NotFound),
            ("ALTER VSCHEMA ON items ADD AUTO_INCREMENT other USING ids", ErrorCode::Conflict),
            ("ALTER VSCHEMA ON items ADD AUTO_INCREMENT id USING nix", ErrorCode::NotFound),
            ("ALTER VSCHEMA ON jobs ADD AUTO_INCREMENT id USING ids", ErrorCode::Unsupported),
            ("ALTER VSCHEMA ON users DROP AUTO_INCREMENT", ErrorCode::NotFound),
            ("ALTER VSCHEMA DROP VINDEX by_name", ErrorCode::Conflict),
            ("ALTER VSCHEMA ON jobs ADD VINDEX by_name(name)", ErrorCode::Conflict),
            ("ALTER VSCHEMA ON items ADD VINDEX by_code(name)", ErrorCode::Conflict),
            // Its lookup table, its owner and the sharding column are taken.
            ("ALTER VSCHEMA ON items ADD VINDEX by_code(other)", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA ON users ADD VINDEX by_name(name)", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA ON items ADD VINDEX x(id) USING lookup WITH table=y", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA ON items ADD VINDEX x(y) USING lookup WITH table=y, to=y", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA ON items ADD VINDEX x(y) USING lookup WITH table=users", ErrorCode::InvalidRequest),
            ("ALTER VSCHEMA ON items ADD VINDEX x(y) USING lookup", ErrorCode::InvalidRequest),
        ] {
            assert_eq!(alter(&vschema, sql).unwrap_err().code(), code, "{sql}");
        }
        let same = alter(&vschema, "ALTER VSCHEMA ON users ADD VINDEX ring(TENANT)").unwrap();
        assert_eq!(same.vindexes, vschema.vindexes);
        let fewer = alter(&vschema, "ALTER VSCHEMA ON items DROP VINDEX BY_NAME").unwrap();
        let columns: Vec<_> = fewer.lookups("items").iter().map(|(entry, _)| entry.column.clone()).collect();
        assert_eq!(columns, ["code"]);
        let dropped = alter(&vschema, "ALTER VSCHEMA ON users DROP VINDEX ring").unwrap();
        assert_eq!(dropped.table("users"), Some(&TableEntry::Unsharded { shard: None }));
        assert!(!alter(&dropped, "ALTER VSCHEMA DROP VINDEX ring").unwrap().vindexes.contains_key("ring"));
    }

    #[test]
    fn a_changed_document_keeps_what_sql_added() {
        let document = |tables: &str| VSchema::parse(&format!("{{\"tables\": {{{tables}}}}}")).unwrap();
        let before = document(r#""a": {"type": "reference"}, "b": {"type": "reference"}, "c": {"type": "reference"}"#);
        let mut now = alter(&before, "ALTER VSCHEMA ON x ADD VINDEX hash(k)").unwrap();
        now = alter(&now, "ALTER VSCHEMA DROP TABLE b").unwrap();
        let after = document(r#""a": {"type": "unsharded"}, "b": {"type": "reference"}, "d": {"type": "reference"}"#);
        let merged = now.merged(&before, after);
        assert_eq!(merged.tables.keys().collect::<Vec<_>>(), ["a", "d", "x"]);
        assert_eq!(merged.table("a"), Some(&TableEntry::Unsharded { shard: None }));
    }
}

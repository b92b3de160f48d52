//! How a source table's columns appear in the lake: names, types, the Iceberg schema.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use dosql_proto::WalTable;
use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use serde::{Deserialize, Serialize};

use crate::LakeError;
use crate::forms::FormColumn;

/// A column's type in the lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ColumnType {
    Long,
    Double,
    String,
    Binary,
}

impl ColumnType {
    /// The type for a declared type, after SQLite's rules of affinity.
    pub(crate) fn of_declared(declared: &str) -> Self {
        let declared = declared.trim().to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if has("INT") {
            Self::Long
        } else if has("CHAR") || has("CLOB") || has("TEXT") || declared.is_empty() || declared == "ANY" {
            Self::String
        } else if has("BLOB") {
            Self::Binary
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Self::Double
        } else if has("BOOL") {
            Self::Long
        } else if has("DATE") || has("TIME") {
            Self::String
        } else {
            Self::Double
        }
    }

    fn iceberg(self) -> PrimitiveType {
        match self {
            Self::Long => PrimitiveType::Long,
            Self::Double => PrimitiveType::Double,
            Self::String => PrimitiveType::String,
            Self::Binary => PrimitiveType::Binary,
        }
    }
}

/// The columns every lake table has beside the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    Shard,
    Lsn,
    CommittedAt,
    Operation,
    Ordinal,
    Misfit,
    Key,
}

impl Meta {
    const MIRROR: &[Self] = &[Self::Shard, Self::Lsn, Self::CommittedAt, Self::Misfit, Self::Key];
    const CHANGES: &[Self] = &[Self::Shard, Self::Lsn, Self::CommittedAt, Self::Operation, Self::Ordinal, Self::Misfit];

    const ALL: &[Self] =
        &[Self::Shard, Self::Lsn, Self::CommittedAt, Self::Operation, Self::Ordinal, Self::Misfit, Self::Key];

    fn name(self) -> &'static str {
        match self {
            Self::Shard => "_shard",
            Self::Lsn => "_lsn",
            Self::CommittedAt => "_committed_at",
            Self::Operation => "_operation",
            Self::Ordinal => "_ordinal",
            Self::Misfit => "_misfit",
            Self::Key => "_key",
        }
    }

    fn iceberg(self) -> PrimitiveType {
        match self {
            Self::Lsn | Self::Ordinal => PrimitiveType::Long,
            Self::CommittedAt => PrimitiveType::Timestamptz,
            Self::Shard | Self::Operation | Self::Misfit => PrimitiveType::String,
            Self::Key => PrimitiveType::Binary,
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|meta| meta.name() == name)
    }
}

/// Which of a source table's two lake tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableKind {
    Mirror,
    Changes,
}

impl TableKind {
    fn meta(self) -> &'static [Meta] {
        match self {
            Self::Mirror => Meta::MIRROR,
            Self::Changes => Meta::CHANGES,
        }
    }
}

/// Names that readers of Iceberg give a meaning of their own.
const READERS_NAMES: &[&str] = &["_file", "_pos", "_deleted", "_spec_id", "_partition", "_row_id"];
const PREFIX: &str = "user_";

/// The name of the partition field: `dt`, or `_dt` where the table has a column of that name.
pub(crate) fn partition_field_name(layouts: &[WalTable]) -> &'static str {
    let taken = layouts.iter().flat_map(|layout| &layout.columns).any(|column| column.name.eq_ignore_ascii_case("dt"));
    if taken { "_dt" } else { "dt" }
}

/// The lake's name of a source column. Different source columns have different names.
pub(crate) fn lake_name(source: &str, partition_field: &str) -> String {
    let mut core = source;
    while let Some(rest) =
        core.get(..PREFIX.len()).filter(|head| head.eq_ignore_ascii_case(PREFIX)).map(|_| &core[PREFIX.len()..])
    {
        core = rest;
    }
    let taken = |name: &str| core.eq_ignore_ascii_case(name);
    let reserved = taken(partition_field)
        || Meta::ALL.iter().any(|meta| taken(meta.name()))
        || READERS_NAMES.iter().any(|name| taken(name));
    if reserved { format!("{PREFIX}{source}") } else { source.to_owned() }
}

/// Where a lake column's values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Meta(Meta),
    Column(ColumnType),
}

/// One column of a lake table.
#[derive(Debug, Clone)]
pub(crate) struct LakeColumn {
    pub(crate) id: i32,
    pub(crate) name: String,
    pub(crate) source: Source,
}

/// A lake table's columns, in the order of its files.
#[derive(Debug, Clone)]
pub(crate) struct LakeColumns {
    pub(crate) columns: Vec<LakeColumn>,
    pub(crate) arrow: SchemaRef,
    /// Ids of the columns that were the primary key when the table was made, in key order.
    pub(crate) key: Vec<i32>,
}

impl LakeColumns {
    /// Reads them off an Iceberg schema of ours.
    pub(crate) fn of_schema(schema: &Schema, key: Vec<i32>) -> Result<Self, LakeError> {
        let mut columns = Vec::new();
        let mut fields = Vec::new();
        for field in schema.as_struct().fields() {
            let source = match Meta::named(&field.name) {
                Some(meta) => Source::Meta(meta),
                None => Source::Column(match field.field_type.as_primitive_type() {
                    Some(PrimitiveType::Long) => ColumnType::Long,
                    Some(PrimitiveType::Double) => ColumnType::Double,
                    Some(PrimitiveType::String) => ColumnType::String,
                    Some(PrimitiveType::Binary) => ColumnType::Binary,
                    _ => {
                        return Err(LakeError::Malformed {
                            path: field.name.clone(),
                            reason: format!("the lake writes no columns of type {}", field.field_type),
                        });
                    }
                }),
            };
            fields.push(arrow_field(&field.name, arrow_type(&source), field.id, true));
            columns.push(LakeColumn { id: field.id, name: field.name.clone(), source });
        }
        Ok(Self { columns, arrow: Arc::new(ArrowSchema::new(fields)), key })
    }
}

fn arrow_type(source: &Source) -> DataType {
    match source {
        Source::Meta(Meta::CommittedAt) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Source::Meta(Meta::Lsn | Meta::Ordinal) | Source::Column(ColumnType::Long) => DataType::Int64,
        Source::Column(ColumnType::Binary) | Source::Meta(Meta::Key) => DataType::Binary,
        Source::Meta(_) | Source::Column(ColumnType::String) => DataType::Utf8,
        Source::Column(ColumnType::Double) => DataType::Float64,
    }
}

/// An Arrow field that Parquet writes with its Iceberg field id.
pub(crate) fn arrow_field(name: &str, data_type: DataType, id: i32, nullable: bool) -> Field {
    let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
    Field::new(name, data_type, nullable).with_metadata(metadata)
}

/// The schema of a new lake table without columns of the source's. Field ids start at 1.
pub(crate) fn new_schema(kind: TableKind) -> Result<Schema, LakeError> {
    let fields = kind
        .meta()
        .iter()
        .zip(1..)
        .map(|(meta, id)| NestedField::optional(id, meta.name(), Type::Primitive(meta.iceberg())).into());
    Ok(Schema::builder().with_schema_id(0).with_fields(fields).build()?)
}

/// The schema with these columns of the source's, before the ones that every lake table has.
pub(crate) fn with_columns(
    schema: &Schema,
    columns: &[FormColumn],
    partition_field: &str,
) -> Result<Schema, LakeError> {
    let meta = schema.as_struct().fields().iter().filter(|field| Meta::named(&field.name).is_some()).cloned();
    let fields = columns.iter().map(|FormColumn(name, column_type, id)| {
        let name = lake_name(name, partition_field);
        NestedField::optional(*id, name, Type::Primitive(column_type.iceberg())).into()
    });
    Ok(Schema::builder().with_schema_id(schema.schema_id()).with_fields(fields.chain(meta)).build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_affinity() {
        let of = ColumnType::of_declared;
        assert_eq!(of("BIGINT"), ColumnType::Long);
        assert_eq!(of("boolean"), ColumnType::Long);
        assert_eq!(of("VARCHAR(20)"), ColumnType::String);
        assert_eq!(of("DATETIME"), ColumnType::String);
        assert_eq!(of(""), ColumnType::String);
        assert_eq!(of("blob"), ColumnType::Binary);
        assert_eq!(of("DOUBLE PRECISION"), ColumnType::Double);
        assert_eq!(of("DECIMAL(10,2)"), ColumnType::Double);
    }

    #[test]
    fn taken_names_stay_apart() {
        assert_eq!(lake_name("_lsn", "dt"), "user__lsn");
        assert_eq!(lake_name("user__lsn", "dt"), "user_user__lsn");
        assert_eq!(lake_name("user_name", "dt"), "user_name");
        assert_eq!(lake_name("DT", "dt"), "user_DT");
        assert_eq!(lake_name("dt", "_dt"), "dt");
        assert_eq!(lake_name("größe", "dt"), "größe");
    }
}

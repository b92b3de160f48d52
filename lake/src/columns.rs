//! How a source table's columns appear in the lake: names, types, the Iceberg schema.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use dosql_proto::WalTable;
use iceberg::spec::{NestedField, NestedFieldRef, PrimitiveType, Schema, Type};
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
    const ALL: &[Self] = &[Self::Long, Self::Double, Self::String, Self::Binary];

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

    /// As Iceberg calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Long => "long",
            Self::Double => "double",
            Self::String => "string",
            Self::Binary => "binary",
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
    /// In the dead letters: the name of the column whose value does not fit.
    Column,
    /// In the dead letters: that value.
    Value,
}

impl Meta {
    const MIRROR: &[Self] = &[Self::Shard, Self::Lsn, Self::CommittedAt, Self::Misfit, Self::Key];
    const CHANGES: &[Self] = &[Self::Shard, Self::Lsn, Self::CommittedAt, Self::Operation, Self::Ordinal, Self::Misfit];

    const DEAD_LETTERS: &[Self] = &[
        Self::Shard,
        Self::Lsn,
        Self::CommittedAt,
        Self::Operation,
        Self::Ordinal,
        Self::Column,
        Self::Value,
        Self::Misfit,
    ];

    const ALL: &[Self] = &[
        Self::Shard,
        Self::Lsn,
        Self::CommittedAt,
        Self::Operation,
        Self::Ordinal,
        Self::Misfit,
        Self::Key,
        Self::Column,
        Self::Value,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shard => "_shard",
            Self::Lsn => "_lsn",
            Self::CommittedAt => "_committed_at",
            Self::Operation => "_operation",
            Self::Ordinal => "_ordinal",
            Self::Misfit => "_misfit",
            Self::Key => "_key",
            Self::Column => "_column",
            Self::Value => "_value",
        }
    }

    fn iceberg(self) -> PrimitiveType {
        match self {
            Self::Lsn | Self::Ordinal => PrimitiveType::Long,
            Self::CommittedAt => PrimitiveType::Timestamptz,
            Self::Shard | Self::Operation | Self::Misfit | Self::Column | Self::Value => PrimitiveType::String,
            Self::Key => PrimitiveType::Binary,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|meta| meta.name() == name)
    }
}

/// Which of a source table's lake tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableKind {
    Mirror,
    Changes,
    /// Values that did not fit their columns.
    DeadLetters,
}

impl TableKind {
    fn meta(self) -> &'static [Meta] {
        match self {
            Self::Mirror => Meta::MIRROR,
            Self::Changes => Meta::CHANGES,
            Self::DeadLetters => Meta::DEAD_LETTERS,
        }
    }
}

/// Names that readers of Iceberg give a meaning of their own.
const READERS_NAMES: &[&str] = &["_file", "_pos", "_deleted", "_spec_id", "_partition", "_row_id"];
const PREFIX: &str = "user_";
/// In the name of a column of values that do not fit another, between that one's name and its type.
const VARIANT: &str = "__v_";

/// The name of the partition field: `dt`, or `_dt` where the table has a column of that name.
pub(crate) fn partition_field_name(layouts: &[WalTable]) -> &'static str {
    let taken = layouts.iter().flat_map(|layout| &layout.columns).any(|column| column.name.eq_ignore_ascii_case("dt"));
    if taken { "_dt" } else { "dt" }
}

/// The lake's name of a source column, where partition fields have taken names. Different source columns have different names.
pub(crate) fn lake_name(source: &str, taken_names: &[String]) -> String {
    let mut core = source;
    while let Some(rest) =
        core.get(..PREFIX.len()).filter(|head| head.eq_ignore_ascii_case(PREFIX)).map(|_| &core[PREFIX.len()..])
    {
        core = rest;
    }
    let taken = |name: &str| core.eq_ignore_ascii_case(name);
    let reserved = taken_names.iter().any(|name| taken(name))
        || core.rsplit_once(VARIANT).is_some_and(|(_, kind)| ColumnType::ALL.iter().any(|known| known.name() == kind))
        || Meta::ALL.iter().any(|meta| taken(meta.name()))
        || READERS_NAMES.iter().any(|name| taken(name));
    if reserved { format!("{PREFIX}{source}") } else { source.to_owned() }
}

/// Where a lake column's values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Meta(Meta),
    Column(ColumnType),
    /// The values of this type that do not fit the column of this id and type.
    Variant {
        of: i32,
        misfit: ColumnType,
        column_type: ColumnType,
    },
}

/// A column for the values of this type that do not fit another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Variant {
    /// The id of the other.
    pub(crate) of: i32,
    pub(crate) column_type: ColumnType,
    pub(crate) id: i32,
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
    pub(crate) fn of_schema(schema: &Schema, key: Vec<i32>, variants: &[Variant]) -> Result<Self, LakeError> {
        let mut columns = Vec::new();
        let mut fields = Vec::new();
        for field in schema.as_struct().fields() {
            let variant = variants.iter().find(|variant| variant.id == field.id);
            let source = match (Meta::named(&field.name), variant) {
                (Some(meta), _) => Source::Meta(meta),
                (None, Some(Variant { of, column_type, .. })) => {
                    let misfit = schema.field_by_id(*of).map_or(Ok(*column_type), |field| column_type_of(field))?;
                    Source::Variant { of: *of, misfit, column_type: *column_type }
                }
                (None, None) => Source::Column(column_type_of(field)?),
            };
            fields.push(arrow_field(&field.name, arrow_type(&source), field.id, true));
            columns.push(LakeColumn { id: field.id, name: field.name.clone(), source });
        }
        Ok(Self { columns, arrow: Arc::new(ArrowSchema::new(fields)), key })
    }

    /// These of them.
    pub(crate) fn only(&self, places: &[usize]) -> Self {
        let fields: Vec<Field> = places.iter().map(|place| self.arrow.field(*place).clone()).collect();
        let columns = places.iter().map(|place| self.columns[*place].clone()).collect();
        Self { columns, arrow: Arc::new(ArrowSchema::new(fields)), key: self.key.clone() }
    }

    /// The types of the columns for values that do not fit the column of this id.
    pub(crate) fn variants_of(&self, id: i32) -> impl Iterator<Item = ColumnType> {
        self.columns.iter().filter_map(move |column| match column.source {
            Source::Variant { of, column_type, .. } if of == id => Some(column_type),
            _ => None,
        })
    }
}

fn column_type_of(field: &NestedField) -> Result<ColumnType, LakeError> {
    match field.field_type.as_primitive_type() {
        Some(PrimitiveType::Long) => Ok(ColumnType::Long),
        Some(PrimitiveType::Double) => Ok(ColumnType::Double),
        Some(PrimitiveType::String) => Ok(ColumnType::String),
        Some(PrimitiveType::Binary) => Ok(ColumnType::Binary),
        _ => Err(LakeError::Malformed {
            path: field.name.clone(),
            reason: format!("the lake writes no columns of type {}", field.field_type),
        }),
    }
}

fn arrow_type(source: &Source) -> DataType {
    match source {
        Source::Meta(Meta::CommittedAt) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Source::Meta(Meta::Lsn | Meta::Ordinal) => DataType::Int64,
        Source::Meta(Meta::Key) => DataType::Binary,
        Source::Meta(_) => DataType::Utf8,
        Source::Column(column_type) | Source::Variant { column_type, .. } => match column_type {
            ColumnType::Long => DataType::Int64,
            ColumnType::Double => DataType::Float64,
            ColumnType::String => DataType::Utf8,
            ColumnType::Binary => DataType::Binary,
        },
    }
}

/// An Arrow field that Parquet writes with its Iceberg field id.
pub(crate) fn arrow_field(name: &str, data_type: DataType, id: i32, nullable: bool) -> Field {
    let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
    Field::new(name, data_type, nullable).with_metadata(metadata)
}

/// The schema of a new lake table without columns of the source's, which have the first field ids, one each.
pub(crate) fn new_schema(kind: TableKind, source_columns: usize) -> Result<Schema, LakeError> {
    let fields = (1..)
        .skip(source_columns)
        .zip(kind.meta())
        .map(|(id, meta)| NestedField::optional(id, meta.name(), Type::Primitive(meta.iceberg())).into());
    Ok(Schema::builder().with_schema_id(0).with_fields(fields).build()?)
}

/// The schema with these columns of the source's, before the ones that every lake table has. Those in `kept` stay, too: partition
/// specs and sort orders are of them.
pub(crate) fn with_columns(
    schema: &Schema,
    columns: &[FormColumn],
    variants: &[Variant],
    kept: &[NestedFieldRef],
    taken_names: &[String],
) -> Result<Schema, LakeError> {
    let meta = schema.as_struct().fields().iter().filter(|field| Meta::named(&field.name).is_some()).cloned();
    let fields = columns.iter().map(|FormColumn(name, column_type, id)| {
        let name = lake_name(name, taken_names);
        NestedField::optional(*id, name, Type::Primitive(column_type.iceberg())).into()
    });
    let variants = variants.iter().filter_map(|Variant { of, column_type, id }| {
        let FormColumn(name, ..) = columns.iter().find(|column| column.2 == *of)?;
        let name = format!("{}{VARIANT}{}", lake_name(name, taken_names), column_type.name());
        Some(NestedField::optional(*id, name, Type::Primitive(column_type.iceberg())).into())
    });
    let mut fields: Vec<NestedFieldRef> = fields.chain(variants).collect();
    for field in kept {
        if fields.iter().all(|known| known.id != field.id) {
            let is_taken = fields.iter().any(|known| known.name.eq_ignore_ascii_case(&field.name));
            let name = if is_taken { format!("{}__{}", field.name, field.id) } else { field.name.clone() };
            fields.push(NestedField::optional(field.id, name, (*field.field_type).clone()).into());
        }
    }
    let fields = fields.into_iter().chain(meta);
    Ok(Schema::builder().with_schema_id(schema.schema_id()).with_fields(fields).build()?)
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
        assert_eq!(lake_name("_lsn", &["dt".to_owned()]), "user__lsn");
        assert_eq!(lake_name("user__lsn", &["dt".to_owned()]), "user_user__lsn");
        assert_eq!(lake_name("user_name", &["dt".to_owned()]), "user_name");
        assert_eq!(lake_name("DT", &["dt".to_owned()]), "user_DT");
        assert_eq!(lake_name("dt", &["_dt".to_owned()]), "dt");
        assert_eq!(lake_name("größe", &["dt".to_owned()]), "größe");
        assert_eq!(lake_name("n__v_long", &["dt".to_owned()]), "user_n__v_long");
        assert_eq!(lake_name("n__v_other", &["dt".to_owned()]), "n__v_other");
    }
}

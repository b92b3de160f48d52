//! Partitions: which one a row is in, what it is called, and how the index keeps it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Date32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use chrono::NaiveDate;
use iceberg::spec::{Literal, PartitionSpec, PartitionSpecRef, PrimitiveLiteral, Struct, StructType, Transform};
use iceberg::transform::{BoxedTransformFunction, create_transform_function};
use serde_json::{Value as Json, json};

use crate::LakeError;
use crate::columns::{Meta, Source};
use crate::table::LakeTable;

/// A partition of a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Partition {
    pub(crate) spec_id: i32,
    /// One for each field of the spec.
    pub(crate) values: Struct,
}

impl LakeTable {
    /// A spec, and the types of its fields. A column that an old spec is of may have left the present schema.
    fn spec(&self, spec_id: i32) -> Result<(&PartitionSpecRef, StructType), LakeError> {
        let unknown = || LakeError::Malformed {
            path: self.directory.clone(),
            reason: format!("there is no partition spec {spec_id} whose columns are known"),
        };
        let spec = self.next().partition_spec_by_id(spec_id).ok_or_else(unknown)?;
        let schemas = [self.schema()].into_iter().chain(self.next().schemas_iter());
        let field_types = schemas.filter_map(|schema| spec.partition_type(schema).ok()).next();
        Ok((spec, field_types.ok_or_else(unknown)?))
    }

    /// As a directory is called: `dt=2026-01-31/id_bucket=3`; empty where the table is not partitioned.
    pub(crate) fn partition_path(&self, partition: &Partition) -> Result<String, LakeError> {
        let (spec, types) = self.spec(partition.spec_id)?;
        let values = spec.fields().iter().zip(types.fields()).zip(partition.values.iter());
        let parts = values.map(|((field, of), value)| {
            let text = field.transform.to_human_string(&of.field_type, value);
            format!("{}={}", encoded(&field.name), encoded(&text))
        });
        Ok(parts.collect::<Vec<_>>().join("/"))
    }

    /// As the operator calls it: its path, or the day where that is all that makes it.
    pub(crate) fn partition_label(&self, partition: &Partition) -> Result<String, LakeError> {
        match (self.day_of(partition), partition.values.fields().len()) {
            (Some(day), 1) => Ok(NaiveDate::from_epoch_days(day).map(|date| date.to_string()).unwrap_or_default()),
            _ => self.partition_path(partition),
        }
    }

    /// As the index keeps it.
    pub(crate) fn partition_text(&self, partition: &Partition) -> Result<String, LakeError> {
        let (_, types) = self.spec(partition.spec_id)?;
        let value = |(of, value): (&iceberg::spec::NestedFieldRef, Option<&Literal>)| match value {
            Some(value) => value.clone().try_into_json(&of.field_type),
            None => Ok(Json::Null),
        };
        let values: Vec<Json> =
            types.fields().iter().zip(partition.values.iter()).map(value).collect::<Result<_, _>>()?;
        Ok(json!([partition.spec_id, values]).to_string())
    }

    /// What the index keeps.
    pub(crate) fn partition_of_text(&self, text: &str) -> Result<Partition, LakeError> {
        let malformed = |reason: String| LakeError::Malformed { path: format!("partition {text}"), reason };
        let (spec_id, values): (i32, Vec<Json>) =
            serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        let (_, types) = self.spec(spec_id)?;
        let value = |(of, value): (&iceberg::spec::NestedFieldRef, Json)| match value {
            Json::Null => Ok(None),
            value => Literal::try_from_json(value, &of.field_type),
        };
        let values: Vec<Option<Literal>> = types.fields().iter().zip(values).map(value).collect::<Result<_, _>>()?;
        Ok(Partition { spec_id, values: Struct::from_iter(values) })
    }

    /// The day of the commits that a partition is of, in days since the epoch; `None` where it is not made of days.
    pub(crate) fn day_of(&self, partition: &Partition) -> Option<i32> {
        let spec = self.next().partition_spec_by_id(partition.spec_id)?;
        let committed_at = self.id_of(Meta::CommittedAt);
        let place = spec.fields().iter().position(|field| is_day(field.source_id, field.transform, committed_at))?;
        match partition.values.fields().get(place)?.as_ref()? {
            Literal::Primitive(PrimitiveLiteral::Int(day)) => Some(*day),
            _ => None,
        }
    }

    /// The partition of a day, where days alone make the table's partitions.
    pub(crate) fn partition_of_day(&self, day: i32) -> Option<Partition> {
        let spec = self.next().default_partition_spec();
        let [field] = spec.fields() else { return None };
        let values = || Struct::from_iter([Some(Literal::date(day))]);
        is_day(field.source_id, field.transform, self.id_of(Meta::CommittedAt))
            .then(|| Partition { spec_id: spec.spec_id(), values: values() })
    }

    fn id_of(&self, meta: Meta) -> Option<i32> {
        let column = self.columns.columns.iter().find(|column| column.source == Source::Meta(meta));
        column.map(|column| column.id)
    }

    /// What finds the partitions of rows by the present spec.
    pub(crate) fn partitioner(&self) -> Result<Partitioner, LakeError> {
        Partitioner::new(self, self.next().default_partition_spec())
    }
}

fn is_day(source_id: i32, transform: Transform, committed_at: Option<i32>) -> bool {
    transform == Transform::Day && Some(source_id) == committed_at
}

/// Bytes that a path may not have, as `%HH`.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Finds the partitions of rows.
pub(crate) struct Partitioner {
    pub(crate) spec_id: i32,
    /// The columns that the fields are made of, by their places in the table.
    pub(crate) places: Vec<usize>,
    transforms: Vec<BoxedTransformFunction>,
}

impl Partitioner {
    fn new(table: &LakeTable, spec: &PartitionSpec) -> Result<Self, LakeError> {
        let (mut places, mut transforms) = (Vec::new(), Vec::new());
        for field in spec.fields() {
            let place = table.columns.columns.iter().position(|column| column.id == field.source_id);
            places.push(place.ok_or_else(|| LakeError::Malformed {
                path: table.directory.clone(),
                reason: format!("the column of its partition field {} is missing", field.name),
            })?);
            transforms.push(create_transform_function(&field.transform)?);
        }
        Ok(Self { spec_id: spec.spec_id(), places, transforms })
    }

    /// Appends each row's partition, by its place in `known`, which grows. The batch has the columns of `places`.
    pub(crate) fn partitions(
        &self,
        batch: &RecordBatch,
        known: &mut Known,
        out: &mut Vec<u32>,
    ) -> Result<(), LakeError> {
        let arrays: Vec<ArrayRef> = self
            .transforms
            .iter()
            .zip(batch.columns())
            .map(|(transform, column)| transform.transform(without_zone(column)))
            .collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            let values = arrays.iter().map(|array| literal(array, row)).collect::<Result<Vec<_>, _>>()?;
            out.push(known.place(Partition { spec_id: self.spec_id, values: Struct::from_iter(values) }));
        }
        Ok(())
    }
}

/// The partitions that rows were found to be in, in the order in which they were found.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) partitions: Vec<Partition>,
    places: HashMap<Partition, u32>,
}

impl Known {
    pub(crate) fn place(&mut self, partition: Partition) -> u32 {
        if let Some(place) = self.places.get(&partition) {
            return *place;
        }
        let place = self.partitions.len() as u32;
        self.partitions.push(partition.clone());
        self.places.insert(partition, place);
        place
    }
}

/// Times without their zone, which is UTC: the transforms would look it up, and only builds with DataFusion know zones by name.
fn without_zone(column: &ArrayRef) -> ArrayRef {
    match column.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(times) => Arc::new(times.clone().with_timezone_opt(None::<Arc<str>>)),
        None => Arc::clone(column),
    }
}

fn literal(array: &ArrayRef, row: usize) -> Result<Option<Literal>, LakeError> {
    if array.is_null(row) {
        return Ok(None);
    }
    Ok(Some(match array.data_type() {
        DataType::Int32 => Literal::int(array.as_primitive::<Int32Type>().value(row)),
        DataType::Date32 => Literal::date(array.as_primitive::<Date32Type>().value(row)),
        DataType::Int64 => Literal::long(array.as_primitive::<Int64Type>().value(row)),
        DataType::Timestamp(..) => Literal::timestamptz(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Float64 => Literal::double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Literal::string(array.as_string::<i32>().value(row)),
        DataType::Binary => Literal::binary(array.as_binary::<i32>().value(row).to_vec()),
        other => {
            return Err(LakeError::Malformed {
                path: "a partition".to_owned(),
                reason: format!("a field of it is of type {other}"),
            });
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn paths_are_safe() {
        assert_eq!(encoded("../a b=ü"), "..%2Fa%20b%3D%C3%BC");
    }
}

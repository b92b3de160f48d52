//! Footers of Parquet files in terms of a table's present columns.

use std::collections::HashMap;
use std::sync::Arc;

use parquet::errors::Result;
use parquet::file::metadata::{FileMetaData, ParquetMetaData};
use parquet::schema::types::{SchemaDescriptor, Type};

/// DataFusion finds columns by their names, Iceberg by their ids: a file may have been written before a column got its name.
///
/// # Errors
/// Where the footer is not one of ours.
pub(crate) fn renamed(footer: &Arc<ParquetMetaData>, names: &HashMap<i32, String>) -> Result<Arc<ParquetMetaData>> {
    let file = footer.file_metadata();
    let root = file.schema_descr().root_schema();
    // A column that is not read may have the name of one that is, and must not be taken for it.
    let name = |field: &Type| {
        let id = field.get_basic_info();
        let id = id.has_id().then(|| id.id());
        id.and_then(|id| names.get(&id).cloned()).unwrap_or_else(|| format!("_not_read_{}", field.name()))
    };
    let is_named = |field: &Arc<Type>| {
        let wanted = name(field);
        wanted == field.name() || wanted.starts_with("_not_read_") && !names.values().any(|name| name == field.name())
    };
    if root.get_fields().iter().all(is_named) {
        return Ok(Arc::clone(footer));
    }
    let fields = root
        .get_fields()
        .iter()
        .map(|field| {
            let info = field.get_basic_info();
            let renamed = Type::primitive_type_builder(&name(field), field.get_physical_type())
                .with_repetition(info.repetition())
                .with_converted_type(info.converted_type())
                .with_logical_type(info.logical_type_ref().cloned())
                .with_id(info.has_id().then(|| info.id()))
                .build()?;
            Ok(Arc::new(renamed))
        })
        .collect::<Result<_>>()?;
    let root = Type::group_type_builder(root.name()).with_fields(fields).build()?;
    let schema = Arc::new(SchemaDescriptor::new(Arc::new(root)));
    let file = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_owned),
        file.key_value_metadata().cloned(),
        schema,
        file.column_orders().cloned(),
    );
    Ok(Arc::new(ParquetMetaData::new(file, footer.row_groups().to_vec())))
}

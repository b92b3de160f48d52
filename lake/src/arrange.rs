//! Has a table's partition spec and sort order follow its options. Files that are there already keep theirs.

use iceberg::spec::{
    NestedFieldRef, NullOrder, SortDirection, SortField, SortOrder, TableMetadataBuilder, Transform, Type,
    UnboundPartitionSpec,
};

use crate::LakeError;
use crate::columns::Meta;
use crate::layout::{PartitionBy, SortBy};
use crate::options::TableOptions;
use crate::table::LakeTable;

/// A field of the spec that is wanted: the column's id, how its values make partitions, and the field's name.
type WantedField = (i32, Transform, String);

impl LakeTable {
    /// A partition field of this table, or why it cannot have it.
    fn wanted_field(&self, by: &PartitionBy) -> Result<WantedField, String> {
        let (column, field_type) = self.typed_column(by.column())?;
        let transform = by.transform(&field_type)?;
        Ok((column.0, transform, by.name(&column.1)))
    }

    fn wanted_sort(&self, by: &SortBy) -> Result<SortField, String> {
        let ((source_id, _), _) = self.typed_column(&by.column)?;
        let (direction, null_order) = (by.direction, by.nulls);
        Ok(SortField { source_id, transform: Transform::Identity, direction, null_order })
    }

    /// The id, name and type of a column of the source or one that every lake table has.
    fn typed_column(&self, name: &str) -> Result<((i32, String), Type), String> {
        let column = self.column_named(name).ok_or_else(|| format!("the table has no column {name}"))?;
        let field = self.schema().field_by_id(column.id).ok_or_else(|| format!("the table has no column {name}"))?;
        Ok(((column.id, column.name.clone()), (*field.field_type).clone()))
    }

    /// Refuses options that this table cannot have.
    pub(crate) fn check_options(&self, options: &TableOptions) -> Result<(), LakeError> {
        let refused = |name: &str| {
            let (table, name) = (self.source().to_owned(), name.to_owned());
            move |reason| LakeError::Option { table, name, reason }
        };
        for column in &options.files.bloom_filters {
            self.typed_column(column).map_err(refused("bloom_filters"))?;
        }
        for by in &options.partition_by {
            self.wanted_field(by).map_err(refused("partition_by"))?;
        }
        for by in &options.sort_by {
            self.wanted_sort(by).map_err(refused("sort_by"))?;
        }
        Ok(())
    }

    /// Stages the spec and the sort order that the options ask for, as far as the table has the columns.
    pub(crate) fn arrange(&mut self, options: &TableOptions) -> Result<(), LakeError> {
        let fields: Vec<WantedField> =
            options.partition_by.iter().filter_map(|by| self.wanted_field(by).ok()).collect();
        let sort: Vec<SortField> = options.sort_by.iter().filter_map(|by| self.wanted_sort(by).ok()).collect();
        let spec = self.next().default_partition_spec();
        let is_spec = spec.fields().len() == fields.len()
            && spec
                .fields()
                .iter()
                .zip(&fields)
                .all(|(has, wants)| (has.source_id, has.transform) == (wants.0, wants.1));
        let is_order = self.next().default_sort_order().fields == sort;
        if is_spec && is_order {
            return Ok(());
        }
        let mut builder = TableMetadataBuilder::new_from_metadata(self.next().clone(), None);
        if !is_spec {
            let mut unbound = UnboundPartitionSpec::builder();
            let mut names: Vec<String> = Vec::new();
            for (source_id, transform, name) in fields {
                let name = self.free_name(name, source_id, transform, &names);
                names.push(name.clone());
                unbound = unbound.add_partition_field(source_id, name, transform)?;
            }
            builder = builder.add_default_partition_spec(unbound.build())?;
        }
        if !is_order {
            builder = match sort.is_empty() {
                true => builder.set_default_sort_order(0)?,
                false => {
                    let order = SortOrder { order_id: 1, fields: sort };
                    builder.add_sort_order(order)?.set_default_sort_order(LAST_ADDED)?
                }
            };
        }
        self.stage(builder)
    }

    /// A name for a partition field that no other field and no column has.
    fn free_name(&self, name: String, source_id: i32, transform: Transform, others: &[String]) -> String {
        let taken = |name: &str| {
            let is_column = self.next().schemas_iter().any(|schema| {
                let same = |field: &NestedFieldRef| field.id == source_id && transform == Transform::Identity;
                schema.as_struct().fields().iter().any(|field| field.name.eq_ignore_ascii_case(name) && !same(field))
            });
            is_column || others.iter().any(|other| other == name)
        };
        let mut free = name;
        while taken(&free) {
            free = format!("_{free}");
        }
        free
    }

    /// The id of the order that rows are written in; `None` where they are not sorted.
    pub(crate) fn sort_order_id(&self) -> Option<i32> {
        let order = self.next().default_sort_order();
        if order.fields.is_empty() { None } else { i32::try_from(order.order_id).ok() }
    }

    /// The columns that rows are sorted by, by their places, and how.
    pub(crate) fn sort_columns(&self) -> Vec<(usize, SortDirection, NullOrder)> {
        let place = |id: i32| self.columns.columns.iter().position(|column| column.id == id);
        let fields = self.next().default_sort_order().fields.iter();
        fields.filter_map(|field| Some((place(field.source_id)?, field.direction, field.null_order))).collect()
    }

    /// Columns that some spec or sort order is of: readers of old files look for them.
    pub(crate) fn arranged_by(&self) -> Vec<NestedFieldRef> {
        let next = self.next();
        let specs = next.partition_specs_iter().flat_map(|spec| spec.fields().iter().map(|field| field.source_id));
        let orders = next.sort_orders_iter().flat_map(|order| order.fields.iter().map(|field| field.source_id));
        let mut ids: Vec<i32> = specs.chain(orders).collect();
        ids.sort_unstable();
        ids.dedup();
        let newest = |id: i32| {
            let schemas = next.schemas_iter().filter(|schema| schema.field_by_id(id).is_some());
            schemas.max_by_key(|schema| schema.schema_id())?.field_by_id(id).cloned()
        };
        ids.into_iter().filter_map(newest).filter(|field| Meta::named(&field.name).is_none()).collect()
    }

    /// Names of partition fields that no column has or had, and none may take.
    pub(crate) fn taken_names(&self) -> Vec<String> {
        let next = self.next();
        let mut names: Vec<String> =
            next.partition_specs_iter().flat_map(|spec| spec.fields().iter().map(|field| field.name.clone())).collect();
        names.retain(|name| !next.schemas_iter().any(|schema| schema.field_by_name(name).is_some()));
        names.sort();
        names.dedup();
        names
    }
}

/// Stands for the sort order that was added last.
const LAST_ADDED: i64 = -1;

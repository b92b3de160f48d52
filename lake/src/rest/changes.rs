//! What a commit asks of a catalog: the steps from a table's metadata to its next, and what must not have changed meanwhile.

use std::collections::{HashMap, HashSet};

use iceberg::spec::{MAIN_BRANCH, PartitionSpec, Schema, Snapshot, SnapshotReference, SortOrder, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};

/// That the table is as it was when the commit was built: `main`, so that no other commit is passed over, and whatever numbers the
/// catalog counts on from.
pub(super) fn requirements(old: &TableMetadata) -> Vec<TableRequirement> {
    vec![
        TableRequirement::UuidMatch { uuid: old.uuid() },
        TableRequirement::RefSnapshotIdMatch { r#ref: MAIN_BRANCH.to_owned(), snapshot_id: old.current_snapshot_id() },
        TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: old.last_column_id() },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: old.current_schema_id() },
        TableRequirement::LastAssignedPartitionIdMatch { last_assigned_partition_id: old.last_partition_id() },
        TableRequirement::DefaultSpecIdMatch { default_spec_id: old.default_partition_spec_id() },
        TableRequirement::DefaultSortOrderIdMatch { default_sort_order_id: old.default_sort_order_id() },
    ]
}

/// The steps from one to the other. Branches and tags other than `main` are not the lake's to change.
pub(super) fn updates(old: &TableMetadata, new: &TableMetadata) -> Result<Vec<TableUpdate>, serde_json::Error> {
    let mut updates = Vec::new();
    let known: HashSet<i32> = old.schemas_iter().map(|schema| schema.schema_id()).collect();
    let mut schemas: Vec<&Schema> =
        new.schemas_iter().map(|schema| &**schema).filter(|schema| !known.contains(&schema.schema_id())).collect();
    schemas.sort_by_key(|schema| schema.schema_id());
    updates.extend(schemas.into_iter().map(|schema| TableUpdate::AddSchema { schema: schema.clone() }));
    if new.current_schema_id() != old.current_schema_id() {
        updates.push(TableUpdate::SetCurrentSchema { schema_id: new.current_schema_id() });
    }

    let known: HashSet<i32> = old.partition_specs_iter().map(|spec| spec.spec_id()).collect();
    let mut specs: Vec<&PartitionSpec> =
        new.partition_specs_iter().map(|spec| &**spec).filter(|spec| !known.contains(&spec.spec_id())).collect();
    specs.sort_by_key(|spec| spec.spec_id());
    updates.extend(specs.into_iter().map(|spec| TableUpdate::AddSpec { spec: spec.clone().into_unbound() }));
    if new.default_partition_spec_id() != old.default_partition_spec_id() {
        updates.push(TableUpdate::SetDefaultSpec { spec_id: new.default_partition_spec_id() });
    }

    let known: HashSet<i64> = old.sort_orders_iter().map(|order| order.order_id).collect();
    let mut orders: Vec<&SortOrder> =
        new.sort_orders_iter().map(|order| &**order).filter(|order| !known.contains(&order.order_id)).collect();
    orders.sort_by_key(|order| order.order_id);
    updates.extend(orders.into_iter().map(|order| TableUpdate::AddSortOrder { sort_order: order.clone() }));
    if new.default_sort_order_id() != old.default_sort_order_id() {
        updates.push(TableUpdate::SetDefaultSortOrder { sort_order_id: new.default_sort_order_id() });
    }

    let changed: HashMap<String, String> = new
        .properties()
        .iter()
        .filter(|(name, value)| old.properties().get(*name) != Some(*value))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !changed.is_empty() {
        updates.push(TableUpdate::SetProperties { updates: changed });
    }
    let removals: Vec<String> =
        old.properties().keys().filter(|name| !new.properties().contains_key(*name)).cloned().collect();
    if !removals.is_empty() {
        updates.push(TableUpdate::RemoveProperties { removals });
    }

    let is_new = |snapshot: &&Snapshot| old.snapshot_by_id(snapshot.snapshot_id()).is_none();
    let mut snapshots: Vec<&Snapshot> = new.snapshots().map(|snapshot| &**snapshot).filter(is_new).collect();
    snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
    updates.extend(snapshots.into_iter().map(|snapshot| TableUpdate::AddSnapshot { snapshot: snapshot.clone() }));
    if new.current_snapshot_id() != old.current_snapshot_id() {
        // Read off the document, since the type keeps its branches to itself.
        let mut document = serde_json::to_value(new)?;
        let reference: Option<SnapshotReference> = serde_json::from_value(document["refs"][MAIN_BRANCH].take())?;
        updates.extend(
            reference.map(|reference| TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference }),
        );
    }
    let gone = |id: &i64| new.snapshot_by_id(*id).is_none();
    let snapshot_ids: Vec<i64> = old.snapshots().map(|snapshot| snapshot.snapshot_id()).filter(gone).collect();
    if !snapshot_ids.is_empty() {
        updates.push(TableUpdate::RemoveSnapshots { snapshot_ids });
    }
    Ok(updates)
}

#[cfg(test)]
mod tests {
    use iceberg::spec::{
        NestedField, NullOrder, Operation, PrimitiveType, SortDirection, SortField, Summary, TableMetadataBuilder,
        Transform, Type, UnboundPartitionSpec,
    };
    use uuid::Uuid;

    use super::*;
    use crate::columns::TableKind;
    use crate::table::LakeTable;

    fn snapshot(id: i64, after: &TableMetadata) -> Snapshot {
        Snapshot::builder()
            .with_snapshot_id(id)
            .with_parent_snapshot_id(after.current_snapshot_id())
            .with_sequence_number(after.next_sequence_number())
            .with_timestamp_ms(after.last_updated_ms() + 1)
            .with_manifest_list("file:///lake/t/metadata/list.avro".to_owned())
            .with_summary(Summary { operation: Operation::Append, additional_properties: HashMap::new() })
            .with_schema_id(after.current_schema_id())
            .build()
    }

    /// What a catalog makes of the steps, having read them as the protocol has them.
    fn applied(old: &TableMetadata, new: &TableMetadata) -> TableMetadata {
        let steps = serde_json::to_string(&updates(old, new).unwrap()).unwrap();
        let steps: Vec<TableUpdate> = serde_json::from_str(&steps).unwrap();
        let mut builder = TableMetadataBuilder::new_from_metadata(old.clone(), None);
        for step in steps {
            builder = step.apply(builder).unwrap();
        }
        builder.build().unwrap().metadata
    }

    fn same(one: &TableMetadata, other: &TableMetadata) {
        let document = |metadata: &TableMetadata| {
            let mut document = serde_json::to_value(metadata).unwrap();
            // A catalog has a clock of its own, which the log of snapshots follows.
            document["last-updated-ms"] = 0.into();
            document["metadata-log"] = 0.into();
            document
        };
        assert_eq!(document(one), document(other));
    }

    #[test]
    fn the_steps_lead_to_the_new_metadata() {
        let location = "file:///lake/t";
        let first = LakeTable::new_metadata(location, "t", TableKind::Mirror, &[], Uuid::from_u128(1), 1_000).unwrap();
        assert!(updates(&first, &first).unwrap().is_empty());

        let mut fields = first.current_schema().as_struct().fields().to_vec();
        let id = first.last_column_id() + 1;
        fields.push(NestedField::optional(id, "new", Type::Primitive(PrimitiveType::Long)).into());
        let schema = Schema::builder().with_schema_id(1).with_fields(fields).build().unwrap();
        let spec = UnboundPartitionSpec::builder()
            .add_partition_field(id, "new_bucket".to_owned(), Transform::Bucket(4))
            .unwrap()
            .build();
        let field = SortField {
            source_id: id,
            transform: Transform::Identity,
            direction: SortDirection::Descending,
            null_order: NullOrder::Last,
        };
        let second = TableMetadataBuilder::new_from_metadata(first.clone(), None)
            .add_current_schema(schema)
            .unwrap()
            .add_default_partition_spec(spec)
            .unwrap()
            .add_sort_order(SortOrder { order_id: 1, fields: vec![field] })
            .unwrap()
            .set_default_sort_order(1)
            .unwrap()
            .set_properties(HashMap::from([("dosql.forms".to_owned(), "other".to_owned())]))
            .unwrap()
            .set_branch_snapshot(snapshot(11, &first), MAIN_BRANCH)
            .unwrap()
            .build()
            .unwrap()
            .metadata;
        same(&applied(&first, &second), &second);

        let third = TableMetadataBuilder::new_from_metadata(second.clone(), None)
            .set_branch_snapshot(snapshot(12, &second), MAIN_BRANCH)
            .unwrap()
            .build()
            .unwrap()
            .metadata;
        let fourth = TableMetadataBuilder::new_from_metadata(third.clone(), None)
            .remove_snapshots(&[11])
            .remove_properties(&["dosql.forms".to_owned()])
            .unwrap()
            .build()
            .unwrap()
            .metadata;
        same(&applied(&third, &fourth), &fourth);
    }

    #[test]
    fn a_late_commit_does_not_follow() {
        let first =
            LakeTable::new_metadata("file:///lake/t", "t", TableKind::Changes, &[], Uuid::from_u128(1), 1).unwrap();
        let second = TableMetadataBuilder::new_from_metadata(first.clone(), None)
            .set_branch_snapshot(snapshot(11, &first), MAIN_BRANCH)
            .unwrap()
            .build()
            .unwrap()
            .metadata;
        let holds = |old, now| requirements(old).iter().all(|required| required.check(Some(now)).is_ok());
        assert!(holds(&first, &first) && holds(&second, &second) && !holds(&first, &second));
    }
}

//! Partition specs and sort orders: where rows go, that deletes find them, and what changing the choice does.

use std::collections::BTreeSet;

use dosql_actors::Settings;
use dosql_proto::{
    CompactionMode, Error, ErrorCode, LakeCompact, LakeCompaction, SchemaChange, Value, WalRecord, WalTable,
    lake_reply, lake_request,
};

use crate::choosing::configure;
use crate::reading;
use crate::records::{NOON_MS, inserts, row_change, table};
use crate::support::World;

const BASE: &str = "memory://lake/";

fn orders() -> WalTable {
    table("t", &[("id", "INTEGER"), ("region", "TEXT"), ("made", "DATETIME"), ("price", "REAL")], &[0])
}

fn row(id: i64, region: &str, made: &str) -> Vec<Value> {
    vec![id.into(), region.into(), made.into(), (id as f64 / 2.0).into()]
}

fn record(lsn: u64, changes: Vec<dosql_proto::RowChange>) -> WalRecord {
    WalRecord { lsn, hlc: NOON_MS << 16, tables: vec![orders()], changes, ..WalRecord::default() }
}

/// The directories of the current snapshot's data files, below `data`.
fn directories(world: &World, lake_table: &str) -> Vec<String> {
    let within = |url: String| {
        let (_, path) = url.split_once("/data/").unwrap();
        path.rsplit_once('/').map_or(String::new(), |(directory, _)| directory.to_owned())
    };
    let mut all: Vec<String> = reading::data_files(&world.objects, lake_table).into_iter().map(within).collect();
    all.sort();
    all
}

fn distinct(world: &World, lake_table: &str) -> Vec<String> {
    directories(world, lake_table).into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

fn ids(world: &World) -> Vec<(i64, String)> {
    let id = |row: reading::TextRow| (row["id"].parse().unwrap(), row["region"].clone());
    let mut ids: Vec<_> = reading::rows(&world.objects, "t").into_iter().map(id).collect();
    ids.sort();
    ids
}

fn compact(world: &mut World, table: &str, partition: &str) -> Result<Option<LakeCompaction>, Error> {
    let mode = CompactionMode::Full.into();
    let compact = LakeCompact { table: table.into(), partition: partition.into(), mode };
    match world.ask(lake_request::Request::Compact(compact))? {
        lake_reply::Reply::Compacted(compacted) => Ok(compacted.compaction),
        other => panic!("not a compaction: {other:?}"),
    }
}

#[test]
fn rows_go_to_their_partitions_and_move_between_them() {
    let mut world = World::new(1, BASE, Settings::default());
    configure(&mut world, "t", &[("partition_by", "dt(made), identity(region)")], &[]).unwrap();
    let rows = vec![
        row(1, "eu", "2026-01-20 10:00:00"),
        row(2, "us", "2026-01-20 11:00:00"),
        row(3, "eu", "2026-01-21"),
        row(4, "eu", "2026-01-20 23:59:59"),
    ];
    world.append("shard-0", 0, &[inserts(1, &orders(), rows)]).unwrap();
    world.flush().unwrap();
    let expected = ["dt=2026-01-20/region=eu", "dt=2026-01-20/region=us", "dt=2026-01-21/region=eu"];
    assert_eq!(distinct(&world, "t"), expected);
    assert_eq!(distinct(&world, "t__changes"), expected);
    // An update that moves a row deletes it there and writes it here; one within a flush, too.
    let changes = vec![
        row_change(1, Some(row(1, "eu", "2026-01-20 10:00:00")), Some(row(1, "us", "2026-01-22"))),
        row_change(2, Some(row(2, "us", "2026-01-20 11:00:00")), None),
        row_change(5, None, Some(row(5, "eu", "2026-01-21"))),
        row_change(5, Some(row(5, "eu", "2026-01-21")), Some(row(5, "as/ia", "2026-01-21"))),
        row_change(6, None, Some(vec![6.into(), "none".into(), Value::NULL, 0.5.into()])),
    ];
    world.append("shard-0", 1, &[record(2, changes)]).unwrap();
    world.flush().unwrap();
    let named =
        |pairs: &[(i64, &str)]| pairs.iter().map(|(id, region)| (*id, (*region).to_owned())).collect::<Vec<_>>();
    let mirror = named(&[(1, "us"), (3, "eu"), (4, "eu"), (5, "as/ia"), (6, "none")]);
    assert_eq!(ids(&world), mirror);
    let found = distinct(&world, "t");
    for partition in ["dt=2026-01-21/region=as%2Fia", "dt=2026-01-22/region=us", "dt=null/region=none"] {
        assert!(found.iter().any(|known| known == partition), "{partition}: {found:?}");
    }
    // The index knows the partitions, also when it was made anew.
    let mut world = world.without_database(9);
    let changes = vec![row_change(4, Some(row(4, "eu", "2026-01-20 23:59:59")), None)];
    world.append("shard-0", 2, &[record(3, changes)]).unwrap();
    world.flush().unwrap();
    assert_eq!(ids(&world), named(&[(1, "us"), (3, "eu"), (5, "as/ia"), (6, "none")]));
}

#[test]
fn every_transform_makes_partitions() {
    for (spec, expected) in [
        ("none", vec![""]),
        ("month(made)", vec!["made_month=2026-01"]),
        ("year(_committed_at)", vec!["_committed_at_year=56"]),
        ("hour(_committed_at)", vec!["_committed_at_hour=490908"]),
        ("truncate(2, id)", vec!["id_trunc=0", "id_trunc=2"]),
        ("truncate(1, region)", vec!["region_trunc=e", "region_trunc=u"]),
        ("identity(price), dt", vec!["price=0.5/dt=2026-01-01", "price=1.5/dt=2026-01-01", "price=1/dt=2026-01-01"]),
    ] {
        let mut world = World::new(1, BASE, Settings::default());
        configure(&mut world, "t", &[("partition_by", spec)], &[]).unwrap();
        let rows = vec![row(1, "eu", "2026-01-20"), row(2, "us", "2026-01-20"), row(3, "us", "2026-01-20")];
        world.append("shard-0", 0, &[inserts(1, &orders(), rows)]).unwrap();
        world.flush().unwrap();
        assert_eq!(distinct(&world, "t"), expected, "{spec}");
        assert_eq!(reading::rows(&world.objects, "t").len(), 3, "{spec}");
    }
    let mut world = World::new(1, BASE, Settings::default());
    configure(&mut world, "t", &[("partition_by", "bucket(4, id)")], &[]).unwrap();
    let rows = (0..40).map(|id| row(id, "eu", "2026-01-20")).collect();
    world.append("shard-0", 0, &[inserts(1, &orders(), rows)]).unwrap();
    world.flush().unwrap();
    assert_eq!(distinct(&world, "t").len(), 4);
}

#[test]
fn what_a_table_cannot_be_partitioned_by_is_refused() {
    let mut world = World::new(1, BASE, Settings::default());
    world.append("shard-0", 0, &[inserts(1, &orders(), vec![row(1, "eu", "2026-01-20")])]).unwrap();
    world.flush().unwrap();
    for (name, value, reason) in [
        ("partition_by", "identity(gone)", "no column gone"),
        ("partition_by", "bucket(4, price)", "of type double"),
        ("partition_by", "month(id)", "of type long"),
        ("sort_by", "id, gone DESC", "no column gone"),
    ] {
        let error = configure(&mut world, "t", &[(name, value)], &[]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidRequest);
        assert!(error.message.contains(reason), "{error}");
    }
}

#[test]
fn a_spec_can_change_while_the_table_is_written() {
    let mut world = World::new(1, BASE, Settings::default());
    let deliver = |world: &mut World, lsn: u64| {
        let id = lsn.cast_signed();
        let changes = vec![
            row_change(id, None, Some(row(id, "eu", "2026-01-20"))),
            row_change(100 + id, None, Some(row(100 + id, "us", "2026-01-21"))),
        ];
        world.append("shard-0", lsn - 1, &[record(lsn, changes)]).unwrap();
        world.flush().unwrap();
    };
    deliver(&mut world, 1);
    deliver(&mut world, 2);
    configure(&mut world, "t", &[("partition_by", "identity(region)")], &[]).unwrap();
    deliver(&mut world, 3);
    deliver(&mut world, 4);
    assert_eq!(distinct(&world, "t"), ["dt=2026-01-01", "region=eu", "region=us"]);
    let metadata = reading::metadata(&world.objects, "t").unwrap();
    assert_eq!((metadata.partition_specs_iter().len(), metadata.default_partition_spec_id()), (2, 1));
    // Rows of the old spec's files are deleted in their partition, and compacted there.
    let changes = vec![row_change(1, Some(row(1, "eu", "2026-01-20")), Some(row(1, "us", "2026-01-20")))];
    world.append("shard-0", 4, &[record(5, changes)]).unwrap();
    world.flush().unwrap();
    let before = ids(&world);
    assert_eq!(before.len(), 8);
    assert_eq!(compact(&mut world, "t", "region=as").unwrap(), None);
    let done = compact(&mut world, "t", "region=us").unwrap().unwrap();
    assert_eq!((done.partition.as_str(), done.files_before, done.files_after), ("region=us", 3, 1));
    let done = compact(&mut world, "t", "2026-01-01").unwrap().unwrap();
    assert_eq!((done.partition.as_str(), done.deletes_folded), ("2026-01-01", 1));
    while compact(&mut world, "t", "").unwrap().is_some() {}
    assert_eq!(directories(&world, "t"), ["dt=2026-01-01", "region=eu", "region=us"]);
    assert_eq!(ids(&world), before);
    // Back to the first: the same spec.
    configure(&mut world, "t", &[], &["partition_by"]).unwrap();
    world.restart().unwrap();
    deliver(&mut world, 6);
    let metadata = reading::metadata(&world.objects, "t").unwrap();
    assert_eq!((metadata.partition_specs_iter().len(), metadata.default_partition_spec_id()), (2, 0));
    assert_eq!(ids(&world).len(), 10);
    let error = compact(&mut world, "t", "yesterday").unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
}

#[test]
fn a_column_that_partitions_are_of_can_be_dropped() {
    let mut world = World::new(1, BASE, Settings::default());
    configure(&mut world, "t", &[("partition_by", "identity(region)"), ("sort_by", "made")], &[]).unwrap();
    world.append("shard-0", 0, &[inserts(1, &orders(), vec![row(1, "eu", "2026-01-20")])]).unwrap();
    world.flush().unwrap();
    let columns = [("id", "INTEGER"), ("price", "REAL")];
    let after = table("t", &columns, &[0]);
    let change = |table: &WalTable| SchemaChange { table: Some(table.clone()), ..SchemaChange::default() };
    let half = table("t", &[columns[0], ("made", "DATETIME"), columns[1]], &[0]);
    let schema_changes = vec![change(&half), change(&after)];
    world
        .append("shard-0", 1, &[WalRecord { lsn: 2, hlc: NOON_MS << 16, schema_changes, ..WalRecord::default() }])
        .unwrap();
    world.append("shard-0", 2, &[inserts(3, &after, vec![vec![2.into(), 1.0.into()]])]).unwrap();
    world.flush().unwrap();
    assert_eq!(distinct(&world, "t"), ["", "region=eu"], "what is left of the spec");
    // A new column of the name is another, and the table is partitioned by that one from then on.
    let again = table("t", &[columns[0], columns[1], ("region", "TEXT")], &[0]);
    let schema_changes = vec![change(&again)];
    world
        .append("shard-0", 3, &[WalRecord { lsn: 4, hlc: NOON_MS << 16, schema_changes, ..WalRecord::default() }])
        .unwrap();
    world.append("shard-0", 4, &[inserts(5, &again, vec![vec![3.into(), 1.0.into(), "as".into()]])]).unwrap();
    world.flush().unwrap();
    let rows = reading::rows(&world.objects, "t");
    let region = |id: &str| rows.iter().find(|row| row["id"] == id).unwrap().get("region").cloned();
    assert_eq!((region("1"), region("2"), region("3")), (None, None, Some("as".into())));
    while compact(&mut world, "t", "").unwrap().is_some() {}
    assert_eq!(reading::rows(&world.objects, "t").len(), 3);
}

/// The values of a column of each data file, in the order of its rows.
fn column(world: &World, lake_table: &str, name: &str) -> Vec<Vec<String>> {
    let mut files = reading::data_files(&world.objects, lake_table);
    files.sort();
    files.iter().map(|url| reading::file_column(&world.objects, url, name)).collect()
}

#[test]
fn rows_are_sorted_in_written_and_compacted_files() {
    let mut world = World::new(1, BASE, Settings::default());
    configure(&mut world, "t", &[("sort_by", "region DESC, id")], &[]).unwrap();
    let rows = vec![row(3, "a", "x"), row(1, "b", "x"), row(2, "a", "x"), row(4, "b", "x")];
    world.append("shard-0", 0, &[inserts(1, &orders(), rows)]).unwrap();
    world.flush().unwrap();
    assert_eq!(column(&world, "t", "id"), [["1", "4", "2", "3"]]);
    assert_eq!(column(&world, "t__changes", "id"), [["1", "4", "2", "3"]]);
    let metadata = reading::metadata(&world.objects, "t").unwrap();
    let order = metadata.default_sort_order();
    assert_eq!((order.order_id, order.fields.len()), (1, 2));
    // The index knows where each row went.
    let changes = vec![
        row_change(4, Some(row(4, "b", "x")), None),
        row_change(9, None, Some(row(9, "a", "x"))),
        row_change(2, Some(row(2, "a", "x")), Some(row(2, "c", "x"))),
        row_change(5, None, Some(row(5, "b", "x"))),
    ];
    world.append("shard-0", 1, &[record(2, changes)]).unwrap();
    world.flush().unwrap();
    let mirror = ids(&world);
    assert_eq!(mirror.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3, 5, 9]);
    while compact(&mut world, "t", "").unwrap().is_some() {}
    assert_eq!(column(&world, "t", "id"), [["2", "1", "5", "3", "9"]]);
    let changes = vec![row_change(5, Some(row(5, "b", "x")), None)];
    world.append("shard-0", 2, &[record(3, changes)]).unwrap();
    world.flush().unwrap();
    assert_eq!(ids(&world).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3, 9]);
}

#[test]
fn compaction_can_put_rows_in_z_order() {
    let mut world = World::new(1, BASE, Settings::default());
    configure(&mut world, "t", &[("sort_by", "id, region"), ("compaction_order", "zorder")], &[]).unwrap();
    for (lsn, start) in [(1, 0), (2, 8)] {
        let rows = (start..start + 8).map(|at| row(at, &format!("r{}", at * 7 % 16), "x")).collect();
        world.append("shard-0", lsn - 1, &[inserts(lsn, &orders(), rows)]).unwrap();
        world.flush().unwrap();
    }
    let before = ids(&world);
    while compact(&mut world, "t", "").unwrap().is_some() {}
    assert_eq!(ids(&world), before);
    let order = column(&world, "t", "id").remove(0);
    let sorted = {
        let mut ids: Vec<i64> = order.iter().map(|id| id.parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(sorted, (0..16).collect::<Vec<_>>());
    assert_ne!(order, (0..16).map(|id: i64| id.to_string()).collect::<Vec<_>>(), "both columns count");
}

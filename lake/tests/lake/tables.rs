//! What becomes of values, schema changes, and a buffer that fills.

use dosql_actors::Settings;
use dosql_proto::{
    CompactionMode, ErrorCode, LakeCleaned, Operation, Row, RowChange, SchemaChange, Value, WalRecord, value::Kind,
};

use crate::reading;
use crate::records::{NOON_MS, inserts, table};
use crate::support::World;

const BASE: &str = "memory://lake/";

fn world(settings: Settings) -> World {
    World::new(1, BASE, settings)
}

#[test]
fn a_value_that_does_not_fit_is_kept_as_json() {
    let table = table("t", &[("id", "INTEGER"), ("n", "INTEGER"), ("r", "REAL"), ("b", "BLOB"), ("any", "")], &[0]);
    let raw = Value { kind: Some(Kind::RawText(vec![0xff, 0x41])) };
    let rows = vec![
        vec![1.into(), i64::MAX.into(), 0.5.into(), Value::blob(*b"\x00\x01"), 7.into()],
        vec![2.into(), "many".into(), 3.into(), "text".into(), raw],
        vec![3.into(), 1.5.into(), f64::INFINITY.into(), Value::NULL, 1.0.into()],
    ];
    let mut world = world(Settings::default());
    world.append("shard-0", 0, &[inserts(1, &table, rows)]).unwrap();
    world.flush().unwrap();
    let mut rows = reading::rows(&world.objects, "t");
    rows.sort_by_key(|row| row["id"].clone());
    let misfit = |row: usize| serde_json::from_str::<serde_json::Value>(&rows[row]["_misfit"]).unwrap();
    assert_eq!(rows[0]["n"], i64::MAX.to_string());
    assert_eq!(rows[0]["any"], "7");
    assert!(!rows[0].contains_key("_misfit"));
    assert!(!rows[1].contains_key("n"), "it reads as NULL");
    assert_eq!(rows[1]["r"], "3.0");
    let expected = serde_json::json!({ "id": 2, "n": "many", "r": 3, "b": "text", "any": { "raw_text": "FF41" } });
    assert_eq!(misfit(1), expected);
    assert_eq!(rows[2]["any"], "1.0");
    assert_eq!(misfit(2)["n"], 1.5);
}

#[test]
fn new_columns_get_new_field_ids() {
    let old = table("t", &[("id", "INTEGER")], &[0]);
    let new = table("t", &[("id", "INTEGER"), ("dt", "TEXT"), ("_shard", "TEXT")], &[0]);
    let mut world = world(Settings::default());
    let created =
        SchemaChange { table: Some(old.clone()), sql: "CREATE TABLE t (id)".into(), ..SchemaChange::default() };
    let record = WalRecord { lsn: 1, hlc: NOON_MS << 16, schema_changes: vec![created], ..WalRecord::default() };
    world.append("shard-0", 0, &[record]).unwrap();
    world.flush().unwrap();
    let metadata = reading::metadata(&world.objects, "t").expect("the table is made with its source");
    assert!(metadata.current_snapshot().is_none());

    world.append("shard-0", 1, &[inserts(2, &old, vec![vec![1.into()]])]).unwrap();
    world.flush().unwrap();
    world.append("shard-0", 2, &[inserts(3, &new, vec![vec![2.into(), "x".into(), "mine".into()]])]).unwrap();
    // A shard that has not seen the new columns yet.
    world.append("shard-1", 0, &[inserts(1, &old, vec![vec![3.into()]])]).unwrap();
    world.flush().unwrap();

    let metadata = reading::metadata(&world.objects, "t").unwrap();
    assert_eq!(metadata.schemas_iter().count(), 2);
    assert_eq!(metadata.current_snapshot().unwrap().schema_id(), Some(metadata.current_schema_id()));
    let mut rows = reading::rows(&world.objects, "t");
    rows.sort_by_key(|row| row["id"].clone());
    assert!(!rows[0].contains_key("user_dt"));
    assert_eq!((rows[1]["user_dt"].as_str(), rows[1]["user__shard"].as_str()), ("x", "mine"));
    assert_eq!(rows[2]["_shard"], "shard-1");
    // Another incarnation goes on from there.
    world.restart().unwrap();
    world.append("shard-0", 3, &[inserts(4, &old, vec![vec![1.into()]])]).unwrap();
    world.flush().unwrap();
    assert_eq!(reading::rows(&world.objects, "t").len(), 3, "an insert of a key that is there replaces its row");
}

#[test]
fn schema_changes_take_their_place_among_the_rows() {
    let old = table("old", &[("id", "INTEGER")], &[0]);
    let new = table("new", &[("id", "INTEGER")], &[0]);
    let mut world = world(Settings::default());
    world.append("shard-0", 0, &[inserts(1, &old, vec![vec![1.into()], vec![2.into()]])]).unwrap();
    world.flush().unwrap();
    // One more row, then the table is renamed, and a new one of its old name gets a row.
    let row = |table: u32, id: i64| RowChange {
        table,
        operation: Operation::Insert.into(),
        rowid: id,
        before: None,
        after: Some([id.into()].into_iter().collect()),
    };
    let renamed =
        SchemaChange { table: Some(new.clone()), dropped: "old".into(), after_changes: 1, ..SchemaChange::default() };
    let made = SchemaChange { table: Some(old.clone()), after_changes: 4, ..SchemaChange::default() };
    let record = WalRecord {
        lsn: 2,
        hlc: NOON_MS << 16,
        tables: vec![old, new],
        changes: vec![row(0, 3), row(1, 1), row(1, 2), row(1, 3), row(0, 9)],
        schema_changes: vec![renamed, made],
        ..WalRecord::default()
    };
    world.append("shard-0", 1, &[record]).unwrap();
    world.flush().unwrap();
    let ids = |table: &str| {
        let mut ids: Vec<_> = reading::rows(&world.objects, table).iter().map(|row| row["id"].clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids("old"), ["9"]);
    assert_eq!(ids("new"), ["1", "2", "3"]);
}

#[test]
fn records_continue_where_the_last_ended() {
    let table = table("t", &[("id", "INTEGER")], &[0]);
    let record = |lsn: u64| inserts(lsn, &table, vec![vec![lsn.cast_signed().into()]]);
    let mut world = world(Settings::default());
    world.append("shard-0", 0, &[record(1), record(2)]).unwrap();
    let error = world.append("shard-0", 3, &[record(4)]).unwrap_err();
    assert_eq!((error.code(), error.expected_lsn), (ErrorCode::OutOfOrder, 3));
    // Delivered twice, with one more.
    let positions = world.append("shard-0", 1, &[record(2), record(3)]).unwrap();
    assert_eq!((positions[0].buffered_lsn, positions[0].durable_lsn), (3, 0));
    let positions = world.flush().unwrap();
    assert_eq!(positions[0].durable_lsn, 3);
    assert_eq!(reading::rows(&world.objects, "t__changes").len(), 3);
    let error = world.append("shard-0", 3, &[record(5), record(5)]).unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
}

#[test]
fn the_alarm_flushes_what_has_waited() {
    let table = table("t", &[("id", "INTEGER")], &[0]);
    let mut world = world(Settings { lake_flush_interval_ms: 500, ..Settings::default() });
    world.append("shard-0", 0, &[inserts(1, &table, vec![vec![1.into()]])]).unwrap();
    world.pass(400);
    assert_eq!(world.status().buffer_events, 1);
    world.pass(100);
    let status = world.status();
    assert_eq!((status.buffer_events, status.shards[0].durable_lsn), (0, 1));
    assert_eq!(status.tables[0].name, "t");
    assert_eq!(status.tables[0].location, format!("{BASE}warehouse/default/t"));
}

#[test]
fn commits_that_follow_each_other_are_told_of_together() {
    let table = table("t", &[("id", "INTEGER")], &[0]);
    let record = |lsn: u64| inserts(lsn, &table, vec![vec![lsn.cast_signed().into()]]);
    let settings = Settings { lake_event_threshold: 1, lake_flush_interval_ms: 4_000, ..Settings::default() };
    let mut world = world(settings);
    let told = |world: &mut World| {
        let hint = world.objects.files.borrow()["warehouse/default/t/metadata/version-hint.text"].clone();
        let hint = std::str::from_utf8(&hint).unwrap().to_owned();
        (world.status().shards[0].durable_lsn, hint)
    };
    world.append("shard-0", 0, &[record(1)]).unwrap();
    let (durable, first) = told(&mut world);
    assert_eq!(durable, 1, "a commit that none was before is told of at once");
    for lsn in 2..=4 {
        let positions = world.append("shard-0", lsn - 1, &[record(lsn)]).unwrap();
        assert_eq!((positions[0].buffered_lsn, positions[0].durable_lsn), (lsn, 1));
        assert_eq!(world.status().buffer_events, 0, "it is committed");
    }
    world.pass(300);
    assert_eq!(told(&mut world), (1, first.clone()));
    world.pass(100);
    let newest = (first.parse::<u64>().unwrap() + 3).to_string();
    assert_eq!(told(&mut world), (4, newest));
    // Whoever asks for a flush is told at once.
    world.append("shard-0", 4, &[record(5)]).unwrap();
    assert_eq!(told(&mut world).0, 4);
    assert_eq!(world.flush().unwrap()[0].durable_lsn, 5);
    assert_eq!(reading::rows(&world.objects, "t").len(), 5);
}

#[test]
fn a_full_buffer_refuses_until_it_is_flushed() {
    let table = table("t", &[("id", "INTEGER"), ("text", "TEXT")], &[0]);
    let record = |lsn: u64| inserts(lsn, &table, vec![vec![lsn.cast_signed().into(), "x".repeat(20_000).into()]]);
    let mut world = world(Settings { lake_max_buffer_size: 100_000, ..Settings::default() });
    world.append("shard-0", 0, &[record(1)]).unwrap();
    world.objects.down.set(true);
    let mut lsn = 1;
    let error = loop {
        match world.append("shard-0", lsn, &[record(lsn + 1)]) {
            Ok(_) => lsn += 1,
            Err(error) => break error,
        }
        assert!(lsn < 20, "the buffer does not fill");
    };
    assert_eq!(error.code(), ErrorCode::BufferFull);
    assert!(error.retryable && error.retry_after_ms > 0);
    assert!(world.status().buffer_bytes < 130_000);
    world.objects.down.set(false);
    world.pass(120_000);
    assert_eq!(world.status().buffer_events, 0);
    world.append("shard-0", lsn, &[record(lsn + 1)]).unwrap();
    world.flush().unwrap();
    assert_eq!(reading::rows(&world.objects, "t").len() as u64, lsn + 1);
}

#[test]
fn many_commits_do_not_make_many_manifests() {
    let table = table("t", &[("id", "INTEGER")], &[0]);
    let mut world = world(Settings::default());
    for lsn in 1..=110 {
        world.append("shard-0", lsn - 1, &[inserts(lsn, &table, vec![vec![lsn.cast_signed().into()]])]).unwrap();
        world.flush().unwrap();
    }
    assert_eq!(reading::rows(&world.objects, "t").len(), 110);
    assert!(reading::manifests(&world.objects, "t") < 20);
}

#[test]
fn a_lake_without_database_and_positions_is_refused() {
    let table = table("t", &[("id", "INTEGER")], &[0]);
    let mut first = world(Settings::default());
    first.append("shard-0", 0, &[inserts(1, &table, vec![vec![1.into()]])]).unwrap();
    first.flush().unwrap();
    first.objects.files.borrow_mut().remove("lake-positions.json");
    let error = first.without_database(2).restart().unwrap_err();
    assert_eq!(error.code(), ErrorCode::Storage);
    assert!(error.message.contains("warehouse/default/t"), "{error}");
}

/// Keys that the columns tell, and keys that they do not.
#[test]
fn every_kind_of_key_is_read_back() {
    let raw = || Value { kind: Some(Kind::RawText(vec![0xff])) };
    let keys: [(&str, &[u32], Vec<Value>); 6] = [
        ("INTEGER", &[0], vec![1.into(), i64::MIN.into(), "one".into(), 1.5.into()]),
        ("TEXT", &[0], vec!["1".into(), "".into(), raw(), Value::NULL]),
        ("", &[0], vec![1.into(), "1".into(), 1.0.into(), Value::blob(*b"1")]),
        ("REAL", &[0], vec![1.5.into(), "1.5".into(), f64::INFINITY.into()]),
        ("BLOB", &[0], vec![Value::blob(*b""), "".into(), Value::blob(*b"ab")]),
        ("TEXT", &[], vec!["same".into(), "same".into()]),
    ];
    for (declared, primary_key, values) in keys {
        let table = table("t", &[("k", declared), ("note", "TEXT")], primary_key);
        let row = |value: &Value, note: &str| -> Row { [value.clone(), note.into()].into_iter().collect() };
        let mut world = world(Settings::default());
        let rows = values.iter().map(|value| row(value, "first").values).collect();
        world.append("shard-0", 0, &[inserts(1, &table, rows)]).unwrap();
        world.flush().unwrap();
        let mut world = world.without_database(9);
        // The first is deleted, the others are updated.
        let changes = (1..)
            .zip(&values)
            .map(|(number, value)| RowChange {
                table: 0,
                operation: if number == 1 { Operation::Delete } else { Operation::Update }.into(),
                rowid: 1000 + number,
                before: Some(row(value, "first")),
                after: (number != 1).then(|| row(value, "second")),
            })
            .collect();
        let record = WalRecord { lsn: 2, hlc: NOON_MS << 16, tables: vec![table], changes, ..WalRecord::default() };
        world.append("shard-0", 1, &[record]).unwrap();
        world.flush().unwrap();
        let rows = reading::rows(&world.objects, "t");
        assert_eq!(rows.len(), values.len() - 1, "{declared} {rows:?}");
        assert!(rows.iter().all(|row| row["note"] == "second"), "{declared} {rows:?}");
    }
}

/// A table of `count` commits with one row each, and every third row deleted.
fn fragmented(world: &mut World, count: u64) {
    let table = table("t", &[("id", "INTEGER"), ("text", "TEXT")], &[0]);
    for lsn in 1..=count {
        let row = vec![lsn.cast_signed().into(), format!("{lsn} {}", "x".repeat(50)).into()];
        world.append("shard-0", lsn - 1, &[inserts(lsn, &table, vec![row])]).unwrap();
        world.flush().unwrap();
    }
    let changes = (1..=count)
        .step_by(3)
        .map(|id| RowChange {
            table: 0,
            operation: Operation::Delete.into(),
            rowid: id.cast_signed(),
            before: Some([id.cast_signed().into(), "".into()].into_iter().collect()),
            after: None,
        })
        .collect();
    let lsn = count + 1;
    let record = WalRecord { lsn, hlc: NOON_MS << 16, tables: vec![table], changes, ..WalRecord::default() };
    world.append("shard-0", count, &[record]).unwrap();
    world.flush().unwrap();
}

#[test]
fn compaction_makes_few_files_of_many() {
    let settings = Settings { lake_compaction_max_files: 8, ..Settings::default() };
    let mut world = world(settings);
    fragmented(&mut world, 21);
    let before = reading::rows(&world.objects, "t");
    assert_eq!(reading::files(&world.objects, "t"), (21, 1));
    // The day is not over.
    assert_eq!(world.compact("t", CompactionMode::Auto).unwrap(), None);
    world.now_ms.set(NOON_MS + 3 * 86_400_000);
    let first = world.compact("t", CompactionMode::Auto).unwrap().unwrap();
    assert_eq!((first.partition.as_str(), first.files_before), ("2026-01-01", 9));
    // One file of what is left, and the deletes that hit other files.
    assert_eq!((first.files_after, first.deletes_folded), (2, 3));
    assert_eq!(reading::files(&world.objects, "t"), (14, 1));
    while world.compact("t", CompactionMode::Full).unwrap().is_some() {}
    assert_eq!(reading::files(&world.objects, "t"), (1, 0));
    let sorted = |mut rows: Vec<reading::TextRow>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(reading::rows(&world.objects, "t")), sorted(before));
    let metadata = reading::metadata(&world.objects, "t").unwrap();
    let summary = &metadata.current_snapshot().unwrap().summary().additional_properties;
    assert_eq!((summary["total-records"].as_str(), summary["total-data-files"].as_str()), ("14", "1"));
    assert_eq!((summary["total-delete-files"].as_str(), summary["total-position-deletes"].as_str()), ("0", "0"));
    // The index is right about where the rows are now.
    let table = table("t", &[("id", "INTEGER"), ("text", "TEXT")], &[0]);
    world.append("shard-0", 22, &[inserts(23, &table, vec![vec![2.into(), "again".into()]])]).unwrap();
    world.flush().unwrap();
    let rows = reading::rows(&world.objects, "t");
    assert_eq!(rows.len(), 14);
    assert_eq!(rows.iter().find(|row| row["id"] == "2").unwrap()["text"], "again");
    let error = world.compact("nothing", CompactionMode::Full).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
}

#[test]
fn clean_up_keeps_what_is_retained() {
    let settings = Settings { lake_keep_snapshots: 3, lake_keep_metadata: 2, ..Settings::default() };
    let mut world = world(settings);
    world.now_ms.set(NOON_MS);
    fragmented(&mut world, 12);
    while world.compact("t", CompactionMode::Full).unwrap().is_some() {}
    let garbage = "warehouse/default/t/data/dt=2026-01-01/left-behind.parquet";
    world.objects.modified_ms.borrow_mut().insert(garbage.to_owned(), NOON_MS);
    world.objects.files.borrow_mut().insert(garbage.to_owned(), vec![0; 7].into());
    let paths = |world: &World| world.objects.files.borrow().keys().cloned().collect::<Vec<_>>();
    let all = paths(&world);
    let rows = reading::rows(&world.objects, "t").len();

    // Nothing is old yet.
    assert_eq!(world.clean_up("t", true, true).unwrap(), LakeCleaned::default());
    world.now_ms.set(NOON_MS + 8 * 86_400_000);
    let planned = world.clean_up("t", false, true).unwrap();
    assert!(planned.objects.iter().all(|object| object.reason != "orphan"));
    assert_eq!(planned.expired_snapshots.len(), 14 - 3);
    assert_eq!(paths(&world), all, "a dry run deletes nothing");
    let done = world.clean_up("t", false, false).unwrap();
    assert_eq!(done, planned);
    assert_eq!(reading::metadata(&world.objects, "t").unwrap().snapshots().count(), 3);
    assert_eq!(reading::rows(&world.objects, "t").len(), rows);
    reading::every_snapshot(&world.objects, "t");
    let kept = paths(&world);
    assert!(done.objects.iter().all(|object| !kept.contains(&object.path)));
    assert!(kept.iter().any(|path| path == garbage));
    let deep = world.clean_up("t", true, false).unwrap();
    assert_eq!(deep.objects.iter().filter(|object| object.reason == "orphan").count(), 1);
    assert!(!world.objects.files.borrow().contains_key(garbage));
    // A stale or lost hint does not hide the table.
    world.objects.files.borrow_mut().remove("warehouse/default/t/metadata/version-hint.text");
    world.restart().unwrap();
    let table = table("t", &[("id", "INTEGER"), ("text", "TEXT")], &[0]);
    world.append("shard-0", 13, &[inserts(14, &table, vec![vec![100.into(), "new".into()]])]).unwrap();
    world.flush().unwrap();
    assert_eq!(reading::rows(&world.objects, "t").len(), rows + 1);
}

#[test]
fn maintenance_has_its_hours() {
    let mut world = world(Settings { lake_keep_metadata: 1, ..Settings::default() });
    fragmented(&mut world, 12);
    // Three days later, at one o'clock: nothing; at two the compaction begins; at four the clean-up.
    world.now_ms.set(NOON_MS + 3 * 86_400_000 - 11 * 3_600_000);
    world.pass(0);
    assert_eq!(reading::files(&world.objects, "t").0, 12);
    let until = |world: &mut World, hour: u64| {
        let end = NOON_MS + 3 * 86_400_000 - (12 - hour) * 3_600_000;
        while world.alarm.get().unwrap() <= end {
            world.now_ms.set(world.alarm.get().unwrap());
            world.pass(0);
        }
    };
    until(&mut world, 3);
    assert_eq!(reading::files(&world.objects, "t"), (1, 0));
    assert_eq!(reading::files(&world.objects, "t__changes").0, 1);
    let versions = |world: &World| {
        let files = world.objects.files.borrow();
        files.keys().filter(|path| path.contains("/t/metadata/v") && path.ends_with(".json")).count()
    };
    assert!(versions(&world) > 10);
    until(&mut world, 5);
    assert_eq!(versions(&world), 2);
}

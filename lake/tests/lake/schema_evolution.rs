//! Columns are followed by field ids: what renaming, dropping, adding and making anew does to mirror and change log.

use dosql_actors::Settings;
use dosql_proto::{CompactionMode, SchemaChange, WalRecord, WalTable};

use crate::reading::{self, TextRow};
use crate::records::{NOON_MS, inserts, row_change, table};
use crate::support::World;

const BASE: &str = "memory://lake/";

/// A shard's history: each step is one record.
struct Shard {
    name: &'static str,
    lsn: u64,
    table: WalTable,
}

impl Shard {
    fn new(world: &mut World, name: &'static str, columns: &[(&str, &str)]) -> Self {
        let mut shard = Self { name, lsn: 0, table: table("t", columns, &[0]) };
        shard.reshape(world, columns, false);
        shard
    }

    fn deliver(&mut self, world: &mut World, record: WalRecord) {
        world.append(self.name, self.lsn, &[WalRecord { lsn: self.lsn + 1, hlc: NOON_MS << 16, ..record }]).unwrap();
        self.lsn += 1;
    }

    fn reshape(&mut self, world: &mut World, columns: &[(&str, &str)], anew: bool) {
        self.table = table("t", columns, &[0]);
        let dropped = SchemaChange { dropped: "t".into(), ..SchemaChange::default() };
        let made = SchemaChange { table: Some(self.table.clone()), ..SchemaChange::default() };
        let schema_changes = if anew { vec![dropped, made] } else { vec![made] };
        self.deliver(world, WalRecord { schema_changes, ..WalRecord::default() });
    }

    fn insert(&mut self, world: &mut World, values: &[&str]) {
        let values = values.iter().map(|text| text.parse::<i64>().map_or((*text).into(), Into::into)).collect();
        let record = inserts(1, &self.table, vec![values]);
        self.deliver(world, record);
    }
}

fn rows(world: &World, lake_table: &str) -> Vec<String> {
    let text = |row: TextRow| {
        let cells = row.into_iter().filter(|(name, _)| !name.starts_with('_'));
        cells.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    let mut rows: Vec<_> = reading::rows(&world.objects, lake_table).into_iter().map(text).collect();
    rows.sort();
    rows
}

fn id_of(world: &World, column: &str) -> Option<i32> {
    reading::metadata(&world.objects, "t").unwrap().current_schema().field_by_name(column).map(|field| field.id)
}

/// Both tables, before and after a restart, a compaction and the loss of the actor's database.
fn check(world: &mut World, mirror: &[&str], log: &[&str]) {
    assert_eq!(rows(world, "t"), mirror);
    assert_eq!(rows(world, "t__changes"), log);
    *world = world.without_database(world.objects.operations.get());
    world.restart().unwrap();
    for table in ["t", "t__changes"] {
        while world.compact(table, CompactionMode::Full).unwrap().is_some() {}
    }
    assert_eq!(rows(world, "t"), mirror, "after compaction");
    assert_eq!(rows(world, "t__changes"), log, "after compaction");
}

#[test]
fn columns_keep_their_ids_under_new_names() {
    let mut world = World::new(1, BASE, Settings::default());
    let mut shard = Shard::new(&mut world, "shard-0", &[("id", "INTEGER"), ("a", "TEXT"), ("b", "INTEGER")]);
    shard.insert(&mut world, &["1", "one", "10"]);
    world.flush().unwrap();
    let a = id_of(&world, "a");
    shard.reshape(&mut world, &[("id", "INTEGER"), ("z", "TEXT"), ("b", "INTEGER")], false);
    world.flush().unwrap();
    assert_eq!((id_of(&world, "z"), id_of(&world, "a")), (a, None));
    check(&mut world, &["b=10 id=1 z=one"], &["b=10 id=1 z=one"]);

    // Dropped, and made again with another type: nothing of what was there before shows.
    let b = id_of(&world, "b");
    shard.reshape(&mut world, &[("id", "INTEGER"), ("z", "TEXT")], false);
    shard.reshape(&mut world, &[("id", "INTEGER"), ("z", "TEXT"), ("b", "TEXT")], false);
    shard.insert(&mut world, &["2", "two", "text"]);
    world.flush().unwrap();
    assert!(id_of(&world, "b") > b);
    check(&mut world, &["b=text id=2 z=two", "id=1 z=one"], &["b=text id=2 z=two", "id=1 z=one"]);

    // The key's column, too.
    shard.reshape(&mut world, &[("key", "INTEGER"), ("z", "TEXT"), ("b", "TEXT")], false);
    shard.insert(&mut world, &["1", "again", "x"]);
    world.flush().unwrap();
    let log = ["b=text key=2 z=two", "b=x key=1 z=again", "key=1 z=one"];
    check(&mut world, &["b=text key=2 z=two", "b=x key=1 z=again"], &log);
}

#[test]
fn rows_that_only_show_a_new_name_are_not_written_again() {
    let mut world = World::new(1, BASE, Settings::default());
    let mut shard = Shard::new(&mut world, "shard-0", &[("id", "INTEGER"), ("a", "TEXT")]);
    shard.insert(&mut world, &["1", "one"]);
    let renamed = table("t", &[("id", "INTEGER"), ("b", "TEXT")], &[0]);
    let made = SchemaChange { table: Some(renamed.clone()), renaming_changes: 1, ..SchemaChange::default() };
    let changes = vec![
        row_change(1001, Some(vec![1.into(), dosql_proto::Value::NULL]), Some(vec![1.into(), "one".into()])),
        row_change(1001, Some(vec![1.into(), "one".into()]), Some(vec![1.into(), "changed".into()])),
    ];
    let record = WalRecord { tables: vec![renamed], changes, schema_changes: vec![made], ..WalRecord::default() };
    shard.deliver(&mut world, record);
    world.flush().unwrap();
    check(&mut world, &["b=changed id=1"], &["b=changed id=1", "b=one id=1", "b=one id=1"]);
}

#[test]
fn a_shard_that_lags_keeps_its_values() {
    let mut world = World::new(1, BASE, Settings::default());
    let old = [("id", "INTEGER"), ("a", "TEXT"), ("b", "TEXT")];
    let new = [("id", "INTEGER"), ("b", "TEXT")];
    let mut first = Shard::new(&mut world, "shard-0", &old);
    let mut second = Shard::new(&mut world, "shard-1", &old);
    world.flush().unwrap();
    first.reshape(&mut world, &new, false);
    first.reshape(&mut world, &[("id", "INTEGER"), ("c", "TEXT")], false);
    first.insert(&mut world, &["1", "renamed"]);
    second.insert(&mut world, &["2", "kept", "old name"]);
    world.flush().unwrap();
    let expected = ["a=kept c=old name id=2", "c=renamed id=1"];
    check(&mut world, &expected, &expected);
    second.reshape(&mut world, &new, false);
    second.insert(&mut world, &["3", "in between"]);
    world.flush().unwrap();
    assert_eq!(id_of(&world, "a"), None, "no shard's rows have it any more");
    let schemas = reading::metadata(&world.objects, "t").unwrap().schemas_iter().count();
    second.reshape(&mut world, &[("id", "INTEGER"), ("c", "TEXT")], false);
    world.flush().unwrap();
    let expected = ["c=in between id=3", "c=old name id=2", "c=renamed id=1"];
    check(&mut world, &expected, &expected);
    assert_eq!(reading::metadata(&world.objects, "t").unwrap().schemas_iter().count(), schemas);
}

#[test]
fn a_schema_change_is_taken_in_once() {
    let mut world = World::new(1, BASE, Settings::default());
    let columns = [("id", "INTEGER"), ("a", "TEXT")];
    let mut shard = Shard::new(&mut world, "shard-0", &columns);
    shard.insert(&mut world, &["1", "first"]);
    world.flush().unwrap();
    shard.reshape(&mut world, &columns[..1], false);
    shard.reshape(&mut world, &columns, false);
    world.flush().unwrap();
    let a = id_of(&world, "a");
    // Delivered again, to an actor that has lost its database after the tables were committed.
    let made = |columns: &[(&str, &str)], lsn| {
        let change = SchemaChange { table: Some(table("t", columns, &[0])), ..SchemaChange::default() };
        WalRecord { lsn, hlc: NOON_MS << 16, schema_changes: vec![change], ..WalRecord::default() }
    };
    world.objects.files.borrow_mut().insert("lake-positions.json".into(), br#"{"shard-0":2}"#.to_vec().into());
    let mut world = world.without_database(3);
    world.append("shard-0", 2, &[made(&columns[..1], 3), made(&columns, 4)]).unwrap();
    world.flush().unwrap();
    assert_eq!(id_of(&world, "a"), a);
    shard.insert(&mut world, &["2", "second"]);
    world.flush().unwrap();
    check(&mut world, &["a=second id=2", "id=1"], &["a=second id=2", "id=1"]);
}

#[test]
fn a_table_made_anew_goes_on_where_names_and_types_are_the_same() {
    let mut world = World::new(1, BASE, Settings::default());
    let old = [("id", "INTEGER"), ("a", "TEXT"), ("n", "INTEGER")];
    let new = [("id", "TEXT"), ("a", "TEXT"), ("n", "REAL")];
    let mut first = Shard::new(&mut world, "shard-0", &old);
    let mut second = Shard::new(&mut world, "shard-1", &old);
    first.insert(&mut world, &["1", "one", "5"]);
    second.insert(&mut world, &["2", "two", "6"]);
    world.flush().unwrap();
    let (id, a, n) = (id_of(&world, "id"), id_of(&world, "a"), id_of(&world, "n"));
    first.reshape(&mut world, &new, true);
    first.insert(&mut world, &["x", "ex", "7"]);
    world.flush().unwrap();
    assert_eq!(id_of(&world, "a"), a);
    assert!(id_of(&world, "id") > id && id_of(&world, "n") > n, "another type is another column");
    let log = ["", "a=ex id=x n=7.0", "a=one", "a=two"];
    // The row of the other shard has a key that no column tells any more; compaction and a new index must keep it.
    check(&mut world, &["a=ex id=x n=7.0", "a=two"], &log);
    second.reshape(&mut world, &new, true);
    world.flush().unwrap();
    check(&mut world, &["a=ex id=x n=7.0"], &["", "", "a=ex id=x n=7.0", "a=one", "a=two"]);
}

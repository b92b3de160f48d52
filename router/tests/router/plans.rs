//! Golden plans: `tests/plans/*.txt` holds statements (`> ...`) and the plan of each. DOSQL_UPDATE_PLANS=1 writes them anew.

use dosql_actors::runtime::AutoShard;
use dosql_proto::{ExplainRequest, Statement, router_reply::Reply, router_request::Request};

use super::Database;

const VSCHEMA: &str = r#"{"tables": {
    "users": {"type": "sharded", "column": "id"},
    "orders": {"type": "sharded", "column": "user_id"},
    "countries": {"type": "reference"},
    "people": {"type": "sharded", "column": "tenant", "lookups": [
        {"column": "email", "vindex": {"type": "lookup_unique", "table": "people_by_email", "to": "tenant"}},
        {"column": "city", "vindex": {"type": "lookup", "table": "people_by_city"}}]}
}}"#;

#[tokio::test]
async fn plans_are_as_written() {
    let database = Database::new("plans", 4, VSCHEMA, AutoShard::Off);
    for sql in [
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, age INT)",
        "CREATE TABLE orders (user_id INT, item TEXT, amount NUMERIC)",
        "CREATE TABLE countries (code TEXT PRIMARY KEY, title TEXT)",
        "CREATE TABLE log (line TEXT)",
        "CREATE TABLE people (tenant INT, email TEXT UNIQUE, city TEXT, n INT)",
    ] {
        database.execute(sql, &[]).await.unwrap();
    }
    let update = std::env::var_os("DOSQL_UPDATE_PLANS").is_some();
    let mut seen = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plans")).unwrap() {
        let path = entry.unwrap().path();
        let written = std::fs::read_to_string(&path).unwrap();
        let mut actual = String::new();
        for sql in written.lines().filter_map(|line| line.strip_prefix("> ")) {
            let statement = Some(Statement { sql: sql.to_owned(), params: Vec::new() });
            let Reply::Explain(explained) = database.ask(Request::Explain(ExplainRequest { statement })).await.unwrap()
            else {
                panic!("{sql}")
            };
            actual.push_str(&format!("> {sql}\nroute: {}\n{}\n", explained.route, explained.plan));
            seen += 1;
        }
        if update {
            std::fs::write(&path, actual).unwrap();
        } else {
            assert_eq!(actual, written, "{}", path.display());
        }
    }
    assert!(seen > 10, "only {seen} plans");
}

//! What the VSchema says of a table goes with it when it, or a column of it, is renamed.

use dosql_actors::runtime::AutoShard;
use dosql_proto::ErrorCode;

use super::Database;

#[tokio::test]
async fn a_renamed_table_keeps_its_vindexes_and_its_sequence() {
    let mut database = Database::new("renames", 3, "", AutoShard::Off);
    for sql in [
        "ALTER VSCHEMA ADD SEQUENCE ids",
        "ALTER VSCHEMA ON t ADD VINDEX hash(k)",
        "ALTER VSCHEMA ON t ADD AUTO_INCREMENT n USING ids",
        "ALTER VSCHEMA ON t ADD VINDEX by_mail(mail) USING lookup_unique WITH table=mails, owner=t",
        "ALTER VSCHEMA ON t ADD VINDEX by_city(city) USING lookup WITH table=cities, from=place",
        "CREATE TABLE t (k INTEGER PRIMARY KEY, n INT, mail TEXT UNIQUE, city TEXT)",
        "CREATE VIEW seen AS SELECT k, mail FROM t",
        "INSERT INTO t (k, mail, city) VALUES (1, 'a@x', 'Wien'), (2, 'b@x', 'Wien'), (3, 'c@x', 'Graz')",
        "ALTER TABLE t RENAME COLUMN k TO tenant",
        "ALTER TABLE t RENAME COLUMN n TO number",
        "ALTER TABLE t RENAME COLUMN mail TO email",
        "ALTER TABLE t RENAME COLUMN city TO town",
        "ALTER TABLE t RENAME TO people",
        "INSERT INTO people (tenant, email, town) VALUES (4, 'd@x', 'Linz'), (5, 'e@x', 'Wien')",
    ] {
        database.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    for round in 0..2 {
        assert_eq!(
            database.run("SHOW VSCHEMA VINDEXES ON people").await,
            [
                "tenant | hash | hash | -",
                r#"email | by_mail | lookup_unique | {"from":"mail","owner":"people","table":"mails"}"#,
                r#"town | by_city | lookup | {"from":"place","table":"cities"}"#
            ]
        );
        assert_eq!(database.route("SELECT * FROM people WHERE tenant = 3").await.0, "equal-unique");
        assert_eq!(database.route("SELECT * FROM people WHERE email = 'a@x'").await.0, "equal-unique");
        assert_eq!(database.run("SELECT tenant, number FROM people WHERE email = 'd@x'").await, ["4 | 4"]);
        assert_eq!(database.run("SELECT tenant FROM people WHERE town = 'Wien' ORDER BY 1").await, ["1", "2", "5"]);
        assert_eq!(database.run("SELECT count(*) FROM seen").await, ["5"]);
        assert_eq!(
            database.run("SELECT mail, keyspace_id FROM mails ORDER BY 1").await,
            ["a@x | 1", "b@x | 2", "c@x | 3", "d@x | 4", "e@x | 5"]
        );
        let taken = "INSERT INTO people (tenant, email) VALUES (9, 'e@x')";
        database.refused(taken, ErrorCode::Constraint, "UNIQUE constraint failed: people.email").await;
        database.refused("SELECT * FROM t", ErrorCode::UnknownTable, "t").await;
        if round == 0 {
            database = database.restart("").await;
        }
    }
    for (sql, part) in [
        ("ALTER TABLE people DROP COLUMN number", "sequence"),
        ("ALTER TABLE people DROP COLUMN town", "lookup vindex"),
        ("ALTER TABLE mails RENAME TO x", "vindex by_mail"),
    ] {
        database.refused(sql, ErrorCode::Unsupported, part).await;
    }
    // DROP TABLE leaves what was declared for the next table of that name.
    database.run("DROP TABLE people").await;
    database.run("CREATE TABLE people (tenant INT, number INT, email TEXT UNIQUE, town TEXT)").await;
    database.run("INSERT INTO people (tenant, email, town) VALUES (7, 'f@x', 'Graz')").await;
    let found = database.run("SELECT tenant, number > 5, town FROM people WHERE email = 'f@x'").await;
    assert_eq!(found, ["7 | 1 | Graz"]);
    assert_eq!(database.run("SELECT mail FROM mails").await, ["f@x"]);
}

#[tokio::test]
async fn a_table_made_beside_another_takes_its_place() {
    let database = Database::new("renames-beside", 3, "", AutoShard::PrimaryKey);
    for sql in [
        "ALTER VSCHEMA ON t ADD VINDEX hash(k)",
        "CREATE TABLE t (k INTEGER PRIMARY KEY, v)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')",
        "CREATE TABLE new_t (k INTEGER PRIMARY KEY, v TEXT NOT NULL)",
        "INSERT INTO new_t SELECT * FROM t",
        "DROP TABLE t",
        "ALTER TABLE new_t RENAME TO t",
        "CREATE TABLE plain (v)",
        "ALTER VSCHEMA ON later ADD VINDEX hash(k)",
    ] {
        database.execute(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    assert_eq!(database.run("SELECT count(*) FROM t").await, ["3"]);
    assert_eq!(database.route("SELECT * FROM t WHERE k = 3").await.0, "equal-unique");
    database.run("CREATE TABLE other (x, k)").await;
    database
        .refused("ALTER TABLE other RENAME TO later", ErrorCode::Unsupported, "ALTER VSCHEMA DROP TABLE later")
        .await;
    database.run("ALTER VSCHEMA DROP TABLE later").await;
    database.run("ALTER TABLE other RENAME TO later").await;
    assert_eq!(database.run("SELECT count(*) FROM later").await, ["0"]);
}

#[tokio::test]
async fn writes_go_on_while_columns_are_renamed() {
    let database = Database::new("renames-live", 3, "", AutoShard::Off);
    for sql in [
        "ALTER VSCHEMA ON t ADD VINDEX hash(k)",
        "ALTER VSCHEMA ON t ADD VINDEX by_v(v) USING lookup WITH table=by_v",
        "CREATE TABLE t (k INTEGER PRIMARY KEY, v)",
    ] {
        database.run(sql).await;
    }
    let write = async {
        for key in 0..60 {
            database.run(&format!("INSERT INTO t VALUES ({key}, {})", key % 5)).await;
        }
    };
    let rename = async {
        for (from, to) in [("v", "w"), ("w", "x"), ("x", "v"), ("v", "w")] {
            database.run(&format!("ALTER TABLE t RENAME COLUMN {from} TO {to}")).await;
        }
    };
    tokio::join!(write, rename);
    assert_eq!(database.run("SELECT count(*) FROM by_v").await, ["60"]);
    assert_eq!(database.run("SELECT count(*) FROM t WHERE w = 3").await, ["12"]);
}

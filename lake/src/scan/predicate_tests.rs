use dosql_proto::Value;
use rusqlite::Connection;
use rusqlite::types::Value as SqlValue;

use super::*;

const OPERATORS: [(LakeOperator, &str); 6] = [
    (LakeOperator::Equal, "="),
    (LakeOperator::NotEqual, "<>"),
    (LakeOperator::Less, "<"),
    (LakeOperator::LessOrEqual, "<="),
    (LakeOperator::Greater, ">"),
    (LakeOperator::GreaterOrEqual, ">="),
];

/// One row's value, as bounds.
struct One(Option<Literal>);

impl Bounds for One {
    fn lower(&self, _: usize) -> Option<Literal> {
        self.0.clone()
    }

    fn upper(&self, _: usize) -> Option<Literal> {
        self.0.clone()
    }

    fn nulls(&self, _: usize) -> Nulls {
        if self.0.is_some() { Nulls::None } else { Nulls::All }
    }
}

/// What the lake holds of a value that SQLite stores; `None` for a misfit.
fn in_lake(column_type: ColumnType, value: &SqlValue) -> Option<Option<Literal>> {
    Some(Some(match (column_type, value) {
        (_, SqlValue::Null) => return Some(None),
        (ColumnType::Long, SqlValue::Integer(integer)) => Literal::Long(*integer),
        (ColumnType::Double, SqlValue::Integer(integer)) => Literal::Double(exact_double(*integer)?),
        (ColumnType::Double, SqlValue::Real(real)) => Literal::Double(*real),
        (ColumnType::String, SqlValue::Text(text)) => Literal::String(text.clone()),
        (ColumnType::String, SqlValue::Integer(integer)) => Literal::String(integer.to_string()),
        (ColumnType::String, SqlValue::Real(real)) => Literal::String(format!("{real:?}")),
        (ColumnType::Binary, SqlValue::Blob(bytes)) => Literal::Binary(bytes.clone()),
        _ => return None,
    }))
}

/// Every comparison of every value with every literal, as SQLite decides it: bounds of one row never exclude a row that SQLite
/// finds, and an exact predicate excludes all others.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test needs a database without an actor around it")]
fn comparisons_mean_what_they_mean_in_sqlite() {
    let sqlite = Connection::open_in_memory().unwrap();
    let values: Vec<SqlValue> = vec![
        SqlValue::Null,
        0.into(),
        1.into(),
        (-7).into(),
        i64::MAX.into(),
        i64::MIN.into(),
        ((1_i64 << 53) + 1).into(),
        0.0.into(),
        SqlValue::Real(-0.0),
        0.5.into(),
        (-2.5).into(),
        9.3e18.into(),
        (-9.3e18).into(),
        1e300.into(),
        f64::INFINITY.into(),
        SqlValue::Text(String::new()),
        SqlValue::Text("2024-01-31".to_owned()),
        SqlValue::Text("1".to_owned()),
        SqlValue::Text("B".to_owned()),
        SqlValue::Text("a".to_owned()),
        SqlValue::Text("größe".to_owned()),
        SqlValue::Blob(vec![0x41]),
        SqlValue::Blob(Vec::new()),
    ];
    let columns = [
        ("INTEGER", LakeAffinity::Numeric, ColumnType::Long),
        ("NUMERIC", LakeAffinity::Numeric, ColumnType::Double),
        ("REAL", LakeAffinity::Real, ColumnType::Double),
        ("TEXT", LakeAffinity::Text, ColumnType::String),
        ("DATE", LakeAffinity::Numeric, ColumnType::String),
        ("BLOB", LakeAffinity::Blob, ColumnType::Binary),
        ("", LakeAffinity::Blob, ColumnType::String),
    ];
    let (mut exact, mut told) = (0, 0);
    for (declared, affinity, column_type) in columns {
        sqlite.execute_batch(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t (c {declared})")).unwrap();
        for stored in &values {
            sqlite.execute("DELETE FROM t", []).unwrap();
            sqlite.execute("INSERT INTO t VALUES (?1)", [stored]).unwrap();
            let stored: SqlValue = sqlite.query_row("SELECT c FROM t", [], |row| row.get(0)).unwrap();
            let Some(row) = in_lake(column_type, &stored) else { continue };
            for literal in &values {
                // The affinity is applied as a comparison applies it.
                let cast = match affinity {
                    LakeAffinity::Text => "TEXT",
                    LakeAffinity::Numeric | LakeAffinity::Real => "NUMERIC",
                    LakeAffinity::Blob => "",
                };
                sqlite.execute_batch(&format!("DROP TABLE IF EXISTS l; CREATE TABLE l (c {cast})")).unwrap();
                sqlite.execute("INSERT INTO l VALUES (?1)", [literal]).unwrap();
                let applied: SqlValue = sqlite.query_row("SELECT c FROM l", [], |row| row.get(0)).unwrap();
                for (operator, text) in OPERATORS {
                    let found: i64 = sqlite
                        .query_row(&format!("SELECT count(*) FROM t WHERE c {text} ?1"), [literal], |row| row.get(0))
                        .unwrap();
                    let condition = LakeCondition {
                        condition: Some(lake_condition::Condition::Comparison(LakeComparison {
                            column: 0,
                            operator: operator.into(),
                            value: Some(value_of(&applied)),
                        })),
                    };
                    let typed = [Typed { column_type: Some(column_type), affinity }];
                    let mut translator = Translator { columns: &typed, exact: true };
                    let predicate = translator.all(&[condition]);
                    let matches = predicate.may_match(&One(row.clone()));
                    let what = format!("{declared}: {stored:?} {text} {literal:?} ({predicate:?})");
                    assert!(matches || found == 0, "{what}: a row is lost");
                    told += 1;
                    if translator.exact {
                        exact += 1;
                        assert_eq!(matches, found == 1, "{what}: not exact");
                    }
                }
            }
        }
    }
    assert!(exact * 2 > told, "{exact} of {told} comparisons are exact");
}

fn value_of(value: &SqlValue) -> Value {
    match value {
        SqlValue::Null => Value::NULL,
        SqlValue::Integer(integer) => (*integer).into(),
        SqlValue::Real(real) => (*real).into(),
        SqlValue::Text(text) => text.as_str().into(),
        SqlValue::Blob(bytes) => Value::blob(bytes.clone()),
    }
}

/// A range of values.
struct Between(Literal, Literal, Nulls);

impl Bounds for Between {
    fn lower(&self, _: usize) -> Option<Literal> {
        Some(self.0.clone())
    }

    fn upper(&self, _: usize) -> Option<Literal> {
        Some(self.1.clone())
    }

    fn nulls(&self, _: usize) -> Nulls {
        self.2
    }
}

#[test]
fn bounds_exclude_what_lies_outside() {
    let bounds = Between(Literal::Long(10), Literal::Long(20), Nulls::None);
    let compare = |comparison, value| Predicate::Compare(0, comparison, Literal::Long(value)).may_match(&bounds);
    assert!(!compare(Comparison::Equal, 9) && compare(Comparison::Equal, 10) && !compare(Comparison::Equal, 21));
    assert!(!compare(Comparison::Less, 10) && compare(Comparison::Less, 11));
    assert!(!compare(Comparison::LessOrEqual, 9) && compare(Comparison::LessOrEqual, 10));
    assert!(!compare(Comparison::Greater, 20) && compare(Comparison::Greater, 19));
    assert!(!compare(Comparison::GreaterOrEqual, 21) && compare(Comparison::GreaterOrEqual, 20));
    assert!(compare(Comparison::NotEqual, 10));
    assert!(!Predicate::Null(0).may_match(&bounds) && Predicate::NotNull(0).may_match(&bounds));
    let nulls = Between(Literal::Long(10), Literal::Long(20), Nulls::All);
    assert!(Predicate::Null(0).may_match(&nulls) && !Predicate::NotNull(0).may_match(&nulls));
}

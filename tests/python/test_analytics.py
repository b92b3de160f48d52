"""Reads with `readPreference: analytics`: the lake's tables by DataFusion, finished in SQLite. Every answer is compared with
SQLite's over the same rows."""

import os
import random
import re
import sqlite3
import time

import flights
import pytest
from server import Server, SqlError, from_json, to_json


def ask(server: Server, sql: str, *params, **options) -> dict:
    """Runs one statement on the lake; its rows come back as tuples of Python values."""
    body = {"sql": sql, "params": [to_json(value) for value in params]}
    answer = server.post_sql({**body, "options": {"readPreference": "analytics", "explain": True, **options}})
    answer["rows"] = [tuple(from_json(value) for value in row) for row in answer["rows"]]
    return answer


@pytest.fixture(scope="module", params=["sample", "whole"])
def lake(request, tmp_path_factory):
    """The flights in the lake, in files of many row groups, and the same rows in SQLite."""
    scratch = tmp_path_factory.mktemp("analytics")
    file = flights.SAMPLE if request.param == "sample" else flights.whole(scratch)
    reference = flights.sqlite_of(file)
    server = Server(scratch / "data", settings={"DOLAKE_PARQUET_ROW_GROUP_SIZE": 1000}).start()
    imported = server.run(
        "import", str(file), "--table", "flights", "--shard-by", "tailnum", "--null", "NA", "--url", server.url
    )
    assert imported.returncode == 0, imported.stderr
    server.flush()
    yield server, reference
    assert server.stop() == 0, server.log_tail()
    assert b"panicked" not in server.log_path.read_bytes(), server.log_tail()


@pytest.mark.parametrize(("sql", "ordered"), flights.QUERIES)
def test_flights_are_answered_as_sqlite_does(lake, sql, ordered):
    server, reference = lake
    cursor = reference.execute(sql)
    expected = flights.comparable(cursor.fetchall(), ordered)
    answer = ask(server, sql)
    assert answer["queryPlan"]["route"] == "lake", answer["queryPlan"]
    assert answer["columns"] == [column[0] for column in cursor.description]
    assert flights.comparable(answer["rows"], ordered) == expected


def test_aggregates_are_computed_in_the_lake(lake):
    server, reference = lake
    sql = "SELECT carrier, COUNT(*), SUM(distance) FROM flights WHERE month > 3 GROUP BY carrier ORDER BY carrier"
    answer = ask(server, sql, profile=True)
    expected = reference.execute(sql).fetchall()
    assert answer["rows"] == expected
    (step,) = [step for step in answer["stats"]["steps"] if step["step"] == "lake"]
    assert step["rows"] == len(expected), "the lake sends groups, not rows"


def test_large_results_come_in_batches(lake):
    server, reference = lake
    sql = "SELECT tailnum, flight, distance, time_hour FROM flights"
    assert sorted(ask(server, sql)["rows"], key=repr) == sorted(reference.execute(sql).fetchall(), key=repr)


TABLES = {
    "items": "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL, amount NUMERIC, data BLOB, day DATE, n INT)",
    "names": "CREATE TABLE names (name TEXT COLLATE NOCASE PRIMARY KEY, points INTEGER) WITHOUT ROWID",
}
# Values of every storage class, so that some fit no column.
VALUES = (
    None, 0, 1, -7, 2**53 + 1, 2**63 - 1, -(2**63), 0.0, 0.5, -2.5, 1e300, "", "plain", "größe 🦀", "12", "2024-02-29",
    "2460340.5", "a\0b", b"", b"\x00\xff", "Straße", "STRASSE", "abc ",
)
LITERALS = (*VALUES, 3, 2.0, -0.0, "b", "2024-01-01", 9.3e18, "1e2")
OPERATORS = ("=", "<>", "<", "<=", ">", ">=")
COLUMNS = ("id", "name", "price", "amount", "data", "day", "n")


class Twins:
    """A server and SQLite that run the same statements."""

    def __init__(self, server: Server, seed: str):
        self.server, self.random = server, random.Random(seed)
        self.sqlite = sqlite3.connect(":memory:", isolation_level=None)
        self.next_id = 1
        for sql in TABLES.values():
            self.run(sql)

    def run(self, sql: str, *params) -> None:
        self.sqlite.execute(sql, params)
        self.server.sql(sql, *params)

    def insert(self, count: int, plain: bool = False) -> None:
        for _ in range(count):
            if plain:
                values = ("n" * (self.next_id % 5), 0.5 * self.next_id, self.next_id, b"x", "2024-03-01", self.next_id % 4)
            else:
                values = tuple(self.random.choice(VALUES) for _ in COLUMNS[1:])
            self.run("INSERT INTO items (id, name, price, amount, data, day, n) VALUES (?, ?, ?, ?, ?, ?, ?)", self.next_id, *values)
            self.run("INSERT INTO names VALUES (?, ?)", f"Name {self.next_id}", self.next_id)
            self.next_id += 1

    def change(self, count: int) -> None:
        for _ in range(count):
            id, column = self.random.randrange(1, self.next_id), self.random.choice(COLUMNS[1:])
            self.run(f"UPDATE items SET {column} = ? WHERE id = ?", self.random.choice(VALUES), id)
            self.run("DELETE FROM items WHERE id = ?", self.random.randrange(1, self.next_id))
            self.run("UPDATE names SET points = points + 1 WHERE name = ?", f"name {id}")
            self.run("DELETE FROM names WHERE name = ?", f"NAME {self.random.randrange(1, self.next_id)}")

    def condition(self, params: list) -> str:
        column, choice = self.random.choice(COLUMNS), self.random.random()

        def value() -> str:
            params.append(self.random.choice(LITERALS))
            return "?"

        if choice < 0.5:
            return f"{column} {self.random.choice(OPERATORS)} {value()}"
        if choice < 0.6:
            return f"{column} BETWEEN {value()} AND {value()}"
        if choice < 0.7:
            return f"{column} NOT IN ({value()}, {value()})"
        if choice < 0.8:
            return f"{column} IS {self.random.choice(('', 'NOT '))}NULL"
        word = self.random.choice((" AND ", " OR "))
        return f"NOT ({word.join((self.condition(params), self.condition(params)))})"

    def queries(self, count: int):
        yield "SELECT * FROM items", ()
        yield "SELECT name, typeof(name), price, typeof(price), amount, typeof(amount), day, typeof(day), n, typeof(n) FROM items", ()
        yield "SELECT * FROM names WHERE name = 'nAME 3' OR points > 7", ()
        yield "SELECT COUNT(*), COUNT(n), SUM(id), MIN(name), MAX(name), MIN(id), MAX(data) FROM items", ()
        yield "SELECT name, COUNT(*), MIN(id) FROM items GROUP BY name", ()
        # Of 0 and 0.0 either may stand for both.
        yield "SELECT DISTINCT data, typeof(data) FROM items", ()
        yield "SELECT a.id, b.points FROM items a LEFT JOIN names b ON b.points = a.id WHERE a.id > 3", ()
        yield "SELECT COUNT(*) FROM items WHERE id IN (SELECT points FROM names)", ()
        yield "SELECT day, COUNT(*) FROM items WHERE day >= '2024-01-01' GROUP BY day", ()
        for _ in range(count):
            params = []
            condition = self.condition(params)
            what = self.random.choice(("*", "COUNT(*), MIN(id), SUM(id)", "name, COUNT(*)"))
            group = " GROUP BY name" if what.startswith("name") else ""
            yield f"SELECT {what} FROM items WHERE {condition}{group}", tuple(params)

    def check(self, what: str, **options) -> None:
        for sql, params in self.queries(60):
            expected = comparable(self.sqlite.execute(sql, params).fetchall())
            assert comparable(ask(self.server, sql, *params, **options)["rows"]) == expected, f"{what}: {sql} {params!r}"


def comparable(rows) -> list:
    return sorted((tuple((type(value).__name__, value) for value in row) for row in rows), key=repr)


@pytest.fixture(params=[3])
def twins(request, tmp_path):
    seed = os.environ.get("DOSQL_SEED", str(time.time_ns()))
    print(f"DOSQL_SEED={seed}")
    settings = {"DOLAKE_FLUSH_INTERVAL_MS": 3_600_000, "DOLAKE_PARQUET_ROW_GROUP_SIZE": 10}
    server = Server(tmp_path / "data", "--auto-shard", "primary-key", shards=request.param, settings=settings).start()
    yield Twins(server, seed)
    assert server.stop() == 0, server.log_tail()
    assert b"panicked" not in server.log_path.read_bytes(), server.log_tail()


def test_any_value_and_any_history_is_answered_as_sqlite_does(twins):
    server = twins.server
    twins.insert(40)
    server.flush()
    twins.check("after inserts")
    twins.change(25)
    server.flush()
    twins.check("after updates and deletes")
    twins.run("ALTER TABLE items ADD COLUMN extra INTEGER DEFAULT 7")
    twins.insert(10)
    server.flush()
    twins.check("after a column was added")
    assert server.http.post("/admin/compact", json={"mode": "full"}).json()["results"]
    twins.check("after compaction")
    twins.change(10)
    server.flush()
    twins.check("after changes of compacted rows")


def test_renamed_columns_are_followed(twins):
    server = twins.server
    twins.insert(20, plain=True)
    server.flush()
    twins.run("ALTER TABLE items RENAME COLUMN n TO number")
    twins.run("ALTER TABLE items ADD COLUMN n INTEGER DEFAULT 5")
    twins.run("UPDATE items SET number = 100 WHERE id > 15")
    server.flush()
    for sql in ("SELECT id, number, n FROM items WHERE number > 1", "SELECT n, COUNT(*), SUM(number) FROM items GROUP BY n"):
        assert comparable(ask(server, sql)["rows"]) == comparable(twins.sqlite.execute(sql).fetchall()), sql
    twins.run("UPDATE items SET number = 'no number' WHERE id = 3")
    server.flush()
    with pytest.raises(SqlError) as refused:
        ask(server, "SELECT number FROM items")
    assert refused.value.code == "UNSUPPORTED" and "number of items" in refused.value.message


def test_values_beside_their_columns_are_read(twins):
    server = twins.server
    server.sql("ALTER LAKE ON items SET misfits = widen")
    twins.insert(30)
    server.flush()
    twins.check("misfits widen their columns")
    twins.change(10)
    server.flush()
    twins.check("after changes")


def test_a_table_without_a_mirror_is_refused(twins):
    twins.server.sql("ALTER LAKE ON names SET mirror = off")
    with pytest.raises(SqlError) as refused:
        ask(twins.server, "SELECT COUNT(*) FROM names")
    assert refused.value.code == "UNSUPPORTED" and "mirror is off" in refused.value.message


def test_what_is_not_flushed_counts_where_freshness_is_asked_for(twins):
    server = twins.server
    twins.insert(30)
    twins.check("before anything is flushed", maxStalenessMs=1)
    twins.change(10)
    twins.insert(10)
    old = ask(server, "SELECT COUNT(*), MAX(id) FROM items")["rows"]
    assert old == [(30, 30)], "without a bound, the newest snapshot counts"
    twins.check("after changes", maxStalenessMs=1)
    bookmark = server.sql("INSERT INTO items (id, name) VALUES (1000, 'written')")["bookmark"]
    twins.sqlite.execute("INSERT INTO items (id, name) VALUES (1000, 'written')")
    answer = ask(server, "SELECT name FROM items WHERE id = 1000", bookmark=bookmark)
    assert answer["rows"] == [("written",)], "a client reads what it has written"
    with pytest.raises(SqlError) as refused:
        ask(server, "SELECT 1 FROM items", bookmark="shard-0:1000000")
    assert refused.value.code == "REPLICA_LAGGING" and refused.value.retryable


# The rows of one shard stand in the order in which they were written.
@pytest.mark.parametrize("twins", [1], indirect=True)
def test_files_and_row_groups_are_skipped(twins):
    server = twins.server
    for _ in range(3):
        twins.insert(40, plain=True)
        server.flush()
    sql = "SELECT COUNT(*), SUM(n) FROM items WHERE id BETWEEN 95 AND 100"
    answer = ask(server, sql, profile=True)
    assert answer["rows"] == twins.sqlite.execute(sql).fetchall()
    (step,) = [step for step in answer["stats"]["steps"] if step["step"] == "lake"]
    assert step["lake"]["files"] == 3 and step["lake"]["filesSkipped"] == 2, step
    assert step["lake"]["rowGroups"] == 4 and 0 < step["lake"]["rowGroupsSkipped"] < 4, step
    text = "\n".join(line for (line,) in ask(server, f"EXPLAIN ANALYZE {sql}")["rows"])
    assert re.search(r"skipped 2 of 3 files and \d of 4 row groups; 0 deleted rows", text), text
    twins.check("rows that fit their columns")
    plan = "\n".join(line for (line,) in ask(server, f"EXPLAIN {sql}")["rows"])
    assert "read aggregates from the lake" in plan and "id >= 95 AND id <= 100" in plan, plan


def test_what_the_lake_does_not_tell_is_refused(twins):
    server = twins.server
    server.sql("CREATE TABLE loose (id INTEGER PRIMARY KEY, anything)")
    server.sql("INSERT INTO loose VALUES (1, 5), (2, '5')")
    server.sql("CREATE TABLE words (word TEXT PRIMARY KEY, size INTEGER AS (length(word)) VIRTUAL)")
    server.sql("INSERT INTO words (word) VALUES ('lake')")
    server.flush()
    assert ask(server, "SELECT COUNT(*), MAX(id) FROM loose")["rows"] == [(2, 2)]
    for sql, named in (
        ("SELECT anything FROM loose", "anything of loose"),
        ("SELECT rowid, word FROM words", "rowid of words"),
        ("SELECT size FROM words", "size of words"),
    ):
        with pytest.raises(SqlError) as refused:
            ask(server, sql)
        assert refused.value.code == "UNSUPPORTED" and named in refused.value.message, refused.value


def test_reference_tables_are_read_once(tmp_path):
    vschema = tmp_path / "vschema.json"
    vschema.write_text('{"tables": {"rates": {"type": "reference"}}}')
    server = Server(tmp_path / "data", "--vschema", str(vschema), shards=3).start()
    try:
        server.sql("CREATE TABLE rates (currency TEXT PRIMARY KEY, rate REAL)")
        server.sql("INSERT INTO rates VALUES ('EUR', 1.0), ('USD', 1.1)")
        server.flush()
        assert sorted(ask(server, "SELECT * FROM rates")["rows"]) == [("EUR", 1.0), ("USD", 1.1)]
        assert ask(server, "SELECT COUNT(*) FROM rates")["rows"] == [(2,)]
    finally:
        assert server.stop() == 0, server.log_tail()

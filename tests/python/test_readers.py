"""PyIceberg, DuckDB, Polars and ClickHouse (chdb) read mirror and change log, and agree with SQLite row for row."""

import os
import random
import re
import sqlite3
import time
from collections import Counter

import lakehouse
import pytest
from engines import ENGINES
from lakehouse import directory
from server import Server

TABLES = {
    "items": "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL, data BLOB, dt DATE, flag BOOLEAN)",
    "pairs": "CREATE TABLE pairs (a TEXT, b INT, note TEXT, PRIMARY KEY (a, b))",
}
TEXTS = ("", "plain", "'quoted'", "größe 🦀", "line\nbreak", "x" * 300)


class History:
    """Runs each statement on a server and on SQLite, and notes what it changes."""

    def __init__(self, server: Server, seed: str):
        self.server = server
        self.sqlite = sqlite3.connect(":memory:", isolation_level=None)
        self.random = random.Random(seed)
        self.tables = {}
        # By table: (operation, the row as a dict without its NULLs).
        self.changes = {name: Counter() for name in TABLES}
        self.next_id = 1
        self.updates = 0
        self.price = "price"
        for name, sql in TABLES.items():
            self.run(sql)

    def rows(self, table: str) -> list[dict]:
        cursor = self.sqlite.execute(f"SELECT rowid AS _key, * FROM {table}")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def run(self, sql: str, *params) -> None:
        before = {name: {row["_key"]: row for row in self.rows(name)} for name in self.tables}
        self.sqlite.execute(sql, params)
        self.server.sql(sql, *params)
        self.tables = {name: self.columns(name) for name in TABLES if self.columns(name)}
        if renamed := re.search(r"RENAME COLUMN (\w+) TO (\w+)", sql):  # changes no row: the log shows the new name throughout
            (table,) = (name for name in before if f"TABLE {name} " in sql)
            self.changes[table] = renamed_in(self.changes[table], *renamed.groups())
            return
        if dropped := re.search(r"TABLE (\w+) DROP COLUMN (\w+)", sql):  # changes no row, and the log shows it no more
            table, column = dropped.groups()
            self.changes[table] = now_named(self.changes[table], self.columns(table))
            return
        for name in before:
            after = {row["_key"]: row for row in self.rows(name)}
            for key in before[name].keys() | after.keys():
                old, new = before[name].get(key), after.get(key)
                if present(old) != present(new):
                    self.note(name, "delete" if new is None else "update_before", old)
                    self.note(name, "insert" if old is None else "update_after", new)

    def note(self, table: str, operation: str, row: dict | None) -> None:
        if row is not None:
            self.changes[table][(operation, present(row))] += 1

    def columns(self, table: str) -> tuple[str, ...]:
        return tuple(row[1] for row in self.sqlite.execute(f"PRAGMA table_info({table})"))

    def item(self) -> tuple:
        choice = self.random
        values = (
            self.next_id, choice.choice(TEXTS), choice.choice((0.5, -1e300, 3.0, 1 / 3)), choice.randbytes(3),
            "2024-02-29", choice.choice((0, 1)),
        )
        self.next_id += 1
        return values[:1] + tuple(None if choice.random() < 0.2 else value for value in values[1:])

    def insert(self, count: int) -> None:
        extra = len(self.tables["items"]) - 6
        for _ in range(count):
            values = self.item() + tuple(self.random.randrange(-5, 5) for _ in range(extra))
            self.run(f"INSERT INTO items VALUES ({', '.join('?' * len(values))})", *values)
            self.run("INSERT INTO pairs VALUES (?, ?, ?)", self.random.choice("abc"), self.next_id, "note")

    def change(self, count: int) -> None:
        for _ in range(count):
            # Never the values that a row has already: the log holds such an update, and a comparison of rows sees none.
            self.updates += 1
            number, id = self.updates, self.random.randrange(1, self.next_id)
            self.run(f"UPDATE items SET name = ?, {self.price} = ? WHERE id = ?", f"changed {number}", number / 4, id)
            self.run("UPDATE pairs SET note = ? WHERE b = ?", f"again {number} {id}", id)
            self.run("DELETE FROM items WHERE id = ?", self.random.randrange(1, self.next_id))
            self.run("DELETE FROM pairs WHERE b = ?", self.random.randrange(1, self.next_id))


def present(row: dict | None) -> frozenset | None:
    """A row's values that are not NULL."""
    if row is None:
        return None
    return frozenset((name, value) for name, value in row.items() if value is not None and name != "_key")


def check(history: History, what: str) -> None:
    history.server.flush()
    for table, columns in history.tables.items():
        names = ", ".join(columns)
        expected = Counter(history.sqlite.execute(f"SELECT {names} FROM {table}").fetchall())
        assert sum(expected.values()) > 5
        mirror = directory(history.server.data_dir, table)
        log = directory(history.server.data_dir, f"{table}__changes")
        for engine, read in ENGINES.items():
            assert Counter(read(mirror, columns)) == expected, f"{what}: {engine} reads the mirror of {table}"
            # Each change once, and with the columns as they are now.
            entries = read(log, ("_shard", "_lsn", "_ordinal", "_operation", *columns))
            assert len({entry[:4] for entry in entries}) == len(entries), f"{engine}: a change is there twice"
            logged = Counter(
                (operation, frozenset(cell for cell in zip(columns, values, strict=True) if cell[1] is not None))
                for _, _, _, operation, *values in entries
            )
            assert logged == history.changes[table], f"{what}: {engine} reads the log of {table}"


def renamed_in(changes: Counter, old: str, new: str) -> Counter:
    """The changes with a column's new name."""
    return Counter({
        (operation, frozenset((new if name == old else name, value) for name, value in cells)): count
        for (operation, cells), count in changes.items()
    })


def now_named(changes: Counter, columns: tuple[str, ...]) -> Counter:
    """The changes with the columns that there are now."""
    kept = Counter()
    for (operation, cells), count in changes.items():
        kept[(operation, frozenset(cell for cell in cells if cell[0] in columns))] += count
    return kept


@pytest.fixture
def history(tmp_path, monkeypatch):
    monkeypatch.chdir("/")  # chdb reads files below the working directory only
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    seed = os.environ.get("DOSQL_SEED", str(time.time_ns()))
    print(f"DOSQL_SEED={seed}")
    settings = {"DOLAKE_SNAPSHOT_RETENTION_MS": 0, "DOLAKE_KEEP_SNAPSHOTS": 1, "DOLAKE_KEEP_METADATA": 1}
    server = Server(tmp_path / "data", "--auto-shard", "primary-key", shards=3, settings=settings).start()
    yield History(server, seed)
    assert server.stop() == 0, server.log_tail()


def test_engines_agree_with_sqlite(history):
    history.insert(50)
    check(history, "after inserts")
    history.change(15)
    check(history, "after updates and deletes")
    history.run("ALTER TABLE items ADD COLUMN stock INTEGER DEFAULT 7")
    history.insert(5)
    history.change(5)
    check(history, "after a column was added")
    history.run("ALTER TABLE items RENAME COLUMN price TO cost")
    history.price = "cost"
    history.run("ALTER TABLE items DROP COLUMN flag")
    history.change(5)
    check(history, "after a column was renamed and one dropped")
    history.run("ALTER TABLE items ADD COLUMN flag TEXT")
    history.run("ALTER TABLE items ADD COLUMN price TEXT DEFAULT 'none'")
    history.run("ALTER TABLE pairs RENAME COLUMN a TO first")
    history.change(5)
    check(history, "after columns of names that were there before were added, and a key column was renamed")

    http = history.server.http
    results = http.post("/admin/compact", json={"mode": "full"}).json()["results"]
    assert {result["table"] for result in results} == {
        "items", "items__changes", "pairs", "pairs__changes",
    }
    assert all(result["files_after"] < result["files_before"] for result in results)
    assert not list(delete_files(history.server)), "the deletes are folded into the data files"
    check(history, "after compaction")
    history.change(5)
    check(history, "after changes of compacted rows")

    before = lake_files(history.server)
    plan = http.post("/admin/cleanup", json={"mode": "deep", "dryRun": True}).json()
    assert plan["deleted_files"] > 20 and plan["expired_snapshots"] > 5
    assert lake_files(history.server) == before, "a dry run deletes nothing"
    done = http.post("/admin/cleanup", json={"mode": "deep"}).json()
    assert done["errors"] == [] and done["expired_snapshots"] == plan["expired_snapshots"]
    gone = {entry["path"] for entry in done["files"]}
    assert gone == {entry["path"] for entry in plan["files"]} == before - lake_files(history.server, before)
    check(history, "after clean-up")
    history.change(3)
    check(history, "after changes upon clean-up")


def lake_files(server: Server, among: set[str] | None = None) -> set[str]:
    root = server.data_dir / "lake"
    files = {str(path.relative_to(root)) for path in root.rglob("warehouse/**/*") if path.is_file()}
    return files if among is None else files & among


def delete_files(server: Server):
    """The delete files of the mirrors' current snapshots."""
    for table in TABLES:
        for task in lakehouse.open_table(server.data_dir, table).scan().plan_files():
            yield from task.delete_files


def test_requests_for_maintenance_are_checked(history):
    http = history.server.http
    answer = http.post("/admin/compact", json={"tables": ["nothing"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert http.post("/admin/compact", json={"mode": "sometimes"}).status_code == 400
    assert http.post("/admin/cleanup", json={"dry_runs": True}).status_code == 400
    assert http.post("/admin/compact", json={"partition": "yesterday"}).json() == {"results": []}
    history.insert(1)
    history.server.flush()
    answer = http.post("/admin/compact", json={"partition": "yesterday"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert http.post("/admin/compact").json() == {"results": []}, "there is too little to be worth it"

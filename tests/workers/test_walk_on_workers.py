"""The walk on the real platform runtime: rows go in, queries answer as SQLite does, changes show on the WebSocket, PyIceberg
reads the lake, and all of it is still there when every object has been evicted and the runtime restarted."""

from collections import Counter

import flights
import lakehouse
import pytest
from server import SqlError, next_frame
from websockets.exceptions import InvalidStatus
from worker import Worker

ACTORS = [*(f"shard/shard-{index}" for index in range(4)), "router/default", "cdc/default", "lake/default"]


class Walk:
    def __init__(self, worker: Worker, reference, names: list[str], rows: list[tuple]):
        self.worker = worker
        self.reference = reference
        self.names = names
        self.rows = rows


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The flights sample over 4 shards, sharded by its first column, the tail number; and the same rows in SQLite."""
    worker = Worker(tmp_path_factory.mktemp("worker"), settings={"AUTO_SHARD": "first-column"}).start()
    names, rows = flights.read(flights.SAMPLE)
    tail = names.index("tailnum")
    order = [tail, *(index for index in range(len(names)) if index != tail)]
    shuffled = [names[index] for index in order]
    columns = ", ".join(f"{name} {'TEXT' if name in flights.TEXT_COLUMNS else 'INTEGER'}" for name in shuffled)
    worker.sql(f"CREATE TABLE flights ({columns})")
    for begin in range(0, len(rows), 500):
        part = [tuple(row[index] for index in order) for row in rows[begin : begin + 500]]
        assert worker.load("flights", shuffled, part) == len(part)
    yield Walk(worker, flights.sqlite_of(flights.SAMPLE), names, rows)
    worker.stop()


def compare(walk: Walk, sql: str, ordered: bool) -> None:
    answer = walk.worker.sql(sql)
    cursor = walk.reference.execute(sql)
    assert answer["columns"] == [column[0] for column in cursor.description]
    assert flights.comparable(answer["rows"], ordered) == flights.comparable(cursor.fetchall(), ordered)


# `SELECT *` names its columns in the order of the table, which differs here.
QUERIES = [(sql, ordered) for sql, ordered in flights.QUERIES if not sql.startswith("SELECT * ")]


@pytest.mark.parametrize(("sql", "ordered"), QUERIES)
def test_queries_answer_as_sqlite_does(walk, sql, ordered):
    compare(walk, sql, ordered)


def test_a_large_result_streams(walk):
    columns = ", ".join(walk.names)
    answer = walk.worker.sql(f"SELECT {columns} FROM flights")
    assert Counter(answer["rows"]) == Counter(walk.rows)


def test_errors_have_codes(walk):
    with pytest.raises(SqlError) as caught:
        walk.worker.sql("SELEC 1")
    assert (caught.value.code, caught.value.status) == ("SYNTAX_ERROR", 400)
    with pytest.raises(SqlError) as caught:
        walk.worker.sql("SELECT * FROM nowhere")
    assert caught.value.code == "UNKNOWN_TABLE"


def test_an_unknown_position_is_refused(walk):
    with pytest.raises(InvalidStatus) as refused:
        walk.worker.subscribe(from_="shard-0:999999999").close()
    assert b"UNKNOWN_POSITION" in refused.value.response.body


def test_a_body_beyond_the_limit_is_refused(walk):
    with pytest.raises(SqlError) as caught:
        walk.worker.sql(f"SELECT '{'x' * (17 << 20)}'")
    assert caught.value.code == "TOO_LARGE"
    assert walk.worker.rows("SELECT 1") == [(1,)]


def read_lake(walk: Walk) -> Counter:
    walk.worker.flush()
    walk.worker.fetch_lake()
    return Counter(lakehouse.rows(walk.worker.data_dir, "flights", tuple(walk.names)))


def test_the_lake_holds_the_same_rows_once(walk):
    assert read_lake(walk) == Counter(walk.rows)


def test_changes_are_seen_live_and_in_the_lake(walk):
    insert = "INSERT INTO flights (tailnum, year, carrier, flight, distance) VALUES (?, ?, ?, ?, ?)"
    row = ("N00000", 2014, "ZZ", 9007199254740993, 1)
    with walk.worker.subscribe(from_="latest", tables="flights") as live:
        assert walk.worker.sql(insert, *row)["rows_affected"] == 1
        (change,) = next_frame(live)["changes"]
        assert (change["op"], change["table"], change["before"]) == ("insert", "flights", None)
        assert change["after"]["flight"] == 9007199254740993
        walk.worker.sql("UPDATE flights SET distance = 2 WHERE tailnum = 'N00000'")
        frame = next_frame(live)
        (change,) = frame["changes"]
        assert (change["op"], change["before"]["distance"], change["after"]["distance"]) == ("update", 1, 2)
    with walk.worker.subscribe(from_="earliest", tables="flights") as again:
        seen = 0
        while seen < len(walk.rows) + 2:
            seen += len(next_frame(again)["changes"])
    walk.reference.execute(insert, row)
    walk.reference.execute("UPDATE flights SET distance = 2 WHERE tailnum = 'N00000'")
    names = ", ".join(walk.names)
    assert read_lake(walk) == Counter(walk.reference.execute(f"SELECT {names} FROM flights").fetchall())


def test_evicted_objects_come_back_with_everything(walk):
    for actor in ACTORS:
        walk.worker.evict(actor)
    compare(walk, "SELECT COUNT(*), SUM(distance), MAX(flight) FROM flights", True)
    walk.worker.sql("DELETE FROM flights WHERE tailnum = 'N00000'")
    walk.reference.execute("DELETE FROM flights WHERE tailnum = 'N00000'")
    assert read_lake(walk) == Counter(walk.rows)


def test_a_restart_of_the_runtime_loses_nothing(walk):
    """Runs last: it ends the runtime without a warning."""
    walk.worker.sql("INSERT INTO flights (tailnum, flight) VALUES ('N11111', 1)")
    walk.reference.execute("INSERT INTO flights (tailnum, flight) VALUES ('N11111', 1)")
    walk.worker.kill()
    walk.worker.start()
    compare(walk, "SELECT COUNT(*), SUM(distance), SUM(flight) FROM flights", True)
    names = ", ".join(walk.names)
    assert read_lake(walk) == Counter(walk.reference.execute(f"SELECT {names} FROM flights").fetchall())

"""One walk through the whole system: rows go in by `dosql import`, come out of every interface exactly as SQLite would
answer, appear on the change stream, and stand once in the lake that PyIceberg reads."""

import csv
import io
import json
from collections import Counter

import flights
import lakehouse
import pytest
from rpc import Client
from server import Server, next_frame


class Walk:
    def __init__(self, server: Server, reference, rows: int):
        self.server = server
        self.reference = reference
        self.rows = rows


@pytest.fixture(scope="module", params=["sample", "whole"])
def walk(request, tmp_path_factory):
    """A server with the flights in it, sharded by tail number over 4 shards, and the same rows in SQLite."""
    scratch = tmp_path_factory.mktemp("walk")
    file = flights.SAMPLE if request.param == "sample" else flights.whole(scratch)
    reference = flights.sqlite_of(file)
    server = Server(scratch / "data").start()
    imported = server.run(
        "import", str(file), "--table", "flights", "--shard-by", "tailnum", "--null", "NA", "--url", server.url
    )
    assert imported.returncode == 0, imported.stderr
    (rows,) = reference.execute("SELECT COUNT(*) FROM flights").fetchone()
    assert rows == (flights.WHOLE_ROWS if request.param == "whole" else 2005)
    yield Walk(server, reference, rows)
    assert server.stop() == 0, server.log_tail()
    assert b"panicked" not in server.log_path.read_bytes(), server.log_tail()


def test_the_rows_spread_over_all_shards(walk):
    client = Client(walk.server.grpc_address)
    plan = client.explain("SELECT COUNT(*) FROM flights")
    assert sorted(plan.shards) == ["shard-0", "shard-1", "shard-2", "shard-3"], plan
    one = client.explain("SELECT * FROM flights WHERE tailnum = ?", "N14228")
    assert one.route == "equal-unique" and len(one.shards) == 1, one
    client.close()


@pytest.mark.parametrize(("sql", "ordered"), flights.QUERIES)
def test_every_interface_answers_as_sqlite_does(walk, sql, ordered):
    cursor = walk.reference.execute(sql)
    names = [column[0] for column in cursor.description]
    expected = flights.comparable(cursor.fetchall(), ordered)

    over_http = walk.server.sql(sql)
    assert over_http["columns"] == names
    assert flights.comparable(over_http["rows"], ordered) == expected

    client = Client(walk.server.grpc_address)
    grpc_names, grpc_rows = client.query(sql, max_batch_bytes=20_000)
    client.close()
    assert grpc_names == names
    assert flights.comparable(grpc_rows, ordered) == expected

    shell = walk.server.shell("--format", "json", sql)
    assert shell.returncode == 0, shell.stderr
    objects = json.loads(shell.stdout)
    assert all(list(row) == names for row in objects)
    assert flights.comparable([tuple(row.values()) for row in objects], ordered) == expected

    shell = walk.server.shell("--format", "csv", sql)
    assert shell.returncode == 0, shell.stderr
    header, *records = csv.reader(io.StringIO(shell.stdout, newline=""))
    assert header == names
    texts = [tuple("" if value is None else str(value) for _, value in row) for row in expected]
    assert (records if ordered else sorted(records)) == [list(row) for row in (texts if ordered else sorted(texts))]


def test_memory_stays_bounded(walk):
    walk.server.flush()
    assert walk.server.peak_memory() < 300 << 20


def test_parameters_route_and_filter(walk):
    sql = "SELECT flight, dest FROM flights WHERE tailnum = ?1 AND distance >= ?2"
    for tail in ("N14228", "N725MQ", None, "no such plane"):
        expected = walk.reference.execute(sql, (tail, 500)).fetchall()
        assert sorted(walk.server.rows(sql, tail, 500)) == sorted(expected)


def test_the_lake_holds_the_same_rows_once(walk):
    walk.server.flush()
    mirror = lakehouse.read(walk.server.data_dir, "flights")
    assert mirror.num_rows == walk.rows
    names = [column[1] for column in walk.reference.execute("PRAGMA table_info(flights)")]
    for name in ("distance", "dep_delay", "arr_delay", "air_time", "flight"):
        values = [value for value in mirror.column(name).to_pylist() if value is not None]
        expected = walk.reference.execute(f"SELECT COUNT({name}), SUM({name}), MIN({name}), MAX({name}) FROM flights")
        assert (len(values), sum(values), min(values), max(values)) == expected.fetchone(), name
    in_lake = Counter(lakehouse.rows(walk.server.data_dir, "flights", tuple(names)))
    assert in_lake == Counter(walk.reference.execute("SELECT * FROM flights").fetchall())


def test_changes_are_seen_live_and_in_the_lake(walk):
    """Runs last: it changes the data."""
    server = walk.server
    with server.subscribe(from_="latest", tables="flights") as live:
        inserted = server.sql(
            "INSERT INTO flights (year, tailnum, carrier, flight, distance) VALUES (?, ?, ?, ?, ?)",
            2014, "N00000", "ZZ", 9007199254740993, 1,
        )
        assert inserted["rows_affected"] == 1
        frame = next_frame(live)
        assert [change["op"] for change in frame["changes"]] == ["insert"]
        change = frame["changes"][0]
        assert change["table"] == "flights" and change["before"] is None
        assert change["after"]["tailnum"] == "N00000" and change["after"]["flight"] == 9007199254740993
        assert change["after"]["dep_time"] is None
        after_insert = frame["position"]

        assert server.sql("UPDATE flights SET distance = distance + 1 WHERE tailnum = 'N00000'")["rows_affected"] == 1
        frame = next_frame(live)
        (change,) = frame["changes"]
        assert (change["op"], change["before"]["distance"], change["after"]["distance"]) == ("update", 1, 2)

        removed = server.sql("DELETE FROM flights WHERE tailnum = 'N668DN'")["rows_affected"]
        (expected,) = walk.reference.execute("SELECT COUNT(*) FROM flights WHERE tailnum = 'N668DN'").fetchone()
        assert removed == expected
        if removed:
            frame = next_frame(live)
            assert [change["op"] for change in frame["changes"]] == ["delete"] * removed
            assert all(change["after"] is None for change in frame["changes"])

    with server.subscribe(from_=after_insert, tables="flights") as resumed:
        assert next_frame(resumed)["changes"][0]["op"] == "update"

    server.flush()
    walk.reference.execute("DELETE FROM flights WHERE tailnum = 'N668DN'")
    walk.reference.execute(
        "INSERT INTO flights (year, tailnum, carrier, flight, distance) VALUES (2014, 'N00000', 'ZZ', 9007199254740993, 2)"
    )
    columns = tuple(column[1] for column in walk.reference.execute("PRAGMA table_info(flights)"))
    expected = Counter(walk.reference.execute("SELECT * FROM flights").fetchall())
    assert Counter(lakehouse.rows(server.data_dir, "flights", columns)) == expected
    operations = Counter(operation for (operation,) in lakehouse.rows(server.data_dir, "flights__changes", ("_operation",)))
    assert operations == Counter(insert=walk.rows + 1, update_before=1, update_after=1, delete=removed)

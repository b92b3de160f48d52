"""The lake's REST catalog as other engines use it: PyIceberg and DuckDB attach by URL, read, and commit beside the lake's writer."""

import threading
import time

import pyarrow
import pytest
from engines import duckdb_connection
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchNamespaceError,
    NoSuchTableError,
)
from server import Server

COLUMNS = ("id", "v")


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "data", "--auto-shard", "primary-key", shards=2).start()
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    for id in range(10):
        server.sql("INSERT INTO t VALUES (?, ?)", id, f"v{id}")
    server.flush()
    yield server
    if server.process.poll() is None:
        assert server.stop() == 0, server.log_tail()
    assert b"panicked" not in server.log_path.read_bytes(), server.log_tail()


@pytest.fixture
def catalog(server) -> RestCatalog:
    return RestCatalog("lake", uri=f"http://{server.http_address}")


def rows(table, **scan) -> dict:
    found = table.scan(selected_fields=COLUMNS, **scan).to_arrow()
    ids = found.column("id").to_pylist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, found.column("v").to_pylist(), strict=True))


def foreign(*ids: int) -> pyarrow.Table:
    """Rows of no shard; the partition column must be named."""
    never = pyarrow.nulls(len(ids), pyarrow.timestamp("us", "UTC"))
    return pyarrow.table({"id": list(ids), "v": ["foreign"] * len(ids), "_committed_at": never})


def test_tables_are_found_and_read(server, catalog):
    assert catalog.list_namespaces() == [("default",)]
    assert catalog.list_namespaces("default") == []
    assert catalog.namespace_exists("default") and not catalog.namespace_exists("other")
    assert sorted(catalog.list_tables("default")) == [("default", "t"), ("default", "t__changes")]
    assert catalog.list_views("default") == []
    assert catalog.table_exists("default.t") and not catalog.table_exists("default.u")
    table = catalog.load_table("default.t")
    assert rows(table) == {id: f"v{id}" for id in range(10)}
    assert table.metadata_location.endswith(".metadata.json")

    server.sql("UPDATE t SET v = 'new' WHERE id = 3")
    server.flush()
    assert rows(table)[3] == "v3", "a table that was loaded stays as it was"
    assert rows(table.refresh())[3] == "new"
    only_named = RestCatalog("lake", uri=f"http://{server.http_address}", **{"snapshot-loading-mode": "refs"})
    assert len(only_named.load_table("default.t").metadata.snapshots) == 1 < len(table.metadata.snapshots)


def test_what_is_not_there_and_what_is_refused(server, catalog):
    with pytest.raises(NoSuchTableError, match="nothing"):
        catalog.load_table("default.nothing")
    with pytest.raises(NoSuchTableError):
        catalog.load_table(("default", "..", "t"))
    with pytest.raises(NoSuchNamespaceError, match="other"):
        catalog.list_tables("other")
    http = server.http
    for path in ("/v1/namespaces/default/tables/..%2Ft", "/v1/namespaces/default/tables/t%2F..%2Ft"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NoSuchTableException")
    answer = http.post("/v1/namespaces/default/tables", json={"name": "mine", "schema": {}})
    assert (answer.status_code, answer.json()["error"]["type"]) == (406, "UnsupportedOperationException")
    assert http.request("DELETE", "/v1/namespaces/default/tables/t").status_code == 406
    for body in (b"", b"{}", b'{"requirements": [], "updates": [{"action": "explode"}]}'):
        answer = http.post("/v1/namespaces/default/tables/t", content=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "BadRequestException"), body
    answer = http.get("/v1/namespaces/default/tables/t?snapshots=some")
    assert answer.status_code == 400


@pytest.mark.parametrize("update", [
    {"action": "set-location", "location": "file:///elsewhere"},
    {"action": "upgrade-format-version", "format-version": 3},
    {"action": "set-properties", "updates": {"dosql.key": "[]"}},
    {"action": "remove-properties", "removals": ["dosql.source"]},
    {"action": "add-spec", "spec": {"fields": []}},
])
def test_the_writer_is_not_led_astray(server, catalog, update):
    updates = [update] + ([{"action": "set-default-spec", "spec-id": -1}] if update["action"] == "add-spec" else [])
    answer = server.http.post("/v1/namespaces/default/tables/t", json={"requirements": [], "updates": updates})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "BadRequestException"), answer.text
    server.sql("INSERT INTO t VALUES (100, 'after')")
    server.flush()
    assert rows(catalog.load_table("default.t"))[100] == "after"


def test_main_cannot_be_set_back(server, catalog):
    table = catalog.load_table("default.t")
    old = table.current_snapshot().snapshot_id
    server.sql("INSERT INTO t VALUES (100, 'kept')")
    server.flush()
    back = {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": old}
    answer = server.http.post("/v1/namespaces/default/tables/t", json={"requirements": [], "updates": [back]})
    assert answer.status_code == 400 and "main" in answer.json()["error"]["message"]
    assert rows(table.refresh())[100] == "kept"


def test_branches_and_tags(server, catalog):
    table = catalog.load_table("default.t")
    first = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_tag(first, "main@1").create_branch(first, "audit").commit()
    server.sql("DELETE FROM t WHERE id < 5")
    server.flush()
    table = table.refresh()
    assert set(table.refs()) == {"main", "main@1", "audit"}, "the writer keeps what others named"
    assert rows(table) == {id: f"v{id}" for id in range(5, 10)}
    assert rows(table, snapshot_id=table.snapshot_by_name("main@1").snapshot_id) == {id: f"v{id}" for id in range(10)}
    # Clean-up keeps what is named.
    done = server.http.post("/admin/cleanup", json={"mode": "deep"}).json()
    assert done["errors"] == []
    assert len(rows(table.refresh(), snapshot_id=first)) == 10
    table.manage_snapshots().remove_tag("main@1").remove_branch("audit").commit()
    assert set(table.refresh().refs()) == {"main"}


def test_another_program_appends_and_the_writer_goes_on(server, catalog):
    for name in ("default.t", "default.t__changes"):
        table = catalog.load_table(name)
        before = table.scan().to_arrow().num_rows
        table.append(foreign(1000, 1001))
        assert table.scan().to_arrow().num_rows == before + 2
    server.sql("UPDATE t SET v = 'new' WHERE id < 3")
    server.sql("DELETE FROM t WHERE id = 9")
    server.sql("INSERT INTO t VALUES (50, 'more')")
    server.flush()
    expected = {id: "new" if id < 3 else f"v{id}" for id in range(9)} | {50: "more", 1000: "foreign", 1001: "foreign"}
    assert rows(catalog.load_table("default.t")) == expected
    log = catalog.load_table("default.t__changes").scan(selected_fields=("_operation",)).to_arrow()
    operations = log.column("_operation").to_pylist()
    assert {name: operations.count(name) for name in set(operations)} == {
        "insert": 11, "update_before": 3, "update_after": 3, "delete": 1, None: 2,
    }
    server.http.post("/admin/compact", json={"mode": "full"})
    assert rows(catalog.load_table("default.t")) == expected
    server.sql("UPDATE t SET v = 'again' WHERE id = 1")
    server.kill()
    server.start()
    server.flush()
    catalog = RestCatalog("lake", uri=f"http://{server.http_address}")
    assert rows(catalog.load_table("default.t")) == expected | {1: "again"}


def test_a_stale_commit_is_refused(server, catalog):
    table, other = catalog.load_table("default.t"), catalog.load_table("default.t")
    table.append(foreign(1000))
    with table.transaction() as transaction:
        transaction.set_properties(owner="me")
    assert catalog.load_table("default.t").properties["owner"] == "me"
    requirement = {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": other.current_snapshot().snapshot_id}
    update = {"action": "set-properties", "updates": {"owner": "you"}}
    answer = server.http.post(
        "/v1/namespaces/default/tables/t", json={"requirements": [requirement], "updates": [update]},
    )
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "CommitFailedException")
    assert catalog.load_table("default.t").properties["owner"] == "me"


def test_writers_at_once(server, catalog):
    """Two programs append while the lake's writer commits: each row is there once, whoever had to begin again."""
    appended, failures = [], []

    def append(first: int) -> None:
        own = RestCatalog("lake", uri=f"http://{server.http_address}")
        for id in range(first, first + 6):
            for _ in range(100):
                try:
                    own.load_table("default.t").append(foreign(id))
                    appended.append(id)
                    break
                except CommitFailedException as refusal:
                    failures.append(refusal)

    programs = [threading.Thread(target=append, args=(first,)) for first in (1000, 2000)]
    for program in programs:
        program.start()
    expected = {id: f"v{id}" for id in range(10)}
    id = 100
    while any(program.is_alive() for program in programs) or id < 110:
        server.sql("INSERT INTO t VALUES (?, 'own')", id)
        server.sql("UPDATE t SET v = ? WHERE id = ?", f"new {id}", id % 10)
        expected |= {id: "own", id % 10: f"new {id}"}
        server.flush()
        id += 1
        # A program that reads, writes and commits slower than this flushes would never have its turn.
        before, until = len(appended), time.monotonic() + 5
        while len(appended) == before and any(program.is_alive() for program in programs) and time.monotonic() < until:
            time.sleep(0.01)
    assert sorted(appended) == [*range(1000, 1006), *range(2000, 2006)]
    server.flush()
    assert rows(catalog.load_table("default.t")) == expected | dict.fromkeys(appended, "foreign")
    print(f"{len(failures)} commits were refused and tried again")


def test_duckdb_attaches(server):
    connection = duckdb_connection("httpfs", "avro", "iceberg")
    with connection:
        connection.execute(
            f"ATTACH 'default' AS lake (TYPE iceberg, ENDPOINT 'http://{server.http_address}', AUTHORIZATION_TYPE 'none')"
        )
        assert dict(connection.execute("SELECT id, v FROM lake.default.t").fetchall()) == {
            id: f"v{id}" for id in range(10)
        }
        assert connection.execute("SELECT count(*) FROM lake.default.t__changes").fetchone() == (10,)
        server.sql("DELETE FROM t WHERE id = 0")
        server.flush()
        assert connection.execute("SELECT count(*) FROM lake.default.t").fetchone() == (9,)

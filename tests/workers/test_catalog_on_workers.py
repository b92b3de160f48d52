"""The lake's tables in a REST catalog that a Worker's lake writer reaches by the platform's `fetch`."""

import socket
import time

import pytest
from rest_catalog import RestCatalogServer
from server import SqlError
from worker import Worker

SETTINGS = {"AUTO_SHARD": "primary-key", "CDC_RETRY_DELAY_MS": 50}
# How long the writer waits for an answer.
PATIENCE = 30


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    directory = tmp_path_factory.mktemp("catalog")
    catalog = RestCatalogServer(directory, f"file://{directory}/lake/in-the-catalog")
    catalog.directory = directory
    yield catalog
    catalog.stop()


@pytest.fixture(scope="module")
def worker(catalog):
    worker = Worker(catalog.directory, shards=2, settings={**SETTINGS, **catalog.settings()}).start()
    yield worker
    worker.stop()


@pytest.fixture
def table(worker, catalog, request):
    """A table of the test's own, with ten rows that are in the lake."""
    name = request.node.name.translate(str.maketrans("[ ", "__", "]"))
    worker.sql(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, v TEXT)")
    for id in range(10):
        worker.sql(f"INSERT INTO {name} VALUES (?, ?)", id, f"v{id}")
    worker.flush()
    yield name
    catalog.fault = lambda method, path, body: None


def rows(worker, catalog, table, columns=("id", "v")) -> dict:
    worker.fetch_lake()
    found = catalog.sql.load_table(("mine", table)).scan(selected_fields=columns).to_arrow()
    ids = found.column("id").to_pylist()
    assert len(set(ids)) == len(ids)
    values = [found.column(name).to_pylist() for name in columns[1:]]
    return dict(zip(ids, values[0] if len(values) == 1 else zip(*values, strict=True), strict=True))


def operations(worker, catalog, table) -> dict:
    worker.fetch_lake()
    log = catalog.sql.load_table(("mine", f"{table}__changes")).scan(selected_fields=("_operation",)).to_arrow()
    names = log.column("_operation").to_pylist()
    return {name: names.count(name) for name in set(names)}


def flush_to_the_end(worker, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            worker.flush()
            return
        except SqlError:
            assert time.monotonic() < until, worker.log_tail()
            time.sleep(0.1)


def test_a_table_lives_in_the_catalog(worker, catalog, table):
    assert rows(worker, catalog, table) == {id: f"v{id}" for id in range(10)}
    worker.sql(f"UPDATE {table} SET v = 'new' WHERE id < 3")
    worker.sql(f"DELETE FROM {table} WHERE id = 9")
    worker.flush()
    worker.sql(f"ALTER TABLE {table} ADD COLUMN w REAL")
    worker.sql(f"INSERT INTO {table} VALUES (10, 'ten', 1.5)")
    worker.flush()
    expected = {id: ("new" if id < 3 else f"v{id}", None) for id in range(9)} | {10: ("ten", 1.5)}
    assert rows(worker, catalog, table, ("id", "v", "w")) == expected
    assert operations(worker, catalog, table) == {"insert": 11, "update_before": 3, "update_after": 3, "delete": 1}
    compacted = worker.http.post("/admin/compact", json={"tables": [table], "mode": "full"}).json()
    assert compacted["results"], compacted
    assert rows(worker, catalog, table, ("id", "v", "w")) == expected
    assert catalog.warehouses == {"the lake"}
    status = {found["name"]: found for found in worker.http.get("/status").json()["lake"]["tables"]}
    assert status[table]["namespace"] == "mine" and "/in-the-catalog/" in status[table]["location"]


def test_the_writer_comes_back_and_tokens_end(worker, catalog, table):
    worker.evict("lake/default")
    worker.sql(f"UPDATE {table} SET v = 'new' WHERE id = 3")
    worker.flush()
    catalog.tokens.clear()
    worker.sql(f"DELETE FROM {table} WHERE id = 9")
    worker.flush()
    assert rows(worker, catalog, table) == {id: "new" if id == 3 else f"v{id}" for id in range(9)}


@pytest.mark.parametrize("fault", ["before", "after", "hang up", "no answer"])
def test_commits_whose_outcome_is_not_known(worker, catalog, table, fault):
    """Whatever became of a commit, its rows are there once."""
    struck = []

    def strike(method: str, path: str, body: bytes) -> str | None:
        if method != "POST" or f"/tables/{table}" not in path or struck.count(path) > 1:
            return None
        struck.append(path)
        if fault != "no answer":
            return fault
        if len(struck) > 1:
            return None
        # It is carried out, and by the time that it would be answered the writer is gone.
        time.sleep(PATIENCE + 2)
        return "after"

    catalog.fault = strike
    worker.sql(f"UPDATE {table} SET v = 'new' WHERE id < 3")
    worker.sql(f"INSERT INTO {table} VALUES (10, 'ten')")
    begun = time.monotonic()
    flush_to_the_end(worker, 2 * PATIENCE)
    assert len(struck) >= 2 and (time.monotonic() - begun > PATIENCE) == (fault == "no answer")
    expected = {id: "new" if id < 3 else f"v{id}" for id in range(10)} | {10: "ten"}
    assert rows(worker, catalog, table) == expected
    assert operations(worker, catalog, table) == {"insert": 11, "update_before": 3, "update_after": 3}


def test_what_is_told_of_a_catalog_that_is_not_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    settings = {**SETTINGS, "DOLAKE_CATALOG_URI": nowhere, "DOLAKE_CATALOG_TOKEN": "s3cret"}
    worker = Worker(tmp_path, shards=1, settings=settings).start()
    try:
        worker.sql("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        worker.sql("INSERT INTO t VALUES (1)")
        with pytest.raises(SqlError) as refusal:
            worker.flush()
        # The lake's writer does not come up without its catalog; its log says why.
        assert refusal.value.code == "DEADLINE_EXCEEDED" and "s3cret" not in refusal.value.message
        assert worker.rows("SELECT id FROM t") == [(1,)]
    finally:
        worker.stop()

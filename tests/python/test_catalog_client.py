"""The lake's tables in a REST catalog that is not DoSQL's: it decides which metadata is current, and other programs commit to it."""

import threading
import time

import pyarrow
import pytest
from bucket import Bucket
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import CommitTableRequest
from rest_catalog import CLIENT_ID, CLIENT_SECRET, RestCatalogServer
from server import Server, SqlError

COLUMNS = ("id", "v")


@pytest.fixture
def catalog(tmp_path):
    catalog = RestCatalogServer(tmp_path, f"file://{tmp_path}/data/lake/in-the-catalog")
    yield catalog
    catalog.stop()


@pytest.fixture
def start(tmp_path, catalog):
    """Starts a server whose tables are in the catalog."""
    started = []

    def start(**settings) -> Server:
        settings = {"CDC_RETRY_DELAY_MS": 50, **catalog.settings(), **settings}
        started.append(Server(tmp_path / "data", "--auto-shard", "primary-key", shards=2, settings=settings).start())
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            assert server.stop() == 0, server.log_tail()
        assert b"panicked" not in server.log_path.read_bytes(), server.log_tail()


@pytest.fixture
def server(start) -> Server:
    server = start()
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    for id in range(10):
        server.sql("INSERT INTO t VALUES (?, ?)", id, f"v{id}")
    server.flush()
    return server


def client(catalog: RestCatalogServer) -> RestCatalog:
    return RestCatalog("b", uri=catalog.uri, credential=f"{CLIENT_ID}:{CLIENT_SECRET}", warehouse="the lake")


def table(catalog: RestCatalogServer, name: str = "t"):
    return client(catalog).load_table(("mine", name))


def rows(catalog: RestCatalogServer, columns=COLUMNS) -> dict:
    found = table(catalog).scan(selected_fields=columns).to_arrow()
    ids = found.column("id").to_pylist()
    assert len(set(ids)) == len(ids)
    values = [found.column(name).to_pylist() for name in columns[1:]]
    return dict(zip(ids, values[0] if len(values) == 1 else zip(*values, strict=True), strict=True))


def operations(catalog: RestCatalogServer) -> dict:
    log = table(catalog, "t__changes").scan(selected_fields=("_operation",)).to_arrow().column("_operation").to_pylist()
    return {name: log.count(name) for name in set(log)}


def flush_to_the_end(server: Server, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            server.flush()
            return
        except SqlError:
            assert time.monotonic() < until, server.log_tail()
            time.sleep(0.1)


def forget_the_writer(server: Server) -> None:
    files = list(server.data_dir.glob("**/lake/default.sqlite*"))
    assert files
    for file in files:
        file.unlink()


def foreign(*ids: int) -> pyarrow.Table:
    never = pyarrow.nulls(len(ids), pyarrow.timestamp("us", "UTC"))
    return pyarrow.table({"id": list(ids), "v": ["foreign"] * len(ids), "_committed_at": never})


def test_a_table_lives_in_the_catalog(server, catalog, tmp_path):
    assert rows(catalog) == {id: f"v{id}" for id in range(10)}
    server.sql("UPDATE t SET v = 'new' WHERE id < 3")
    server.sql("DELETE FROM t WHERE id = 9")
    server.flush()
    server.sql("ALTER TABLE t ADD COLUMN w REAL")
    server.sql("ALTER TABLE t RENAME COLUMN v TO v2")
    server.sql("INSERT INTO t VALUES (10, 'ten', 1.5)")
    server.flush()
    expected = {id: ("new" if id < 3 else f"v{id}", None) for id in range(9)} | {10: ("ten", 1.5)}
    assert rows(catalog, ("id", "v2", "w")) == expected
    assert operations(catalog) == {"insert": 11, "update_before": 3, "update_after": 3, "delete": 1}
    # Compaction and clean-up are commits like others, and leave what the catalog wrote alone.
    before = len(table(catalog).metadata.snapshots)
    compacted = server.http.post("/admin/compact", json={"mode": "full"}).json()
    assert compacted["results"], compacted
    assert rows(catalog, ("id", "v2", "w")) == expected
    assert len(table(catalog).metadata.snapshots) > before
    cleaned = server.http.post("/admin/cleanup", json={"mode": "deep"}).json()
    assert cleaned["errors"] == []
    assert rows(catalog, ("id", "v2", "w")) == expected
    # Answers come from the lake as well, by the catalog's metadata.
    answer = server.post_sql({"sql": "SELECT count(*) FROM t", "readPreference": "analytics"})
    assert answer["rows"] == [[10]]
    # Nobody but the catalog knows of versions.
    lake = tmp_path / "data" / "lake"
    assert not (lake / "warehouse").exists()
    assert not list(lake.glob("**/version-hint.text"))
    assert catalog.warehouses == {"the lake"}
    status = {t["name"]: t for t in server.http.get("/status").json()["lake"]["tables"]}
    assert status["t"]["namespace"] == "mine" and "/in-the-catalog/" in status["t"]["location"]
    # The catalog that the server serves is of the same tables, and sends those who commit to the other one.
    own = RestCatalog("own", uri=f"http://{server.http_address}").load_table("default.t")
    assert own.metadata_location == table(catalog).metadata_location
    refusal = server.http.post("/v1/namespaces/default/tables/t", json={"requirements": [], "updates": []})
    assert refusal.status_code == 406 and catalog.uri in refusal.text


def test_partitions_and_orders(server, catalog):
    server.sql("ALTER LAKE ON t SET partition_by = 'bucket(4, id)', sort_by = 'v DESC'")
    server.sql("UPDATE t SET v = v || '!' WHERE id > 4")
    server.flush()
    assert rows(catalog) == {id: f"v{id}" + ("!" if id > 4 else "") for id in range(10)}
    found = table(catalog)
    assert [field.name for field in found.spec().fields] == ["id_bucket"]
    assert [field.source_id for field in found.sort_order().fields] == [found.schema().find_field("v").field_id]


@pytest.mark.parametrize("fault", ["before", "after", "hang up"])
def test_commits_whose_outcome_is_not_known(server, catalog, fault):
    """Whatever became of a commit, its rows are there once."""
    struck = []

    def strike(method: str, path: str, body: bytes) -> str | None:
        # Each of the first commits to each table, and the first look at what became of it.
        if method == "POST" and "/tables/" in path and struck.count(path) < 2:
            struck.append(path)
            return fault
        if method == "GET" and path in struck and struck.count(("look", path)) < 1:
            struck.append(("look", path))
            return "before"
        return None

    catalog.fault = strike
    server.sql("UPDATE t SET v = 'new' WHERE id < 3")
    server.sql("INSERT INTO t VALUES (10, 'ten')")
    flush_to_the_end(server)
    assert len(struck) >= 4
    assert rows(catalog) == {id: "new" if id < 3 else f"v{id}" for id in range(10)} | {10: "ten"}
    assert operations(catalog) == {"insert": 11, "update_before": 3, "update_after": 3}


def test_a_commit_that_is_late(server, catalog):
    """A commit that was lost reaches the catalog when the writer, who gave it up, makes its next one. It takes effect, and has its
    files; the next one is refused, and made again of what is left. One that is later still is refused."""
    bodies = []

    def hold(method: str, path: str, body: bytes) -> str | None:
        if method != "POST" or not path.endswith("/tables/t"):
            return None
        bodies.append(body)
        if len(bodies) == 1:
            return "before"
        if len(bodies) == 2:
            late(bodies[0])
        return None

    def late(body: bytes) -> None:
        commit = CommitTableRequest.model_validate_json(body)
        catalog.sql.commit_table(catalog.sql.load_table("mine.t"), commit.requirements, commit.updates)

    catalog.fault = hold
    server.sql("INSERT INTO t VALUES (10, 'ten')")
    flush_to_the_end(server)
    expected = {id: f"v{id}" for id in range(10)} | {10: "ten"}
    assert rows(catalog) == expected
    server.sql("DELETE FROM t WHERE id = 10")
    flush_to_the_end(server)
    del expected[10]
    assert rows(catalog) == expected and len(bodies) > 2
    for body in bodies:
        with pytest.raises(CommitFailedException):
            late(body)
    assert rows(catalog) == expected


def test_another_program_is_faster(server, catalog):
    """It commits between the writer's look at the table and its commit, which is refused: both survive."""
    others = iter(range(1000, 1003))

    def commit_first(method: str, path: str, body: bytes) -> None:
        if method == "POST" and path.endswith("/tables/t") and (id := next(others, None)):
            catalog.sql.load_table("mine.t").append(foreign(id))

    catalog.fault = commit_first
    server.sql("UPDATE t SET v = 'new' WHERE id < 3")
    server.sql("DELETE FROM t WHERE id = 9")
    flush_to_the_end(server)
    expected = {id: "new" if id < 3 else f"v{id}" for id in range(9)} | dict.fromkeys(range(1000, 1003), "foreign")
    assert rows(catalog) == expected
    server.sql("INSERT INTO t VALUES (50, 'more')")
    server.flush()
    assert rows(catalog) == expected | {50: "more"}


def test_snapshots_that_others_expire(server, catalog):
    """A program that looks after the catalog rewrites the table and expires the snapshots that say how far the shards were taken in."""
    found = table(catalog, "t__changes")
    found.append(pyarrow.table({"_operation": ["foreign"], "_committed_at": pyarrow.nulls(1, pyarrow.timestamp("us", "UTC"))}))
    found = table(catalog, "t__changes")
    newest = found.current_snapshot().snapshot_id
    old = [snapshot.snapshot_id for snapshot in found.metadata.snapshots if snapshot.snapshot_id != newest]
    found.maintenance.expire_snapshots().by_ids(old).commit()
    assert [snapshot.snapshot_id for snapshot in table(catalog, "t__changes").metadata.snapshots] == [newest]
    # Everything is delivered again.
    server.kill()
    forget_the_writer(server)
    (server.data_dir / "lake" / "lake-positions.json").write_text("{}")
    server.start()
    server.sql("INSERT INTO t VALUES (10, 'ten')")
    server.flush()
    assert operations(catalog) == {"insert": 11, "foreign": 1}


def test_kill9(server, catalog):
    expected = {id: f"v{id}" for id in range(10)}
    written = 100
    for round in range(6):
        stop = threading.Event()
        failed = []

        def write():
            nonlocal written
            while not stop.is_set():
                try:
                    server.sql("INSERT INTO t VALUES (?, ?)", written, f"w{written}")
                except Exception as refusal:  # the server is killed under it
                    failed.append(refusal)
                    return
                expected[written] = f"w{written}"
                written += 1

        writer = threading.Thread(target=write)
        writer.start()
        flushes = threading.Thread(target=lambda: _quietly(server.flush))
        time.sleep(0.1)
        flushes.start()
        # At another moment of the flush each time: when it asks the catalog for the nth time.
        asked = len(catalog.requests)
        until = time.monotonic() + 5
        while len(catalog.requests) < asked + 1 + round and time.monotonic() < until:
            time.sleep(0.001)
        server.kill()
        stop.set()
        writer.join()
        flushes.join()
        server.start()
        # What was not answered may have been written.
        if server.rows("SELECT 1 FROM t WHERE id = ?", written):
            expected[written] = f"w{written}"
        written += 1
        flush_to_the_end(server)
        assert rows(catalog) == expected
        assert operations(catalog) == {"insert": len(expected)}


def _quietly(work) -> None:
    try:
        work()
    except Exception:  # the server is killed under it
        pass


def test_the_writers_database_is_lost(server, catalog):
    client(catalog).create_table(("mine", "others"), table(catalog).schema())
    assert server.stop() == 0
    forget_the_writer(server)
    server.start()
    server.sql("UPDATE t SET v = 'new' WHERE id = 3")
    server.flush()
    assert rows(catalog) == {id: "new" if id == 3 else f"v{id}" for id in range(10)}
    names = {t["name"] for t in server.http.get("/status").json()["lake"]["tables"]}
    assert names == {"t", "t__changes"}


def test_tokens_end(start, catalog):
    server = start()
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    server.sql("INSERT INTO t VALUES (1, 'one')")
    server.flush()
    catalog.tokens.clear()
    server.sql("INSERT INTO t VALUES (2, 'two')")
    server.flush()
    assert rows(catalog) == {1: "one", 2: "two"}


def test_what_is_told_of_a_catalog_that_refuses(server, catalog):
    assert server.stop() == 0
    server.environment.update(catalog.settings(DOLAKE_CATALOG_CREDENTIAL="writer:wrong"))
    server.start()
    server.sql("UPDATE t SET v = 'new' WHERE id = 1")
    with pytest.raises(SqlError) as refusal:
        server.flush()
    assert "/v1/oauth/tokens" in refusal.value.message and "wrong" not in refusal.value.message
    assert server.stop() == 0
    server.environment.update(catalog.settings())
    server.start()
    flush_to_the_end(server)
    assert rows(catalog)[1] == "new"


def test_a_location_elsewhere_is_refused(start, catalog, tmp_path):
    catalog.sql.properties["warehouse"] = f"file://{tmp_path}/elsewhere"
    server = start()
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    server.sql("INSERT INTO t VALUES (1, 'one')")
    with pytest.raises(SqlError) as refusal:
        server.flush()
    assert refusal.value.code == "UNSUPPORTED"
    for place in ("/elsewhere/mine/t", f"file://{tmp_path}/data/lake/"):
        assert place in refusal.value.message


def test_files_in_a_bucket(start, catalog):
    """As R2's catalog has it: the catalog by HTTP, the files by S3."""
    bucket = Bucket()
    try:
        catalog.sql.properties.update(bucket.reader_properties(), warehouse="s3://lake/warehouse")
        server = start(**bucket.settings())
        server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
        server.sql("INSERT INTO t VALUES (1, 'one'), (2, 'two')")
        server.flush()
        server.sql("DELETE FROM t WHERE id = 1")
        server.flush()
        found = catalog.sql.load_table("mine.t").scan(selected_fields=COLUMNS).to_arrow().to_pylist()
        assert found == [{"id": 2, "v": "two"}]
        assert server.stop() == 0
    finally:
        bucket.stop()

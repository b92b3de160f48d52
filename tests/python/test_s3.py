"""The lake in a bucket: written by the server, read by engines, while the way to the bucket fails."""

import threading
import time

import pytest
from bucket import BUCKET, Bucket
from server import Server, SqlError


@pytest.fixture
def bucket():
    bucket = Bucket()
    yield bucket
    bucket.stop()


@pytest.fixture
def start(tmp_path, bucket):
    """Starts a server on the bucket."""
    started = []

    def start(prefix: str = "", name: str = "data", **settings) -> Server:
        settings = {"CDC_RETRY_DELAY_MS": 50, **bucket.settings(prefix), **settings}
        started.append(Server(tmp_path / name, "--auto-shard", "primary-key", shards=2, settings=settings).start())
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            assert server.stop() == 0, server.log_tail()


def mirror(bucket: Bucket, prefix: str = "") -> dict:
    table = bucket.table("t", prefix).scan(selected_fields=("id", "v")).to_arrow()
    assert table.num_rows == len(set(table.column("id").to_pylist()))
    return dict(zip(table.column("id").to_pylist(), table.column("v").to_pylist(), strict=True))


def test_engines_read_the_bucket(bucket, start):
    server = start("some/where")
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    for id in range(20):
        server.sql("INSERT INTO t VALUES (?, ?)", id, f"v{id}")
    server.flush()
    server.sql("UPDATE t SET v = 'new' WHERE id < 5")
    server.sql("DELETE FROM t WHERE id >= 15")
    server.flush()
    expected = {id: "new" if id < 5 else f"v{id}" for id in range(15)}
    assert mirror(bucket, "some/where") == expected
    with bucket.duckdb() as connection:
        url = f"s3://{BUCKET}/some/where/warehouse/default/t"
        assert dict(connection.execute(f"SELECT id, v FROM iceberg_scan('{url}')").fetchall()) == expected
        log = connection.execute(f"SELECT count(*) FROM iceberg_scan('{url}__changes')").fetchone()
    assert log == (20 + 2 * 5 + 5,)
    assert all(name.startswith("some/where/") for name in bucket.names())
    assert not (server.data_dir / "lake" / "warehouse").exists()
    location = server.http.get("/status").json()["lake"]["tables"][0]["location"]
    assert location.startswith(f"s3://{BUCKET}/some/where/warehouse/default/")

    results = server.http.post("/admin/compact", json={"mode": "full"}).json()["results"]
    assert {result["table"] for result in results} == {"t", "t__changes"}
    assert mirror(bucket, "some/where") == expected


@pytest.mark.parametrize("fault", ["refuse", "deaf"])
def test_the_way_to_the_bucket_fails(bucket, start, fault):
    """Connections that are refused, and requests that take effect and whose answers are lost: nothing is lost or doubled."""
    server = start(DOLAKE_EVENT_THRESHOLD=7, DOLAKE_FLUSH_INTERVAL_MS=50)
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    cut_short = threading.Event()

    def cut():
        while not cut_short.is_set():
            bucket.line.change(fault)
            time.sleep(0.15)
            bucket.line.change("pass")
            time.sleep(0.35)

    weather = threading.Thread(target=cut)
    weather.start()
    expected = {}
    try:
        for id in range(300):
            server.sql("INSERT INTO t VALUES (?, ?)", id, f"v{id}")
            expected[id] = f"v{id}"
            if id % 3 == 0:
                server.sql("UPDATE t SET v = 'new' WHERE id = ?", id // 2)
                expected[id // 2] = "new"
            time.sleep(0.01)
    finally:
        cut_short.set()
        weather.join()
    assert bucket.line.cut > 0, "the fault did not strike"
    server.kill()
    server.start()
    server.flush()
    assert mirror(bucket) == expected
    log = bucket.table("t__changes").scan(selected_fields=("_shard", "_lsn", "_ordinal", "_operation")).to_arrow()
    entries = log.to_pylist()
    assert len({tuple(entry.values()) for entry in entries}) == len(entries)
    counts = {name: sum(entry["_operation"] == name for entry in entries) for name in ("insert", "update_after")}
    assert counts == {"insert": 300, "update_after": 100}


def test_a_bucket_out_of_reach_holds_up_no_write(bucket, start):
    server = start()
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    bucket.line.change("refuse")
    server.sql("INSERT INTO t VALUES (1, 'one')")
    assert server.rows("SELECT v FROM t") == [("one",)]
    with pytest.raises(SqlError) as refusal:
        server.flush()
    assert refusal.value.retryable and refusal.value.code in ("OBJECT_STORE", "DEADLINE_EXCEEDED")
    bucket.line.change("pass")
    server.flush()
    assert mirror(bucket) == {1: "one"}


def test_a_store_that_ignores_conditions_is_not_written_to(bucket, start, monkeypatch):
    from moto.s3 import responses

    ignored = responses.S3Response.put_object

    def put_object(self):
        self.headers = {name: value for name, value in self.headers.items() if name.lower() != "if-none-match"}
        return ignored(self)

    monkeypatch.setattr(responses.S3Response, "put_object", put_object)
    server = start(DOLAKE_FLUSH_INTERVAL_MS=20)
    server.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    server.sql("INSERT INTO t VALUES (1, 'one')")
    deadline = time.monotonic() + 30
    while b"does not honour If-None-Match" not in server.log_path.read_bytes():
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.05)
    assert not [name for name in bucket.names() if name.endswith(".metadata.json")]


def test_settings_are_checked(bucket, start):
    with pytest.raises(RuntimeError, match="DOLAKE_S3_ENDPOINT.*DOLAKE_S3_ALLOW_HTTP"):
        start(DOLAKE_S3_ALLOW_HTTP="false")
    with pytest.raises(RuntimeError, match="DOLAKE_S3_BUCKET"):
        start(DOLAKE_S3_BUCKET="a/b")

"""The change stream of a Durable Object: credit, durable subscriptions, heartbeats, and subscribers that stay while their object is
put aside."""

import json
import time

import pytest
from server import next_frame
from websockets.exceptions import ConnectionClosed, InvalidStatus
from worker import Worker

# How long an object must be idle until workerd puts it aside, and what we allow for it.
ASIDE = 10
PATIENCE = 4

# The change stream looks for news by itself as seldom as can be, so that its object has nothing to do.
SETTINGS = {"AUTO_SHARD": "primary-key", "CDC_BATCH_TIMEOUT_MS": 86_400_000, "DOLAKE_FLUSH_INTERVAL_MS": 86_400_000}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    worker = Worker(tmp_path_factory.mktemp("changes"), shards=2, settings=SETTINGS).start()
    yield worker
    worker.stop()


@pytest.fixture
def table(worker, request):
    """A table of the test's own, with one row."""
    name = request.node.name.replace("[", "_").rstrip("]")
    worker.sql(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, v TEXT)")
    return name


def insert(worker, table, *ids):
    for id in ids:
        worker.sql(f"INSERT INTO {table} VALUES (?, 'v')", id)


def ids(frame):
    return [change["after"]["id"] for change in frame["changes"]]


def silent(live, seconds=0.7):
    try:
        raise AssertionError(f"nothing was to come, but {live.recv(timeout=seconds)!r} did")
    except TimeoutError:
        pass


def grant(live, **credit):
    live.send(json.dumps({"credit": credit}))


def test_nothing_is_sent_without_credit(worker, table):
    with worker.subscribe("latest", table, credit_messages=0, heartbeat_ms=100) as live:
        insert(worker, table, 1, 2, 3)
        silent(live)
        grant(live, messages=2)
        seen = ids(next_frame(live)) + ids(next_frame(live))
        silent(live)
        grant(live, messages=1, bytes=1)
        seen += ids(next_frame(live))
        assert sorted(seen) == [1, 2, 3]
        silent(live)


def test_heartbeats_come_and_tell_where_the_stream_is(worker, table):
    with worker.subscribe("latest", table, heartbeat_ms=500) as live:
        first, second = next_frame(live), next_frame(live)
        assert first["heartbeat"] and second["heartbeat"]
        assert 400 <= second["ts_ms"] - first["ts_ms"] < 3_000
        insert(worker, table, 1)
        frame = next_frame(live)
        while frame.get("heartbeat"):
            frame = next_frame(live)
        assert ids(frame) == [1]
        assert next_frame(live)["position"] == frame["position"]


def test_a_durable_subscription_goes_on_after_what_was_acknowledged(worker, table):
    with worker.subscribe("latest", table, name=table) as live:
        insert(worker, table, 1)
        first = next_frame(live)
        insert(worker, table, 2)
        next_frame(live)
        live.send(json.dumps({"ack": first["position"]}))
        deadline = time.monotonic() + 10
        while worker.http.get("/cdc/subscriptions").json()["subscriptions"][0]["behind"] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    worker.evict("cdc/default")
    with worker.subscribe("earliest", table, name=table) as again:
        second = next_frame(again)
        assert ids(second) == [2]
    answer = worker.http.post(f"/cdc/subscriptions/{table}/ack", json={"ack": second["position"]})
    assert (answer.status_code, answer.json()["position"]) == (200, second["position"])
    with pytest.raises(InvalidStatus) as refused:
        worker.subscribe("latest", "other", name=table).close()
    assert refused.value.response.status_code == 409 and b"ALREADY_EXISTS" in refused.value.response.body
    assert worker.http.delete(f"/cdc/subscriptions/{table}").json()["name"] == table
    assert worker.http.get("/cdc/subscriptions").json() == {"subscriptions": []}
    assert worker.http.delete(f"/cdc/subscriptions/{table}").status_code == 404
    assert worker.http.put(f"/cdc/subscriptions/{table}").status_code == 405


def test_what_may_not_be_said_ends_the_stream(worker, table):
    for said in ["hello", json.dumps({"ack": "shard-0:1"}), b"\xff", "x" * (1 << 20) + "x"]:
        with worker.subscribe("latest", table) as live:
            live.send(said)
            assert json.loads(live.recv(timeout=30))["error"]["code"] == "INVALID_REQUEST"
            with pytest.raises(ConnectionClosed) as closed:
                live.recv(timeout=30)
            assert closed.value.rcvd.code == 1008, closed.value
    assert worker.http.get("/cdc?from=latest").json()["error"]["code"] == "INVALID_REQUEST"


def aside(worker):
    """How often the change stream's object came back with subscribers."""
    return worker.log_path.read_bytes().count(b"subscribers go on, after the object was away")


def test_subscribers_stay_while_their_object_is_put_aside(worker, table):
    # What to remember of it does not fit a socket's attachment.
    filter = f"v <> '{'x' * 17_000}'"
    still = {"heartbeat_ms": 600_000}
    with (
        worker.subscribe("latest", table, **still) as plain,
        worker.subscribe("latest", table, credit_messages=2, **still) as frugal,
        worker.subscribe("latest", table, filter=filter, **still) as verbose,
        worker.subscribe("latest", table, format="debezium", credit_messages=4, **still) as transactions,
        worker.subscribe("latest", table, heartbeat_ms=(ASIDE + 3) * 1_000) as pulse,
    ):
        insert(worker, table, 1)
        assert [ids(next_frame(live)) for live in (plain, frugal, verbose)] == [[1]] * 3
        assert [json.loads(transactions.recv(timeout=30)).get("status") for _ in range(3)] == ["BEGIN", None, "END"]
        assert ids(next_frame(pulse)) == [1]
        before = aside(worker)
        # The heartbeat's alarm wakes the object; then a shard's news do; then a subscriber.
        assert next_frame(pulse, timeout=ASIDE + 3 + PATIENCE)["heartbeat"]
        assert aside(worker) == before + 1, worker.log_tail()
        pulse.close()
        time.sleep(ASIDE + PATIENCE)
        insert(worker, table, 2)
        insert(worker, table, 3)
        for live in (plain, verbose):
            assert sorted(ids(next_frame(live)) + ids(next_frame(live))) == [2, 3]
        assert aside(worker) == before + 2, worker.log_tail()
        seen = ids(next_frame(frugal))
        silent(frugal)
        # One in the middle of a transaction keeps the object.
        assert json.loads(transactions.recv(timeout=30))["status"] == "BEGIN"
        grant(transactions, messages=5)
        rest = [json.loads(transactions.recv(timeout=30)) for _ in range(5)]
        assert [frame.get("status", frame.get("op")) for frame in rest] == ["c", "END", "BEGIN", "c", "END"]
        time.sleep(ASIDE + PATIENCE)
        grant(frugal, messages=1)
        seen += ids(next_frame(frugal))
        assert sorted(seen) == [2, 3]
        assert aside(worker) == before + 3, worker.log_tail()
        for live in (plain, frugal, verbose, transactions):
            silent(live, 0.2)

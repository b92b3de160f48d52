"""Sessions over an HTTP token and over a gRPC stream: transactions, savepoints, time limits, hang-ups and the death of the server."""

import queue
import threading
import time

import grpc
import httpx
import pytest
from rpc import Client, decode, error_pb2, query_pb2, statement
from server import Server, SqlError

LIMITS = {"SESSION_IDLE_TIMEOUT_MS": 1500, "TRANSACTION_TIMEOUT_MS": 4000, "LOCK_TIMEOUT_MS": 1000}
KEYS = range(1, 9)
# Finished in the router, which a client's hanging up reaches whatever threads the shards are on.
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n, accounts"


class HttpSession:
    """A session by its token."""

    def __init__(self, server: Server):
        self.server = server
        self.token = server.http.post("/session").json()["session"]

    def rows(self, sql: str) -> list[tuple]:
        http = self.server.http
        answer = http.post("/sql", json={"sql": sql}, headers={"dosql-session": self.token})
        decoded = answer.json()
        if "error" in decoded:
            raise SqlError(answer.status_code, decoded)
        return [tuple(row) for row in decoded["rows"]]

    def close(self) -> None:
        self.server.http.delete("/session", headers={"dosql-session": self.token})


class StreamSession:
    """A session as long as a gRPC stream."""

    def __init__(self, server: Server):
        self.client = Client(server.grpc_address)
        self.requests: queue.Queue = queue.Queue()
        self.answers = self.client.service.Session(iter(self.requests.get, None), timeout=120)

    def rows(self, sql: str) -> list[tuple]:
        execute = query_pb2.ExecuteRequest(statement=statement(sql))
        self.requests.put(query_pb2.SessionRequest(execute=execute))
        answer = next(self.answers)
        if answer.WhichOneof("response") == "error":
            error = answer.error
            code = error_pb2.ErrorCode.Name(error.code)
            body = {"error": {"code": code, "message": error.message, "retryable": error.retryable}}
            raise SqlError(0, body)
        return [tuple(decode(value) for value in row.values) for row in answer.execute.result.rows]

    def close(self) -> None:
        self.requests.put(None)
        self.client.close()


@pytest.fixture(params=[HttpSession, StreamSession])
def session(request, bank):
    session = request.param(bank)
    yield session
    session.close()


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("sessions") / "data", "--auto-shard", "primary-key", settings=LIMITS).start()
    server.sql("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER CHECK (balance >= 0))")
    yield server
    assert server.stop() == 0, server.log_tail()
    assert b"panicked" not in server.log_path.read_bytes(), server.log_tail()


@pytest.fixture(autouse=True)
def balances(bank):
    bank.sql("DELETE FROM accounts")
    bank.sql("INSERT INTO accounts SELECT value, 100 FROM json_each(?)", str(list(KEYS)))


def total(server: Server) -> int:
    return server.rows("SELECT sum(balance) FROM accounts")[0][0]


def test_savepoints_and_commit(bank, session):
    session.rows("BEGIN")
    session.rows("UPDATE accounts SET balance = balance - 10")
    assert session.rows("SELECT sum(balance) FROM accounts") == [(720,)]
    assert total(bank) == 800
    session.rows("SAVEPOINT a")
    session.rows("DELETE FROM accounts WHERE id > 4")
    session.rows("SAVEPOINT b")
    session.rows("UPDATE accounts SET balance = 0")
    assert session.rows("SELECT count(*), sum(balance) FROM accounts") == [(4, 0)]
    session.rows("ROLLBACK TO b")
    assert session.rows("SELECT count(*), sum(balance) FROM accounts") == [(4, 360)]
    with pytest.raises(SqlError) as failed:
        session.rows("UPDATE accounts SET balance = balance - 95 + id * 2")
    assert failed.value.code == "CONSTRAINT"
    session.rows("ROLLBACK TO a")
    session.rows("RELEASE a")
    assert session.rows("SELECT count(*), sum(balance) FROM accounts") == [(8, 720)]
    session.rows("COMMIT")
    assert total(bank) == 720


def test_rollback_leaves_nothing(bank, session):
    session.rows("BEGIN IMMEDIATE")
    session.rows("DELETE FROM accounts")
    session.rows("INSERT INTO accounts VALUES (77, 77)")
    session.rows("ROLLBACK")
    assert total(bank) == 800
    bank.sql("UPDATE accounts SET balance = balance + 1")


def test_an_idle_session_gives_its_locks_up(bank, session):
    session.rows("BEGIN")
    session.rows("UPDATE accounts SET balance = 0")
    with pytest.raises(SqlError) as failed:
        bank.post_sql({"sql": "UPDATE accounts SET balance = balance + 1", "options": {"timeout": 500}})
    assert failed.value.code in ("LOCK_TIMEOUT", "DEADLINE_EXCEEDED") and failed.value.retryable
    time.sleep(LIMITS["SESSION_IDLE_TIMEOUT_MS"] / 1000 + 0.7)
    bank.sql("UPDATE accounts SET balance = balance + 1")
    assert total(bank) == 808
    with pytest.raises(SqlError) as failed:
        session.rows("COMMIT")
    assert failed.value.code == "UNKNOWN_SESSION"


def test_a_transaction_has_a_time_limit(bank, session):
    session.rows("BEGIN")
    session.rows("UPDATE accounts SET balance = 0")
    end = time.monotonic() + LIMITS["TRANSACTION_TIMEOUT_MS"] / 1000 + 0.7
    with pytest.raises(SqlError) as failed:
        while time.monotonic() < end:
            session.rows("SELECT 1 FROM accounts")
            time.sleep(0.2)
    assert failed.value.code == "TRANSACTION_ABORTED" and failed.value.retryable
    bank.sql("UPDATE accounts SET balance = balance + 1")
    with pytest.raises(SqlError) as failed:
        session.rows("COMMIT")
    assert failed.value.code == "TRANSACTION_ABORTED"
    session.rows("BEGIN")
    session.rows("UPDATE accounts SET balance = balance + 1")
    session.rows("COMMIT")
    assert total(bank) == 816


def test_a_stream_that_breaks_off_rolls_back(bank):
    stream = StreamSession(bank)
    stream.rows("BEGIN")
    stream.rows("DELETE FROM accounts")
    stream.client.close()
    bank.sql("UPDATE accounts SET balance = balance + 1")
    assert total(bank) == 808


def quick(server: Server) -> float:
    """How long every shard takes to answer."""
    begin = time.monotonic()
    server.rows("SELECT count(*) FROM accounts")
    return time.monotonic() - begin


def test_a_client_that_hangs_up_ends_its_query(bank):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"http://{bank.http_address}/sql", json={"sql": ENDLESS, "options": {"timeout": 60_000}}, timeout=1)
    assert quick(bank) < 10
    client = Client(bank.grpc_address)
    request = query_pb2.QueryRequest(statement=statement(ENDLESS), timeout_ms=60_000)
    call = client.service.Query(request, timeout=120)
    threading.Timer(1, call.cancel).start()
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    assert ended.value.code() == grpc.StatusCode.CANCELLED
    client.close()
    assert quick(bank) < 10


def test_a_query_that_is_hung_up_on_ends_its_transaction(bank):
    session = HttpSession(bank)
    session.rows("BEGIN")
    session.rows("UPDATE accounts SET balance = 0 WHERE id = 1")
    headers = {"dosql-session": session.token}
    with pytest.raises(httpx.ReadTimeout):
        body = {"sql": ENDLESS, "options": {"timeout": 60_000}}
        httpx.post(f"http://{bank.http_address}/sql", json=body, headers=headers, timeout=1)
    with pytest.raises(SqlError) as failed:
        session.rows("COMMIT")
    assert failed.value.code == "TRANSACTION_ABORTED"
    assert total(bank) == 800


def test_a_write_goes_on_though_its_client_hangs_up(bank):
    slow = """WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000)
        UPDATE accounts SET balance = balance + (SELECT count(*) > 0 FROM n)"""
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"http://{bank.http_address}/sql", json={"sql": slow, "options": {"timeout": 60_000}}, timeout=0.2)
    end = time.monotonic() + 60
    while total(bank) != 808 and time.monotonic() < end:
        time.sleep(0.1)
    assert total(bank) == 808


def test_bookmarks_grow_from_write_to_write(bank):
    bookmark, written = "", {}
    for key in KEYS:
        body = {"sql": f"UPDATE accounts SET balance = {key} WHERE id = {key}", "options": {"bookmark": bookmark}}
        bookmark = bank.post_sql(body)["bookmark"]
        before = written
        written = {shard: int(lsn) for shard, lsn in (part.split(":") for part in bookmark.split(","))}
        assert all(written.get(shard, 0) >= lsn for shard, lsn in before.items()), bookmark
    assert len(written) > 1, bookmark
    read = bank.post_sql({"sql": "SELECT sum(balance) FROM accounts", "options": {"bookmark": bookmark}})
    assert read["rows"] == [[36]]
    seen = dict(part.split(":") for part in read["bookmark"].split(","))
    assert all(int(seen[shard]) >= int(lsn) for shard, lsn in written.items())


def test_a_killed_server_keeps_what_was_committed_and_nothing_else(tmp_path):
    server = Server(tmp_path / "data", "--auto-shard", "primary-key", settings=LIMITS).start()
    server.sql("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER)")
    for kind in (HttpSession, StreamSession):
        server.sql("DELETE FROM accounts")
        server.sql("INSERT INTO accounts SELECT value, 100 FROM json_each(?)", str(list(KEYS)))
        done, open_ = kind(server), kind(server)
        done.rows("BEGIN")
        done.rows("UPDATE accounts SET balance = balance + 1")
        done.rows("SAVEPOINT a")
        done.rows("DELETE FROM accounts")
        done.rows("ROLLBACK TO a")
        done.rows("COMMIT")
        open_.rows("BEGIN")
        open_.rows("DELETE FROM accounts")
        server.kill()
        with pytest.raises((httpx.HTTPError, RuntimeError, grpc.RpcError)):
            open_.rows("COMMIT")
        server.start()
        assert total(server) == 808, kind.__name__
        server.sql("UPDATE accounts SET balance = balance + 1")
        assert total(server) == 816
        if kind is HttpSession:
            open_.server = server
            with pytest.raises(SqlError) as failed:
                open_.rows("COMMIT")
            assert failed.value.code == "UNKNOWN_SESSION"
    assert server.stop() == 0


def test_promote_says_what_it_cannot(bank):
    rows = bank.rows("SHOW REPLICAS")
    assert [row[:4] for row in rows] == [(f"shard-{n}", f"shard-{n}", "primary", "healthy") for n in range(4)]
    with pytest.raises(SqlError) as failed:
        bank.sql("PROMOTE SHARD shard-0")
    assert failed.value.code == "UNSUPPORTED" and "REPLICAS_PER_SHARD" in failed.value.message
    done = bank.run("promote", "--url", bank.url, "nix")
    assert done.returncode == 1 and "there is no shard \"nix\"" in done.stderr


def test_a_replica_is_promoted(tmp_path):
    server = Server(tmp_path / "data", "--auto-shard", "primary-key", shards=2, settings={"REPLICAS_PER_SHARD": 1}).start()
    server.sql("CREATE TABLE t (k INTEGER PRIMARY KEY)")
    server.sql("INSERT INTO t VALUES (1), (2), (3), (4)")
    names = [row[1] for row in server.rows("SHOW REPLICAS")]
    assert names == ["shard-0", "shard-0-r1", "shard-1", "shard-1-r1"]
    done = server.run("promote", "--url", server.url, "shard-1", "--to", "shard-1-r1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("shard-1-r1 is the primary of shard-1 since epoch 1; its last LSN is ")
    shards = {row[0]: row[5:8] for row in server.rows("SHOW SHARDS")}
    assert shards == {"shard-0": ("shard-0", 0, 2), "shard-1": ("shard-1-r1", 1, 2)}
    server.sql("INSERT INTO t VALUES (5), (6)")
    assert server.rows("SELECT count(*) FROM t") == [(6,)]
    back = server.rows("PROMOTE SHARD 'shard-1' TO 'shard-1'")
    assert [row[:3] for row in back] == [("shard-1", "shard-1", 2)]
    assert server.stop() == 0, server.log_tail()

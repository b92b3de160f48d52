"""What cannot be served gets a clear error with a code, and the server goes on."""

import grpc
import httpx
import pytest
from rpc import RpcError
from server import Server, SqlError
from websockets.exceptions import ConnectionClosed, InvalidStatus


@pytest.fixture(scope="module", autouse=True)
def tables(server):
    server.sql("CREATE TABLE strict_items (id INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT")
    server.sql("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)")


@pytest.fixture(autouse=True)
def the_server_goes_on(server):
    yield
    assert server.rows("SELECT 1 + 1") == [(2,)]
    assert server.rows("SELECT COUNT(*) FROM strict_items") == [(0,)]


CASES = [
    ("SELEC 1", (), "SYNTAX_ERROR", "SELEC"),
    ("SELECT * FROM items WHERE", (), "SYNTAX_ERROR", ""),
    ("", (), "", ""),
    ("SELECT * FROM nowhere", (), "UNKNOWN_TABLE", "nowhere"),
    ("INSERT INTO nowhere VALUES (1)", (), "UNKNOWN_TABLE", "nowhere"),
    ("SELECT missing FROM items", (), "UNKNOWN_COLUMN", "missing"),
    ("SELECT ?, ?", (1,), "PARAMETER_COUNT", "2"),
    ("SELECT * FROM items WHERE id = ?", (1, 2), "PARAMETER_COUNT", "1"),
    ("INSERT INTO strict_items VALUES (1, 'many')", (), "TYPE_MISMATCH", "count"),
    ("INSERT INTO strict_items VALUES (1, ?)", (b"\x00",), "TYPE_MISMATCH", "count"),
    ("INSERT INTO strict_items VALUES ('one', 1)", (), "TYPE_MISMATCH", ""),
    ("INSERT INTO strict_items VALUES (1, NULL)", (), "CONSTRAINT", "count"),
    ("CREATE TABLE items (id INTEGER PRIMARY KEY)", (), "ALREADY_EXISTS", "items"),
    ("CREATE TABLE _dosql_mine (id INTEGER PRIMARY KEY)", (), "", "_dosql_"),
    ("BEGIN", (), "UNSUPPORTED", "BEGIN"),
    ("ATTACH 'elsewhere' AS other", (), "UNSUPPORTED", "ATTACH"),
    ("SELECT '" + "x" * (2 << 20) + "'", (), "TOO_LARGE", "limit"),
    ("SELECT abs(-9223372036854775808)", (), "SQL_ERROR", "overflow"),
]


@pytest.mark.parametrize(("sql", "params", "code", "named"), CASES)
def test_sql_that_cannot_run(server, rpc, sql, params, code, named):
    with pytest.raises(SqlError) as over_http:
        server.sql(sql, *params)
    assert code in ("", over_http.value.code), over_http.value
    assert over_http.value.code != "INTERNAL" and named in over_http.value.message
    assert 400 <= over_http.value.status < 500 and not over_http.value.retryable
    for call in (rpc.query, rpc.execute):
        with pytest.raises(RpcError) as over_grpc:
            call(sql, *params)
        assert over_grpc.value.code == over_grpc.value.code_in_metadata == over_http.value.code


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"params": []}', b'{"sql": 1}', b'{"sql": "SELECT ?", "params": 1}',
     b'{"sql": "SELECT ?", "params": [{"base64": "not base64!"}]}', b'{"sql": "SELECT ?", "params": [[1]]}',
     b'{"sql": "SELECT ?", "params": [1], "parameters": []}'],
)
def test_a_body_that_is_no_request(server, body):
    with pytest.raises(SqlError) as refused:
        server.post_sql(body)
    assert refused.value.code == "INVALID_REQUEST" and 400 <= refused.value.status < 500, refused.value


def test_a_path_that_does_not_exist(server):
    answer = server.http.get("/nowhere")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "NOT_FOUND"


def test_a_statement_of_100_mib(server, rpc):
    huge = "SELECT '" + "x" * (100 << 20) + "'"
    try:
        with pytest.raises(SqlError) as refused:
            server.sql(huge)
        assert refused.value.code == "TOO_LARGE" and refused.value.status == 413
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pytest.fail("the connection broke before the answer could be read")
    with pytest.raises(RpcError) as refused:
        rpc.query(huge)
    assert refused.value.code == "TOO_LARGE", refused.value


@pytest.mark.parametrize("method", ["Execute", "Batch", "Explain", "Query"])
@pytest.mark.parametrize("message", [b"\xff\xff\xff\xff", b"\x0a\xff\x01", b"\x0a\x02\x0a\xff"])
def test_a_malformed_protobuf(rpc, method, message):
    call = rpc.channel.unary_stream(f"/dosql.v1.QueryService/{method}", lambda raw: raw, lambda raw: raw)
    with pytest.raises(grpc.RpcError) as refused:
        list(call(message, timeout=30))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert RpcError(refused.value).code == "INVALID_REQUEST" and refused.value.details()


def test_a_method_that_does_not_exist(rpc):
    call = rpc.channel.unary_unary("/dosql.v1.QueryService/Guess", lambda raw: raw, lambda raw: raw)
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=30)
    assert RpcError(refused.value).code == "UNSUPPORTED"


def test_an_empty_protobuf(rpc):
    call = rpc.channel.unary_unary("/dosql.v1.QueryService/Execute", lambda raw: raw, lambda raw: raw)
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=30)
    assert RpcError(refused.value).code == "INVALID_REQUEST"


@pytest.mark.parametrize("position", ["shard-0:999999999", "shard-9:1", "nonsense", "shard-0:-1", "shard-0:1,shard-0:2"])
def test_an_unknown_position(server, position):
    with pytest.raises((InvalidStatus, ConnectionClosed)) as refused:
        with server.subscribe(from_=position) as socket:
            socket.recv(timeout=30)
    error = refused.value
    text = error.response.body.decode() if isinstance(error, InvalidStatus) else error.rcvd.reason
    assert "UNKNOWN_POSITION" in text, text


@pytest.mark.parametrize(
    ("settings", "arguments", "named"),
    [
        ({"SHARD_COUNT": "many"}, (), "SHARD_COUNT"),
        ({"DOLAKE_FLUSH_INTERVAL_MS": "0"}, (), "DOLAKE_FLUSH_INTERVAL_MS"),
        ({"CDC_BATCH_SIZE": "-1"}, (), "CDC_BATCH_SIZE"),
        ({}, ("--auto-shard", "sometimes"), "auto-shard"),
        ({}, ("--grpc", "nowhere"), "grpc"),
        ({}, ("--vschema", "/no/such/file"), "/no/such/file"),
    ],
)
def test_a_setting_that_is_not_usable_stops_the_start(tmp_path, settings, arguments, named):
    server = Server(tmp_path / "data", *arguments, settings=settings)
    if "SHARD_COUNT" in settings:
        at = server.command.index("--shards")
        del server.command[at : at + 2]
    if "--grpc" in arguments:
        at = server.command.index("--grpc")
        del server.command[at : at + 2]
    with pytest.raises(RuntimeError, match="dosql serve ended with [1-9]") as refused:
        server.start(timeout=20)
    assert named in str(refused.value) and "panicked" not in str(refused.value)

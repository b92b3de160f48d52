"""The gRPC interface through a client generated from proto/."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from rpc import RpcError, cdc_pb2, decode, row, statement, query_pb2

VALUES = [None, 0, -1, 9223372036854775807, -9223372036854775808, 1.0, -0.5, 1e300, "", "text", "Zoë 航", b"", b"\x00\xff"]


@pytest.fixture(scope="module", autouse=True)
def table(server, rpc):
    rpc.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL, value)")
    rpc.execute("CREATE TABLE loaded (id INTEGER PRIMARY KEY, note TEXT)")


def test_values_of_every_class_come_back_as_they_went_in(rpc):
    for index, value in enumerate(VALUES):
        written = rpc.execute("INSERT INTO items VALUES (?1, ?2, ?3)", 1000 + index, f"value {index}", value)
        assert written.result.rows_affected == 1
        assert written.bookmark
        names, rows = rpc.query("SELECT value, typeof(value) FROM items WHERE id = ?", 1000 + index)
        kinds = {type(None): "null", int: "integer", float: "real", str: "text", bytes: "blob"}
        assert rows == [(value, kinds[type(value)])] and type(rows[0][0]) is type(value)
    assert names == ["value", "typeof(value)"]


def test_a_write_with_the_same_request_id_takes_effect_once(rpc):
    first = rpc.execute("INSERT INTO items VALUES (1, 'one', 1)", request_id="the same")
    again = rpc.execute("INSERT INTO items VALUES (1, 'one', 1)", request_id="the same")
    assert first.result.rows_affected == again.result.rows_affected == 1
    assert rpc.query("SELECT COUNT(*) FROM items WHERE id = 1")[1] == [(1,)]


def test_returning_gives_rows(rpc):
    result = rpc.execute("INSERT INTO items VALUES (2, 'two', 2) RETURNING id, name").result
    assert [column.name for column in result.columns] == ["id", "name"]
    assert [tuple(decode(value) for value in row.values) for row in result.rows] == [(2, "two")]


def test_a_batch_is_all_or_nothing(rpc):
    done = rpc.batch(
        statement("INSERT INTO items VALUES (?, ?, ?)", 10, "ten", 1),
        statement("UPDATE items SET value = value + 1 WHERE id = ?", 10),
        statement("SELECT value FROM items WHERE id = ?", 10),
    )
    assert [result.rows_affected for result in done.results][:2] == [1, 1]
    assert decode(done.results[2].rows[0].values[0]) == 2
    with pytest.raises(RpcError) as failed:
        rpc.batch(
            statement("UPDATE items SET value = 100 WHERE id = ?", 10),
            statement("UPDATE items SET name = NULL WHERE id = ?", 10),
        )
    assert failed.value.code == "CONSTRAINT"
    assert rpc.query("SELECT value FROM items WHERE id = 10")[1] == [(2,)]


def test_an_error_is_typed(rpc):
    rpc.execute("INSERT INTO items VALUES (20, 'twenty', 1)")
    with pytest.raises(RpcError) as failed:
        rpc.execute("INSERT INTO items VALUES (20, 'another', 1)")
    error = failed.value
    assert error.typed and error.code == error.code_in_metadata == "CONSTRAINT"
    assert "items.id" in error.error.message and not error.error.retryable
    assert error.status == grpc.StatusCode.FAILED_PRECONDITION


def test_load_acknowledges_each_request(rpc):
    requests = [
        query_pb2.LoadRequest(
            table="loaded",
            columns=["id", "note"],
            rows=[row((index * 100 + item, f"note {item}")) for item in range(100)],
            request_id=f"load {index}",
        )
        for index in range(5)
    ]
    for attempt in range(2):
        answers = rpc.load(requests)
        assert [(answer.request_id, answer.rows_loaded) for answer in answers] == [(f"load {i}", 100) for i in range(5)]
    assert rpc.query("SELECT COUNT(*), MIN(id), MAX(id) FROM loaded")[1] == [(500, 0, 499)]


def test_results_stream_in_bounded_batches(rpc):
    request = query_pb2.QueryRequest(statement=statement("SELECT id, note FROM loaded"), max_batch_bytes=1000)
    sizes = [response.ByteSize() for response in rpc.service.Query(request)]
    assert len(sizes) > 5 and max(sizes) < 4000


def test_explain_names_the_route(rpc):
    assert rpc.explain("SELECT * FROM items WHERE id = 5").route == "equal-unique"
    assert rpc.explain("SELECT * FROM items").route == "scatter"


def test_the_change_stream(rpc):
    rpc.execute("INSERT INTO items VALUES (30, 'thirty', x'00')")
    # "from" is a keyword of Python.
    call = rpc.changes.Subscribe(cdc_pb2.SubscribeRequest(**{"tables": ["items"], "from": "earliest"}), timeout=30)
    for batch in call:
        names = [
            decode(change.after.values[1])
            for shard in batch.shards for record in shard.records for change in record.changes
        ]
        if "thirty" in names:
            break
    call.cancel()


def test_the_change_stream_in_protobuf_frames(server, rpc):
    position = rpc.execute("INSERT INTO items VALUES (31, 'thirty-one', 1.0)").bookmark
    rpc.execute("INSERT INTO items VALUES (32, 'thirty-two', NULL)")
    with server.subscribe(position, "items", format="protobuf") as socket:
        batch = cdc_pb2.ChangeBatch.FromString(socket.recv(timeout=30))
    (change,) = batch.shards[0].records[0].changes
    assert [decode(value) for value in change.after.values] == [32, "thirty-two", None]
    assert batch.position


@pytest.mark.parametrize("source", ["items", "spread"])
def test_a_statement_without_end_ends_at_its_deadline(rpc, source):
    if source == "spread":
        rpc.execute("ALTER VSCHEMA ON spread ADD VINDEX hash(id) USING hash")
        rpc.execute("CREATE TABLE spread (id INTEGER PRIMARY KEY)")
        rpc.execute("INSERT INTO spread VALUES (1), (2), (3)")
    endless = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n, {source}"
    with pytest.raises(RpcError) as failed:
        rpc.query(endless, timeout_ms=500)
    assert failed.value.code == "DEADLINE_EXCEEDED"
    assert rpc.query("SELECT 1 AS one") == (["one"], [(1,)])


def test_health_and_reflection(server, rpc):
    health = health_pb2_grpc.HealthStub(rpc.channel)
    for service in ("", "dosql.v1.QueryService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    services = ProtoReflectionDescriptorDatabase(rpc.channel).get_services()
    assert {"dosql.v1.QueryService", "dosql.v1.CdcService", "grpc.health.v1.Health"} <= set(services)
    assert server.http.get("/health").status_code == 200

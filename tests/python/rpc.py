"""A client of the gRPC interface, generated from proto/ by grpcio-tools when the tests start."""

import sys
import tempfile
from pathlib import Path

import grpc
from grpc_tools import protoc

from server import REPOSITORY


def generate() -> str:
    """Generates the client into a fresh directory and puts it on the import path."""
    directory = tempfile.mkdtemp(prefix="dosql-rpc-")
    root = REPOSITORY / "proto" / "proto"
    files = [str(path) for path in sorted(root.glob("dosql/v1/*.proto"))]
    code = protoc.main(["protoc", f"-I{root}", f"--python_out={directory}", f"--grpc_python_out={directory}", *files])
    assert code == 0, f"protoc ended with {code}"
    sys.path.insert(0, directory)
    return directory


generate()

from dosql.v1 import cdc_pb2, cdc_pb2_grpc, error_pb2, query_pb2, query_pb2_grpc, value_pb2  # noqa: E402


def encode(value) -> value_pb2.Value:
    match value:
        case None:
            return value_pb2.Value()
        case int():
            return value_pb2.Value(integer=value)
        case float():
            return value_pb2.Value(real=value)
        case str():
            return value_pb2.Value(text=value)
        case bytes():
            return value_pb2.Value(blob=value)
    raise TypeError(f"{value!r} is not an SQL value")


def decode(value: value_pb2.Value):
    kind = value.WhichOneof("kind")
    return None if kind is None else getattr(value, kind)


def row(values) -> value_pb2.Row:
    return value_pb2.Row(values=[encode(value) for value in values])


def statement(sql: str, *params) -> query_pb2.Statement:
    return query_pb2.Statement(sql=sql, params=[encode(value) for value in params])


class RpcError(Exception):
    """A failed call, with the typed error it carried."""

    def __init__(self, call: grpc.RpcError):
        metadata = dict(call.trailing_metadata() or ())
        self.status = call.code()
        self.error = error_pb2.Error()
        self.typed = "grpc-status-details-bin" in metadata
        if self.typed:
            self.error.ParseFromString(metadata["grpc-status-details-bin"])
        self.code = error_pb2.ErrorCode.Name(self.error.code)
        self.code_in_metadata = metadata.get("dosql-error-code")
        super().__init__(f"{self.status.name}: {self.code}: {self.error.message or call.details()}")


class Client:
    """The calls of QueryService, with Python values for SQL values."""

    def __init__(self, address: str):
        limit = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options=limit)
        self.service = query_pb2_grpc.QueryServiceStub(self.channel)
        self.changes = cdc_pb2_grpc.CdcServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def execute(self, sql: str, *params, request_id: str = "") -> query_pb2.ExecuteResponse:
        return self._call(
            self.service.Execute, query_pb2.ExecuteRequest(statement=statement(sql, *params), request_id=request_id)
        )

    def batch(self, *statements: query_pb2.Statement, request_id: str = "") -> query_pb2.BatchResponse:
        return self._call(self.service.Batch, query_pb2.BatchRequest(statements=statements, request_id=request_id))

    def explain(self, sql: str, *params) -> query_pb2.ExplainResponse:
        return self._call(self.service.Explain, query_pb2.ExplainRequest(statement=statement(sql, *params)))

    def load(self, requests) -> list[query_pb2.LoadResponse]:
        try:
            return list(self.service.Load(iter(requests), timeout=120))
        except grpc.RpcError as error:
            raise RpcError(error) from error

    def query(self, sql: str, *params, max_batch_bytes: int = 0, timeout_ms: int = 0) -> tuple[list[str], list[tuple]]:
        """The columns' names, and all rows of the stream."""
        request = query_pb2.QueryRequest(
            statement=statement(sql, *params), max_batch_bytes=max_batch_bytes, timeout_ms=timeout_ms
        )
        names, rows = [], []
        try:
            for response in self.service.Query(request, timeout=120):
                names = names or [column.name for column in response.columns]
                rows.extend(tuple(decode(value) for value in row.values) for row in response.rows)
        except grpc.RpcError as error:
            raise RpcError(error) from error
        return names, rows

    @staticmethod
    def _call(method, request):
        try:
            return method(request, timeout=120)
        except grpc.RpcError as error:
            raise RpcError(error) from error

"""An Iceberg REST catalog: the protocol in front of PyIceberg's SQL catalog, which checks requirements and applies updates."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pyiceberg.catalog.rest import CreateTableRequest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import CommitTableRequest
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER

PREFIX = "some/where"
CLIENT_ID, CLIENT_SECRET = "writer", "s3cret:with a colon"
ERRORS = {
    CommitFailedException: (409, "CommitFailedException"),
    NamespaceAlreadyExistsError: (409, "AlreadyExistsException"),
    TableAlreadyExistsError: (409, "AlreadyExistsException"),
    NoSuchNamespaceError: (404, "NoSuchNamespaceException"),
    NoSuchTableError: (404, "NoSuchTableException"),
}


class RestCatalogServer:
    """Serves until `stop`. `fault(method, path, body)` may name what befalls a request: `before` (status 503, nothing done), `after`
    (status 500, although it is done), `hang up` (the same, without an answer)."""

    def __init__(self, directory: Path, warehouse: str):
        self.sql = SqlCatalog("b", uri=f"sqlite:///{directory / 'catalog.sqlite'}", warehouse=warehouse)
        self.lock = threading.RLock()
        self.fault = lambda method, path, body: None
        self.requests = []
        self.tokens, self.warehouses = set(), set()
        catalog = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                catalog.handle(self)

            do_POST = do_GET

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.server.server_port}/iceberg"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def settings(self, **others) -> dict:
        return {
            "DOLAKE_CATALOG_URI": self.uri, "DOLAKE_CATALOG_CREDENTIAL": f"{CLIENT_ID}:{CLIENT_SECRET}",
            "DOLAKE_CATALOG_WAREHOUSE": "the lake", "DOLAKE_CATALOG_NAMESPACE": "mine", **others,
        }

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        path = url.path.removeprefix("/iceberg")
        self.requests.append((request.command, path))
        fault = self.fault(request.command, path, body)
        if fault == "before":
            status, answer = 503, error(503, "ServiceUnavailableException", "not now")
        else:
            try:
                status, answer = self.answer(request, path, parse_qs(url.query), body)
            except tuple(ERRORS) as refusal:
                status, kind = ERRORS[type(refusal)]
                answer = error(status, kind, str(refusal))
            if fault == "after":
                status, answer = 500, error(500, "CommitStateUnknownException", "who knows")
        if fault == "hang up":
            request.close_connection = True
            return
        content = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def answer(self, request, path: str, query: dict, body: bytes) -> tuple[int, dict]:
        if path == "/v1/oauth/tokens":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            if (form["client_id"], form["client_secret"]) != (CLIENT_ID, CLIENT_SECRET):
                return 401, {"error": "invalid_client"}
            token = f"token-{len(self.requests)}"
            self.tokens.add(token)
            return 200, {"access_token": token, "token_type": "bearer", "expires_in": 3600}
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return 401, error(401, "NotAuthorizedException", "who are you?")
        if path == "/v1/config":
            self.warehouses.update(query.get("warehouse", []))
            return 200, {"defaults": {"prefix": "wrong"}, "overrides": {"prefix": PREFIX}}
        matched = re.fullmatch(f"/v1/{PREFIX}/namespaces(?:/([^/]+)(/tables(?:/([^/]+))?)?)?", path)
        if not matched:
            return 404, {}
        namespace, tables, table = (part and unquote(part) for part in matched.groups())
        with self.lock:
            match request.command, bool(tables), table:
                case "POST", False, None:
                    self.sql.create_namespace(tuple(json.loads(body)["namespace"]))
                    return 200, json.loads(body)
                case "GET", True, None:
                    names = self.sql.list_tables(namespace)
                    return 200, {"identifiers": [{"namespace": [namespace], "name": name[-1]} for name in names]}
                case "POST", True, None:
                    wanted = CreateTableRequest.model_validate({"location": None, **json.loads(body)})
                    return 200, loaded(self.sql.create_table(
                        (namespace, wanted.name), wanted.table_schema, wanted.location,
                        wanted.partition_spec or UNPARTITIONED_PARTITION_SPEC, wanted.write_order or UNSORTED_SORT_ORDER,
                        wanted.properties,
                    ))
                case "GET", True, _:
                    return 200, loaded(self.sql.load_table((namespace, table)))
                case "POST", True, _:
                    commit = CommitTableRequest.model_validate_json(body)
                    committed = self.sql.load_table((namespace, table))
                    return 200, loaded(self.sql.commit_table(committed, commit.requirements, commit.updates))
        return 404, {}


def loaded(table) -> dict:
    return {
        "metadata-location": table.metadata_location, "metadata": json.loads(table.metadata.model_dump_json()), "config": {},
    }


def error(status: int, kind: str, message: str) -> dict:
    return {"error": {"message": message, "type": kind, "code": status}}

"""A bucket on a server that speaks S3, and a line to it that can be cut."""

import contextlib
import socket
import threading

import boto3
import duckdb
from engines import duckdb_connection
from moto.server import ThreadedMotoServer
from pyiceberg.table import StaticTable

BUCKET = "lake"
KEY, SECRET, REGION = "test-key", "test-secret", "us-east-1"


class Line:
    """Passes bytes between its clients and a server, until told otherwise."""

    def __init__(self, server: tuple[str, int]):
        self.server = server
        # `pass`; `refuse`: connections are closed at once; `deaf`: requests arrive, answers do not.
        self.mode = "pass"
        self.cut = 0
        self.open = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def change(self, mode: str) -> None:
        """From now on, for connections that are open too."""
        self.mode = mode
        for connection in list(self.open):
            _shut(connection)

    def close(self) -> None:
        self.change("refuse")
        _shut(self.listener)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                if self.mode == "refuse":
                    self.cut += 1
                    client.close()
                    continue
                server = socket.create_connection(self.server)
                self.open.add(client)
                for source, target, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._copy, args=(source, target, answers), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and self.mode == "deaf":
                    self.cut += 1
                    break
                target.sendall(data)
        for end in (source, target):
            _shut(end)
            self.open.discard(end)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Bucket:
    """The bucket, the server it is on, and the line through which the program under test reaches it."""

    def __init__(self):
        self.moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.moto.start()
        self.address = self.moto.get_host_and_port()
        self.url = "http://%s:%d" % self.address
        self.client = boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name=REGION,
        )
        # The server keeps everything for the process: each test has an empty bucket.
        self.client.create_bucket(Bucket=BUCKET)
        for name in self.names():
            self.client.delete_object(Bucket=BUCKET, Key=name)
        self.line = Line(self.address)

    def stop(self) -> None:
        self.line.close()
        self.moto.stop()

    def settings(self, prefix: str = "") -> dict:
        """The settings with which the program uses it."""
        return {
            "DOLAKE_S3_BUCKET": BUCKET, "DOLAKE_S3_ENDPOINT": self.line.url, "DOLAKE_S3_ALLOW_HTTP": "true",
            "DOLAKE_S3_ACCESS_KEY_ID": KEY, "DOLAKE_S3_SECRET_ACCESS_KEY": SECRET, "DOLAKE_S3_REGION": REGION,
            "DOLAKE_S3_PREFIX": prefix,
        }

    def reader_properties(self) -> dict:
        """What PyIceberg needs to read it."""
        return {
            "s3.endpoint": self.url, "s3.access-key-id": KEY, "s3.secret-access-key": SECRET, "s3.region": REGION,
        }

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, name: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()

    def table(self, table: str, prefix: str = "") -> StaticTable:
        root = f"{prefix}/warehouse/default/{table}".lstrip("/")
        version = self.read(f"{root}/metadata/version-hint.text").decode()
        url = f"s3://{BUCKET}/{root}/metadata/v{version}.metadata.json"
        return StaticTable.from_metadata(url, self.reader_properties())

    def duckdb(self) -> duckdb.DuckDBPyConnection:
        """A connection that may read the bucket."""
        connection = duckdb_connection("httpfs", "avro", "iceberg")
        connection.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{KEY}', SECRET '{SECRET}', REGION '{REGION}', URL_STYLE 'path', "
            f"USE_SSL false, ENDPOINT '{self.address[0]}:{self.address[1]}')"
        )
        return connection

"""Runs the `dosql` program as its users do, and speaks its HTTP and WebSocket interfaces."""

import base64
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import urlencode

import httpx
from websockets.sync.client import connect

REPOSITORY = Path(__file__).resolve().parents[2]
READY = re.compile(rb"dosql is ready grpc=(\S+) http=(\S+)")


def program() -> Path:
    """The program under test: DOSQL_BIN, else the development build."""
    default = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "debug" / "dosql"
    path = Path(os.environ.get("DOSQL_BIN", default))
    assert path.is_file(), f"{path} does not exist: build it with `cargo build -p dosql`, or set DOSQL_BIN"
    return path


class SqlError(Exception):
    """The error object of an answer."""

    def __init__(self, status: int, body: dict):
        error = body["error"]
        super().__init__(f"{error['code']}: {error['message']}")
        self.status = status
        self.code = error["code"]
        self.message = error["message"]
        self.retryable = error["retryable"]


def to_json(value):
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def from_json(value):
    """What JSON has no word for is an object of one field."""
    match value:
        case {"base64": text}:
            return base64.b64decode(text)
        case {"text_base64": text}:
            return base64.b64decode(text).decode(errors="surrogateescape")
        case {"real": name}:
            return float(name.lower())
    return value


class Server:
    """One `dosql serve` process on ports of its own; its data directory outlives it."""

    def __init__(self, data_dir: Path, *arguments: str, shards: int = 4, settings: dict | None = None):
        self.data_dir = data_dir
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self.command = [
            str(program()), "serve", "--data-dir", str(data_dir), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
            "--shards", str(shards), *arguments,
        ]
        self.environment = {**os.environ, **{name: str(value) for name, value in (settings or {}).items()}}
        self.process = None
        self.http = None

    def start(self, timeout: float = 60) -> "Server":
        begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.environment)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with open(self.log_path, "rb") as log:
                log.seek(begin)
                ready = READY.search(log.read())
            if ready:
                self.grpc_address, self.http_address = (part.decode() for part in ready.groups())
                self.url = f"http://{self.grpc_address}"
                self.http = httpx.Client(base_url=f"http://{self.http_address}", timeout=120)
                return self
            if self.process.poll() is not None:
                raise RuntimeError(f"dosql serve ended with {self.process.returncode}:\n{self.log_tail()}")
            time.sleep(0.01)
        raise RuntimeError(f"dosql serve was not ready after {timeout} s:\n{self.log_tail()}")

    def kill(self) -> None:
        """`kill -9`: the process gets no chance to finish anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Asks the server to end, and returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        if self.http:
            self.http.close()
        self.process.send_signal(how)
        return self.process.wait(timeout=60)

    def peak_memory(self) -> int:
        """The most memory the process has held at once, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024

    def log_tail(self, size: int = 4000) -> str:
        return self.log_path.read_bytes()[-size:].decode(errors="replace")

    def post_sql(self, body, http: httpx.Client | None = None) -> dict:
        """`POST /sql` with a body that may be anything; an error answer is raised."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = (http or self.http).post("/sql", content=content, headers={"content-type": "application/json"})
        decoded = answer.json()
        if "error" in decoded:  # with status 200 where it broke off after the first rows
            raise SqlError(answer.status_code, decoded)
        return decoded

    def sql(self, sql: str, *params, http: httpx.Client | None = None) -> dict:
        """Runs one statement; its rows come back as tuples of Python values."""
        answer = self.post_sql({"sql": sql, "params": [to_json(value) for value in params]}, http)
        answer["rows"] = [tuple(from_json(value) for value in row) for row in answer["rows"]]
        return answer

    def rows(self, sql: str, *params) -> list[tuple]:
        return self.sql(sql, *params)["rows"]

    def flush(self) -> dict:
        """Has the lake commit everything written before the call."""
        answer = self.http.post("/flush")
        if answer.status_code != 200:
            raise SqlError(answer.status_code, answer.json())
        return answer.json()

    def subscribe(self, from_: str = "earliest", tables: str = "", format: str = "json", **parameters):
        """A WebSocket on the change stream; read it with `next_frame`."""
        parameters = {"from": from_, "format": format, "tables": tables, **parameters}
        query = urlencode({name: value for name, value in parameters.items() if value != ""})
        return connect(f"ws://{self.http_address}/cdc?{query}", max_size=None, compression=None)

    def shell(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess:
        """`dosql sql` against this server."""
        return self.run("sql", "--url", self.url, *arguments, input=input)

    def run(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess:
        """Any subcommand of the program, to its end."""
        command = [str(program()), *arguments]
        return subprocess.run(command, input=input, capture_output=True, text=True, timeout=900)


def next_frame(socket, timeout: float = 30) -> dict:
    """The next frame of the change stream, its values as Python values."""
    frame = json.loads(socket.recv(timeout=timeout))
    for change in frame.get("changes", []):
        for image in ("before", "after"):
            if change.get(image) is not None:
                change[image] = {column: from_json(value) for column, value in change[image].items()}
    return frame

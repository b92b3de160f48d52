"""Runs the Worker under `wrangler dev --local`: real Durable Objects and a local R2, in workerd."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import rpc  # noqa: F401 (generates dosql.v1)
from dosql.v1.envelope_pb2 import Address
from server import REPOSITORY, Server

WORKER = REPOSITORY / "deploy" / "worker"


class Worker(Server):
    """A Worker on a port of its own; what its objects and its bucket hold outlives it. Speaks the interface of `dosql serve`."""

    def __init__(self, directory: Path, shards: int = 4, settings: dict | None = None):
        self.persist = directory / "persist"
        # Where `fetch_lake` puts the bucket's objects, and where Iceberg's metadata says they are.
        self.data_dir = directory
        self.log_path = directory / "wrangler.log"
        self.settings = {
            "DOSQL_CONFORMANCE": "1",
            "SHARD_COUNT": shards,
            "LAKEHOUSE_URL": (self.data_dir / "lake").as_uri(),
            **(settings or {}),
        }
        self.process = None
        self.http = None

    def start(self, timeout: float = 120) -> "Worker":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            str(WORKER / "node_modules" / ".bin" / "node"), str(WORKER / "node_modules" / "wrangler" / "bin" / "wrangler.js"),
            "dev", "--local", "--config", str(WORKER / "wrangler.toml"), "--ip", "127.0.0.1", "--port", str(port),
            "--inspector-port", "0", "--persist-to", str(self.persist), "--log-level", "log",
            "--show-interactive-dev-session=false",
        ]
        for name, value in self.settings.items():
            command += ["--var", f"{name}:{value}"]
        environment = {
            **os.environ,
            "CI": "1",
            "NO_COLOR": "1",
            "WRANGLER_SEND_METRICS": "false",
            "CLOUDFLARE_CF_FETCH_ENABLED": "false",
            "WRANGLER_LOG_PATH": str(self.data_dir / "wrangler-logs"),
        }
        with open(self.log_path, "ab") as log:
            # A session of its own, since wrangler runs workerd as a child.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.http_address = f"127.0.0.1:{port}"
        self.url = f"http://{self.http_address}"
        self.http = httpx.Client(base_url=self.url, timeout=120)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"wrangler ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                if self.http.get("/health", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"the Worker was not ready after {timeout} s:\n{self.log_tail()}")

    def _end(self, how: signal.Signals) -> int:
        self.http.close()
        os.killpg(self.process.pid, how)
        return self.process.wait(timeout=60)

    def load(self, table: str, columns: list[str], rows: list[tuple]) -> int:
        answer = self.http.post("/load", json={"table": table, "columns": columns, "rows": rows})
        assert answer.status_code == 200, answer.text
        return answer.json()["rows_loaded"]

    def evict(self, actor: str) -> None:
        """Ends the object an actor lives in; its next message starts it from storage."""
        kind, name = actor.split("/")
        answer = self.http.post("/_evict", content=Address(kind=kind, name=name).SerializeToString())
        assert answer.status_code == 200, answer.text

    def fetch_lake(self) -> Path:
        """Copies the bucket's objects to `data_dir/lake`, where readers find them."""
        listing = self.http.get("/_objects", params={"prefix": ""})
        assert listing.status_code == 200, listing.text
        for path in listing.text.split():
            target = self.data_dir / "lake" / path
            answer = self.http.get("/_object", params={"path": path})
            assert answer.status_code == 200, f"{path}: {answer.text}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(answer.content)
        return self.data_dir / "lake"

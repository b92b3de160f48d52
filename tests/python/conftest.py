import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rpc import Client  # noqa: E402
from server import Server  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server over 4 shards that the tests of one file share."""
    server = Server(tmp_path_factory.mktemp("serve") / "data", "--auto-shard", "primary-key").start()
    yield server
    assert server.process.poll() is None, f"dosql serve has ended:\n{server.log_tail()}"
    assert server.stop() == 0, server.log_tail()
    assert b"panicked" not in server.log_path.read_bytes(), server.log_tail()


@pytest.fixture(scope="module")
def rpc(server):
    client = Client(server.grpc_address)
    yield client
    client.close()

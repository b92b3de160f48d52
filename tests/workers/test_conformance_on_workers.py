"""The conformance suite that every host passes, against Durable Objects."""

import os
import subprocess
from pathlib import Path

import pytest
from server import REPOSITORY
from worker import Worker

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    worker = Worker(tmp_path_factory.mktemp("conformance")).start()
    yield worker
    worker.stop()


def test_durable_objects_conform(worker):
    suite = subprocess.run(
        [str(TARGET / "debug" / "conformance"), worker.http_address], capture_output=True, text=True, timeout=600
    )
    print(suite.stdout)
    assert suite.returncode == 0, f"{suite.stdout}\n{suite.stderr}\n{worker.log_tail()}"
    assert " passed, 0 failed" in suite.stdout and not suite.stdout.startswith("0 passed")


def test_the_doors_of_the_suite_are_shut_in_production(tmp_path):
    worker = Worker(tmp_path, settings={"DOSQL_CONFORMANCE": "0"}).start()
    try:
        for method, path in [("POST", "/_actor"), ("POST", "/_evict?actor=shard/shard-0"), ("GET", "/_objects"), ("GET", "/_object?path=x")]:
            answer = worker.http.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND"), path
    finally:
        worker.stop()

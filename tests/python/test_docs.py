"""The documents say what is so: the quick start runs as written, and the guides name every setting and error code."""

import re
import shlex
import subprocess
import sys

import pytest
from server import REPOSITORY, Server, program

README = (REPOSITORY / "README.md").read_text()
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.split("## Quick start")[1], re.S)


def test_the_quick_start_runs_as_written(tmp_path):
    (serve,) = re.findall(r"^\./dosql (serve .*)$", README, re.M)
    server = Server(tmp_path / "dosql-data")
    shards = shlex.split(serve)
    server.command = [*server.command[:-2], *shards[1:]]
    server.start()
    outputs = []
    for command in "".join(blocks("sh")).splitlines():
        command = command.replace("./dosql", str(program())).replace("127.0.0.1:8080", server.http_address)
        if command.startswith("websockets "):
            continue  # runs until it is interrupted; the walk covers the stream
        if " import " in command or " sql " in command:
            command += f" --url {server.url}"
        done = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        outputs.append(done.stdout)
    answer = next(output for output in outputs if "origin" in output)
    assert all(origin in answer for origin in ("EWR", "JFK", "LGA"))
    assert any('"columns":["dest","distance"]' in output for output in outputs)

    (read_lake,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", read_lake], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == re.search(r"num_rows\)\s+# (\d+)", read_lake)[1]
    assert server.stop() == 0


def test_every_setting_and_code_is_in_the_operators_guide():
    guide = (REPOSITORY / "docs" / "operator-guide.md").read_text()
    settings = re.findall(r'read\(&variable, "([A-Z_]+)"', (REPOSITORY / "actors/src/runtime/settings.rs").read_text())
    codes = re.findall(r"^  ([A-Z_]+) = [1-9]\d*;", (REPOSITORY / "proto/proto/dosql/v1/error.proto").read_text(), re.M)
    assert len(settings) > 10 and len(codes) > 20
    assert [name for name in (*settings, *codes) if f"`{name}`" not in guide] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    def anchors(text):
        return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}

    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target

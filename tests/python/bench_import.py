"""What an import costs: the CPU time of `dosql import` and its server, beside that of the `sqlite3` program for the same file.

    DOSQL_BIN=target/release/dosql python tests/python/bench_import.py
"""

import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import flights
from server import Server


def cpu_of(process: int) -> float:
    """User and system time of a running process, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def with_sqlite3(file: Path, scratch: Path) -> float:
    before = cpu_of_children()
    columns = ", ".join(
        f"{name} {'TEXT' if name in flights.TEXT_COLUMNS else 'INTEGER'}" for name in file.open().readline().strip().split(",")
    )
    script = f"PRAGMA journal_mode=WAL;\nPRAGMA synchronous=FULL;\nCREATE TABLE flights ({columns});\n"
    script += f'.mode csv\n.import --skip 1 "{file}" flights\n'
    subprocess.run(["sqlite3", str(scratch / "reference.sqlite")], input=script, text=True, check=True, stdout=subprocess.DEVNULL)
    return cpu_of_children() - before


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        file = flights.whole(scratch)
        reference = with_sqlite3(file, scratch)
        server = Server(scratch / "data").start()
        before, idle, begin = cpu_of_children(), cpu_of(server.process.pid), time.monotonic()
        arguments = ["--table", "flights", "--shard-by", "tailnum", "--null", "NA", "--url", server.url]
        done = server.run("import", str(file), *arguments)
        assert done.returncode == 0, done.stderr
        wall = time.monotonic() - begin
        client, serving = cpu_of_children() - before, cpu_of(server.process.pid) - idle
        server.flush()
        lake = cpu_of(server.process.pid) - idle - serving
        peak = server.peak_memory() / (1 << 20)
        server.stop()
    print(f"sqlite3 .import        {reference:6.2f} s CPU")
    print(f"dosql import           {client:6.2f} s CPU in the client, {serving:.2f} s in the server, {wall:.2f} s in all")
    print(f"rest of the lake's work {lake:5.2f} s CPU")
    print(f"ratio                  {(client + serving) / reference:6.2f}")
    print(f"peak memory            {peak:6.0f} MiB")


if __name__ == "__main__":
    main()

"""What reads of the lake cost: the time and the CPU time of queries with `readPreference: analytics`, beside DuckDB's over the
same Iceberg tables, and beside the same queries on the shards.

    DOSQL_BIN=target/release/dosql python tests/python/bench_analytics.py
"""

import statistics
import tempfile
import time
from pathlib import Path

import duckdb
import flights
import lakehouse
from bench_import import cpu_of
from engines import duckdb_connection
from server import Server

ROUNDS = 7
QUERIES = {
    "count": "SELECT COUNT(*) FROM flights",
    "groups": "SELECT carrier, COUNT(*), SUM(distance), AVG(dep_delay) FROM flights GROUP BY carrier",
    "two keys": "SELECT origin, dest, COUNT(*), MIN(dep_delay), MAX(arr_delay) FROM flights GROUP BY origin, dest",
    "filtered": "SELECT dest, COUNT(*) FROM flights WHERE month BETWEEN 6 AND 8 AND dep_delay > 30 GROUP BY dest",
    "few rows": "SELECT flight, dest, dep_delay FROM flights WHERE dep_delay > 600",
    "many rows": "SELECT tailnum, flight, dep_delay FROM flights WHERE month = 7",
}


def over_http(server: Server, sql: str, preference: str) -> tuple[float, float]:
    """Median seconds, and median CPU seconds of the server."""
    def run() -> tuple[float, float]:
        cpu, begin = cpu_of(server.process.pid), time.perf_counter()
        server.post_sql({"sql": sql, "options": {"readPreference": preference}})
        return time.perf_counter() - begin, cpu_of(server.process.pid) - cpu

    run()
    taken = [run() for _ in range(ROUNDS)]
    return statistics.median(wall for wall, _ in taken), statistics.mean(cpu for _, cpu in taken)


def in_duckdb(connection: duckdb.DuckDBPyConnection, table: Path, sql: str) -> tuple[float, float]:
    text = sql.replace("FROM flights", f"FROM iceberg_scan('{table}')")

    def run() -> tuple[float, float]:
        cpu, begin = time.process_time(), time.perf_counter()
        connection.execute(text).fetchall()
        return time.perf_counter() - begin, time.process_time() - cpu

    run()
    taken = [run() for _ in range(ROUNDS)]
    return statistics.median(wall for wall, _ in taken), statistics.mean(cpu for _, cpu in taken)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        server = Server(scratch / "data").start()
        arguments = ["--table", "flights", "--shard-by", "tailnum", "--null", "NA", "--url", server.url]
        done = server.run("import", str(flights.whole(scratch)), *arguments)
        assert done.returncode == 0, done.stderr
        server.flush()
        table = lakehouse.directory(server.data_dir, "flights")
        print(f"{'':12}{'lake':>18}{'DuckDB':>18}{'shards':>18}   lake over DuckDB")
        with duckdb_connection("avro", "iceberg") as connection:
            for name, sql in QUERIES.items():
                lake, shards = over_http(server, sql, "analytics"), over_http(server, sql, "primary")
                other = in_duckdb(connection, table, sql)
                figures = "".join(f"{wall * 1e3:8.1f} {cpu * 1e3:6.1f} ms" for wall, cpu in (lake, other, shards))
                print(f"{name:12}{figures}   {lake[0] / other[0]:.2f} ({lake[1] / other[1]:.2f} CPU)")
        server.stop()


if __name__ == "__main__":
    main()

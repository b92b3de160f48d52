"""The flights of 2013: the sample in the project, the whole file where it is at hand, and SQLite's view of both."""

import csv
import os
import sqlite3
import zipfile
from pathlib import Path

import pytest

from server import REPOSITORY

SAMPLE = REPOSITORY / "tests" / "data" / "flights-sample.csv"
WHOLE_ROWS = 336_776
TEXT_COLUMNS = {"carrier", "tailnum", "origin", "dest", "time_hour"}


def directory() -> Path:
    """Where the whole data set is; the test that asks is skipped, with the reason, where there is none."""
    named = os.environ.get("DOSQL_FLIGHTS_DIR")
    path = Path(named) if named else REPOSITORY.parent / "shared" / "data" / "nycflights13"
    if not path.is_dir():
        pytest.skip(f"the whole flights data is not at {path}: set DOSQL_FLIGHTS_DIR to its directory")
    return path


def whole(scratch: Path) -> Path:
    """The whole file as CSV, unpacked to `scratch` where it is compressed."""
    source = directory()
    if (source / "flights.csv").is_file():
        return source / "flights.csv"
    with zipfile.ZipFile(source / "flights.csv.zip") as archive:
        return Path(archive.extract("flights.csv", scratch))


def read(path: Path) -> tuple[list[str], list[tuple]]:
    """The file as Python values: integers, text, and None for NA."""
    with open(path, newline="") as file:
        reader = csv.reader(file)
        names = next(reader)
        casts = [str if name in TEXT_COLUMNS else int for name in names]
        rows = [
            tuple(None if value == "NA" else cast(value) for cast, value in zip(casts, record, strict=True))
            for record in reader
        ]
    return names, rows


def sqlite_of(path: Path) -> sqlite3.Connection:
    """The same rows in the SQLite of Python, to compare with."""
    names, rows = read(path)
    connection = sqlite3.connect(":memory:")
    columns = ", ".join(f"{name} {'TEXT' if name in TEXT_COLUMNS else 'INTEGER'}" for name in names)
    connection.execute(f"CREATE TABLE flights ({columns})")
    connection.executemany(f"INSERT INTO flights VALUES ({', '.join('?' * len(names))})", rows)
    return connection


# Each query, and whether its ORDER BY leaves no two rows in an order of their own choosing.
QUERIES = [
    ("SELECT COUNT(*) FROM flights", True),
    ("SELECT COUNT(tailnum), COUNT(dep_time), COUNT(*) FROM flights", True),
    ("SELECT SUM(distance), MIN(distance), MAX(distance) FROM flights", True),
    ("SELECT SUM(dep_delay), MIN(dep_delay), MAX(arr_delay), AVG(arr_delay) FROM flights", True),
    ("SELECT AVG(distance) FROM flights WHERE origin = 'JFK'", True),
    ("SELECT MIN(tailnum), MAX(tailnum), MIN(time_hour), MAX(time_hour) FROM flights", True),
    ("SELECT COUNT(*), SUM(air_time), AVG(air_time) FROM flights WHERE dest = 'XXX'", True),
    ("SELECT COUNT(*) FROM flights WHERE dep_time IS NULL", True),
    ("SELECT COUNT(*) FROM flights WHERE tailnum IS NULL", True),
    ("SELECT COUNT(*) FROM flights WHERE dep_delay > 60 AND (carrier = 'UA' OR carrier = 'AA')", True),
    ("SELECT COUNT(*) FROM flights WHERE carrier IN ('B6', 'DL') AND month BETWEEN 6 AND 8", True),
    ("SELECT COUNT(*) FROM flights WHERE dest LIKE 'S%' AND NOT origin = 'LGA'", True),
    ("SELECT * FROM flights WHERE tailnum = 'N14228'", False),
    ("SELECT year, month, day, flight, dest FROM flights WHERE tailnum = 'N24211' ORDER BY time_hour, flight", True),
    ("SELECT COUNT(*), SUM(distance), MAX(arr_delay) FROM flights WHERE tailnum = 'N668DN'", True),
    ("SELECT carrier, flight, dest, tailnum, dep_delay FROM flights WHERE dep_delay > 600 ORDER BY dep_delay DESC", False),
    (
        "SELECT month, day, carrier, flight, origin, sched_dep_time FROM flights "
        "ORDER BY month DESC, day DESC, carrier, flight, origin, sched_dep_time LIMIT 25",
        True,
    ),
    (
        "SELECT time_hour, carrier, flight, origin, sched_dep_time, arr_delay FROM flights WHERE arr_delay IS NOT NULL "
        "ORDER BY arr_delay, time_hour, carrier, flight, origin, sched_dep_time LIMIT 10 OFFSET 5",
        True,
    ),
    (
        "SELECT dep_time, month, day, carrier, flight, origin FROM flights WHERE dest = 'LEX' OR dest = 'LGA' "
        "ORDER BY dep_time, month, day, carrier, flight, origin",
        True,
    ),
    ("SELECT distance * 2 + 1 AS double, origin || '-' || dest AS way FROM flights WHERE flight = 1545 AND month = 1", False),
    ("SELECT carrier, COUNT(*), SUM(distance), AVG(dep_delay) FROM flights GROUP BY carrier ORDER BY carrier", True),
    (
        "SELECT origin, month, COUNT(*) AS departures, MIN(dep_delay), MAX(dep_delay) FROM flights "
        "GROUP BY origin, month ORDER BY origin, month",
        True,
    ),
    ("SELECT dest, COUNT(*) AS n FROM flights GROUP BY dest HAVING COUNT(*) > 9000 ORDER BY n DESC, dest", True),
    ("SELECT DISTINCT origin FROM flights ORDER BY origin", True),
    ("SELECT DISTINCT carrier, origin FROM flights WHERE month = 12 ORDER BY carrier, origin", True),
    ("SELECT COUNT(DISTINCT tailnum) FROM flights", True),
    ("SELECT tailnum, COUNT(*) AS n FROM flights WHERE tailnum IS NOT NULL GROUP BY tailnum ORDER BY n DESC, tailnum LIMIT 5", True),
    (
        "SELECT a.carrier, a.flight, b.carrier AS next_carrier, b.flight AS next_flight FROM flights a JOIN flights b ON a.tailnum = b.tailnum "
        "AND a.month = b.month AND a.day = b.day AND a.dest = b.dest AND a.sched_dep_time < b.sched_dep_time "
        "WHERE a.month = 7 AND b.month = 7 AND a.carrier = 'US' ORDER BY 1, 2, 3, 4",
        True,
    ),
    (
        "WITH late AS (SELECT carrier, COUNT(*) AS n FROM flights WHERE dep_delay > 120 GROUP BY carrier) "
        "SELECT carrier, n, RANK() OVER (ORDER BY n DESC, carrier) AS place FROM late ORDER BY place",
        True,
    ),
    (
        "SELECT origin, dest FROM flights WHERE month = 1 AND origin = 'EWR' EXCEPT "
        "SELECT origin, dest FROM flights WHERE month = 8 AND origin = 'EWR' ORDER BY 2",
        True,
    ),
    ("SELECT COUNT(*) FROM flights WHERE distance > (SELECT AVG(distance) FROM flights)", True),
]


def comparable(rows: list[tuple], ordered: bool) -> list:
    """Rows with the type beside each value, so that 1 is not 1.0; sorted where the query leaves the order open."""
    typed = [tuple((type(value).__name__, value) for value in row) for row in rows]
    return typed if ordered else sorted(typed, key=repr)

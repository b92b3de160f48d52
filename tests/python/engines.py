"""Engines that read the lake's tables, each on nothing but the files. Every one gives a table as rows of Python values.

DuckDB takes its extensions from PyPI packages, so that nothing is downloaded; `avro` must be loaded before `iceberg`."""

import importlib
from pathlib import Path

import chdb
import duckdb
import polars
import pyarrow
from pyiceberg.table import StaticTable


def newest(directory: Path) -> str:
    version = int((directory / "metadata" / "version-hint.text").read_text())
    return str(directory / "metadata" / f"v{version}.metadata.json")


def pyiceberg_rows(directory: Path, columns: tuple[str, ...]) -> list[tuple]:
    return _tuples(StaticTable.from_metadata(newest(directory)).scan(selected_fields=columns).to_arrow(), columns)


def polars_rows(directory: Path, columns: tuple[str, ...]) -> list[tuple]:
    return polars.scan_iceberg(newest(directory)).select(columns).collect().rows()


def duckdb_connection(*extensions: str) -> duckdb.DuckDBPyConnection:
    offline = {"allow_unsigned_extensions": "true", "autoinstall_known_extensions": "false"}
    connection = duckdb.connect(config=offline)
    for name in extensions:
        package = importlib.import_module(f"duckdb_extension_{name}")
        (extension,) = Path(package.__file__).parent.rglob("*.duckdb_extension")
        connection.execute(f"LOAD '{extension}'")
    return connection


def duckdb_rows(directory: Path, columns: tuple[str, ...]) -> list[tuple]:
    with duckdb_connection("avro", "iceberg") as connection:
        names = ", ".join(f'"{name}"' for name in columns)
        # The directory, from which it finds the version hint itself.
        return connection.execute(f"SELECT {names} FROM iceberg_scan('{directory}')").fetchall()


def chdb_rows(directory: Path, columns: tuple[str, ...]) -> list[tuple]:
    names = ", ".join(f"`{name}`" for name in columns)
    # ClickHouse has one type for text and blobs: what is text, the caller's schema knows.
    query = f"SELECT {names} FROM icebergLocal('{directory}') SETTINGS output_format_arrow_string_as_string = 0"
    with pyarrow.BufferReader(chdb.query(query, "Arrow").bytes()) as answer:
        table = pyarrow.ipc.open_file(answer).read_all()
    text = {field.name for field in StaticTable.from_metadata(newest(directory)).schema().fields
            if str(field.field_type) == "string"}
    for at, field in enumerate(table.schema):
        if field.name in text:
            table = table.set_column(at, field.name, table.column(at).cast(pyarrow.string()))
    return _tuples(table, columns)


def _tuples(table: pyarrow.Table, columns: tuple[str, ...]) -> list[tuple]:
    return list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))


ENGINES = {"pyiceberg": pyiceberg_rows, "duckdb": duckdb_rows, "polars": polars_rows, "chdb": chdb_rows}

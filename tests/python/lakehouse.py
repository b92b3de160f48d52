"""Reads the lake as any other engine would: PyIceberg, on nothing but the files."""

from pathlib import Path

import pyarrow
from pyiceberg.table import StaticTable


def directory(data_dir: Path, table: str, namespace: str = "default") -> Path:
    return data_dir / "lake" / "warehouse" / namespace / table


def open_table(data_dir: Path, table: str, namespace: str = "default") -> StaticTable:
    """The table as its newest committed metadata describes it."""
    metadata = directory(data_dir, table, namespace) / "metadata"
    newest = metadata / f"v{int((metadata / 'version-hint.text').read_text())}.metadata.json"
    return StaticTable.from_metadata(str(newest))


def read(data_dir: Path, table: str, columns: tuple[str, ...] = ("*",), namespace: str = "default") -> pyarrow.Table:
    return open_table(data_dir, table, namespace).scan(selected_fields=columns).to_arrow()


def rows(data_dir: Path, table: str, columns: tuple[str, ...]) -> list[tuple]:
    """Rows of the table, as tuples in the order of `columns`."""
    arrow = read(data_dir, table, columns)
    return list(zip(*(arrow.column(name).to_pylist() for name in columns), strict=True))

"""Reads a table of the lake with PyIceberg and prints what is in it as JSON.

usage: read_lake.py TABLE_DIR [--rows]

TABLE_DIR is a table's directory, such as DATA_DIR/lake/warehouse/default/flights. The newest metadata version is read, position
deletes applied. Needs the packages pyiceberg[pyarrow].

{"rows": 3, "snapshots": 2, "columns": {"id": {"type": "long", "nulls": 0, "sum": 6}, "name": {"type": "string", "nulls": 1}}}

With --rows the rows themselves are added, as "data": a list of objects in no particular order.
"""

import argparse
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import StaticTable


def newest_metadata(table_dir: Path) -> Path:
    def version(path: Path) -> int:
        return int(re.fullmatch(r"v(\d+)\.metadata\.json", path.name).group(1))

    return max(table_dir.joinpath("metadata").glob("v*.metadata.json"), key=version)


def column_summary(field, column: pa.ChunkedArray) -> dict:
    summary = {"type": str(field.field_type), "nulls": column.null_count}
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        summary["sum"] = pc.sum(column).as_py() or 0
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table_dir", type=Path)
    parser.add_argument("--rows", action="store_true")
    arguments = parser.parse_args()

    table = StaticTable.from_metadata(str(newest_metadata(arguments.table_dir)))
    data = table.scan().to_arrow()
    summary = {
        "rows": data.num_rows,
        "snapshots": len(table.metadata.snapshots),
        "columns": {
            field.name: column_summary(field, data.column(field.name)) for field in table.schema().fields
        },
    }
    if arguments.rows:
        summary["data"] = data.to_pylist()
    print(json.dumps(summary, default=str))


if __name__ == "__main__":
    main()

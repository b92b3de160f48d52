"""What PyIceberg and DuckDB take for what the lake's writer does; started by the benchmark. Prints one JSON object of CPU seconds.

    peers.py pyiceberg DIRECTORY ROWS.parquet UPDATES.parquet|- ROWS_IN_A_BATCH
    peers.py duckdb OUTPUT ROUNDS FILE...
"""

import json
import sys
import time
from pathlib import Path


def timed(work) -> float:
    """CPU seconds of all threads."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def pyiceberg(directory: str, rows: str, updates: str, batch_rows: str) -> dict:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyiceberg.catalog import MetastoreCatalog
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.exceptions import NoSuchTableError
    from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
    from pyiceberg.schema import Schema
    from pyiceberg.table import CommitTableResponse, Table
    from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
    from pyiceberg.types import NestedField

    class OneTable(NoopCatalog, MetastoreCatalog):
        """A catalog that remembers one table: the least that a catalog can cost."""

        table: Table | None = None

        def create_table(self, identifier, schema, *_, **__):
            location = Path(directory, "table").absolute().as_uri()
            staged = self._create_staged_table(
                identifier, schema, location, UNPARTITIONED_PARTITION_SPEC, UNSORTED_SORT_ORDER,
                {"write.parquet.compression-codec": "zstd", "write.parquet.compression-level": "1"},
            )
            self._write_metadata(staged.metadata, staged.io, staged.metadata_location)
            self.table = Table(identifier, staged.metadata, staged.metadata_location, staged.io, self)
            return self.table

        def load_table(self, identifier):
            if self.table is None:
                raise NoSuchTableError(identifier)
            return self.table

        def commit_table(self, table, requirements, updates):
            staged = self._update_and_stage_table(self.table, table.name(), requirements, updates)
            self._write_metadata(staged.metadata, staged.io, staged.metadata_location)
            self.table = Table(table.name(), staged.metadata, staged.metadata_location, staged.io, self)
            return CommitTableResponse(metadata=staged.metadata, metadata_location=staged.metadata_location)

    Path(directory, "table", "metadata").mkdir(parents=True)
    Path(directory, "table", "data").mkdir(parents=True)
    arrow = pq.read_table(rows)
    catalog = OneTable("bench", warehouse=Path(directory).absolute().as_uri())
    from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids
    from pyiceberg.schema import assign_fresh_schema_ids

    schema = assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(arrow.schema))
    identifier = NestedField(1, "id", schema.fields[0].field_type, required=True)
    schema = Schema(identifier, *schema.fields[1:], identifier_field_ids=[1])
    table = catalog.create_table(("default", "orders"), schema)
    arrow_schema = schema.as_arrow()
    size = int(batch_rows)
    batches = [batch.to_pylist() for batch in arrow.to_batches(max_chunksize=size)]
    taken: dict = {"convert": [], "append": [], "upsert": []}
    made = []
    for batch in batches:
        # What changes come as: rows.
        taken["convert"].append(timed(lambda: made.append(pa.Table.from_pylist(batch, schema=arrow_schema))))
        taken["append"].append(timed(lambda: table.append(made[-1])))
    given = [] if updates == "-" else pq.read_table(updates).to_batches(max_chunksize=size)
    changed = [batch.to_pylist() for batch in given]
    for batch in changed:
        update = pa.Table.from_pylist(batch, schema=arrow_schema)
        taken["upsert"].append(timed(lambda: table.upsert(update)))
    assert table.scan().to_arrow().num_rows == arrow.num_rows
    return taken | {"upserted": [len(batch) for batch in changed]}


def duckdb(output: str, rounds: str, *files: str) -> dict:
    import duckdb

    connection = duckdb.connect()
    sql = f"COPY (SELECT * FROM read_parquet(?)) TO '{output}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 100000)"
    # The first time warms everything up.
    taken = [timed(lambda: connection.execute(sql, [list(files)])) for _ in range(int(rounds) + 1)]
    return {"rewrite": taken[1:]}


if __name__ == "__main__":
    task = {"pyiceberg": pyiceberg, "duckdb": duckdb}[sys.argv[1]]
    print(json.dumps(task(*sys.argv[2:])))

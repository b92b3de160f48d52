"""The lake's endpoints on a Worker: status, compaction, clean-up and options, with the same bodies as those of `dosql serve`."""

import lakehouse
import pytest
from worker import Worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    settings = {"AUTO_SHARD": "primary-key", "DOLAKE_SNAPSHOT_RETENTION_MS": 1, "DOLAKE_KEEP_SNAPSHOTS": 1}
    worker = Worker(tmp_path_factory.mktemp("lake"), shards=2, settings=settings).start()
    worker.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    yield worker
    worker.stop()


def post(worker, path, body=None, status=200):
    answer = worker.http.post(path, json=body) if body is not None else worker.http.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_lake_is_compacted_and_cleaned_up(worker):
    for id in range(4):
        worker.sql("INSERT INTO t VALUES (?, ?)", id, f"v{id}")
        worker.flush()
    worker.sql("DELETE FROM t WHERE id = 0")
    worker.flush()
    names = [table["name"] for table in worker.http.get("/status").json()["lake"]["tables"]]
    assert sorted(names) == ["t", "t__changes"]

    results = post(worker, "/admin/compact", {"tables": ["t"], "mode": "full"})["results"]
    assert {result["table"] for result in results} == {"t", "t__changes"}
    assert all(result["files_after"] < result["files_before"] for result in results)
    assert post(worker, "/admin/compact", {"mode": "full"}) == {"results": []}

    plan = post(worker, "/admin/cleanup", {"dryRun": True})
    assert plan["dry_run"] and plan["deleted_files"] > 0
    done = post(worker, "/admin/cleanup", {"mode": "deep"})
    assert done["deleted_files"] >= plan["deleted_files"] and done["freed_bytes"] > 0 and done["errors"] == []

    worker.fetch_lake()
    assert sorted(lakehouse.rows(worker.data_dir, "t", ("id", "v"))) == [(id, f"v{id}") for id in range(1, 4)]


def test_options_of_a_table_are_set_and_kept(worker):
    body = {"table": "t", "set": {"misfits": "widen", "changes": False, "row_group_size": 500}, "reset": []}
    options = post(worker, "/admin/lake/options", body)["tables"]["t"]
    assert (options["misfits"], options["row_group_size"]) == ({"value": "widen", "set": True}, {"value": "500", "set": True})
    worker.evict("lake/default")
    assert worker.http.get("/admin/lake/options", params={"table": "t"}).json()["tables"]["t"] == options
    reset = post(worker, "/admin/lake/options", {"table": "t", "reset": ["misfits", "changes", "row_group_size"]})
    assert not any(option["set"] for option in reset["tables"]["t"].values())


@pytest.mark.parametrize("part", ["year", "month", "hour"])
def test_tables_are_partitioned_by_parts_of_times(worker, part):
    table = f"by_{part}"
    worker.sql(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY)")
    worker.sql(f"ALTER LAKE ON {table} SET partition_by = '{part}(_committed_at)'")
    worker.sql(f"INSERT INTO {table} VALUES (1), (2), (3)")
    worker.flush()
    worker.fetch_lake()
    assert sorted(lakehouse.rows(worker.data_dir, table, ("id",))) == [(1,), (2,), (3,)]
    assert list(worker.data_dir.rglob(f"{table}/data/_committed_at_{part}=*"))


def test_what_cannot_be_done_is_refused(worker):
    assert post(worker, "/admin/compact", {"tables": ["nothing"]}, 404)["error"]["code"] == "NOT_FOUND"
    assert post(worker, "/admin/cleanup", {"mode": "some"}, 400)["error"]["code"] == "INVALID_REQUEST"
    assert post(worker, "/admin/lake/options", {"table": "t", "set": {"no": 1}}, 400)["error"]["code"] == "INVALID_REQUEST"
    assert worker.http.get("/admin/lake/options?name=t").status_code == 400
    assert worker.http.get("/admin/compact").status_code == 405

"""`kill -9` of the server at random moments under load: what was acknowledged is there afterwards, in the shards, in the
change stream and in the lake, and nothing is there twice.

DOSQL_KILL_ROUNDS sets the number of rounds, DOSQL_SEED replays the choices of an earlier run."""

import os
import random
import time
from collections import Counter

import lakehouse
from history import Follower, Promises, Writer
from server import Server, next_frame

ROUNDS = int(os.environ.get("DOSQL_KILL_ROUNDS", "50"))
WRITERS = 4
# Small, so that kills fall into every stage of a commit to the lake.
SETTINGS = {
    "DOLAKE_FLUSH_INTERVAL_MS": 150,
    "DOLAKE_EVENT_THRESHOLD": 400,
    "CDC_BATCH_TIMEOUT_MS": 100,
    "CDC_RETRY_DELAY_MS": 20,
    # Keeps the whole log, to be read from the beginning at the end.
    "DOSQL_WAL_SEGMENT_SIZE": 1 << 30,
}
COLUMNS = ("writer", "id", "value", "note")


def keyed(rows) -> dict[tuple, tuple]:
    by_key = {tuple(row[:2]): tuple(row[2:]) for row in rows}
    assert len(by_key) == len(rows), "a row is there twice"
    return by_key


def catch_up(server: Server, follower: Follower, rows: dict) -> None:
    """Follows the stream to where it ends, where it must imply `rows`."""
    with server.subscribe(from_="latest", heartbeat_ms=50) as socket:
        ends = [part.rsplit(":", 1) for part in next_frame(socket)["position"].split(",")]
    with server.subscribe(from_=follower.position) as socket:
        while any(follower.lsns.get(shard, 0) < int(lsn) for shard, lsn in ends):
            try:
                follower.apply(next_frame(socket, timeout=10))
            except TimeoutError:
                raise AssertionError(f"the stream rests at {follower.position}, of {ends}") from None
    missing, extra = rows.items() - follower.rows.items(), follower.rows.items() - rows.items()
    assert not missing and not extra, f"the stream lacks {list(missing)[:5]} and has {list(extra)[:5]}"


def check_lake(server: Server, follower: Follower, rows: dict) -> None:
    server.flush()
    assert keyed(lakehouse.rows(server.data_dir, "events", COLUMNS)) == rows
    log = lakehouse.rows(server.data_dir, "events__changes", ("_shard", "_lsn", "_ordinal", "_operation", *COLUMNS))
    counted = Counter(operation for _, _, _, operation, *_ in log)
    expected = Counter(follower.operations)
    expected["update_before"] = expected["update_after"] = expected.pop("update")
    assert counted == +expected
    assert len({entry[:4] for entry in log}) == len(log), "a change is in the change log twice"
    # Replayed, the log gives the rows.
    replayed = {}
    for _, _, _, operation, writer, id, value, note in sorted(log, key=lambda entry: entry[:3]):
        if operation in ("delete", "update_before"):
            assert replayed.pop((writer, id)) == (value, note)
        else:
            assert replayed.setdefault((writer, id), (value, note)) == (value, note)
    assert replayed == rows


def test_nothing_acknowledged_is_lost_or_repeated(tmp_path):
    seed = os.environ.get("DOSQL_SEED", str(time.time_ns()))
    print(f"DOSQL_SEED={seed}")
    choice = random.Random(seed)
    promises = [Promises() for _ in range(WRITERS)]
    follower = Follower()
    # Each writer's rows live on one shard, so that a batch of them is one transaction.
    server = Server(tmp_path / "data", "--auto-shard", "first-column", settings=SETTINGS)
    server.start()
    server.sql("CREATE TABLE events (writer INTEGER, id INTEGER, value INTEGER, note TEXT, PRIMARY KEY (writer, id))")
    for round in range(ROUNDS):
        first_id = round * 1_000_000
        writers = [
            Writer(server, number, promises[number], first_id, f"{seed} {round} {number}") for number in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        time.sleep(choice.choice([0.05, 0.3, 1.0]) * choice.random() + 0.02)
        server.kill()
        for writer in writers:
            writer.join(timeout=120)
            assert not writer.is_alive(), f"writer {writer.number} hangs"
            if writer.failure:
                raise writer.failure

        if choice.random() < 0.2:  # also while it recovers
            server.start()
            time.sleep(choice.random() * 0.3)
            server.kill()
        server.start()
        rows = keyed(server.rows("SELECT writer, id, value, note FROM events"))
        for number, promise in enumerate(promises):
            promise.settle(rows, number)
        catch_up(server, follower, rows)
        if round % 5 == 4 or round == ROUNDS - 1:
            check_lake(server, follower, rows)
            print(f"round {round + 1}: {len(rows)} rows, {sum(p.acknowledgements for p in promises)} acknowledgements")
    assert sum(promise.acknowledgements for promise in promises) > 10 * ROUNDS

    whole = Follower()
    catch_up(server, whole, rows)
    assert whole.operations == follower.operations and whole.lsns == follower.lsns
    assert server.stop() == 0, server.log_tail()
    assert b"panicked" not in server.log_path.read_bytes()

"""What a set of concurrent writers has been promised: every acknowledged write, and those whose outcome nobody knows."""

import random
import threading
from dataclasses import dataclass, field

import grpc
import httpx
from rpc import Client, RpcError, query_pb2, row, statement
from server import Server, SqlError

# Answers after which a write may or may not have happened.
IN_DOUBT = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "OVERLOADED"}


@dataclass
class Promises:
    """The rows of one writer: (writer, id) -> (value, note)."""

    acknowledged: dict[tuple, tuple] = field(default_factory=dict)
    # Writes nobody answered: for each key, the states it may be in besides the acknowledged one (None: no row).
    in_doubt: dict[tuple, set] = field(default_factory=dict)
    # Those of them that were one transaction.
    all_or_nothing: list[dict] = field(default_factory=list)
    acknowledgements: int = 0

    def applied(self, changes: dict) -> None:
        self.acknowledgements += 1
        for key, state in changes.items():
            if state is None:
                self.acknowledged.pop(key, None)
            else:
                self.acknowledged[key] = state

    def unknown(self, changes: dict, atomic: bool) -> None:
        for key, state in changes.items():
            self.in_doubt.setdefault(key, set()).add(state)
        if atomic:
            self.all_or_nothing.append(changes)

    def settle(self, rows: dict[tuple, tuple], writer: int) -> None:
        """Compares with the rows of the database; what was in doubt is from now on what was found."""
        mine = {key: state for key, state in rows.items() if key[0] == writer}
        for key in mine.keys() | self.acknowledged.keys():
            found, promised = mine.get(key), self.acknowledged.get(key)
            possible = {promised} | self.in_doubt.get(key, set())
            assert found in possible, f"row {key} is {found}; acknowledged was {promised}, possible is {possible}"
        for changes in self.all_or_nothing:
            happened = [mine.get(key) == state for key, state in changes.items()]
            assert all(happened) or not any(happened), f"{sum(happened)} of {len(happened)} writes of a batch happened"
        self.acknowledged, self.in_doubt, self.all_or_nothing = mine, {}, []


class Writer(threading.Thread):
    """Writes rows of its own, in every way there is, until the server is gone."""

    def __init__(self, server: Server, number: int, promises: Promises, first_id: int, seed: str):
        super().__init__(daemon=True)
        self.server = server
        self.number = number
        self.promises = promises
        self.next_id = first_id
        self.random = random.Random(seed)
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.client = Client(self.server.grpc_address)
            with httpx.Client(base_url=f"http://{self.server.http_address}", timeout=60) as self.http:
                while self.one_write():
                    pass
            self.client.close()
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it again
            self.failure = error

    def one_write(self) -> bool:
        ways = [self.insert_http, self.insert_rpc, self.batch, self.load]
        if self.promises.acknowledged:
            ways += [self.update, self.delete]
        way = self.random.choice(ways)
        changes, call = way()
        atomic = way != self.load  # a load is committed shard by shard
        try:
            call()
        except (httpx.TransportError, ValueError):
            self.promises.unknown(changes, atomic)
            return False
        except (SqlError, RpcError) as error:
            gone = isinstance(error, RpcError) and not error.typed and error.status in (
                grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL,
            )
            if not gone and error.code not in IN_DOUBT:
                raise
            self.promises.unknown(changes, atomic)
            return not gone
        self.promises.applied(changes)
        return True

    def fresh(self, count: int) -> dict:
        keys = [(self.number, self.next_id + offset) for offset in range(count)]
        self.next_id += count
        return {key: (self.random.randrange(1 << 40), f"note {self.random.randrange(1 << 20)}") for key in keys}

    def known(self) -> tuple:
        """A row of a certain state; one in doubt would make the next state uncertain twice over."""
        certain = [key for key in self.promises.acknowledged if key not in self.promises.in_doubt]
        return self.random.choice(certain[-200:])

    def insert_http(self):
        changes = self.fresh(1)
        ((key, state),) = changes.items()
        return changes, lambda: self.server.sql("INSERT INTO events VALUES (?, ?, ?, ?)", *key, *state, http=self.http)

    def insert_rpc(self):
        changes = self.fresh(1)
        ((key, state),) = changes.items()
        return changes, lambda: self.client.execute("INSERT INTO events VALUES (?, ?, ?, ?)", *key, *state)

    def batch(self):
        changes = self.fresh(self.random.randrange(2, 20))
        statements = [statement("INSERT INTO events VALUES (?, ?, ?, ?)", *key, *state) for key, state in changes.items()]
        return changes, lambda: self.client.batch(*statements)

    def load(self):
        changes = self.fresh(self.random.randrange(1, 300))
        request = query_pb2.LoadRequest(
            table="events",
            columns=["writer", "id", "value", "note"],
            rows=[row((*key, *state)) for key, state in changes.items()],
            request_id=f"load {self.number} {self.next_id}",
        )
        return changes, lambda: self.client.load([request])

    def update(self):
        key = self.known()
        value, note = self.promises.acknowledged[key]
        sql = "UPDATE events SET value = value + 1 WHERE writer = ? AND id = ?"
        return {key: (value + 1, note)}, lambda: self.client.execute(sql, *key)

    def delete(self):
        key = self.known()
        return {key: None}, lambda: self.server.sql("DELETE FROM events WHERE writer = ? AND id = ?", *key, http=self.http)


class Follower:
    """Follows the change stream over the life of many servers, and keeps the rows it implies.

    Every record must continue where the shard's last one ended, and fit the rows as they were: no change is missed,
    repeated or out of order."""

    def __init__(self, start: str = "earliest"):
        self.position = start
        self.lsns: dict[str, int] = {}
        self.rows: dict[tuple, tuple] = {}
        self.operations = {"insert": 0, "update": 0, "delete": 0}

    def apply(self, frame: dict) -> None:
        shard, lsn = frame["shard"], frame["lsn"]
        assert lsn == self.lsns.get(shard, 0) + 1, f"{shard}: LSN {lsn} after {self.lsns.get(shard, 0)}"
        self.lsns[shard] = lsn
        for change in frame["changes"]:
            if change["table"] != "events":
                continue
            before, after = (
                None if image is None else ((image["writer"], image["id"]), (image["value"], image["note"]))
                for image in (change["before"], change["after"])
            )
            if before is not None:
                assert self.rows.pop(before[0], None) == before[1], f"{shard}:{lsn} changes a row that was not so: {before}"
            if after is not None:
                assert after[0] not in self.rows, f"{shard}:{lsn} makes a row again: {after}"
                self.rows[after[0]] = after[1]
            self.operations[change["op"]] += 1
        self.position = frame["position"]

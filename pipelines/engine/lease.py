"""Leases: at most one process works on a stage, and a dead one's work is taken over by exactly one other.

A lease is the file `<fingerprint>.<generation>`, created exclusively; the highest generation holds. A holder on this
machine is dead when its process is; a holder elsewhere is dead when its heartbeat (the file's mtime) stands still for
`ttl_s` of the watcher's own clock, so that no two hosts' clocks are ever compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

HEARTBEAT_S = 5.0
TTL_S = 60.0
# A lease's owner is written at once; a file without one for longer is that of a process killed in between.
UNWRITTEN_TTL_S = 5.0


class LeaseHeld(Exception):
    """Another process works on the stage."""

    def __init__(self, holder: "Holder") -> None:
        super().__init__(f"leased by {holder.owner.describe() if holder.owner else 'an unknown process'}")
        self.holder = holder


class LeaseLost(RuntimeError):
    """This process no longer holds the stage that it works on; it may not publish."""


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one with the same pid by its start time, and one of its leases (`token`)."""

    token: str
    machine: str
    host: str
    pid: int
    process_start: str | None

    def describe(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Holder:
    """The highest generation found for a fingerprint; `owner` is None while its file is not yet written."""

    fingerprint: str
    generation: int
    owner: Owner | None
    beat_ns: int

    @property
    def token(self) -> str:
        return self.owner.token if self.owner else f"{self.fingerprint}.{self.generation}"


def this_owner(token: str | None = None) -> Owner:
    """Describe the calling process as the owner of a lease named by `token`."""
    pid = os.getpid()
    return Owner(token or uuid.uuid4().hex, _this_machine(), socket.gethostname(), pid, _process_start(pid))


def _this_machine() -> str:
    # Containers may share a host's name and boot id, but then see other pids.
    parts = [socket.gethostname()]
    if Path("/proc/self/ns/pid").exists():
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return "/".join(parts)


def _process_start(pid: int) -> str | None:
    """Return the start time of a live process in ticks since boot, None when it is dead, a zombie or unknown."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else rest[18]


def process_is_dead(owner: Owner) -> bool:
    """Tell whether the owner is a process of this machine that has ended; False when that cannot be known."""
    return (
        owner.process_start is not None
        and owner.machine == _this_machine()
        and _process_start(owner.pid) != owner.process_start
    )


class Leases:
    """The lease files of one store."""

    def __init__(self, folder: Path, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.folder = folder
        self.heartbeat_s = heartbeat_s

    def holders(self) -> dict[str, Holder]:
        """Return the holder of every leased fingerprint, dead ones among them."""
        generations: dict[str, int] = {}
        for name in os.listdir(self.folder) if self.folder.is_dir() else ():
            fingerprint, _, number = name.partition(".")
            generations[fingerprint] = max(generations.get(fingerprint, 0), int(number))
        found = (self._read(fingerprint, number) for fingerprint, number in generations.items())
        return {holder.fingerprint: holder for holder in found if holder}

    def holder(self, fingerprint: str) -> Holder | None:
        """Return who holds this fingerprint, dead or alive, or None."""
        generation = self._top(fingerprint)
        return self._read(fingerprint, generation) if generation else None

    def acquire(self, fingerprint: str, owner: Owner, dead: frozenset[str] = frozenset()) -> "Lease":
        """Take the lease, over a holder that is dead here or whose token the caller knows to be dead.

        Raises LeaseHeld when another process holds it or wins the race for it.
        """
        holder = self.holder(fingerprint)
        if holder and not is_dead(holder, dead):
            raise LeaseHeld(holder)
        generation = holder.generation + 1 if holder else 1
        content = json.dumps(vars(owner)).encode()
        try:
            descriptor = os.open(self._path(fingerprint, generation), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            winner = self.holder(fingerprint) or Holder(fingerprint, generation, None, 0)
            raise LeaseHeld(winner) from None
        # At once: of a process killed in between, nobody could tell whose the lease is.
        os.write(descriptor, content)
        os.close(descriptor)
        return Lease(self, fingerprint, generation, owner)

    def discard(self, fingerprint: str, token: str) -> None:
        """Remove the lease of an attempt that has ended, unless another took it over."""
        holder = self.holder(fingerprint)
        if holder and holder.token == token:
            # Lower generations first: an earlier holder that wakes up must never find itself to be the highest.
            for generation in range(1, holder.generation + 1):
                self._path(fingerprint, generation).unlink(missing_ok=True)

    def _path(self, fingerprint: str, generation: int) -> Path:
        return self.folder / f"{fingerprint}.{generation}"

    def _top(self, fingerprint: str) -> int:
        # Leases of ended stages are removed, so this folder holds no more than what is in flight or was killed.
        prefix = fingerprint + "."
        names = os.listdir(self.folder) if self.folder.is_dir() else ()
        return max((int(name[len(prefix) :]) for name in names if name.startswith(prefix)), default=0)

    def _read(self, fingerprint: str, generation: int) -> Holder | None:
        try:
            # Opening revalidates a network file system's cached attributes; a bare stat may be a minute old.
            with open(self._path(fingerprint, generation)) as file:
                beat_ns = os.fstat(file.fileno()).st_mtime_ns
                text = file.read()
        except FileNotFoundError:
            return None
        return Holder(fingerprint, generation, Owner(**json.loads(text)) if text else None, beat_ns)


def is_dead(holder: Holder, dead: frozenset[str] = frozenset()) -> bool:
    """Tell whether a holder is known to be dead: by the caller's word or because its process ended on this machine."""
    return holder.token in dead or (holder.owner is not None and process_is_dead(holder.owner))


class Lease:
    """A held lease; as a context manager it beats while it is held and is given back at the end."""

    def __init__(self, leases: Leases, fingerprint: str, generation: int, owner: Owner) -> None:
        self._leases = leases
        self.file = leases.folder / f"{fingerprint}.{generation}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{fingerprint[:8]}", daemon=True)
        self.fingerprint = fingerprint
        self.generation = generation
        self.owner = owner

    def check(self) -> None:
        """Raise LeaseLost unless this is still the highest generation."""
        holder = self._leases.holder(self.fingerprint)
        if holder is None or holder.token != self.owner.token:
            by = f" by {holder.owner.describe()}" if holder and holder.owner else ""
            raise LeaseLost(f"the lease on {self.fingerprint[:8]} was taken over{by}")

    @property
    def is_beating(self) -> bool:
        return self._thread.is_alive()

    def is_lost(self) -> bool:
        try:
            self.check()
        except LeaseLost:
            return True
        return False

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._leases.discard(self.fingerprint, self.owner.token)

    def _beat(self) -> None:
        # A lost lease is left alone: its file may be another's by now. `check` tells the stage before it publishes.
        while not self._ended.wait(self._leases.heartbeat_s) and not self.is_lost():
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.file)


class LeaseWatch:
    """One launcher's memory of other holders' heartbeats: says which of them stand still for `ttl_s`."""

    def __init__(self, ttl_s: float = TTL_S) -> None:
        self._ttl_s = ttl_s
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def stands_still(self, holder: Holder) -> bool:
        """Tell whether this holder's heartbeat has not moved for `ttl_s` since this watch first saw it so.

        `UNWRITTEN_TTL_S` is enough where no owner was ever written; should that process go on, it finds its lease lost.
        """
        beat = (holder.generation, holder.beat_ns)
        now = time.monotonic()
        previous, since = self._seen.get(holder.fingerprint, (None, now))
        if previous != beat:
            self._seen[holder.fingerprint] = (beat, now)
            return False
        return now - since >= (self._ttl_s if holder.owner else min(self._ttl_s, UNWRITTEN_TTL_S))

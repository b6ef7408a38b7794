"""What only one process of a store may do at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.engine import LeaseHeld, Store
from pipelines.engine.lease import LeaseWatch, Owner

POLL_S = 0.2


@contextmanager
def alone(store: Store, name: str, owner: Owner, watch: LeaseWatch, *, patient: bool) -> Iterator[None]:
    """Hold a lease of the store. Raises LeaseHeld where another process holds it, unless patient."""
    dead: frozenset[str] = frozenset()
    while True:
        try:
            lease = store.leases.acquire(name, owner, dead)
            break
        except LeaseHeld as held:
            if watch.stands_still(held.holder):
                dead |= {held.holder.token}
            elif not patient:
                raise
            else:
                time.sleep(POLL_S)
    with lease:
        yield

"""The engine: stages, their identity, the store, and the runners."""

from pipelines.engine.fingerprint import ABSENT, Difference, NotEncodable, diff, encode, fingerprint
from pipelines.engine.lease import LeaseHeld, LeaseLost
from pipelines.engine.local_runner import LocalRunner
from pipelines.engine.plan import PlannedStage, State, explain, plan
from pipelines.engine.provenance import hide_passwords
from pipelines.engine.ray_runner import RayRunner
from pipelines.engine.runner import Event, EventKind, OnEvent, Runner, Summary, ignore
from pipelines.engine.stage import Artifact, Resources, Stage, StageConfig, Workers, walk
from pipelines.engine.store import Failure, Record, Store, StoreError

__all__ = [
    "ABSENT",
    "Artifact",
    "Difference",
    "Event",
    "EventKind",
    "Failure",
    "LeaseHeld",
    "LeaseLost",
    "LocalRunner",
    "NotEncodable",
    "OnEvent",
    "PlannedStage",
    "RayRunner",
    "Record",
    "Resources",
    "Runner",
    "Stage",
    "StageConfig",
    "State",
    "Store",
    "StoreError",
    "Summary",
    "Workers",
    "diff",
    "encode",
    "explain",
    "fingerprint",
    "hide_passwords",
    "ignore",
    "plan",
    "walk",
]

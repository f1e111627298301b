"""What should exist: pure decisions from a snapshot of the cluster to the actions that mend it."""

from sheaf_operator.planning.actions import (
    Action,
    CreatePod,
    DeletePod,
    DrainPod,
    EmitEvent,
    Plan,
    PodTemplate,
    SetCatalog,
    UpdateStatus,
)
from sheaf_operator.planning.compose import plan, plan_key
from sheaf_operator.planning.engine import EngineCommand, EngineEndpoints, engine_command
from sheaf_operator.planning.index import FleetIndex, Item, ItemKind, Key, Obstacle
from sheaf_operator.planning.refs import Finding
from sheaf_operator.planning.snapshot import ClusterSnapshot, Notice, PodFacts

__all__ = [
    "Action",
    "ClusterSnapshot",
    "CreatePod",
    "DeletePod",
    "DrainPod",
    "EmitEvent",
    "EngineCommand",
    "EngineEndpoints",
    "Finding",
    "FleetIndex",
    "Item",
    "ItemKind",
    "Key",
    "Notice",
    "Obstacle",
    "Plan",
    "PodFacts",
    "PodTemplate",
    "SetCatalog",
    "UpdateStatus",
    "engine_command",
    "plan",
    "plan_key",
]

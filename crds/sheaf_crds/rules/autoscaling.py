"""Rules on AutoscalingPolicies."""

from sheaf_crds.rules.rule import Rule

_KIND = ("AutoscalingPolicy",)
_SPEC = ("spec",)
_WINDOW = ("spec", "schedules", "*")

AUTOSCALING = (
    Rule(
        _KIND,
        _SPEC,
        "self.minReplicas <= self.maxReplicas",
        "minReplicas is above maxReplicas",
        "lower minReplicas or raise maxReplicas",
        "minReplicas",
    ),
    Rule(
        _KIND,
        _SPEC,
        "self.minReplicas > 0 || has(self.scaleToZero)",
        "minReplicas 0 is never reached without scaleToZero",
        "add scaleToZero, such as {after: 30m}, or set minReplicas to 1",
        "minReplicas",
    ),
    Rule(
        _KIND,
        _SPEC,
        "self.signal != 'Concurrency' || has(self.target)",
        "signal Concurrency needs a target",
        "set target to the running requests that one replica should have, such as 32",
        "target",
    ),
    Rule(
        _KIND,
        _SPEC,
        "self.signal != 'QueuePressure' || !has(self.target) || self.target <= 1.0",
        "target is above 1, and QueuePressure is a share of capacity",
        "write a share from 0 to 1, such as 0.8",
        "target",
    ),
    Rule(
        _KIND,
        _SPEC,
        "self.signal != 'SLO' || !has(self.target)",
        "signal SLO takes its aim from the SLO of the Model, so a target has no effect",
        "remove target or set signal to Concurrency or QueuePressure",
        "target",
    ),
    Rule(
        _KIND,
        ("spec", "scaleToZero", "after"),
        "duration(self) > duration('0s')",
        "a replica that may go at once never stays",
        "write a time above zero, such as 30m",
    ),
    Rule(
        _KIND,
        _WINDOW,
        "self.start != self.end",
        "the window closes when it opens",
        "set end to another time than start; for whole days write 00:00 to 24:00",
        "end",
    ),
    Rule(
        _KIND,
        _WINDOW,
        "has(self.minReplicas) || has(self.maxReplicas)",
        "the window changes nothing",
        "set minReplicas or maxReplicas, or remove the window",
    ),
    Rule(
        _KIND,
        _WINDOW,
        "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
        "minReplicas is above maxReplicas in this window",
        "lower minReplicas or raise maxReplicas",
        "minReplicas",
    ),
    Rule(
        _KIND,
        _SPEC,
        "self.schedules.all(w, !has(w.minReplicas) || has(w.maxReplicas) || w.minReplicas <= self.maxReplicas)",
        "a window asks for more replicas than maxReplicas allows",
        "give that window a maxReplicas of its own or raise spec.maxReplicas",
        "schedules",
    ),
    Rule(
        _KIND,
        _SPEC,
        "self.schedules.all(w, !has(w.maxReplicas) || has(w.minReplicas) || w.maxReplicas >= self.minReplicas)",
        "a window allows fewer replicas than minReplicas asks for",
        "give that window a minReplicas of its own or lower spec.minReplicas",
        "schedules",
    ),
)

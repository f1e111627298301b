"""Rules on names and sources, which several kinds share."""

from sheaf_crds.rules.rule import Rule

_ANY = ("Model", "Adapter", "SLO", "AutoscalingPolicy")
_SOURCED = ("Model", "Adapter")

NAMES = (
    Rule(
        _ANY,
        (),
        "size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')",
        "the name is longer than 63 characters or has a dot in it, and names of pods are made from it",
        "write at most 63 lower-case letters, digits and '-'",
        "metadata.name",
    ),
    Rule(
        ("Adapter",),
        (),
        "self.metadata.name != self.spec.modelRef.name",
        "the adapter has the name of its own model, and callers choose between them by name",
        "rename the adapter or correct spec.modelRef.name",
        "spec.modelRef.name",
    ),
)


def _source_rule(cel: str, what: str, mend: str) -> Rule:
    return Rule(_SOURCED, ("spec", "source"), cel, what, mend)


SOURCES = (
    _source_rule(
        "!self.startsWith('hf://') || self.matches('^hf://[^/@]+/[^/@]+(@[^/@]+)?(/[^@]+)?$')",
        "the source names no repository of the hub",
        "write hf://ORG/NAME, hf://ORG/NAME@REVISION or hf://ORG/NAME/SUBDIRECTORY",
    ),
    _source_rule(
        "!self.startsWith('s3://') || self.matches('^s3://[a-z0-9][-.a-z0-9]+[a-z0-9](/.*)?$')",
        "the source names no bucket",
        "write s3://BUCKET/PREFIX with a bucket name of lower-case letters, digits, '-' and '.'",
    ),
    _source_rule(
        "!self.startsWith('https://') || self.matches('^https://[^/@?#]+(/[^?#]*)?$')",
        "the source is not a plain https address",
        "write https://HOST/DIRECTORY without user, password, query or fragment",
    ),
    Rule(
        ("Model",),
        ("spec", "source"),
        "!self.startsWith('pvc://') || self.matches('^pvc://[a-z0-9]([-.a-z0-9]*[a-z0-9])?(/.*)?$')",
        "the source names no volume claim",
        "write pvc://CLAIM/PATH",
    ),
    _source_rule(
        "!self.startsWith('file://') || self.matches('^file:///[^/]')",
        "the source is not an absolute path",
        "write file:///ABSOLUTE/PATH with three slashes",
    ),
    _source_rule(
        "!self.contains('/../') && !self.contains('/./') && !self.endsWith('/..') && !self.endsWith('/.')",
        "the source has '.' or '..' as a part of its path",
        "write the path without them",
    ),
)

SIZES = (
    Rule(
        ("Adapter",),
        ("spec", "sizeLimit"),
        "!self.matches('^[0.]+[A-Za-z]*$')",
        "a limit of zero refuses every adapter",
        "write a size above zero, such as 2Gi",
    ),
)

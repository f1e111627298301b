"""Rules on Models."""

from sheaf_crds.rules.rule import Rule

# Flags that Sheaf sets on every engine, or that would move the engine away from where Sheaf looks for it.
OWNED_FLAGS = (
    "api-key",
    "api-server-count",
    "config",
    "enable-lora",
    "grpc",
    "grpc-port",
    "headless",
    "host",
    "kv-events-config",
    "lora-modules",
    "max-cpu-loras",
    "max-lora-rank",
    "max-loras",
    "model",
    "port",
    "root-path",
    "runner",
    "served-model-name",
    "ssl-ca-certs",
    "ssl-certfile",
    "ssl-keyfile",
    "task",
    "uds",
)
OWNED_ENV = (
    "HF_HUB_OFFLINE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_API_KEY",
    "VLLM_HOST_IP",
    "VLLM_PORT",
)
OWNED_ENV_PREFIX = "SHEAF_"


def _owned_flags_regex() -> str:
    flags = "|".join(flag.replace("-", "[-_]") for flag in OWNED_FLAGS)
    return f"^--(no[-_])?({flags})([=.].*)?$"


MODEL = (
    Rule(
        ("Model",),
        ("spec",),
        "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
        "minReplicas is above maxReplicas",
        "lower minReplicas or raise maxReplicas",
        "minReplicas",
    ),
    Rule(
        ("Model",),
        ("spec",),
        "has(self.autoscalingPolicyRef) || self.replicas >= self.minReplicas",
        "replicas is below minReplicas",
        "raise replicas (it is 1 where it is left out), lower minReplicas or name an autoscalingPolicyRef",
        "replicas",
    ),
    Rule(
        ("Model",),
        ("spec",),
        "has(self.autoscalingPolicyRef) || !has(self.maxReplicas) || self.replicas <= self.maxReplicas",
        "replicas is above maxReplicas",
        "lower replicas, raise maxReplicas or name an autoscalingPolicyRef",
        "replicas",
    ),
    Rule(
        ("Model",),
        ("spec",),
        "!has(self.maxReplicas) || self.spot.onDemandFloor <= self.maxReplicas",
        "onDemandFloor is above maxReplicas",
        "lower spot.onDemandFloor or raise maxReplicas",
        "spot.onDemandFloor",
    ),
    Rule(
        ("Model",),
        ("spec",),
        "self.task != 'Embed' || !has(self.lora.maxAdapters)",
        "a model that embeds takes no adapters",
        "remove lora.maxAdapters or set task to Generate",
        "lora.maxAdapters",
    ),
    Rule(
        ("Model",),
        ("spec", "lora"),
        "self.slots > 0 || !has(self.maxAdapters)",
        "slots is 0, which turns LoRA off",
        "remove maxAdapters or set slots to 1 or more",
        "maxAdapters",
    ),
    Rule(
        ("Model",),
        ("spec", "lora"),
        "!has(self.maxAdapters) || self.maxAdapters >= self.slots",
        "maxAdapters is below slots",
        "raise maxAdapters or lower slots",
        "maxAdapters",
    ),
    Rule(
        ("Model",),
        ("spec", "spot"),
        "self.policy != 'Required' || self.onDemandFloor == 0",
        "policy Required runs on spot alone, so there can be no on-demand floor",
        "set onDemandFloor to 0 or policy to Preferred",
        "onDemandFloor",
    ),
    Rule(
        ("Model",),
        ("spec", "spot"),
        "self.policy != 'Never' || self.onDemandFloor == 0",
        "policy Never runs on on-demand capacity alone, so a floor has no effect",
        "remove onDemandFloor or set policy to Preferred",
        "onDemandFloor",
    ),
    Rule(
        ("Model",),
        ("spec", "startupTimeout"),
        "duration(self) > duration('0s')",
        "a replica needs some time to start",
        "write a time above zero, such as 15m",
    ),
    Rule(
        ("Model",),
        ("spec", "engine", "args", "*"),
        "self.matches('^--[A-Za-z]')",
        "the argument does not begin with --",
        "write each argument as one item, --flag or --flag=value, with the long name of the flag",
    ),
    Rule(
        ("Model",),
        ("spec", "engine", "args", "*"),
        f"!self.matches('{_owned_flags_regex()}')",
        "Sheaf sets this argument itself (address, names, LoRA and KV events follow from the other fields)",
        "remove it; LoRA capacity is in spec.lora, the kind of model in spec.task",
    ),
    Rule(
        ("Model",),
        ("spec", "engine", "env", "*"),
        f"!(self.name in [{', '.join(repr(name) for name in OWNED_ENV)}])",
        "Sheaf sets this variable itself",
        "remove it",
        "name",
    ),
    Rule(
        ("Model",),
        ("spec", "engine", "env", "*"),
        f"!self.name.startsWith('{OWNED_ENV_PREFIX}')",
        f"names that begin with {OWNED_ENV_PREFIX} belong to Sheaf",
        "choose another name",
        "name",
    ),
)

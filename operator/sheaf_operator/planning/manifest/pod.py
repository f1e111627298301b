"""The Pod that runs a Model: a pure function of name, template and settings."""

import json
from math import ceil
from typing import Any

from sheaf_operator.planning.actions import PodTemplate
from sheaf_operator.planning.engine import lora_capacity
from sheaf_operator.planning.manifest import containers
from sheaf_operator.planning.manifest.containers import (
    ADAPTERS,
    ADAPTERS_DIR,
    AGENT_PORT,
    AGENT_SCRATCH,
    CONFIG,
    ENGINE_PORT,
    RUN,
    SCRATCH,
    SHM,
    TOKEN_FILE,
)
from sheaf_operator.planning.manifest.refusal import ManifestError, refusal
from sheaf_operator.planning.manifest.scheduling import MODEL_LABEL, TEMPLATE_LABEL, pinned, scheduling
from sheaf_operator.planning.manifest.settings import PodSettings
from sheaf_operator.planning.manifest.source import RUN_DIR, Weights, weights

NAME_LABEL = "app.kubernetes.io/name"
MANAGER_LABEL = "app.kubernetes.io/managed-by"
CONFIG_ANNOTATION = "sheaf.dev/agent-config"
SPOT_ANNOTATION = "sheaf.dev/spot"
ZONE_ANNOTATION = "sheaf.dev/zone"
STARTUP_ANNOTATION = "sheaf.dev/startup-seconds"
CONTAINER_ANNOTATION = "kubectl.kubernetes.io/default-container"
GRACE = 15
ROOM_FOR_DOWNLOADS = 16 * 2**30
RUN_LIMIT = 128 * 2**20


def pod_manifest(name: str, template: PodTemplate, settings: PodSettings, zone: str = "") -> dict[str, Any]:
    """The Pod as it is to be created; its namespace is that of the request.

    Args:
        name: of the pod.
        template: what it runs.
        settings: the installation's.
        zone: where it must run, "" where it may be any. It is no part of the template: pods of one template may be in
            different zones.

    Raises:
        ManifestError: where Model and settings do not fit together; the message says how to mend it.
    """
    refused = refusal(template.spec, settings)
    if refused:
        raise ManifestError(refused)
    source = weights(template.spec, settings)
    place = pinned(template, settings, zone)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(name, template, source, settings, place),
        "spec": _spec(template, source, settings, place),
    }


def agent_config(template: PodTemplate, source: Weights, settings: PodSettings) -> dict[str, Any]:
    """The configuration of the pod's agent (`sheaf_engine.agent.config.AgentConfig`)."""
    config: dict[str, Any] = {
        "model": template.model,
        "engineUrl": f"http://127.0.0.1:{ENGINE_PORT}",
        "listen": f"0.0.0.0:{AGENT_PORT}",
        "tokenFile": TOKEN_FILE,
        "adapterDir": ADAPTERS_DIR,
        "cacheLimit": settings.adapter_cache.limit,
        "capacity": lora_capacity(template.spec),
        "maxRank": template.spec.lora.max_rank,
        "allowedFileRoots": list(settings.host_paths),
        "allowPrivateAddresses": settings.https.allow_private_addresses,
        "startupTimeout": template.spec.startup_timeout,
        "runDir": RUN_DIR,
        "modelDir": source.model_dir if source.fetch else None,
        "s3EndpointUrl": settings.s3.endpoint_url,
        "hfEndpoint": settings.hf.endpoint,
        "httpsCaFile": settings.https.ca_file,
        "notices": settings.notices.agent_config if template.spot else None,
    }
    return {key: value for key, value in config.items() if value is not None}


def _metadata(name: str, template: PodTemplate, source: Weights, settings: PodSettings, zone: str) -> dict[str, Any]:
    config = json.dumps(agent_config(template, source, settings), sort_keys=True)
    labels = {
        NAME_LABEL: "sheaf-engine",
        MANAGER_LABEL: "sheaf",
        MODEL_LABEL: template.model,
        TEMPLATE_LABEL: template.hash,
    }
    annotations = {
        CONFIG_ANNOTATION: config,
        SPOT_ANNOTATION: "true" if template.spot else "false",
        CONTAINER_ANNOTATION: containers.ENGINE,
        STARTUP_ANNOTATION: str(template.spec.startup_timeout),
        **({ZONE_ANNOTATION: zone} if zone else {}),
    }
    return {
        "name": name,
        "labels": settings.labels | labels,
        "annotations": settings.annotations | annotations,
        "ownerReferences": [_owner(template)],
    }


def _owner(template: PodTemplate) -> dict[str, Any]:
    return {
        "apiVersion": "sheaf.dev/v1alpha1",
        "kind": "Model",
        "name": template.model,
        "uid": template.owner_uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _spec(template: PodTemplate, source: Weights, settings: PodSettings, zone: str) -> dict[str, Any]:
    before = [containers.fetch_container(source, settings)] if source.fetch else []
    fields: dict[str, Any] = {
        "initContainers": [*before, containers.agent_container(source, settings)],
        "containers": [containers.engine_container(template, source, settings)],
        "volumes": _volumes(template, source, settings),
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": ceil(template.spec.drain_timeout) + GRACE,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security(settings),
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": secret} for secret in settings.images.pull_secrets],
        **scheduling(template, settings, zone),
    }
    return {name: value for name, value in fields.items() if value not in (None, [])}


def _security(settings: PodSettings) -> dict[str, Any]:
    user = settings.run_as_user
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _volumes(template: PodTemplate, source: Weights, settings: PodSettings) -> list[dict[str, Any]]:
    own = [
        _config_volume(settings),
        {"name": RUN, "emptyDir": {"sizeLimit": str(RUN_LIMIT)}},
        {"name": ADAPTERS, "emptyDir": {"sizeLimit": str(2 * settings.adapter_cache.limit + ROOM_FOR_DOWNLOADS)}},
        _scratch(SCRATCH, settings),
        _scratch(AGENT_SCRATCH, settings),
        *source.volumes,
        *(
            {"name": containers.host_volume(place), "hostPath": {"path": root, "type": "Directory"}}
            for place, root in enumerate(settings.host_paths)
        ),
    ]
    if template.spec.engine.name == "vllm":
        own.append({"name": SHM, "emptyDir": {"medium": "Memory", "sizeLimit": str(settings.shared_memory)}})
    extra = [volume.to_wire() for volume in settings.volumes]
    return list({volume["name"]: volume for volume in (*own, *extra)}.values())


def _config_volume(settings: PodSettings) -> dict[str, Any]:
    field = {"fieldPath": f"metadata.annotations['{CONFIG_ANNOTATION}']"}
    config = {"downwardAPI": {"items": [{"path": "agent.json", "fieldRef": field}]}}
    token = {"secret": {"name": settings.agent_token_secret, "items": [{"key": "token", "path": "token"}]}}
    return {"name": CONFIG, "projected": {"sources": [config, token], "defaultMode": 0o440}}


def _scratch(name: str, settings: PodSettings) -> dict[str, Any]:
    return {"name": name, "emptyDir": {"sizeLimit": str(settings.scratch_limit)} if settings.scratch_limit else {}}

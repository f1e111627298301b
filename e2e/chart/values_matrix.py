"""Values that users set, one entry for each way to install; every test of the rendering goes through all of them."""

from __future__ import annotations

from typing import Any

KEY = {"name": "ci", "tenant": "gold", "sha256": "9f" * 32, "scopes": ["inference"]}

EXTRA = {"name": "{{ .Release.Name }}-x", "namespace": "{{ .Release.Namespace }}"}

MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one of each": {"operator": {"replicas": 1}, "gateway": {"replicas": 1}},
    "private registry": {
        "image": {"registry": "registry.example.com/ml/", "tag": "1.2.3", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "my.registry"}],
        "gateway": {"image": {"digest": "sha256:" + "a" * 64}},
    },
    "keys": {"gateway": {"apiKeys": {"keys": [KEY]}}, "helmTest": {"apiKeySecret": {"name": "my-key"}}},
    "secrets of others": {
        "agentToken": {"existingSecret": "their.token"},
        "gateway": {
            "apiKeys": {"existingSecret": "their-keys"},
            "cacheSalt": {"existingSecret": "their-salt"},
            "sharedLimits": {
                "existingSecret": "their-redis",
                "failOpen": False,
                "timeout": "100ms",
                "prefix": "prod",
            },
        },
    },
    "bound to the outside": {
        "gateway": {
            "service": {"type": "LoadBalancer", "nodePort": 30080, "annotations": {"a/b": "c"}},
            "ingress": {"enabled": True, "className": "nginx", "hosts": ["llm.example.com", "ai.example.com"]},
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}], "hostnames": ["llm.example.com"]},
        }
    },
    "several workers": {"gateway": {"workers": 4, "peers": {"port": 9002}}},
    "gateways that do not speak": {"gateway": {"peers": {"enabled": False}}},
    "scaled": {"gateway": {"autoscaling": {"enabled": True, "maxReplicas": 20}}},
    "watched": {
        "monitoring": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True, "labels": {"p": "q"}}},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    },
    "fenced": {
        "networkPolicy": {
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "gateway": {"from": [{"podSelector": {"matchLabels": {"app": "chat"}}}]},
            "engines": {"egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]},
        }
    },
    "measured": {
        "operator": {
            "speeds": {"nvidia-l4": {"step_overhead_s": 0.06, "prefill_token_s": 1e-4, "num_blocks": 99, "name": "x"}}
        },
        "market": {"zones": ["a", "b"], "prices": {"nvidia-l4": {"onDemand": 0.7, "spot": 0.28}}},
    },
    "notices of a cloud": {
        "notices": {"cloud": "aws", "rebalance": "Replace"},
        "networkPolicy": {"engines": {"egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]}},
    },
    "notices from elsewhere": {
        "notices": {"cloud": "gcp", "endpoint": "http://10.0.0.9:8111"},
        "networkPolicy": {"engines": {"egress": [{"ports": [{"port": 8111, "protocol": "TCP"}]}]}},
    },
    "unfenced": {"networkPolicy": {"enabled": False}},
    "with redis": {"redis": {"enabled": True}},
    "rbac of others": {
        "rbac": {"create": False, "aggregateClusterRoles": False},
        "operator": {"serviceAccount": {"create": False, "name": "op"}},
        "gateway": {"serviceAccount": {"create": False}},
    },
    "without crds": {"crds": {"install": False}},
    "tuned": {
        "gateway": {
            "limits": {"maxBody": "32Mi", "maxAttempts": 2, "maxHeld": 64},
            "times": {"firstByte": "5m", "hold": "90s"},
            "lameDuckSeconds": 12,
            "shutdownSeconds": 300,
            "accessLog": False,
        },
        "commonLabels": {"team": "ml"},
        "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": EXTRA, "data": {}}],
    },
    "every setting of engines": {
        "engines": {
            "images": {"engineCpu": {"repository": "vllm-cpu", "tag": "v1"}},
            "python": "/opt/vllm/bin/python",
            "agentPython": "python3",
            "accelerators": {
                "amd-mi300x": {
                    "resource": "amd.com/gpu",
                    "nodeSelector": {"gpu": "mi300x"},
                    "tolerations": [{"key": "gpu", "operator": "Equal", "value": "amd", "effect": "NoSchedule"}],
                    "runtimeClass": "amd",
                    "image": "vllm-rocm:v1",
                    "env": {"HIP": "1"},
                    "resources": {"requests": {"cpu": 8}},
                }
            },
            "resources": {"vllm": {"requests": {"cpu": 4, "memory": "32Gi"}, "limits": {"memory": "64Gi"}}},
            "modelCache": {"type": "HostPath", "path": "/mnt/models"},
            "adapterCache": {"limit": "1Gi"},
            "sharedMemory": "8Gi",
            "scratchLimit": "10Gi",
            "hostPaths": ["/mnt/nvme"],
            "s3": {"secret": "aws.keys", "endpointUrl": "https://minio.example.com", "region": "eu-1"},
            "hf": {"secret": "hub", "key": "hf-token", "endpoint": "https://hub.example.com"},
            "https": {"allowPrivateAddresses": True, "caFile": "/etc/ca/ca.pem"},
            "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "agentMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
            "engineMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
            "engineEnv": [{"name": "A", "value": "1"}],
            "agentEnv": [{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "labels": {"team": "ml"},
            "annotations": {"note": "x"},
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"operator": "Exists"}],
            "spotLabels": {"lifecycle": "spot"},
            "priorityClass": "high",
            "scheduler": "volcano",
            "serviceAccount": "engines",
            "runAsUser": 1000,
        }
    },
}

# Values that are refused, and what the message must name.
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a misspelt value": ({"gatway": {}}, ("gatway", "not allowed")),
    "a misspelt value below": ({"gateway": {"replica": 3}}, ("/gateway", "replica", "not allowed")),
    "text for a number": ({"gateway": {"replicas": "three"}}, ("/gateway/replicas", "integer")),
    "a negative number": ({"operator": {"replicas": -1}}, ("/operator/replicas", "minimum")),
    "an unknown service type": ({"gateway": {"service": {"type": "Nodeport"}}}, ("/gateway/service/type", "NodePort")),
    "an unknown pull policy": ({"image": {"pullPolicy": "Sometimes"}}, ("/image/pullPolicy", "IfNotPresent")),
    "a short digest": ({"operator": {"image": {"digest": "sha256:abc"}}}, ("/operator/image/digest", "sha256")),
    "a short token": ({"agentToken": {"value": "secret"}}, ("/agentToken/value",)),
    "a short salt": ({"gateway": {"cacheSalt": {"value": "salt"}}}, ("/gateway/cacheSalt/value",)),
    "a URL in the values": (
        {"gateway": {"sharedLimits": {"url": "redis://:pw@redis:6379"}}},
        ("/gateway/sharedLimits", "url", "not allowed"),
    ),
    "a wrong time for Redis": (
        {"gateway": {"sharedLimits": {"timeout": "soon"}}},
        ("/gateway/sharedLimits/timeout",),
    ),
    "a clear key": ({"gateway": {"apiKeys": {"keys": [{"name": "a", "sha256": "sk-1"}]}}}, ("/keys/0/sha256",)),
    "a wrong size": ({"engines": {"sharedMemory": "2 GB"}}, ("/engines/sharedMemory",)),
    "an unknown engine setting": ({"engines": {"gpu": 1}}, ("/engines", "gpu", "not allowed")),
    "an unknown cache": ({"engines": {"modelCache": {"type": "Nfs"}}}, ("/engines/modelCache/type", "HostPath")),
    "an unknown limit": ({"gateway": {"limits": {"maxBodies": 1}}}, ("/gateway/limits", "maxBodies")),
    "an unknown time": ({"gateway": {"times": {"connect": "2 seconds"}}}, ("/gateway/times/connect",)),
    "an ingress without host": ({"gateway": {"ingress": {"enabled": True}}}, ("/gateway/ingress/hosts",)),
    "a speed by another name": (
        {"operator": {"speeds": {"nvidia-l4": {"stepOverhead": 1}}}},
        ("/operator/speeds/nvidia-l4", "step_overhead_s"),
    ),
    "a price without its main figure": (
        {"market": {"prices": {"cpu": {"spot": 1}}}},
        ("/market/prices/cpu", "onDemand"),
    ),
    "a cloud that is not known": ({"notices": {"cloud": "oracle"}}, ("/notices/cloud", "azure")),
    "metadata over TLS": ({"notices": {"cloud": "aws", "endpoint": "https://h"}}, ("/notices/endpoint",)),
    "notices in the wrong place": ({"engines": {"notices": {"cloud": "aws"}}}, ("/engines", "notices", "not allowed")),
    "a Secret that cannot be": ({"imagePullSecrets": [{"name": "my..registry"}]}, ("/imagePullSecrets/0/name",)),
    "a Secret without a name": ({"imagePullSecrets": [{"name": ""}]}, ("/imagePullSecrets/0/name",)),
    "a folder that is none": ({"engines": {"hostPaths": ["/mnt/../etc"]}}, ("/engines/hostPaths/0",)),
    "a quantity in words": (
        {"engines": {"resources": {"vllm": {"requests": {"memory": "8 GB"}}}}},
        ("/engines/resources/vllm/requests/memory",),
    ),
    "a claim without a name": ({"engines": {"modelCache": {"type": "Claim"}}}, ("/engines/modelCache", "claim")),
    "a volume without a name": ({"engines": {"volumes": [{"emptyDir": {}}]}}, ("/engines/volumes/0", "name")),
    "a long name": ({"fullnameOverride": "x" * 41}, ("/fullnameOverride",)),
    "a percentage of budgets": (
        {"gateway": {"podDisruptionBudget": {"maxUnavailable": "half"}}},
        ("/gateway/podDisruptionBudget/maxUnavailable",),
    ),
}

"""How to reach the API server: the pod's service account, or a kubeconfig."""

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import kopf
from kubernetes.aio.client import Configuration  # type: ignore[import-untyped, unused-ignore]
from kubernetes.aio.client.rest import RESTClientObject  # type: ignore[import-untyped, unused-ignore]
from kubernetes.aio.config import (  # type: ignore[import-untyped, unused-ignore]
    ConfigException,
    load_incluster_config,
    load_kube_config,
)
from yaml import YAMLError

__all__ = [
    "AccessError",
    "Configuration",
    "authorization",
    "connection_info",
    "load_access",
    "own_namespace",
    "rest_client",
]

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class AccessError(Exception):
    """The API server's address or the credentials for it cannot be read; says what to do."""


async def load_access(kubeconfig: str | None = None) -> Configuration:
    """The API server's address and credentials; a kubeconfig named here or by KUBECONFIG comes before the pod's own."""
    configuration = Configuration()
    source = kubeconfig or os.environ.get("KUBECONFIG")
    in_pod = source is None and "KUBERNETES_SERVICE_HOST" in os.environ
    try:
        if in_pod:
            load_incluster_config(configuration)
        else:
            _check_file(source)
            await load_kube_config(source, client_configuration=configuration, persist_config=False)
    except (ConfigException, OSError, YAMLError, ValueError, TypeError, KeyError) as error:
        where = "the pod's service account" if in_pod else f"kubeconfig {source or '~/.kube/config'}"
        mend = "" if in_pod else "; name one that works by --kubeconfig or KUBECONFIG"
        raise AccessError(f"{where} cannot be used: {' '.join(str(error).split())}{mend}") from error
    configuration.proxy = configuration.proxy or environment_proxy(configuration.host)
    return configuration


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, NO_PROXY and the like) names for a URL."""
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


def rest_client(configuration: Configuration, connections: int) -> RESTClientObject:
    """The client, with a session that leaves the environment alone; to be made within a loop, and closed.

    As it comes it reads ~/.netrc and the proxies' variables anew for each call, which takes longer than the call's own
    work, and would send the API server a password from that file.
    """
    client = RESTClientObject(configuration, maxsize=connections)
    made = client.pool_manager
    client.pool_manager = aiohttp.ClientSession(connector=made.connector, trust_env=False)
    made.detach()
    return client


def _check_file(source: str | None) -> None:
    """A kubeconfig that is not there; of several (a search path) one is enough."""
    paths = [Path(path).expanduser() for path in (source or "~/.kube/config").split(os.pathsep) if path]
    if not any(path.is_file() for path in paths):
        raise FileNotFoundError("there is no such file")


def own_namespace() -> str | None:
    """The namespace of the pod that this process runs in."""
    try:
        return NAMESPACE_FILE.read_text().strip() or None
    except OSError:
        return None


async def authorization(configuration: Configuration) -> str | None:
    """The value of the Authorization header, read again where the token may have been renewed."""
    settings = await configuration.auth_settings()
    bearer = settings.get("BearerToken")
    return str(bearer["value"]) if bearer and bearer["value"] else None


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """The same access in kopf's words."""
    header = await authorization(configuration)
    scheme, _, token = header.partition(" ") if header else ("", "", "")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme.capitalize() or None,
        token=token or None,
        proxy_url=configuration.proxy,
    )

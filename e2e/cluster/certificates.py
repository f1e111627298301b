"""The cluster's own certificates (P-256, 30 days) and the kubeconfigs that hold them.

One authority signs servers, clients and the aggregation layer's proxy. Names follow Kubernetes' PKI requirements: the
Node authorizer knows a kubelet by the user ``system:node:NAME`` in the group ``system:nodes``.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 30
BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def secret(path: Path, data: bytes) -> Path:
    """Write a file that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    return path


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM files."""

    certificate: Path
    key: Path


class Authority:
    """The cluster's certificate authority, and everything it signs, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sheaf-test-cluster")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._builder(self._name, self._key.public_key()).add_extension(constraints, critical=True)
        self.pair = self._write("ca", certificate.sign(self._key, hashes.SHA256()), self._key)

    def sign(self, name: str, user: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> Pair:
        """A pair for ``user`` in ``groups``; with ``hosts`` (addresses or DNS names) it serves them too."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        builder = self._builder(subject, key.public_key()).add_extension(BOTH, critical=False)
        if hosts:
            alternatives = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(alternatives, critical=False)
        return self._write(name, builder.sign(self._key, hashes.SHA256()), key)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=DAYS))
        )

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return Pair(secret(self.folder / f"{name}.crt", pem), write_key(self.folder / f"{name}.key", key))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """A private key as PEM (SEC 1, which is what the API server reads), unencrypted, for its owner only."""
    no_password = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, no_password)
    return secret(path, pem)


def service_account_key(path: Path) -> Path:
    """The key that signs service-account tokens; the API server also verifies with it."""
    return write_key(path, ec.generate_private_key(ec.SECP256R1()))


def kubeconfig(path: Path, server: str, authority: Pair, client: Pair) -> Path:
    """A kubeconfig with everything in it, so that it can be copied (JSON is YAML)."""
    embed = {
        "ca": _encoded(authority.certificate),
        "certificate": _encoded(client.certificate),
        "key": _encoded(client.key),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sheaf", "cluster": {"server": server, "certificate-authority-data": embed["ca"]}}],
        "users": [
            {
                "name": "sheaf",
                "user": {"client-certificate-data": embed["certificate"], "client-key-data": embed["key"]},
            }
        ],
        "contexts": [{"name": "sheaf", "context": {"cluster": "sheaf", "user": "sheaf"}}],
        "current-context": "sheaf",
    }
    return secret(path, json.dumps(config, indent=1).encode())


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()

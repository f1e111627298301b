"""s3:// sources: the objects under a prefix of a bucket, through boto3.

Credentials come from boto3's own chain (environment, shared file, the pod's identity). The endpoint comes from the
agent's configuration only: `AWS_ENDPOINT_URL` of the environment is not honoured.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.layout import MOST_FILES, Layout, RemoteFile, check_total, choose
from sheaf_engine.agent.sources import S3Source
from sheaf_engine.agent.transfer import CHUNK, CONNECT_TIMEOUT, READ_TIMEOUT, Budget, Outside, write


class _Client(Protocol):
    """The part of boto3's untyped client that is used."""

    def get_paginator(self, operation_name: str) -> Any: ...
    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]: ...  # noqa: N803


_NOT_FOUND = frozenset({"NoSuchBucket", "NoSuchKey", "404"})
_DENIED = frozenset({"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})


def fetch(source: S3Source, target: Path, layout: Layout, outside: Outside, budget: Budget) -> None:
    """Download the objects under the prefix into `target`."""
    try:
        client = _client(outside)
        chosen = choose(layout, _listing(client, source))
        check_total(chosen, budget.limit)
        for file in chosen:
            write(_read(client, source, file.path), target / file.path, budget)
    except (BotoCoreError, ClientError) as error:
        raise _explain(source, error) from error


def _client(outside: Outside) -> _Client:
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"total_max_attempts": 2, "mode": "standard"},
        ignore_configured_endpoint_urls=True,
        s3={"addressing_style": "path"} if outside.s3_endpoint_url else {},
    )
    client: _Client = boto3.session.Session().client("s3", endpoint_url=outside.s3_endpoint_url, config=config)
    return client


def _key(source: S3Source, name: str) -> str:
    return f"{source.prefix}/{name}" if source.prefix else name


def _listing(client: _Client, source: S3Source) -> list[RemoteFile]:
    start = _key(source, "")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=source.bucket, Prefix=start, PaginationConfig={"MaxItems": MOST_FILES}
    )
    found = [item for page in pages for item in page.get("Contents", ())]
    return [RemoteFile(item["Key"].removeprefix(start), item["Size"]) for item in found]


def _read(client: _Client, source: S3Source, name: str) -> Iterator[bytes]:
    body = client.get_object(Bucket=source.bucket, Key=_key(source, name))["Body"]
    try:
        yield from body.iter_chunks(CHUNK)
    finally:
        body.close()


def _explain(source: S3Source, error: Exception) -> AdapterError:
    where = f"s3://{source.bucket}/{source.prefix}"
    code = str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""
    if code in _NOT_FOUND:
        return AdapterError(Reason.SOURCE_NOT_FOUND, f"{where} does not exist ({code})")
    if code in _DENIED or type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
        return AdapterError(Reason.SOURCE_DENIED, f"{where} may not be read: {str(error)[:300]}")
    return AdapterError(Reason.SOURCE_UNREACHABLE, f"{where} cannot be read: {str(error)[:300]}")

"""Where adapters and models come from: the text of a source, parsed strictly into values.

Nothing is repaired: whatever two parsers could read in two ways (userinfo, backslashes, encoded separators, numeric
hosts that are not plain dotted quads) is refused with `SourceRefused`, before anything is opened or resolved.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from pathlib import PurePosixPath
from typing import NoReturn
from urllib.parse import unquote

from sheaf_engine.agent.errors import AdapterError, Reason

LONGEST = 2048
_SEGMENT = re.compile(r"[A-Za-z0-9_~!$'()*+,=@.%-]+")
_KEY_SEGMENT = re.compile(r"[A-Za-z0-9_~!'()*+,=@. -]+")
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9.-]{1,61}[a-z0-9])")
_HOST_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ENCODED_TRICK = re.compile(r"%(?:2e|2f|5c|25|0[0-9a-f]|1[0-9a-f]|7f)|%(?![0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A folder on this machine."""

    path: PurePosixPath


@dataclass(frozen=True, slots=True)
class HfSource:
    """A folder of a repository on a model hub; `folder` is empty for its top."""

    repository: str
    revision: str | None
    folder: str


@dataclass(frozen=True, slots=True)
class S3Source:
    """The objects under a prefix (without a trailing slash) of a bucket."""

    bucket: str
    prefix: str


@dataclass(frozen=True, slots=True)
class HttpsSource:
    """A folder on a web server; `path` starts with a slash and does not end with one."""

    host: str
    port: int
    path: str


Source = FileSource | HfSource | S3Source | HttpsSource


def refuse(message: str) -> NoReturn:
    """Raise that a source is not acceptable."""
    raise AdapterError(Reason.SOURCE_REFUSED, message)


def parse_source(text: str) -> Source:
    """The source that a manifest names; AdapterError(SourceRefused) says what is wrong with it."""
    if len(text) > LONGEST:
        refuse(f"the source is longer than {LONGEST} characters")
    scheme, separator, rest = text.partition("://")
    parser = _PARSERS.get(scheme)
    if not separator or parser is None:
        refuse(f"source {text[:80]!r} must start with one of hf:// s3:// https:// file://")
    if any(ord(c) <= 0x20 or 0x7F <= ord(c) < 0xA0 for c in text) or "\\" in text:
        refuse("the source holds white space, control characters or a backslash")
    if "?" in text or "#" in text:
        refuse("a source is a folder: it takes neither a query (?) nor a fragment (#)")
    return parser(rest)


def _segments(path: str, allowed: re.Pattern[str], what: str) -> list[str]:
    segments = path.removesuffix("/").split("/")
    for segment in segments:
        if segment in {"", ".", ".."} or not allowed.fullmatch(segment):
            refuse(f"{what} {path[:120]!r} has the part {segment!r}, which is not a plain name")
    return segments


def _parse_file(rest: str) -> FileSource:
    if not rest.startswith("/"):
        refuse("a file source has an absolute path and no host: file:///ABSOLUTE/PATH")
    try:
        path = unquote(rest, errors="strict")
    except UnicodeDecodeError:
        refuse("the path of the file source is not UTF-8 after decoding")
    if any(ord(c) < 0x20 or c == "\x7f" for c in path) or ".." in path.split("/"):
        refuse("the path of the file source holds '..' or control characters")
    return FileSource(PurePosixPath("/" + path.lstrip("/")))


def _parse_hf(rest: str) -> HfSource:
    organisation, _, tail = rest.partition("/")
    name, _, folder = tail.partition("/")
    name, at, revision = name.partition("@")
    for part in (organisation, name):
        if not _HUB_NAME.fullmatch(part) or ".." in part or "--" in part:
            refuse(f"{part!r} is not a name of a hub; write hf://ORG/NAME[@REVISION][/SUBDIR]")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        refuse(f"{revision!r} is not a revision; write a branch, tag or commit after the @")
    folder = "/".join(_segments(folder, _KEY_SEGMENT, "subdirectory")) if folder else ""
    return HfSource(f"{organisation}/{name}", revision or None, folder)


def _parse_s3(rest: str) -> S3Source:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        refuse(f"{bucket!r} is not a bucket's name; write s3://BUCKET/PREFIX")
    return S3Source(bucket, "/".join(_segments(prefix, _KEY_SEGMENT, "prefix")) if prefix else "")


def _parse_https(rest: str) -> HttpsSource:
    authority, _, path = rest.partition("/")
    if "@" in authority:
        refuse("an https source carries no user or password")
    host, port = _split_port(authority)
    path = path.removesuffix("/")
    if _ENCODED_TRICK.search(path):
        refuse("the path of the https source has an encoded separator, dot, percent or control character")
    if path:
        _segments(path, _SEGMENT, "path")
    return HttpsSource(_host(host), port, f"/{path}" if path else "")


def _split_port(authority: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?", authority)
    if match is None:
        refuse(f"{authority[:80]!r} is not a host with an optional port")
    port = int(match[2] or 443)
    if not 0 < port < 65536:
        refuse(f"port {port} does not exist")
    return match[1], port


def _host(host: str) -> str:
    if host.startswith("["):
        return _ipv6(host[1:-1])
    labels = host.lower().removesuffix(".").split(".")
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        refuse(f"{host[:80]!r} is not a host name (international names are written in their xn-- form)")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        return _ipv4(host)
    return ".".join(labels)


def _ipv4(host: str) -> str:
    try:
        return str(IPv4Address(host))
    except AddressValueError:
        refuse(f"{host!r} is a number in an unusual form; write four plain decimal numbers or a name")


def _ipv6(host: str) -> str:
    try:
        address = IPv6Address(host)
    except AddressValueError:
        refuse(f"[{host}] is not an IPv6 address")
    if address.scope_id is not None:
        refuse(f"[{host}] has a zone, which means nothing to other machines")
    return str(address)


_PARSERS: dict[str, Callable[[str], Source]] = {
    "file": _parse_file,
    "hf": _parse_hf,
    "s3": _parse_s3,
    "https": _parse_https,
}

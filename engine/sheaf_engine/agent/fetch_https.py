"""https:// sources: a folder on a web server, two files by their fixed names (or a model's by theirs).

The host is resolved once, every address is vetted, and the connection goes to the vetted address itself, with the
certificate checked for the name: a second resolution cannot lead elsewhere. Redirects are followed a few hops, each
judged like the first. No proxy and no credentials of the environment are used.
"""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import httpx

from sheaf_engine.agent.addresses import vet
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.layout import (
    ADAPTER,
    CONFIG,
    MODEL_CONFIG,
    MODEL_EXTRAS,
    MODEL_INDEX,
    MODEL_WEIGHTS,
    WEIGHTS,
    Layout,
    RemoteFile,
)
from sheaf_engine.agent.sources import HttpsSource, parse_source
from sheaf_engine.agent.transfer import CONNECT_TIMEOUT, READ_TIMEOUT, Budget, Outside, write

MOST_HOPS = 3
LARGEST_INDEX = 16 * 2**20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DENIED = frozenset({401, 403, 407})


def fetch(source: HttpsSource, target: Path, layout: Layout, outside: Outside, budget: Budget) -> None:
    """Download the files of the folder into `target`."""
    with _client(outside) as client:
        download = _Download(client, source, target, outside, budget)
        if layout is ADAPTER:
            download.required(CONFIG)
            download.required(WEIGHTS)
        else:
            download.model(layout)


@contextmanager
def _client(outside: Outside) -> Iterator[httpx.Client]:
    context = ssl.create_default_context()
    if outside.https_ca_file is not None:
        context.load_verify_locations(cafile=outside.https_ca_file)
    timeout = httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
    with httpx.Client(verify=context, timeout=timeout, trust_env=False, follow_redirects=False) as client:
        yield client


class _Download:
    """One fetch from one web folder."""

    def __init__(
        self, client: httpx.Client, source: HttpsSource, target: Path, outside: Outside, budget: Budget
    ) -> None:
        self.client, self.source, self.target = client, source, target
        self.outside, self.budget = outside, budget

    def required(self, name: str) -> None:
        """Download a file that must be there."""
        if not self.optional(name):
            raise AdapterError(Reason.FILES_MISSING, f"{self._where()} has no {name} (404)")

    def optional(self, name: str) -> bool:
        """Download a file; False where the server says that there is none."""
        with self._open(self._at(name)) as response:
            if response.status_code in {404, 410}:
                return False
            self._check(response, name)
            write(response.iter_raw(), self.target / name, self.budget)
        return True

    def model(self, layout: Layout) -> None:
        """Download a model: its configuration, then the weights that it has, then what tokenizers need."""
        self.required(MODEL_CONFIG)
        names = self._shards() if self.optional(MODEL_INDEX) else [MODEL_WEIGHTS]
        listing = [RemoteFile(name, 0) for name in (MODEL_CONFIG, MODEL_INDEX, *names)]
        for file in layout.choose(listing):
            if file.path in names:
                self.required(file.path)
        for name in MODEL_EXTRAS:
            self.optional(name)

    def _shards(self) -> list[str]:
        try:
            index = json.loads((self.target / MODEL_INDEX).read_bytes()[:LARGEST_INDEX])
            return sorted({str(name) for name in index["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise AdapterError(Reason.BAD_CONFIG, f"{MODEL_INDEX} does not list the weights' files") from error

    def _at(self, name: str) -> HttpsSource:
        return HttpsSource(self.source.host, self.source.port, f"{self.source.path}/{name}")

    def _where(self) -> str:
        return f"https://{_netloc(self.source.host, self.source.port)}{self.source.path}"

    def _check(self, response: httpx.Response, name: str) -> None:
        status = response.status_code
        if status in _DENIED:
            raise AdapterError(Reason.SOURCE_DENIED, f"{self._where()} refuses {name} with status {status}")
        if status != 200:
            raise AdapterError(Reason.SOURCE_UNREACHABLE, f"{self._where()} answers {name} with status {status}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise AdapterError(Reason.SOURCE_REFUSED, f"{self._where()} sends {name} compressed, unasked")
        declared = response.headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and len(declared) < 20:
            self._check_declared(int(declared), name)

    def _check_declared(self, size: int, name: str) -> None:
        if self.budget.used + size > self.budget.limit:
            raise AdapterError(
                Reason.SIZE_LIMIT_EXCEEDED,
                f"{name} has {size} bytes, more than the limit of {self.budget.limit} allows",
            )

    @contextmanager
    def _open(self, place: HttpsSource) -> Iterator[httpx.Response]:
        for _ in range(MOST_HOPS + 1):
            with self._get(place) as response:
                if response.status_code not in _REDIRECTS:
                    yield response
                    return
                place = _next(place, response.headers.get("location", ""))
        raise AdapterError(Reason.SOURCE_REFUSED, f"{self._where()} redirects more than {MOST_HOPS} times")

    @contextmanager
    def _get(self, place: HttpsSource) -> Iterator[httpx.Response]:
        address = self._address(place)
        netloc = _netloc(place.host, place.port)
        request = self.client.build_request(
            "GET",
            f"https://{_netloc(address, place.port)}{place.path}",
            headers={"host": netloc, "accept-encoding": "identity", "user-agent": "sheaf"},
            extensions={"sni_hostname": place.host},
        )
        try:
            response = self.client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _unreachable(netloc, error) from error
        try:
            yield response
        except httpx.HTTPError as error:
            raise _unreachable(netloc, error) from error
        finally:
            response.close()

    def _address(self, place: HttpsSource) -> str:
        try:
            found = self.outside.resolver(place.host, place.port)
        except (OSError, UnicodeError) as error:
            raise AdapterError(Reason.SOURCE_UNREACHABLE, f"host {place.host} cannot be resolved: {error}") from error
        addresses, why = vet(found, allow_private=self.outside.allow_private_addresses)
        if why is not None or not addresses:
            raise AdapterError(
                Reason.SOURCE_REFUSED,
                f"host {place.host} may not be reached: {why or 'it has no address'} "
                "(allowPrivateAddresses permits private ones)",
            )
        return addresses[0]


def _next(place: HttpsSource, location: str) -> HttpsSource:
    here = f"https://{_netloc(place.host, place.port)}{place.path}"
    bare = urljoin(here, location)
    source = parse_source(bare)
    if not isinstance(source, HttpsSource):
        raise AdapterError(Reason.SOURCE_REFUSED, f"{here} redirects to something else than https")
    return source


def _netloc(host: str, port: int) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port == 443 else f"{bracketed}:{port}"


def _unreachable(netloc: str, error: Exception) -> AdapterError:
    text = str(error) or type(error).__name__
    return AdapterError(Reason.SOURCE_UNREACHABLE, f"https://{netloc} cannot be reached: {text[:300]}")

"""Real servers on loopback for the agent's fetchers, and how the tests call them."""

import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from engine_agent_helpers import write_adapter
from sheaf_engine.agent import addresses
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.fetch import fetch
from sheaf_engine.agent.fetch_hf import fetch as warm_hub  # noqa: F401 - the import is slow
from sheaf_engine.agent.layout import ADAPTER
from sheaf_engine.agent.sources import parse_source
from sheaf_engine.agent.transfer import Budget, Outside

NAMES = ["adapter_config.json", "adapter_model.safetensors"]
HOST = "adapters.example"


@dataclass
class Site:
    """A web server's content by path, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    port: int = 0
    cut: bool = False
    endless: bool = False

    def put(self, prefix: str, folder: Path) -> None:
        for file in folder.iterdir():
            self.files[f"{prefix}/{file.name}"] = file.read_bytes()


class Handler(BaseHTTPRequestHandler):
    """Serves the site that its server carries."""

    @property
    def site(self) -> Site:
        return self.server.site  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site, path = self.site, self.path.partition("?")[0]
        site.asked.append(self.path)
        site.hosts.append(self.headers["host"])
        if path in site.redirects:
            self.answer(302, b"", {"location": site.redirects[path]})
        elif path in site.status:
            self.answer(site.status[path], b"no", {})
        elif path not in site.files:
            self.answer(404, b"no such file", {})
        elif site.endless:
            self.stream()
        else:
            self.answer(200, site.files[path], site.headers)

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        size = len(content) + (10 if self.site.cut else 0)
        for name, value in ({"content-length": str(size)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def stream(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(65536))
        except OSError:
            self.close_connection = True


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for the test host and loopback: its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    names = [x509.DNSName(HOST), x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    (folder / "ca.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return folder / "ca.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


def running(site: Site, tls: tuple[Path, Path] | None) -> Iterator[Site]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = site  # type: ignore[attr-defined]
    server.daemon_threads = True
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def web(tls: tuple[Path, Path]) -> Iterator[Site]:
    yield from running(Site(), tls)


@pytest.fixture
def hub() -> Iterator[Site]:
    yield from running(Site(), None)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "sources" / "pirate")


def outside(tls: tuple[Path, Path], *, private: bool = True, **more: object) -> Outside:
    found = {"resolver": lambda host, port: ["127.0.0.1"]} | more
    return Outside(allow_private_addresses=private, https_ca_file=tls[0], **found)  # type: ignore[arg-type]


@pytest.fixture
def public_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 stands for the public network; every other address is judged as ever."""
    real = addresses.not_public
    judge = lambda address: None if str(address) == "127.0.0.1" else real(address)  # noqa: E731
    monkeypatch.setattr(addresses, "not_public", judge)


def get(source: str, target: Path, reach: Outside, *, limit: int = 10**7, layout: object = ADAPTER) -> list[str]:
    fetch(parse_source(source), target, layout, reach, Budget.of(limit, 5.0))  # type: ignore[arg-type]
    return sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())


def refused(source: str, target: Path, reach: Outside, **more: int) -> tuple[Reason, str]:
    with pytest.raises(AdapterError) as caught:
        get(source, target, reach, **more)
    assert "\n" not in caught.value.message
    return caught.value.reason, caught.value.message


def local(tmp_path: Path) -> Outside:
    return Outside(file_roots=(tmp_path / "sources",))

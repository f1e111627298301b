"""The same promises over TLS, toward clients and toward engines."""

import asyncio
import datetime as dt
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sheaf_gateway.proxy import ConnectFailed, Endpoint, Pool


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for 127.0.0.1, made for this run."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def serving(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusting(certificate):
    return ssl.create_default_context(cafile=str(certificate))


async def test_requests_pass_over_tls_on_one_connection(start_server, recorder, serving, trusting, closing):
    server = await start_server(recorder, ssl=serving)
    pool = Pool(ssl=trusting)
    closing.push_async_callback(pool.close)
    endpoint = Endpoint("127.0.0.1", server.port, tls=True)
    for body in (b"one", b"x" * 500_000):
        async with pool.request(endpoint, "POST", "/", (), body) as response:
            assert (response.status, await response.read()) == (200, body)
    assert server.connections == 1


async def test_a_certificate_that_nobody_trusts_is_an_error_before_delivery(start_server, recorder, serving, make_pool):
    server = await start_server(recorder, ssl=serving)
    with pytest.raises(ConnectFailed, match="certificate"):
        async with make_pool().request(Endpoint("127.0.0.1", server.port, tls=True), "GET", "/"):
            pass
    assert recorder.seen == []


async def test_a_refusal_arrives_over_tls(start_server, recorder, serving, trusting):
    server = await start_server(recorder, ssl=serving)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusting)
    writer.write(b"BAD\r\n")
    assert (await reader.read(65_536)).startswith(b"HTTP/1.1 400 ")
    writer.transport.abort()
    await asyncio.sleep(0.02)

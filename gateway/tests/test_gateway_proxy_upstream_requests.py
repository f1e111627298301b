"""What an engine is sent: a freshly framed request to an address that is one."""

import pytest
from gateway_proxy_engines import OK, read_request
from sheaf_gateway.proxy import Endpoint, request_head


async def test_the_request_that_an_engine_sees_is_freshly_framed(start_engine, make_pool):
    seen = []

    async def script(reader, writer):
        seen.append(await read_request(reader))
        writer.write(OK)

    headers = [
        (b"host", b"evil"),
        (b"content-length", b"99"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"keep-alive"),
        (b"expect", b"100-continue"),
        (b"x-a", b"b"),
    ]
    endpoint = await start_engine(script)
    async with make_pool().request(endpoint, "POST", "/v1?x", headers, b"{}") as response:
        await response.read()
    authority = f"127.0.0.1:{endpoint.port}".encode()
    assert seen == [b"POST /v1?x HTTP/1.1\r\nhost: " + authority + b"\r\nx-a: b\r\ncontent-length: 2\r\n\r\n{}"]


async def test_a_large_body_goes_out_whole(start_engine, make_pool):
    sizes = []

    async def script(reader, writer):
        sizes.append(len(await read_request(reader)))
        writer.write(OK)

    async with make_pool().request(await start_engine(script), "POST", "/", (), b"x" * 1_000_000) as response:
        assert response.status == 200
    assert sizes[0] > 1_000_000


@pytest.mark.parametrize(
    ("url", "endpoint", "authority"),
    [
        ("http://a:81", Endpoint("a", 81), b"a:81"),
        ("http://a/", Endpoint("a", 80), b"a:80"),
        ("https://a", Endpoint("a", 443, tls=True), b"a:443"),
        ("http://[::1]:9", Endpoint("::1", 9), b"[::1]:9"),
        ("http://bücher:9", Endpoint("bücher", 9), b"xn--bcher-kva:9"),
        ("unix:/run/x", Endpoint(uds="/run/x"), b"localhost"),
    ],
)
def test_an_endpoint_is_read_from_its_url(url, endpoint, authority):
    assert Endpoint.parse(url) == endpoint
    assert endpoint.authority == authority
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "url", ["", "a:80", "ftp://a", "http://", "http://u@a", "http://a/b", "http://a?b", "http://a:x", "unix:x"]
)
def test_a_url_that_is_no_endpoint_is_refused(url):
    with pytest.raises(ValueError, match=r".+"):
        Endpoint.parse(url)


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/a b", []),
        ("GET", "/a\r\nX: y", []),
        ("GET ", "/", []),
        ("GET", "/\x7f", []),
        ("GET", "/é", []),
        ("GET", "/", [(b"x", b"a\r\ny: z")]),
        ("GET", "/", [(b"x\n", b"a")]),
        ("GET", "/", [(b"x", b"a\0")]),
    ],
)
def test_a_request_head_that_would_come_apart_is_never_built(method, target, headers):
    with pytest.raises(ValueError, match="holds"):
        request_head(method, target, b"a", headers, 0)

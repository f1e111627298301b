"""A source is parsed strictly or refused: nothing that two parsers could read in two ways passes."""

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sheaf_engine.agent.addresses import not_public, vet
from sheaf_engine.agent.errors import AdapterError, Reason
from sheaf_engine.agent.sources import FileSource, HfSource, HttpsSource, S3Source, parse_source

GOOD = {
    "file:///srv/adapters/pirate": "/srv/adapters/pirate",
    "file:///srv/adapters/pirate/": "/srv/adapters/pirate",
    "file:///srv/with%20space": "/srv/with space",
    "file:///srv/日本": "/srv/日本",
}


@pytest.mark.parametrize(("text", "path"), GOOD.items())
def test_a_file_source_is_an_absolute_path(text: str, path: str) -> None:
    source = parse_source(text)
    assert isinstance(source, FileSource)
    assert str(source.path) == path


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://org/name", HfSource("org/name", None, "")),
        ("hf://org/name@v1.0", HfSource("org/name", "v1.0", "")),
        ("hf://org/na.me_x@abc123/checkpoint-5/deep", HfSource("org/na.me_x", "abc123", "checkpoint-5/deep")),
        ("hf://org/name/sub", HfSource("org/name", None, "sub")),
        ("s3://my-bucket/a/b", S3Source("my-bucket", "a/b")),
        ("s3://my.bucket/a/b/", S3Source("my.bucket", "a/b")),
        ("s3://my-bucket", S3Source("my-bucket", "")),
        ("https://Example.COM/a/b/", HttpsSource("example.com", 443, "/a/b")),
        ("https://example.com.:8443/a", HttpsSource("example.com", 8443, "/a")),
        ("https://example.com", HttpsSource("example.com", 443, "")),
        ("https://93.184.216.34/a", HttpsSource("93.184.216.34", 443, "/a")),
        ("https://[2606:2800:220:1::1]:443/a%20b", HttpsSource("2606:2800:220:1::1", 443, "/a%20b")),
    ],
)
def test_a_source_is_parsed_into_its_parts(text: str, source: object) -> None:
    assert parse_source(text) == source


REFUSED = [
    "",
    "pirate",
    "/etc/passwd",
    "http://example.com/a",
    "ftp://example.com/a",
    "FILE:///srv/a",
    "gopher://127.0.0.1:6379/_INFO",
    "data://text/plain,hello",
    "pvc://claim/a",
    "file:/srv/a",
    "file://localhost/srv/a",
    "file://host/srv/a",
    "file://../etc",
    "file:///srv/../etc",
    "file:///srv/%2e%2e/etc",
    "file:///srv/%2E./etc",
    "file:///srv/a%00b",
    "file:///srv/a%0ab",
    "file:///srv/%ff%fe",
    "file:///srv/a?x=1",
    "file:///srv/a#b",
    "file:///srv\\..\\etc",
    "hf://org",
    "hf:///name",
    "hf://org/../name",
    "hf://org/..",
    "hf://org/name@",
    "hf://org/name@../../main",
    "hf://org/name@a%2fb",
    "hf://org/name/../../x",
    "hf://org/name//x",
    "hf://-org/name",
    "hf://org/na--me",
    "hf://user:pass@host/name",
    "hf://org/näme",
    "s3://Bucket/a",
    "s3://b/a",
    "s3://buck..et/a",
    "s3://bucket/../other",
    "s3://bucket/a/../../b",
    "s3://bucket//a",
    "s3://bucket/./a",
    "s3://bucket/a?versionId=1",
    "s3://bucket/a%2e%2e/b",
    "https://",
    "https:///a",
    "https://user@example.com/a",
    "https://user:pass@example.com/a",
    "https://example.com@169.254.169.254/a",
    "https://example.com:0/a",
    "https://example.com:65536/a",
    "https://example.com:99999/a",
    "https://example.com:-1/a",
    "https://example.com:443:80/a",
    "https://example.com:\uff18\uff10/a",
    "https://example.com/a?b=c",
    "https://example.com/a#b",
    "https://example.com/../a",
    "https://example.com/a/./b",
    "https://example.com/a//b",
    "https://example.com/a/%2e%2e/b",
    "https://example.com/a%2fb",
    "https://example.com/a%5cb",
    "https://example.com/a%00b",
    "https://example.com/a%252e%252e/b",
    "https://example.com/a%zz",
    "https://example.com\\@169.254.169.254/a",
    "https://exa mple.com/a",
    "https://example.com/a\nHost: evil",
    "https://example.com/a\r\nx",
    "https://\uff45xample.com/a",
    "https://exämple.com/a",
    "https://127\u30020\u30020\u30021/a",
    "https://-example.com/a",
    "https://exa*mple.com/a",
    "https://2852039166/latest",
    "https://0xa9fea9fe/latest",
    "https://0xA9.0xFE.0xA9.0xFE/latest",
    "https://0251.0376.0251.0376/latest",
    "https://169.254.43518/latest",
    "https://127.1/a",
    "https://0/a",
    "https://017700000001/a",
    "https://1.2.3.4.5/a",
    "https://1.2.3.256/a",
    "https://[::1%25lo]/a",
    "https://[fe80::1%eth0]/a",
    "https://[::ffff:999.1.1.1]/a",
    "https://[::1/a",
    "https://::1/a",
    "https://[]/a",
    "https://[v1.fe80]/a",
    "https://" + "a" * 300 + ".com/a",
    "https://example.com/" + "a" * 3000,
]


@pytest.mark.parametrize("text", REFUSED)
def test_a_source_that_is_not_plain_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_source(text)
    assert caught.value.reason is Reason.SOURCE_REFUSED
    assert len(caught.value.message) > 20
    assert "\n" not in caught.value.message


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["file:///", "hf://", "s3://", "https://", ""]))
def test_no_text_leads_to_another_error_or_to_a_path_upwards(text: str, scheme: str) -> None:
    try:
        source = parse_source(scheme + text)
    except AdapterError:
        return
    parts = {
        FileSource: lambda s: str(s.path),
        HfSource: lambda s: f"{s.repository}/{s.folder}",
        S3Source: lambda s: s.prefix,
        HttpsSource: lambda s: s.path,
    }[type(source)](source)
    assert ".." not in parts.split("/")
    assert not any(ord(c) < 0x20 for c in parts)


PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "198.18.0.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::127.0.0.1",
    "::a9fe:a9fe",
    "64:ff9b::169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fec0::1",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_that_is_not_public_is_recognised_in_every_form(text: str) -> None:
    assert not_public(ip_address(text)) is not None
    assert vet([text], allow_private=False)[1]


@pytest.mark.parametrize(
    "text", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_a_public_address_passes(text: str) -> None:
    assert vet([text], allow_private=False) == ([str(ip_address(text))], None)


def test_one_private_address_condemns_a_name_that_also_has_a_public_one() -> None:
    assert vet(["8.8.8.8", "10.0.0.1"], allow_private=False) == ([], "10.0.0.1 is private")
    assert vet(["8.8.8.8", "10.0.0.1"], allow_private=True) == (["8.8.8.8", "10.0.0.1"], None)

"""What the operator's sessions take from their surroundings: a proxy once, a renewed token soon, and no passwords."""

from pathlib import Path

import pytest
from aiohttp import web
from operator_agent import TOKEN, fake_agent
from operator_api import fake_api
from sheaf_operator.cluster.agent_calls import TOKEN_KEPT, AgentCalls, AgentError
from sheaf_operator.cluster.kubernetes.access import environment_proxy, load_access
from sheaf_operator.cluster.kubernetes.client import ApiServer
from sheaf_operator.cluster.kubernetes.cluster import patience
from sheaf_operator.cluster.kubernetes.resources import PODS

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://api.example:6443"}}]
users: [{name: u, user: {token: abc}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def test_the_api_server_gets_no_password_of_the_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    sent: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        sent.append(request.headers.get("Authorization"))
        return web.json_response({"kind": "Pod", "metadata": {"name": "one"}})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with fake_api() as fake:
        configuration = fake.configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    api = ApiServer(configuration, "test")
    try:
        assert (await api.get(PODS, "one"))["metadata"]["name"] == "one"
    finally:
        await api.close()
        await runner.cleanup()
    assert sent == [None]


async def test_a_kubeconfig_without_a_proxy_takes_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    assert (await load_access(str(path))).proxy is None
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert (await load_access(str(path))).proxy == "http://proxy.example:3128"
    path.write_text(KUBECONFIG.replace("server:", 'proxy-url: "http://own:1", server:'))
    assert (await load_access(str(path))).proxy == "http://own:1"


@pytest.mark.parametrize(
    ("url", "bypass", "proxy"),
    [
        ("https://api.example:6443", "", "http://proxy.example:3128"),
        ("https://api.example:6443", "api.example", None),
        ("http://api.example", "", None),
        ("", "", None),
    ],
)
def test_the_environment_names_a_proxy_by_scheme_and_host(
    url: str, bypass: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", bypass)
    assert environment_proxy(url) == proxy


async def test_a_renewed_token_is_used_a_second_later(tmp_path: Path) -> None:
    path, now = tmp_path / "token", 100.0
    path.write_text("old")
    async with fake_agent() as agent, AgentCalls(path, lambda: now) as calls:
        address = f"http://127.0.0.1:{agent.port}"
        with pytest.raises(AgentError, match="401"):
            await calls.state(address, 0, 0.0)
        path.write_text(TOKEN)
        now += TOKEN_KEPT
        assert (await calls.state(address, 0, 0.0)).engine == "Ready"


async def test_whether_all_is_well_is_asked_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    async with fake_agent() as agent, AgentCalls(path) as calls:
        address = f"http://127.0.0.1:{agent.port}"
        assert await calls.answers(f"{address}/v1/state?after=0&wait=0")
        assert not await calls.answers(f"{address}/nowhere")
        assert not await calls.answers("http://127.0.0.1:1/healthz")


async def test_a_token_that_cannot_be_read_is_read_again_at_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    async with fake_agent() as agent, AgentCalls(path) as calls:
        address = f"http://127.0.0.1:{agent.port}"
        with pytest.raises(AgentError, match="cannot be read"):
            await calls.state(address, 0, 0.0)
        path.write_text(TOKEN)
        assert (await calls.state(address, 0, 0.0)).engine == "Ready"


def test_many_agents_are_given_more_time_for_their_first_answer_but_not_for_ever() -> None:
    assert patience(0) == 5.0
    assert patience(1_000) == 25.0
    assert patience(5_000) == patience(1_000_000) == 60.0

"""Nobody gets into a running Prefect server who does not belong there: a real one is asked."""

import asyncio
import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import websockets.exceptions
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    get_current_settings,
    temporary_settings,
)
from prefect.workers.process import ProcessJobConfiguration
from websockets.sync.client import connect

from flows import server
from flows.connection import connected
from flows.server import POOL, POOL_TEMPLATE, Address, Server, home, running, starting
from stages.core.runner.errors import ServerFailed
from tests.conftest import ROOT

EVIL = "http://evil.example"
SOCKETS = ("events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for Prefect, and a proxy that leads nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("prefect")
        folder.chmod(0o755)
        patch.setenv("PREFECT_HOME", str(folder))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def alive(place: Path) -> Iterator[Server]:
    with Server() as alive:
        alive.wait()
        yield alive


@pytest.fixture
def address(alive: Server) -> Address:
    return alive.address


def basic(auth: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"}


def ask(address: Address, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(method, f"{address.url}{path}", trust_env=False, timeout=30, **options)


def token(address: Address) -> dict[str, str]:
    """What a client of ours sends along with everything that changes something."""
    reply = ask(address, "GET", "/csrf-token?client=me", headers=basic(address.auth)).json()
    return {"Prefect-Csrf-Token": reply["token"], "Prefect-Csrf-Client": "me"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (basic("atelier:guess"), 401),
        ({"Authorization": "Bearer x"}, 401),
        ({"secret": "right", "Origin": EVIL}, 403),
        ({"secret": "right", "Origin": "null"}, 403),
        ({"secret": "right", "Host": "evil.example:4200"}, 400),
        ({"secret": "right", "Host": ""}, 400),
        ({"secret": "right"}, 200),
    ],
)
def test_strangers_learn_nothing(address: Address, headers: dict[str, str], status: int) -> None:
    headers = dict(headers)
    if headers.pop("secret", None):
        headers |= basic(address.auth)
    for path in ("/admin/version", "/admin/settings", "/csrf-token?client=me"):
        reply = ask(address, "GET", path, headers=headers)
        assert reply.status_code == status, path
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": EVIL}])
def test_even_the_pages_and_health_are_for_our_own(
    address: Address, headers: dict[str, str]
) -> None:
    for url in (f"{address.url}/health", f"{address.page}/", address.open_page):
        assert httpx.get(url, headers=headers, trust_env=False).status_code in (400, 403)
        assert httpx.get(url, trust_env=False, follow_redirects=True).status_code == 200


def test_strangers_run_nothing(address: Address) -> None:
    flow = {"name": "stranger"}
    with_token = token(address)
    for headers, status in (
        ({}, 403),
        (with_token, 401),
        (basic(address.auth), 403),
        (basic(address.auth) | with_token | {"Origin": EVIL}, 403),
        (basic("atelier:guess") | with_token, 401),
        (basic(address.auth) | with_token, 201),
    ):
        assert ask(address, "POST", "/flows/", json=flow, headers=headers).status_code == status


def test_a_foreign_page_may_not_even_ask(address: Address) -> None:
    preflight = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    reply = ask(address, "OPTIONS", "/flow_runs/", headers=preflight)
    assert reply.status_code == 403
    assert "access-control-allow-origin" not in reply.headers


def open_socket(address: Address, path: str, auth: str | None, **options: Any) -> Any:
    """What the server answers to this `auth`."""
    url = f"{address.url.replace('http', 'ws', 1)}/{path}"
    with connect(url, proxy=None, open_timeout=20, **options) as socket:
        socket.send(json.dumps({"type": "auth", "token": auth}))
        return json.loads(socket.recv(timeout=20))


@pytest.mark.parametrize("path", [*SOCKETS, f"work_pools/{POOL}/workers/connect"])
def test_sockets_ask_for_the_secret_too(address: Address, path: str) -> None:
    closed = websockets.exceptions.ConnectionClosed
    refused = websockets.exceptions.InvalidStatus
    for auth in (None, "", "atelier:guess"):
        with pytest.raises((closed, refused)):
            open_socket(address, path, auth, subprotocols=["prefect"])
    with pytest.raises((closed, refused)):
        open_socket(address, path, address.auth)
    with pytest.raises(refused):
        open_socket(address, path, address.auth, subprotocols=["prefect"], origin=EVIL)
    host = {"Host": "evil.example"}
    with pytest.raises((refused, websockets.exceptions.InvalidMessage)):
        open_socket(address, path, address.auth, subprotocols=["prefect"], additional_headers=host)
    if path in SOCKETS:
        reply = open_socket(address, path, address.auth, subprotocols=["prefect"])
        assert reply == {"type": "auth_success"}


def test_the_secret_is_in_no_command_line_and_no_readable_file(alive: Server, place: Path) -> None:
    password = alive.address.auth.removeprefix("atelier:")
    assert len(password) >= 40
    process = psutil.Process(alive.process.pid)
    for one in [psutil.Process(), process, *process.children(recursive=True)]:
        assert password not in " ".join(one.cmdline())
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    with server._recorded(alive):
        files = [file for file in place.rglob("*") if file.is_file()]
        assert {"prefect.db", "server.json"} <= {file.name for file in files}
        assert not [file for file in files if file.stat().st_mode & 0o077]
        assert running() == alive.address
    assert running() is None


def test_prefect_starts_no_server_of_its_own() -> None:
    """It would have no secret."""
    assert not get_current_settings().server.ephemeral.enabled


def test_every_server_has_another_secret(address: Address, place: Path) -> None:
    with Server() as other:
        assert other.address.auth != address.auth
        assert other.address.url != address.url


VARIABLES: list[dict[str, Any]] = [
    {"command": "touch /tmp/stranger"},
    {"env": {"PYTHONSTARTUP": "/tmp/stranger.py"}},
    {"env.LD_PRELOAD": "/tmp/stranger.so"},
    {"working_dir": "/tmp"},
    {"image": "stranger"},
]


async def configuration(variables: dict[str, Any]) -> ProcessJobConfiguration:
    """What the worker makes of a run's variables."""
    async with get_client() as client:
        template = json.loads(POOL_TEMPLATE.read_text())
        return await ProcessJobConfiguration.from_template_and_values(
            template, variables, client=client
        )


def test_a_run_does_not_choose_what_is_executed(address: Address) -> None:
    """Also not one who knows the secret, by mistake or through somebody else's page."""
    template = json.loads(POOL_TEMPLATE.read_text())
    with temporary_settings({PREFECT_API_URL: address.url, PREFECT_API_AUTH_STRING: address.auth}):
        with get_client(sync_client=True) as client:
            pool = WorkPoolCreate(name=POOL, type="process", base_job_template=template)
            client.create_work_pool(pool, overwrite=True)
            flow = client.create_flow_from_name("train")
            deployment = client.create_deployment(flow, "nightly", work_pool_name=POOL)
        configurations = [asyncio.run(configuration(variables)) for variables in VARIABLES]
    for config in configurations:
        assert (config.command, config.env, config.working_dir) == (None, {}, None)
    headers = basic(address.auth) | token(address)
    create = f"/deployments/{deployment}/create_flow_run"
    for variables in VARIABLES:
        reply = ask(address, "POST", create, json={"job_variables": variables}, headers=headers)
        assert reply.status_code == 422, reply.text
    reply = ask(address, "POST", create, json={"parameters": {}}, headers=headers)
    assert reply.status_code == 201, reply.text


@pytest.mark.parametrize("lie", [{"pid": 2**22 + 1}, {"started": 0.0}, None, {"pid": "x"}])
def test_a_server_that_is_gone_is_not_told_the_secret(
    alive: Server, place: Path, lie: dict[str, Any] | None
) -> None:
    with server._recorded(alive):
        record = place / "server.json"
        content = json.loads(record.read_text())
        record.write_text("{" if lie is None else json.dumps(content | lie))
        assert running() is None


def test_the_waits_have_limits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_is_healthy", lambda _: False)
    monkeypatch.setattr(server, "START_LIMIT_S", 0.3)
    with Server() as silent, pytest.raises(ServerFailed, match="for the Prefect server to start"):
        silent.wait()


@pytest.mark.slow
def test_a_server_that_ends_says_why(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////proc/no/p.db")
    with (
        (tmp_path / "log").open("w+b") as log,
        Server(log=log) as doomed,
        pytest.raises(ServerFailed, match=r"did not start: .*unable to open database file"),
    ):
        doomed.wait()


def test_a_port_that_is_taken(alive: Server) -> None:
    port = int(alive.address.page.rpartition(":")[2])
    with pytest.raises(ServerFailed, match=rf"^port {port}: .*PORT="):
        Server(port)


def test_a_folder_for_everybody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "all").mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("PREFECT_HOME", str(folder))
    with pytest.raises(ServerFailed, match="every user may write there"):
        home()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null"])
def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("PREFECT_HOME", folder)
    with pytest.raises(ServerFailed, match=r"Prefect keeps its database there.*PREFECT_HOME"):
        home()


def test_a_server_of_the_users_own_that_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    expected = r"^PREFECT_API_URL = http://127\.0\.0\.1:9/api: .*or unset PREFECT_API_URL"
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ServerFailed, match=expected),
        starting() as wait,
        connected(wait),
    ):
        pass


def test_a_socks_proxy_is_refused_in_a_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    expected = r"^ALL_PROXY = socks5://127\.0\.0\.1:1080: .*; unset it"
    with pytest.raises(ServerFailed, match=expected), starting():
        pass


def test_a_server_of_the_users_own_that_wants_another_secret(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address.url)
    with (
        temporary_settings({PREFECT_API_URL: address.url, PREFECT_API_AUTH_STRING: "me:old"}),
        pytest.raises(ServerFailed, match=r"401.*PREFECT_API_AUTH_STRING"),
        starting() as wait,
        connected(wait),
    ):
        pass


def test_the_running_server_is_used_whatever_the_users_cloud_account(
    alive: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the API's URL in the environment, as people have it, and without."""
    for url in (None, f"{alive.address.url}/"):
        if url:
            monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setenv("PREFECT_API_KEY", "of the cloud")
        with (
            server._recorded(alive),
            starting() as wait,
            connected(wait),
            get_client(sync_client=True) as client,
        ):
            assert client.read_flow_runs(limit=1) is not None
            assert wait() == alive.address
            assert "PREFECT_API_KEY" not in alive.address.environment


def test_our_own_servers_need_no_proxy() -> None:
    code = (
        "import flows, urllib.request\n"
        "print(bool(urllib.request.proxy_bypass('127.0.0.1')),"
        " bool(urllib.request.proxy_bypass('example.org')))"
    )
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    for no_proxy in ({}, {"NO_PROXY": "intranet"}, {"no_proxy": ""}):
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        output = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment | proxies | no_proxy,
            capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert output == "True False\n"


def test_who_wants_no_proxy_at_all_gets_none() -> None:
    code = "import flows, urllib.request; print(urllib.request.proxy_bypass('example.org'))"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"no_proxy": "*"},
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert output in ("True\n", "1\n")


def test_no_page_may_frame_ours(address: Address) -> None:
    """A page on another port of this machine is the same site, and could have the user click."""
    for url in (f"{address.page}/", address.open_page, f"{address.url}/health"):
        for headers in ({}, {"Host": "evil.example"}):
            reply = httpx.get(url, headers=headers, trust_env=False)
            assert reply.headers["X-Frame-Options"] == "DENY", url
            assert "frame-ancestors 'none'" in reply.headers["Content-Security-Policy"], url

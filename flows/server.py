"""The Prefect server of this project: `make ui` and `make serve` start it, runs use it.

Whoever can talk to Prefect's API can run commands as the user. So every server has a secret of its
own, even one that lives only as long as a run. Other processes get the secret through their
environment or a private file, and never through a command line. `flows.guard` refuses requests of
foreign pages and requests under foreign names.

This module imports no Prefect, so that the server starts while the rest of a run is imported.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from flows import ROOT
from flows.guard import OPEN
from stages.core.runner.errors import AtelierError, ServerFailed
from stages.core.runner.parent import kill_me_with_parent
from stages.core.runner.text import terminal

HOST = "127.0.0.1"
POOL = "atelier"
# Lists what a run may choose for its process: neither what is executed nor how.
POOL_TEMPLATE = ROOT / "flows" / "pool.json"
# A new database on a busy machine took 40 s.
START_LIMIT_S = 180
ANSWER_LIMIT_S = 10


@dataclass(frozen=True)
class Address:
    """Where a server of this project is, and what it asks for.

    Attributes:
        url: of the API.
        auth: user and password as `user:password`, for HTTP's basic authentication.
    """

    url: str
    auth: str

    @property
    def page(self) -> str:
        """The UI's page."""
        return self.url.removesuffix("/api")

    @property
    def open_page(self) -> str:
        """The same, with the secret: the browser keeps it and asks for no password."""
        return f"{self.page}{OPEN}#{self.auth}"

    @property
    def environment(self) -> dict[str, str]:
        """For Prefect's clients in other processes, without settings for the user's own servers."""
        foreign = ("PREFECT_API_KEY", "PREFECT_PROFILE")
        mine = {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self.auth}
        return {k: v for k, v in os.environ.items() if k not in foreign} | mine


def home() -> Path:
    """The folder of database, logs and secret, readable by the user alone.

    Raises: ServerFailed.
    """
    folder = Path(os.environ.get("PREFECT_HOME", ROOT / ".prefect")).expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
        if mode & (stat.S_ISVTX | stat.S_IWOTH):
            raise ServerFailed(
                f"PREFECT_HOME = {folder}: every user may write there; name a folder of your own"
            )
        if mode & 0o077:
            folder.chmod(0o700)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ServerFailed(
            f"{folder}: {error.strerror}; Prefect keeps its database there: make it a folder that "
            "you can write to, or set PREFECT_HOME to another one"
        ) from None
    return folder


def _record() -> Path:
    """The file that tells runs about the server of `make ui` or `make serve`."""
    return home() / "server.json"


def _is_healthy(url: str) -> bool:
    """Whether a server answers; this request needs no secret."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def running() -> Address | None:
    """The server of this project that `make ui` or `make serve` has started, if any.

    Raises: ServerFailed for one that does not answer.
    """
    try:
        record = json.loads(_record().read_text(encoding="utf-8"))
        process = psutil.Process(record["pid"])
        address = Address(record["url"], record["auth"])
        # Only the process that was recorded may hear the secret; another may have its port by now.
        if abs(process.create_time() - record["started"]) > 5:
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    _wait_until(
        lambda: _is_healthy(address.url) or not process.is_running(),
        ANSWER_LIMIT_S,
        f"the Prefect server at {address.page} (process {process.pid}) to answer",
    )
    return address if process.is_running() else None


def _wait_until(is_done: Callable[[], bool], limit_s: float, what: str) -> None:
    """Wait; after a while, print what for. Raises: ServerFailed after `limit_s` seconds."""
    start, is_silent = time.monotonic(), True
    while not is_done():
        waited = time.monotonic() - start
        if waited > limit_s:
            raise ServerFailed(f"waited {limit_s:.0f} s in vain for {what}; end it and try again")
        if is_silent and waited > 10:
            print(f"waiting for {what} (for up to {limit_s:.0f} s)", flush=True)
            is_silent = False
        time.sleep(0.2)


class Server:
    """A Prefect server on the loopback address, with the project's database and a secret.

    It ends with this process, however that ends. Leaving the context ends it.

    Args:
        port: 0 for any that is free.
        log: takes the server's output; None for the terminal.

    Raises: ServerFailed.
    """

    def __init__(self, port: int = 0, *, log: IO[bytes] | None = None) -> None:
        self._log = log
        # The child inherits the bound socket, so that nobody else can take the port in between.
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
            except (OSError, OverflowError) as error:
                raise ServerFailed(
                    f"port {port}: {error}; choose another one with PORT=..."
                ) from None
            port = listener.getsockname()[1]
            self.address = Address(
                f"http://{HOST}:{port}/api", f"atelier:{secrets.token_urlsafe(32)}"
            )
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.guard", str(listener.fileno())],
                cwd=ROOT,
                env=self._environment(port),
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=kill_me_with_parent,
                # Ctrl-C is for us alone: a run that is ending still reports to the server.
                start_new_session=True,
            )

    def _environment(self, port: int) -> dict[str, str]:
        return self.address.environment | {
            "PREFECT_HOME": str(home()),
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_API_AUTH_STRING": self.address.auth,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.address.page,
            # Relative to the page, so that a forwarded port works too.
            "PREFECT_UI_API_URL": "/api",
        }

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait(self) -> Address:
        """Block until the server answers. Raises: ServerFailed."""

        def answers_or_has_ended() -> bool:
            return _is_healthy(self.address.url) or self.process.poll() is not None

        _wait_until(answers_or_has_ended, START_LIMIT_S, "the Prefect server to start")
        if self.process.poll() is not None:
            raise ServerFailed(f"the Prefect server did not start: {self._last_words()}")
        return self.address

    def _last_words(self) -> str:
        if self._log is None:
            return f"exit status {self.process.returncode}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next(
            (line.strip() for line in reversed(lines) if "rror: " in line),
            f"exit status {self.process.returncode}",
        )


@contextlib.contextmanager
def starting() -> Iterator[Callable[[], Address | None]]:
    """Begin to start a server that ends with this process, unless one of this project runs.

    Yields: a function that waits until the server answers, and returns its address; None for the
        user's own server, which PREFECT_API_URL names.

    Raises: ServerFailed.
    """
    _refuse_socks()
    chosen = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    address = running()
    if chosen and not (address and address.url == chosen):
        yield lambda: None
    elif address is not None:
        yield lambda: address
    else:
        with tempfile.TemporaryFile() as log, Server(log=log) as server:
            yield server.wait


def _refuse_socks() -> None:
    """Raises: ServerFailed for a proxy that ends Prefect's client before it connects anywhere."""
    for kind, proxy in urllib.request.getproxies().items():
        if kind in ("all", "http", "https") and proxy.startswith("socks"):
            raise ServerFailed(
                f"{kind.upper()}_PROXY = {proxy}: Prefect's client cannot use a SOCKS proxy; unset "
                "it for this command, or name an HTTP proxy"
            )


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]


@contextlib.contextmanager
def _recorded(server: Server) -> Iterator[None]:
    """Tell runs of this project about the server, for as long as it lives."""
    path = _record()
    record = {
        "open": server.address.open_page,
        "url": server.address.url,
        "auth": server.address.auth,
        "pid": server.process.pid,
        "started": psutil.Process(server.process.pid).create_time(),
    }
    # A new file: an old one may be readable by others, or open somewhere.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _serve(port: int, *, worker: bool) -> None:
    _refuse_socks()
    if (address := running()) is not None:
        raise ServerFailed(
            f"{address.page}: a server of this project already runs there; use it, or end it first "
            "(Ctrl-C in its terminal)"
        )
    with Server(port) as server:
        address = server.wait()
        with _recorded(server):
            # If the output is a log and not a terminal, others may read it.
            if sys.stdout.isatty():
                print(f"Prefect UI: {address.open_page}  (Ctrl-C ends it)", flush=True)
            else:
                hint = f"to log in, open the link in {_record()}; Ctrl-C ends it"
                print(f"Prefect UI: {address.page}  ({hint})", flush=True)
            if worker:
                _work(server)
            else:
                status = server.process.wait()
                raise ServerFailed(f"the Prefect server ended with exit status {status}")


def _work(server: Server) -> None:
    """Deploy, and run a worker until Ctrl-C. It ends with this process, however that ends."""
    # PYTHONPATH is for the flow's process; ATELIER_ROOT is prefect.yaml's name for this folder.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = server.address.environment | {"PYTHONPATH": path, "ATELIER_ROOT": str(ROOT)}
    pool = ["create", POOL, "--type", "process", "--base-job-template", str(POOL_TEMPLATE)]
    for command in (_prefect("work-pool", *pool, "--overwrite"), _prefect("deploy", "--all")):
        try:
            subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=START_LIMIT_S)
        except subprocess.SubprocessError as error:
            raise ServerFailed(f"{error}; see above for the reason") from None
    # Prefect puts its runs into TMPDIR/runner_storage, which another user may own.
    with (
        tempfile.TemporaryDirectory(prefix="atelier-") as folder,
        subprocess.Popen(
            _prefect("worker", "start", "--pool", POOL),
            cwd=ROOT,
            env=environment | {"TMPDIR": folder},
            preexec_fn=kill_me_with_parent,
        ) as process,
    ):
        try:
            while process.poll() is None and server.process.poll() is None:
                time.sleep(1)
            what = "Prefect server" if process.poll() is None else "worker"
            raise ServerFailed(f"the {what} ended by itself; the lines above may say why")
        finally:
            # On this signal the worker first ends its runs.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """`python -m flows.server`: the UI; with `--worker`, also a worker and the deployments."""
    parser = argparse.ArgumentParser(prog="python -m flows.server")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _serve(arguments.port, worker=arguments.worker)
    except AtelierError as error:
        sys.exit(terminal(f"error: {error}"))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()

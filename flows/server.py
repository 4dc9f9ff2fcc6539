"""The Prefect server of this project: `make ui` and `make serve` start it, runs use it."""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import ROOT
from stages.core.runner.parent import kill_me_with_parent

HOST = "127.0.0.1"
POOL = "atelier"


def _record() -> Path:
    """Where `make ui` and `make serve` leave word of their server."""
    return Path(os.environ.get("PREFECT_HOME", ROOT / ".prefect")) / "server.json"


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def running() -> str | None:
    """The API's URL of the user's own server or of this project's running one, if any."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    with contextlib.suppress(FileNotFoundError, ValueError):
        url = str(json.loads(_record().read_text())["url"])
        return url if _healthy(url) else None
    return None


def _free_port(wanted: int) -> int:
    """`wanted`, or with 0 any port that nothing listens on."""
    with socket.socket() as probe:
        try:
            probe.bind((HOST, wanted))
        except OSError:
            sys.exit(f"error: port {wanted} is in use; choose another one with PORT=...")
        return int(probe.getsockname()[1])


class Server:
    """A Prefect server on the loopback address, with the project's database.

    It ends with this process, however that ends. Leaving the context ends it.
    """

    def __init__(self, port: int = 0, *, quiet: bool = True) -> None:
        port = _free_port(port)
        self.url = f"http://{HOST}:{port}/api"
        environment = os.environ | {
            # The UI learns the API's address from this, not from --port.
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_API_URL": self.url,
        }
        self._process = subprocess.Popen(
            [*_prefect("server", "start", "--host", HOST, "--port", str(port))],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=subprocess.DEVNULL if quiet else None,
            preexec_fn=kill_me_with_parent,
            # Ctrl-C is for us: a run that is being ended still has things to tell the server.
            start_new_session=True,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self) -> str:
        """Block until the server answers, and give its API's URL."""
        while not _healthy(self.url):
            if self._process.poll() is not None:
                sys.exit(f"error: the Prefect server ended with {self._process.returncode}")
            time.sleep(0.2)
        return self.url


@contextlib.contextmanager
def connected(meanwhile: Callable[[], None]) -> Iterator[None]:
    """Use the running server, or one that ends with this process; `meanwhile` runs as it starts."""
    with contextlib.ExitStack() as stack:
        url = running()
        own = None if url else stack.enter_context(Server())
        meanwhile()
        if own:
            url = own.wait()
        stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        try:
            yield
        finally:
            # Before the server goes: records are sent in batches, in the background, and whoever
            # is left with some when it is gone waits for minutes.
            APILogHandler().flush()


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]


def main() -> None:
    """`python -m flows.server`: the UI; with `--worker`, also a worker and the deployments."""
    parser = argparse.ArgumentParser(prog="python -m flows.server")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        url = stack.enter_context(Server(arguments.port, quiet=False)).wait()
        os.environ["PREFECT_API_URL"] = url
        stack.callback(_record().unlink, missing_ok=True)
        _record().write_text(json.dumps({"url": url}))
        print(f"Prefect UI: {url.removesuffix('/api')}  (Ctrl-C ends it)", flush=True)
        if not arguments.worker:
            signal.pause()
        # prefect.yaml's name for this folder.
        os.environ["ATELIER_ROOT"] = str(ROOT)
        pool = _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        subprocess.run(pool, check=True, cwd=ROOT)
        subprocess.run(_prefect("deploy", "--all"), check=True, cwd=ROOT)
        _work()


def _work() -> None:
    """A worker, until Ctrl-C. It ends with this process, however that ends."""
    command = _prefect("worker", "start", "--pool", POOL)
    # Prefect puts its runs into TMPDIR/runner_storage, which another user may own.
    with (
        tempfile.TemporaryDirectory(prefix="atelier-") as folder,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": folder},
            preexec_fn=kill_me_with_parent,
        ) as process,
    ):
        try:
            process.wait()
        finally:
            process.send_signal(signal.SIGINT)
    sys.exit(f"error: the worker ended with exit status {process.returncode}")


if __name__ == "__main__":
    main()

"""The Prefect server of this project: `make ui` and `make serve` start it, runs use it."""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import ROOT

HOST = "127.0.0.1"
POOL = "atelier"


def _home() -> Path:
    return Path(os.environ.get("PREFECT_HOME", ROOT / ".prefect"))


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def use_running() -> None:
    """Point Prefect at this project's running server, if there is one.

    A user's own PREFECT_API_URL wins. Call it before Prefect is imported.
    """
    with contextlib.suppress(FileNotFoundError, ValueError):
        url = json.loads((_home() / "server.json").read_text())["url"]
        if "PREFECT_API_URL" not in os.environ and _healthy(url):
            os.environ["PREFECT_API_URL"] = url


def _free_port(wanted: int) -> int:
    """`wanted`, or 0 for any: a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, wanted))
        return int(probe.getsockname()[1])


@contextmanager
def running(port: int) -> Iterator[str]:
    """A server on the loopback address for as long as the context lasts; yields its API's URL."""
    try:
        port = _free_port(port)
    except OSError:
        sys.exit(f"error: port {port} is in use; choose another one with PORT=...")
    url = f"http://{HOST}:{port}/api"
    environment = os.environ | {
        # The UI learns the API's address from this, not from --port.
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_API_URL": url,
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST]
    process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=environment)
    record = _home() / "server.json"
    try:
        while not _healthy(url):
            if process.poll() is not None:
                sys.exit(f"error: the Prefect server ended with status {process.returncode}")
            time.sleep(0.5)
        record.write_text(json.dumps({"url": url, "pid": process.pid}))
        os.environ["PREFECT_API_URL"] = url
        yield url
    finally:
        record.unlink(missing_ok=True)
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]


def main() -> None:
    """`python -m flows.server`: the UI; with `--worker`, also a worker and the deployments."""
    parser = argparse.ArgumentParser(prog="python -m flows.server")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), running(arguments.port) as url:
        print(f"Prefect UI: {url.removesuffix('/api')}  (Ctrl-C ends it)", flush=True)
        if not arguments.worker:
            signal.pause()
        # prefect.yaml's name for this folder.
        os.environ["ATELIER_ROOT"] = str(ROOT)
        pool = _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        subprocess.run(pool, check=True, cwd=ROOT)
        subprocess.run(_prefect("deploy", "--all"), check=True, cwd=ROOT)
        subprocess.run(_prefect("worker", "start", "--pool", POOL), check=True, cwd=ROOT)


if __name__ == "__main__":
    main()

"""The connection of this process to a Prefect server."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from prefect import get_client
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogHandler
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from flows.server import ANSWER_LIMIT_S, Address
from stages.core.runner.errors import ServerFailed


@contextlib.contextmanager
def connected(wait: Callable[[], Address | None]) -> Iterator[None]:
    """Send what Prefect records to the server that `server.starting` gives.

    Raises: ServerFailed.
    """
    address = wait()
    settings: dict[Any, Any] = {}
    if address is None:
        _check_answer(os.environ["PREFECT_API_URL"].rstrip("/"))
    else:
        settings = {
            PREFECT_API_URL: address.url,
            PREFECT_API_AUTH_STRING: address.auth,
            PREFECT_API_KEY: None,
            PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: True,
        }
    with temporary_settings(settings):
        try:
            yield
        finally:
            # Records are sent in batches, in the background. Any that are left when the server has
            # ended hold up the exit for minutes.
            APILogHandler().flush()


def _check_answer(url: str) -> None:
    """Raises: ServerFailed if the user's own server does not answer, or refuses us."""
    try:
        with (
            temporary_settings(
                {PREFECT_API_REQUEST_TIMEOUT: ANSWER_LIMIT_S, PREFECT_CLIENT_MAX_RETRIES: 0}
            ),
            get_client(sync_client=True) as client,
        ):
            client.read_flow_runs(limit=1)
    except (httpx.HTTPError, httpx.InvalidURL, PrefectException, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ServerFailed(
            f"PREFECT_API_URL = {url}: cannot use this Prefect server ({reason}); start it, set "
            "PREFECT_API_AUTH_STRING or PREFECT_API_KEY if it asks for one, or unset "
            "PREFECT_API_URL: a run then starts a server of its own"
        ) from None

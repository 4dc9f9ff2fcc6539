"""The Prefect server behind checks of Host and Origin: `python -m flows.guard FD`.

Prefect itself asks for the secret. The guard adds what it does not check: requests that a foreign
page makes a browser send (Origin), and foreign host names that resolve to this machine (Host).
"""

import logging
import os
import socket
import sys

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Browsers resolve `localhost` without DNS, so it is safe; people forward ports to it.
HOSTS = ("127.0.0.1", "localhost")
# Browsers send the fragment of an address to no server, so it gets into no log.
OPEN = "/open"
OPEN_PAGE = """<!doctype html>
<title>Atelier</title>
<script>
// Prefect's page looks for the password here.
localStorage.setItem("prefect-password", btoa(decodeURIComponent(location.hash.slice(1))));
location.replace("/");
</script>
"""


class Guard:
    """An ASGI app that answers only for our own host and our own pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 400 (Host) or 403 (Origin)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        response: Response | None = None
        if host.rsplit(":", 1)[0] not in HOSTS or len(headers.getlist("host")) > 1:
            response = PlainTextResponse("Host not allowed", 400)
        elif any(origin != f"http://{host}" for origin in headers.getlist("origin")):
            response = PlainTextResponse("cross-origin requests are not allowed", 403)
        elif scope["type"] == "http" and scope["path"] == OPEN:
            response = HTMLResponse(OPEN_PAGE, headers={"Cache-Control": "no-store"})
        await (response or self._app)(scope, receive, _unframed(send))


def _unframed(send: Send) -> Send:
    """Forbid every page to show ours in a frame.

    A page from another port of this machine is the same site to a browser. In its frame, our page
    would find the password, and the user's clicks would be ours.
    """

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Frame-Options"] = "DENY"
            headers.append("Content-Security-Policy", "frame-ancestors 'none'")
        await send(message)

    return send_headers


def main() -> None:
    """Serve on the socket that the parent process has bound."""
    # Prefect's server takes seconds to import, and the parent, which imports this file, needs none.
    import uvicorn
    from prefect.server.api.server import create_app

    # Database and logs are for the owner alone.
    os.umask(0o077)
    app = Guard(create_app(final=True))
    config = uvicorn.Config(app, log_level=logging.WARNING)
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()

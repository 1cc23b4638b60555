"""The server of the page: what it listens to, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from cogen_fast.app.offers import Offer, ReadPicture
from cogen_fast.app.runs import Runs
from cogen_fast.support.extras import imported

MOST_BYTES = 2**25
"""The largest request: a picture's file as text, or a painted picture."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What the page asks for. Gradio answers more, such as requests to other servers in its name.
_PATHS = re.compile(
    r"/(|config|theme\.css|favicon\.ico|robots\.txt|manifest\.json"
    r"|(static|assets)/.*"
    r"|gradio_api/(startup-events|theme\.css|cancel|reset|run/predict|queue/(join|data)"
    r"|heartbeat/\w+|file=.*))/?"
)
# All of the page comes from this server; pictures are in the page itself.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; frame-ancestors 'none'; form-action 'none'; base-uri 'self'"
)
_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]


def serve(
    offers: Sequence[Offer],
    read: ReadPicture,
    *,
    host: str,
    port: int,
    most_pixels: int,
    time_limit: float,
    on_ready: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C; ``on_ready`` is told its address.

    ``port`` 0 is any free one. A picture of more than ``most_pixels`` is refused, and a run ends
    after ``time_limit`` seconds. OSError if the address cannot be used, ImportError without Gradio.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
    with listening(host, port) as listener, tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        uvicorn = _of_gradio("uvicorn")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, most_pixels
        runs = Runs(time_limit)
        try:
            app = application(offers, read, runs, host=host)
            # Gradio logs what fails in the page's own code. Beside that, the server would log each
            # connection that is still open at the end.
            config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
            on_ready(address_of(listener))
            signal.signal(signal.SIGTERM, _leave)
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # how the server is meant to be ended
            pass
        finally:
            runs.close()
            Image.MAX_IMAGE_PIXELS = before


def _leave(*_: object) -> None:
    """Ends the process so that temporary files are removed, which the signal alone would not."""
    raise SystemExit(0)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. OSError naming host and port where that is impossible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OSError(f"host, port: cannot listen at {host}, port {port}: {error}") from error


def address_of(listener: socket.socket) -> str:
    """The address of the page."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def application(offers: Sequence[Offer], read: ReadPicture, runs: Runs, *, host: str) -> Any:
    """The page as an ASGI application behind its `Guard`. ImportError without Gradio."""
    gradio, fastapi = _of_gradio("gradio"), _of_gradio("fastapi")
    from cogen_fast.app.actions import Actions
    from cogen_fast.app.page import Page, stylesheet

    blocks = Page(Actions(offers, read, runs)).build()
    font = ("system-ui", "sans-serif")  # others would be loaded from the network
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        blocks,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gradio.themes.Default(primary_hue="violet", font=font, font_mono=("monospace",)),
        css=stylesheet(),
    )
    blocks.has_launched = True  # else Gradio does not check the paths of files that requests name
    return Guard(app, _LOOPBACK if host in _LOOPBACK else None)


class Guard:
    """Refuses requests which the page does not make.

    These are other paths than `_PATHS`, bodies that are larger than `MOST_BYTES`, of unknown size
    or with anything but texts and numbers, requests of other sites, and, where ``hosts`` are given,
    those for another name of this server.
    """

    def __init__(self, app: Any, hosts: Sequence[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        status = self._refusal(scope)
        if status is None and scope["method"] == "POST":
            body = await _body(receive)
            receive = _again(body, receive)
            status = None if _is_plain(body) else 400
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, _with_policy(send))

    def _refusal(self, scope: Any) -> int | None:
        """The status with which a request is refused; None: it is not."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        host = headers.get("host", "")
        if self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts:
            return 403
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403
        if not _PATHS.fullmatch(scope["path"]):
            return 404
        if scope["method"] in ("GET", "HEAD"):
            return None
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411
        return 413 if int(length) > MOST_BYTES else None


async def _body(receive: _Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: _Receive) -> _Receive:
    """Receives ``body``, which has been received already, and then what follows."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Any:
        return waiting.pop() if waiting else await receive()

    return received


def _is_plain(body: bytes) -> bool:
    """Whether all values in a request are texts, numbers or nothing, as those of the page are.

    Gradio reads the file, or fetches the page, which an object among them names.
    """
    try:
        content = json.loads(body or b"{}")
        values, event = content.get("data", []), content.get("event_data")
    except (ValueError, AttributeError, RecursionError):
        return False
    if not isinstance(values, list) or event:  # the events of the page have no data
        return False
    return all(value is None or isinstance(value, str | int | float) for value in values)


def _with_policy(send: _Send) -> _Send:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            policy = (b"content-security-policy", _POLICY.encode())
            others = ((b"referrer-policy", b"no-referrer"), (b"x-content-type-options", b"nosniff"))
            message = {**message, "headers": [*message["headers"], policy, *others]}
        await send(message)

    return sent


def _of_gradio(module: str) -> Any:
    """Gradio, or a package that it is built on. ImportError where Gradio is not installed."""
    return imported(module, what="app", package="Gradio", extra="app")

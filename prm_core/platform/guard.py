"""Who a server on this machine answers: requests that name it, from its own pages or from no page at all.

A page on the web can have a browser here send requests to 127.0.0.1, and can give its own name that address. Neither
needs a hole in the server; both are told by what the browser says of the request.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def own_names(host: str) -> list[str]:
    """What a server bound to an address may be called in a URL, without its port; on loopback, all of its names."""
    return sorted({host, "127.0.0.1", "localhost", "[::1]"}) if is_loopback(host) else [host]


class OnlyOwn:
    """ASGI middleware that refuses, with 403, requests under a foreign name or from another site's page.

    Args:
        app: the server's own application.
        host: the address it is bound to; 0.0.0.0 and :: are all of the machine's, whose names are not known: then the
            page must come from the name that the request was sent to.
        port: the one it listens on.
    """

    def __init__(self, app: App, host: str, port: int) -> None:
        self.app = app
        self.own = None if host in ("0.0.0.0", "::") else {f"{name}:{port}" for name in own_names(host)}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers it."""
        if scope["type"] in ("http", "websocket") and not self._is_own(dict(scope["headers"])):
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not this server's name, or another site's page\n"})
            return
        await self.app(scope, receive, send)

    def _is_own(self, headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        allowed = {host} if self.own is None else self.own
        return host in allowed and (origin is None or origin.decode("latin-1").lower().partition("://")[2] in allowed)

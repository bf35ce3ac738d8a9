"""Serves the whole app under a path of its host, such as `/cifar`, whether or not the proxy takes the path away."""

from __future__ import annotations

from urllib.parse import quote

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class UnderPath:
    """Takes `prefix` away from the paths of requests and puts it before those of redirects.

    A repeated prefix is removed completely: Gradio, which knows the prefix too, would remove one more after our checks of the path.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        """Wrap `app`. `prefix` has a slash at its beginning and none at its end."""
        self.app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self._prefix:  # relative addresses of the page need the slash
            query = scope["query_string"].decode("latin-1")
            await RedirectResponse(f"{self._prefix}/" + (f"?{query}" if query else ""), 308)(scope, receive, send)
            return
        path = scope["path"]
        while path.startswith(f"{self._prefix}/"):
            path = path.removeprefix(self._prefix)
        if path != scope["path"]:
            scope = {**scope, "path": path, "raw_path": quote(path).encode()}

        async def send_with_prefix(message: Message) -> None:
            if message["type"] == "http.response.start" and 300 <= message["status"] < 400:
                message = {
                    **message,
                    "headers": [(name, self._moved(name, value)) for name, value in message["headers"]],
                }
            await send(message)

        await self.app(scope, receive, send_with_prefix)

    def _moved(self, name: bytes, value: bytes) -> bytes:
        is_own = name.lower() == b"location" and value.startswith(b"/") and not value.startswith(b"//")
        return self._prefix.encode() + value if is_own else value

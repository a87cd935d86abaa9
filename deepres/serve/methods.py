"""HTTP methods as RFC 9110 has them: HEAD wherever GET is, OPTIONS everywhere, and Allow beside every 405."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Methods:
    """ASGI middleware. ``allowed``: the methods that each path's endpoint implements."""

    def __init__(self, app: ASGIApp, allowed: dict[str, tuple[str, ...]]) -> None:
        self.app = app
        self.allowed = {
            path: (*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS") for path, methods in allowed.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (allowed := self._allowed(scope["path"])):
            method, allow = scope["method"], {"Allow": ", ".join(allowed)}
            if method == "OPTIONS":
                return await Response(status_code=204, headers=allow)(scope, receive, send)
            if method not in allowed:
                return await JSONResponse({"detail": "Method Not Allowed"}, 405, allow)(scope, receive, send)
            if method == "HEAD":
                scope = {**scope, "method": "GET"}  # uvicorn keeps the body back: its own scope still says HEAD
        return await self.app(scope, receive, send)

    def _allowed(self, path: str) -> tuple[str, ...]:
        if path == "*":  # of the server as a whole
            return tuple(dict.fromkeys(method for methods in self.allowed.values() for method in methods))
        return self.allowed.get(path, ())

"""Request bodies are read as strict JSON: Python's own reader lets NaN, infinities and lone surrogates through."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute


class StrictRequest(Request):
    """A request whose `json()` takes what RFC 8259 defines, and nothing else."""

    async def json(self) -> Any:
        """The body's value. Raises `HTTPException` (400) where it is not JSON, or nested beyond reason."""
        try:
            return msgspec.json.decode(await self.body())
        except RecursionError:
            raise HTTPException(400, "the body is not valid JSON: it is nested too deeply") from None
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"the body is not valid UTF-8 (byte {error.start} of a string)") from None
        except msgspec.DecodeError as error:  # its text names a place, and quotes nothing
            raise HTTPException(400, f"the body is not valid JSON: {error}") from None


class StrictRoute(APIRoute):
    """A route that reads its body by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given our request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict

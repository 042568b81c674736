"""GET /health, /ready, /metrics and /v1/models: what probes, monitors and clients ask about the server itself."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from deepseek_r1.operate.metrics import CONTENT_TYPE
from deepseek_r1.serve import responses
from deepseek_r1.serve.service import Service, service_of

router = APIRouter(tags=["server"], responses=responses.ERRORS)


@router.get("/health")
async def health(request: Request) -> responses.Health:
    """Alive: this process answers. Says nothing about the engine."""
    return responses.Health(status="alive", model=service_of(request).model_id)


@router.get("/ready")
async def ready(request: Request) -> responses.Health:
    """Ready: tokens can move. 503 while the engine loads or is started again."""
    service = service_of(request)
    service.bridge.require_ready()
    return responses.Health(status="ready", model=service.model_id)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Prometheus metrics. Needs the API key where one is set."""
    return Response(service_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@router.get("/v1/models")
async def models(request: Request) -> responses.ModelList:
    """The served model and its adapters, the one that `default` means first."""
    service = service_of(request)
    return responses.ModelList(data=[_model(service, name) for name in service.models])


@router.get("/v1/models/{model_id:path}")
async def model(model_id: str, request: Request) -> responses.Model:
    """The served model or one of its adapters by its id, or as `default`."""
    service = service_of(request)
    return _model(service, service.adapter_of(model_id) or service.model_id)


def _model(service: Service, name: str) -> responses.Model:
    ready = service.bridge.ready
    adapter = name != service.model_id
    return responses.Model(
        id=name,
        created=service.created,
        owned_by="deepseek-r1-toolkit",
        root=service.root_of(name) if adapter else name,
        parent=service.model_id if adapter else None,
        max_model_len=None if ready is None else ready.max_model_len,
    )

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
    """The served model."""
    return responses.ModelList(data=[_model(service_of(request))])


@router.get("/v1/models/{model_id:path}")
async def model(model_id: str, request: Request) -> responses.Model:
    """The served model by its id or as `default`."""
    service = service_of(request)
    service.check_model(model_id)
    return _model(service)


def _model(service: Service) -> responses.Model:
    ready = service.bridge.ready
    return responses.Model(
        id=service.model_id,
        created=service.created,
        owned_by="deepseek-r1-toolkit",
        max_model_len=None if ready is None else ready.max_model_len,
    )

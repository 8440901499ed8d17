"""The models that OpenAI's clients see: ``auto``, the roles that answer, and the configured models."""

from __future__ import annotations

from typing import Any

from rolecall.bus.turn import FIRST_ROLE
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.openai.request_fields import AUTO, ModelNames
from rolecall.frontends.http.problems import problem_responses
from rolecall.frontends.http.services import Services, ServicesDep

router = api_router(prefix="/v1", tags=["OpenAI-compatible"])


@router.get("/models", summary="List the models", responses=problem_responses())
async def list_models(services: ServicesDep, _: User) -> dict[str, Any]:
    """`auto`, the roles that answer (those with a model or a prefix of their own), and the configured models."""
    return {"object": "list", "data": [_model(name) for name in listed(services)]}


@router.get("/models/{name:path}", summary="Get a model", responses=problem_responses(404))
async def show_model(name: str, services: ServicesDep, _: User) -> dict[str, Any]:
    """Also accepts the names of roles that are not listed."""
    model_names(services).check(name)
    return _model(name)


def listed(services: Services) -> list[str]:
    """The names to offer to a person."""
    roles = sorted(role.name for role in services.application.answering_roles)
    return [name for name in (AUTO, *roles, *services.application.model_names) if name != FIRST_ROLE]


def model_names(services: Services) -> ModelNames:
    """Every name that works."""
    roles = frozenset(role.name for role in services.application.roles if role.name != FIRST_ROLE)
    application = services.application
    models = frozenset(application.model_names)
    giving = {name for name in models if application.gives_logprobs(name)}
    giving |= {role.name for role in application.roles if any(name in giving for name in role.models)}
    return ModelNames(roles, models, frozenset(giving))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rolecall"}

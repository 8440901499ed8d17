"""Whether this process lives, whether the deployment is ready to answer, and what it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response

from rolecall import stats
from rolecall.config import Role
from rolecall.errors import ServerError
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.services import Here, Services
from rolecall.version import __version__

router = APIRouter(tags=["health"])


@router.get("/health/live", summary="Whether this process answers")
async def live() -> dict[str, str]:
    """Asks nothing of anyone else."""
    return {"status": "ok"}


@router.get("/health/ready", summary="Whether a message sent now would be answered")
@router.get("/health", summary="The same as /health/ready")
async def ready(here: Here, response: Response) -> dict[str, Any]:
    """200 when the bus is reachable and each role that is to have instances has one; else 503 and what is missing."""
    try:
        figures = await stats.instance_counts(here.bus)
    except ServerError:
        response.status_code = 503
        return {"status": "unavailable", "bus": "away", "missing": []}
    missing = [role.name for role in _required(here) if not figures.get(role.name)]
    if missing:
        response.status_code = 503
    return {"status": "unavailable" if missing else "ok", "bus": "ok", "missing": missing}


@router.get("/info", summary="What this deployment consists of")
async def info(here: Here, _: User) -> dict[str, Any]:
    """Version, roles with their models and live instances, and the limits of a message."""
    counts, settings = await stats.instance_counts(here.bus), here.settings
    return {
        "name": "rolecall",
        "version": __version__,
        "roles": [_described(role, counts) for role in here.application.roles],
        "models": here.application.model_names,
        "limits": {
            "body_bytes": 256 * 1024,
            "text_bytes": 64 * 1024,
            "waiting_turns_of_a_conversation": settings.mailbox_limit,
            "unfinished_turns_of_a_user": settings.user_limit,
            "turn_seconds": settings.turn_seconds,
            "result_seconds": settings.result_seconds,
            "idempotency_seconds": settings.idempotency_seconds,
        },
    }


def _required(here: Services) -> list[Role]:
    return [role for role in here.application.roles if here.application.count(role) > 0]


def _described(role: Role, counts: Mapping[str, int]) -> dict[str, Any]:
    lines = (role.agent.__doc__ or "").strip().splitlines()
    return {
        "name": role.name,
        "description": lines[0] if lines else "",
        "match": role.match,
        "models": list(role.models),
        "instances": counts.get(role.name, 0),
    }

"""Liveness, readiness, and a description of the deployment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import Response

from rolecall.bus.envelope import MAX_TEXT_BYTES
from rolecall.bus.process.processes import instance_counts, live_processes
from rolecall.config import Role
from rolecall.errors import ServerError
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.body import BODY_BYTES, LARGE_BYTES
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.stats import problems
from rolecall.version import __version__

router = api_router(tags=["health"])


@router.get("/health/live", summary="Check that this process responds")
async def live() -> dict[str, str]:
    """Depends on nothing else."""
    return {"status": "ok"}


@router.get("/health/ready", summary="Check that a message sent now would be answered")
@router.get("/health", include_in_schema=False)
async def ready(services: ServicesDep, response: Response) -> dict[str, Any]:
    """200 if the bus accepts messages and every configured role has a live instance; otherwise 503, and ``why`` or what
    is missing. ``warnings`` tell what to look after before it fails."""
    server, missing, warnings = services.session.server, list[str](), list[str]()
    try:
        condition, alive = await server.condition(), await live_processes(services.bus)
        missing = await missing_roles(services, Counter(one.role for state in alive for one in state.instances))
        why = server.outage.reason or condition.refuses
        warnings = [f"the server: {one}" for one in condition.warnings] + await problems(services.bus, alive)
    except ServerError as error:
        why = server.outage.reason or error.code or "it cannot be reached"
    ok = not why and not missing
    if not ok:
        response.status_code = 503
    told = {"status": "ok" if ok else "unavailable", "bus": "away" if why else "ok", "missing": missing}
    return {**told, "why": f"the server: {why}" if why else "", "warnings": warnings}


@router.get("/info", summary="Describe the deployment")
async def info(services: ServicesDep, _: User) -> dict[str, Any]:
    """Version, roles with their models and live instances, and the limits of a message."""
    counts, settings = await instance_counts(services.bus), services.settings
    return {
        "name": "rolecall",
        "version": __version__,
        "roles": [_describe(role, counts) for role in services.application.roles],
        "models": services.application.model_names,
        "limits": {
            "body_bytes": BODY_BYTES,
            "chat_bytes": LARGE_BYTES,
            "image_bytes": settings.blob_megabytes * 1024 * 1024,
            "text_bytes": MAX_TEXT_BYTES,
            "waiting_turns_of_a_conversation": settings.mailbox_limit,
            "unfinished_turns_of_a_user": settings.user_limit,
            "turn_seconds": settings.turn_seconds,
            "result_seconds": settings.result_seconds,
            "idempotency_seconds": settings.idempotency_seconds,
        },
    }


async def missing_roles(services: Services, counts: Mapping[str, int] | None = None) -> list[str]:
    """The configured roles without a live instance. ``counts`` are the live instances by role, if known."""
    live = await instance_counts(services.bus) if counts is None else counts
    application = services.application
    return [role.name for role in application.roles if application.count(role) > 0 and not live.get(role.name)]


def _describe(role: Role, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": role.name,
        "description": role.description,
        "match": role.match,
        "models": list(role.models),
        "instances": counts.get(role.name, 0),
    }

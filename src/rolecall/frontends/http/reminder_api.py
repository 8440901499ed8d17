"""The reminders of a conversation over HTTP: list, set and delete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.schedule.schedules import TEXT_CHARS, Schedule, schedule, schedules_of, unschedule
from rolecall.errors import BadSchedule
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.intake import PREFIX, conversation_of
from rolecall.frontends.http.problems import Problem, bus_timeout, problem_responses, text
from rolecall.frontends.http.services import ServicesDep
from rolecall.frontends.http.task import TaskRef

router = api_router(tags=["reminders"])
REMIND = "remind"
"""The role that says a reminder's text itself; without it, the manager decides."""
ConversationId = Annotated[str, Query(min_length=1, max_length=200, description="as in `conversation_id` of a message")]


class NewReminder(BaseModel):
    """What to set."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "call Ann", "when": "tomorrow at 9"}]}
    )

    text: str = Field(min_length=1, max_length=TEXT_CHARS, description="what to remind of, or a message to answer")
    when: str = Field(
        max_length=200,
        description="such as: in 10 minutes, tomorrow at 9, 2026-12-24 18:00, every 2 hours, cron 0 9 * * 1-5",
    )
    conversation_id: str = Field(min_length=1, max_length=200, description="the conversation that gets the reminder")
    timezone: str = Field("", max_length=60, description="such as Europe/Berlin; by default that of the conversation")
    role: str = Field(REMIND, max_length=40, description="the role that answers; `remind` says the text itself")


class Reminder(BaseModel):
    """One reminder. ``due`` is the time of its next turn, ``rule`` how it repeats (empty: once), ``last_task`` the id
    of the last task that it began."""

    id: str = Field(examples=["5f3c21aa"])
    text: str
    due: datetime
    when: str = Field(description="due and rule for people", examples=["2026-12-24 18:00 ↻ 2 h"])
    timezone: str
    last_task: str | None = None

    @classmethod
    def of(cls, found: Schedule) -> Reminder:
        """A schedule of the bus."""
        return cls(
            id=found.id, text=found.text, due=datetime.fromtimestamp(found.due / 1000, UTC), when=found.when,
            timezone=found.zone_name, last_task=TaskRef(found.conversation, found.turn).id if found.turn else None,
        )  # fmt: skip


class Reminders(BaseModel):
    """The reminders of a conversation, the next one first."""

    conversation_id: str
    reminders: list[Reminder]


@router.get("/chat/reminders", summary="List a conversation's reminders", responses=problem_responses(403, 422))
async def list_reminders(conversation_id: ConversationId, services: ServicesDep, who: User) -> Reminders:
    """Their answers arrive as notices of the conversation."""
    conversation = conversation_of(who, conversation_id)
    async with bus_timeout():
        found = await schedules_of(services.bus, conversation)
    return Reminders(conversation_id=conversation, reminders=[Reminder.of(one) for one in found])


@router.post("/chat/reminders", status_code=201, summary="Set a reminder", responses=problem_responses(403, 422))
async def set_reminder(body: NewReminder, services: ServicesDep, who: User) -> Reminder:
    """A turn of the conversation begins by itself at that time, once or again and again."""
    conversation = conversation_of(who, body.conversation_id)
    roles = {role.name for role in services.application.roles}
    if body.role not in (*roles, "", REMIND):
        raise Problem(422, text("unknown_role", roles=", ".join(sorted(roles))), "unknown_role", param="role")
    try:
        async with bus_timeout():
            made = await schedule(
                services.bus, conversation, body.text, when=body.when, zone=body.timezone,
                role=body.role if body.role in roles else "", user=f"{PREFIX}{who.id}",
                instance=services.front.instance,
            )  # fmt: skip
    except BadSchedule as error:
        raise Problem(422, f"{error}.", "invalid_reminder") from None
    return Reminder.of(made)


@router.delete("/chat/reminders/{reminder_id}", status_code=204, summary="Delete a reminder",
               responses=problem_responses(403, 404, 422))  # fmt: skip
async def delete_reminder(
    reminder_id: Annotated[str, Path(max_length=40)], conversation_id: ConversationId, services: ServicesDep, who: User
) -> None:
    """It begins no further turn."""
    conversation = conversation_of(who, conversation_id)
    async with bus_timeout():
        removed = await unschedule(services.bus, conversation, reminder_id, instance=services.front.instance)
    if not removed:
        raise Problem(404, text("no_reminder"))

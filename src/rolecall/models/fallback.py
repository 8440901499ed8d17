"""Several models in order: the first that can speak does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from rolecall.errors import ModelError, ModelRefused, ModelUnauthorised, ModelUnavailable, RateLimited
from rolecall.models.model import Model, ModelEvent, Request, Spoke
from rolecall.models.reading import closing


class Fallback:
    """``models`` tried in order until one begins to answer; after its first event nothing is repeated.

    A request that a model refuses for what it is goes to no other: it would only be refused again, or be
    answered by whom it was not meant for.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = tuple(models)
        self.name = ", ".join(model.name for model in self.models)

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream; first Spoke, with the name of the model that answers.

        When none can, raises RateLimited if waiting is all they ask for, ModelUnavailable if at least one may
        recover, ModelUnauthorised if none will. ``request.timeout`` is for all of them together.
        """
        clock = asyncio.get_running_loop().time
        begun = clock()
        failures: list[ModelError] = []
        for model in self.models:
            spoke = False
            try:
                async with closing(model.stream(_remaining(request, clock() - begun))) as events:
                    async for event in events:
                        if not spoke:
                            spoke = True
                            yield Spoke(model.name)
                        yield event
                return
            except ModelError as error:
                if spoke or _refused_for_good(error):
                    raise
                failures.append(error)
        raise _all_failed(failures)

    async def aclose(self) -> None:
        """Close every model."""
        for model in self.models:
            await model.aclose()


def _remaining(request: Request, gone: float) -> Request:
    if request.timeout is None:
        return request
    return msgspec.structs.replace(request, timeout=max(0.0, request.timeout - gone))


def _refused_for_good(error: ModelError) -> bool:
    """The request's own fault; a refused key is the deployment's, and another model has another key."""
    return isinstance(error, ModelRefused) and not isinstance(error, ModelUnauthorised)


def _all_failed(failures: list[ModelError]) -> ModelError:
    said = "; ".join(str(error) for error in failures)
    limited = [error for error in failures if isinstance(error, RateLimited)]
    if len(limited) == len(failures):
        waits = [error.retry_after for error in limited if error.retry_after is not None]
        return RateLimited(said, min(waits, default=None))
    if all(isinstance(error, ModelUnauthorised) for error in failures):
        return ModelUnauthorised(said)
    return ModelUnavailable(said)

"""Several models in order: the first that can speak does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import msgspec

from rolecall.errors import (
    ImagesRefused,
    LogprobsRefused,
    ModelError,
    ModelRefused,
    ModelUnauthorised,
    ModelUnavailable,
    NoSuchModel,
    NotNow,
    OverBudget,
    QuotaTooSmall,
    RateLimited,
)
from rolecall.models.gate import GatedModel
from rolecall.models.model import Model, ModelEvent, Request, Spoke
from rolecall.models.stream import closing

logger = logging.getLogger(__name__)


class Fallback:
    """``models`` tried in order until one begins to answer; after its first event nothing is repeated.

    A request that a model refuses for what it is goes to no other: it would only be refused again, or be
    answered by whom it was not meant for. A model that may not be asked now is passed over at once.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = tuple(models)
        self.name = ", ".join(model.name for model in self.models)
        self._stand_in = ""

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream; first Spoke, with the name of the model that answers and why not one before it.

        When none can, raises NotNow if one will in a while, RateLimited if waiting is all they ask for,
        ModelUnavailable if at least one may recover, ModelUnauthorised if none will. ``request.timeout`` is for all
        of them together.
        """
        clock = asyncio.get_running_loop().time
        begun = clock()
        failures: list[ModelError] = []
        for model in self.models:
            spoke = False
            try:
                async with closing(self._asked(model, _remaining(request, clock() - begun))) as events:
                    async for event in events:
                        if not spoke:
                            spoke = True
                            self._tell(model.name, failures)
                            yield Spoke(model.name, "; ".join(str(failure) for failure in failures))
                        yield event
                return
            except ModelError as error:
                if spoke or _refused_for_good(error):
                    raise
                failures.append(error)
        # Shortened, it can be answered at once.
        too_large = next((failure for failure in failures if isinstance(failure, QuotaTooSmall)), None)
        raise too_large or await self._later(failures, request) or _all_failed(failures)

    def _tell(self, name: str, failures: Sequence[ModelError]) -> None:
        """Log which model stands in for one that fails, once until the first one answers again. A limit and what only
        this request asked are no news."""
        why = "; ".join(str(error) for error in failures if _is_news(error))
        if why and name != self._stand_in:
            logger.warning("%s answers: %s", name, why)
        if why or not failures:
            self._stand_in = name if why else ""

    async def aclose(self) -> None:
        """Close every model."""
        for model in self.models:
            await model.aclose()

    def _asked(self, model: Model, request: Request) -> AsyncIterator[ModelEvent]:
        """Only a model that is the only one has its place in the quota booked at once: another may answer now."""
        if isinstance(model, GatedModel):
            return model.attempt(request, book=len(self.models) == 1)
        return model.stream(request)

    async def _later(self, failures: Sequence[ModelError], request: Request) -> NotNow | None:
        """What to wait for, if for anything: the model that may be asked first, with a place in its quota booked."""
        waits = [(w.after, n, w) for n, w in enumerate(failures) if isinstance(w, NotNow)]
        if not waits:
            return None
        after, number, wait = min(waits, key=lambda found: found[:2])
        chosen = self.models[number]
        if not wait.models and len(self.models) > 1 and isinstance(chosen, GatedModel):
            booked = await chosen.book(request)
            after = booked.after if booked else 0.1
        names = tuple(name for _, _, wait in waits for name in wait.models)
        silent = min(wait.silent for _, _, wait in waits)
        return NotNow("; ".join(str(failure) for failure in failures), after, names, wait.kind, silent=silent)


def preferring(chosen: Model, usual: Model) -> Model:
    """``chosen`` first, then the others of ``usual``, in case it is unavailable."""
    others = usual.models if isinstance(usual, Fallback) else (usual,)
    return Fallback([chosen, *(model for model in others if model.name != chosen.name)])


def _remaining(request: Request, gone: float) -> Request:
    if request.timeout is None:
        return request
    return msgspec.structs.replace(request, timeout=max(0.0, request.timeout - gone))


def _refused_for_good(error: ModelError) -> bool:
    """The request's own fault; a refused key or name is the deployment's, and another model has others. Another may
    also take images, give log probabilities, or have a larger quota."""
    if isinstance(error, OverBudget):
        return True
    return isinstance(error, ModelRefused) and not isinstance(
        error, ModelUnauthorised | NoSuchModel | ImagesRefused | LogprobsRefused | QuotaTooSmall
    )


def _is_news(error: ModelError) -> bool:
    silent = isinstance(error, NotNow) and error.kind == "model_silent"
    return silent or isinstance(error, ModelUnavailable | ModelUnauthorised | NoSuchModel)


def _all_failed(failures: list[ModelError]) -> ModelError:
    said = "; ".join(str(error) for error in failures)
    limited = [error for error in failures if isinstance(error, RateLimited)]
    if len(limited) == len(failures):
        waits = [error.retry_after for error in limited if error.retry_after is not None]
        return RateLimited(said, min(waits, default=None))
    if all(isinstance(error, ModelRefused) for error in failures):
        blind = all(isinstance(error, ImagesRefused) for error in failures)
        return failures[0] if len(failures) == 1 or blind else ModelUnauthorised(said)
    return ModelUnavailable(said)

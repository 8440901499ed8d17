"""Redis: connections, key names, the Lua script loader, leader election and the embedded server."""

import sys
from contextlib import suppress
from importlib.util import find_spec

# redis-py imports the metrics of OpenTelemetry wherever they are installed, a third of a second in every process for
# figures that Rolecall does not ask it for. A program that uses them has imported either before.
_METRICS = "opentelemetry.sdk.metrics"
if not {"redis", _METRICS} & sys.modules.keys() and find_spec("opentelemetry") is not None:
    sys.modules[_METRICS] = None  # type: ignore[assignment]  # Python's way to say that there is none
    with suppress(ImportError):
        import redis.asyncio  # noqa: F401
    del sys.modules[_METRICS]

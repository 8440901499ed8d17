"""Redis: connections, key names, the Lua script loader, leader election and the embedded server."""

import sys
from contextlib import suppress
from importlib.util import find_spec

# redis-py imports the metrics of OpenTelemetry wherever they are installed, a third of a second in every process for
# figures that Rolecall does not ask it for. A program that uses them has imported either before.
_METRICS = ("opentelemetry.metrics", "opentelemetry.sdk.metrics")
if not {"redis", *_METRICS} & sys.modules.keys() and find_spec("opentelemetry") is not None:
    sys.modules.update(dict.fromkeys(_METRICS))  # type: ignore[arg-type]  # Python's way to say that there is none
    with suppress(ImportError):
        import redis.asyncio  # noqa: F401
    for _name in _METRICS:
        del sys.modules[_name]

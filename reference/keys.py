"""The keys on the server: their names and types, from the module that makes them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise

from reference.markdown import code, sentence, table
from rolecall.redis import keys

HEAD = """\
# Keys

Generated from the code. `P` is `{bus:N}`, where N is the shard, or `{<prefix>.bus:N}` with `KEY_PREFIX`. Nothing but
`rolecall.redis.keys` names a key. [The data model](../data-model.md) adds who writes each key and when it goes.
"""
NOT_KEYS = {"GROUP", "GLOBAL"}
PLAIN = {"meta": "Hash: `shards`, `schema`, `born`, `application` and `keys`: what is true of the whole bus.",
         "scale": "Hash: role → live instance count.",
         "w": "Sorted set: process → ms at which its entry in the registry expires.",
         "control": "Pub/sub channel of orders to all processes.",
         "l": "Stream of log records for the scribe.", "d": "Stream of dead letters.",
         "z": "Sorted set: conversations whose turn is deferred or held, by due time.",
         "z:w": "Sorted set: suspended turns, by when they began to wait.",
         "zs": "Sorted set: schedules, by the time their next turn is due.",
         "a": "Sorted set: conversations with a turn in flight, by its start.",
         "clock": "Hash: steps of the server's clock.", "u": "Hash: user → number of unfinished turns."}  # fmt: skip
"""What keys hold whose name says no more in the code."""


def page() -> str:
    """The page."""
    both = [("Keys of the whole bus", whole_bus()), ("Keys of a shard", of_a_shard())]
    lines = [HEAD]
    for title, rows in both:
        lines += [f"## {title}", *table(("key", "holds"), [(code(name), text) for name, text in rows])]
    return "\n".join(lines).rstrip() + "\n"


def whole_bus() -> Iterator[tuple[str, str]]:
    """Pattern and meaning of the keys that exist once."""
    written = documented()
    for name, value in vars(keys).items():
        if name.isupper() and isinstance(value, str) and name not in NOT_KEYS:
            yield value, written.get(name) or PLAIN.get(value.rpartition(":")[2], "")
    for name, function in inspect.getmembers(keys, inspect.isfunction):
        signature = inspect.signature(function)
        takes, gives = {one.annotation for one in signature.parameters.values()}, {signature.return_annotation}
        if not name.startswith("_") and takes == gives == {"str"} and function.__module__ == keys.__name__:
            yield function(*placeholders(signature)), sentence(function.__doc__ or "")


def of_a_shard() -> Iterator[tuple[str, str]]:
    """Pattern and meaning of the keys of each shard."""
    shard = keys.ShardKeys(0)
    for name, value in vars(shard).items():
        if name not in ("number", "prefix"):
            yield short(value), PLAIN.get(value.rpartition(":")[2], "")
    for _, method in inspect.getmembers(shard, inspect.ismethod):
        if not method.__name__.startswith("_"):
            yield short(method(*placeholders(inspect.signature(method)))), sentence(method.__doc__ or "")


def placeholders(signature: inspect.Signature) -> list[str]:
    """``<name>`` for each parameter."""
    return [f"<{name}>" for name in signature.parameters]


def short(key: str) -> str:
    """A key of a shard with ``P`` for its tag and ``\\x1f`` as it is written."""
    return re.sub(r"^\{bus:\d+\}", "P", key).replace("\x1f", "\\x1f")


def documented() -> dict[str, str]:
    """The string below each constant of the module."""
    body = ast.parse(inspect.getsource(keys)).body
    found = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[ast.unparse(node.targets[0])] = sentence(str(after.value.value))
    return found

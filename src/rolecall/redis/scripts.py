"""Lua scripts with named keys and arguments: one atomic change of state each.

A script's header declares what it takes, by name::

    -- Settle an entry by giving its turn up.
    --   final: the final event as JSON
    -- Returns OK | FENCED | STALE.
    -- include: turn finish
    -- keys: dead
    -- args: final reason records*

Each name in upper case (``DEAD``, ``FINAL``) stands for its value, so no script counts its keys or arguments: the
loader puts ``KEYS[1]`` or ``ARGV[2]`` in its place. A trailing ``*`` marks a list, which arrives as a Lua table; lists
come last in their line, and at most one of the keys is a list. ``include`` puts preludes in front, in that order and
with the names that their headers declare: files of the package's ``scripts/lib``, or of ``rolecall/redis/lib`` for all
packages. Functions that a script does not use are left out, and so are fields of a hash that a prelude reads: the
server runs the whole text on every call, and each function costs the more to make, the more locals all functions share.

A module declares the scripts it calls, and the names it will pass, when it is imported. Names that differ from the
header raise ScriptError then, and so does a call with other names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import sha1
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from rolecall.errors import RolecallError
from rolecall.redis.keys import absent

Arg: TypeAlias = str | bytes | int | float
Block: TypeAlias = Mapping[str, object]
"""Values by name: single ones, or lists of them."""
LISTS = (list, tuple)
ABSENT = "absent"
"""On a cluster, one more key of each script that has several: one that is never written. While a slot moves key by key,
a node refuses commands of which it lacks a key. Without this one, a script might run where keys whose names it makes
itself are missing for the moment, and take them for keys that never were."""
_Getter: TypeAlias = Callable[[Block], tuple[Any, ...]]
_INCLUDE = re.compile(r"^-- include: (.+)$", re.MULTILINE)
_DECLARED = re.compile(r"^-- (keys|args): (.*)$", re.MULTILINE)
_CHANGES_NOTHING = re.compile(r"^-- Changes nothing\b", re.MULTILINE)
_CONFIRMED = re.compile(r"^-- Confirmed by replicas\b", re.MULTILINE)
_TOKEN = re.compile(r"'[^'\n]*'|--[^\n]*|(?<![\w.])[A-Z][A-Z_]*\b")
"""A string, a comment or a name in upper case."""
_PIECE = re.compile(
    r"^local function (\w+)\((?:[^\n]*\bend|[^\n]*\n(?:.*\n)*?end)\n"
    r"|^local ([\w, ]+) =\n  unpack\(redis\.call\('HMGET', [A-Z]+, ([^()]+)\)\)\n",
    re.MULTILINE,
)
"""A function with its name, or what reads fields of a hash into locals, with their names and the fields."""
_LIST = """\
local {name} = {{ unpack(ARGV, from, from + (count < 1000 and count or 999) - 1) }}
for i = 1000, count do {name}[i] = ARGV[from + i - 1] end
"""
"""How a list of ``count`` arguments is read: in one call, which Lua can do for some thousand values at most."""


class ScriptError(RolecallError):
    """A script and its caller do not agree on names, or a script's header is wrong: a mistake in the code."""


@dataclass(frozen=True, eq=False)
class Script:
    """A declared script. Its ``body``, the whole text that the server runs, and ``sha``, the SHA-1 the server knows it
    by, are made of its ``parts`` when it is first called.

    A call passes the names of each prelude as one mapping, in the order of ``blocks``, and the other names one by one.
    ``keys`` and ``args`` are the names of single values in order; ``key_list`` is the name of the list of keys or "",
    ``arg_lists`` those of the lists of arguments. A script that ``reads`` changes nothing: users who may only read its
    keys can run it. With WAIT_REPLICAS, one that is ``confirmed`` returns only once so many replicas have its writes.
    """

    name: str
    parts: tuple[str, ...]
    keys: tuple[str, ...]
    key_list: str
    args: tuple[str, ...]
    arg_lists: tuple[str, ...]
    blocks: tuple[frozenset[str], ...] = ()
    publish: str = "PUBLISH"

    @cached_property
    def body(self) -> bytes:
        lists = _lists(len(self.keys), self.key_list, len(self.args), self.arg_lists)
        text = lists + _placed(_used(self.parts), self.keys, self.args)
        return text.replace("redis.call('PUBLISH'", f"redis.call('{self.publish}'").encode()

    @cached_property
    def sha(self) -> str:
        return sha1(self.body, usedforsecurity=False).hexdigest()

    @cached_property
    def reads(self) -> bool:
        return any(_CHANGES_NOTHING.search(part) for part in self.parts)

    @cached_property
    def confirmed(self) -> bool:
        return any(_CONFIRMED.search(part) for part in self.parts)

    @cached_property
    def sharded(self) -> Script:
        """The same for a cluster, where what a script publishes goes to the node of its keys only, with ABSENT."""
        return replace(self, publish="SPUBLISH", keys=(*self.keys, ABSENT) if self._has_several_keys else self.keys)

    @property
    def names(self) -> frozenset[str]:
        """All names that a call passes."""
        return frozenset((*self.keys, *self.args, *self.arg_lists, *filter(None, (self.key_list,))))

    def arguments(self, blocks: Sequence[Block], values: Block) -> list[Any]:
        """What follows EVALSHA and the digest: the number of keys, keys, arguments. Raises ScriptError when a name is
        missing or unexpected, or a list is expected."""
        sources, plan = (*blocks, values), self._plan
        try:
            flat: list[Any] = [0]
            for number, get in plan.keys:
                flat += get(sources[number])
            if self.key_list:
                flat += _listed(values[self.key_list])
            flat[0] = len(flat) - 1
            for number, get in plan.args:
                flat += get(sources[number])
            for name in self.arg_lists:
                items = _listed(values[name])
                flat.append(len(items))
                flat += items
        except (KeyError, IndexError, TypeError):
            raise self.mistake(blocks, values) from None
        if len(values) != plan.values or len(sources) != plan.sources:
            raise self.mistake(blocks, values)
        return flat

    def with_absent(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """``arguments`` for ``sharded``: with the key ABSENT."""
        if not self._has_several_keys:
            return arguments
        at = 1 + len(self.keys)
        return [arguments[0] + 1, *arguments[1:at], absent(arguments[1]), *arguments[at:]]

    @property
    def _has_several_keys(self) -> bool:
        return len(self.keys) > 1 or bool(self.key_list)

    def mistake(self, blocks: Sequence[Block], values: Block) -> ScriptError:
        """What is wrong with a call, in one line."""
        passed = {name: value for source in (*blocks, values) for name, value in source.items()}
        if passed.keys() != self.names:
            return _difference(self.name, self.names, passed)
        lists = {self.key_list, *self.arg_lists}
        wrong = sorted(name for name, value in passed.items() if isinstance(value, LISTS) != (name in lists))
        kinds = (f"{name} takes {'a list' if name in lists else 'a single value'}" for name in wrong)
        return ScriptError(f"{self.name}: {'; '.join(kinds) or 'expected strings, bytes and numbers'}")

    @cached_property
    def _plan(self) -> _Plan:
        own = self.names.difference(*self.blocks)
        return _Plan(self._getters(self.keys), self._getters(self.args), len(own), len(self.blocks) + 1)

    def _getters(self, names: Sequence[str]) -> list[tuple[int, _Getter]]:
        """How to read ``names``: for each run of them in one block, or in the other values, its number and a getter."""

        def source(name: str) -> int:
            return next((number for number, block in enumerate(self.blocks) if name in block), len(self.blocks))

        return [(number, _getter(list(run))) for number, run in groupby(names, key=source)]


class _Plan(NamedTuple):
    """How to put the values of a call in order, and how many there are, worked out once."""

    keys: list[tuple[int, _Getter]]
    args: list[tuple[int, _Getter]]
    values: int
    sources: int


_LOADED: dict[str, Script] = {}


def script(package: str, path: str, *blocks: type, names: str = "") -> Script:
    """Load ``<package>/<path>.lua`` and check it against its caller.

    ``blocks`` are TypedDict classes whose fields are the names of a prelude; ``names`` are the other names, separated
    by spaces. Raises ScriptError when they are not exactly the names that the script's header and its preludes declare.
    """
    loaded = replace(_load(package, path), blocks=tuple(frozenset(block.__annotations__) for block in blocks))
    passed = {*names.split(), *(name for block in loaded.blocks for name in block)}
    if passed != loaded.names:
        raise _difference(loaded.name, loaded.names, passed)
    _LOADED[loaded.name] = loaded
    return loaded


def loaded_scripts() -> tuple[Script, ...]:
    """Every script that the modules imported so far declare."""
    return tuple(_LOADED.values())


def milliseconds(seconds: float) -> int:
    """``seconds`` as whole milliseconds."""
    return round(seconds * 1000)


def _load(package: str, path: str) -> Script:
    text = _read(package, f"{path}.lua")
    name = f"{package.rpartition('.')[2]}/{path}.lua"
    included = _INCLUDE.search(text)
    parts = [_prelude(name, package, part) for part in (included.group(1).split() if included else ())]
    parts.append(text)
    declared: dict[str, tuple[list[str], list[str]]] = {"keys": ([], []), "args": ([], [])}
    for kind, words in _DECLARED.findall("".join(parts)):
        single, lists = _split(name, words.split())
        declared[kind][0].extend(single)
        declared[kind][1].extend(f"{word}*" for word in lists)
    return _made(name, parts, *([*single, *lists] for single, lists in declared.values()))


def _made(name: str, parts: Sequence[str], keys: list[str], args: list[str]) -> Script:
    declared = [word.rstrip("*") for word in (*keys, *args)]
    if twice := sorted({word for word in declared if declared.count(word) > 1}):
        raise ScriptError(f"{name} declares {', '.join(twice)} twice")
    single, lists = _split(name, keys)
    if len(lists) > 1:
        raise ScriptError(f"{name} declares the key lists {', '.join(lists)}: expected at most one")
    plain, arg_lists = _split(name, args)
    return Script(name, tuple(parts), tuple(single), lists[0] if lists else "", tuple(plain), tuple(arg_lists))


def _split(name: str, words: list[str]) -> tuple[list[str], list[str]]:
    """Single names and lists; lists come last."""
    single = [word for word in words if not word.endswith("*")]
    lists = [word[:-1] for word in words if word.endswith("*")]
    if words != [*single, *(f"{word}*" for word in lists)]:
        raise ScriptError(f"{name} declares a single value behind a list: expected lists last in {' '.join(words)}")
    return single, lists


def _placed(text: str, keys: Sequence[str], args: Sequence[str]) -> str:
    """``text`` with the place of each name instead of the name, except in strings and comments."""
    places = {word.upper(): f"KEYS[{number}]" for number, word in enumerate(keys, 1)}
    places |= {word.upper(): f"ARGV[{number}]" for number, word in enumerate(args, 1)}
    return _TOKEN.sub(lambda token: places.get(token[0], token[0]), text)


def _used(parts: Iterable[str]) -> str:
    """The text of ``parts`` without the functions and the fields that nothing else in it names."""
    pieces = [piece for part in parts for piece in _pieces(part)]
    functions: dict[str, set[str]] = {}
    for piece in pieces:
        functions.setdefault(piece.function, set()).update(piece.words)
    needed, found = {""}, {""}
    while found:
        found = set().union(*(functions[name] for name in found)) & functions.keys() - needed
        needed |= found
    kept = [piece for piece in pieces if piece.function in needed]
    return "".join(_asked(piece, kept) if piece.fields else piece.text for piece in kept)


class _Piece(NamedTuple):
    """A function of a script, or what stands before or between functions (``function`` is empty), and its words. What
    reads fields of a hash is a piece of its own, with the fields by the names of their locals."""

    function: str
    text: str
    words: frozenset[str]
    fields: Mapping[str, str] = {}


@cache
def _pieces(part: str) -> tuple[_Piece, ...]:
    """``part`` in pieces; most parts are preludes of many scripts."""
    found, at = list[_Piece](), 0
    for piece in _PIECE.finditer(part):
        found.append(_Piece("", part[at : piece.start()], _words(part[at : piece.start()])))
        fields = dict(zip(piece[2].split(", "), piece[3].split(", "), strict=True)) if piece[2] else {}
        found.append(_Piece(piece[1] or "", piece[0], _words(piece[0]), fields))
        at = piece.end()
    return (*found, _Piece("", part[at:], _words(part[at:])))


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in re.findall(r"--[^\n]*|\w+", text) if not word.startswith("--"))


def _asked(reading: _Piece, kept: Sequence[_Piece]) -> str:
    """What reads a hash, with only those fields whose locals another piece names."""
    others = [piece.words for piece in kept if piece is not reading]
    named = [name for name in reading.fields if any(name in words for words in others)]
    if not named:
        return ""
    fields = ", ".join(reading.fields[name] for name in named)
    before, after = ", ".join(reading.fields), ", ".join(reading.fields.values())
    return reading.text.replace(before, ", ".join(named), 1).replace(after, fields, 1)


def _lists(keys: int, key_list: str, args: int, arg_lists: Sequence[str]) -> str:
    """Locals for the lists, which follow so many single keys and arguments."""
    lines = [f"local {key_list.upper()} = {{ unpack(KEYS, {keys + 1}) }}\n"] if key_list else []
    for number, word in enumerate(arg_lists):
        if number:
            lines.append("from = from + count + 1\ncount = tonumber(ARGV[from - 1])\n")
        else:
            lines.append(f"local from, count = {args + 2}, tonumber(ARGV[{args + 1}])\n")
        lines.append(_LIST.format(name=word.upper()))
    return "".join(lines)


def _getter(names: Sequence[str]) -> _Getter:
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple(values[name] for name in names)


def _listed(items: object) -> Sequence[Any]:
    if isinstance(items, LISTS):
        return items
    raise TypeError("a list is expected")


def _prelude(name: str, package: str, part: str) -> str:
    text = _found(package, part)
    if text is None:
        raise ScriptError(f"{name} includes {part}: there is no lib/{part}.lua")
    return text


@cache
def _found(package: str, part: str) -> str | None:
    for owner, path in ((package, f"scripts/lib/{part}.lua"), ("rolecall.redis", f"lib/{part}.lua")):
        with suppress(FileNotFoundError):
            return _read(owner, path)
    return None


def _read(package: str, path: str) -> str:
    return _directory(package).joinpath(path).read_text(encoding="utf-8")


@cache
def _directory(package: str) -> Traversable:
    return files(package)


def _difference(name: str, expected: frozenset[str], passed: Iterable[str]) -> ScriptError:
    given = set(passed)
    named = {"missing": sorted(expected - given), "unexpected": sorted(given - expected)}
    return ScriptError(f"{name}: " + "; ".join(f"{word} {', '.join(names)}" for word, names in named.items() if names))

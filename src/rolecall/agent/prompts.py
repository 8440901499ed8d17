"""Prompts as files, ``agents/prompts/<name>.md``, all checked before any is used.

A prompt is a Jinja2 template. Its first line declares its variables, ``{# variables: language, name #}``; a prompt
without variables needs no such line. It may include others by name, ``{% include "persona.md" %}``.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.sandbox import SandboxedEnvironment


PLACE = "agents/prompts"
SUFFIX = ".md"
DECLARATION = re.compile(r"\{#-?[ \t]*variables:([^\n]*?)-?#\}")


class Prompts:
    """An application's prompts, from texts by file name such as ``persona.md``. Raises ConfigError, with file and line,
    for a prompt that does not parse, includes itself or a missing file, or uses a variable it does not declare."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self._variables: dict[str, tuple[str, ...]] = {}
        self._templates: dict[str, Template] = {}
        if not texts:
            return
        environment = _environment(texts)
        parsed = {file: _parsed(environment, file, text) for file, text in texts.items()}
        for file, source in parsed.items():
            _check_declared(source, parsed)
            name = file.removesuffix(SUFFIX)
            self._variables[name], self._templates[name] = source.declared, environment.get_template(file)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all prompts, without ``.md``, sorted."""
        return tuple(sorted(self._templates))

    def render(self, name: str, variables: Mapping[str, object]) -> str:
        """The text of ``name`` with exactly the ``variables`` it declares, unescaped, without surrounding white space.
        Raises ConfigError when no prompt has this name, or a variable is missing or not declared."""
        if name not in self._templates:
            there = f"there are {', '.join(self.names)}" if self.names else f"write it as {PLACE}/{name}{SUFFIX}"
            raise ConfigError(f"there is no prompt {name!r}; {there}")
        _check_given(name, self._variables[name], variables)
        try:
            return self._templates[name].render(variables).strip()
        except Exception as error:  # the boundary: a prompt, and what it does with values, is the user's own
            raise ConfigError(f"{_place(error, name + SUFFIX)}: {error}") from error


def load_prompts(directory: Path) -> Prompts:
    """The prompts in ``directory``; none when it does not exist. Raises ConfigError, see Prompts."""
    found = ((path, path.relative_to(directory)) for path in sorted(directory.rglob(f"*{SUFFIX}")) if path.is_file())
    seen = [(path, short) for path, short in found if not any(part.startswith(".") for part in short.parts)]
    return _checked(tuple((short.as_posix(), _read(path, short)) for path, short in seen))


@lru_cache(maxsize=8)
def _checked(texts: tuple[tuple[str, str], ...]) -> Prompts:
    """Prompts never change, so equal files are compiled once: a program with many tests loads them for each."""
    return Prompts(dict(texts))


@dataclass(frozen=True)
class _Source:
    """A parsed prompt: the variables it declares, those it uses and the files it includes, each with its line, and the
    names it sets itself, which included files may use."""

    file: str
    declared: tuple[str, ...]
    uses: Mapping[str, int]
    includes: Mapping[str, int]
    sets: frozenset[str]


def _environment(texts: Mapping[str, str]) -> SandboxedEnvironment:
    from jinja2 import FunctionLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def found(file: str) -> tuple[str, str, None]:
        return _without_declaration(texts[file]), f"{PLACE}/{file}", None

    # Not HTML: a model has to read "<", not "&lt;".
    return ImmutableSandboxedEnvironment(loader=FunctionLoader(found), undefined=StrictUndefined, autoescape=False)


def _without_declaration(text: str) -> str:
    """``text`` without the line of its declaration, so that an included prompt starts without an empty line."""
    declaration = DECLARATION.match(text)
    return f"{{# -#}}{text[declaration.end() :]}" if declaration else text


def _parsed(environment: SandboxedEnvironment, file: str, text: str) -> _Source:
    from jinja2 import TemplateSyntaxError, meta, nodes

    declared = _declared(file, text)
    try:
        tree = environment.parse(_without_declaration(text))
        unset = meta.find_undeclared_variables(tree)
    except TemplateSyntaxError as error:
        raise _wrong(file, error.lineno, f"{error.message}; see the Jinja2 documentation") from None
    names = list(tree.find_all(nodes.Name))
    return _Source(
        file,
        declared,
        _lines({name.name: name for name in reversed(names) if name.name in unset and name.ctx == "load"}),
        _lines(_includes(file, tree)),
        frozenset(name.name for name in names if name.ctx != "load"),
    )


def _declared(file: str, text: str) -> tuple[str, ...]:
    match = DECLARATION.match(text)
    names = [name.strip() for name in match[1].split(",")] if match and match[1].strip() else []
    for name in names:
        if not name.isidentifier():
            raise _wrong(file, 1, f"{name!r} is not a variable name: expected {{# variables: language, name #}}")
    return tuple(names)


def _includes(file: str, tree: nodes.Template) -> dict[str, nodes.Node]:
    from jinja2 import nodes

    others: tuple[type[nodes.Stmt], ...] = (nodes.Extends, nodes.Import, nodes.FromImport)
    for other in tree.find_all(others):
        raise _wrong(file, other.lineno, 'only include may refer to other files: {% include "persona.md" %}')
    found: dict[str, nodes.Node] = {}
    for node in tree.find_all(nodes.Include):
        if not isinstance(node.template, nodes.Const) or not isinstance(node.template.value, str):
            raise _wrong(file, node.lineno, 'include expects one file name in quotes: {% include "persona.md" %}')
        found.setdefault(node.template.value, node)
    return found


def _lines(found: Mapping[str, nodes.Node]) -> dict[str, int]:
    return {name: node.lineno for name, node in found.items()}


def _check_declared(source: _Source, parsed: Mapping[str, _Source]) -> None:
    for variable, (line, origin) in sorted(_needed(source, parsed, ()).items()):
        if variable not in source.declared:
            wanted = ", ".join((*source.declared, variable))
            user = "" if origin == source.file else f", which {origin} uses,"
            raise _wrong(
                source.file,
                line,
                f"{variable!r}{user} is not declared; {_listed(source.declared)}. To declare it, start the file with "
                f"{{# variables: {wanted} #}}",
            )


def _needed(source: _Source, parsed: Mapping[str, _Source], within: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """The variables that ``source`` and its includes use: for each the line in ``source`` and the file that uses it."""
    needed = {variable: (line, source.file) for variable, line in source.uses.items()}
    for file, line in source.includes.items():
        if file not in parsed:
            raise _wrong(source.file, line, f"there is no {file!r} to include; there are {', '.join(sorted(parsed))}")
        if file in (*within, source.file):
            circle = " → ".join((*within, source.file, file))
            raise _wrong(source.file, line, f"{file!r} includes itself: {circle}")
        for variable, (_, origin) in _needed(parsed[file], parsed, (*within, source.file)).items():
            if variable not in source.sets:
                needed.setdefault(variable, (line, origin))
    return needed


def _check_given(name: str, declared: tuple[str, ...], given: Mapping[str, object]) -> None:
    if unknown := sorted(given.keys() - set(declared)):
        close = difflib.get_close_matches(unknown[0], declared, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"prompt {name}: there is no variable {unknown[0]!r}{hint}; {_listed(declared)}")
    if missing := [variable for variable in declared if variable not in given]:
        raise ConfigError(f"prompt {name}: the variable {missing[0]!r} is missing; it needs {', '.join(declared)}")


def _listed(declared: tuple[str, ...]) -> str:
    return f"declared: {', '.join(declared)}" if declared else "none is declared"


def _read(path: Path, short: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{PLACE}/{short.as_posix()} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{PLACE}/{short.as_posix()} is not UTF-8 text") from None


def _place(error: Exception, file: str) -> str:
    """File and line of the prompt that raised ``error``; ``file`` when they are unknown."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(f"{PLACE}/")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else f"{PLACE}/{file}"


def _wrong(file: str, line: int, text: str) -> ConfigError:
    return ConfigError(f"{PLACE}/{file}, line {line}: {text}")

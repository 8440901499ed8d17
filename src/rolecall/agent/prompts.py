"""What models are told, kept as files: ``agents/prompts/<name>.md``, checked as a whole before any is used.

A prompt is a Jinja2 template. Its first line declares what it takes, ``{# variables: language, name #}``; one that
takes nothing needs no such line. It may include others by name, ``{% include "persona.md" %}``.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
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
    """An application's prompts. Made of texts by file name, such as ``persona.md``; raises ConfigError, with file and
    line, for one that does not parse, includes what is not there or itself, or uses what it does not declare."""

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
        """All there are, without ``.md``, in order."""
        return tuple(sorted(self._templates))

    def render(self, name: str, variables: Mapping[str, object]) -> str:
        """The text of ``name`` with exactly the ``variables`` it declares, without white space around it; their values
        are put in as they are. Raises ConfigError when there is none of that name, or a variable is missing or not
        declared."""
        if name not in self._templates:
            there = f"there are {', '.join(self.names)}" if self.names else f"write it as {PLACE}/{name}{SUFFIX}"
            raise ConfigError(f"there is no prompt {name!r}; {there}")
        _check_given(name, self._variables[name], variables)
        try:
            return self._templates[name].render(variables).strip()
        except Exception as error:  # the boundary: a prompt, and what it does with values, is the user's own
            raise ConfigError(f"{_place(error, name + SUFFIX)}: {error}") from error


def load_prompts(directory: Path) -> Prompts:
    """The prompts in ``directory``, as they are now; none when it is not there. Raises ConfigError, see Prompts."""
    found = ((path, path.relative_to(directory)) for path in sorted(directory.rglob(f"*{SUFFIX}")) if path.is_file())
    seen = [(path, short) for path, short in found if not any(part.startswith(".") for part in short.parts)]
    return Prompts({short.as_posix(): _read(path, short) for path, short in seen})


@dataclass(frozen=True)
class _Source:
    """A parsed prompt: what it declares; the variables it uses and the files it includes, each with its line; the
    names it sets itself, which what it includes may use."""

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

    # Not HTML: a model is to read "<", not "&lt;".
    return ImmutableSandboxedEnvironment(loader=FunctionLoader(found), undefined=StrictUndefined, autoescape=False)


def _without_declaration(text: str) -> str:
    """``text`` with a declaration that takes its line end along, so that it leaves no empty line where included."""
    declaration = DECLARATION.match(text)
    return f"{{# -#}}{text[declaration.end() :]}" if declaration else text


def _parsed(environment: SandboxedEnvironment, file: str, text: str) -> _Source:
    from jinja2 import TemplateSyntaxError, meta, nodes

    declared = _declared(file, text)
    try:
        tree = environment.parse(_without_declaration(text))
        unset = meta.find_undeclared_variables(tree)
    except TemplateSyntaxError as error:
        raise _wrong(file, error.lineno, f"{error.message}; see the Jinja2 documentation for what is allowed") from None
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
            raise _wrong(file, 1, f"{name!r} is no name of a variable: {{# variables: language, name #}} is allowed")
    return tuple(names)


def _includes(file: str, tree: nodes.Template) -> dict[str, nodes.Node]:
    from jinja2 import nodes

    others: tuple[type[nodes.Stmt], ...] = (nodes.Extends, nodes.Import, nodes.FromImport)
    for other in tree.find_all(others):
        raise _wrong(file, other.lineno, 'only include is allowed of other files: {% include "persona.md" %}')
    found: dict[str, nodes.Node] = {}
    for node in tree.find_all(nodes.Include):
        if not isinstance(node.template, nodes.Const) or not isinstance(node.template.value, str):
            raise _wrong(file, node.lineno, 'one file by its name in quotes is allowed: {% include "persona.md" %}')
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
                f"{variable!r}{user} is not declared; {_listed(source.declared)} allowed. To declare it, the first "
                f"line has to be {{# variables: {wanted} #}}",
            )


def _needed(source: _Source, parsed: Mapping[str, _Source], within: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """The variables that ``source`` and what it includes use: the line in ``source`` that needs each, and its file."""
    needed = {variable: (line, source.file) for variable, line in source.uses.items()}
    for file, line in source.includes.items():
        if file not in parsed:
            raise _wrong(source.file, line, f"there is no {file!r} to include; there are {', '.join(sorted(parsed))}")
        if file in (*within, source.file):
            circle = " → ".join((*within, source.file, file))
            raise _wrong(source.file, line, f"{file!r} would include itself: {circle}; a file that does not is allowed")
        for variable, (_, origin) in _needed(parsed[file], parsed, (*within, source.file)).items():
            if variable not in source.sets:
                needed.setdefault(variable, (line, origin))
    return needed


def _check_given(name: str, declared: tuple[str, ...], given: Mapping[str, object]) -> None:
    if unknown := sorted(given.keys() - set(declared)):
        close = difflib.get_close_matches(unknown[0], declared, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"prompt {name}: there is no variable {unknown[0]!r}{hint}; {_listed(declared)} allowed")
    if missing := [variable for variable in declared if variable not in given]:
        raise ConfigError(f"prompt {name}: the variable {missing[0]!r} is missing; it needs {', '.join(declared)}")


def _listed(declared: tuple[str, ...]) -> str:
    return f"{', '.join(declared)} {'is' if len(declared) == 1 else 'are'}" if declared else "none is"


def _read(path: Path, short: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{PLACE}/{short.as_posix()} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{PLACE}/{short.as_posix()} is not UTF-8 text") from None


def _place(error: Exception, file: str) -> str:
    """Where in the prompts ``error`` came up; ``file`` when it cannot be told."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(f"{PLACE}/")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else f"{PLACE}/{file}"


def _wrong(file: str, line: int, text: str) -> ConfigError:
    return ConfigError(f"{PLACE}/{file}, line {line}: {text}")

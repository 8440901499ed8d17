"""Scripts declare their keys and arguments by name; a script and its caller are checked against each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TypedDict

import pytest

import rolecall.bus.settle
import rolecall.redis.leader
from rolecall.bus.bus import Bus
from rolecall.bus.leases import TakeBlock
from rolecall.bus.settle import COMPLETE
from rolecall.bus.turn import SNAPSHOT, FinishBlock, TurnBlock
from rolecall.redis import scripts
from rolecall.redis.leader import LEASE
from rolecall.redis.scripts import Block, ScriptError, _made, loaded_scripts, script

PACKAGE = Path(rolecall.bus.settle.__file__).parents[1]
LUA = sorted(PACKAGE.rglob("*.lua"))


def test_no_script_counts_its_keys_or_arguments() -> None:
    assert LUA
    assert not [path.name for path in LUA if re.search(r"\b(KEYS|ARGV)\b", path.read_text(encoding="utf-8"))]


def test_every_declared_name_stands_for_its_value_also_those_of_preludes() -> None:
    body = COMPLETE.body.decode()
    assert "redis.call('HMGET', KEYS[3], 'cur'" in body  # CONVERSATION, of lib/turn.lua
    assert "redis.call('LPOP', KEYS[7])" in body  # MAILBOX, of lib/finish.lua
    assert re.search(r"finish\(ARGV\[\d+\], KEYS\[\d+\], 'final', ARGV\[\d+\]", body)  # TURN, RESULT and FINAL
    assert "local RECORDS = { unpack(ARGV, " in body


async def test_a_name_in_a_string_or_a_comment_stays_as_it_is(bus: Bus) -> None:
    made = _made("x.lua", ["-- DONE means\nreturn { 'DONE', DONE } -- DONE"], [], ["done"])
    assert await bus.server.run(made, done="yes") == [b"DONE", b"yes"]
    assert made.body.decode() == "-- DONE means\nreturn { 'DONE', ARGV[1] } -- DONE"


async def test_functions_that_a_script_does_not_use_are_left_out(bus: Bus) -> None:
    text = """
local function one() return 1 end
-- Twice one().
local function two()
  if true then return one() + one() end
end
local function idle() return two() or idle() end
return {}
"""
    made = _made("x.lua", [text.format("two()")], [], [])
    assert re.findall(r"function (\w+)", made.body.decode()) == ["one", "two"]
    assert await bus.server.run(made) == 2
    unused = _made("x.lua", [text.format("nil")], [], [])
    assert "function" not in unused.body.decode()


async def test_fields_that_a_script_does_not_use_are_not_read(bus: Bus) -> None:
    reading = """
-- One, two and three of a hash.
local one, two, three =
  unpack(redis.call('HMGET', HASH, 'a', 'b', 'c'))
local function both() return one .. three end
"""
    await bus.server.call("HSET", "{bus:0}:h", "a", "1", "b", "2", "c", "3")
    made = _made("x.lua", [reading, "return both()"], ["hash"], [])
    assert "local one, three =\n  unpack(redis.call('HMGET', KEYS[1], 'a', 'c'))\n" in made.body.decode()
    assert await bus.server.run(made, hash="{bus:0}:h") == b"13"
    whole = _made("x.lua", [reading, "return two .. both()"], ["hash"], [])
    assert await bus.server.run(whole, hash="{bus:0}:h") == b"213"
    unused = _made("x.lua", [reading, "return 1"], ["hash"], [])
    assert "HMGET" not in unused.body.decode() and await bus.server.run(unused, hash="{bus:0}:h") == 1


async def test_a_list_may_have_more_items_than_fit_on_the_stack_of_lua(bus: Bus) -> None:
    made = _made("x.lua", ["return { #ITEMS, ITEMS[#ITEMS] }"], [], ["items*"])
    assert await bus.server.run(made, items=[*range(20_000)]) == [20_000, b"19999"]


def test_arguments_are_ordered_by_name_and_lists_carry_their_length() -> None:
    made = _made("x.lua", ["return 1"], ["one", "more*"], ["first", "second", "items*", "others*"])
    values: Block = {"first": 1, "others": ["z"], "one": "k", "second": 2, "items": [], "more": ["k2", "k3"]}
    assert made.arguments((), values) == [3, "k", "k2", "k3", 1, 2, 0, 1, "z"]


async def test_lists_arrive_as_tables(bus: Bus) -> None:
    made = _made("x.lua", ["return { #ITEMS, ITEMS[2], #OTHERS, MORE[1] }"], ["more*"], ["items*", "others*"])
    reply = await bus.server.run(made, more=["{bus:0}:k"], items=["a", "b"], others=[])
    assert reply == [2, b"b", 0, b"{bus:0}:k"]


async def test_a_call_with_a_missing_or_extra_argument_names_it_in_one_line(bus: Bus) -> None:
    with pytest.raises(ScriptError, match=r"^redis/lease\.lua: missing lasts$"):
        await bus.server.run(LEASE, lease="{bus:0}:lease:x", token="me")
    with pytest.raises(ScriptError, match=r"^redis/lease\.lua: unexpected seconds$"):
        await bus.server.run(LEASE, lease="{bus:0}:lease:x", token="me", lasts=1, seconds=1)
    with pytest.raises(ScriptError, match=r"^bus/scripts/turn/snapshot\.lua: missing turn; unexpected name$"):
        await bus.server.run(SNAPSHOT, conversation="", mailbox="", events="", result="", journal="", name="a")


async def test_a_list_in_place_of_a_single_value_or_the_other_way_round_is_named_in_one_line(bus: Bus) -> None:
    made = _made("x.lua", ["return 1"], [], ["one", "items*"])
    with pytest.raises(ScriptError, match=r"^x\.lua: items takes a list$"):
        await bus.server.run(made, one=1, items="abc")
    with pytest.raises(ScriptError, match=r"^x\.lua: items takes a list; one takes a single value$"):
        await bus.server.run(made, one=["a"], items=b"abc")


def test_a_caller_that_will_pass_other_names_is_refused_when_it_is_imported() -> None:
    with pytest.raises(ScriptError, match=r"^bus/scripts/turn/complete\.lua: missing forget; unexpected forgot$"):
        names = "final received forgot remembered changes records streams demands"
        script("rolecall.bus", "scripts/turn/complete", TurnBlock, FinishBlock, TakeBlock, names=names)

    class Wrong(TypedDict):
        token: str

    with pytest.raises(ScriptError, match=r"^redis/lease\.lua: missing lasts, lease$"):
        script("rolecall.redis", "lease", Wrong)


def test_a_header_that_declares_a_name_twice_or_a_value_behind_a_list_is_refused() -> None:
    with pytest.raises(ScriptError, match="declares turn twice"):
        _made("x.lua", [""], ["turn"], ["turn"])
    with pytest.raises(ScriptError, match=r"expected lists last in a\* b"):
        _made("x.lua", [""], [], ["a*", "b"])
    with pytest.raises(ScriptError, match="expected at most one"):
        _made("x.lua", [""], ["a*", "b*"], [])


def test_a_prelude_that_does_not_exist_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    read = scripts._read
    text = "-- Do nothing.\n-- include: clock trun\n"
    monkeypatch.setattr(scripts, "_read", lambda package, path: text if "emit" in path else read(package, path))
    with pytest.raises(ScriptError, match=r"^bus/scripts/turn/emit\.lua includes trun: there is no lib/trun\.lua$"):
        script("rolecall.bus", "scripts/turn/emit")


def test_no_script_defines_a_name_that_it_declares() -> None:
    offenders = []
    for one in loaded_scripts():
        defined = re.findall(r"^local (?:function )?(.+?)(?: = |\(|$)", one.body.decode(), re.MULTILINE)
        names = [name for line in defined for name in line.split(", ")]
        lists = {name.upper() for name in (*one.arg_lists, one.key_list) if name}
        offenders += [f"{one.name}: {name}" for name in names if name.startswith(("KEYS[", "ARGV["))]
        offenders += [f"{one.name}: {name}" for name in lists if names.count(name) != 1]
    assert not offenders


def declared_names(tree: ast.Module) -> dict[str, set[str]]:
    """``COMPLETE`` → the names that its module passes one by one, for each ``COMPLETE = script(…, names="…")``."""
    found = {}
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == "script"
        ):
            names = [ast.literal_eval(keyword.value) for keyword in node.value.keywords if keyword.arg == "names"]
            found[ast.unparse(node.targets[0])] = set("".join(names).split())
    return found


def test_every_call_in_the_code_passes_exactly_the_names_that_its_module_declared() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    declared = {path: declared_names(tree) for path, tree in trees.items()}
    anywhere = {name: names for found in declared.values() for name, names in found.items()}
    checked, offenders = 0, []
    for path, tree in trees.items():
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith("server.run") and call.args):
                continue
            names = declared[path].get(ast.unparse(call.args[0]), anywhere.get(ast.unparse(call.args[0])))
            passed = {keyword.arg for keyword in call.keywords if keyword.arg}
            if names is not None and passed:  # else one function fills in all of them, and is checked when it is called
                checked += 1
                if passed != names:
                    offenders.append(f"{path.name}:{call.lineno}: {', '.join(sorted(passed ^ names))}")
    assert not offenders
    assert checked > 30


def test_every_script_file_belongs_to_one_caller() -> None:
    import rolecall.bus.admission
    import rolecall.bus.members
    import rolecall.bus.outbox
    import rolecall.cli.run  # noqa: F401  # the whole system

    called = {one.name.rpartition("/")[2] for one in loaded_scripts()}
    files = {path.name for path in LUA if path.parent.name != "lib"}
    assert files <= called

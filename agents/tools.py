"""Functions that models can call and that `rolecall tools` serves to other programs."""

import ast
import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Context, Decimal, DecimalException, localcontext
from math import isfinite
from types import MappingProxyType
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field

from rolecall import ToolError

LONGEST = 200
Calculation = Callable[..., Decimal]
OPERATORS: Mapping[type[ast.AST], Calculation] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.Mod: operator.mod,
        ast.Pow: operator.pow,
        ast.USub: operator.neg,
        ast.UAdd: operator.pos,
    }
)
FUNCTIONS: Mapping[str, Calculation] = MappingProxyType(
    {"sqrt": Decimal.sqrt, "abs": abs, "round": lambda number, digits=Decimal(): number.quantize(10**-digits)}
)
TYPED = str.maketrans({"×": "*", "÷": "/", "−": "-", "^": "**", "`": None})


Expression = Annotated[
    str, Field(pattern=r"^(sqrt|round|abs|[-+*/%()., 0-9]){1,80}$", description="such as (3 + 4) * 2 or sqrt(2)")
]
"""The pattern guides small models: it becomes a grammar that allows nothing else."""


def calculate(expression: Expression) -> str:
    """Work out an arithmetic expression: + - * / % ** ( ) sqrt round abs."""
    typed = expression.partition("=")[0].strip(" ?").translate(TYPED)
    if len(typed) > LONGEST:
        raise ToolError(f"the expression has more than {LONGEST} characters")
    try:
        # 28 digits: exact for money, and powers cannot exhaust memory.
        with localcontext(Context(prec=28)):
            return shown(worked_out(ast.parse(typed, mode="eval").body))
    except DecimalException:
        raise ToolError(f"{expression!r} has no value, or one too large") from None
    except (SyntaxError, TypeError, ValueError, RecursionError):
        raise ToolError(f"{expression!r} is not arithmetic: use numbers, + - * / % ** ( ) sqrt round abs") from None


def now(timezone: Annotated[str, Field(description="such as Europe/Rome")] = "UTC") -> str:
    """Tell the date and the time of day in a time zone."""
    try:
        here = ZoneInfo(timezone)
    except (ValueError, OSError, LookupError):
        raise ToolError(f"unknown time zone {timezone!r}: expected a name such as Europe/Rome or UTC") from None
    return f"{datetime.now(here):%A, %d %B %Y, %H:%M} ({timezone})"


def worked_out(node: ast.expr) -> Decimal:
    """The value of ``node``, which may only contain numbers, OPERATORS and FUNCTIONS."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool) and isfinite(number):
            return Decimal(str(number))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](worked_out(left), worked_out(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](worked_out(operand))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*map(worked_out, arguments))
    raise ValueError(f"{type(node).__name__} is not allowed")


def shown(number: Decimal) -> str:
    """Plain decimal notation, or scientific notation for very many digits."""
    short = number.normalize()
    return f"{short:f}" if -20 < short.adjusted() < 30 else str(short)

"""Command-line arguments from a function's signature."""

import argparse
import enum
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from farcall.cli.usage import Parser
from farcall.errors import InvalidError

_EMPTY = inspect.Parameter.empty
SUPPORTED = "str, int, float, bool, datetime, date, Path, Enum, Literal, list[...] and Optional[...] of them"


class Arguments(NamedTuple):
    """What to call the function with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Kind(NamedTuple):
    """How one parameter is read: `convert` makes its value from a word, `choices` are the words for people."""

    convert: Callable[[str], Any]
    name: str
    choices: tuple[str, ...] = ()
    many: bool = False
    flag: bool = False


def parser_of(function: Callable[..., Any], program: str, *, method: bool = False) -> Parser:
    """The parser for `function`'s parameters (without the first, of a `method`). Raises `InvalidError` for a parameter
    that no word can give."""
    parser = Parser(prog=program, description=inspect.getdoc(function))
    for parameter, kind in _parameters(function, method):
        _add(parser, parameter, kind)
    return parser


def parse(function: Callable[..., Any], words: Sequence[str], program: str, *, method: bool = False) -> Arguments:
    """`words` as arguments of `function`. Ends with status 2 and the usage where they do not fit (SystemExit)."""
    parameters = _parameters(function, method)
    if len(parameters) == 1 and parameters[0][0].kind is inspect.Parameter.VAR_POSITIONAL:
        convert = parameters[0][1].convert
        if list(words) in (["--help"], ["-h"]):
            parser_of(function, program).parse_args(list(words))
        return Arguments(tuple(convert(word) for word in words), {})
    parser = parser_of(function, program, method=method)
    given, unknown = parser.parse_known_args(list(words))
    if unknown:
        if not unknown[0].startswith("-") and parameters:
            first = parameters[0][0].name.replace("_", "-")
            parser.error(f"not understood: {unknown[0]}; arguments have names, as in --{first} {unknown[0]}")
        parser.refuse_unknown(unknown)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter, _ in parameters:
        if not hasattr(given, parameter.name):
            continue  # the function's own default
        value = getattr(given, parameter.name)
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            args.append(value)
        else:
            kwargs[parameter.name] = value
    return Arguments(tuple(args), kwargs)


def synopsis(function: Callable[..., Any], *, method: bool = False) -> str:
    """The arguments on one line, for a list of functions: "--count INT [--name STR]"."""
    try:
        parser = parser_of(function, "", method=method)
    except InvalidError:
        return "(its arguments cannot be given on the command line)"
    usage = parser.format_usage().removeprefix("usage:").replace("[-h]", "")
    return " ".join(usage.split())


def _parameters(function: Callable[..., Any], method: bool) -> list[tuple[inspect.Parameter, _Kind]]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name that only a type checker knows; then only what is no string counts
        hints = {name: hint for name, hint in inspect.get_annotations(function).items() if not isinstance(hint, str)}
    found: list[tuple[inspect.Parameter, _Kind]] = []
    parameters = list(inspect.signature(function).parameters.values())[1 if method else 0 :]
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and len(parameters) > 1:
            raise InvalidError(
                f"{function.__name__}: *{parameter.name} takes the words of the command line as they are, and so must "
                "be the only parameter"
            )
        hint = hints.get(parameter.name, _EMPTY)
        if hint is _EMPTY:
            default = parameter.default
            hint = type(default) if isinstance(default, (bool, int, float, str, Path, enum.Enum)) else str
        kind = _kind(hint)
        if kind is None:
            if parameter.default is not _EMPTY:
                continue
            raise InvalidError(
                f"{function.__name__}: its parameter {parameter.name} is of type {hint}, which the command line cannot "
                f"give; it can give {SUPPORTED}. Give the parameter a default, or another type"
            )
        found.append((parameter, kind))
    return found


def _kind(hint: Any) -> _Kind | None:
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return _kind(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        inner = [argument for argument in get_args(hint) if argument is not type(None)]
        return _kind(inner[0]) if len(inner) == 1 else None
    if origin is Literal:
        words = {str(value): value for value in get_args(hint)}
        return _Kind(_choice(words), "/".join(words), tuple(words))
    if hint is list or origin is list:
        arguments = get_args(hint)
        kind = _kind(arguments[0]) if arguments else _kind(str)
        return None if kind is None or kind.many else kind._replace(many=True, flag=False)
    if hint is bool:
        return _Kind(_boolean, "bool", flag=True)
    if hint is Any or hint is str or hint is object:
        return _Kind(str, "str")
    if hint in (int, float, Path):
        return _Kind(hint, hint.__name__.lower())
    if hint is datetime:
        return _Kind(_datetime, "datetime")
    if hint is date:
        return _Kind(date.fromisoformat, "date")
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        words = {str(member.value): member for member in hint} | {member.name: member for member in hint}
        return _Kind(_choice(words), hint.__name__, tuple(member.name for member in hint))
    return None


def _choice(words: dict[str, Any]) -> Callable[[str], Any]:
    def convert(word: str) -> Any:
        if word not in words:
            raise ValueError
        return words[word]

    return convert


def _boolean(word: str) -> bool:
    lowered = word.lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError


def _datetime(word: str) -> datetime:
    return datetime.fromisoformat(word)


def _add(parser: Parser, parameter: inspect.Parameter, kind: _Kind) -> None:
    def convert(word: str) -> Any:
        try:
            return kind.convert(word)
        except (ValueError, TypeError):
            wanted = f"one of {', '.join(kind.choices)}" if kind.choices else f"of type {kind.name}"
            raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from None

    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        parser.add_argument(parameter.name, nargs="*", type=convert)
        return
    required = parameter.default is _EMPTY
    options: dict[str, Any] = {
        "dest": parameter.name,
        "required": required,
        "default": argparse.SUPPRESS,
        "help": None if required or parameter.default is None else f"default: {_shown(parameter.default)}",
    }
    flag = "--" + parameter.name.replace("_", "-")
    if kind.flag:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        return
    metavar = "{" + ",".join(kind.choices) + "}" if kind.choices else kind.name.upper()
    if kind.many:
        options |= {"action": "extend", "nargs": "+"}
    parser.add_argument(flag, type=convert, metavar=metavar, **options)


def _shown(default: object) -> str:
    return default.name if isinstance(default, enum.Enum) else str(default).replace("%", "%%")

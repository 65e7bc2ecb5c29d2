"""Dotenv files: `NAME=value` lines, as many tools read them."""

from __future__ import annotations

from pathlib import Path

from farcall.errors import InvalidError


def read_dotenv(path: Path) -> dict[str, str]:
    """The assignments of a dotenv file. Raises as `parse_dotenv` does."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from None
    return parse_dotenv(text, str(path))


def parse_dotenv(text: str, source: str) -> dict[str, str]:
    """The assignments in `text`: `NAME=value`, `export NAME="value"`, comments after `#`.

    Single quotes keep a value as it is, double quotes know the escapes \\n, \\t, \\" and \\\\. Only values in
    quotes may span lines. Raises InvalidError, which names `source` and the line.
    """
    values: dict[str, str] = {}
    position, line = 0, 1
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        entry = text[position:end].strip()
        if not entry or entry.startswith("#"):
            position, line = end + 1, line + 1
            continue
        name, equals, _ = entry.removeprefix("export ").partition("=")
        if not equals or not name.strip().isidentifier():
            raise InvalidError(f"{source}, line {line} is not NAME=value")
        start = text.index("=", position) + 1
        value, after = _dotenv_value(text, start, source, line)
        values[name.strip()] = value
        line += text.count("\n", position, after)
        position = after
    return values


def _dotenv_value(text: str, start: int, source: str, line: int) -> tuple[str, int]:
    """The value that starts after the `=` at `start`, and where the next line begins."""
    while start < len(text) and text[start] in " \t":
        start += 1
    quote = text[start : start + 1]
    if quote not in ("'", '"'):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        return text[start:end].partition(" #")[0].strip(), end + 1
    position, parts = start + 1, list[str]()
    while True:
        if position >= len(text):
            raise InvalidError(f"{source}, line {line}: the quote is not closed")
        letter = text[position]
        if letter == quote:
            break
        if letter == "\\" and quote == '"' and position + 1 < len(text):
            position += 1
            letter = {"n": "\n", "t": "\t", "r": "\r"}.get(text[position], text[position])
        parts.append(letter)
        position += 1
    end = text.find("\n", position)
    return "".join(parts), len(text) if end < 0 else end + 1

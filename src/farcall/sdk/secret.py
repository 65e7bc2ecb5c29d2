"""`Secret`: environment variables whose values are not shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farcall.errors import InvalidError, NotFoundError
from farcall.sdk.context import is_local
from farcall.sdk.unimplemented import Later, later

__all__ = ["Secret"]


class Secret:
    """Environment variables for containers. Values are never shown, in `repr`, messages or logs."""

    objects: Any = Later("Secret.objects")

    def __init__(self, values: Mapping[str, str], description: str, unimplemented: str = "") -> None:
        self._values = dict(values)
        self._description = description
        self.unimplemented = unimplemented

    @classmethod
    def from_dict(cls, env_dict: Mapping[str, str | None] | None = None) -> Secret:
        """A secret with these values; a value of None leaves its name out."""
        values: dict[str, str] = {}
        for name, value in (env_dict or {}).items():
            if not isinstance(name, str) or not isinstance(value, str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidError(
                    f"Secret.from_dict: {name!r} has a {type(value).__name__}; names and values are strings"
                )
            if value is not None:
                values[name] = value
        return cls(values, "from_dict")

    @classmethod
    def from_dotenv(cls, path: str | Path | None = None, *, filename: str = ".env", client: Any = None) -> Secret:
        """The variables of a dotenv file: `path` itself, or the nearest `filename` from the folder `path`, or the
        current one, upward."""
        if not is_local():
            return cls({}, "from_dotenv")
        start = Path.cwd() if path is None else Path(path)
        if start.is_file():
            return cls(parse_dotenv(start), f"from_dotenv {start}")
        if not start.is_dir():
            raise NotFoundError(f"Secret.from_dotenv: there is no file or folder {start}")
        for folder in (start.absolute(), *start.absolute().parents):
            if (folder / filename).is_file():
                return cls(parse_dotenv(folder / filename), f"from_dotenv {folder / filename}")
        raise NotFoundError(f"Secret.from_dotenv: there is no {filename} in {start} or a folder above it")

    @classmethod
    def from_local_environ(cls, env_keys: list[str]) -> Secret:
        """The values that these variables have here and now. A variable that is not set is `InvalidError`."""
        if not is_local():
            return cls({}, "from_local_environ")
        missing = [name for name in env_keys if name not in os.environ]
        if missing:
            raise InvalidError(f"Secret.from_local_environ: not set here: {', '.join(missing)}")
        return cls({name: os.environ[name] for name in env_keys}, "from_local_environ")

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: str | None = None,
        required_keys: list[str] | None = None,
        client: Any = None,
    ) -> Secret:
        """The stored secret of that name; it is looked up when a function that uses it is called."""
        return cls({}, f"from_name {name!r}", unimplemented=f"Secret.from_name({name!r})")

    @property
    def values(self) -> dict[str, str]:
        """The variables. Handle with care: this is the one place that shows them."""
        return dict(self._values)

    @later
    def update(self) -> Any:
        """Changes some of a stored secret's values."""

    @later
    def info(self) -> Any:
        """When and by whom the secret was made."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A secret that travels with a function's globals must not carry its values there.
        return Secret, ({}, self._description, self.unimplemented)

    def __repr__(self) -> str:
        names = f": {', '.join(sorted(self._values))}" if self._values else ""
        return f"<farcall.Secret {self._description}{names}>"


def parse_dotenv(path: Path) -> dict[str, str]:
    """The assignments of a dotenv file: `NAME=value`, `export NAME="value"`, comments after `#`.

    Single quotes keep a value as it is, double quotes know the escapes \\n, \\t, \\" and \\\\. Only values in
    quotes may span lines.
    """
    text = path.read_text(encoding="utf-8-sig")
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
            raise InvalidError(f"{path}, line {line}: {entry.split('=')[0]!r} is not NAME=value")
        start = text.index("=", position) + 1
        value, after = _dotenv_value(text, start, path, line)
        values[name.strip()] = value
        line += text.count("\n", position, after)
        position = after
    return values


def _dotenv_value(text: str, start: int, path: Path, line: int) -> tuple[str, int]:
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
            raise InvalidError(f"{path}, line {line}: the quote is not closed")
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

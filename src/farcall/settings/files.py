"""The TOML files that hold settings."""

from pathlib import Path
from typing import Any, cast

from farcall.errors import InvalidError

Table = dict[str, Any]


def read_toml(file: Path) -> Table:
    """The contents of `file`, empty where it does not exist. Raises `InvalidError` where it is not readable TOML."""
    try:
        text = file.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{file} cannot be read: {error}") from error
    return _parsed(text, file)


def project_table(folder: Path) -> tuple[Table, Path] | None:
    """`[tool.farcall]` of the nearest pyproject.toml from `folder` upward, and that file; None where there is none."""
    for parent in (folder, *folder.parents):
        file = parent / "pyproject.toml"
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if "tool.farcall" not in text and "[tool]" not in text:
            return None  # the usual case, told without a parser
        tool = _parsed(text, file).get("tool")
        table = cast(Table, tool).get("farcall") if isinstance(tool, dict) else None
        if table is not None and not isinstance(table, dict):
            raise InvalidError(f"tool.farcall in {file} must be a table, not {table!r}")
        return (cast(Table, table), file) if table else None
    return None


def _parsed(text: str, file: Path) -> Table:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{file} is not valid TOML: {error}") from error

"""Dockerfiles on the user's machine: read, and worked out with their build context."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from farcall.errors import InvalidError
from farcall.sdk.context import is_local
from farcall.sdk.image_options import AUTO_IGNORE, Ignore, Options, checked_ignore
from farcall.sdk.local_trees import ignoring
from farcall.spec import stages
from farcall.spec.expansion import expand
from farcall.spec.image import Copy, ImageSpec, RegistryBase, ScratchBase, Step

if TYPE_CHECKING:
    from farcall.sdk.image_parts import Resolution


class Dockerfile:
    """A Dockerfile, or lines of one, with the options that a method of `Image` was given for it.

    It is read when it is declared, so that what is wrong with it is said there; its context is when the image is built.
    """

    def __init__(
        self, title: str, text: str, place: str, file: Path | None, files: Mapping[str, Path], options: Options
    ) -> None:
        given = options.given.get("context_dir")
        self._folder = Path.cwd() if given is None else Path(given).expanduser().absolute()
        self._ignore: Ignore = checked_ignore(title, options.given.get("ignore", AUTO_IGNORE))
        self._place = place
        self._file = file
        self._files = files
        self._options = options
        self._build_args = dict(options.given.get("build_args") or {})
        self._parsed: stages.Dockerfile | None = None
        for name, value in self._build_args.items():
            if not isinstance(name, str) or not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidError(f"{title}: build_args has {name!r}: {value!r}; names and values are strings")
        if not is_local():
            return
        self._parsed = stages.Dockerfile(text, place=place, continues=file is None)
        if given is not None and not self._folder.is_dir():
            raise InvalidError(f"{title}: context_dir={str(given)!r}: there is no folder {self._folder}")
        for name, path in files.items():
            if not path.is_file():
                raise InvalidError(f"{title}: context_files has {name!r}, and there is no file {path}")

    @classmethod
    def of_file(cls, title: str, path: str | Path, options: Options) -> Dockerfile:
        """A whole Dockerfile. Raises InvalidError where it cannot be read, or for what is wrong in it."""
        file = Path(path).expanduser().absolute()
        text = ""
        if is_local():
            try:
                text = file.read_text(encoding="utf-8")
            except OSError as error:
                why = os.strerror(error.errno or 0)
                raise InvalidError(f"{title}: the Dockerfile {file} cannot be read: {why}") from None
            except UnicodeDecodeError:
                raise InvalidError(f"{title}: the Dockerfile {file} is not UTF-8") from None
        return cls(title, text, str(path), file, {}, options)

    @classmethod
    def of_lines(cls, title: str, text: str, files: Mapping[str, str | Path], options: Options) -> Dockerfile:
        """Lines that go on from an image; `files` are further files of their context, by their path in it."""
        context = {name.lstrip("/"): Path(path).expanduser().absolute() for name, path in files.items()}
        return cls(title, text, title, None, context, options)

    def image(
        self,
        resolution: Resolution,
        *,
        onto: ImageSpec | None = None,
        credentials: Mapping[str, str] | None = None,
        add_python: str = "",
    ) -> ImageSpec:
        """The image that it makes, with the context as it is now."""
        assert self._parsed is not None, "images are worked out where they were declared"
        if self._file is not None:
            resolution.trees.paths.add(str(self._file))
        force = self._options.force
        around = stages.Surroundings(
            self._build_args,
            self._options.env,
            resolution.handles(self._options.secrets),
            os.uname().machine,
        )
        trees: list[str] = []  # the context's, once it has been read

        def context() -> str:
            trees[:] = trees or [self._context(resolution)]
            return trees[0]

        spec = self._parsed.image(
            around,
            context=context,
            onto=onto,
            base_of=lambda reference: RegistryBase(reference, credentials=dict(credentials or {}), force=force),
        )
        base = spec.base
        if add_python and isinstance(base, RegistryBase | ScratchBase):
            base = msgspec.structs.replace(base, add_python=add_python)
        before = 0 if onto is None else len(onto.steps)
        self._check_sources(spec.steps[before:], *trees)
        return ImageSpec(base, (*spec.steps[:before], *(_forced(step, force) for step in spec.steps[before:])))

    def _context(self, resolution: Resolution) -> str:
        assert self._parsed is not None
        return resolution.trees.directory(
            self._folder, self._patterns(), only=self._parsed.sources(), files=self._files
        )

    def _check_sources(self, steps: Sequence[Step], *trees: str) -> None:
        """Raises InvalidError for a file that is copied from the context `trees` and is not there, or ignored."""
        is_ignored, _ = ignoring(self._patterns())
        for step in steps:
            if not isinstance(step, Copy):
                continue
            if step.stage is not None:
                self._check_sources(step.stage.steps, *trees)
            for source in step.sources if step.tree and step.tree in trees else ():
                path = expand(source, {}, step.expand) if step.expand and "$" not in source else source
                if any(letter in path for letter in "$*?[\\"):
                    continue
                file = self._folder / path
                if any(f"{name}/".startswith(f"{path}/") for name in self._files):
                    continue
                if not os.path.lexists(file):
                    near = _near(path, file.parent)
                    raise InvalidError(f"{self._place}: COPY {path}: there is no {file}{near}")
                if not file.is_dir() and is_ignored(path):
                    raise InvalidError(f"{self._place}: COPY {path}: {file} is ignored (.dockerignore, ignore=)")

    def _patterns(self) -> Ignore:
        if self._ignore is not AUTO_IGNORE:
            return self._ignore
        files = [self._folder / ".dockerignore"]
        if self._file is not None:
            files.insert(0, self._file.with_name(f"{self._file.name}.dockerignore"))
        for file in files:
            if file.is_file():
                return file.read_text(encoding="utf-8-sig").splitlines()
        return ()


def _near(path: str, folder: Path) -> str:
    """A question whether a file of the folder was meant that has a similar name."""
    import difflib

    there = os.listdir(folder) if folder.is_dir() else ()
    near = difflib.get_close_matches(os.path.basename(path), there, 3)
    return f"; did you mean {', '.join(os.path.join(os.path.dirname(path), name) for name in near)}?" if near else ""


def _forced(step: Any, force: bool) -> Any:
    return msgspec.structs.replace(step, force=True) if force and hasattr(step, "force") else step

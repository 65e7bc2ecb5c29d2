"""The steps of an image that install packages: from PyPI, from projects' files, from Debian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from farcall.errors import InvalidError
from farcall.sdk import image_options as checks
from farcall.sdk.context import is_local
from farcall.sdk.image_options import (
    IndexOptions,
    Options,
    PipOptions,
    PoetryOptions,
    StepOptions,
    UvPipOptions,
    UvSyncOptions,
)
from farcall.sdk.image_parts import adding

if TYPE_CHECKING:
    from farcall.sdk.image_parts import Part, Resolution
    from farcall.spec.image import Step


class PackageSteps:
    """What `Image` can install."""

    def _with(self, title: str, part: Part, unimplemented: Sequence[str] = ()) -> Self:
        raise NotImplementedError

    def pip_install(self, *packages: str | list[str], **options: Unpack[PipOptions]) -> Self:
        """Python packages ("numpy", "torch==2.4.0"), installed by pip. Parameters: those of `PipOptions`."""
        return self._pip("pip_install", checks.packages("Image.pip_install", packages), (), PipOptions, options)

    def uv_pip_install(self, *packages: str | list[str], **options: Unpack[UvPipOptions]) -> Self:
        """Python packages, installed by uv, which is faster. Parameters: those of `UvPipOptions`."""
        found = checks.packages("Image.uv_pip_install", packages)
        files = tuple(options.get("requirements") or ())
        return self._pip("uv_pip_install", found, files, UvPipOptions, options)

    def pip_install_from_requirements(
        self, requirements_txt: str | Path, find_links: str | None = None, **options: Unpack[IndexOptions]
    ) -> Self:
        """The packages of a local requirements file, and of those that it names with -r and -c. Parameters: those of
        `PipOptions`."""
        given = {"find_links": find_links, **options}
        return self._pip("pip_install_from_requirements", (), (requirements_txt,), PipOptions, given)

    def pip_install_from_pyproject(
        self,
        pyproject_toml: str | Path,
        optional_dependencies: Sequence[str] = (),
        **options: Unpack[PipOptions],
    ) -> Self:
        """The dependencies of a local pyproject.toml, with those groups of optional ones; not the project itself.
        Parameters: those of `PipOptions`."""
        from farcall.sdk import requirements

        found = requirements.read_pyproject(pyproject_toml, optional_dependencies) if is_local() else ()
        return self._pip("pip_install_from_pyproject", found, (), PipOptions, options)

    def _pip(
        self,
        method: str,
        packages: tuple[str, ...],
        files: tuple[str | Path, ...],
        kind: Any,
        given: Mapping[str, Any],
    ) -> Self:
        from farcall.sdk import requirements

        options = Options.of(f"Image.{method}", kind, given)
        if not packages and not files:
            return self
        read = requirements.read(f"Image.{method}", packages, files if is_local() else ())

        def step(resolution: Resolution) -> Step:
            from farcall.spec.image import Pip

            resolution.trees.paths.update(read.files)
            return Pip(
                installer="uv" if method == "uv_pip_install" else "pip",
                packages=packages,
                requirements=read.requirements,
                constraints=read.constraints,
                **options.pip_fields(),
                uv_version=options.text("uv_version"),
                env=options.env,
                secrets=resolution.handles(options.secrets),
                force=options.force,
            )

        title = f"Image.{method}({', '.join(map(str, (*packages, *files)))})"
        return self._with(title, adding(step), options.unimplemented)

    def pip_install_private_repos(self, *repositories: str, git_user: str, **options: Unpack[PipOptions]) -> Self:
        """Python packages of private git repositories, "github.com/owner/name@ref" or "gitlab.com/...".

        `secrets` have GITHUB_TOKEN or GITLAB_TOKEN, an access token of `git_user` that may read them; it does not
        become part of the image. Parameters: those of `PipOptions`.
        """
        from farcall.sdk import repositories as git

        method = "Image.pip_install_private_repos"
        checked = Options.of(method, PipOptions, options)
        command = git.install_command(method, checks.names(method, "repository", repositories), git_user, checked)

        def step(resolution: Resolution) -> Step:
            from farcall.spec.image import Run

            return Run(command, checked.env, resolution.handles(checked.secrets), force=checked.force)

        title = f"{method}({', '.join(repositories)})"
        return self.apt_install("git", "ca-certificates")._with(title, adding(step), checked.unimplemented)

    def uv_sync(self, uv_project_dir: str | Path = "./", **options: Unpack[UvSyncOptions]) -> Self:
        """The dependencies of a local uv project, by its uv.lock, in a virtual environment that is first on PATH.

        The project itself is not installed; `add_local_python_source` adds it. Parameters: those of `UvSyncOptions`.
        """
        checked = Options.of("Image.uv_sync", UvSyncOptions, options)
        folder = Path(uv_project_dir).expanduser().absolute()
        frozen = bool(options.get("frozen", True))
        if is_local():
            for name in ("pyproject.toml", *(["uv.lock"] if frozen else [])):
                if not (folder / name).is_file():
                    hint = "; `uv lock` makes it, or write frozen=False" if name == "uv.lock" else ""
                    raise InvalidError(f"Image.uv_sync: there is no {folder / name}{hint}")

        def step(resolution: Resolution) -> Step:
            from farcall.spec.image import UvSync

            files = [folder / name for name in ("pyproject.toml", "uv.lock", ".python-version")]
            return UvSync(
                resolution.trees.files({file.name: file for file in files if file.is_file()}),
                groups=checked.words("groups"),
                extras=checked.words("extras"),
                frozen=frozen,
                extra_options=checked.text("extra_options"),
                uv_version=checked.text("uv_version"),
                env=checked.env,
                secrets=resolution.handles(checked.secrets),
                force=checked.force,
            )

        def path(_: Resolution) -> Step:
            from farcall.spec.image import Configure

            return Configure("env", pairs={"PATH": "/.uv/.venv/bin:$PATH", "VIRTUAL_ENV": "/.uv/.venv"}, expand="\\")

        return self._with(f"Image.uv_sync({str(uv_project_dir)!r})", adding(step, path), checked.unimplemented)

    def poetry_install_from_file(
        self,
        poetry_pyproject_toml: str | Path,
        poetry_lockfile: str | Path | None = None,
        **options: Unpack[PoetryOptions],
    ) -> Self:
        """The dependencies of a local poetry project, by its poetry.lock, default the one beside its pyproject.toml.
        Parameters: those of `PoetryOptions`."""
        from farcall.sdk import poetry

        method = "Image.poetry_install_from_file"
        checked = Options.of(method, PoetryOptions, options)
        files = poetry.files(method, poetry_pyproject_toml, poetry_lockfile, checked) if is_local() else {}

        def copy(resolution: Resolution) -> Step:
            from farcall.spec.image import Copy

            return Copy("/.poetry/", (".",), resolution.trees.files(files), force=checked.force)

        def install(resolution: Resolution) -> Step:
            from farcall.spec.image import Run

            return Run(
                poetry.command(checked),
                {"POETRY_VIRTUALENVS_CREATE": "false"} | checked.env,
                resolution.handles(checked.secrets),
                force=checked.force,
            )

        version = options.get("poetry_version", "latest")
        image = self
        if version is not None:
            image = self.pip_install("poetry" if version == "latest" else f"poetry=={version}")
        return image._with(f"{method}({str(poetry_pyproject_toml)!r})", adding(copy, install), checked.unimplemented)

    def micromamba_install(self, *packages: str | list[str], **options: Any) -> Self:
        """conda packages."""
        title = f"Image.micromamba_install({', '.join(checks.packages('Image.micromamba_install', packages))})"
        return self._with(title, adding(), [title])

    def apt_install(self, *packages: str | list[str], **options: Unpack[StepOptions]) -> Self:
        """Debian packages, without those that they only recommend. Parameters: those of `StepOptions`."""
        checked = Options.of("Image.apt_install", StepOptions, options)
        found = checks.packages("Image.apt_install", packages)
        if not found:
            return self

        def step(resolution: Resolution) -> Step:
            from farcall.spec.image import Apt

            return Apt(found, checked.env, resolution.handles(checked.secrets), checked.force)

        return self._with(f"Image.apt_install({', '.join(found)})", adding(step), checked.unimplemented)

"""`Image`: what a container's file system holds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, Unpack

from farcall.errors import InvalidError
from farcall.sdk import image_options as checks
from farcall.sdk.context import is_local
from farcall.sdk.deprecations import deprecated
from farcall.sdk.image_options import (
    CallOptions,
    CommandOptions,
    DockerfileOptions,
    Ignore,
    Options,
    RegistryOptions,
)
from farcall.sdk.image_packages import PackageSteps
from farcall.sdk.image_parts import LocalFiles, LocalModules, adding, starting
from farcall.sdk.twin import twin
from farcall.sdk.unimplemented import later

if TYPE_CHECKING:
    from farcall.sdk.app import App
    from farcall.sdk.image_parts import Part, Resolution, Start
    from farcall.sdk.secret import Secret
    from farcall.spec.image import Base, ImageSpec, Step

__all__ = ["Image"]

P = ParamSpec("P")

_REGISTRY_VARIABLES = ("REGISTRY_USERNAME", "REGISTRY_PASSWORD")

_OLD_NAMES = {
    "copy_local_file": "add_local_file",
    "copy_local_dir": "add_local_dir",
}


class Image(PackageSteps):
    """A container's file system: a base, steps on it, and local files.

    Every method returns a new image, and nothing is built before an app that uses it runs, or `build()`. Each step is
    built once for all images that begin with the same steps, and again only when it, what is before it, or a file that
    it copies has changed. `force_build=True` builds a step, and those after it, in any case.

    Steps that run something take `env` and `secrets`: environment variables for the time of that step. The values of
    secrets do not become part of the image, and a change of them builds nothing anew.
    """

    def __init__(self) -> None:
        self._start: Start | None = None  # None: the host's own system
        self._parts: tuple[Part, ...] = ()
        self._titles: tuple[str, ...] = ("Image.host()",)
        self._local: tuple[LocalFiles | LocalModules, ...] = ()
        self._host_env: dict[str, str] = {}
        self._host_workdir = ""
        self._unimplemented: tuple[str, ...] = ()
        self._object_id: str | None = None

    def _changed(self, **changes: Any) -> Self:
        image = type(self)()
        image.__dict__.update(self.__dict__ | {"_object_id": None} | changes)
        return image

    @classmethod
    def _from(cls, title: str, start: Start, unimplemented: Sequence[str] = ()) -> Image:
        return cls()._changed(_start=start, _titles=(title,), _unimplemented=tuple(unimplemented))

    def _with(self, title: str, part: Part, unimplemented: Sequence[str] = ()) -> Self:
        """The image with one more build step, or several."""
        if self._start is None:
            raise InvalidError(
                f"{title}: Image.host() is this machine's own system and Python, on which nothing is built; begin "
                "with farcall.Image.debian_slim()"
            )
        if self._local:
            raise InvalidError(
                f"{title} comes after {self._titles[-1]}: what is added without copy=True is mounted when a container "
                "starts, and build steps do not see it. Write copy=True there, or move that line to the end"
            )
        return self._changed(
            _parts=(*self._parts, part),
            _titles=(*self._titles, title),
            _unimplemented=(*self._unimplemented, *unimplemented),
        )

    # --- bases

    @classmethod
    def host(cls) -> Image:
        """This machine's own system and the project's Python, with all that is installed in it: what a function gets
        that names no image. It is not built: `env`, `workdir` and `add_local_*` are all that can be added."""
        return cls()

    @classmethod
    def debian_slim(cls, python_version: str | None = None, force_build: bool = False) -> Image:
        """Debian, as small as it comes, with Python ("3.12" or "3.12.4"; default: the version that runs this), pip and
        uv."""
        version = checks.python_version("Image.debian_slim", python_version)

        def base(_: Resolution) -> Base:
            from farcall.spec.image import DebianBase

            return DebianBase(version, force_build)

        return cls._from(f"Image.debian_slim(python_version={version!r})", starting(base))

    @classmethod
    def from_registry(cls, tag: str, secret: Secret | None = None, **options: Unpack[RegistryOptions]) -> Image:
        """An image of a container registry, such as "python:3.12-slim" or "ghcr.io/owner/name@sha256:...".

        To run functions it needs a Python: `add_python="3.12"` adds one. `secret` has REGISTRY_USERNAME and
        REGISTRY_PASSWORD; without it ~/.docker/config.json counts. The other parameters: `RegistryOptions`.
        """
        return cls._registry("from_registry", tag, secret, _REGISTRY_VARIABLES, options)

    @classmethod
    def from_aws_ecr(cls, tag: str, secret: Secret | None = None, **options: Unpack[RegistryOptions]) -> Image:
        """An image of Amazon's registry, "<account>.dkr.ecr.<region>.amazonaws.com/<name>:<tag>".

        `secret` has AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, perhaps AWS_SESSION_TOKEN. The other parameters:
        `RegistryOptions`.
        """
        return cls._registry("from_aws_ecr", tag, secret, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), options)

    @classmethod
    def from_gcp_artifact_registry(
        cls, tag: str, secret: Secret | None = None, **options: Unpack[RegistryOptions]
    ) -> Image:
        """An image of Google's registry, "<region>-docker.pkg.dev/<project>/<repository>/<name>:<tag>".

        `secret` has SERVICE_ACCOUNT_JSON. The other parameters: `RegistryOptions`.
        """
        return cls._registry("from_gcp_artifact_registry", tag, secret, ("SERVICE_ACCOUNT_JSON",), options)

    @classmethod
    def _registry(
        cls,
        method: str,
        tag: str,
        secret: Secret | None,
        variables: tuple[str, ...],
        given: RegistryOptions,
    ) -> Image:
        title = f"Image.{method}"
        if not isinstance(tag, str) or not tag or any(letter.isspace() for letter in tag) or "://" in tag:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(f'{title}: {tag!r} names no image; write "name:tag" or "registry.example/name:tag"')
        options = Options.of(title, RegistryOptions, given)
        add_python = given.get("add_python")
        version = "" if add_python is None else checks.python_version(title, add_python)

        def base(resolution: Resolution) -> Base:
            from farcall.spec.image import RegistryBase

            return RegistryBase(tag, version, resolution.handles([secret] if secret else ()), options.force)

        _check_registry_secret(title, secret, variables)
        image = cls._from(f"{title}({tag!r})", starting(base))
        setup = options.words("setup_dockerfile_commands")
        return image.dockerfile_commands(list(setup)) if setup else image

    @classmethod
    def from_dockerfile(
        cls,
        path: str | Path,
        *,
        registry_secret: Secret | None = None,
        add_python: str | None = None,
        **options: Unpack[DockerfileOptions],
    ) -> Image:
        """What a local Dockerfile builds, in its last stage.

        `registry_secret` and `add_python`: as `from_registry`. The other parameters: `DockerfileOptions`; patterns of
        `<path>.dockerignore` come before those of the context's own .dockerignore.
        """
        from farcall.sdk.dockerfiles import Dockerfile

        title = "Image.from_dockerfile"
        checked = Options.of(title, DockerfileOptions, options)
        version = "" if add_python is None else checks.python_version(title, add_python)
        file = Dockerfile.of_file(title, path, checked)

        def start(resolution: Resolution) -> ImageSpec:
            credentials = resolution.handles([registry_secret] if registry_secret else ())
            return file.image(resolution, credentials=credentials, add_python=version)

        _check_registry_secret(title, registry_secret, _REGISTRY_VARIABLES)
        return cls._from(f"{title}({str(path)!r})", start, checked.unimplemented)

    @classmethod
    def from_scratch(cls, force_build: bool = False) -> Image:
        """An empty file system. It can run functions once a Python has been copied into it."""

        def base(_: Resolution) -> Base:
            from farcall.spec.image import ScratchBase

            return ScratchBase(force=force_build)

        return cls._from("Image.from_scratch()", starting(base))

    @classmethod
    def from_id(cls, image_id: str, client: Any = None) -> Image:
        """The built image with that id (`im-...`)."""
        if not isinstance(image_id, str) or not image_id.startswith("im-"):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(f"Image.from_id: {image_id!r} is no image's id, which begins with im-")
        return cls._from_built("from_id", image_id)

    @classmethod
    def from_name(cls, name: str, *, environment_name: str | None = None, client: Any = None) -> Image:
        """The image that was published as "name" or "name:tag"; it is not built here."""
        return cls._from_built("from_name", _published_name("Image.from_name", name, environment_name))

    @classmethod
    def _from_built(cls, method: str, image: str) -> Image:
        def base(_: Resolution) -> Base:
            from farcall.spec.image import BuiltBase

            return BuiltBase(image)

        return cls._from(f"Image.{method}({image!r})", starting(base))

    @classmethod
    def micromamba(cls, python_version: str | None = None, force_build: bool = False) -> Image:
        """A base with a conda environment."""
        return cls.debian_slim(python_version)._with("Image.micromamba()", adding(), ["Image.micromamba()"])

    @classmethod
    def from_installed(cls, *, force_build: bool = False) -> Image:
        """Debian with this interpreter's version of Python and all packages that are installed for it, in the same
        versions: what a function without an image gets on a server elsewhere.

        Packages installed in editable mode are mounted as they are when a container starts. Raises InvalidError,
        naming them, where some cannot be had from an index: what was installed from a repository, a folder or a file.
        """
        image = cls.debian_slim(force_build=force_build)
        if not is_local():
            return image
        from farcall.sdk import distributions

        found = distributions.installed()
        for index, packages in found.packages.items():
            image = image.uv_pip_install(list(packages), extra_index_url=index or None, extra_options="--no-deps")
        return image.add_local_python_source(*found.editable) if found.editable else image

    # --- build steps

    def run_commands(self, *commands: str | list[str], **options: Unpack[CommandOptions]) -> Image:
        """Commands for the image's shell, each a step of its own: `cd` and `export` end with their command. Parameters:
        those of `CommandOptions`."""
        checked = Options.of("Image.run_commands", CommandOptions, options)
        found = checks.names("Image.run_commands", "command", commands)
        if not found:
            return self

        def step(command: str) -> Callable[[Resolution], Step]:
            def make(resolution: Resolution) -> Step:
                from farcall.spec.image import Run

                return Run(command, checked.env, resolution.handles(checked.secrets), force=checked.force)

            return make

        title = f"Image.run_commands({', '.join(map(repr, found))})"
        return self._with(title, adding(*map(step, found)), checked.unimplemented)

    def dockerfile_commands(
        self,
        *dockerfile_commands: str | list[str],
        context_files: Mapping[str, str | Path] | None = None,
        **options: Unpack[DockerfileOptions],
    ) -> Image:
        """Lines of a Dockerfile, without FROM. `context_files` are local files by their path in the context. The other
        parameters: `DockerfileOptions`."""
        from farcall.sdk.dockerfiles import Dockerfile

        title = "Image.dockerfile_commands"
        checked = Options.of(title, DockerfileOptions, options)
        lines = checks.names(title, "line", dockerfile_commands)
        if not lines:
            return self
        file = Dockerfile.of_lines(title, "\n".join(lines), context_files or {}, checked)
        return self._with(title, lambda before, resolution: file.image(resolution, onto=before), checked.unimplemented)

    def run_function(self, raw_f: Callable[..., Any], **options: Unpack[CallOptions]) -> Image:
        """A Python function as a build step: what it writes to the file system becomes part of the image, what it
        returns does not.

        It runs in a container of its own. The step is built again when the function's code changes, or that of the
        functions it uses, or the values of the globals it refers to, or its arguments. Parameters: those of
        `CallOptions`.
        """
        from farcall.sdk.build_functions import BuildFunction

        checked = Options.of("Image.run_function", CallOptions, options)
        function = BuildFunction.of(raw_f, checked)
        return self._with(f"Image.run_function({raw_f.__qualname__})", adding(function.step), checked.unimplemented)

    # --- configuration

    def env(self, vars: Mapping[str, str]) -> Image:
        """Environment variables, for the steps that follow and for functions, whose own come after them."""
        for name, value in vars.items():
            if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidError(f"Image.env: {name!r}={value!r}: names and values are strings")
        found = checks.environment("Image.env", vars)
        if self._start is None:
            return self._changed(_host_env=self._host_env | found)
        return self._configured(f"Image.env({', '.join(found)})", "env", pairs=found)

    def workdir(self, path: str | PurePosixPath) -> Image:
        """The folder in which the steps that follow, and containers, start; it is made where it is missing."""
        text = str(path)
        if self._start is not None:
            return self._configured(f"Image.workdir({text!r})", "workdir", (text,))
        if not text.startswith("/"):
            raise InvalidError(f"Image.workdir: {text!r} is not absolute; write /root/{text} or the like")
        return self._changed(_host_workdir=text)

    def entrypoint(self, entrypoint_commands: list[str]) -> Image:
        """A program that containers start with; it gets a command as its arguments and has to execute it."""
        words = checks.words("Image.entrypoint", entrypoint_commands)
        return self._configured("Image.entrypoint", "entrypoint", words)

    def cmd(self, cmd: list[str]) -> Image:
        """The command of a sandbox that is given none; functions do not use it."""
        return self._configured("Image.cmd", "cmd", checks.words("Image.cmd", cmd))

    def shell(self, shell_commands: list[str]) -> Image:
        """The shell of the `run_commands` that follow, default ["/bin/sh", "-c"]."""
        words = checks.words("Image.shell", shell_commands)
        if not words:
            raise InvalidError("Image.shell: the list is empty; the default is ['/bin/sh', '-c']")
        return self._configured("Image.shell", "shell", words)

    def _configured(
        self,
        title: str,
        field: Literal["env", "workdir", "entrypoint", "cmd", "shell"],
        words: tuple[str, ...] = (),
        pairs: Mapping[str, str] | None = None,
    ) -> Image:
        def step(_: Resolution) -> Step:
            from farcall.spec.image import Configure

            return Configure(field, words, dict(pairs or {}))

        return self._with(title, adding(step))

    def pipe(self, func: Callable[Concatenate[Image, P], Image], *args: P.args, **kwargs: P.kwargs) -> Image:
        """`func(image, ...)`, for chains."""
        return func(self, *args, **kwargs)

    # --- local files

    def add_local_file(self, local_path: str | Path, remote_path: str, *, copy: bool = False) -> Image:
        """A local file, at the absolute path `remote_path`, or under its own name in it where that ends in a slash.

        It is mounted, read-only, when a container starts, as it was when the app began to run. With `copy` it becomes
        part of the image, for the build steps that follow.
        """
        local = Path(local_path).expanduser().absolute()
        target = checks.remote_path("Image.add_local_file", remote_path)
        if str(remote_path).endswith("/"):
            target = f"{target.rstrip('/')}/{local.name}"
        if is_local() and not local.is_file():
            raise InvalidError(f"Image.add_local_file: there is no file {local}")
        title = f"Image.add_local_file({str(local_path)!r})"
        if not copy or self._start is None:
            return self._mounting(title, LocalFiles(str(local), target))
        folder, _, name = target.rpartition("/")

        def step(resolution: Resolution) -> Step:
            from farcall.spec.image import Copy

            return Copy(f"{folder}/", (".",), resolution.trees.files({name: local}))

        return self._with(title, adding(step))

    def add_local_dir(
        self, local_path: str | Path, remote_path: str, *, copy: bool = False, ignore: Ignore = ()
    ) -> Image:
        """A local folder with all that is in it, at the absolute path `remote_path`. `ignore` are patterns as in a
        .dockerignore file, or a function of the path inside the folder; `copy` as `add_local_file`."""
        local = Path(local_path).expanduser().absolute()
        target = checks.remote_path("Image.add_local_dir", remote_path)
        if is_local() and not local.is_dir():
            raise InvalidError(f"Image.add_local_dir: there is no folder {local}")
        ignore = checks.checked_ignore("Image.add_local_dir", ignore)
        title = f"Image.add_local_dir({str(local_path)!r})"
        if not copy or self._start is None:
            if target == "/":
                raise InvalidError("Image.add_local_dir: a folder cannot be mounted at /; write copy=True")
            return self._mounting(title, LocalFiles(str(local), target, ignore))

        def step(resolution: Resolution) -> Step:
            from farcall.spec.image import Copy

            return Copy(f"{target.rstrip('/')}/", (".",), resolution.trees.directory(local, ignore))

        return self._with(title, adding(step))

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore | None = None) -> Image:
        """Modules and packages that are importable here, made importable in the container.

        Mounted, they are at the same path as here, with all their files. With `copy` they become part of the image, in
        /root, by default only what is Python source. `ignore`: as `add_local_dir`.
        """
        for module in modules:
            if not isinstance(module, str) or "/" in module or module.endswith(".py"):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidError(f"Image.add_local_python_source takes names of modules, not {module!r}")
        ignore = ignore if ignore is None else checks.checked_ignore("Image.add_local_python_source", ignore)
        title = f"Image.add_local_python_source({', '.join(modules)})"
        if not copy or self._start is None:
            return self._mounting(title, LocalModules(modules, ignore or ()))

        def step(module: str) -> Callable[[Resolution], Step]:
            def make(resolution: Resolution) -> Step:
                from farcall.spec.image import Copy

                return Copy("/root/", (".",), resolution.trees.module(module, ignore))

            return make

        return self._with(title, adding(*map(step, modules)))

    def _mounting(self, title: str, local: LocalFiles | LocalModules) -> Image:
        return self._changed(_local=(*self._local, local), _titles=(*self._titles, title))

    def __getattr__(self, name: str) -> Any:
        if name not in _OLD_NAMES:
            raise AttributeError(f"'Image' object has no attribute {name!r}")
        deprecated(f"Image.{name} is now Image.{_OLD_NAMES[name]}")
        return getattr(self, _OLD_NAMES[name])

    @contextmanager
    def imports(self) -> Generator[None]:
        """Imports that only containers need: an ImportError inside the block is ignored here, and raised there."""
        try:
            yield
        except ImportError:
            if not is_local():
                raise

    # --- what becomes of it

    @property
    def object_id(self) -> str | None:
        """The id (`im-...`) that the image has had when this program built it last; None before."""
        return self._object_id

    @twin
    def build(self, app: App | None = None) -> Image:
        """Builds the image now, and returns it: `image.build()`, `await image.build.aio()`. Raises ImageBuildError.

        An `app` may be given, as elsewhere; images belong to no app.
        """
        from farcall.sdk import builds

        return builds.build(self)

    @build.awaited
    async def _build(self, app: App | None = None) -> Image:
        from farcall.sdk import builds

        return await builds.build_async(self)

    @twin
    def publish(self, name: str, *, environment_name: str | None = None) -> None:
        """Builds the image and gives it a name, "name" or "name:tag", for `Image.from_name`: `image.publish("base")`.
        Another image of that name loses it."""
        from farcall.sdk import builds

        builds.publish(self, _published_name("image.publish", name, environment_name))

    @publish.awaited
    async def _publish(self, name: str, *, environment_name: str | None = None) -> None:
        from farcall.sdk import builds

        await builds.publish_async(self, _published_name("image.publish", name, environment_name))

    @later
    def logs(self) -> Any:
        """What the build printed."""

    # --- for the SDK

    def resolve(self, resolution: Resolution) -> ImageSpec | None:
        """The description for the server, with local files as they are now; None for the host's own system."""
        if self._start is None:
            return None
        spec = self._start(resolution)
        for part in self._parts:
            spec = part(spec, resolution)
        return spec

    def built(self, image_id: str) -> None:
        """The server has built it."""
        self._object_id = image_id

    @property
    def is_host(self) -> bool:
        """Whether it is the host's own system, with or without local files."""
        return self._start is None

    @property
    def unimplemented(self) -> tuple[str, ...]:
        """The steps that this version cannot do."""
        return self._unimplemented

    @property
    def host_environment(self) -> dict[str, str]:
        """The variables given to `env` on the host's own system; a built image has its own."""
        return dict(self._host_env)

    @property
    def host_workdir(self) -> str:
        """The folder given to `workdir` on the host's own system, "" for none."""
        return self._host_workdir

    @property
    def local(self) -> tuple[LocalFiles | LocalModules, ...]:
        """What is mounted when a container starts."""
        return self._local

    def __reduce__(self) -> tuple[Any, ...]:
        # An image that travels with a function's globals is there for `imports()`; what it is made of stays here.
        return _travelled, (self._titles,)

    def __repr__(self) -> str:
        first, *others = self._titles
        return f"<farcall.{'.'.join([first, *(title.removeprefix('Image.') for title in others)])}>"


def _travelled(titles: tuple[str, ...]) -> Image:
    return Image()._changed(_titles=titles)  # pyright: ignore[reportPrivateUsage]


def _check_registry_secret(method: str, secret: Secret | None, variables: tuple[str, ...]) -> None:
    """Raises InvalidError for a secret without the variables that open a registry."""
    if secret is None or secret.name is not None or not is_local():
        return  # what a stored one has is seen when it is used
    values = secret.spec.values
    if missing := [name for name in variables if not values.get(name)]:
        known = ", ".join(sorted(values)) or "nothing"
        raise InvalidError(f"{method}: the secret has no {' and no '.join(missing)}; it has {known}")


def _published_name(method: str, name: str, environment_name: str | None = None) -> str:
    """The whole name, with its tag. Raises InvalidError for what cannot be one."""
    from farcall.sdk.environment import only_main
    from farcall.spec.image import split_name

    only_main(method, environment_name)
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidError(f'{method}: {name!r} is no name; write "name" or "name:tag"')
    return ":".join(split_name(name))

"""`App`: a set of functions and classes that run together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    dataclass_transform,
    overload,
)

from farcall.errors import ConnectionLostError, InvalidError
from farcall.sdk import batches, context, ids, source
from farcall.sdk.cls import Cls, declare
from farcall.sdk.decorators import parameter
from farcall.sdk.deprecations import warn
from farcall.sdk.environment import only_main
from farcall.sdk.function import Function, method_info
from farcall.sdk.options import ClassOptions, Declaration, FunctionOptions, checked_secrets, checked_volumes
from farcall.sdk.partial import PartialFunction
from farcall.sdk.twin import Twin
from farcall.sdk.unimplemented import Later, later, refuse

if TYPE_CHECKING:
    from farcall.sdk.build import Preparation
    from farcall.sdk.image import Image
    from farcall.sdk.output import LogStream
    from farcall.sdk.secret import Secret
    from farcall.sdk.volume import Volume
    from farcall.spec.function import AppSpec

__all__ = ["App", "LocalEntrypoint"]

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L")
T = TypeVar("T")

EXIT_GRACE = 30.0  # seconds that exit hooks get when an app stops


class EndOfModule(BaseException):
    """Raised in a container by `with app.run():` at the top level of the user's module, which ends there: the runner
    catches it and takes what was defined so far as the module."""


class FunctionDecorator(Protocol):
    """What `app.function()` returns."""

    @overload
    def __call__(self, function: PartialFunction[P, R, L], /) -> Function[P, R, L]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Function[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Function[P, R, R]: ...


class ClassDecorator(Protocol):
    """What `app.cls()` returns. For type checkers the class stays itself, with its methods seen as Functions."""

    def __call__(self, cls: type[T], /) -> type[T]: ...


class LocalEntrypoint(Generic[P, R]):
    """A function that `farcall run` calls in this process, with arguments from the command line."""

    def __init__(self, app: App, name: str, raw: Callable[P, R]) -> None:
        self.app = app
        self.name = name
        self.raw = raw
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(self, attribute, getattr(raw, attribute, None))
        self.__wrapped__ = raw

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function."""
        return self.raw(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<farcall.LocalEntrypoint {self.name}>"


class AppRun:
    """What `app.run()` returns: a context manager, plain or asynchronous, during which the app runs."""

    def __init__(self, app: App, name: str | None, detach: bool) -> None:
        self._app = app
        self._name = name
        self._detach = detach
        self._pid = os.getpid()
        self._logs: LogStream | None = None
        self._preparation: Preparation | None = None

    def __enter__(self) -> App:
        preparation = self._begin()
        try:
            if not _runs_here():
                from farcall.sdk import client

                preparation.build(client.current())
                spec = self._spec(preparation)
                client.current().create_app(spec)
                self._logs = _logs_of(spec.app_id)
        except BaseException:
            self._never_began()
            raise
        return self._app

    async def __aenter__(self) -> App:
        preparation = self._begin()
        try:
            if not _runs_here():
                from farcall.sdk import client

                await preparation.build_async(client.current())
                spec = self._spec(preparation)
                await client.current().create_app_async(spec)
                self._logs = _logs_of(spec.app_id)
        except BaseException:
            self._never_began()
            raise
        return self._app

    def _spec(self, preparation: Preparation) -> AppSpec:
        from farcall.spec.function import AppSpec

        app_id = self._app.app_id
        assert app_id is not None
        return AppSpec(
            app_id=app_id,
            name=self._name or self._app.description,
            mode="detached" if self._detach else "ephemeral",
            functions=preparation.functions(),
        )

    def _never_began(self) -> None:
        self._app.unbind()
        self._release()

    def _release(self) -> None:
        preparation, self._preparation = self._preparation, None
        if preparation is not None and os.getpid() == self._pid:
            preparation.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if (app_id := self._end()) is not None:
                from farcall.sdk import client

                client.current().stop_app(app_id, EXIT_GRACE)
        except ConnectionLostError:
            pass  # with the connection the server has stopped the app
        finally:
            self._end_logs()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if (app_id := self._end()) is not None:
                from farcall.sdk import client

                await client.current().stop_app_async(app_id, EXIT_GRACE)
        except ConnectionLostError:
            pass  # with the connection the server has stopped the app
        finally:
            self._end_logs()

    def _end_logs(self) -> None:
        self._release()
        logs, self._logs = self._logs, None
        if logs is not None and os.getpid() == self._pid:
            logs.close()

    def _begin(self) -> Preparation:
        if not context.is_local():
            from farcall.sdk import top_level

            if top_level.importing() is not None:
                raise EndOfModule
            raise InvalidError(
                "app.run() is for the program that starts the app: in a container call functions with .remote()"
            )
        if self._app.is_running:
            raise InvalidError(f"the app {self._app.description} is running already: app.run() cannot be nested")
        if "ipykernel" in sys.modules:
            from farcall.sdk import notebook

            if notebook.is_notebook():
                notebook.wake_loop_on_signals()
                from farcall.sdk import output

                output.listen_unless_somebody_does()
        self._preparation = preparation = self._app.bind()
        if not _runs_here():
            from farcall.sdk import top_level

            top_level.warn_unless_guarded(self._app)
        return preparation

    def _end(self) -> str | None:
        """The app's id where it is to be stopped: not one that goes on, not in a child that was forked meanwhile."""
        app_id = self._app.app_id if self._app.is_running else None
        if os.getpid() != self._pid:
            return None
        try:
            if _runs_here():
                from farcall.sdk import local

                local.close()
        finally:
            self._app.unbind()
        if self._detach and app_id is not None:
            from farcall.sdk import client

            client.let_go(app_id)
        return None if self._detach or _runs_here() else app_id


def _logs_of(app_id: str) -> LogStream | None:
    """What the app's containers print, for whoever listens."""
    output = sys.modules.get("farcall.sdk.output")  # who listens has imported it
    return None if output is None or output.listener is None else output.LogStream(app_id)


class _Run:
    """`App.run`, bound: called, or through `.aio`, it gives the same context manager."""

    def __init__(self, app: App) -> None:
        self._app = app

    def __call__(
        self,
        *,
        name: str | None = None,
        client: Any = None,
        detach: bool = False,
        interactive: bool = False,
        environment_name: str | None = None,
    ) -> AppRun:
        """Runs the app for the time of a `with` block: `with app.run():` or `async with app.run():`.

        A detached app goes on after the block and after this process, until its calls are done.
        """
        if interactive:
            refuse("app.run(interactive=True)")
        only_main("app.run", environment_name)
        return AppRun(self._app, name, detach)

    aio = __call__


class App:
    """A set of functions and classes that are declared together and run together.

    `name` is needed only to deploy. `image`, `secrets`, `volumes` and `include_source` are the defaults of its
    functions; its secrets come before theirs.
    """

    logs: Any = Later("App.logs")
    sandboxes: Any = Later("App.sandboxes")

    def __init__(
        self,
        name: str | None = None,
        *,
        tags: dict[str, str] | None = None,
        image: Image | None = None,
        secrets: Sequence[Secret] = (),
        volumes: Mapping[str | PurePosixPath, Volume] | None = None,
        include_source: bool = True,
    ) -> None:
        if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidError(f"App: the name {name!r} is not a string")
        self._name = name
        self.tags = dict(tags or {})
        self.image = image
        self.secrets = checked_secrets("App", secrets)
        self.volumes = dict(volumes or {})
        self.volume_specs = checked_volumes("App", self.volumes)
        self.include_source = include_source
        self._app_id: str | None = None
        self._is_running = False
        self._functions: dict[str, Function[..., Any, Any]] = {}
        self._classes: dict[str, Cls[..., Any]] = {}
        self._entrypoints: dict[str, LocalEntrypoint[..., Any]] = {}

    # --- what it is

    @property
    def name(self) -> str | None:
        """The name given to it, or None."""
        return self._name

    @property
    def app_id(self) -> str | None:
        """`ap-...` while the app runs and after it has; None before."""
        return self._app_id

    @property
    def description(self) -> str:
        """The name, or what was started: a script's file or the command line."""
        if self._name is not None:
            return self._name
        path = getattr(sys.modules["__main__"], "__file__", None)
        return os.path.basename(path) if path is not None else " ".join(sys.argv) or "interactive"

    @property
    def is_running(self) -> bool:
        """Whether the app's functions can be called from this process."""
        return self._is_running

    @property
    def registered_functions(self) -> dict[str, Function[..., Any, Any]]:
        """The app's functions by name."""
        return self._functions

    @property
    def registered_classes(self) -> dict[str, Cls[..., Any]]:
        """The app's classes by name."""
        return self._classes

    @property
    def registered_entrypoints(self) -> dict[str, LocalEntrypoint[..., Any]]:
        """The app's local entrypoints by name."""
        return self._entrypoints

    @property
    def registered_web_endpoints(self) -> list[str]:
        """The names of the functions that are web endpoints."""
        return [name for name, function in self._functions.items() if function.info_of_code.is_web]

    # --- declaring

    def function(self, _misused: None = None, /, **options: Unpack[FunctionOptions]) -> FunctionDecorator:
        """Makes a function of the app of the function below. The parameters are those of `FunctionOptions`."""
        _needs_parentheses("function", _misused)
        declaration = Declaration.of("@app.function", options)

        def decorate(target: Any) -> Any:
            return self._add_function(target, declaration)

        return decorate

    @dataclass_transform(kw_only_default=True, field_specifiers=(parameter,))
    def cls(self, _misused: None = None, /, **options: Unpack[ClassOptions]) -> ClassDecorator:
        """Makes a `Cls` of the class below: its instances live in containers. Parameters: those of `ClassOptions`."""
        _needs_parentheses("cls", _misused)
        declaration = Declaration.of("@app.cls", options)

        def decorate(target: Any) -> Any:
            made = declare(target, self, declaration, _is_importable)
            self._warn_of_duplicate(made.name, target)
            self._functions.pop(made.name, None)
            self._classes[made.name] = made
            return made

        return decorate

    def server(self, _misused: None = None, /, **options: Any) -> Callable[[Any], Any]:
        """Makes a server of the class below, whose enter hook starts one on a port."""
        _needs_parentheses("server", _misused)

        def decorate(target: Any) -> Any:
            from farcall.sdk.server import Server

            return Server(getattr(target, "__qualname__", repr(target)))

        return decorate

    def local_entrypoint(
        self, _misused: None = None, /, *, name: str | None = None
    ) -> Callable[[Callable[P, R]], LocalEntrypoint[P, R]]:
        """Makes the function below one that `farcall run FILE` calls, in this process, while the app runs.

        Its arguments come from the command line, by their annotations.
        """
        _needs_parentheses("local_entrypoint", _misused)

        def decorate(raw: Callable[P, R]) -> LocalEntrypoint[P, R]:
            entry_name = name if name is not None else raw.__qualname__
            known = self._entrypoints.get(entry_name)
            if known is not None and not source.is_interactive(raw.__module__):
                raise InvalidError(f"two local entrypoints of this app are named {entry_name}; give one another name=")
            entrypoint = LocalEntrypoint(self, entry_name, raw)
            self._entrypoints[entry_name] = entrypoint
            return entrypoint

        return decorate

    def include(self, other_app: App, inherit_tags: bool = True) -> App:
        """Adds the functions, classes and, unless told not to, tags of another app; the later of two names wins."""
        for name, function in other_app.registered_functions.items():
            self._warn_of_duplicate(name, function.raw)
            self._functions[name] = function
        for name, cls in other_app.registered_classes.items():
            self._warn_of_duplicate(name, cls.raw)
            self._classes[name] = cls
        if inherit_tags:
            self.tags = other_app.tags | self.tags
        return self

    def _add_function(self, target: Any, declaration: Declaration) -> Function[..., Any, Any]:
        partial = cast("PartialFunction[..., Any, Any]", target) if isinstance(target, PartialFunction) else None
        raw: Any = cast("Any", target) if partial is None else partial.raw
        _check_function(raw, target, partial, declaration)
        name = declaration.options.get("name") or raw.__qualname__.rpartition("<locals>.")[2]
        if partial is not None:
            declaration = declaration.marked(name, partial.concurrency, partial.batching)
        if declaration.batching is not None:
            batches.parameter_names(raw, name, is_method=False)
        function: Function[..., Any, Any] = Function(
            name,
            raw=raw,
            info=method_info(raw, partial, declaration.options.get("is_generator")),
            app=self,
            declaration=declaration,
            unimplemented=(*declaration.unimplemented, *(partial.unimplemented if partial is not None else ())),
        )
        if declaration.retries.max_retries and function.info_of_code.is_generator:
            raise InvalidError(f"{name} is a generator: retries= is not possible, as items may have been delivered")
        if declaration.retries.max_retries and function.info_of_code.is_web:
            raise InvalidError(f"{name} is a web endpoint: retries= is not possible")
        self._warn_of_duplicate(name, raw)
        self._classes.pop(name, None)
        self._functions[name] = function
        return function

    def _warn_of_duplicate(self, name: str, raw: Any) -> None:
        known = self._functions.get(name) or self._classes.get(name)
        if known is None or known.raw is raw or source.is_interactive(raw.__module__):
            return  # running a notebook's cell again replaces what it defines
        warn(f"the app {self.description} has two functions named {name}: the later one counts. Give one another name=")

    # --- running

    @property
    def run(self) -> _Run:
        """`with app.run():` or `async with app.run():` runs the app for the time of the block."""
        return _Run(self)

    @property
    def stop(self) -> Twin[[], None]:
        """Stops the running app: its calls are cancelled, its containers end."""
        return Twin(self._stop, self._stop_async, "app.stop")

    def _stop(self) -> None:
        if (app_id := self._stoppable()) is not None:
            from farcall.sdk import client

            client.current().stop_app(app_id, EXIT_GRACE)

    async def _stop_async(self) -> None:
        if (app_id := self._stoppable()) is not None:
            from farcall.sdk import client

            await client.current().stop_app_async(app_id, EXIT_GRACE)

    def _stoppable(self) -> str | None:
        if not self._is_running:
            raise InvalidError(f"the app {self.description} is not running")
        self.unbind()
        return None if _runs_here() else self._app_id

    def bind(self) -> Preparation:
        """Gives the app's members their ids, so that they can be called and sent, and prepares their specs."""
        from farcall.sdk import build

        app_id = ids.new_id("ap")
        source.alias_main()
        for member in self._members():
            member.bind(app_id)
        try:
            preparation = build.Preparation(self, app_id, build.surroundings())
        except BaseException:
            self.unbind()
            raise
        self._app_id = app_id
        self._is_running = True
        return preparation

    def unbind(self) -> None:
        """The app has stopped: its members cannot be called any more."""
        self._is_running = False
        for member in self._members():
            member.unbind()

    def _members(self) -> Iterator[Function[..., Any, Any] | Cls[..., Any]]:
        yield from self._functions.values()
        yield from self._classes.values()

    # --- not there yet

    lookup: Any = Later("App.lookup")

    @later
    def deploy(self) -> Any:
        """Runs the app for good, under its name."""

    @later
    def set_tags(self) -> Any:
        """Replaces the tags of a running app."""

    @later
    def get_tags(self) -> Any:
        """The tags of a running app."""

    @later
    def get_dashboard_url(self) -> Any:
        """Where the dashboard shows the app."""

    @later
    def stats(self) -> Any:
        """Counts over a time."""

    @later
    def info(self) -> Any:
        """State and members."""

    # --- as an object

    def __reduce__(self) -> tuple[Any, ...]:
        return _handle, (self._name, self._app_id)

    def __repr__(self) -> str:
        return f"<farcall.App {self._name or ''}{f' {self._app_id}' if self._app_id else ''}>"


def _handle(name: str | None, app_id: str | None) -> App:
    """An app that travelled: its name and id, not its members, which travel as handles of their own."""
    app = App(name)
    app._app_id = app_id  # pyright: ignore[reportPrivateUsage]
    return app


def _runs_here() -> bool:
    from farcall.sdk import local

    return local.is_active()


def _needs_parentheses(decorator: str, misused: object) -> None:
    if misused is not None:
        raise InvalidError(f"@app.{decorator} needs parentheses: write @app.{decorator}()")


def _is_importable(module: str) -> bool:
    return not source.is_interactive(module)


def _check_function(
    raw: Any, target: Any, partial: PartialFunction[..., Any, Any] | None, declaration: Declaration
) -> None:
    if isinstance(target, Function):
        raise InvalidError(f"{target.name} is decorated with @app.function() twice")  # pyright: ignore[reportUnknownMemberType]
    if isinstance(raw, type):
        raise InvalidError(f"@app.function() decorates functions; for the class {raw.__qualname__} write @app.cls()")
    if not callable(raw) or not hasattr(raw, "__qualname__"):
        raise InvalidError(f"@app.function() decorates a function, not {raw!r}; wrap it in one with `def`")
    if partial is not None and partial.is_method:
        raise InvalidError(f"{raw.__qualname__}: @farcall.method() is for methods of a class under @app.cls()")
    if declaration.serialized or not _is_importable(raw.__module__):
        return
    if raw.__name__ == "<lambda>":
        raise InvalidError(
            "a lambda has no name by which a container could find it: write a `def`, or declare it with "
            '@app.function(serialized=True, name="...")'
        )
    if "<locals>" in raw.__qualname__:
        raise InvalidError(
            f"{raw.__qualname__} is defined inside another function, where a container cannot import it: move it to "
            "the top of the module, or declare it with @app.function(serialized=True)"
        )
    if "." in raw.__qualname__:
        raise InvalidError(
            f"{raw.__qualname__} is a method: decorate the class with @app.cls() and the method with @farcall.method()"
        )

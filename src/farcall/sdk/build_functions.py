"""Python functions as steps of an image, for `Image.run_function`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from farcall.errors import InvalidError
from farcall.sdk.options import Declaration

if TYPE_CHECKING:
    from farcall.sdk.image_options import Options
    from farcall.sdk.image_parts import Resolution
    from farcall.spec.image import Call

_TIMEOUT = 3600.0  # seconds


class BuildFunction(NamedTuple):
    """A function with all that `run_function` was given for it, checked."""

    raw: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    declaration: Declaration
    include_source: bool
    options: Options

    @classmethod
    def of(cls, raw: Callable[..., Any], options: Options) -> BuildFunction:
        """Raises InvalidError for what is no plain function, and for resources outside their range."""
        from farcall.sdk.function import Function, method_info

        method = "Image.run_function"
        if isinstance(raw, Function):
            raise InvalidError(f"{method}: {raw.name} is decorated with @app.function(); give the function itself")  # pyright: ignore[reportUnknownMemberType]
        if not callable(raw) or isinstance(raw, type) or not hasattr(raw, "__qualname__"):
            raise InvalidError(f"{method}: {raw!r} is no function")
        if method_info(raw, None, None).is_generator:
            raise InvalidError(f"{method}: {raw.__qualname__} is a generator, whose items nobody would take")
        args: Any = options.given.get("args", ())
        if isinstance(args, (str, bytes)):
            raise InvalidError(f"{method}: args={args!r} is not a list of arguments; write args=[{args!r}]")
        given = {name: options.given.get(name) for name in ("cpu", "memory")}
        timeout = options.given.get("timeout", _TIMEOUT)
        return cls(
            raw,
            tuple(args),
            dict(options.given.get("kwargs") or {}),
            Declaration.of(method, given | {"timeout": timeout}),
            bool(options.given.get("include_source", True)),
            options,
        )

    def step(self, resolution: Resolution) -> Call:
        """The step, with the function's source as it is now."""
        from farcall.sdk import source, values
        from farcall.sdk.fingerprint import fingerprint
        from farcall.sdk.function import method_info
        from farcall.spec.function import FunctionSpec, MethodSpec
        from farcall.spec.image import Call

        raw = self.raw
        by_value = source.is_interactive(raw.__module__) or "<locals>" in raw.__qualname__ or raw.__name__ == "<lambda>"
        found = source.find(raw, serialized=by_value, include=self.include_source)
        payload = values.dumps_call(self.args, self.kwargs)
        if payload.fds:
            payload.close()
            raise InvalidError(
                f"Image.run_function: the arguments of {raw.__qualname__} are above 64 KiB; put what is large into a "
                "file and add it with add_local_file(..., copy=True)"
            )
        function = FunctionSpec(
            function_id=f"fu-build-{raw.__name__}",
            name=raw.__qualname__,
            source=found.source,
            methods=(MethodSpec("", False, method_info(raw, None, None).is_async),),
            cpu=self.declaration.cpu,
            memory=self.declaration.memory,
            timeout=self.declaration.timeout,
            startup_timeout=self.declaration.timeout,
            env=self.options.env,
            trees=resolution.trees.mounted(found.files),
            compat="modal" if resolution.compat else "",
        )
        return Call(
            function,
            payload.data,
            fingerprint(raw, self.args, self.kwargs),
            resolution.handles(self.options.secrets),
            self.options.force,
        )

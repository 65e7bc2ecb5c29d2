"""What a variant of a function or class has different: `with_options`, `with_concurrency`, `with_batching`."""

from typing import Any

import msgspec

from farcall.spec.function import Batching, Concurrency, Cores, FunctionSpec, MiB, RetryPolicy, Scaling
from farcall.spec.gpu import GpuRequest
from farcall.spec.secret import SecretSpec
from farcall.spec.volume import VolumeSpec


class Variant(msgspec.Struct, frozen=True):
    """Values that take the place of a FunctionSpec's fields of the same name; None: it keeps its own."""

    cpu: tuple[Cores, Cores | None] | None = None
    memory: tuple[MiB, MiB | None] | None = None
    gpus: tuple[GpuRequest, ...] | None = None
    retries: RetryPolicy | None = None
    timeout: float | None = None
    startup_timeout: float | None = None
    scaling: Scaling | None = None
    secrets: tuple[SecretSpec, ...] | None = None
    concurrency: Concurrency | None = None
    batching: Batching | None = None
    volumes: tuple[VolumeSpec, ...] | None = None
    regions: tuple[str, ...] | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The values that are not None, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}

    def of(self, base: FunctionSpec, function_id: str) -> FunctionSpec:
        """The function with these values, under an id of its own."""
        return msgspec.structs.replace(base, function_id=function_id, variant_of=base.function_id, **self.changes)

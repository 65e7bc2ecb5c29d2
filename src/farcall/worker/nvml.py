"""NVML, the library of NVIDIA's driver that says which GPUs there are: the few calls that farcall needs, by ctypes."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

_NAME_BYTES = 96
_MiB = 2**20


class NvmlError(Exception):
    """The library cannot be used; the text says what it said."""


class Device(NamedTuple):
    """One GPU. `minor` is the number in its device node's name, `memory` is MiB."""

    name: str
    uuid: str
    minor: int
    memory: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def devices(library: str) -> tuple[str, list[Device]]:
    """The driver's version, and its GPUs in NVML's order. `library` is a path, or a name that the loader finds.

    Raises NvmlError: there is no such library, the driver is not loaded or of another version, or a GPU is lost.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError as error:
        raise NvmlError(str(error)) from error
    _call(nvml, "nvmlInit_v2")
    try:
        version = ctypes.create_string_buffer(_NAME_BYTES)
        _call(nvml, "nvmlSystemGetDriverVersion", version, ctypes.c_uint(_NAME_BYTES))
        count = ctypes.c_uint()
        _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        return version.value.decode(), [_device(nvml, index) for index in range(count.value)]
    finally:
        nvml.nvmlShutdown()


def _device(nvml: ctypes.CDLL, index: int) -> Device:
    handle = ctypes.c_void_p()
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    name, uuid = ctypes.create_string_buffer(_NAME_BYTES), ctypes.create_string_buffer(_NAME_BYTES)
    minor, memory = ctypes.c_uint(), _Memory()
    _call(nvml, "nvmlDeviceGetName", handle, name, ctypes.c_uint(_NAME_BYTES))
    _call(nvml, "nvmlDeviceGetUUID", handle, uuid, ctypes.c_uint(_NAME_BYTES))
    _call(nvml, "nvmlDeviceGetMinorNumber", handle, ctypes.byref(minor))
    _call(nvml, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    return Device(name.value.decode(), uuid.value.decode(), minor.value, memory.total // _MiB)


def _call(nvml: ctypes.CDLL, name: str, *arguments: Any) -> None:
    try:
        status = getattr(nvml, name)(*arguments)
    except AttributeError:
        raise NvmlError(f"it has no {name}: the driver is too old") from None
    if status != 0:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        raise NvmlError(f"{name}: {(nvml.nvmlErrorString(status) or b'').decode()} ({status})")

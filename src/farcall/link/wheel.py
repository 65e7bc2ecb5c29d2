"""This farcall as a wheel, to be installed on another machine: whatever way it was installed here."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from farcall.errors import InvalidError
from farcall.interpreters import private
from farcall.version import __version__

NAME = f"farcall-{__version__}-py3-none-any.whl"
_TIME = (1980, 1, 1, 0, 0, 0)


def key() -> str:
    """Names this farcall: two installations with the same key are the same files. Raises InvalidError as `build`."""
    found = _distribution()
    record = found.read_text("RECORD") or ""
    # An editable installation records no file of the package.
    which = record if "farcall/errors.py" in record else private.source()
    return f"{__version__}-{hashlib.sha256(which.encode()).hexdigest()[:12]}"


def build() -> bytes:
    """The wheel. Raises InvalidError where farcall is not installed as a distribution, so that nothing says what it
    depends on."""
    found = _distribution()
    metadata = found.read_text("METADATA") or ""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    files: dict[str, bytes] = {}
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                files[os.path.join("farcall", os.path.relpath(path, package))] = file.read()
    info = f"farcall-{__version__}.dist-info"
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: farcall\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = (found.read_text("entry_points.txt") or "").encode()
    record = "".join(f"{name},sha256={_hash(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return out.getvalue()


def _distribution() -> Distribution:
    try:
        return distribution("farcall")
    except PackageNotFoundError:
        raise InvalidError(
            "this farcall is not installed but found by other means, so it cannot be installed on another machine: "
            "install it here (pip install), or there under the same version"
        ) from None


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

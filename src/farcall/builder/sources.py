"""Where this machine gets packages from: what build steps use, too.

A machine that reaches the internet by way of a mirror, a proxy or its own certificates says so to pip, uv and apt in
their configuration. The steps of an image install from the same places, although their container does not see
these files. None of it is part of an image's identity.
"""

from __future__ import annotations

import configparser
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from farcall.spec.container import Bind

BUNDLE = "/run/farcall/certificates.pem"  # in the container of a step

# Files in which systems keep the certificates they trust, as one.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# What programs read to find them.
_BUNDLE_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
)
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "ftp_proxy", "all_proxy")
# pip's options by the variable of uv that means the same; several values are joined by a blank.
_PIP_OPTIONS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "no-index": "UV_NO_INDEX",
}
_LISTS = {"UV_FIND_LINKS": ","}  # how uv separates several values; a blank elsewhere


class PackageSources(NamedTuple):
    """What steps are given: environment variables, and folders and files of this machine, read-only.

    `env` and `binds` (proxies, certificates) are for every step; `python_env` and `python_binds` have in addition where
    Python packages come from.
    """

    env: dict[str, str]
    binds: tuple[Bind, ...]
    python_env: dict[str, str]
    python_binds: tuple[Bind, ...]


def package_sources(environ: Mapping[str, str]) -> PackageSources:
    """As this machine's configuration and `environ` say now."""
    env = {name: environ[name] for lower in _PROXY_VARIABLES for name in (lower, lower.upper()) if environ.get(name)}
    binds: list[Bind] = []
    bundle = certificates(environ)
    if bundle is not None:
        binds.append(Bind(bundle, BUNDLE))
        env |= dict.fromkeys(_BUNDLE_VARIABLES, BUNDLE)
    python = _python_sources(environ)
    local = [Bind(path, path) for path in _local_places(python)]
    return PackageSources(env, tuple(binds), env | python, (*binds, *local))


def certificates(environ: Mapping[str, str]) -> str | None:
    """The file with all certificates this machine trusts."""
    for path in (environ.get("SSL_CERT_FILE", ""), *_BUNDLES):
        if path and os.path.isfile(path):
            return os.path.realpath(path)
    return None


def _python_sources(environ: Mapping[str, str]) -> dict[str, str]:
    """uv's variables: its own where they are set, else what pip's configuration says."""
    found: dict[str, list[str]] = {}
    for option, variable in _PIP_OPTIONS.items():
        values = _pip_option(option, environ)
        if values:
            found[variable] = values
    env = {variable: _LISTS.get(variable, " ").join(values) for variable, values in found.items()}
    if "UV_NO_INDEX" in env and env["UV_NO_INDEX"].lower() in ("0", "false", "no", "off"):
        del env["UV_NO_INDEX"]
    if "UV_INDEX" in env:
        # pip takes the best version of all indexes; uv would stop at the first index that has the package.
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    kept = ("UV_CACHE_DIR", "UV_PYTHON", "UV_PROJECT", "UV_TOOL", "UV_CONFIG_FILE", "UV_PYTHON_INSTALL_DIR")
    env |= {name: value for name, value in environ.items() if name.startswith("UV_") and not name.startswith(kept)}
    return env


def _pip_option(option: str, environ: Mapping[str, str]) -> list[str]:
    """The values of a pip option: those of the environment, else of the configuration file that is read last."""
    value = environ.get("PIP_" + option.upper().replace("-", "_"))
    if value:
        return shlex.split(value)
    values: list[str] = []
    for file in _pip_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue  # pip itself would say what is wrong with it
        for section in ("global", "install"):
            if parser.has_option(section, option):
                values = parser.get(section, option).split()
    return values


def _pip_files(environ: Mapping[str, str]) -> Iterable[Path]:
    """pip's configuration files, in the order in which it reads them."""
    if environ.get("PIP_CONFIG_FILE") == os.devnull:
        return
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    for folder in reversed((environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")):
        yield Path(folder, "pip", "pip.conf")
    yield Path("/etc/pip.conf")
    yield home / ".pip" / "pip.conf"
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    if environ.get("PIP_CONFIG_FILE"):
        yield Path(environ["PIP_CONFIG_FILE"])


def _local_places(env: Mapping[str, str]) -> list[str]:
    """The folders and files of this machine that the variables name."""
    places: list[str] = []
    for variable in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_CONSTRAINT"):
        for value in env.get(variable, "").replace(",", " ").split():
            path = unquote(urlsplit(value).path) if value.startswith("file://") else value
            # The folder above "simple" holds the files that an index on disk links to.
            if path.rstrip("/").endswith("/simple"):
                path = os.path.dirname(path.rstrip("/"))
            if os.path.isabs(path) and os.path.exists(path):
                places.append(os.path.realpath(path) if os.path.islink(path) else path.rstrip("/"))
    return list(dict.fromkeys(places))

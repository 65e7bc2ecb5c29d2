"""Who a registry is told we are: a Secret's values, else what `docker login` or `podman login` has left."""

import base64
import binascii
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import which
from typing import NamedTuple

import msgspec

from farcall.builder.oci.reference import DOCKER_IO
from farcall.errors import InvalidError

_HELPER_SECONDS = 30.0
_TOKEN_USER = "<token>"  # a credential helper's word for: the secret is an identity token, not a password
_DOCKER_IO_NAMES = (DOCKER_IO, "index.docker.io", "registry-1.docker.io")
_DOCKER_IO_SERVER = "https://index.docker.io/v1/"  # docker.io's name among docker's credentials


class Credentials(NamedTuple):
    """A user and a password, or a token of one kind or the other; all empty: anonymous. `origin` says where they are
    from, or why there are none; it is the only part that may be shown."""

    origin: str
    username: str = ""
    password: str = ""
    identity_token: str = ""  # to be exchanged for tokens of the registry
    registry_token: str = ""  # to be sent as it is

    def __repr__(self) -> str:
        return f"Credentials({self.origin!r})"

    @property
    def are_none(self) -> bool:
        return not (self.username or self.password or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        """The header `Authorization` that carries user and password."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


def from_secret(values: Mapping[str, str], registry: str) -> Credentials:
    """What a Secret gives for `registry`: REGISTRY_USERNAME and REGISTRY_PASSWORD, or Google's SERVICE_ACCOUNT_JSON.

    (The keys of an AWS account are exchanged first: `farcall.builder.oci.aws`.) Raises InvalidError that names what it
    has, never the values.
    """
    if "REGISTRY_USERNAME" in values and "REGISTRY_PASSWORD" in values:
        return Credentials("the secret's REGISTRY_USERNAME", values["REGISTRY_USERNAME"], values["REGISTRY_PASSWORD"])
    if "SERVICE_ACCOUNT_JSON" in values:
        return Credentials("the secret's SERVICE_ACCOUNT_JSON", "_json_key", values["SERVICE_ACCOUNT_JSON"])
    raise InvalidError(
        f"the secret for {registry} has {', '.join(sorted(values)) or 'no variables'}. It must have REGISTRY_USERNAME "
        "and REGISTRY_PASSWORD; for Amazon's ECR AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for Google's Artifact "
        "Registry SERVICE_ACCOUNT_JSON"
    )


def of_user(registry: str, repository: str, environ: Mapping[str, str] | None = None) -> Credentials:
    """What the user is logged in with at `registry`, from the files of podman, then docker; none if nothing is there.

    The most specific entry counts ("host/owner" before "host"). A file or a credential helper that does not work is
    passed over, and named in `origin`, for when the registry refuses.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    for file in _files(environ):
        try:
            found = _from_file(file, registry, repository, environ)
        except _UnusableError as error:
            problems.append(str(error))
            continue
        if found is not None:
            return found
    return Credentials("; ".join(["no credentials", *problems]))


class _UnusableError(Exception):
    """A file or a helper that should have credentials, and does not work."""


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(msgspec.Struct, rename="camel"):
    auths: dict[str, _Auth | None] | None = None
    cred_helpers: dict[str, str] | None = None
    creds_store: str = ""


class _Helped(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where credentials may be, in the order of containers-auth.json(5), docker's last."""
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    if environ.get("REGISTRY_AUTH_FILE"):
        yield Path(environ["REGISTRY_AUTH_FILE"])
    if environ.get("XDG_RUNTIME_DIR"):
        yield Path(environ["XDG_RUNTIME_DIR"], "containers", "auth.json")
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config", "containers", "auth.json")
    yield Path(environ.get("DOCKER_CONFIG") or home / ".docker", "config.json")


def _from_file(file: Path, registry: str, repository: str, environ: Mapping[str, str]) -> Credentials | None:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_File)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _UnusableError(f"{file} cannot be read: {error}") from error
    names = _DOCKER_IO_NAMES if registry == DOCKER_IO else (registry,)
    for name in names:
        helper = (found.cred_helpers or {}).get(name)
        if helper and (helped := _from_helper(helper, name, environ, file)) is not None:
            return helped
    auths = {_plain(key): auth for key, auth in (found.auths or {}).items()}
    for name in names:
        for key in _specific_first(name, repository):
            auth = auths.get(key)
            if auth is not None and (credentials := _from_auth(auth, file)) is not None:
                return credentials
    if found.creds_store:
        server = _DOCKER_IO_SERVER if registry == DOCKER_IO else registry
        return _from_helper(found.creds_store, server, environ, file)
    return None


def _from_auth(auth: _Auth, file: Path) -> Credentials | None:
    username, password = auth.username, auth.password
    if auth.auth:
        try:
            username, _, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise _UnusableError(f"{file} has an entry whose auth is not base64 of user:password") from None
        password = password.rstrip("\0")
    made = Credentials(
        f"those of {username or 'a token'} in {file}", username, password, auth.identitytoken, auth.registrytoken
    )
    return None if made.are_none else made


def _from_helper(helper: str, server: str, environ: Mapping[str, str], file: Path) -> Credentials | None:
    """What the program docker-credential-`helper` has for `server`; None if nothing."""
    program = f"docker-credential-{helper}"
    found = which(program, path=environ.get("PATH"))
    if found is None:
        raise _UnusableError(f"{file} names the credential helper {program}, which is not installed")
    try:
        done = subprocess.run(
            [found, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            env=dict(environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _UnusableError(f"{program} gave no answer for {_HELPER_SECONDS:.0f} s") from None
    except OSError as error:
        raise _UnusableError(f"{program} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace")
        if "credentials not found" in said:
            return None
        raise _UnusableError(f"{program} failed with status {done.returncode}: {said[-200:] or 'no output'}")
    try:
        helped = msgspec.json.decode(done.stdout, type=_Helped)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _UnusableError(f"{program} answered something that is no JSON of a user and a secret") from None
    if helped.username == _TOKEN_USER:
        return Credentials(f"the identity token of {program}", identity_token=helped.secret)
    return Credentials(f"those of {helped.username} by {program}", helped.username, helped.secret)


def _plain(key: str) -> str:
    """An entry's name without what docker puts around some: "https://index.docker.io/v1/" is "index.docker.io"."""
    key = key.partition("://")[2] or key
    for version in ("/v1/", "/v2/", "/v1", "/v2"):
        key = key.removesuffix(version)
    return key.rstrip("/")


def _specific_first(registry: str, repository: str) -> Iterator[str]:
    name = f"{registry}/{repository}"
    while name:
        yield name
        name = name.rpartition("/")[0]

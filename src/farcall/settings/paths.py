"""The directories farcall uses, after the XDG base directory specification."""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from farcall.errors import InvalidError

MAX_SOCKET_PATH = 107  # bytes: sockaddr_un.sun_path is 108 with its terminating zero
_SOCKET_NAME = "server.sock"  # no socket's name is longer
LINK_PREFIX = "l-"  # of the sockets of links
CUT_SUFFIX = ".cut"  # of a file beside a link's socket, while it has no connection


class Paths:
    """The directories of one user's farcall. Each is made on first use, readable by this user only (0700).

    `state` is what must survive a restart, `runtime` holds sockets, `data` what farcall built and can build again at a
    cost, `cache` what may be deleted at any time, `config` the user's own files (it is never made by us).
    """

    def __init__(
        self, state: Path, runtime: Path, data: Path, cache: Path, config: Path, *, is_short: bool = False
    ) -> None:
        """`is_short` says that `runtime` is in /tmp, which is everybody's."""
        self._state, self._runtime, self._data, self._cache = state, runtime, data, cache
        self._is_short = is_short
        self.config = config

    def __repr__(self) -> str:
        return f"Paths(state={self._state}, runtime={self._runtime}, data={self._data}, cache={self._cache})"

    @property
    def state(self) -> Path:
        return _usable(self._state)

    @property
    def made_state(self) -> Path | None:
        """`state`, where it has been made and this user may look into it: looking makes nothing."""
        return self._state if os.access(self._state, os.R_OK | os.X_OK) else None

    @property
    def runtime(self) -> Path:
        return _own(self._runtime, self._state) if self._is_short else _usable(self._runtime)

    def leave_runtime(self) -> None:
        """The server ends. A directory in /tmp goes with it, unless something else is in it: whoever needs it makes it
        anew. To be called while no other server of this state directory can begin."""
        if self._is_short:
            with suppress(OSError):
                self._runtime.rmdir()

    @property
    def data(self) -> Path:
        return private_directory(self._data)

    @property
    def content(self) -> Path:
        """The content store: images, source, volumes. One for each workspace; embedded there is one, "local"."""
        return self.data / "content" / "local"

    @property
    def cache(self) -> Path:
        return private_directory(self._cache)

    @property
    def server_socket(self) -> Path:
        """The server's Unix socket. Its length is at most `MAX_SOCKET_PATH` bytes."""
        return self.runtime / _SOCKET_NAME

    @property
    def server_log(self) -> Path:
        return self.state / "server.log"

    def link_socket(self, name: str) -> Path:
        """The Unix socket of the link of that name, to a server on another machine."""
        from hashlib import sha256

        return self.runtime / f"{LINK_PREFIX}{sha256(name.encode()).hexdigest()[:8]}"

    @property
    def link_log(self) -> Path:
        return self.state / "link.log"

    @property
    def launcher_state(self) -> Path:
        """The launcher's journal, sockets and containers' areas."""
        return private_directory(self.state / "launcher")

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"


class UnusableDirectoryError(InvalidError):
    """A directory of farcall's own is missing and cannot be made."""


def private_directory(path: Path) -> Path:
    """Make `path` with mode 0700 where it is missing, and return it. Raises `UnusableDirectoryError`."""
    if os.path.isdir(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UnusableDirectoryError(
            f"farcall cannot make its directory {path}: {error.strerror}. "
            "Set FARCALL_STATE_DIR (or XDG_STATE_HOME, XDG_DATA_HOME, XDG_CACHE_HOME) to a directory you may write to."
        ) from error
    return path


def _usable(path: Path) -> Path:
    """`private_directory`, and the user may write to it."""
    private_directory(path)
    if os.access(path, os.W_OK | os.X_OK):
        return path
    owner = os.stat(path).st_uid
    reason = f"it belongs to uid {owner}" if owner != os.getuid() else "its mode or its file system forbids it"
    raise InvalidError(
        f"uid {os.getuid()} may not use farcall's directory {path}: {reason}. Set FARCALL_STATE_DIR to a directory of "
        "your own, or unset it"
    )


def paths(environ: Mapping[str, str] | None = None) -> Paths:
    """The directories that hold under `environ` (this process's environment when None).

    `FARCALL_STATE_DIR` moves state *and* sockets, so that two state directories never share a server; data and cache,
    which any number of servers may share, follow `XDG_DATA_HOME` and `XDG_CACHE_HOME`. A user without a home directory
    has them, too, inside the state directory. Raises `InvalidError` where nothing says where that is.
    """
    environ = os.environ if environ is None else environ
    home = _home(environ)

    def base(variable: str, default: str, fallback: Path | None) -> Path:
        value = environ.get(variable, "")
        if os.path.isabs(value):  # a relative XDG path is invalid by the specification, and to be ignored
            return Path(value) / "farcall"
        if home is not None:
            return Path(home, default) / "farcall"
        if fallback is not None:
            return fallback
        raise InvalidError(
            f"HOME is not set and uid {os.getuid()} has no home directory: set HOME or FARCALL_STATE_DIR"
        )

    chosen = environ.get("FARCALL_STATE_DIR", "")
    if chosen == "~" or chosen.startswith("~/"):
        chosen = home + chosen[1:] if home is not None else ""
    state = (
        Path(os.path.abspath(os.path.expanduser(chosen))) if chosen else base("XDG_STATE_HOME", ".local/state", None)
    )
    runtime = None if chosen else _session_directory(environ)
    runtime = runtime or state
    is_short = len(os.fsencode(runtime / _SOCKET_NAME)) > MAX_SOCKET_PATH
    if is_short:
        runtime = _short_directory(state)
    return Paths(
        is_short=is_short,
        state=state,
        runtime=runtime,
        data=base("XDG_DATA_HOME", ".local/share", state / "data"),
        cache=base("XDG_CACHE_HOME", ".cache", state / "cache"),
        config=base("XDG_CONFIG_HOME", ".config", state / "config"),
    )


def _home(environ: Mapping[str, str]) -> str | None:
    """This user's home directory, None where neither `HOME` nor the password database names one."""
    value = environ.get("HOME", "")
    if os.path.isabs(value):
        return value
    import pwd

    try:
        entry = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return entry if os.path.isabs(entry) else None


def _session_directory(environ: Mapping[str, str]) -> Path | None:
    """`$XDG_RUNTIME_DIR/farcall`, unless the variable was inherited from another user (sudo -E, su) or is stale."""
    value = environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(value):
        return None
    try:
        found = os.stat(value)
    except OSError:
        return None
    return Path(value) / "farcall" if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() else None


def _short_directory(state: Path) -> Path:
    """A directory with a short name that belongs to this state directory, for a socket whose own path is too long."""
    from hashlib import sha256

    digest = sha256(os.fsencode(state)).hexdigest()[:12]
    return _own(Path("/tmp") / f"farcall-{os.getuid()}-{digest}", state)


def _own(directory: Path, state: Path) -> Path:
    """`private_directory` in /tmp, which is everybody's: a directory that another user made first, or a link, is not
    ours to put a socket into."""
    private_directory(directory)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InvalidError(
            f"{directory} is not a private directory of yours, and the path of the state directory {state} is too "
            f"long for a socket (at most {MAX_SOCKET_PATH} bytes). Set FARCALL_STATE_DIR to a shorter path."
        )
    return directory

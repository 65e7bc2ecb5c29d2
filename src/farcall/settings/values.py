"""What the user has set, and where: flag > environment > `[tool.farcall]` > named profile > default."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from farcall.errors import InvalidError
from farcall.settings import amounts
from farcall.settings.files import Table, project_table, read_toml
from farcall.settings.paths import paths


class Setting(NamedTuple):
    """One thing that can be set. `kind` is `bool`, `str`, or the tuple of the words that are allowed; `reads`, for
    amounts, is what makes a number of it. One that is `of_server` holds for a server from its start on."""

    name: str
    kind: type[bool] | type[str] | tuple[str, ...]
    default: bool | str | None
    help: str
    reads: Callable[[str], float] | None = None
    of_server: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "FARCALL_" + self.name.upper()


SETTINGS = (
    Setting("profile", str, None, "the profile of the config file to use"),
    Setting("server", str, None, "where the server is: ssh://user@host; by default on this machine"),
    Setting("ssh", str, "ssh", "the ssh command that reaches a server elsewhere, with its options"),
    Setting("python", str, None, "the interpreter that runs scripts: a path, a venv's folder, or a version"),
    Setting(
        "runtime", ("native", "process"), "native", "what isolates containers; process: a plain child, not isolated"
    ),
    Setting("compat", bool, True, "whether `import modal` is farcall in scripts"),
    Setting("local", bool, False, "whether functions run in the script's own process"),
    Setting("quiet", bool, False, "whether only the program's own output and errors are shown"),
    Setting("traceback", ("short", "full"), "short", "whether tracebacks show farcall's own frames"),
    Setting("registry", str, "docker.io", "what stands in for docker.io: a mirror or a cache, as host[:port][/path]"),
    Setting("insecure_registries", str, "", "registries that may be asked without TLS, with commas between"),
    Setting("object_store", str, "", "where built images are shared, as s3://bucket/prefix", of_server=True),
    Setting("object_store_endpoint", str, "", "where an S3-compatible store is: https://host:port", of_server=True),
    Setting("simulate_gpu", str, "", "GPUs that the server is to pretend to have, as T4=4,H100=8, to try placement"),
    Setting(
        "map_memory", str, "10%", "how large the inputs, and the results, of a map may be on their way", amounts.memory
    ),
    Setting(
        "queue_inputs", str, "100000", "how many inputs may be in the server's memory", amounts.count, of_server=True
    ),
    Setting("queue_memory", str, "25%", "how large they may be together", amounts.memory, of_server=True),
    Setting("app_queue_inputs", str, "80000", "how many of them may be of one app", amounts.count, of_server=True),
    Setting("app_queue_memory", str, "20%", "how large those of one app may be", amounts.memory, of_server=True),
    Setting("listen", str, "", "where the server listens for workers on other machines, as HOST:PORT", of_server=True),
    Setting("own_worker", bool, True, "whether the server runs containers on its own machine, too", of_server=True),
    Setting(
        "worker_lease", str, "10s", "how long a worker may be silent before it is lost", amounts.seconds, of_server=True
    ),
    Setting("peer_listen", str, "", "where a worker listens for other workers, as HOST:PORT, or off"),
    Setting("results_kept", str, "7d", "how long results of spawned calls are kept", amounts.seconds, of_server=True),
    Setting("results_size", str, "10GiB", "how large all kept results may be together", amounts.size, of_server=True),
)

# Variables that are no settings: they say where the settings and all else are, or, in a container, whose it is.
_OTHER_VARIABLES = frozenset(
    {
        "FARCALL_STATE_DIR",
        "FARCALL_CONTAINER_ID",
        "FARCALL_APP_ID",
        "FARCALL_SERVER_FLAGS",
        "FARCALL_SERVER_ID",
        "FARCALL_WORKER_TOKEN",
    }
)


class Value(NamedTuple):
    """A setting's value and where it comes from: "flag --quiet", "environment FARCALL_QUIET", a file's path."""

    value: bool | str | None
    origin: str


class Settings:
    """All settings, resolved. `warnings` has a line for each unknown name that was set somewhere."""

    def __init__(self, values: dict[str, Value], warnings: list[str], profiles: list[str]) -> None:
        self.values = values
        self.warnings = warnings
        self.profiles = profiles

    @property
    def profile(self) -> str | None:
        return cast("str | None", self.values["profile"].value)

    @property
    def server(self) -> str | None:
        return cast("str | None", self.values["server"].value) or None

    @property
    def ssh(self) -> str:
        return cast(str, self.values["ssh"].value)

    @property
    def python(self) -> str | None:
        return cast("str | None", self.values["python"].value)

    @property
    def runtime(self) -> Literal["native", "process"]:
        return cast("Literal['native', 'process']", self.values["runtime"].value)

    @property
    def compat(self) -> bool:
        return bool(self.values["compat"].value)

    @property
    def local(self) -> bool:
        return bool(self.values["local"].value)

    @property
    def quiet(self) -> bool:
        return bool(self.values["quiet"].value)

    @property
    def traceback(self) -> Literal["short", "full"]:
        return cast("Literal['short', 'full']", self.values["traceback"].value)

    @property
    def registry(self) -> str:
        return cast(str, self.values["registry"].value)

    @property
    def insecure_registries(self) -> tuple[str, ...]:
        words = cast(str, self.values["insecure_registries"].value).split(",")
        return tuple(word.strip() for word in words if word.strip())

    @property
    def simulate_gpu(self) -> str:
        return cast(str, self.values["simulate_gpu"].value)

    @property
    def object_store(self) -> str:
        return cast(str, self.values["object_store"].value)

    @property
    def object_store_endpoint(self) -> str:
        return cast(str, self.values["object_store_endpoint"].value)

    @property
    def map_memory(self) -> int:
        """Bytes."""
        return amounts.memory(cast(str, self.values["map_memory"].value))

    @property
    def queue_inputs(self) -> int:
        return amounts.count(cast(str, self.values["queue_inputs"].value))

    @property
    def queue_memory(self) -> int:
        """Bytes."""
        return amounts.memory(cast(str, self.values["queue_memory"].value))

    @property
    def app_queue_inputs(self) -> int:
        return amounts.count(cast(str, self.values["app_queue_inputs"].value))

    @property
    def app_queue_memory(self) -> int:
        """Bytes."""
        return amounts.memory(cast(str, self.values["app_queue_memory"].value))

    @property
    def listen(self) -> str:
        return cast(str, self.values["listen"].value)

    @property
    def own_worker(self) -> bool:
        return bool(self.values["own_worker"].value)

    @property
    def worker_lease(self) -> float:
        """Seconds."""
        return amounts.seconds(cast(str, self.values["worker_lease"].value))

    @property
    def peer_listen(self) -> str:
        return cast(str, self.values["peer_listen"].value)

    @property
    def results_kept(self) -> float:
        """Seconds."""
        return amounts.seconds(cast(str, self.values["results_kept"].value))

    @property
    def results_size(self) -> int:
        """Bytes."""
        return amounts.size(cast(str, self.values["results_size"].value))

    def of_server(self) -> dict[str, str]:
        """The environment variables by which a server that is started has what was set for it."""
        return {
            setting.variable: str(self.values[setting.name].value)
            for setting in SETTINGS
            if setting.of_server and self.values[setting.name].origin != "default"
        }

    def shown_of_server(self) -> dict[str, str]:
        """All that can be set for a server, by name, as text."""
        return {one.name: str(self.values[one.name].value) for one in SETTINGS if one.of_server}


def load(
    flags: Mapping[str, bool | str | None] | None = None,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    wrong: dict[str, str] | None = None,
) -> Settings:
    """Resolve all settings.

    `flags` are those of the command line, None where not given; `folder` is where the search for pyproject.toml begins,
    upward (default: the current one). Raises `InvalidError`, naming the place, for a value of the wrong kind, a profile
    that does not exist and a file that is not TOML. Into `wrong`, where it is given, go what the first two would have
    raised, by the setting's name; such a setting then has its default.
    """
    environ = os.environ if environ is None else environ
    flags = flags or {}
    warnings: list[str] = []
    project, project_file = project_table(folder or Path.cwd()) or ({}, None)
    config_file = paths(environ).config_file
    config = read_toml(config_file)
    _warn_unknown_variables(environ, warnings)
    _warn_unknown_keys(project, f"[tool.farcall] of {project_file}", warnings)
    _warn_unknown(config, {"profiles"}, str(config_file), warnings)

    values: dict[str, Value] = {}
    table: Table = {}
    place = ""

    def valued(setting: Setting, value: object, place: str, origin: str) -> Value:
        try:
            return Value(_checked(setting, value, place), origin)
        except InvalidError as error:
            if wrong is None:
                raise
            wrong[setting.name] = str(error)
            return Value(setting.default, "default")

    for setting in SETTINGS:  # the profile first: it decides where the others are looked for
        name = setting.name
        flag = flags.get(name)
        if flag is not None:
            origin = f"flag --{'no-' if flag is False else ''}{name.replace('_', '-')}"
            values[name] = valued(setting, flag, origin, origin)
        elif environ.get(setting.variable):
            origin = f"environment {setting.variable}"
            values[name] = valued(setting, _parsed(setting, environ[setting.variable]), origin, origin)
        elif name in project:
            values[name] = valued(setting, project[name], f"[tool.farcall] of {project_file}", str(project_file))
        elif name in table:
            values[name] = valued(setting, table[name], place, place)
        else:
            values[name] = Value(setting.default, "default")
        if name == "profile" and values[name].value is not None:
            chosen = str(values[name].value)
            try:
                table = _profile(config, chosen, config_file, values[name].origin)
            except InvalidError as error:
                if wrong is None:
                    raise
                wrong[name] = str(error)
            place = f"[profiles.{chosen}] of {config_file}"
            _warn_unknown_keys(table, place, warnings)
    return Settings(values, warnings, sorted(_profiles(config)))


def _profiles(config: Table) -> dict[str, Any]:
    profiles = config.get("profiles", {})
    return cast("dict[str, Any]", profiles) if isinstance(profiles, dict) else {}


def _profile(config: Table, name: str, file: Path, origin: str) -> Table:
    found = _profiles(config).get(name)
    if not isinstance(found, dict):
        known = ", ".join(sorted(_profiles(config))) or "none"
        raise InvalidError(
            f"there is no profile {name!r} ({origin}) in {file}; profiles there: {known}. "
            f"`farcall profile add {name} ssh://user@host` makes it one of a server elsewhere."
        )
    return cast(Table, found)


def _parsed(setting: Setting, text: str) -> bool | str:
    if setting.kind is bool:
        word = text.strip().lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
    return text


def _checked(setting: Setting, value: object, origin: str) -> bool | str:
    if setting.kind is bool:
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif isinstance(setting.kind, tuple):
        if isinstance(value, str) and value in setting.kind:
            return value
        wanted = " or ".join(setting.kind)
    elif setting.reads is not None:
        try:
            setting.reads(str(value))
            return str(value)
        except ValueError as error:
            wanted = str(error)
    else:
        if isinstance(value, str) and value:
            return value
        wanted = "a string" if value != "" else "a string with something in it"
    raise InvalidError(f"{setting.name} must be {wanted}, not {value!r} ({origin})")


def _warn_unknown_keys(table: Table, place: str, warnings: list[str]) -> None:
    _warn_unknown(table, {setting.name for setting in SETTINGS}, place, warnings)


def _warn_unknown(table: Table, known: set[str], place: str, warnings: list[str]) -> None:
    for name in table:
        if name not in known:
            from difflib import get_close_matches

            nearest = get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(sorted(known))}"
            warnings.append(f"unknown setting {name!r} in {place}: {hint}")


def _warn_unknown_variables(environ: Mapping[str, str], warnings: list[str]) -> None:
    known = {setting.variable for setting in SETTINGS} | _OTHER_VARIABLES
    for name in environ:
        if name.startswith("FARCALL_") and name not in known:
            from difflib import get_close_matches

            # Only where a slip is likely: a program may have variables of its own that begin like ours.
            nearest = get_close_matches(name, sorted(known), 1, cutoff=0.8)
            if nearest:
                warnings.append(f"unknown environment variable {name}: did you mean {nearest[0]}?")

"""What an image is made of, as values: a base, and steps on it.

The program describes, the server builds. A step is cached by `identity(step)`, by the file system and the configuration
before it, and by the content of what it copies; nothing of that depends on where files lay on the program's machine.

Values of secrets are never part of a description. A step's `secrets` name the variables it sees and, for each, a
handle; the values travel beside the description, by handle, and enter no key, record or log.
"""

import posixpath
import string
from typing import Literal

import msgspec

from farcall.errors import InvalidError
from farcall.spec.expansion import expand
from farcall.spec.function import FunctionSpec, Source


class _Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """Equal parts have one encoding.

    msgspec leaves out a field where it has the very object that is the default, which an equal tuple is not.
    """

    def __post_init__(self) -> None:
        fields, defaults = self.__struct_fields__, self.__struct_defaults__
        for field, default in zip(fields[len(fields) - len(defaults) :], defaults, strict=True):
            if getattr(self, field) == default:
                msgspec.structs.force_setattr(self, field, default)


class ImageConfig(_Part, frozen=True, omit_defaults=True):
    """What an image says about the processes that run in it. The fields are those of an OCI image's configuration."""

    env: dict[str, str] = {}
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    user: str = ""  # name or id[:group]; "" is root
    labels: dict[str, str] = {}
    args: dict[str, str] = {}  # ARG of a Dockerfile: seen by its remaining steps only, never part of a finished image


# --- bases


class DebianBase(_Part, frozen=True, omit_defaults=True, tag="debian"):
    """Debian slim with the Python `python` ("3.12" or "3.12.4"), pip and uv."""

    python: str
    force: bool = False


class RegistryBase(_Part, frozen=True, omit_defaults=True, tag="registry"):
    """An image of an OCI registry. `add_python` is the version of a Python to add to it, "" for none. `credentials` are
    the variables of a secret that opens the registry (REGISTRY_USERNAME and REGISTRY_PASSWORD, or those of a cloud),
    and, for each, a handle."""

    reference: str
    add_python: str = ""
    credentials: dict[str, str] = {}
    force: bool = False


class ScratchBase(_Part, frozen=True, omit_defaults=True, tag="scratch"):
    """Nothing."""

    add_python: str = ""
    force: bool = False


class BuiltBase(_Part, frozen=True, omit_defaults=True, tag="built"):
    """An image of this server, by its id ("im-...") or by the name it was published under ("name" or "name:tag")."""

    image: str


# --- steps


class RunMount(_Part, frozen=True, omit_defaults=True):
    """`RUN --mount`. A cache keeps its files between builds under `key`; a secret is a file that holds the value of
    handle `key`; a tmpfs is empty. None of them becomes part of the image."""

    kind: Literal["cache", "secret", "tmpfs"]
    target: str
    key: str = ""
    mode: int = 0  # permission bits; 0: 0755 for directories, 0400 for a secret


class Run(_Part, frozen=True, omit_defaults=True, tag="run"):
    """A command: a string is for the image's shell, a tuple is executed as it is."""

    command: str | tuple[str, ...]
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}  # variable to handle
    mounts: tuple[RunMount, ...] = ()
    force: bool = False


class Pip(_Part, frozen=True, omit_defaults=True, tag="pip"):
    """Python packages for the image's own Python. `requirements` and `constraints` are contents of such files, with
    nothing in them that refers to other files."""

    installer: Literal["pip", "uv"]
    packages: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    find_links: str = ""
    index_url: str = ""
    extra_index_url: str = ""
    pre: bool = False
    extra_options: str = ""  # for the command line, as a shell would split it
    uv_version: str = ""  # "": the one the server has
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    force: bool = False


class UvSync(_Part, frozen=True, omit_defaults=True, tag="uv_sync"):
    """`uv sync` of the project in `tree` (pyproject.toml, uv.lock where there is one) into `/.uv/.venv`, without the
    project itself and the members of its workspace."""

    tree: str
    groups: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    frozen: bool = True
    extra_options: str = ""
    uv_version: str = ""
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    force: bool = False


class Apt(_Part, frozen=True, omit_defaults=True, tag="apt"):
    """Debian packages, with what they depend on and not what they recommend."""

    packages: tuple[str, ...]
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    force: bool = False


class InlineFile(msgspec.Struct, frozen=True):
    """A file that a Dockerfile spells out. With `expand` its text refers to variables."""

    name: str
    text: str
    expand: bool = False


class Copy(_Part, frozen=True, omit_defaults=True, tag="copy"):
    """COPY and ADD of a Dockerfile, and local files that become part of the image.

    `sources` are patterns (`*`, `?`, `[...]`) in the tree `tree`, in the image `stage`, or in that of a registry or of
    this server, `image`; "." is all of it. A source that is a directory stands for what is in it. `target` is relative
    to the working directory; it is a directory where it ends in a slash, is one already, or where there are several
    sources. `files` are copied besides. With `parents` sources keep the folders they are in.
    """

    target: str
    sources: tuple[str, ...] = ()
    tree: str = ""
    stage: "ImageSpec | None" = None
    image: "RegistryBase | BuiltBase | None" = None
    files: tuple[InlineFile, ...] = ()
    owner: str = ""  # name or id[:group], looked up in the image; "": root for files of `tree`, else as they were
    mode: int | None = None  # permission bits of all that is copied; None: as they were
    unpack: bool = False  # ADD: sources that are tar archives (also gzip, bzip2, xz, zstd) are unpacked
    parents: bool = False
    expand: str = ""  # the escape character of a Dockerfile's words: sources, target and owner are such words
    force: bool = False


class Download(_Part, frozen=True, omit_defaults=True, tag="download"):
    """ADD of a URL (http, https). `target`, `owner`, `mode` and `expand` are those of `Copy`; mode None is 0600.
    `checksum` is "" or "sha256:<hex>"."""

    url: str
    target: str
    checksum: str = ""
    owner: str = ""
    mode: int | None = None
    expand: str = ""
    force: bool = False


class Configure(_Part, frozen=True, omit_defaults=True, tag="configure"):
    """A change of the configuration; `configured` makes it. It has no files and takes no time.

    `pairs` are for env, arg and label, `words` for the others; "end-args" forgets what `arg` has set. With `in_shell`
    the one word is a line for the image's shell. `expand` is the escape character where names and values are words of
    a Dockerfile, with quotes and variables in them, and "" where they are meant literally.
    """

    field: Literal["env", "arg", "label", "workdir", "user", "entrypoint", "cmd", "shell", "end-args"]
    words: tuple[str, ...] = ()
    pairs: dict[str, str] = {}
    in_shell: bool = False
    expand: str = ""


class Call(_Part, frozen=True, omit_defaults=True, tag="call"):
    """A Python function as a step: what it leaves in the file system is kept, what it returns is not.

    `function` is complete but for the image, with its source in `trees` or pickled; `input` is the pickled (args,
    kwargs) as a call sends them. `fingerprint` stands for the code, the values it refers to, and the arguments.
    """

    function: FunctionSpec
    input: bytes
    fingerprint: str
    secrets: dict[str, str] = {}
    force: bool = False


DEFAULT_TAG = "latest"  # of a name that an image is published under

Base = DebianBase | RegistryBase | ScratchBase | BuiltBase
Step = Run | Pip | UvSync | Apt | Copy | Download | Configure | Call


class ImageSpec(_Part, frozen=True, omit_defaults=True):
    """An image, as a base and the steps on it. A stage of a Dockerfile is one too."""

    base: Base
    steps: tuple[Step, ...] = ()


def encode(image: ImageSpec) -> bytes:
    """The description as it travels: the same bytes for what is equal."""
    return msgspec.msgpack.encode(image, order="sorted")


def identity(part: Base | Step) -> bytes:
    """What is to be hashed of a base or a step itself: everything that decides what it makes, and nothing else.

    Left out are `force`, handles of secrets (their names count, their values do not) and, of `Copy` and `UvSync`, where
    the files come from: the builder adds the content of those that are copied. A field that a later version adds
    changes no identity as long as it has its default.
    """
    changes: dict[str, object] = {}
    if hasattr(part, "force"):
        changes["force"] = False
    if isinstance(part, RegistryBase):
        changes["credentials"] = {}
    if isinstance(part, Run | Pip | UvSync | Apt | Call):
        changes["secrets"] = dict.fromkeys(part.secrets, "")
    if isinstance(part, Run):
        changes["mounts"] = tuple(
            msgspec.structs.replace(mount, key="") if mount.kind == "secret" else mount for mount in part.mounts
        )
    if isinstance(part, Copy):
        changes |= {"tree": "", "stage": None, "image": None}
    if isinstance(part, UvSync):
        changes["tree"] = ""
    if isinstance(part, Call):
        changes |= {"function": _ANY_FUNCTION, "input": b""}
    return msgspec.msgpack.encode(msgspec.structs.replace(part, **changes), order="sorted")


_ANY_FUNCTION = FunctionSpec(function_id="", name="", source=Source("", ""), methods=())


def configured(config: ImageConfig, step: Configure) -> ImageConfig:
    """The configuration after `step`. Raises InvalidError where a variable is used in a way that is none."""

    def word(text: str) -> str:
        return expand(text, config.args | config.env, step.expand) if step.expand else text

    pairs = {word(name): word(value) for name, value in step.pairs.items()}
    words = (*config.shell, *step.words) if step.in_shell else step.words
    match step.field:
        case "env":
            return msgspec.structs.replace(config, env=config.env | pairs)
        case "arg":
            return msgspec.structs.replace(config, args=config.args | pairs)
        case "end-args":
            return msgspec.structs.replace(config, args={})
        case "label":
            return msgspec.structs.replace(config, labels=config.labels | pairs)
        case "workdir":
            return msgspec.structs.replace(
                config, workdir=posixpath.normpath(posixpath.join(config.workdir, word(words[0])))
            )
        case "user":
            return msgspec.structs.replace(config, user=word(words[0]))
        case "entrypoint":
            return msgspec.structs.replace(config, entrypoint=words, cmd=())
        case "cmd":
            return msgspec.structs.replace(config, cmd=words)
        case "shell":
            return msgspec.structs.replace(config, shell=words)


def split_name(name: str) -> tuple[str, str]:
    """Name and tag of "name" or "name:tag". Raises InvalidError for what cannot be a name."""
    base, _, tag = name.partition(":")
    tag = tag or DEFAULT_TAG
    allowed = {*string.ascii_letters, *string.digits, *"._-/"}
    if not base or base.startswith("im-") or not set(base + tag) <= allowed or len(name) > 128:
        raise InvalidError(
            f"{name!r} cannot be an image's name: letters, digits, '.', '_', '-' and '/', at most 128, not beginning "
            'with "im-", and perhaps a tag after a colon'
        )
    return base, tag

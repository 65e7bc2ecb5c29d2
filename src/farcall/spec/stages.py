"""What a Dockerfile means: its instructions as an image's base and steps."""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from farcall.errors import InvalidError
from farcall.spec.dockerfile import Instruction, is_heredoc, parse
from farcall.spec.expansion import expand
from farcall.spec.image import (
    Base,
    Configure,
    Copy,
    Download,
    ImageSpec,
    InlineFile,
    RegistryBase,
    Run,
    RunMount,
    ScratchBase,
    Step,
)

# Arguments that need no ARG; they are for the commands of a build and no part of what it makes.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}

_OCTAL = re.compile(r"0?[0-7]{3,4}")
_URL = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"git@|git://|ssh://|https?://[^ ]+\.git(#.*)?$", re.IGNORECASE)


class Surroundings(NamedTuple):
    """What a Dockerfile is built with. `secrets` are handles by variable; `machine` is `os.uname().machine`."""

    build_args: Mapping[str, str] = {}
    env: Mapping[str, str] = {}
    secrets: Mapping[str, str] = {}
    machine: str = "x86_64"


class Dockerfile:
    """A parsed Dockerfile, or lines of one that go on from another image.

    Raises InvalidError for what is wrong in it, with line and text.
    """

    def __init__(self, text: str, *, place: str = "Dockerfile", continues: bool = False) -> None:
        self._place = place
        self._instructions = parse(text, place)
        if continues:
            for instruction in self._instructions:
                if instruction.name == "FROM":
                    raise instruction.error("there is no FROM here: these lines go on from the image they are added to")
        elif not any(instruction.name == "FROM" for instruction in self._instructions):
            raise InvalidError(f"{place} has no FROM: its first instruction names the image to begin with")

    def sources(self) -> tuple[str, ...] | None:
        """The patterns of COPY and ADD into the build context; None where variables in them leave that open."""
        found: list[str] = []
        for instruction in self._instructions:
            if instruction.name not in ("COPY", "ADD") or any(name == "from" for name, _ in instruction.flags):
                continue
            for word in _copied_words(instruction)[:-1]:
                if is_heredoc(word) or _URL.match(word):
                    continue
                if "$" in word:
                    return None
                found.append(_in_context(instruction, expand(word, {}, instruction.escape)))
        return tuple(dict.fromkeys(found))

    def image(
        self,
        around: Surroundings,
        *,
        context: Callable[[], str],
        onto: ImageSpec | None = None,
        base_of: Callable[[str], RegistryBase] = RegistryBase,
    ) -> ImageSpec:
        """The image that the last stage makes; with `onto` the lines are steps on that image.

        `context` gives the tree of the build context, and is called only where it is needed. `base_of` makes the
        base of a registry's reference.
        """
        return _Stages(self._instructions, around, context, base_of).build(onto)


class _Stages:
    """The stages of one Dockerfile while they are put together."""

    def __init__(
        self,
        instructions: Sequence[Instruction],
        around: Surroundings,
        context: Callable[[], str],
        base_of: Callable[[str], RegistryBase],
    ) -> None:
        self._instructions = instructions
        self._around = around
        self._context = context
        self._base_of = base_of
        self._unused = {name for name in around.build_args if name.upper() not in PROXIES}
        self._proxies = {name: value for name, value in around.build_args.items() if name.upper() in PROXIES}
        self._global = _platform(around.machine)
        self._declared: dict[str, str] = {}  # ARG before the first FROM
        self._stages: list[ImageSpec] = []
        self._names: dict[str, int] = {}
        self._base: Base = ScratchBase()
        self._steps: list[Step] = []
        self._has_args = False
        self._started = False

    def build(self, onto: ImageSpec | None) -> ImageSpec:
        if onto is not None:
            self._base, self._steps, self._started = onto.base, list(onto.steps), True
        for instruction in self._instructions:
            if instruction.name == "FROM":
                self._from(instruction)
            elif instruction.name == "ARG":
                self._arg(instruction)
            elif not self._started:
                raise instruction.error(f"{instruction.name} comes before the first FROM")
            else:
                self._step(instruction)
        if self._unused:
            raise InvalidError(
                f"build_args has {', '.join(sorted(self._unused))}, and no ARG of {self._instructions[0].place} "
                "declares it"
            )
        return self._finished()

    def _finished(self) -> ImageSpec:
        steps = (*self._steps, Configure("end-args")) if self._has_args else tuple(self._steps)
        return ImageSpec(self._base, steps)

    # --- instructions

    def _from(self, instruction: Instruction) -> None:
        if self._started:
            self._stages.append(self._finished())
        self._flags(instruction, {"platform": self._platform_flag})
        words = [self._word(instruction, word) for word in instruction.words()]
        if not (len(words) == 1 or (len(words) == 3 and words[1].lower() == "as")) or not words[0]:
            raise instruction.error("FROM is followed by an image, and perhaps by AS and a name")
        self._started, self._has_args, self._steps = True, False, []
        earlier = self._names.get(words[0].lower())
        if earlier is not None:
            self._base, self._steps = self._stages[earlier].base, list(self._stages[earlier].steps)
        elif words[0] == "scratch":
            self._base = ScratchBase()
        else:
            self._base = self._base_of(words[0])
        if len(words) == 3:
            name = words[2].lower()
            if not re.fullmatch(r"[a-z][a-z0-9_.-]*", name):
                raise instruction.error(
                    f"{words[2]!r} cannot name a stage: letters, digits, '_', '.' and '-', a letter first"
                )
            if name in self._names:
                raise instruction.error(f"there is a stage {name} already")
            self._names[name] = len(self._stages)

    def _platform_flag(self, instruction: Instruction, value: str) -> None:
        wanted = self._word(instruction, value)
        here = self._global["TARGETPLATFORM"]
        if wanted.split("/")[:2] != here.split("/"):
            raise instruction.error(f"--platform={wanted}: images are for {here}, the machine they run on")

    def _arg(self, instruction: Instruction) -> None:
        self._flags(instruction, {})
        for word in instruction.words():
            name, equals, default = word.partition("=")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise instruction.error(f"{name!r} cannot name an ARG")
            self._unused.discard(name)
            given = self._around.build_args.get(name)
            if not self._started:
                if given is not None:
                    self._declared[name] = given
                elif equals:
                    self._declared[name] = self._word(instruction, default)
                continue
            if given is None and not equals:
                given = (self._global | self._declared).get(name)
            if given is not None:
                self._add(Configure("arg", pairs={name: given}))
            elif equals:
                self._check(instruction, default)
                self._add(Configure("arg", pairs={name: default}, expand=instruction.escape))
            self._has_args = True

    def _step(self, instruction: Instruction) -> None:
        match instruction.name:
            case "RUN":
                self._add(self._run(instruction))
            case "COPY" | "ADD":
                for step in self._copy(instruction):
                    self._add(step)
            case "ENV" | "LABEL":
                self._flags(instruction, {})
                pairs = instruction.pairs()
                for word in (*pairs, *pairs.values()):
                    self._check(instruction, word)
                field: Literal["env", "label"] = "env" if instruction.name == "ENV" else "label"
                self._add(Configure(field, pairs=pairs, expand=instruction.escape))
            case "WORKDIR" | "USER":
                self._flags(instruction, {})
                self._check(instruction, instruction.text)
                setting: Literal["workdir", "user"] = "workdir" if instruction.name == "WORKDIR" else "user"
                self._add(Configure(setting, (instruction.text,), expand=instruction.escape))
            case "SHELL":
                self._flags(instruction, {})
                words = instruction.as_list()
                if not words:
                    raise instruction.error('SHELL needs a JSON list, as in SHELL ["/bin/bash", "-c"]')
                self._add(Configure("shell", words))
            case "CMD" | "ENTRYPOINT":
                self._flags(instruction, {})
                what: Literal["cmd", "entrypoint"] = "cmd" if instruction.name == "CMD" else "entrypoint"
                words = instruction.as_list()
                if words is not None or not instruction.text:
                    self._add(Configure(what, words or ()))
                else:
                    self._add(Configure(what, (instruction.text,), in_shell=True))
            case "MAINTAINER":
                self._add(Configure("label", pairs={"maintainer": instruction.text}))
            case _:  # EXPOSE, VOLUME, STOPSIGNAL, HEALTHCHECK: nothing here asks for what they say
                pass

    def _add(self, step: Step) -> None:
        self._steps.append(step)

    # --- RUN

    def _run(self, instruction: Instruction) -> Run:
        mounts: list[RunMount] = []

        def mount(at: Instruction, value: str) -> None:
            mounts.append(self._mount(at, value))

        def network(at: Instruction, value: str) -> None:
            if value != "default":
                raise at.error(f"--network={value} is not supported: steps have the network that containers have")

        self._flags(instruction, {"mount": mount, "network": network})
        words = instruction.as_list()
        command: str | tuple[str, ...] = instruction.text if words is None else words
        if instruction.heredocs:
            command = _with_heredocs(instruction)
        elif not command:
            raise instruction.error("RUN has no command")
        return Run(
            command,
            env=self._proxies | dict(self._around.env),
            secrets=dict(self._around.secrets),
            mounts=tuple(mounts),
        )

    def _mount(self, instruction: Instruction, value: str) -> RunMount:
        options: dict[str, str] = {}
        for part in value.split(","):
            name, _, text = part.partition("=")
            options[{"dst": "target", "destination": "target", "source": "from"}.get(name, name)] = text
        kind = options.get("type", "bind")
        if kind not in ("cache", "secret", "tmpfs"):
            hint = "; COPY what the command reads" if kind == "bind" else ""
            raise instruction.error(f"RUN --mount=type={kind} is not supported, only cache, secret and tmpfs are{hint}")
        if "from" in options or "env" in options:
            raise instruction.error(f"--mount=type={kind} has no {'source' if 'from' in options else 'env'} here")
        mode = options.get("mode", "0")
        if not re.fullmatch(r"[0-7]{1,4}", mode):
            raise instruction.error(f"mode={mode} is not octal")
        target = options.get("target", "")
        key = options.get("id", target)
        if kind == "secret":
            name = key or posixpath.basename(target)
            handle = self._around.secrets.get(name)
            if handle is None:
                raise instruction.error(
                    f"there is no secret {name!r}: give it as secrets=[Secret.from_dict({{{name!r}: ...}})]"
                )
            key, target = handle, target or f"/run/secrets/{name}"
        if not target.startswith("/"):
            raise instruction.error(f"--mount=type={kind} needs target=, an absolute path")
        return RunMount(kind, target, "" if kind == "tmpfs" else key, int(mode, 8))

    # --- COPY and ADD

    def _copy(self, instruction: Instruction) -> list[Step]:
        given: dict[str, str] = {}

        def note(name: str) -> Callable[[Instruction, str], None]:
            return lambda at, value: given.__setitem__(name, value)

        accepted = ["chown", "chmod", "link", *(["from", "parents"] if instruction.name == "COPY" else ["checksum"])]
        self._flags(instruction, {name: note(name) for name in accepted})
        *sources, target = _copied_words(instruction)
        for word in (*sources, target, given.get("chown", "")):
            if not is_heredoc(word):
                self._check(instruction, word)
        mode = self._mode(instruction, given.get("chmod"))
        owner = given.get("chown", "")
        files = tuple(InlineFile(one.name, one.text, one.expand) for one in instruction.heredocs)
        plain = [word for word in sources if not is_heredoc(word)]
        urls = [word for word in plain if instruction.name == "ADD" and _URL.match(word)]
        if any(_GIT.match(word) for word in plain if instruction.name == "ADD"):
            raise instruction.error("ADD of a git repository is not supported: write RUN git clone")
        if "checksum" in given and (len(urls) != 1 or not re.fullmatch(r"sha256:[0-9a-f]{64}", given["checksum"])):
            raise instruction.error("--checksum=sha256:<64 hexadecimal digits> is for one URL")
        escape = instruction.escape
        steps: list[Step] = [
            Download(url, target, given.get("checksum", ""), owner, mode, expand=escape) for url in urls
        ]
        local = tuple(word for word in plain if word not in urls)
        if not local and not files:
            return steps
        copy = Copy(
            target,
            local if "from" in given else tuple(_in_context(instruction, word) for word in local),
            files=files,
            owner=owner,
            mode=mode,
            unpack=instruction.name == "ADD",
            parents=given.get("parents", "false") == "true",
            expand=escape,
        )
        return [*steps, self._located(instruction, copy, given.get("from"))]

    def _located(self, instruction: Instruction, copy: Copy, where: str | None) -> Copy:
        """The step with where its files come from."""
        if where is None:
            return msgspec.structs.replace(copy, tree=self._context()) if copy.sources else copy
        where = self._word(instruction, where)
        number = int(where) if where.isdigit() else self._names.get(where.lower())
        if number is None:
            return msgspec.structs.replace(copy, image=self._base_of(where))
        if number >= len(self._stages):
            raise instruction.error(f"--from={where} is no earlier stage; there are {len(self._stages)} of them")
        return msgspec.structs.replace(copy, stage=self._stages[number])

    def _mode(self, instruction: Instruction, text: str | None) -> int | None:
        if text is None:
            return None
        if not _OCTAL.fullmatch(text):
            raise instruction.error(f"--chmod={text} is not an octal mode, such as 755")
        return int(text, 8)

    # --- what they share

    def _flags(self, instruction: Instruction, known: Mapping[str, Callable[[Instruction, str], None]]) -> None:
        for name, value in instruction.flags:
            if name not in known:
                there = f"it has {', '.join('--' + each for each in known)}" if known else "it has none"
                raise instruction.error(f"{instruction.name} --{name} is not supported; {there}")
            known[name](instruction, value)

    def _word(self, instruction: Instruction, word: str) -> str:
        """A word with the variables that are known before a stage begins."""
        try:
            return expand(word, self._global | self._declared, instruction.escape)
        except InvalidError as error:
            raise instruction.error(str(error)) from None

    def _check(self, instruction: Instruction, word: str) -> None:
        """Finds what is wrong with a word that is expanded later."""
        try:
            expand(word, _Anything(), instruction.escape)
        except InvalidError as error:
            raise instruction.error(str(error)) from None


class _Anything(Mapping[str, str]):
    """Every variable is set."""

    def __getitem__(self, name: str) -> str:
        return "x"

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _copied_words(instruction: Instruction) -> tuple[str, ...]:
    """Sources and target of COPY and ADD, as words."""
    listed = instruction.as_list()
    words = instruction.words() if listed is None else listed
    if len(words) < 2:
        raise instruction.error(f"{instruction.name} needs a source and a target")
    if len(words) > 2 and not words[-1].rstrip("\"'").endswith("/") and "$" not in words[-1]:
        raise instruction.error(f"{instruction.name} of several sources needs a folder to go to: write {words[-1]}/")
    return words


def _in_context(instruction: Instruction, source: str) -> str:
    """A source as a path in the context: a leading slash means its root, and nothing is outside of it."""
    path = posixpath.normpath(source.lstrip("/") or ".")
    if path == ".." or path.startswith("../"):
        raise instruction.error(f"{source} is outside of the build context: choose a context_dir that has it in it")
    return path


def _with_heredocs(instruction: Instruction) -> str:
    """A command with here-documents, for the shell."""
    text = instruction.text
    heredocs = instruction.heredocs
    if len(heredocs) == 1 and is_heredoc(text):
        script = heredocs[0].text
        if not script.startswith("#!"):
            return script
        end = heredocs[0].name
        # A script of its own, for whichever interpreter its first line names.
        return (
            f"farcall_script=$(mktemp) && cat > \"$farcall_script\" <<'{end}'\n{script}{end}\n"
            'chmod +x "$farcall_script" && "$farcall_script"; farcall_status=$?\n'
            'rm -f "$farcall_script"; exit $farcall_status'
        )
    return f"{text}\n" + "".join(f"{each.text}{each.name}\n" for each in heredocs)


def _platform(machine: str) -> dict[str, str]:
    architecture = _ARCHITECTURES.get(machine, machine)
    found: dict[str, str] = {}
    for side in ("TARGET", "BUILD"):
        found |= {
            f"{side}PLATFORM": f"linux/{architecture}",
            f"{side}OS": "linux",
            f"{side}ARCH": architecture,
            f"{side}VARIANT": "",
        }
    return found

"""What a Dockerfile means, as base and steps."""

import pytest

from farcall.errors import InvalidError
from farcall.spec.image import (
    Configure,
    Copy,
    DebianBase,
    Download,
    ImageConfig,
    ImageSpec,
    InlineFile,
    RegistryBase,
    Run,
    RunMount,
    ScratchBase,
    Step,
    configured,
)
from farcall.spec.stages import Dockerfile, Surroundings

TREE = "7" * 64


def image(text: str, **around: object) -> ImageSpec:
    return Dockerfile(text).image(Surroundings(**around), context=lambda: TREE)  # type: ignore[arg-type]


def steps(lines: str, **around: object) -> tuple[Step, ...]:
    return image(f"FROM a\n{lines}", **around).steps


def config(spec: ImageSpec) -> ImageConfig:
    made = ImageConfig(env={"PATH": "/bin"})
    for step in spec.steps:
        if isinstance(step, Configure):
            made = configured(made, step)
    return made


def test_a_base_and_commands() -> None:
    spec = image('FROM docker.io/library/debian:12\nRUN echo "$A" && \\\n  true\nRUN ["a", "$b"]')
    assert spec == ImageSpec(
        RegistryBase("docker.io/library/debian:12"), (Run('echo "$A" &&   true'), Run(("a", "$b")))
    )


def test_configuration() -> None:
    made = config(
        image(
            "FROM a\nARG V=1\nENV A=$V PATH=$PATH:/x\nENV B=${A}0 OLD=$NONE\nLABEL who='me $A' v=\"$V\"\n"
            'WORKDIR /srv\nWORKDIR app\nUSER u$V\nSHELL ["/bin/bash", "-c"]\nENTRYPOINT run $A\nCMD ["x", "$A"]\n'
            "MAINTAINER some one\nEXPOSE 80/tcp $V\nVOLUME /data\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s CMD true"
        )
    )
    assert made == ImageConfig(
        env={"PATH": "/bin:/x", "A": "1", "B": "10", "OLD": ""},
        labels={"who": "me $A", "v": "1", "maintainer": "some one"},
        workdir="/srv/app",
        user="u1",
        shell=("/bin/bash", "-c"),
        entrypoint=("/bin/bash", "-c", "run $A"),
        cmd=("x", "$A"),
    )


def test_stages() -> None:
    spec = image(
        "FROM golang AS Build\nRUN make\nFROM alpine\nRUN other\n"
        "FROM build AS next\nRUN more\n"
        "FROM scratch\nCOPY --from=build /out /bin/\nCOPY --from=2 /o /p\nCOPY --from=busybox:1 /bin/sh /sh"
    )
    built = ImageSpec(RegistryBase("golang"), (Run("make"),))
    following = ImageSpec(RegistryBase("golang"), (Run("make"), Run("more")))
    assert spec == ImageSpec(
        ScratchBase(),
        (
            Copy("/bin/", ("/out",), stage=built, expand="\\"),
            Copy("/p", ("/o",), stage=following, expand="\\"),
            Copy("/sh", ("/bin/sh",), image=RegistryBase("busybox:1"), expand="\\"),
        ),
    )


def test_copies() -> None:
    found = steps(
        "COPY . /app\nCOPY --chown=$U:g --chmod=0755 a 'b c' $D/\nADD x.tar.gz /x\nCOPY --parents ./a/b/*.py /\n"
        'COPY ["d e", "/f g"]'
    )
    assert found == (
        Copy("/app", (".",), TREE, expand="\\"),
        Copy("$D/", ("a", "'b c'"), TREE, owner="$U:g", mode=0o755, expand="\\"),
        Copy("/x", ("x.tar.gz",), TREE, unpack=True, expand="\\"),
        Copy("/", ("a/b/*.py",), TREE, parents=True, expand="\\"),
        Copy("/f g", ("d e",), TREE, expand="\\"),
    )


def test_downloads() -> None:
    digest = "sha256:" + "a" * 64
    assert steps(f"ADD --checksum={digest} https://x.org/a /a\nADD --chmod=600 http://x/b c /d/") == (
        Download("https://x.org/a", "/a", digest, expand="\\"),
        Download("http://x/b", "/d/", mode=0o600, expand="\\"),
        Copy("/d/", ("c",), TREE, mode=0o600, unpack=True, expand="\\"),
    )


def test_here_documents() -> None:
    found = steps(
        "RUN <<EOF\necho 1\nEOF\nRUN <<'X'\n#!/usr/bin/python3\nprint(1)\nX\nRUN cat <<A >/a\nb\nA\n"
        "COPY <<one <<'two' plain /etc/\n$A\none\n$B\ntwo"
    )
    script, own, command, copy = found
    assert script == Run("echo 1\n")
    assert isinstance(own, Run)
    assert isinstance(own.command, str)
    assert "<<'X'\n#!/usr/bin/python3\nprint(1)\nX\n" in own.command
    assert command == Run("cat <<A >/a\nb\nA\n")
    assert copy == Copy(
        "/etc/",
        ("plain",),
        TREE,
        files=(InlineFile("one", "$A\n", True), InlineFile("two", "$B\n")),
        expand="\\",
    )


def test_build_arguments() -> None:
    text = (
        "ARG TAG=12 NAME\nFROM debian:${TAG}${NAME:+-$NAME}\nARG TAG\nARG MORE=$TAG.0\nARG UNSET\nARG TARGETARCH\n"
        "LABEL v=$TAG-$MORE-$UNSET-$NAME-$TARGETARCH"
    )
    spec = image(text, build_args={"NAME": "slim"}, machine="aarch64")
    assert spec.base == RegistryBase("debian:12-slim")
    assert config(spec).labels == {"v": "12-12.0---arm64"}
    other = image(text, build_args={"TAG": "13", "MORE": "$x"})
    assert other.base == RegistryBase("debian:13")
    assert config(other).labels == {"v": "13-$x---amd64"}
    assert config(other).args == {}


def test_arguments_end_with_their_stage() -> None:
    spec = image("FROM a AS b\nARG V=1\nENV A=$V\nFROM b\nENV B=$V$A")
    assert config(spec).env == {"PATH": "/bin", "A": "1", "B": "1"}


def test_proxies_need_no_declaration() -> None:
    assert steps("RUN x", build_args={"http_proxy": "http://p"}) == (Run("x", env={"http_proxy": "http://p"}),)


def test_secrets_env_and_mounts() -> None:
    found = steps(
        "RUN --mount=type=secret,id=TOKEN --mount=type=cache,id=pip,target=/root/.cache,sharing=locked "
        "--mount=type=secret,id=TOKEN,dst=/t,mode=0444 --mount=type=tmpfs,target=/tmp x",
        secrets={"TOKEN": "s1", "U": "s2"},
        env={"A": "1"},
    )
    assert found == (
        Run(
            "x",
            {"A": "1"},
            {"TOKEN": "s1", "U": "s2"},
            (
                RunMount("secret", "/run/secrets/TOKEN", "s1"),
                RunMount("cache", "/root/.cache", "pip"),
                RunMount("secret", "/t", "s1", 0o444),
                RunMount("tmpfs", "/tmp"),
            ),
        ),
    )


def test_lines_that_go_on_from_an_image() -> None:
    onto = ImageSpec(DebianBase("3.12"), (Run("before"),))
    found = Dockerfile("ARG A=1\nRUN after", continues=True).image(Surroundings(), context=lambda: TREE, onto=onto)
    assert found.base == onto.base
    assert found.steps == (
        Run("before"),
        Configure("arg", pairs={"A": "1"}, expand="\\"),
        Run("after"),
        Configure("end-args"),
    )


def test_what_is_taken_of_the_context() -> None:
    assert Dockerfile("FROM a\nRUN x").sources() == ()
    assert Dockerfile(
        "FROM a\nCOPY ./a 'b c' /x/\nADD https://x.org/y z /d/\nCOPY --from=a q /\nCOPY <<E /e\nE\nCOPY /a /c"
    ).sources() == ("a", "b c", "z")
    assert Dockerfile("FROM a\nCOPY $A /x").sources() is None


def test_the_context_is_not_asked_for_in_vain() -> None:
    def never() -> str:
        raise AssertionError

    Dockerfile("FROM a\nCOPY <<E /e\nE\nCOPY --from=b /x /y\nADD http://x/y /z").image(Surroundings(), context=never)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("COPY a", "line 2: COPY needs a source and a target\n    COPY a"),
        ("COPY a b c", "COPY of several sources needs a folder to go to: write c/"),
        ("COPY ../a /b", "../a is outside of the build context"),
        ("COPY --chmod=u+x a b", "--chmod=u+x is not an octal mode"),
        ("COPY --exclude=x a b", "COPY --exclude is not supported; it has --chown, --chmod, --link, --from, --parents"),
        ("COPY --from=1 a b", "--from=1 is no earlier stage; there are 0"),
        ("COPY --from=0 a b", "--from=0 is no earlier stage"),
        ("ADD https://x.org/a.git /b", "ADD of a git repository"),
        ("ADD --checksum=x http://a /b", "--checksum=sha256:"),
        ("RUN --mount=target=/x y", "RUN --mount=type=bind is not supported, only cache, secret and tmpfs are; COPY"),
        ("RUN --mount=type=ssh y", "type=ssh is not supported"),
        ("RUN --mount=type=cache,target=x y", "needs target=, an absolute path"),
        ("RUN --mount=type=cache,target=/x,mode=9 y", "mode=9 is not octal"),
        ("RUN --mount=type=secret,id=T y", "there is no secret 'T'"),
        ("RUN --network=none y", "--network=none is not supported"),
        ("RUN --security=insecure y", "RUN --security is not supported"),
        ("RUN []", "RUN has no command"),
        ("SHELL /bin/bash", "SHELL needs a JSON list"),
        ("ENV A='x", "the quote ' is not closed"),
        ("WORKDIR ${A", "not closed"),
        ("ARG 1A", "'1A' cannot name an ARG"),
        ("FROM a b", "FROM is followed by an image"),
        ("FROM --platform=linux/s390x a", "images are for linux/amd64"),
        ("FROM b AS x\nFROM c AS X", "there is a stage x already"),
        ("FROM b AS 1x", "'1x' cannot name a stage"),
    ],
)
def test_what_is_wrong_is_named(lines: str, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        steps(lines)
    assert message in str(caught.value)
    assert "Dockerfile, line " in str(caught.value)


def test_what_is_wrong_with_a_whole_file() -> None:
    with pytest.raises(InvalidError, match="has no FROM"):
        Dockerfile("# nothing")
    with pytest.raises(InvalidError, match="RUN comes before the first FROM"):
        image("RUN x\nFROM a")
    with pytest.raises(InvalidError, match="no FROM here"):
        Dockerfile("FROM a", continues=True)
    with pytest.raises(InvalidError, match="build_args has OTHER, and no ARG of Dockerfile"):
        image("FROM a\nARG A", build_args={"A": "1", "OTHER": "2"})
    with pytest.raises(InvalidError, match="other/Dockerfile, line 2"):
        Dockerfile("FROM a\nNOPE", place="other/Dockerfile")

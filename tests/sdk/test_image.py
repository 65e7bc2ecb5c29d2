"""Images: what their methods say to the server, and what they refuse at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import farcall
from farcall import settings
from farcall.content import Store, Tree
from farcall.errors import InvalidError, NotFoundError
from farcall.sdk.image_parts import Resolution
from farcall.sdk.local_trees import LocalTrees
from farcall.spec.image import (
    Apt,
    BuiltBase,
    Call,
    Configure,
    Copy,
    DebianBase,
    ImageSpec,
    Pip,
    RegistryBase,
    Run,
    RunMount,
    ScratchBase,
    Step,
    UvSync,
)

Image = farcall.Image
Secret = farcall.Secret
HERE = Image.debian_slim()
OTHER_SECRET = Secret.from_dict({"A": "1"})


class Worked:
    """An image worked out: its description, the secrets it names, the trees it copies."""

    def __init__(self, image: farcall.Image) -> None:
        with LocalTrees() as trees:
            resolution = Resolution(trees)
            spec = image.resolve(resolution)
            assert spec is not None
            self.spec: ImageSpec = spec
            self.secrets = resolution.secrets

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.spec.steps

    def tree(self, step: int = -1) -> dict[str, bytes]:
        """The files of the tree that a step copies."""
        copied = self.spec.steps[step]
        assert isinstance(copied, Copy | UvSync)
        return contents(copied.tree)


def contents(tree_id: str) -> dict[str, bytes]:
    store = Store(settings.paths().content)
    tree: Tree = store.tree(tree_id)
    return {entry.path.decode(): store.read(entry.digest) for entry in tree if not entry.is_directory}


@pytest.fixture(scope="module")
def store_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xdg")


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, store_of_tests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(store_of_tests / name.lower()))
    monkeypatch.delenv("FARCALL_STATE_DIR", raising=False)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


def steps(image: farcall.Image) -> tuple[Step, ...]:
    return Worked(image).steps


# --- bases


def test_bases() -> None:
    import sys

    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    for image, base in (
        (HERE, DebianBase(here)),
        (Image.debian_slim("3.12.4", force_build=True), DebianBase("3.12.4", force=True)),
        (Image.from_scratch(), ScratchBase()),
        (Image.from_registry("a/b:c"), RegistryBase("a/b:c")),
        (Image.from_registry("a", add_python="3.12", force_build=True), RegistryBase("a", "3.12", force=True)),
        (Image.from_id("im-1"), BuiltBase("im-1")),
        (Image.from_name("base"), BuiltBase("base:latest")),
        (Image.from_name("base:v1", environment_name="main"), BuiltBase("base:v1")),
    ):
        assert Worked(image).spec == ImageSpec(base)


def test_registries_are_opened_by_secrets() -> None:
    secret = Secret.from_dict({"REGISTRY_USERNAME": "me", "REGISTRY_PASSWORD": "hidden"})
    worked = Worked(Image.from_registry("private/x", secret, setup_dockerfile_commands=["RUN apk add a", "USER b"]))
    assert worked.spec.base == RegistryBase(
        "private/x", credentials={"REGISTRY_USERNAME": "s1", "REGISTRY_PASSWORD": "s2"}
    )
    assert worked.secrets == {"s1": "me", "s2": "hidden"}
    assert worked.steps == (Run("apk add a"), Configure("user", ("b",), expand="\\"))
    google = Worked(Image.from_gcp_artifact_registry("x/y", Secret.from_dict({"SERVICE_ACCOUNT_JSON": '{"a": 1}'})))
    assert google.spec.base == RegistryBase("x/y", credentials={"SERVICE_ACCOUNT_JSON": "s1"})
    half = Secret.from_dict({"REGISTRY_USERNAME": "me", "AWS_ACCESS_KEY_ID": "key"})
    for make, missing in (
        (Image.from_registry, "REGISTRY_PASSWORD"),
        (Image.from_gcp_artifact_registry, "SERVICE_ACCOUNT_JSON"),
        (Image.from_aws_ecr, "AWS_SECRET_ACCESS_KEY"),
    ):
        with pytest.raises(InvalidError, match=f"has no {missing}; it has AWS_ACCESS_KEY_ID, REGISTRY_USERNAME"):
            make("x/y", half)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Image.debian_slim("2.7"), "need Python 3.11 or later, and cannot have 2.7"),
        (lambda: Image.debian_slim("4.0"), "cannot have 4.0"),
        (lambda: Image.debian_slim(3.12), 'is a number; write it as a string, "3.12"'),
        (lambda: Image.debian_slim("3"), "'3' is no version of Python"),
        (lambda: Image.from_registry("https://a/b"), "names no image"),
        (lambda: Image.from_registry(""), "names no image"),
        (lambda: Image.from_registry("a", add_python="3.8"), "cannot have 3.8"),
        (lambda: Image.from_registry("a", ad_python="3.12"), "no parameter 'ad_python'; did you mean 'add_python'"),
        (lambda: Image.from_id("ta-1"), "begins with im-"),
        (lambda: Image.from_name("im-1"), "cannot be an image's name"),
        (lambda: Image.from_name("a b"), "cannot be an image's name"),
        (lambda: HERE.pip_install("--upgrade"), "is an option, not a package"),
        (lambda: HERE.pip_install(["numpy", 1]), "neither a string nor a list of strings"),
        (lambda: HERE.pip_install(""), "is no package"),
        (lambda: HERE.pip_install("./project"), "is on this machine"),
        (lambda: HERE.pip_install("x @ file:///x"), "is on this machine"),
        (lambda: HERE.uv_pip_install("dist/x-1-py3-none-any.whl"), "is on this machine"),
        (lambda: HERE.pip_install("a", index="x"), "no parameter 'index'; did you mean 'index_url'"),
        (lambda: HERE.apt_install("-y"), "is an option"),
        (lambda: HERE.run_commands("true", secrets=["A"]), "'A' in secrets= is no farcall.Secret"),
        (lambda: HERE.run_commands("true", env={"A": 1}), "names and values are strings"),
        (lambda: HERE.run_commands("true", env={"A=B": "1"}), "cannot name an environment variable"),
        (lambda: HERE.env({"A": 1}), "names and values are strings"),
        (lambda: HERE.env({"A": None}), "names and values are strings"),
        (lambda: HERE.entrypoint("run"), "'run' is not a list of strings"),
        (lambda: HERE.shell([]), "the list is empty"),
        (lambda: HERE.add_local_file("/etc/hostname", "x"), "is not absolute; write /root/x"),
        (lambda: HERE.add_local_file("missing", "/x"), "there is no file"),
        (lambda: HERE.add_local_dir("missing", "/x"), "there is no folder"),
        (lambda: HERE.add_local_dir(".", "/"), "cannot be mounted at /; write copy=True"),
        (lambda: HERE.add_local_dir(".", "/x", ignore="*.md"), r"is not a list of patterns; write \['\*.md'\]"),
        (lambda: HERE.add_local_dir(".", "/x", ignore=["["]), "is not a pattern"),
        (lambda: HERE.add_local_python_source("a/b.py"), "takes names of modules"),
        (lambda: HERE.uv_sync(), "there is no .*pyproject.toml"),
        (lambda: HERE.poetry_install_from_file("pyproject.toml"), "there is no file"),
        (lambda: HERE.pip_install_from_requirements("missing.txt"), "cannot be read: No such file"),
        (lambda: HERE.pip_install_from_pyproject("pyproject.toml"), "cannot be read"),
        (lambda: HERE.pip_install_private_repos(git_user="me"), "needs a repository"),
        (lambda: HERE.pip_install_private_repos("x.org/a/b", git_user="me"), "no repository of github.com or gitlab"),
        (
            lambda: HERE.pip_install_private_repos(
                "github.com/a/b", git_user="me", secrets=[Secret.from_dict({"A": "1"})]
            ),
            "give a secret that has GITHUB_TOKEN",
        ),
        (lambda: HERE.dockerfile_commands("FROM x"), "there is no FROM here"),
        (lambda: HERE.dockerfile_commands("RUM x"), r"line 1: there is no instruction RUM; did you mean RUN\?"),
        (lambda: HERE.dockerfile_commands("RUN x", context_dir="missing"), "there is no folder"),
        (lambda: HERE.dockerfile_commands("RUN x", build_args={"A": 1}), "names and values are strings"),
        (lambda: Image.from_dockerfile("missing"), "cannot be read"),
        (lambda: HERE.run_function(3), "3 is no function"),
        (lambda: HERE.run_function(prepare, args="abc"), "args='abc' is not a list of arguments"),
        (lambda: HERE.run_function(prepare, timeout=0), "timeout=0 is outside"),
        (lambda: HERE.run_function(items), "is a generator"),
        (lambda: HERE.run_function(farcall.App().function()(prepare)), "is decorated with @app.function"),
    ],
)
def test_what_is_wrong_is_said_at_once(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        make()


@pytest.mark.parametrize(
    "add",
    [
        lambda image: image.pip_install("a"),
        lambda image: image.apt_install("a"),
        lambda image: image.run_commands("a"),
        lambda image: image.run_function(prepare),
        lambda image: image.env({"A": "1"}),
        lambda image: image.workdir("/x"),
        lambda image: image.dockerfile_commands("RUN a"),
        lambda image: image.add_local_dir(".", "/y", copy=True),
    ],
)
def test_what_is_mounted_comes_last(add: Callable[[farcall.Image], object]) -> None:
    mounted = HERE.add_local_dir(".", "/x")
    with pytest.raises(InvalidError, match=r"comes after Image\.add_local_dir\('\.'\).*Write copy=True there"):
        add(mounted)
    add(HERE.add_local_dir(".", "/x", copy=True))


def test_the_hosts_own_system_is_not_built_on() -> None:
    host = Image.host()
    for add in (
        lambda: host.pip_install("a"),
        lambda: host.apt_install("a"),
        lambda: host.run_commands("a"),
        lambda: host.run_function(prepare),
        lambda: host.entrypoint(["a"]),
        lambda: host.dockerfile_commands("RUN a"),
    ):
        with pytest.raises(InvalidError, match=r"begin with farcall\.Image\.debian_slim\(\)"):
            add()
    made = host.add_local_dir(".", "/x").env({"A": "1"}).workdir("/x").env({"B": "2"})
    assert made.is_host
    assert made.host_environment == {"A": "1", "B": "2"}
    assert made.host_workdir == "/x"
    with pytest.raises(InvalidError, match="is not absolute"):
        host.workdir("x")


# --- packages


def test_pip() -> None:
    image = HERE.pip_install(
        "numpy",
        ["pandas>=2", "torch"],
        index_url="https://i",
        extra_index_url="https://e",
        pre=True,
        extra_options="-U",
    )
    assert steps(image) == (
        Pip(
            "pip",
            ("numpy", "pandas>=2", "torch"),
            index_url="https://i",
            extra_index_url="https://e",
            pre=True,
            extra_options="-U",
        ),
    )
    found = steps(HERE.uv_pip_install("a", uv_version="0.4.1", find_links="/wheels", force_build=True))
    assert found == (Pip("uv", ("a",), find_links="/wheels", uv_version="0.4.1", force=True),)
    assert HERE.pip_install() is HERE
    assert HERE.apt_install() is HERE
    assert steps(HERE.apt_install("git", ["curl"], env={"A": "1", "B": None})) == (Apt(("git", "curl"), {"A": "1"}),)


def test_secrets_of_steps_are_handles() -> None:
    both = [Secret.from_dict({"A": "one", "B": "two"}), Secret.from_dict({"B": "three", "C": "one"})]
    worked = Worked(HERE.pip_install("a", secrets=both).run_commands("b", "c", secrets=both[:1], env={"X": "y"}))
    assert worked.steps == (
        Pip("pip", ("a",), secrets={"A": "s1", "B": "s2", "C": "s1"}),
        Run("b", {"X": "y"}, {"A": "s1", "B": "s3"}),
        Run("c", {"X": "y"}, {"A": "s1", "B": "s3"}),
    )
    assert worked.secrets == {"s1": "one", "s2": "three", "s3": "two"}


def test_requirements_files(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "more").mkdir()
    (project / "requirements.txt").write_text(
        "# comment\nnumpy>=1 # why\npandas \\\n  ==2.0\n-r more/other.txt\n--constraint=more/c.txt\nx @ https://x/x.whl\n"
    )
    (project / "more/other.txt").write_text("-r third.txt\nscipy\n")
    (project / "more/third.txt").write_text("third; python_version > '3'\n")
    (project / "more/c.txt").write_text("scipy<2\n")
    (found,) = steps(HERE.pip_install_from_requirements("requirements.txt", "https://links", pre=True))
    assert found == Pip(
        "pip",
        requirements=("third; python_version > '3'\n", "scipy\n", "numpy>=1\npandas   ==2.0\nx @ https://x/x.whl\n"),
        constraints=("scipy<2\n",),
        find_links="https://links",
        pre=True,
    )
    (by_uv,) = steps(HERE.uv_pip_install("a", requirements=["more/third.txt"]))
    assert isinstance(by_uv, Pip)
    assert by_uv.requirements == ("third; python_version > '3'\n",)
    for line in ("-e .", "./local", "--editable=x", "../x.whl", "y @ file:///y"):
        (project / "bad.txt").write_text(f"numpy\n{line}\n")
        with pytest.raises(InvalidError, match=r"bad\.txt, line 2: .*is on this machine"):
            HERE.pip_install_from_requirements("bad.txt")
    (project / "more/third.txt").write_text("-r other.txt\n")
    with pytest.raises(InvalidError, match="names itself"):
        HERE.pip_install_from_requirements("requirements.txt")
    (project / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidError, match="is not UTF-8"):
        HERE.pip_install_from_requirements("bad.txt")


def test_pyproject_files(tmp_path: Path) -> None:
    file = tmp_path / "project" / "pyproject.toml"
    file.write_text('[project]\ndependencies = ["a>1"]\n[project.optional-dependencies]\nx = ["b", "c"]\ny = ["d"]\n')
    assert steps(HERE.pip_install_from_pyproject("pyproject.toml", ["x"])) == (Pip("pip", ("a>1", "b", "c")),)
    assert steps(HERE.pip_install_from_pyproject(tmp_path / "project")) == (Pip("pip", ("a>1",)),)
    with pytest.raises(InvalidError, match="no optional dependencies 'z'; it has x, y"):
        HERE.pip_install_from_pyproject(file, ["z"])
    file.write_text('[project]\nname = "x"\ndynamic = ["dependencies"]\n')
    with pytest.raises(InvalidError, match="they are dynamic"):
        HERE.pip_install_from_pyproject(file)
    file.write_text("[project\n")
    with pytest.raises(InvalidError, match="is not TOML"):
        HERE.pip_install_from_pyproject(file)


def test_uv_projects(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(InvalidError, match=r"no .*uv.lock; `uv lock` makes it, or write frozen=False"):
        HERE.uv_sync()
    (project / "uv.lock").write_text("lock")
    (project / "other.py").write_text("not sent")
    worked = Worked(HERE.uv_sync(".", groups=["dev"], extras=["gpu"], uv_version="0.4"))
    sync, path = worked.steps
    assert isinstance(sync, UvSync)
    assert (sync.groups, sync.extras, sync.frozen, sync.uv_version) == (("dev",), ("gpu",), True, "0.4")
    assert worked.tree(0) == {"pyproject.toml": b"[project]\n", "uv.lock": b"lock"}
    assert isinstance(path, Configure)
    assert path.pairs["PATH"] == "/.uv/.venv/bin:$PATH"


def test_poetry_projects(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "pyproject.toml").write_text("[tool.poetry]\n")
    with pytest.raises(InvalidError, match=r"poetry\.lock; `poetry lock` makes it"):
        HERE.poetry_install_from_file("pyproject.toml")
    (project / "poetry.lock").write_text("lock")
    worked = Worked(HERE.poetry_install_from_file("pyproject.toml", with_=["a", "b"], only=["c"], poetry_version="1.8"))
    install, copy, run = worked.steps
    assert install == Pip("pip", ("poetry==1.8",))
    assert worked.tree(1) == {"pyproject.toml": b"[tool.poetry]\n", "poetry.lock": b"lock"}
    assert isinstance(copy, Copy)
    assert copy.target == "/.poetry/"
    assert run == Run(
        "cd /.poetry && poetry install --no-root --no-interaction --with=a,b --only=c",
        {"POETRY_VIRTUALENVS_CREATE": "false"},
    )
    image = HERE.poetry_install_from_file("pyproject.toml", ignore_lockfile=True, poetry_version=None)
    assert list(Worked(image).tree(0)) == ["pyproject.toml"]


def test_private_repositories() -> None:
    secret = Secret.from_dict({"GITHUB_TOKEN": "hidden", "GITLAB_TOKEN": "too"})
    image = HERE.pip_install_private_repos(
        "github.com/me/x@main", "gitlab.com/y/z#subdirectory=a", git_user="me", secrets=[secret], extra_options="-U"
    )
    apt, run = steps(image)
    assert apt == Apt(("git", "ca-certificates"))
    assert isinstance(run, Run)
    assert run.secrets == {"GITHUB_TOKEN": "s1", "GITLAB_TOKEN": "s2"}
    assert "hidden" not in str(run)
    assert str(run.command).endswith(
        "python3 -m pip install git+https://github.com/me/x@main 'git+https://gitlab.com/y/z#subdirectory=a' -U"
    )


# --- steps


def test_commands_and_configuration() -> None:
    image = (
        HERE.run_commands("a", ["b", "c"], force_build=True)
        .env({"A": "$B"})
        .workdir("app")
        .entrypoint(["/e"])
        .cmd(["x", "y"])
        .shell(["/bin/bash", "-c"])
        .pipe(lambda image, value: image.run_commands(value), "d")
    )
    assert steps(image) == (
        Run("a", force=True),
        Run("b", force=True),
        Run("c", force=True),
        Configure("env", pairs={"A": "$B"}),
        Configure("workdir", ("app",)),
        Configure("entrypoint", ("/e",)),
        Configure("cmd", ("x", "y")),
        Configure("shell", ("/bin/bash", "-c")),
        Run("d"),
    )


def test_a_prefix_is_shared_and_not_changed() -> None:
    base = HERE.run_commands("a")
    left, right = base.run_commands("b"), base.run_commands("c")
    assert (steps(base), steps(left), steps(right)) == ((Run("a"),), (Run("a"), Run("b")), (Run("a"), Run("c")))


def test_dockerfiles(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "src").mkdir()
    (project / "src/a.py").write_text("a")
    (project / "src/a.pyc").write_text("no")
    (project / "unused").write_text("no")
    (project / ".dockerignore").write_text("*/*.pyc\n")
    (project / "Dockerfile").write_text(
        "ARG V=1\nFROM base:$V AS one\nCOPY src /src\nRUN --mount=type=secret,id=KEY make\nFROM one\nRUN last\n"
    )
    image = Image.from_dockerfile(
        "Dockerfile",
        build_args={"V": "2"},
        secrets=[Secret.from_dict({"KEY": "hidden"})],
        env={"E": "1"},
        add_python="3.12",
        force_build=True,
    )
    worked = Worked(image)
    assert worked.spec.base == RegistryBase("base:2", "3.12", force=True)
    copy, make, last = worked.steps
    assert isinstance(copy, Copy)
    assert worked.tree(0) == {"src/a.py": b"a"}
    assert make == Run("make", {"E": "1"}, {"KEY": "s1"}, (RunMount("secret", "/run/secrets/KEY", "s1"),), force=True)
    assert last == Run("last", {"E": "1"}, {"KEY": "s1"}, force=True)


def test_whose_ignore_file_counts(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    for name in ("a", "b", "c"):
        (context / name).write_text(name)
    dockerfile = tmp_path / "project" / "Dockerfile"
    dockerfile.write_text("FROM x\nCOPY . /x\n")

    def copied(**options: Any) -> list[str]:
        return list(Worked(Image.from_dockerfile(dockerfile, context_dir=context, **options)).tree())

    assert copied() == ["a", "b", "c"]
    (context / ".dockerignore").write_text("a\n.dockerignore\n")
    assert copied() == ["b", "c"]
    (tmp_path / "project" / "Dockerfile.dockerignore").write_text("*\n!b")
    assert copied() == ["b"]
    assert copied(ignore=["c", ".*"]) == ["a", "b"]
    assert copied(ignore=lambda path: path.name != "c") == ["c"]
    assert copied(ignore=~farcall.FilePatternMatcher("a")) == ["a"]


def test_what_a_dockerfile_copies_and_is_not_there(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "requirements.txt").write_text("six\n")
    (project / "log").write_text("x")
    (project / ".dockerignore").write_text("log\n")

    def wrong(lines: str) -> str:
        (project / "Dockerfile").write_text(f"FROM scratch\n{lines}\n")
        with pytest.raises(InvalidError) as caught:
            Worked(Image.from_dockerfile(project / "Dockerfile", context_dir=project))
        return str(caught.value)

    message = wrong("COPY requirements.txt requirments.txt /")
    assert "Dockerfile: COPY requirments.txt: there is no " in message
    assert message.endswith(f"{project}/requirments.txt; did you mean requirements.txt?")
    assert wrong("COPY log /").endswith("log is ignored (.dockerignore, ignore=)")
    assert "there is no" in wrong("FROM scratch AS a\nCOPY absent /\nFROM scratch\nCOPY --from=a / /")
    (project / "Dockerfile").write_text("FROM scratch AS unused\nCOPY absent /\nFROM scratch\nCOPY requ*.txt $X /\n")
    Worked(Image.from_dockerfile(project / "Dockerfile", context_dir=project))


def test_lines_of_a_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "project/a").write_text("a")
    (tmp_path / "other").write_text("b")
    worked = Worked(
        HERE.run_commands("before")
        .dockerfile_commands(
            "ARG A=1", ["COPY a conf/b /x/", "RUN after"], context_files={"conf/b": tmp_path / "other"}
        )
        .run_commands("end")
    )
    assert worked.tree(2) == {"a": b"a", "conf/b": b"b"}
    assert [type(step).__name__ for step in worked.steps] == ["Run", "Configure", "Copy", "Run", "Configure", "Run"]


# --- local files


def test_local_files_that_become_part_of_the_image(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "data/deep").mkdir(parents=True)
    (project / "data/deep/x").write_text("x")
    (project / "data/y.md").write_text("y")
    (project / "tool.sh").write_text("#!/bin/sh\n")
    (project / "tool.sh").chmod(0o755)
    one = Worked(HERE.add_local_file("tool.sh", "/usr/local/bin/", copy=True))
    assert one.tree() == {"tool.sh": b"#!/bin/sh\n"}
    (copy,) = one.steps
    assert isinstance(copy, Copy)
    assert (copy.target, copy.sources) == ("/usr/local/bin/", (".",))
    renamed = Worked(HERE.add_local_file("tool.sh", "/opt/run", copy=True))
    assert list(renamed.tree()) == ["run"]
    folder = Worked(HERE.add_local_dir("data", "/data", copy=True, ignore=["*.md"]))
    assert folder.tree() == {"deep/x": b"x"}
    (project / "data/deep/x").write_text("changed")
    assert Worked(HERE.add_local_dir("data", "/data", copy=True)).tree()["deep/x"] == b"changed"


def test_modules_that_become_part_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "project" / "package_of_image"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/a.py", "data.txt"):
        (package / name).write_text(name)
    (tmp_path / "project/module_of_image.py").write_text("m")
    monkeypatch.syspath_prepend(tmp_path / "project")
    worked = Worked(HERE.add_local_python_source("package_of_image", "module_of_image", copy=True))
    assert sorted(worked.tree(0)) == ["package_of_image/__init__.py", "package_of_image/inner/a.py"]
    assert worked.tree(1) == {"module_of_image.py": b"m"}
    everything = Worked(HERE.add_local_python_source("package_of_image", copy=True, ignore=["inner"]))
    assert sorted(everything.tree()) == ["package_of_image/__init__.py", "package_of_image/data.txt"]
    with pytest.raises(InvalidError, match="'json' is installed here, or built in"):
        Worked(HERE.add_local_python_source("json", copy=True))
    with pytest.raises(InvalidError, match="there is no module"):
        Worked(HERE.add_local_python_source("no_such_module_here", copy=True))


def test_what_vanishes_before_it_is_copied_is_named(tmp_path: Path) -> None:
    (tmp_path / "project/gone").write_text("x")
    image = HERE.add_local_file("gone", "/gone", copy=True)
    (tmp_path / "project/gone").unlink()
    with pytest.raises(NotFoundError, match="gone"):
        Worked(image)


# --- functions as steps

LEVEL = 3


def prepare(name: str = "", *, size: int = 0) -> int:
    return LEVEL + helper(size)


def helper(size: int) -> int:
    return size * 2


def items() -> Any:
    yield 1


async def prepare_later() -> None: ...


def test_functions_as_steps() -> None:
    secret = Secret.from_dict({"KEY": "hidden"})
    worked = Worked(
        HERE.run_function(
            prepare, args=["a"], kwargs={"size": 2}, cpu=2, memory=512, timeout=60, env={"E": "1"}, secrets=[secret]
        )
    )
    (call,) = worked.steps
    assert isinstance(call, Call)
    function = call.function
    assert (function.name, function.cpu, function.memory) == ("prepare", (2.0, None), (512, 512))
    assert (function.timeout, function.startup_timeout) == (60.0, 60.0)
    assert function.env == {"E": "1"}
    assert call.secrets == {"KEY": "s1"}
    assert function.source.module == prepare.__module__
    assert function.trees
    (later,) = steps(HERE.run_function(prepare_later, include_source=False))
    assert isinstance(later, Call)
    assert later.function.methods[0].is_async
    assert later.function.trees == ()


def fingerprint_of(function: Any, **options: Any) -> str:
    (call,) = steps(HERE.run_function(function, **options))
    assert isinstance(call, Call)
    return call.fingerprint


def test_when_a_function_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_of(prepare)
    assert fingerprint_of(prepare) == before
    assert fingerprint_of(prepare, args=["a"]) != before
    assert fingerprint_of(prepare, kwargs={"size": 1}) != before
    assert fingerprint_of(prepare, cpu=4, env={"A": "1"}) == before
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "LEVEL", 4)
        assert fingerprint_of(prepare) != before
    with monkeypatch.context() as patched:
        patched.setitem(globals(), "helper", items)
        assert fingerprint_of(prepare) != before
    assert fingerprint_of(prepare) == before


def test_a_function_is_the_same_in_another_place(tmp_path: Path) -> None:
    """Its folder, its module's name and what else is in the file do not matter."""
    import subprocess
    import sys

    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import importlib\n"
        "from farcall.sdk.fingerprint import fingerprint\n"
        "print(fingerprint(importlib.import_module(sys.argv[2]).build, (), {}))\n"
    )
    source = "NAMES = {'a', 'b', 'c'}\nclass Config:\n    size = 1\ndef build():\n    return Config.size, NAMES\n"
    seen: set[str] = set()
    for folder, module, text in (
        ("one", "first", source),
        ("two", "second", f"import os\n\n\n{source}\nOTHER = 2\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{module}.py").write_text(text)
        command = [sys.executable, "-c", program, str(tmp_path / folder), module]
        seen.add(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(seen) == 1
    (tmp_path / "one" / "first.py").write_text(source.replace("size = 1", "size = 2"))
    command = [sys.executable, "-c", program, str(tmp_path / "one"), "first"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout not in seen


def test_large_arguments_are_refused() -> None:
    with pytest.raises(InvalidError, match="above 64 KiB"):
        Worked(HERE.run_function(prepare, args=[b"x" * 100_000]))


# --- as an object


def test_what_an_image_shows() -> None:
    image = Image.debian_slim("3.12").apt_install("git").env({"TOKEN": "hidden"})
    assert repr(image) == "<farcall.Image.debian_slim(python_version='3.12').apt_install(git).env(TOKEN)>"
    assert image.object_id is None


def test_an_image_travels_as_a_name() -> None:
    import pickle

    image = HERE.run_function(prepare)
    assert repr(pickle.loads(pickle.dumps(image))) == repr(image)


def test_imports_that_only_containers_need() -> None:
    with HERE.imports():
        import no_such_module_here  # type: ignore[import-not-found]  # noqa: F401

"""farcall on the other machine: found, or installed for that user, from what is installed here."""

from __future__ import annotations

from farcall import errors
from farcall.interpreters.private import uv_executable
from farcall.link import ssh, wheel
from farcall.link.far import MARK

_FOLDER = '"${XDG_DATA_HOME:-$HOME/.local/share}/farcall/remote"'

# $1 is the key of this farcall, the rest are the arguments of `farcall.link.far`.
ATTACH = f"""
python={_FOLDER}/$1/bin/python
if [ -x "$python" ]; then shift; exec "$python" -P -m farcall.link.far "$@"; fi
echo {MARK}missing
"""

MISSING = 79  # the exit code of `RUN` where no farcall is there

# $1 is the key, the rest are the words of a farcall command, which another farcall knows, too: where this one is not
# there, the one runs it that was installed last.
RUN = f"""
python={_FOLDER}/$1/bin/python
if [ ! -x "$python" ]; then
    for one in $(ls -t {_FOLDER} 2>/dev/null); do
        python={_FOLDER}/$one/bin/python
        [ -x "$python" ] && break
    done
fi
[ -x "$python" ] || exit {MISSING}
shift
exec "$python" -P -m farcall "$@"
"""

SECONDS = 900.0  # that the installation may take, on a slow line, with a slow index
_AT = "at "  # begins what it does next, behind the mark

# $1 is the key, $2 the wheel's name, $3 its size; its input is the wheel, and behind it uv, if anything is. It prints
# what it does next, and what became of it, in lines behind the mark. Into a new folder, which gets its name when it is
# whole.
_INSTALL = f"""
umask 077
echo "{MARK}{_AT}receiving farcall"
base={_FOLDER}
mkdir -p "$base" && new=$(mktemp -d "$base/.new-XXXXXX") || {{ echo "{MARK}disk"; exit 0; }}
trap "rm -rf \\"$new\\"" EXIT
head -c "$3" > "$new/$2" && cat > "$new/uv" || {{ echo "{MARK}disk"; exit 0; }}
chmod 700 "$new/uv"
python=
for one in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$one" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then python=$one; break; fi
done
[ -n "$python" ] || {{ echo "{MARK}no-python $(python3 -V 2>&1 | tail -n 1)"; exit 0; }}
echo "{MARK}{_AT}making an environment with $python"
"$python" -m venv --without-pip "$new/venv" >&2 || {{ echo "{MARK}failed"; exit 0; }}
inside=$new/venv/bin/python
echo "{MARK}{_AT}installing packages from an index"
if [ -s "$new/uv" ] && "$new/uv" --version >/dev/null 2>&1; then
    "$new/uv" pip install --quiet --python "$inside" "$new/$2" >&2
elif command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$inside" "$new/$2" >&2
elif "$python" -m pip --python "$inside" --version >/dev/null 2>&1; then
    "$python" -m pip --python "$inside" --disable-pip-version-check install --quiet "$new/$2" >&2
else
    echo "{MARK}no-installer"; exit 0
fi || {{ echo "{MARK}failed"; exit 0; }}
echo "{MARK}{_AT}starting it"
"$inside" -P -c "import farcall.link.far" >&2 || {{ echo "{MARK}failed"; exit 0; }}
[ -d "$base/$1" ] || mv "$new/venv" "$base/$1"
touch "$base/$1"
echo "{MARK}installed"
# Of older ones the last stays, for who goes back to it, and what runs.
cd "$base" && ls -t | tail -n +3 | while read -r old; do
    grep -qsF "$base/$old/" /proc/[0-9]*/cmdline || rm -rf "./$old"
done
"""


async def install(command: ssh.Command, key: str) -> None:
    """Installs this farcall there, without root. Raises InvalidError where there is no Python for it, ConnectionError
    where its dependencies cannot be had there, TimeoutError where one of its steps goes on and on."""
    data = wheel.build()
    word, said = await _try(command, key, data, len(data))
    if word == "no-installer" and (uv := uv_executable()) is not None:
        # Neither uv nor pip is there: it gets ours.
        word, said = await _try(command, key, data + _read(uv), len(data))
    where = command.address
    last = _last_line(said)
    match word.split(" ", 1):
        case ["installed"]:
            return
        case ["no-python", *found]:
            there = found[0] if found and found[0].startswith("Python") else "none"
            raise errors.InvalidError(
                f"{where} has no Python 3.11 or newer on its PATH (python3 there: {there}), which the farcall server "
                "needs: install one there, for instance with `uv python install 3.12 --default`"
            )
        case ["disk"]:
            raise errors.ResourceExhaustedError(f"farcall cannot be written to the home directory on {where}: {last}")
        case ["no-installer"]:
            raise errors.InvalidError(
                f"{where} has neither uv nor pip to install farcall with: install one there, or farcall itself"
            )
        case _:
            raise errors.ConnectionError(
                f"farcall could not be installed on {where}: {last}. It needs a package index there; by hand: "
                f"{command.by_hand}"
            )


def _last_line(said: str) -> str:
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def _try(command: ssh.Command, key: str, data: bytes, size: int) -> tuple[str, str]:
    code, out, said = await ssh.run(command, _INSTALL, key, wheel.NAME, str(size), data=data, seconds=SECONDS)
    words = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    word = next((one for one in words if not one.startswith(_AT)), "")
    if not word and code is None:
        step = words[-1].removeprefix(_AT) if words else "logging in: no script has begun"
        raise errors.TimeoutError(
            f"installing farcall on {command.address} was given up after {SECONDS:g} s, at this step: {step}. Its last "
            f"line: {_last_line(said)}. See by hand what hangs, and try again: {command.by_hand}"
        )
    if not word and code == 255:
        ssh.explain(command, code, said)
    return word, said

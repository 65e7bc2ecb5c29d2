"""Commands about a machine's own files, run on the machine where the server is."""

import subprocess
import sys

from farcall import errors


def url() -> str:
    """Where the server is that commands are for, "" on this machine."""
    from farcall.sdk import client

    return client.server_url()


def run_there(words: list[str], *, has_server: bool = True) -> int:
    """Runs `farcall WORDS` on the server's machine, in this terminal; returns its exit code. Without `has_server` no
    server is started for it, nor is farcall installed: then another version may run it, and the code may be
    `install.MISSING`. Raises what keeps that machine from being reached."""
    from farcall.link import install, ssh, wheel
    from farcall.link.address import Address
    from farcall.sdk import client
    from farcall.sdk.embedded import program_settings

    where = url()
    if has_server:
        client.connect_or_start().close()  # so that farcall is there, and what keeps it from being so is said well
    command = ssh.Command(Address.parse(where), program_settings().ssh)
    arguments = command.arguments(install.RUN, wheel.key(), *words, terminal=sys.stdout.isatty())
    try:
        # Where nothing has connected before, what ssh itself complains of is kept, to be explained.
        done = subprocess.run(arguments, stderr=None if has_server else subprocess.PIPE)
    except OSError as error:
        raise errors.ConnectionError(f"{arguments[0]} cannot be run: {error}") from error
    said = (done.stderr or b"").decode(errors="replace")
    if done.returncode == ssh.FAILED and not has_server:
        ssh.explain(command, done.returncode, said)
    sys.stderr.write(said)
    return done.returncode

"""Private git repositories, for `Image.pip_install_private_repos`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from farcall.errors import InvalidError
from farcall.sdk.context import is_local

if TYPE_CHECKING:
    from farcall.sdk.image_options import Options

TOKENS = {"github.com": "GITHUB_TOKEN", "gitlab.com": "GITLAB_TOKEN"}

_REPOSITORY = re.compile(r"(?P<host>[^/@#\s]+)/[^@#\s]+(@[^#\s]+)?(#\S+)?")


def install_command(method: str, repositories: Sequence[str], git_user: str, options: Options) -> str:
    """The command that installs packages of repositories, `host/owner/name[@ref][#subdirectory=...]`.

    The token is in the environment of the command only: git is told there to log in wherever pip names the bare
    address, so that no address with a token is written down. Raises InvalidError for a repository of an unknown host
    and for a token that `secrets` do not have.
    """
    if not repositories:
        raise InvalidError(f'{method} needs a repository, such as "github.com/owner/name@main"')
    hosts: dict[str, str] = {}
    for repository in repositories:
        found = _REPOSITORY.fullmatch(repository)
        if found is None or found["host"] not in TOKENS:
            raise InvalidError(
                f'{method}: {repository!r} is no repository of {" or ".join(TOKENS)}; write "github.com/owner/name@ref"'
            )
        hosts[found["host"]] = TOKENS[found["host"]]
    names = {name for secret in options.secrets for name in secret.spec.values}
    are_known = is_local() and not any(secret.name for secret in options.secrets)
    for host, token in hosts.items():
        if token not in names and are_known:
            raise InvalidError(f"{method}: {host} needs an access token; give a secret that has {token}")
    settings = [f"GIT_CONFIG_COUNT={len(hosts)}"]
    for number, (host, token) in enumerate(hosts.items()):
        login = f'{shlex.quote(f"url.https://{git_user}:")}"${token}"{shlex.quote(f"@{host}/.insteadOf")}'
        settings += [f"GIT_CONFIG_KEY_{number}={login}", f"GIT_CONFIG_VALUE_{number}=https://{host}/"]
    words = ["python3", "-m", "pip", "install", *(f"git+https://{repository}" for repository in repositories)]
    for name, option in (
        ("find_links", "--find-links"),
        ("index_url", "--index-url"),
        ("extra_index_url", "--extra-index-url"),
    ):
        if value := options.text(name):
            words += [option, value]
    if options.given.get("pre"):
        words.append("--pre")
    return f"{' '.join(settings)} {shlex.join(words)} {options.text('extra_options')}".strip()

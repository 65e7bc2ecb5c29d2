"""An AWS account's keys from the files that `aws configure` writes, which `obstore` does not read."""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

_IN_ENVIRONMENT = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")  # either goes before the files
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


def from_files(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the files say, as `obstore` takes it: of the profile that AWS_PROFILE names, else the default one. Nothing
    where the environment has credentials, or the files have none."""
    if any(environ.get(name) for name in _IN_ENVIRONMENT):
        return {}
    profile = environ.get("AWS_PROFILE") or "default"
    home = Path(environ.get("HOME") or Path.home()) / ".aws"
    credentials = _section(Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"), profile)
    name = profile if profile == "default" else f"profile {profile}"
    config = _section(Path(environ.get("AWS_CONFIG_FILE") or home / "config"), name)
    found = config | credentials
    if not found.get("aws_access_key_id") or not found.get("aws_secret_access_key"):
        return {}
    taken = {key: found[key] for key in _KEYS if found.get(key)}
    if config.get("region") and not any(environ.get(region) for region in _REGIONS):
        taken["aws_region"] = config["region"]
    return taken


def _section(path: Path, name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, "utf-8")
        return dict(parser[name]) if parser.has_section(name) else {}
    except (configparser.Error, UnicodeDecodeError, OSError):
        return {}

"""The reference API's `billing` module: nothing here is metered in money yet."""

from __future__ import annotations

from typing import Any

from farcall.sdk.unimplemented import refuse


def workspace_billing_report(**options: Any) -> Any:
    """What a workspace used. Not available yet."""
    refuse("billing.workspace_billing_report")

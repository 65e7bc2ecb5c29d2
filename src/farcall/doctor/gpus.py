"""GPUs: which the driver knows, and what containers would see of it."""

import os

from farcall.doctor.finding import Finding
from farcall.worker.gpus import discover

_PURPOSE = "functions with gpu="


def probe() -> list[Finding]:
    """One line for the driver."""
    found = discover()
    if not found.gpus:
        return [
            Finding("GPUs", "NVIDIA", "missing", _PURPOSE, found.problem or "no driver is loaded: no /dev/nvidiactl")
        ]
    closed = [gpu.device for gpu in found.gpus if not os.access(gpu.device, os.R_OK | os.W_OK)]
    if closed:
        detail = found.problem or "no driver is loaded: there is no /dev/nvidiactl"
        return [Finding("GPUs", "NVIDIA", "missing", _PURPOSE, detail)]
    closed = [gpu.device for gpu in found.gpus if not os.access(gpu.device, os.R_OK | os.W_OK)]
    if closed:
        return [Finding("GPUs", "NVIDIA", "limited", _PURPOSE, f"may not be opened: {', '.join(closed)}")]
    counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(found.counts().items()))
    return [Finding("GPUs", "NVIDIA", "ok", _PURPOSE, f"{counts}, driver {found.driver}")]

"""The processors this process runs on, for those who wait without sleeping."""

import os

give_way = getattr(os, "sched_yield", lambda: None)  # macOS has none


def are_several() -> bool:
    """Whether it may run on more than one. On a single one, who stays awake keeps from its work whoever is waited
    for."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1

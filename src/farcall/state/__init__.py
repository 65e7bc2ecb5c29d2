"""Metadata of a server: what must survive it. `StateStore` is the way in."""

from farcall.state.records import App, AppState, Call, CallStatus, Input, InputStatus, Output, Secret
from farcall.state.store import StateStatistics, StateStore
from farcall.state.writer import WriterStatistics

__all__ = [
    "App",
    "AppState",
    "Call",
    "CallStatus",
    "Input",
    "InputStatus",
    "Output",
    "Secret",
    "StateStatistics",
    "StateStore",
    "WriterStatistics",
]

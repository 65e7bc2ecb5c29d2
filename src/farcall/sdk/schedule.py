"""`Cron` and `Period`: when a deployed function runs by itself."""

from __future__ import annotations

from farcall.errors import InvalidError

__all__ = ["Cron", "Period"]

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 7))
_NAMES = {
    "month": ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    "day of the week": ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
}


class Cron:
    """At the times of a five-field cron expression: minute, hour, day of the month, month, day of the week.

    `timezone` is an IANA name such as "Europe/Berlin". It takes effect when the app is deployed.
    """

    def __init__(self, cron_string: str, timezone: str = "UTC") -> None:
        fields = cron_string.split()
        if len(fields) != 5:
            raise InvalidError(
                f"Cron({cron_string!r}) has {len(fields)} fields; there are five: minute, hour, day, month, weekday"
            )
        for text, (name, low, high) in zip(fields, _FIELDS, strict=True):
            _check_field(cron_string, name, text, low, high)
        self.cron_string = cron_string
        self.timezone = timezone
        if timezone != "UTC":
            from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

            try:
                ZoneInfo(timezone)
            except (ZoneInfoNotFoundError, ValueError):
                raise InvalidError(f"Cron: there is no time zone {timezone!r}") from None

    def __repr__(self) -> str:
        return f"Cron({self.cron_string!r}, timezone={self.timezone!r})"


class Period:
    """Again and again after a time, counted from the deployment. Only `seconds` may be a fraction."""

    def __init__(
        self,
        *,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        hours: int = 0,
        minutes: int = 0,
        seconds: float = 0,
    ) -> None:
        self.parts = {
            "years": years,
            "months": months,
            "weeks": weeks,
            "days": days,
            "hours": hours,
            "minutes": minutes,
            "seconds": seconds,
        }
        for name, value in self.parts.items():
            if name != "seconds" and not isinstance(value, int):
                raise InvalidError(f"Period: {name}={value!r} is not a whole number")
            if value < 0:
                raise InvalidError(f"Period: {name}={value} is below 0")
        if not any(self.parts.values()):
            raise InvalidError("Period() is empty: give it a time, such as Period(hours=1)")

    def __repr__(self) -> str:
        return f"Period({', '.join(f'{name}={value:g}' for name, value in self.parts.items() if value)})"


def _check_field(expression: str, name: str, text: str, low: int, high: int) -> None:
    for part in text.split(","):
        span, _, step = part.partition("/")
        if step and (not step.isdigit() or int(step) == 0):
            raise InvalidError(f"Cron({expression!r}): {step!r} is not a step of the {name}")
        if span == "*":
            continue
        for end in span.split("-", 1):
            known = end.lower() in _NAMES.get(name, ())
            if not known and not (end.isdigit() and low <= int(end) <= high):
                raise InvalidError(f"Cron({expression!r}): {end!r} is not a {name} from {low} to {high}")

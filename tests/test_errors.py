"""Errors by their codes."""

from farcall import errors


class Nameless(errors.InvalidError):
    """A kind of InvalidError that has no code of its own, as packages define them."""


def test_each_code_gives_its_class_back() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FarcallError)]
    assert len(kinds) > 20
    for kind in kinds:
        rebuilt = errors.from_code(kind.code, "what happened")
        assert (type(rebuilt), str(rebuilt)) == (kind, "what happened")


def test_a_subclass_without_a_code_travels_as_its_base() -> None:
    assert type(errors.from_code(Nameless("x").code, "x")) is errors.InvalidError


def test_an_unknown_code_is_named() -> None:
    error = errors.from_code("from-the-future", "what happened")
    assert (type(error), str(error)) == (errors.RemoteError, "what happened (error code 'from-the-future')")

"""Semantics: with_options, with_concurrency and with_batching give independent variants."""

from typing import TYPE_CHECKING, Any

import pytest
import variants_app
from variants_app import app  # noqa: F401 - the fixture runs it

import farcall
from farcall import errors
from farcall.sdk import client as clients

if TYPE_CHECKING:
    from tests.conftest import Installation


def test_a_variant_has_containers_of_its_own() -> None:
    """.with_options gives an independent variant: its containers are its own, and the function stays as it is."""
    variant = variants_app.where.with_options(env={"OF_VARIANT": "variant"}, memory=256)
    identity, value = variant.remote("OF_VARIANT")
    assert value == "variant"
    own, nothing = variants_app.where.remote("OF_VARIANT")
    assert own != identity
    assert nothing is None
    assert variants_app.where.remote("OF_FUNCTION")[1] == "function"
    assert variant.remote("OF_FUNCTION") == (identity, None)
    assert variant.remote("OF_APP")[1] == "app"


def test_equal_variants_share_containers() -> None:
    """Variants that say the same are the same, whoever makes them; what changes nothing is the function itself."""
    options: dict[str, Any] = {"env": {"A": "1", "B": "2"}, "timeout": 60}
    first = variants_app.where.with_options(**options)
    second = variants_app.where.with_options(timeout=60).with_options(env={"B": "2", "A": "1"})
    assert first.remote()[0] == second.remote()[0]
    assert variants_app.where.with_options(timeout=300) is variants_app.where


def test_secrets_of_a_variant_take_the_place_of_the_function_s() -> None:
    """Secrets replace those of the function; the app's come first all the same, and env= comes last."""
    secret = farcall.Secret.from_dict({"BOTH": "variant", "OF_FUNCTION": "secret"})
    variant = variants_app.where.with_options(secrets=[secret])
    assert variant.remote("BOTH")[1] == "variant"
    assert variant.remote("OF_APP")[1] == "app"
    assert variant.remote("OF_FUNCTION")[1] == "function"


def test_timeout_and_retries_of_a_variant() -> None:
    """Each variant has its own timeout and retries."""
    assert variants_app.sleep.remote(1.3)
    with pytest.raises(errors.FunctionTimeoutError, match="its timeout of 1 s"):
        variants_app.sleep.with_options(timeout=1).remote(30)
    policy = farcall.Retries(max_retries=2, initial_delay=0.0)
    assert variants_app.fail_at_first.with_options(retries=policy, max_containers=1).remote(2) == 3
    with pytest.raises(ValueError, match="attempt 1"):
        variants_app.fail_at_first.remote(2)


def test_with_concurrency() -> None:
    """.with_concurrency: as if @concurrent decorated it."""
    assert (
        list(variants_app.meet.with_concurrency(max_inputs=4).with_options(max_containers=1).map([4] * 4)) == [True] * 4
    )


def test_with_batching() -> None:
    """.with_batching: as if @batched decorated it, for functions and for classes of one method."""
    assert variants_app.double.remote(4) == 8
    assert list(variants_app.double.with_batching(max_batch_size=3, wait_ms=50).map(range(7))) == list(range(0, 14, 2))
    batched = variants_app.Single.with_batching(max_batch_size=3, wait_ms=20_000)  # type: ignore[attr-defined]
    assert list(batched().run.map(range(3))) == [(0, 3), (1, 3), (2, 3)]


def test_generators_and_spawned_calls_of_variants(connected: "Installation") -> None:
    """Generators, maps and spawned calls go to the variant too."""
    variant = variants_app.count.with_options(env={"X": "1"})
    items = list(variant.remote_gen(3))
    assert [i for i, _ in items] == [0, 1, 2]
    assert items[0][1] not in {identity for _, identity in variants_app.count.remote_gen(1)}
    slept = variants_app.sleep.with_options(env={"X": "1"})
    call = slept.spawn(0)
    assert call.get(timeout=20) == slept.remote(0)
    assert set(slept.map([0] * 3)) != {variants_app.sleep.remote(0)}


def test_classes_with_options() -> None:
    """A class's variant has pools of its own for each set of parameters."""
    variant: Any = variants_app.Model.with_options(env={"V": "1"})  # type: ignore[attr-defined]
    assert variant(name="a").environment.remote("V") == "1"
    assert variants_app.Model(name="a").environment.remote("V") is None
    identities = {
        one.identity.remote() for one in (variant(name="a"), variants_app.Model(name="a"), variant(), variant(name="m"))
    }
    assert sorted(name for name, _ in identities) == ["a", "a", "m"]
    assert len({identity for _, identity in identities}) == 3


def test_a_method_of_a_variant_calls_its_own_class() -> None:
    """In a variant's container the object is the variant's: its methods, called remotely, run there."""
    variant: Any = variants_app.Model.with_concurrency(max_inputs=2)  # type: ignore[attr-defined]
    here, there = variant(name="own").both.remote()
    assert here == there


def test_variants_made_in_containers() -> None:
    """A function in a container makes variants as a program does."""
    first, second, itself = variants_app.nested.remote()
    assert first == second != itself


def test_variants_travel() -> None:
    """A variant passed to a function is that variant there."""
    variant = variants_app.where.with_options(env={"T": "travelled"})
    identity, value = variants_app.call_it.remote(variant, "T")
    assert value == "travelled"
    assert variant.remote("T")[0] == identity
    instance: Any = variants_app.Model.with_options(env={"T": "travelled"})(name="x")  # type: ignore[attr-defined]
    assert variants_app.call_it.remote(instance.environment, "T") == "travelled"


def test_a_container_cannot_reach_for_a_secret_of_others(connected: "Installation") -> None:
    """A container makes no variant with a stored secret that its app was not given."""
    connected.farcall("secret", "create", "of-somebody-else", "KEY=hidden")
    with pytest.raises(errors.NotFoundError, match="there is no function"):
        variants_app.steal.remote()
    assert (
        variants_app.where.with_options(secrets=[farcall.Secret.from_name("of-somebody-else")]).remote("KEY")[1]
        == "hidden"
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: variants_app.where.with_options(timeout=0), "with_options: timeout=0 is outside 1 to 86400"),
        (lambda: variants_app.where.with_options(memory=-1), "memory=-1 is not a positive whole number"),
        (lambda: variants_app.where.with_options(image=None, name="x"), "cannot change name"),
        (lambda: variants_app.where.with_concurrency(max_inputs=0), "with_concurrency: max_inputs=0 is not 1 to 1000"),
        (lambda: variants_app.where.with_batching(max_batch_size=0, wait_ms=1), "max_batch_size=0 is not 1 to 1000"),
        (lambda: variants_app.where.with_batching(max_batch_size=2, wait_ms=1), "cannot have default arguments"),
        (lambda: variants_app.count.with_batching(max_batch_size=2, wait_ms=1), "a generator cannot be batched"),
        (
            lambda: variants_app.Model.with_batching(max_batch_size=2, wait_ms=1),  # type: ignore[attr-defined]
            "only a class with one method can be batched; it has identity, both, environment, later",
        ),
        (
            lambda: variants_app.Model().identity.with_options(timeout=5),
            r"write Model.with_options\(...\)\(...\).ident",
        ),
    ],
)
def test_what_a_variant_cannot_be(make: Any, match: str) -> None:
    """Wrong values are refused at once, saying what is allowed."""
    with pytest.raises(errors.InvalidError, match=match):
        make()


def test_a_variant_that_can_never_be_held() -> None:
    """A variant that no worker could ever satisfy fails at once, the function itself does not."""
    with pytest.raises(errors.ResourceExhaustedError, match="where asks for 100000 cores"):
        variants_app.where.with_options(cpu=100_000).remote()


def test_a_variant_ends_with_its_app() -> None:
    """A variant is callable while its app runs, and again when it runs again."""
    own = farcall.App("of-variants")
    function = own.function(serialized=True, name="f")(lambda: 1)
    variant = function.with_options(timeout=10)
    with pytest.raises(errors.InvalidError, match="its app is not running"):
        variant.remote()
    for _ in range(2):
        with own.run():
            assert variant.remote() == 1
        with pytest.raises(errors.InvalidError, match="its app is not running"):
            variant.remote()
    assert not [report for report in clients.current().status().apps if report.name == "of-variants"]


def test_idle_variants_are_no_functions_of_the_app() -> None:
    """`farcall app list` counts what was declared."""
    variants_app.where.with_options(timeout=17).remote()
    (report,) = [report for report in clients.current().status().apps if report.name == "variants"]
    assert report.functions == len(variants_app.app.registered_functions) + len(variants_app.app.registered_classes)

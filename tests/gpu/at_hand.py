"""What `make test-gpu` needs on a machine as it is: a limit on the time, and tests that run without hypothesis.

A plugin: `pytest -p tests.gpu.at_hand --seconds 450`. Where hypothesis is installed, it is used. Else this stands in
for the part of it that these tests use: each gets as many examples as it asks for, drawn from a seed of its own, the
ends of ranges more often than by chance. A failing example is named, and not made smaller.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from typing import Any

import pytest

START = time.monotonic()
EXAMPLES = 40  # of a test that does not say how many
AT_AN_END = 0.1  # the share of numbers that are an end of their range, for each end


class Strategy:
    """Draws a value from a random generator."""

    def __init__(self, draw: Callable[[random.Random], Any]) -> None:
        self.draw = draw

    def filter(self, wanted: Callable[[Any], object]) -> Strategy:
        def draw(source: random.Random) -> Any:
            while not wanted(value := self.draw(source)):
                pass
            return value

        return Strategy(draw)


class Data:
    """What a test draws from on its way."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def draw(self, strategy: Strategy) -> Any:
        return strategy.draw(self._source)


def sampled_from(values: Sequence[Any]) -> Strategy:
    return Strategy(lambda source: source.choice(list(values)))


def just(value: Any) -> Strategy:
    return Strategy(lambda source: value)


def integers(least: int, most: int) -> Strategy:
    return _numbers(least, most, random.Random.randint)


def floats(least: float, most: float, width: int = 64) -> Strategy:
    return _numbers(least, most, random.Random.uniform)


def _numbers(least: Any, most: Any, between: Callable[[random.Random, Any, Any], Any]) -> Strategy:
    def draw(source: random.Random) -> Any:
        chance = source.random()
        return least if chance < AT_AN_END else most if chance > 1 - AT_AN_END else between(source, least, most)

    return Strategy(draw)


def tuples(*parts: Strategy) -> Strategy:
    return Strategy(lambda source: tuple(part.draw(source) for part in parts))


def lists(part: Strategy, *, min_size: int = 0, max_size: int = 10) -> Strategy:
    size = integers(min_size, max_size)
    return Strategy(lambda source: [part.draw(source) for _ in range(size.draw(source))])


def one_of(*choices: Strategy) -> Strategy:
    return Strategy(lambda source: source.choice(choices).draw(source))


def composite(function: Callable[..., Any]) -> Callable[..., Strategy]:
    def made(*args: Any, **kwargs: Any) -> Strategy:
        return Strategy(lambda source: function(Data(source).draw, *args, **kwargs))

    return made


STRATEGIES: dict[str, Any] = {
    "sampled_from": sampled_from,
    "just": just,
    "none": lambda: just(None),
    "booleans": lambda: sampled_from([False, True]),
    "integers": integers,
    "floats": floats,
    "tuples": tuples,
    "lists": lists,
    "one_of": one_of,
    "composite": composite,
    "data": lambda: Strategy(Data),
    "SearchStrategy": Strategy,
    "DrawFn": Callable,
    "DataObject": Data,
}


class settings:  # named as hypothesis names it
    """How many examples a test gets, and the profile, of which only the name is kept."""

    profile = "default"

    def __init__(self, max_examples: int = EXAMPLES, **_: Any) -> None:
        self.examples = max_examples

    def __call__(self, test: Any) -> Any:
        test.examples = self.examples
        return test

    @classmethod
    def register_profile(cls, name: str, **_: Any) -> None:
        """Take a profile, whose settings are not followed."""

    @classmethod
    def load_profile(cls, name: str) -> None:
        cls.profile = name

    @classmethod
    def get_current_profile_name(cls) -> str:
        return cls.profile


def given(*last: Strategy, **named: Strategy) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test with drawn arguments: its last parameters, or those named; pytest gives the others."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        parameters = list(inspect.signature(test).parameters.values())
        drawn = dict(zip([one.name for one in parameters[len(parameters) - len(last) :]], last, strict=True)) | named

        @functools.wraps(test)
        def run(**others: Any) -> None:
            for number in range(getattr(run, "examples", EXAMPLES)):
                source = random.Random(f"{test.__qualname__} {number}")
                example = {name: strategy.draw(source) for name, strategy in drawn.items()}
                try:
                    test(**others, **example)
                except Exception as fault:
                    fault.add_note(f"Falsifying example {number}: {example}")
                    raise

        left = [one for one in parameters if one.name not in drawn]
        run.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]
        return run

    return decorate


def _stand_in() -> None:
    names = ("hypothesis", "hypothesis.strategies")
    # With a specification, which torch looks for in every module that it knows by name.
    package, strategies = (module_from_spec(ModuleSpec(name, None)) for name in names)
    vars(strategies).update(STRATEGIES)
    vars(package).update(settings=settings, given=given, strategies=strategies)
    sys.modules |= zip(names, (package, strategies), strict=True)


try:
    import hypothesis  # noqa: F401

    STANDING_IN = False
except ImportError:
    _stand_in()
    STANDING_IN = True


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --seconds, and the option that hypothesis would add."""
    parser.addoption("--seconds", type=float, default=float("inf"), help="no test of the device is begun after so many")
    if STANDING_IN:
        parser.addoption("--hypothesis-profile", default=settings.profile)


def pytest_configure(config: pytest.Config) -> None:
    """Follow that option when tests/conftest.py has been read, as hypothesis does."""
    if STANDING_IN:
        settings.load_profile(config.getoption("--hypothesis-profile"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what the time is too short for."""
    seconds = item.config.getoption("--seconds")
    if time.monotonic() - START > seconds:
        pytest.skip(f"left out: {seconds:.0f} s are spent; SECTION=... takes one file's tests alone")

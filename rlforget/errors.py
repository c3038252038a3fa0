"""The named faults. One class a kind; each message says what was expected, what was found and what to do."""

from __future__ import annotations


class RlforgetError(Exception):
    """A fault of the input, with a message for the person who can mend it.

    Args:
        what: The thing at fault, e.g. a path or a tensor name.
        expected: What should have been there.
        found: What was there.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, expected: str, found: str, fix: str) -> None:
        self.what, self.expected, self.found, self.fix = what, expected, found, fix
        super().__init__(f"{what}: expected {expected}; found {found}. {fix}")


class NotACheckpointError(RlforgetError):
    """A path that holds no readable safetensors checkpoint."""


class LayoutError(RlforgetError):
    """Two sets of weights differ in names, shapes or dtypes."""


class WrongBaseError(RlforgetError):
    """A delta meets weights whose bits are not the ones it expects."""


class DeltaFileError(RlforgetError):
    """A delta file that is truncated, forged, or of another format."""


class ExportError(RlforgetError):
    """A change that the format of an export has no room for."""


class HistoryError(RlforgetError):
    """A history that is damaged, in use, or does not have what is asked of it."""


class NothingToCommitError(HistoryError):
    """A commit of weights that are their parent's, bit for bit."""


class CoordinateError(RlforgetError):
    """Coordinates that are out of range, out of order or not part of the delta."""


class UnknownNameError(RlforgetError, KeyError):
    """A domain, score, method or tensor that does not exist. It is a KeyError, for the mappings that raise it."""

    __str__ = Exception.__str__  # a KeyError would show its message in quotes


class EmptyDomainError(RlforgetError):
    """A domain that has no examples."""


class ShortDomainError(RlforgetError):
    """A domain with fewer prompts than were asked for."""


class DomainFileError(RlforgetError):
    """A domain file with a line that cannot be used."""


class TaskError(RlforgetError):
    """A pair of prompts that cannot be compared."""


class UndefinedCircuitError(RlforgetError):
    """A metric that no head can change: every set of heads explains it, so no circuit is defined."""


class RewardError(RlforgetError):
    """A reward that raised, or returned something that is no number in [0, 1]."""


class SandboxError(RlforgetError):
    """A machine on which code that nobody has read cannot be confined."""


class NonFiniteError(RlforgetError):
    """NaN or Inf where a finite number is needed."""


class ZeroGradientError(RlforgetError):
    """Gradients that are zero throughout: they say nothing about what they were taken of."""


class ParameterError(RlforgetError):
    """A parameter whose gradients cannot be taken: frozen, quantised, or not in bounded memory."""


class ConfigError(RlforgetError):
    """A configuration with an unknown key, a wrong type or an impossible value."""


class NothingLostError(RlforgetError):
    """A domain to restore that lost nothing: no share of its loss can be regained."""


class NothingGainedError(RlforgetError):
    """A domain to protect that gained nothing: no share of its gain can be kept."""


class ForgettingWarning(UserWarning):
    """A run whose change is predicted, or measured, to cost a protected domain more than was asked for."""


class ReportError(RlforgetError):
    """A run whose results are missing, of another format or version, or damaged."""


class OutputError(RlforgetError):
    """An output that exists already, is read-only, or whose disk is full."""


class BusyError(RlforgetError):
    """A checkpoint that another process, still alive, is writing in place."""


class UnfinishedWriteError(RlforgetError):
    """A checkpoint with an in-place write that did not finish and cannot be taken back here."""


class JournalError(RlforgetError):
    """A record of an in-place write that is damaged, or missing where one is needed."""


class WorldError(RlforgetError):
    """Processes that work together, of which one has stopped, or that cannot."""


class MissingExtraError(RlforgetError):
    """A feature whose optional dependency is not installed."""


def missing_extra(packages: str, *extras: str) -> MissingExtraError:
    """Build the error for an optional package, or several with commas, that the extras install."""
    named = ",".join(extras)
    return MissingExtraError(
        f"the extra{'s' if len(extras) > 1 else ''} {' and '.join(extras)}",
        expected=f"the package{'s' if ', ' in packages else ''} {packages}",
        found="none installed",
        fix=f"Install it with: pip install 'rlforget[{named}]'",
    )

"""The search for a rollback: every rule at several budgets, judged on prompts of its own, and the knee taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rlforget import domains
from rlforget.counting import counted
from rlforget.domains.base import Domain
from rlforget.errors import ConfigError, NothingGainedError, NothingLostError
from rlforget.interference.point import changed_parameters, check_at_after, moved, toward_before
from rlforget.recovery.candidates import BUDGETS, Candidate, candidates
from rlforget.recovery.front import front, knee
from rlforget.recovery.in_place import What, rollback
from rlforget.recovery.judging import Answers, Judge, Scale, Share, difference_stderr, is_more
from rlforget.recovery.prompts import report_prompts, validation_prompts
from rlforget.recovery.workshop import Say, Workshop
from rlforget.weights import open_weights

if TYPE_CHECKING:
    from rlforget.delta import Delta


@dataclass(frozen=True)
class Trial:
    """What one candidate did.

    Attributes:
        candidate: The candidate.
        regained: Share of the restored domains' loss that came back.
        kept: Share of the protected domains' gain that stayed.
        rewards: Mean reward of each domain.
        written: Entries whose bits it changed.
        norm_share: Norm of what it took off over the norm of δ.
    """

    candidate: Candidate
    regained: Share
    kept: Share
    rewards: dict[str, float]
    written: int
    norm_share: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for programs."""
        return {**asdict(self), "label": self.candidate.label, "control": self.candidate.control}


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        restore: The domains that lost something.
        protect: The domains that gained something.
        left_out: For each other domain that was named, why no share of it can be told. It is spared all
            the same.
        then: Mean reward of each domain before the later change, on validation prompts.
        now: Likewise after it.
        trials: Every candidate, the controls last, on validation prompts.
        front: Those that are not controls, and that no other one beats on both shares.
        chosen: The one to take, see `knee`: on the front, but for the noise.
        report: The chosen one on prompts of the evaluation split, which nothing was measured or chosen on.
        report_then: Mean reward of each domain before the later change, on those prompts.
        report_now: Likewise after it.
        what: The chosen one, for `rf.rollback(model, delta, search.what, seed=search.seed)`.
        seed: The seed of all draws.
    """

    restore: tuple[str, ...]
    protect: tuple[str, ...]
    left_out: dict[str, str]
    then: dict[str, float]
    now: dict[str, float]
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    chosen: Trial
    report: Trial
    report_then: dict[str, float]
    report_now: dict[str, float]
    what: What
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything but what is to be rolled back, for programs."""
        return {
            "restore": list(self.restore),
            "protect": list(self.protect),
            "left_out": self.left_out,
            "validation": {
                "then": self.then,
                "now": self.now,
                "trials": [trial.to_dict() for trial in self.trials],
                "front": [trial.candidate.label for trial in self.front],
                "chosen": self.chosen.candidate.label,
            },
            "evaluation": {"then": self.report_then, "now": self.report_now, "chosen": self.report.to_dict()},
            "seed": self.seed,
        }


def auto_rollback(
    model: nn.Module,
    tokenizer: Any,
    delta: Delta,
    *,
    restore: Sequence[str | Domain],
    protect: Sequence[str | Domain],
    rules: Sequence[str] | None = None,
    budgets: Sequence[float] = BUDGETS,
    lams: Sequence[float] | None = None,
    samples: int = 256,
    validation: int = 256,
    draws: int = 2,
    evaluation: int = 512,
    seed: int = 0,
    say: Say | None = None,
) -> Search:
    """Find the rollback that gives the earlier domains back most and costs the later ones least, without training.

    Every candidate is rolled back on the live model, judged and undone to the bit. Three sets of prompts are kept
    apart: those that the rules are measured on, those that they are judged by (both of the train split), and those of
    the evaluation split, that the chosen one alone is reported on. Before the later change stands the model with the
    delta's before bits. What is chosen is the `knee` of the front. Ours.

    Args:
        model: A transformers causal language model at the delta's after bits. Its bits are back afterwards.
        tokenizer: Its tokenizer.
        delta: The later change, from the stage to restore to now.
        restore: The domains that were damaged.
        protect: The domains whose gain is to stay.
        rules: Names of `candidates.RULES`; None: all.
        budgets: Shares of all coordinates to try, for the rules that put old bits back.
        lams: Weights of the protected domains to try; None: each rule's own.
        samples: Completions a domain that the rules are measured on.
        validation: Prompts a domain that they are judged by.
        draws: Completions for each of these.
        evaluation: Prompts a domain for the report.
        seed: Seed of all draws.
        say: Told of every step.

    Raises:
        ConfigError: An argument out of range; a domain to restore and to protect.
        EmptyDomainError: A domain has too few prompts to keep the three sets apart.
        NothingGainedError: No domain to protect gained anything.
        NothingLostError: No domain to restore lost anything.
        UnknownNameError: There is no such rule or domain.
        WrongBaseError: The model is not at the delta's after bits.
        RlforgetError: Whatever else measuring raises.
    """
    planned = candidates(rules, budgets, lams)
    say = say or (lambda _: None)
    named = [domains.get(one) for one in restore], [domains.get(one) for one in protect]
    _check_domains(*named)
    check_at_after(open_weights(model), delta)
    asked = validation_prompts([*named[0], *named[1]], samples=samples, count=validation, seed=seed)
    judge = Judge(tokenizer, asked, draws=draws, seed=seed)
    kept_for_report = report_prompts(asked, samples=samples, count=evaluation, seed=seed)  # too few are told at once
    say(f"rewards before and after, on {validation} prompts a domain")
    then, now = _ends(judge, model, delta)
    restored, protected, left_out = _told_apart(*named, then, now)
    spared = [one for one in (*named[1], *named[0]) if one not in restored]
    workshop = Workshop(model, tokenizer, delta, restored, spared, samples=samples, seed=seed, say=say)
    lost, gained = [one.name for one in restored], [one.name for one in protected]
    scale = Scale(lost, gained, then, now)
    trials: list[Trial] = []
    answered: list[Answers] = []
    for number, candidate in enumerate(counted("rollbacks", planned), start=1):
        what = workshop.make(candidate)
        say(f"{number}/{len(planned)}: {candidate.label}")
        answers, trial = _tried(model, delta, candidate, what, judge, scale, seed)
        answered.append(answers)
        trials.append(trial)
    free = [trial for trial in trials if not trial.candidate.control]  # they come first
    points = [(trial.regained.value, trial.kept.value) for trial in free]

    def noise(one: int, other: int) -> float:
        return difference_stderr(answered[one], answered[other], scale.whole)

    chosen = free[knee(points, noise)]
    what = workshop.make(chosen.candidate)
    say(f"report on {evaluation} evaluation prompts a domain: {chosen.candidate.label}")
    final = Judge(tokenizer, kept_for_report, seed=seed)
    report_then, report_now = _ends(final, model, delta)
    _, report = _tried(model, delta, chosen.candidate, what, final, Scale(lost, gained, report_then, report_now), seed)
    return Search(
        restore=tuple(lost),
        protect=tuple(gained),
        left_out=left_out,
        then=_means(then),
        now=_means(now),
        trials=tuple(trials),
        front=tuple(free[at] for at in front(points)),
        chosen=chosen,
        report=report,
        report_then=_means(report_then),
        report_now=_means(report_now),
        what=what,
        seed=seed,
    )


def _check_domains(restore: Sequence[Domain], protect: Sequence[Domain]) -> None:
    for name, given in (("restore", restore), ("protect", protect)):
        if not given:
            raise ConfigError(name, expected="one domain or more", found="none", fix=f"Name one with {name}=.")
    names = [one.name for one in (*restore, *protect)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            "restore and protect",
            expected="domains that differ",
            found=f"{twice[0]!r} twice",
            fix="Name each domain once.",
        )


def _ends(judge: Judge, model: nn.Module, delta: Delta) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the answers before the later change and after it."""
    with moved(model, changed_parameters(model, delta), toward_before(delta, 1.0)):
        then = judge.answers(model)
    return then, judge.answers(model)


def _told_apart(
    restore: Sequence[Domain], protect: Sequence[Domain], then: Answers, now: Answers
) -> tuple[list[Domain], list[Domain], dict[str, str]]:
    """Return the domains that lost, those that gained, and what is to be said of the others."""
    left_out: dict[str, str] = {}

    def change(name: str) -> str:
        return f"{float(then[name].mean()):.3f} → {float(now[name].mean()):.3f}"

    restored = [one for one in restore if is_more(then[one.name], now[one.name])]
    protected = [one for one in protect if is_more(now[one.name], then[one.name])]
    left_out |= {one.name: f"lost nothing: {change(one.name)}" for one in restore if one not in restored}
    left_out |= {one.name: f"gained nothing: {change(one.name)}" for one in protect if one not in protected}
    said = "; ".join(f"{name} {why}" for name, why in left_out.items())
    if not restored:
        raise NothingLostError(
            "restore",
            expected="a domain that the later change cost something",
            found=said,
            fix="Name another one, or give a delta from an earlier stage.",
        )
    if not protected:
        raise NothingGainedError(
            "protect",
            expected="a domain that gained by the later change, for a share kept to be told",
            found=said,
            fix="Name another one, or choose a rule yourself.",
        )
    return restored, protected, left_out


def _tried(
    model: nn.Module,
    delta: Delta,
    candidate: Candidate,
    what: What,
    judge: Judge,
    scale: Scale,
    seed: int,
) -> tuple[dict[str, Tensor], Trial]:
    """Roll back, judge, and put every bit back."""
    with rollback(model, delta, what, seed=seed) as undo:
        answers = judge.answers(model)
    regained, kept = scale.shares(answers)
    report = undo.report
    return answers, Trial(candidate, regained, kept, _means(answers), report.written, report.norm_share)


def _means(answers: Answers) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in answers.items()}

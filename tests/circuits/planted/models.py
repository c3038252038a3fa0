"""Three algorithms as hand-set weights, with the heads that each needs, known by construction.

A head is in the circuit of a task when replacing its output, at every position, lowers the metric (log-probability of
the target less that of the distractor). That depends on what it is replaced by, so every task names two circuits:

- under zero ablation: every head through which the answer passes, or that decides where an answering head looks;
- under resample ablation: of those, the heads whose output differs between the clean and the counterfactual prompt. A
  head that is equal on both can be replaced without any change, however much it is needed.

Where a task has two kinds of counterfactuals, the second circuit therefore differs between them and the first does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rlforget.circuits import Pair, Task

from .assembly import Blueprint, Stream

LAYERS, HEADS = 3, 8
LETTERS = "abcdefgh"
LOGIT = 10.0  # logit of an answer that is fully attended to
LEAK = 0.001  # share of every head that reaches every coordinate, see `Blueprint.distract`

HeadIndex = tuple[int, int]  # (layer, head)


@dataclass(frozen=True)
class Case:
    """One kind of counterfactual, and the roles whose heads are the circuit under each ablation."""

    task: Task
    resample: frozenset[str]
    zero: frozenset[str]


@dataclass(frozen=True)
class Planted:
    """A model and the roles of its heads.

    Attributes:
        model: A transformers model, float32, in evaluation mode.
        roles: {role: (layer, head)}; every other head distracts.
        cases: {kind of counterfactual: case}; prompts are token ids, so no tokenizer is needed.
    """

    model: Any
    roles: dict[str, HeadIndex]
    cases: dict[str, Case]

    def truth(self, case: str, ablation: str) -> torch.Tensor:
        """Return the circuit as bool [layers, heads]."""
        mask = torch.zeros(LAYERS, HEADS, dtype=torch.bool)
        for role in getattr(self.cases[case], ablation):
            mask[self.roles[role]] = True
        return mask


def copy(seed: int = 0, *, leak: float = LEAK, pairs: int = 64) -> Planted:
    """GPT-2: `^abcdef!=` → c, `^abcdef?=` → b: copy a symbol in two hops; the mark says which.

    - fetch (layer 0) looks back three tokens and notes the symbol there: c at f's place, b at e's.
    - mark (layer 1) looks back one token and notes at `=` whether that is ! or ?.
    - deliver (layer 2) goes by the note: with ! it attends to the sixth place, with ? to the fifth, without any to
      `^`; and it answers with what fetch noted there.

    Counterfactual `symbols`, other symbols and the same mark: fetch and deliver differ, mark does not. Counterfactual
    `mark`, the same symbols and the other mark: mark and deliver differ, fetch does not. Zero: without any of the
    three nothing arrives.
    """
    width = len(LETTERS)
    stream = Stream(start=1, symbol=width, position=9, mark=2, noted=width, instruction=2, answer=width, junk=8)
    plan = Blueprint("gpt2", stream, f"^!?={LETTERS}", LAYERS, HEADS, HEADS, 16, length=9)
    generator = torch.Generator().manual_seed(seed)
    roles = _places(generator, fetch=0, mark=1, deliver=2)
    fetch, mark, deliver = (plan.table[layer][head] for layer, head in roles.values())
    _letters(plan)
    plan.says("^", "start", {0: 1.0})
    plan.says("!", "mark", {0: 1.0})
    plan.says("?", "mark", {1: 1.0})
    plan.look_back(fetch, 3)
    plan.move(fetch, stream["symbol"], stream["noted"])
    plan.look_back(mark, 1)
    plan.move(mark, stream["mark"], stream["instruction"])
    plan.match(deliver, stream["instruction"], [stream["position"][6], stream["position"][5]])
    plan.rest(deliver)
    plan.move(deliver, stream["noted"], stream["answer"])
    plan.distract(set(roles.values()), leak, generator)

    def prompt(symbols: str, sign: str) -> tuple[str, str]:
        return f"^{symbols}{sign}=", symbols[2] if sign == "!" else symbols[1]

    def draw(kind: str) -> tuple[tuple[str, str], tuple[str, str]]:
        symbols, sign = _sample(LETTERS, 6, generator), _sample("!?", 1, generator)
        if kind == "mark":
            return prompt(symbols, sign), prompt(symbols, "!?".replace(sign, ""))
        return prompt(symbols, sign), prompt(_sample(LETTERS, 6, generator), sign)

    whole = frozenset({"fetch", "mark", "deliver"})
    cases = {
        "symbols": Case(_task("copy/symbols", plan, draw, pairs), whole - {"mark"}, whole),
        "mark": Case(_task("copy/mark", plan, draw, pairs), whole - {"fetch"}, whole),
    }
    return Planted(plan.build(), roles, cases)


def lookup(seed: int = 0, *, leak: float = LEAK, pairs: int = 64) -> Planted:
    """Qwen2 with two KV heads: `^c4a1f7b2:f` → 7: find a key in a list and answer with what follows it.

    - previous (layer 0) looks back one token and notes the key there, at every place.
    - induction (layer 2) attends to the place whose note is the key asked for and answers with the value there.
    - suppressor (layer 2) shares induction's keys and values, asks as it does, and subtracts 0.4 of the answer. It
      belongs to no circuit: without it the model does better, so its score should be below that of any idle head.

    Counterfactual `asked`, another key asked for in the same list: previous is equal in the list, and what it notes
    after the list nobody reads; induction alone differs. Counterfactual `keys`, the list's keys dealt out anew, such
    that the asked one stands before another value: both differ. Zero: without notes induction rests on `^`.
    """
    digits = "0123456789"
    keys, values = len(LETTERS), len(digits)
    stream = Stream(start=1, key=keys, value=values, noted=keys, answer=values, junk=8)
    plan = Blueprint("qwen2", stream, f"^:{LETTERS}{digits}", LAYERS, HEADS, 2, 48, length=11)
    generator = torch.Generator().manual_seed(seed)
    roles = _places(generator, previous=0, induction=2)
    group = roles["induction"][1] // (HEADS // 2)
    others = [h for h in range(group * 4, group * 4 + 4) if (2, h) != roles["induction"]]
    roles["suppressor"] = (2, others[int(torch.randint(len(others), (), generator=generator))])
    previous, induction, suppressor = (plan.table[layer][head] for layer, head in roles.values())
    for i, letter in enumerate(LETTERS):
        plan.says(letter, "key", {i: 1.0})
    for i, digit in enumerate(digits):
        plan.says(digit, "value", {i: 1.0})
        plan.unembedding[plan.token(digit), stream["answer"][i]] = LOGIT
    plan.says("^", "start", {0: 1.0})
    plan.look_back(previous, 1)
    plan.move(previous, stream["key"], stream["noted"])
    for head, factor in ((induction, 1.0), (suppressor, -0.4)):
        plan.match(head, stream["key"], stream["noted"])
        plan.rest(head)
        plan.move(head, stream["value"], stream["answer"], factor)
    plan.distract(set(roles.values()), leak, generator)

    def draw(kind: str) -> tuple[tuple[str, str], tuple[str, str]]:
        names, figures = _sample(LETTERS, 4, generator), _sample(digits, 4, generator)
        asked = names[int(torch.randint(4, (), generator=generator))]

        def prompt(order: str, key: str) -> tuple[str, str]:
            listed = "".join(a + b for a, b in zip(order, figures, strict=True))
            return f"^{listed}:{key}", figures[order.index(key)]

        if kind == "asked":
            return prompt(names, asked), prompt(names, _sample(names.replace(asked, ""), 1, generator))
        return prompt(names, asked), prompt(_sample(names, 4, generator), asked)

    both = frozenset({"previous", "induction"})
    cases = {
        "asked": Case(_task("lookup/asked", plan, draw, pairs), both - {"previous"}, both),
        "keys": Case(_task("lookup/keys", plan, draw, pairs), both, both),
    }
    return Planted(plan.build(), roles, cases)


def compare(seed: int = 0, *, leak: float = LEAK / 4, pairs: int = 64) -> Planted:
    """Llama, without biases: `^><52=` → >: say which of two digits is larger.

    - left (layer 0) looks back two tokens and adds the digit there to a sum; right looks back one and subtracts it.
    - judge (layer 1) asks with that sum: `>` scores the sum, `<` minus the sum; it answers with the one attended to.

    Digits count from -5 to 5 in steps of two. Counterfactual `left`, another left digit that turns the answer round:
    left and judge differ, right does not. Counterfactual `swapped`, the digits in the other order: all three differ;
    with left replaced both digits are the right one, and judge rests on `^`. Zero: without left the sum is minus the
    right digit, which has the right sign more often than not, but is smaller; likewise without right; without judge
    there is no answer.

    Judge multiplies the sum by what it finds at `>` and `<`, and so magnifies a leak more than the others do.
    """
    digits = "012345"
    stream = Stream(start=1, digit=1, side=1, sign=2, sum=1, answer=2, junk=8)
    plan = Blueprint("llama", stream, f"^><={digits}", LAYERS, HEADS, HEADS, 32, length=6)
    generator = torch.Generator().manual_seed(seed)
    roles = _places(generator, left=0, right=0, judge=1)
    left, right, judge = (plan.table[layer][head] for layer, head in roles.values())
    for value, digit in enumerate(digits):
        plan.says(digit, "digit", {0: 2.0 * value - 5.0})
    for i, sign in enumerate("><"):
        plan.says(sign, "side", {0: 1.0 - 2.0 * i})
        plan.says(sign, "sign", {i: 1.0})
        plan.unembedding[plan.token(sign), stream["answer"][i]] = LOGIT
    plan.says("^", "start", {0: 1.0})
    for head, distance, factor in ((left, 2, 1.0), (right, 1, -1.0)):
        plan.look_back(head, distance)
        plan.move(head, stream["digit"], stream["sum"], factor)
    plan.match(judge, stream["sum"], stream["side"], score=3.0)
    plan.rest(judge, score=3.0)
    plan.move(judge, stream["sign"], stream["answer"])
    plan.distract(set(roles.values()), leak, generator)

    def prompt(a: str, b: str) -> tuple[str, str]:
        return f"^><{a}{b}=", ">" if a > b else "<"

    def draw(kind: str) -> tuple[tuple[str, str], tuple[str, str]]:
        a, b = _sample(digits, 2, generator)
        other = b + a if kind == "swapped" else _sample(digits.replace(b, ""), 1, generator) + b
        return prompt(a, b), prompt(*other)

    whole = frozenset({"left", "right", "judge"})
    cases = {
        "left": Case(_task("compare/left", plan, draw, pairs), whole - {"right"}, whole),
        "swapped": Case(_task("compare/swapped", plan, draw, pairs), whole, whole),
    }
    return Planted(plan.build(), roles, cases)


ALGORITHMS: dict[str, Callable[..., Planted]] = {"copy": copy, "lookup": lookup, "compare": compare}
CASES = [
    ("copy", "symbols"),
    ("copy", "mark"),
    ("lookup", "asked"),
    ("lookup", "keys"),
    ("compare", "left"),
    ("compare", "swapped"),
]
"""(algorithm, kind of counterfactual)."""


def _places(generator: torch.Generator, **layers: int) -> dict[str, HeadIndex]:
    """Deal each role a head of its layer."""
    order = [torch.randperm(HEADS, generator=generator).tolist() for _ in range(LAYERS)]
    return {role: (layer, order[layer].pop()) for role, layer in layers.items()}


def _letters(plan: Blueprint) -> None:
    for i, letter in enumerate(LETTERS):
        plan.says(letter, "symbol", {i: 1.0})
        plan.unembedding[plan.token(letter), plan.stream["answer"][i]] = LOGIT


def _sample(alphabet: str, count: int, generator: torch.Generator) -> str:
    """Draw distinct characters."""
    return "".join(alphabet[i] for i in torch.randperm(len(alphabet), generator=generator)[:count].tolist())


def _task(
    name: str, plan: Blueprint, draw: Callable[[str], tuple[tuple[str, str], tuple[str, str]]], count: int
) -> Task:
    """Draw pairs whose answers differ."""
    pairs: list[Pair] = []
    while len(pairs) < count:
        (clean, target), (other, distractor) = draw(name.partition("/")[2])
        if target != distractor:
            pairs.append(Pair(*(plan.encode(text) for text in (clean, other, target, distractor))))
    return Task(name, pairs)

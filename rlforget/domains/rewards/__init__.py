"""Rewards for domains of one's own, each named by its import path, `rlforget.domains.rewards:numeric`.

Each takes an example and a completion and returns a number in [0, 1]. What most check against is the example's
`reference`, or its `answer` where it has none (`exact_match` the answer alone, `json_schema` the reference alone). A
completion they can make nothing of is worth 0; an example they can make nothing of is an error, since every completion
would then be worth 0 without anyone noticing.
"""

from __future__ import annotations

from rlforget.domains.rewards.choice import multiple_choice
from rlforget.domains.rewards.code_tests import code_tests
from rlforget.domains.rewards.final_answer import final_answer
from rlforget.domains.rewards.judge import judge
from rlforget.domains.rewards.matching import exact_match
from rlforget.domains.rewards.numeric import numeric
from rlforget.domains.rewards.program_output import program_output
from rlforget.domains.rewards.schema import json_schema

__all__ = [
    "code_tests",
    "exact_match",
    "final_answer",
    "json_schema",
    "judge",
    "multiple_choice",
    "numeric",
    "program_output",
]

"""A judge behind an address that speaks the OpenAI API, as vLLM, SGLang and most hosts do.

Where it is stands in the environment: `RLFORGET_JUDGE_URL` (up to `/v1`), `RLFORGET_JUDGE_MODEL` and, if one is needed,
`RLFORGET_JUDGE_KEY`.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request

from rlforget.domains.base import Example
from rlforget.domains.rewards.judge import judge
from rlforget.errors import RewardError

_SECONDS = 120.0
WAITS = (1.0, 10.0, 60.0)
"""Seconds before each further try, where the server does not answer or is busy."""


def ask(question: str) -> str:
    """Ask the judge; returns its reply.

    Raises:
        RewardError: No judge is named, it cannot be reached, or it replies with something else.
    """
    address, model = os.environ.get("RLFORGET_JUDGE_URL", ""), os.environ.get("RLFORGET_JUDGE_MODEL", "")
    if not address.startswith(("http://", "https://")) or not model:
        raise _fault("RLFORGET_JUDGE_URL and RLFORGET_JUDGE_MODEL in the environment", f"{address!r} and {model!r}")
    asked = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("RLFORGET_JUDGE_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{address.rstrip('/')}/chat/completions", json.dumps(asked).encode(), headers)
    for wait in (*WAITS, None):
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"])
        except (urllib.error.URLError, TimeoutError) as fault:  # busy, or starting
            if wait is None:
                raise _fault("a reply", f"{type(fault).__name__}: {fault}") from fault
            time.sleep(wait)
        except (ValueError, LookupError, TypeError) as fault:
            raise _fault("a reply of the OpenAI API", f"{type(fault).__name__}: {fault}") from fault
    raise AssertionError("the last try returns or raises")


def writing(example: Example, completion: str) -> float:
    """The judge's score of a piece of writing, by the example's reference where it has one."""
    return judge(ask, rubric=example.reference or _WRITING)(example, completion)


_WRITING = "Grade the writing: whether it does what was asked, its originality, its language and its coherence."


def _fault(expected: str, found: str) -> RewardError:
    return RewardError("the judge", expected=expected, found=found, fix="Start a server, and set the variables.")

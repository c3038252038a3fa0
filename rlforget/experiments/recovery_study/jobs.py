"""Work that is done in pieces, each kept as a file or folder, by one process or several."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

from rlforget.domains.miniature.threads import one_thread
from rlforget.training import Progress

_LOOK = 2.0  # seconds from one look at what is done to the next


@dataclass(frozen=True)
class Job:
    """Something to do.

    Attributes:
        work: A function at the top of its module; done again, it goes on where it was killed.
        arguments: Its arguments, which can be pickled.
        done: How many of its pieces are done; called in the process that waits.
        pieces: How many there are.
    """

    work: Callable[..., None]
    arguments: tuple[Any, ...]
    done: Callable[[], int]
    pieces: int


def run_jobs(title: str, jobs: Sequence[Job], *, processes: int, progress: Progress) -> None:
    """Do what is not done, one torch thread a process, in the order given.

    Raises:
        Exception: What a job raised; jobs that were not started are left.
    """
    open_jobs = [job for job in jobs if job.done() < job.pieces]
    progress.start(title, sum(job.pieces for job in jobs))

    def tell() -> None:
        progress.advance(sum(job.done() for job in jobs), {})

    try:
        if processes == 1:
            for job in open_jobs:
                with one_thread():
                    job.work(*job.arguments)
                tell()
        elif open_jobs:
            _spread(open_jobs, processes, tell)
    finally:
        progress.stop()


def _spread(jobs: Sequence[Job], processes: int, tell: Callable[[], None]) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=_prepare) as pool:
        waiting = {pool.submit(job.work, *job.arguments) for job in jobs}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=_LOOK, return_when=FIRST_EXCEPTION)
                tell()
                for one in finished:
                    one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)

"""A queue of jobs: one at a time for each worker, a place in it for everybody, each stopped at its next step."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from invdiff.checks import whole
from invdiff.errors import InvdiffError

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"
_log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised within a job that was told to stop."""


@dataclass(eq=False)
class Job:
    """What one visitor asked for.

    Attributes:
        number: from 1, in the order of arrival.
        visitor: whose it is.
        work: does it; raises `Stopped` soon after `stopping` is set.
        state: one of waiting, running, done, stopped, failed.
        error: the sentence for a failed one.
        stopping: set when it is to stop.
        began, ended: `time.monotonic()` of its run.
    """

    number: int
    visitor: str
    work: Callable[[Job], Any]
    state: str = WAITING
    error: str = ""
    stopping: threading.Event = field(default_factory=threading.Event)
    began: float = 0.0
    ended: float = 0.0

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (DONE, STOPPED, FAILED)

    def check(self) -> None:
        """Called between the steps of the work.

        Raises:
            Stopped: it was told to stop.
        """
        if self.stopping.is_set():
            raise Stopped


class Jobs:
    """The queue and its workers, which are threads of this process.

    A visitor has one job: another one takes its place, and the first is stopped.

    Args:
        workers: jobs that run at once.
        most_waiting: jobs that wait at most; further ones are refused.
    """

    def __init__(self, workers: int = 1, most_waiting: int = 100) -> None:
        workers = whole("workers", workers, 1, 64)
        self.most_waiting = whole("most_waiting", most_waiting, 1)
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._numbers = itertools.count(1)
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, daemon=True, name=f"worker-{i}") for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, visitor: str, work: Callable[[Job], Any]) -> Job:
        """Put a job at the end of the queue.

        Raises:
            InvdiffError: too many are waiting already, or the queue is closed.
        """
        with self._changed:
            self._stop(visitor)
            if self._closed:
                raise InvdiffError("the server is shutting down")
            if len(self._waiting) >= self.most_waiting:
                many = "1 visitor is" if self.most_waiting == 1 else f"{self.most_waiting} visitors are"
                raise InvdiffError(f"{many} waiting already; try again later")
            job = Job(next(self._numbers), visitor, work)
            self._waiting.append(job)
            self._changed.notify_all()
            return job

    def place(self, job: Job) -> int:
        """How many are served before it, itself included: 1 is the next; 0 for one that waits no more."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    @property
    def length(self) -> int:
        """How many are waiting."""
        return len(self._waiting)

    def stop(self, visitor: str) -> None:
        """Stop the visitor's job, whether it waits or runs; nothing happens where there is none."""
        with self._changed:
            self._stop(visitor)

    def _stop(self, visitor: str) -> None:
        for job in [*self._waiting, *self._running]:
            if job.visitor == visitor:
                job.stopping.set()
                if job.state == WAITING:
                    self._waiting.remove(job)
                    job.state = STOPPED
        self._changed.notify_all()

    def wait(self, job: Job, seconds: float) -> bool:
        """Wait until the job is over, so long at most; whether it is."""
        end = time.monotonic() + seconds
        with self._changed:
            while not job.over and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return job.over

    def close(self) -> None:
        """Stop everything; the workers end."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *self._running]:
                self._stop(job.visitor)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._waiting.popleft()
                self._running.append(job)
                job.state, job.began = RUNNING, time.monotonic()
                self._changed.notify_all()
            state, error = DONE, ""
            try:
                job.work(job)
            except Stopped:
                state = STOPPED
            except InvdiffError as refused:
                state, error = FAILED, str(refused)
            except Exception as broken:  # a worker outlives what it is given
                _log.exception("job %d failed", job.number)
                state, error = FAILED, f"the restoration failed: {type(broken).__name__}: {broken}"
            with self._changed:
                job.state, job.error, job.ended = state, error, time.monotonic()
                self._running.remove(job)
                self._changed.notify_all()


class Turns:
    """Several threads of one job, one of which works at a time: each passes on after every step.

    Args:
        names: of those that take part, in order; the first begins.
    """

    def __init__(self, names: list[str]) -> None:
        self._order = deque(names)
        self._changed = threading.Condition()

    def await_own(self, name: str) -> None:
        """Wait for one's first turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == name)

    def pass_on(self, name: str) -> None:
        """Let the others have a turn each, and come back when it is one's own again."""
        with self._changed:
            self._order.rotate(-1)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._order[0] == name)

    def leave(self, name: str) -> None:
        """Take no more part."""
        with self._changed:
            self._order.remove(name)
            self._changed.notify_all()

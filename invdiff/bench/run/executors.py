"""Where batches run: in this process, or on the workers of a Ray cluster. `shard_of` splits them over independent jobs.

All of them run the same batches with the same code, so the numbers are the same; only the process that started the run
writes to its folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from invdiff.bench.run.worker import Batch, Outcome, Worker, WorkerSpec, failed
from invdiff.checks import one_of
from invdiff.errors import InvdiffError
from invdiff.extensions import import_extensions, imported_extensions

EXECUTORS = ("local", "ray")
ATTEMPTS = 3  # workers that a batch may lose before its cells are recorded as failed

T = TypeVar("T")


def parse_shard(shard: str | tuple[int, int] | None) -> tuple[int, int] | None:
    """``"2/8"``: the second of eight parts.

    Raises:
        InvdiffError: anything else, or a part that there is not.
    """
    if shard is None:
        return None
    parts = shard.split("/") if isinstance(shard, str) else shard
    try:
        part, count = (int(p) for p in parts)
    except (TypeError, ValueError):
        part, count = 0, 0
    if not 1 <= part <= count:
        raise InvdiffError(f"shard must be i/n with i from 1 to n, such as 1/4; got {shard!r}")
    return part, count


def shard_of(items: Sequence[T], shard: tuple[int, int] | None) -> list[T]:
    """Every n-th item from the i-th on: parts of like cost, since neighbours in the grid cost the same."""
    return list(items) if shard is None else list(items[shard[0] - 1 :: shard[1]])


def outcomes(
    executor: str,
    spec: WorkerSpec,
    batches: Sequence[Batch],
    *,
    worker: Worker | None = None,
    workers: int | None = None,
    address: str | None = None,
    gpus_per_worker: float | None = None,
) -> Iterator[Outcome]:
    """Run the batches and yield what came of each, as it is finished.

    Args:
        executor: ``"local"`` or ``"ray"``.
        spec: what a worker is made of.
        batches: what is to be run.
        worker: one that exists in this process, for the local executor.
        workers: how many Ray actors; as many as the cluster has room for by default.
        address: of a Ray cluster; None starts or joins one on this machine.
        gpus_per_worker: such as 0.25 for four workers on each GPU.

    Raises:
        InvdiffError: unknown executor, or Ray is not installed or has no room.
    """
    one_of("executor", executor, EXECUTORS)
    if executor == "local":
        return _local(worker or spec.build(), batches)
    return _on_ray(spec, batches, workers, address, gpus_per_worker)


def _local(worker: Worker, batches: Sequence[Batch]) -> Iterator[Outcome]:
    for batch in batches:
        yield worker.run(batch)


class RayWorker:
    """A worker in a Ray actor; it holds the backbone.

    Args:
        imports: what the driver imported from outside the package; the spec may hold things that are defined there.
        spec: a list of the reference to it, so that Ray does not unpack it before these are imported.
    """

    def __init__(self, imports: Sequence[str], spec: list[Any]) -> None:
        import ray

        import_extensions(imports)
        self.worker = ray.get(spec[0]).build()

    def run(self, batch: Batch) -> Outcome:
        """See `Worker.run`."""
        return self.worker.run(batch)


def _on_ray(
    spec: WorkerSpec,
    batches: Sequence[Batch],
    workers: int | None,
    address: str | None,
    gpus_per_worker: float | None,
) -> Iterator[Outcome]:
    try:
        import ray
    except ImportError:
        raise InvdiffError("the executor 'ray' needs Ray: pip install 'invdiff[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        gpus = gpus_per_worker
        if gpus is None:
            gpus = 1.0 if spec.backbone is None and ray.cluster_resources().get("GPU", 0) else 0.0
        room = _room(ray.cluster_resources(), gpus)
        count = max(1, min(room if workers is None else workers, len(batches)))
        if spec.threads is None:
            spec = replace(spec, threads=max(1, torch.get_num_threads() // count))
        shared = ray.put(spec)
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(RayWorker)
        imports = imported_extensions()
        yield from _spread(ray, lambda: actor.remote(imports, [shared]), spec, batches, count)
    finally:
        if ours:
            ray.shutdown()


def _spread(ray: Any, hire: Any, spec: WorkerSpec, batches: Sequence[Batch], count: int) -> Iterator[Outcome]:
    """Hand the batches to `count` actors. What a lost one was at is run again by a new one."""
    waiting = [(batch, 0) for batch in reversed(batches)]
    busy: dict[Any, tuple[Any, Batch, int]] = {}  # reference -> (actor, batch, attempts so far)
    idle = [hire() for _ in range(count)]
    while waiting or busy:
        while waiting and idle:
            batch, attempts = waiting.pop()
            actor = idle.pop()
            busy[actor.run.remote(batch)] = (actor, batch, attempts)
        done, _ = ray.wait(list(busy), num_returns=1)
        for reference in done:
            actor, batch, attempts = busy.pop(reference)
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as error:
                idle.append(hire())
                if attempts + 1 < ATTEMPTS:
                    waiting.append((batch, attempts + 1))
                    continue
                task, entry = spec.suite.task(batch.task), spec.suite.sampler(batch.sampler)
                why = f"{ATTEMPTS} workers were lost with this batch; the last one: {error}"
                outcome = Outcome(batch, failed(batch, task, entry, why))
            else:
                idle.append(actor)
            yield outcome


def _room(resources: dict[str, float], gpus: float) -> int:
    """How many workers fit."""
    room = resources.get("CPU", 1.0)
    if gpus > 0:
        room = min(room, resources.get("GPU", 0.0) / gpus)
    if room < 1:
        raise InvdiffError(f"the Ray cluster has no room for a worker with {gpus:g} GPUs; it has {resources}")
    return int(room)

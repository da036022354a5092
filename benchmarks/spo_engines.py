"""Generation engines as event simulations: which trajectory starts when, which batch it is trained in, what is lost.

Design decisions:

- No model. A trajectory is a length: the time it keeps a slot of the engine, however many slots are busy.
- Every policy is a pure function from lengths to a `Timeline`, with the same bookkeeping, so one `measure` serves all.
  Lengths come in order of launch, one row per prompt: groups of G (GRPO) or of 1 (single stream).
- A group can be trained on when its last trajectory is done; a single trajectory at once.
- Updates take no time, except in `carry_over`, which can be given one. Lag: updates made between the start of a trajectory
  and the update that uses it, without that one; 0 is on-policy. What starts at the moment of an update has its weights.

Shapes: P prompts, G trajectories of each, K batches.
"""

from dataclasses import dataclass
from heapq import heapreplace

import numpy as np

__all__ = ["LATE", "NOT_USED", "Timeline", "carry_over", "first_complete", "measure", "slot_refill"]

LATE = 4  # updates: a trajectory that lags more is called late
HARD_QUARTER = 0.6744897501960817  # upper quartile of a standard normal variable
NOT_USED = -1


@dataclass(frozen=True)
class Timeline:
    """What became of every trajectory of a run; rows in order of launch.

    Attributes:
        slots: Trajectories that the engine can generate at a time.
        lengths: float64 (P, G).
        starts: float64 (P, G).
        versions: Updates made when the trajectory started, int64 (P, G).
        used_in: Number of the batch that trains on the prompt, int64 (P,), or `NOT_USED`.
        dropped: Whether the prompt was thrown away, bool (P,). What is neither used nor dropped was left
            under way, or waiting, at the end.
        batch_times: When each batch was complete, float64 (K,).
    """

    slots: int
    lengths: np.ndarray
    starts: np.ndarray
    versions: np.ndarray
    used_in: np.ndarray
    dropped: np.ndarray
    batch_times: np.ndarray


def _check(lengths: np.ndarray, batch_size: int, **counts: int) -> int:
    """Return the prompts per batch, if groups fit."""
    if lengths.ndim != 2 or not lengths.size or not (lengths > 0).all():
        raise ValueError(f"lengths has shape {lengths.shape}; give positive lengths, one row per prompt")
    for name, count in {"batch_size": batch_size, **counts}.items():
        if count < 1 or (name != "slots" and count % lengths.shape[1]):
            raise ValueError(f"{name} is {count}; give a positive multiple of the group size, {lengths.shape[1]}")
    return batch_size // lengths.shape[1]


def first_complete(lengths: np.ndarray, batch_size: int, num_launched: int) -> Timeline:
    """Launch some prompts, train on the first that are complete, throw the rest away, launch the next.

    With ``num_launched`` equal to ``batch_size`` this is the synchronous barrier: one batch, wait for all.

    Args:
        lengths: Lengths, float64 (P, G); P is a multiple of the prompts of a launch.
        batch_size: Trajectories in a batch, a multiple of G.
        num_launched: Trajectories launched together, a multiple of G; as many slots are kept until the batch is complete.

    Returns:
        The timeline of P * G / num_launched batches.

    Raises:
        ValueError: If the numbers do not fit together.

    Example:
        >>> line = first_complete(np.array([[1.0, 5.0], [2.0, 2.0]]), batch_size=2, num_launched=4)
        >>> line.batch_times, line.used_in, line.dropped
        (array([2.]), array([-1,  0]), array([ True, False]))
    """
    per_batch = _check(lengths, batch_size, num_launched=num_launched)
    num_prompts, group_size = lengths.shape
    per_launch = num_launched // group_size
    if num_prompts % per_launch or per_launch < per_batch:
        raise ValueError(
            f"{num_prompts} prompts, {per_launch} per launch and {per_batch} per batch; a launch takes at least a batch,"
            " and the prompts are whole launches"
        )
    spans = lengths.max(1).reshape(-1, per_launch)
    used = np.zeros(spans.shape, bool)
    np.put_along_axis(used, np.argsort(spans, axis=1, kind="stable")[:, :per_batch], True, axis=1)
    batch_times = np.cumsum(np.where(used, spans, 0).max(1))
    batches = np.broadcast_to(np.arange(len(spans))[:, None], spans.shape)
    starts: np.ndarray = np.repeat(np.concatenate([[0.0], batch_times[:-1]]), per_launch)[:, None]
    return Timeline(
        num_launched,
        lengths,
        np.broadcast_to(starts, lengths.shape),
        np.broadcast_to(batches.reshape(-1, 1), lengths.shape),
        np.where(used, batches, NOT_USED).reshape(-1),
        ~used.reshape(-1),
        batch_times,
    )


def slot_refill(lengths: np.ndarray, batch_size: int, slots: int, num_batches: int) -> Timeline:
    """Refill each slot the moment it is free; train whenever a batch of complete prompts is there; drop nothing.

    Args:
        lengths: Lengths, float64 (P, G), at least ``num_batches * batch_size + slots * G`` of them: no more can be
            under way or wait for their group.
        batch_size: Trajectories in a batch, a multiple of G.
        slots: Trajectories that are generated at a time.
        num_batches: K.

    Returns:
        The timeline of all P prompts, with those of the first K batches used, in order of completion, at a tie the
        oldest first.

    Raises:
        ValueError: If the numbers do not fit together, or lengths are too few.

    Example:
        >>> line = slot_refill(np.array([[3.0], [1.0], [1.0], [9.0]]), batch_size=1, slots=2, num_batches=2)
        >>> line.starts[:, 0], line.batch_times, line.used_in
        (array([0., 0., 1., 2.]), array([1., 2.]), array([-1,  0,  1, -1]))
    """
    per_batch = _check(lengths, batch_size, slots=slots)
    num_prompts, group_size = lengths.shape
    needed = num_batches * batch_size + slots * group_size
    if num_batches < 1 or lengths.size < needed:
        raise ValueError(
            f"{lengths.size} lengths for {num_batches} batches; give at least {needed}, and a batch or more"
        )
    free = [0.0] * slots
    starts: list[float] = []
    for length in lengths.ravel().tolist():
        starts.append(free[0])
        heapreplace(free, free[0] + length)
    started = np.array(starts).reshape(lengths.shape)
    order = np.argsort((started + lengths).max(1), kind="stable")[: num_batches * per_batch]
    batch_times = (started + lengths).max(1)[order][per_batch - 1 :: per_batch]
    used_in = np.full(num_prompts, NOT_USED)
    used_in[order] = np.arange(len(order)) // per_batch
    versions = np.asarray(np.searchsorted(batch_times, started, side="right"))
    return Timeline(slots, lengths, started, versions, used_in, np.zeros(num_prompts, bool), batch_times)


def carry_over(
    lengths: np.ndarray, batch_size: int, pool_size: int, update_time: float = 0.0, oldest_first: bool = True
) -> Timeline:
    """Keep a pool under way; train on the first that are complete, carry the rest over, fill the pool up after the update.

    Args:
        lengths: Lengths, float64 (P, G): the pool, then one batch for every batch but the last.
        batch_size: Trajectories in a batch, a multiple of G.
        pool_size: Trajectories launched and not yet used, a multiple of G.
        update_time: How long an update takes; meanwhile the engine goes on with what is under way.
        oldest_first: Which are taken if more are complete than a batch takes; False takes the newest first.

    Returns:
        The timeline of K = (P * G - pool_size) / batch_size + 1 batches.

    Raises:
        ValueError: If the numbers do not fit together.

    Example:
        >>> line = carry_over(np.array([[5.0], [1.0], [2.0], [3.0]]), batch_size=1, pool_size=2)
        >>> line.batch_times, line.used_in
        (array([1., 3., 5.]), array([ 2,  0,  1, -1]))
    """
    per_batch = _check(lengths, batch_size, pool_size=pool_size)
    num_prompts, group_size = lengths.shape
    in_pool = pool_size // group_size
    if in_pool < per_batch or num_prompts < in_pool or (num_prompts - in_pool) % per_batch:
        raise ValueError(
            f"{num_prompts} prompts, {in_pool} in the pool and {per_batch} per batch; a pool takes at least a batch, and"
            " the prompts are the pool and whole batches"
        )
    if update_time < 0:
        raise ValueError(f"update_time is {update_time}; give 0 or more")
    spans, num_batches = lengths.max(1), (num_prompts - in_pool) // per_batch + 1
    starts, versions = np.zeros(num_prompts), np.zeros(num_prompts, int)
    used_in, batch_times = np.full(num_prompts, NOT_USED), np.zeros(num_batches)
    pool, now = np.arange(in_pool), 0.0  # prompts in order of launch
    for batch in range(num_batches):
        finish = starts[pool] + spans[pool]
        batch_times[batch] = max(now, np.partition(finish, per_batch - 1)[per_batch - 1])
        complete = np.flatnonzero(finish <= batch_times[batch])
        chosen = complete[:per_batch] if oldest_first else complete[-per_batch:]
        used_in[pool[chosen]] = batch
        now = batch_times[batch] + update_time
        launched = np.arange(in_pool + batch * per_batch, min(in_pool + (batch + 1) * per_batch, num_prompts))
        starts[launched], versions[launched] = now, batch + 1
        pool = np.concatenate([np.delete(pool, chosen), launched])
    widen = np.ones((1, group_size), int)
    return Timeline(
        pool_size,
        lengths,
        starts[:, None] * widen,
        versions[:, None] * widen,
        used_in,
        np.zeros(num_prompts, bool),
        batch_times,
    )


def measure(line: Timeline, difficulties: np.ndarray, num_warmup: int) -> dict[str, float]:
    """Measure a run from the end of its warm-up to its last batch.

    Args:
        line: The run.
        difficulties: Of each prompt, float64 (P,).
        num_warmup: Batches that are left out, at least 0 and fewer than K.

    Returns:
        ``time_per_batch``; ``throughput``: trajectories trained on in a unit of time; ``slot_share``: the
        share of all slot time that went into what was trained on; ``mean_lag`` in updates; ``late``: share that lags more
        than `LATE`; ``longest_lag``; ``length_bias``: mean length of what was trained on / of what was launched;
        ``hard``: share of what was trained on that comes from the hardest quarter of prompts; ``dropped``: share of what
        was launched.

    Raises:
        ValueError: If no batch is left after the warm-up.

    Example:
        >>> line = first_complete(np.array([[1.0], [3.0]]), batch_size=1, num_launched=2)
        >>> measured = measure(line, np.zeros(2), num_warmup=0)
        >>> measured["time_per_batch"], measured["slot_share"], measured["length_bias"], measured["dropped"]
        (1.0, 0.5, 0.5, 0.5)
    """
    num_batches = len(line.batch_times)
    if not 0 <= num_warmup < num_batches:
        raise ValueError(f"num_warmup is {num_warmup} of {num_batches} batches; leave at least one to measure")
    begin, end = (line.batch_times[num_warmup - 1] if num_warmup else 0.0), line.batch_times[-1]
    elapsed = end - begin
    trained = line.used_in >= num_warmup
    launched = (line.starts >= begin) & (line.starts < end)
    lags = line.used_in[trained][:, None] - line.versions[trained]
    return {
        "time_per_batch": float(elapsed / (num_batches - num_warmup)),
        "throughput": float(line.lengths[trained].size / elapsed),
        "slot_share": float(line.lengths[trained].sum() / (line.slots * elapsed)),
        "mean_lag": float(lags.mean()),
        "late": float((lags > LATE).mean()),
        "longest_lag": float(lags.max()),
        "length_bias": float(line.lengths[trained].mean() / line.lengths[launched].mean()),
        "hard": float((difficulties[trained] > HARD_QUARTER).mean()),
        "dropped": float(np.broadcast_to(line.dropped[:, None], launched.shape)[launched].mean()),
    }

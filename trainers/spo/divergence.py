"""How far a policy has moved: the mean over tokens of |log p then - log p now|, and what is kept of old values.

SPO (arXiv 2509.13232, section 3.2): rho = 2^(-D / D_half), clipped to [rho_min, rho_max]. Its recipe takes for D the
divergence on the prompt's own last response, which has to be kept.

Design decisions:

- `Probe` ("drift"): some responses of the last round, the same number on every process. How much their tokens moved until
  the next round is added to one number for all prompts; what a prompt has to forget is how much that number has grown
  since its last visit. Two forward passes of one micro-batch a round, and constant memory.
- `Trajectories` ("trajectory"): the last response of each prompt, its first tokens alone, so that 14,000 prompts take
  some tens of megabytes and not as many gigabytes. Every process keeps all of them, since a prompt can come up anywhere.

Shape legend: B responses, T tokens of prompt and response, C tokens of the response.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Probe", "Trajectories", "kept_share", "token_divergence"]

LogProbs = Callable[..., torch.Tensor]


def kept_share(divergence: Any, *, d_half: float, rho_min: float, rho_max: float) -> np.ndarray:
    """rho = 2^(-D / d_half), clipped.

    Args:
        divergence: float [B], nats per token.
        d_half: Divergence at which one half is kept.
        rho_min: Least that is kept.
        rho_max: Most that is kept.

    Returns:
        float64 [B].

    Example:
        >>> kept_share([0.0, 0.01, 1.0], d_half=0.06, rho_min=0.8, rho_max=0.96).round(3).tolist()
        [0.96, 0.891, 0.8]
    """
    return np.clip(2.0 ** (-np.asarray(divergence, dtype=np.float64) / d_half), rho_min, rho_max)


def token_divergence(then: torch.Tensor, now: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over tokens of |log p then - log p now| of each response, and their number.

    Args:
        then: float [B, C].
        now: float [B, C].
        mask: [B, C], 1 for tokens that the policy wrote.

    Returns:
        float64 [B] in nats, and int64 [B].
    """
    difference = (then.double() - now.double()).abs().masked_fill(mask == 0, 0.0)
    return difference.sum(dim=1), (mask != 0).sum(dim=1)


@dataclass
class Probe:
    """Responses of the last round with the log-probabilities that they had.

    Attributes:
        inputs: Arguments of the forward pass; ``input_ids`` and ``attention_mask`` are [B, T].
        mask: [B, C].
        logps: float [B, C].
    """

    inputs: dict[str, Any]
    mask: torch.Tensor
    logps: torch.Tensor

    def measure(self, log_probs: LogProbs) -> tuple[float, int]:
        """How far their tokens have moved: sum of nats, and number of tokens, of this process."""
        total, number = token_divergence(self.logps, log_probs(**self.inputs), self.mask)
        return float(total.sum()), int(number.sum())


class Trajectories:
    """The last response of each prompt, cut to `max_tokens`, with the log-probabilities that it had."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.kept: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}

    def cut(self, prompt_ids: Any, completion_ids: Any, mask: Any, logps: Any) -> tuple[np.ndarray, ...]:
        """One response as it is kept: tokens int32, which of the response the policy wrote, float32 log-probabilities."""
        end = self.max_tokens
        return (
            np.asarray(prompt_ids, np.int32),
            np.asarray(completion_ids[:end], np.int32),
            np.asarray(mask[:end], np.int8),
            np.asarray(logps[:end], np.float32),
        )

    def keep(self, rows: np.ndarray, responses: list[tuple[np.ndarray, ...]]) -> None:
        """Replace the responses of some prompts; of a prompt that occurs twice, the last one stays."""
        for row, response in zip(rows, responses, strict=True):
            self.kept[int(row)] = response  # type: ignore[assignment]

    def batch(self, rows: np.ndarray, pad_id: int, device: Any) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
        """What is kept of some prompts as one padded batch: prompts to the left, responses to the right.

        A prompt of which nothing is kept is a row of one token with an empty mask, so that every process has as many rows
        as it has prompts.

        Returns:
            ``input_ids``, ``attention_mask`` and ``logits_to_keep``; log-probabilities [B, C]; mask [B, C].
        """
        nothing: tuple[np.ndarray, ...] = (
            np.array([pad_id], np.int32),
            np.array([pad_id], np.int32),
            np.zeros(1, np.int8),
            np.zeros(1, np.float32),
        )
        chosen = [self.kept.get(int(row), nothing) for row in rows]
        left, right = (max(len(each[part]) for each in chosen) for part in (0, 1))
        ids = torch.full((len(chosen), left + right), pad_id, dtype=torch.long)
        attention, mask = torch.zeros_like(ids), torch.zeros(len(chosen), right, dtype=torch.long)
        logps = torch.zeros(len(chosen), right)
        for place, (prompt, response, written, log_prob) in enumerate(chosen):
            start, end = left - len(prompt), left + len(response)
            ids[place, start:left], ids[place, left:end] = torch.from_numpy(prompt), torch.from_numpy(response)
            attention[place, start:end] = 1
            mask[place, : len(response)] = torch.from_numpy(written)
            logps[place, : len(response)] = torch.from_numpy(log_prob)
        inputs = {"input_ids": ids.to(device), "attention_mask": attention.to(device), "logits_to_keep": right}
        return inputs, logps.to(device), mask.to(device)

    def state_dict(self) -> dict[str, np.ndarray]:
        """All responses end to end, with their lengths."""
        rows = sorted(self.kept)
        state = {"trajectories.rows": np.array(rows, np.int64)}
        for part, (name, dtype) in enumerate(_PARTS.items()):
            pieces = [self.kept[row][part] for row in rows]
            state[f"trajectories.{name}"] = np.concatenate(pieces) if pieces else np.empty(0, dtype)
            if name in ("prompts", "responses"):
                state[f"trajectories.{name}.lengths"] = np.array([len(piece) for piece in pieces], np.int64)
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave."""
        split = {
            name: np.split(
                state[f"trajectories.{name}"],
                np.cumsum(state[f"trajectories.{'prompts' if name == 'prompts' else 'responses'}.lengths"])[:-1],
            )
            for name in _PARTS
        }
        rows = state["trajectories.rows"].tolist()
        self.kept = {row: tuple(split[name][place] for name in _PARTS) for place, row in enumerate(rows)}


_PARTS = {"prompts": np.int32, "responses": np.int32, "masks": np.int8, "logps": np.float32}

"""Statistics and scores of what is left of a model, while layers, neurons and weights go one after the other."""

from dataclasses import dataclass, field

import torch

from mmbert_hf.pruning.scores import Scorer, StatisticsLike
from mmbert_hf.pruning.statistics import Statistics

__all__ = ["ScoresByName", "Survivors"]


class ScoresByName(dict[str, torch.Tensor]):
    """Scores by name, computed when they are asked for."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(dict.fromkeys(scorer.layers))
        self.scorer = scorer

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.scorer.score(name)


@dataclass
class Survivors(StatisticsLike):
    """Statistics of the dense model under the names, and cut to the rows and columns, of what is left of it.

    Shape legend: O outputs, I inputs that are left of a layer.

    Attributes:
        statistics: Of the dense model.
        names: Name of a layer now -> its name in the dense model.
        rows: Outputs that are left, int64, by name in the dense model; all where there is none.
        columns: The same of inputs.
    """

    statistics: Statistics | None
    names: dict[str, str]
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    columns: dict[str, torch.Tensor] = field(default_factory=dict)

    def fisher(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean squared per-triplet gradient, float32 [O, I]."""
        return self._cut(self._statistics.fisher(set_name, self.names[layer]), self.names[layer])

    def gradient(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean gradient, float32 [O, I]."""
        return self._cut(self._statistics.gradient(set_name, self.names[layer]), self.names[layer])

    def input_square(self, set_name: str, layer: str) -> torch.Tensor:
        """Mean squared input, float32 [I]."""
        squares = self._statistics.input_square(set_name, self.names[layer])
        return squares[self.columns[self.names[layer]]] if self.names[layer] in self.columns else squares

    @property
    def _statistics(self) -> Statistics:
        assert self.statistics is not None, "a method that needs statistics ran without"
        return self.statistics

    def _cut(self, tensor: torch.Tensor, dense_name: str) -> torch.Tensor:
        if dense_name in self.rows:
            tensor = tensor[self.rows[dense_name]]
        return tensor[:, self.columns[dense_name]] if dense_name in self.columns else tensor

    def drop(self, blocks: str, num_blocks: int, gone: list[int]) -> None:
        """The blocks that are left are numbered anew."""
        left = [number for number in range(num_blocks) if number not in gone]
        renamed = {}
        for now, dense in self.names.items():
            number, _, rest = now.removeprefix(f"{blocks}.").partition(".")
            if int(number) in left:
                renamed[f"{blocks}.{left.index(int(number))}.{rest}"] = dense
        self.names = renamed

    def keep_rows(self, layer: str, rows: torch.Tensor) -> None:
        """These outputs of a layer are left."""
        self.rows[self.names[layer]] = rows.cpu()

    def keep_columns(self, layer: str, columns: torch.Tensor) -> None:
        """These inputs of a layer are left."""
        self.columns[self.names[layer]] = columns.cpu()

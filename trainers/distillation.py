"""`DistilledRankingLoss`: retrain a pruned embedder on pairs or triplets while it stays close to the model it came from.

Design decisions:

- The ranking term *is* sentence-transformers' `MultipleNegativesRankingLoss`, called on the embeddings.
- The distillation term is ``weight * scale * mean(1 - cos(student, teacher))`` over all texts of the batch. The ranking
  term multiplies cosines by the same scale, so the weight compares like with like.
- The teacher reads the student's tokens, not its texts: a batch holds no texts. Where the vocabulary was trimmed, a
  table takes each id to the teacher's id of the same token. That is exact for text inside the trimmed vocabulary; what
  is outside it reaches the teacher in the pieces that the student sees.
- The teacher is no part of the module: no optimizer, checkpoint or parameter count sees it. It runs in evaluation mode,
  without gradients, and follows the batch to its device.

Shape legend: R texts of one column, D size of an embedding, V ids of the student.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["DistilledRankingLoss", "distillation_term", "teacher_ids"]


def distillation_term(student_RD: Tensor, teacher_RD: Tensor, scale: float = 20.0) -> Tensor:
    """``scale * mean(1 - cos(student, teacher))`` over the rows, in float32.

    Args:
        student_RD: Embeddings [R, D], of any float dtype.
        teacher_RD: Embeddings [R, D] of the same texts.
        scale: As in the ranking term.

    Returns:
        A scalar between 0 and ``2 * scale``.

    Example:
        >>> distillation_term(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        tensor(10.)
    """
    return scale * (1 - F.cosine_similarity(student_RD.float(), teacher_RD.float(), dim=-1)).mean()


def teacher_ids(model: "SentenceTransformer", teacher: "SentenceTransformer") -> Tensor:
    """The teacher's id of every token of the student, by the tokens' names.

    Args:
        model: The student; its vocabulary is part of the teacher's.
        teacher: The model that it was made from.

    Returns:
        int64 [V]: the student's id -> the teacher's. Ids without a token become 0; no text has them.

    Raises:
        ValueError: The student has tokens that the teacher does not know.
    """
    ours, theirs = model.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if unknown := sorted(ours.keys() - theirs.keys()):
        raise ValueError(
            f"{len(unknown)} tokens of the student are not in the teacher's vocabulary, such as {unknown[:5]}; the "
            "teacher must be the model that the student was made from"
        )
    ids = torch.zeros(max(ours.values()) + 1, dtype=torch.int64)
    ids[torch.tensor(list(ours.values()))] = torch.tensor([theirs[token] for token in ours])
    return ids


class DistilledRankingLoss(nn.Module):
    """Ranking with in-batch negatives, plus the distance to a frozen teacher's embeddings of the same texts.

    Goes where a loss of sentence-transformers goes: ``SentenceTransformerTrainer(model, ..., loss=loss)`` with columns
    anchor, positive and any number of negatives.

    Args:
        model: The student that is trained.
        teacher: The model to stay close to, such as the one before pruning. Never changed, but put into evaluation mode
            and moved to the device of the batches.
        scale: Inverse temperature; multiplies cosines in both terms.
        distillation_weight: Weight of the distillation term; with 0 the teacher does not run.
        student_to_teacher_ids: int64 [V], the student's token id -> the teacher's. From the plan of a vocabulary trim
            (its kept ids), or from `teacher_ids`. Without it both must have one vocabulary.

    Raises:
        ValueError: Embeddings of different size, vocabularies that differ without a table, a table that takes a token to
            another one, a teacher that shares weights with the student, or numbers out of range.

    Example:
        >>> loss = DistilledRankingLoss(pruned, dense, student_to_teacher_ids=kept_ids)  # doctest: +SKIP
        >>> trainer = SentenceTransformerTrainer(pruned, args, triplets, loss=loss)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        teacher: "SentenceTransformer",
        *,
        scale: float = 20.0,
        distillation_weight: float = 1.0,
        student_to_teacher_ids: Tensor | None = None,
    ) -> None:
        super().__init__()
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        if not scale > 0 or not 0 <= distillation_weight < float("inf"):
            raise ValueError(
                f"scale must be above 0 and distillation_weight at least 0 and finite, got {scale} and "
                f"{distillation_weight}"
            )
        _check_apart(model, teacher)
        _check_same_size(model, teacher)
        _check_ids(model, teacher, student_to_teacher_ids)
        self.model = model
        self.ranking = MultipleNegativesRankingLoss(model, scale=scale)
        self.scale, self.distillation_weight = scale, distillation_weight
        self._teacher = (teacher,)  # a tuple hides it from the module: no parameters, no state
        self._teacher_ids = (student_to_teacher_ids,)

    @property
    def teacher(self) -> "SentenceTransformer":
        """The frozen model."""
        return self._teacher[0]

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            sentence_features: Token ids, masks and so on of each column: anchors, positives, negatives.
            labels: Not used; the trainer passes them to every loss.

        Returns:
            A scalar with a gradient for the student alone.
        """
        columns = list(sentence_features)
        targets = self._targets(columns) if self.distillation_weight else []  # first: the student writes into columns
        embeddings = [self.model(column)["sentence_embedding"] for column in columns]
        loss = self.ranking.compute_loss_from_embeddings(embeddings, labels)
        if self.distillation_weight:
            distilled = distillation_term(torch.cat(embeddings), torch.cat(targets), self.scale)
            loss = loss + self.distillation_weight * distilled
        return loss

    @torch.no_grad()
    def _targets(self, columns: list[dict[str, Any]]) -> list[Tensor]:
        """The teacher's embeddings [R, D] of each column."""
        teacher, device = self.teacher, columns[0]["input_ids"].device
        if teacher.device != device:
            teacher.to(device)
        teacher.eval()
        targets = []
        for column in columns:
            ids = column["input_ids"]
            if self._teacher_ids[0] is not None:
                ids = self._ids_on(device)[ids]
            targets.append(teacher({**column, "input_ids": ids})["sentence_embedding"])
        return targets

    def _ids_on(self, device: torch.device) -> Tensor:
        table = self._teacher_ids[0]
        assert table is not None
        if table.device != device:
            self._teacher_ids = (table := table.to(device),)
        return table

    def get_config_dict(self) -> dict[str, Any]:
        """Settings, for the model card."""
        name = self.teacher.model_card_data.base_model or getattr(self.teacher[0].auto_model, "name_or_path", None)
        return {"scale": self.scale, "distillation_weight": self.distillation_weight, "teacher": name}

    @property
    def citation(self) -> str:
        """BibTeX of the ranking term."""
        return self.ranking.citation


def _check_apart(model: "SentenceTransformer", teacher: "SentenceTransformer") -> None:
    ours = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) in ours for parameter in teacher.parameters()):
        raise ValueError(
            "the teacher shares weights with the model that is trained, so it would change with it; give a copy "
            "(copy.deepcopy(model), made before pruning) or load the model a second time"
        )


def _check_same_size(model: "SentenceTransformer", teacher: "SentenceTransformer") -> None:
    ours, theirs = model.get_embedding_dimension(), teacher.get_embedding_dimension()
    if ours != theirs:
        raise ValueError(
            f"the student's embeddings have size {ours} and the teacher's {theirs}; cosines need one size. Give the "
            "model that the student was made from"
        )


def _check_ids(model: "SentenceTransformer", teacher: "SentenceTransformer", table: Tensor | None) -> None:
    ours, theirs = model.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if table is None:
        if ours != theirs:
            raise ValueError(
                f"the student has {len(ours)} tokens, the teacher {len(theirs)}, and their ids differ; pass "
                "student_to_teacher_ids: the kept ids of the vocabulary trim, or teacher_ids(model, teacher)"
            )
        return
    if table.dtype != torch.int64 or table.ndim != 1 or len(table) <= max(ours.values()):
        raise ValueError(
            f"student_to_teacher_ids is {list(table.shape)} of {table.dtype}; give int64 "
            f"[{max(ours.values()) + 1}], one id of the teacher for each of the student"
        )
    ids = table.tolist()
    wrong = {token: ids[index] for token, index in ours.items() if theirs.get(token) != ids[index]}
    if wrong:
        token = next(iter(wrong))
        raise ValueError(
            f"student_to_teacher_ids takes {len(wrong)} tokens to others: {token!r} has id {ours[token]} in the student, "
            f"{theirs.get(token)} in the teacher, and {wrong[token]} in the table; give the kept ids of the trim that "
            "made this student"
        )

"""Classification of sequences, tokens, answers and choices.

Pooling finds the real tokens wherever padding is, and never divides by zero: ModernBERT takes place 0 as the cls token
of a row that is padded left, and returns NaN for a row of padding.

Shape legend: B batch, C classes or choices, L length in tokens, E hidden size.
"""

from typing import Any, Literal

import torch
from torch import nn
from transformers import ModernBertConfig
from transformers.modeling_outputs import (
    BaseModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from mmbert_hf.attention.documents import document_ids, has_several
from mmbert_hf.heads import MMBertTaskModel
from mmbert_hf.initialization import linear
from mmbert_hf.losses import ItemCount, classification_loss, mean_cross_entropy, span_loss
from mmbert_hf.shortcuts import is_traced

__all__ = [
    "MMBertForMultipleChoice",
    "MMBertForQuestionAnswering",
    "MMBertForSequenceClassification",
    "MMBertForTokenClassification",
    "pool",
]


def pool(
    hidden_BLE: torch.Tensor, attention_mask: torch.Tensor | None, pooling: Literal["cls", "mean"]
) -> torch.Tensor:
    """Turn the token vectors of each row into one vector.

    Args:
        hidden_BLE: Token vectors.
        attention_mask: [B, L], nonzero at real tokens; None if all are.
        pooling: ``"mean"`` of the real tokens, or ``"cls"``, the first real token.

    Returns:
        [B, E]; zeros ("mean") or the first vector ("cls") for a row without a real token.

    Raises:
        ValueError: If the mask is not [B, L], so that it does not say which tokens are real, or `pooling` is unknown.

    Example:
        >>> hidden = torch.tensor([[[9.0], [1.0], [3.0]]])  # the first token is padding
        >>> pool(hidden, torch.tensor([[0, 1, 1]]), "mean"), pool(hidden, torch.tensor([[0, 1, 1]]), "cls")
        (tensor([[2.]]), tensor([[1.]]))
    """
    if attention_mask is None:
        attention_mask = torch.ones(hidden_BLE.shape[:2], dtype=torch.int64, device=hidden_BLE.device)
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape != hidden_BLE.shape[:2]:
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask)
        raise ValueError(
            f"pooling needs an attention_mask of shape {tuple(hidden_BLE.shape[:2])} (batch, length), got {shape}; "
            "with another mask, pool the encoder's last_hidden_state yourself"
        )
    real = attention_mask.to(hidden_BLE.device) != 0
    if pooling == "mean":
        total = (hidden_BLE * real[..., None]).sum(dim=1)
        return total / real.sum(dim=1, keepdim=True).clamp(min=1)
    if pooling == "cls":
        first = real.int().argmax(dim=1)  # the first of equal maxima
        return hidden_BLE[torch.arange(len(hidden_BLE), device=hidden_BLE.device), first]
    raise ValueError(f"pooling is {pooling!r}; it must be 'cls' or 'mean'")


class MMBertClassifier(MMBertTaskModel):
    """What the classification tasks share: dropout and one linear layer on the prediction head."""

    def __init__(self, config: ModernBertConfig, num_outputs: int | None = None) -> None:
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self.drop = nn.Dropout(self.config.classifier_dropout)
        num_outputs = self.num_labels if num_outputs is None else num_outputs
        self.classifier = linear(self.config.hidden_size, num_outputs, bias=True, role="classifier")
        self.post_init()

    def encode_rows(self, **inputs: Any) -> BaseModelOutput:
        """Run the encoder for a task that scores each row as a whole.

        Args:
            **inputs: Arguments of `MMBertModel.forward`.

        Returns:
            The encoder's output.

        Raises:
            ValueError: If a row is packed: one score cannot stand for several documents.
        """
        positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        packed = inputs.get("cu_seq_lens_q") is not None
        if positions is not None and not packed and not is_traced(positions):
            ids = document_ids(tuple(positions.shape), positions, attention_mask=mask)
            packed = ids is not None and has_several(ids, mask)
        if packed:
            raise ValueError(
                f"{type(self).__name__} got packed rows, by cu_seq_lens_q or position_ids that restart at 0, and scores "
                "whole rows; pass one document a row, padded (padding costs no time here)"
            )
        return self.encode(**inputs)

    def score(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits [..., C] of vectors [..., E]."""
        return self.classifier(self.drop(self.head(hidden_states)))


class MMBertForSequenceClassification(MMBertClassifier):
    """Classification or regression of whole sequences, pooled as ``config.classifier_pooling`` says.

    Args:
        config: Sizes and options; ``num_labels`` or ``id2label`` sets the number of classes.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> model = MMBertForSequenceClassification(MMBertConfig(**sizes, vocab_size=100, num_labels=3))
        >>> input_ids = torch.tensor([[2, 17, 18, 1], [2, 19, 1, 0]])
        >>> output = model(input_ids, attention_mask=input_ids.ne(0), labels=torch.tensor([0, 2]))
        >>> output.logits.shape, output.loss.shape
        (torch.Size([2, 3]), torch.Size([]))
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: ItemCount = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify each row.

        Args:
            input_ids: Token ids [B, L].
            attention_mask: [B, L], nonzero at real tokens.
            position_ids: [B or 1, L]; 0..L-1 if None.
            inputs_embeds: Embeddings [B, L, E] in place of `input_ids`.
            labels: As for `classification_loss`. If ``config.problem_type`` is not set, it is set from them: one label
                is regression, integers are one class of several, anything else is several labels at once.
            num_items_in_batch: What to divide the summed loss by; the number of labels of this call if None.
            **kwargs: As for `MMBertModel`.

        Returns:
            ``loss`` if labels are given, and ``logits`` [B, C].
        """
        outputs = self.encode_rows(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.score(pool(outputs.last_hidden_state, attention_mask, self.config.classifier_pooling))
        loss = None
        if labels is not None:
            if self.config.problem_type is None:
                self.config.problem_type = self._problem_type(labels)
            loss = classification_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _problem_type(self, labels: torch.Tensor) -> str:
        if self.num_labels == 1:
            return "regression"
        is_class = labels.dtype in (torch.int64, torch.int32)
        return "single_label_classification" if is_class else "multi_label_classification"


class MMBertForTokenClassification(MMBertClassifier):
    """Classification of each token, for example named entities.

    Args:
        config: Sizes and options; ``num_labels`` or ``id2label`` sets the number of classes.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> model = MMBertForTokenClassification(MMBertConfig(**sizes, vocab_size=100, num_labels=5))
        >>> output = model(torch.tensor([[2, 17, 18, 1]]), labels=torch.tensor([[-100, 4, 0, -100]]))
        >>> output.logits.shape, output.loss.shape
        (torch.Size([1, 4, 5]), torch.Size([]))
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: ItemCount = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Classify each token.

        Args:
            input_ids: Token ids [B, L].
            attention_mask: [B, L], nonzero at real tokens; other forms as in `MMBertModel`.
            position_ids: [B or 1, L]; 0..L-1 if None.
            inputs_embeds: Embeddings [B, L, E] in place of `input_ids`.
            labels: Classes [B, L], -100 where there is none.
            num_items_in_batch: What to divide the summed loss by; the number of labels of this call if None.
            **kwargs: As for `MMBertModel`.

        Returns:
            ``loss`` if labels are given, and ``logits`` [B, L, C].
        """
        outputs = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.score(outputs.last_hidden_state)
        return TokenClassifierOutput(
            loss=None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MMBertForQuestionAnswering(MMBertClassifier):
    """Extractive question answering: where in the row an answer starts and ends.

    Args:
        config: Sizes and options; ``num_labels`` must be 2, which is the default.

    Raises:
        ValueError: For another ``num_labels``.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> model = MMBertForQuestionAnswering(MMBertConfig(**sizes, vocab_size=100))
        >>> output = model(
        ...     torch.tensor([[2, 17, 1, 18, 19, 1]]), start_positions=torch.tensor([3]), end_positions=torch.tensor([4])
        ... )
        >>> output.start_logits.shape, output.loss.shape
        (torch.Size([1, 6]), torch.Size([]))
    """

    def __init__(self, config: ModernBertConfig) -> None:
        if config.num_labels != 2:
            raise ValueError(
                f"num_labels is {config.num_labels}; question answering has two, start and end: load with num_labels=2"
            )
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        num_items_in_batch: ItemCount = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Score each token as start and as end.

        Args:
            input_ids: Token ids [B, L].
            attention_mask: [B, L], nonzero at real tokens; other forms as in `MMBertModel`.
            position_ids: [B or 1, L]; 0..L-1 if None.
            inputs_embeds: Embeddings [B, L, E] in place of `input_ids`.
            start_positions: First token of each answer [B]; outside 0..L-1 where there is none.
            end_positions: Last token of each answer [B].
            num_items_in_batch: What to divide the summed losses by; the number of answers of this call if None.
            **kwargs: As for `MMBertModel`.

        Returns:
            ``loss`` if both positions are given, ``start_logits`` and ``end_logits`` [B, L].
        """
        outputs = self.encode_rows(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        start_logits, end_logits = (part.contiguous() for part in self.score(outputs.last_hidden_state).unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_logits, end_logits, start_positions, end_positions, num_items_in_batch)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MMBertForMultipleChoice(MMBertClassifier):
    """Choice between several sequences per example, pooled as ``config.classifier_pooling`` says.

    Args:
        config: Sizes and options.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> model = MMBertForMultipleChoice(MMBertConfig(**sizes, vocab_size=100))
        >>> output = model(torch.tensor([[[2, 17, 1], [2, 18, 1]]]), labels=torch.tensor([1]))
        >>> output.logits.shape, output.loss.shape
        (torch.Size([1, 2]), torch.Size([]))
    """

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config, num_outputs=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: ItemCount = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """Score each choice.

        Args:
            input_ids: Token ids [B, C, L].
            attention_mask: [B, C, L], nonzero at real tokens.
            position_ids: [B, C, L]; 0..L-1 if None.
            inputs_embeds: Embeddings [B, C, L, E] in place of `input_ids`.
            labels: The right choice of each example [B].
            num_items_in_batch: What to divide the summed loss by; the number of labels of this call if None.
            **kwargs: As for `MMBertModel`.

        Returns:
            ``loss`` if labels are given, and ``logits`` [B, C].

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("got neither of input_ids and inputs_embeds; pass exactly one of them")
        batch, choices = given.shape[:2]
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        flat = {name: None if value is None else value.flatten(0, 1) for name, value in inputs.items()}
        outputs = self.encode_rows(**flat, **kwargs)
        pooled = pool(outputs.last_hidden_state, flat["attention_mask"], self.config.classifier_pooling)
        logits = self.score(pooled).view(batch, choices)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

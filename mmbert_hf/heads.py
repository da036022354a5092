"""Task heads on the mmBERT encoder, with ModernBERT's parameter names.

Design decisions:

- Pooling and losses are pure functions; the classes only connect them.
- In training, the masked-LM head sees the labelled tokens alone: 30 % or fewer of them matter and each costs a row of
  256000 logits. ``logits`` is None then. In eval mode, or without labels, all logits are there.
- Every mean runs over ``num_items_in_batch`` where the caller gives it (`Trainer` does, so gradient accumulation equals
  one large batch), else over what is labelled; a batch without a label has loss 0 and zero gradients, not NaN.
- Pooling finds the first real token, wherever padding is, and never divides by zero.

Shape legend: B batch, C choices or classes, L length in tokens, E hidden size, N labelled tokens, V vocabulary.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ModernBertConfig
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from mmbert_hf.encoder import MMBertModel, MMBertPreTrainedModel
from mmbert_hf.initialization import linear
from mmbert_hf.masking import IGNORE_INDEX

__all__ = [
    "MMBertForMaskedLM",
    "MMBertForMultipleChoice",
    "MMBertForQuestionAnswering",
    "MMBertForSequenceClassification",
    "MMBertForTokenClassification",
    "classification_loss",
    "labelled_rows",
    "mean_cross_entropy",
    "pool",
    "span_loss",
]

ItemCount = torch.Tensor | int | float | None


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


def labelled_rows(hidden_BLE: torch.Tensor, labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick the tokens that have a label.

    Args:
        hidden_BLE: Token vectors.
        labels_BL: Labels, -100 where there is none.

    Returns:
        The picked vectors [N, E] and their labels [N]. N may be 0; the vectors keep their gradient graph.

    Example:
        >>> labelled_rows(torch.arange(6.0).view(1, 3, 2), torch.tensor([[-100, 7, -100]]))
        (tensor([[2., 3.]]), tensor([7]))
    """
    labels = labels_BL.reshape(-1).to(hidden_BLE.device)
    rows = (labels != IGNORE_INDEX).nonzero().squeeze(1)
    return hidden_BLE.flatten(0, 1).index_select(0, rows), labels.index_select(0, rows)


def mean_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: ItemCount = None
) -> torch.Tensor:
    """Cross entropy, summed and divided by a count, in float32 or better.

    Args:
        logits: [..., C], any float dtype.
        labels: [...], int64, -100 where there is none.
        num_items_in_batch: What to divide by, such as the labels of all accumulation steps; those of this call if None.

    Returns:
        A scalar; 0 with a gradient graph if nothing is labelled.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [5.0, 1.0]])
        >>> round(mean_cross_entropy(logits, torch.tensor([0, -100])).item(), 4)
        0.6931
        >>> mean_cross_entropy(logits, torch.tensor([-100, -100])).item()
        0.0
    """
    labels = labels.reshape(-1).to(logits.device)
    total = F.cross_entropy(
        _precise(logits).reshape(-1, logits.shape[-1]), labels, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return _divide(total, (labels != IGNORE_INDEX).sum(), num_items_in_batch)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str, num_items_in_batch: ItemCount = None
) -> torch.Tensor:
    """Loss of sequence classification.

    Args:
        logits: [B, C].
        labels: [B] classes for ``"single_label_classification"``; [B, C] of 0 and 1 for
            ``"multi_label_classification"``; [B, C], or [B] if C is 1, for ``"regression"``.
        problem_type: One of the three: cross entropy, binary cross entropy, squared error.
        num_items_in_batch: What to divide the sum by; the number of labels of this call if None.

    Returns:
        A scalar.

    Raises:
        ValueError: For another problem type.

    Example:
        >>> classification_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]), "regression").item()
        2.0
    """
    if problem_type == "single_label_classification":
        return mean_cross_entropy(logits, labels, num_items_in_batch)
    targets = _precise(labels.to(logits.device, logits.dtype))
    if problem_type == "regression":
        total = F.mse_loss(_precise(logits), targets.view_as(logits), reduction="sum")
    elif problem_type == "multi_label_classification":
        total = F.binary_cross_entropy_with_logits(_precise(logits), targets.view_as(logits), reduction="sum")
    else:
        raise ValueError(
            f"problem_type is {problem_type!r}; it must be 'single_label_classification', "
            "'multi_label_classification' or 'regression'"
        )
    return _divide(total, torch.tensor(targets.numel()), num_items_in_batch)


def span_loss(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    start_positions: torch.Tensor,
    end_positions: torch.Tensor,
    num_items_in_batch: ItemCount = None,
) -> torch.Tensor:
    """Loss of extractive question answering: mean of the cross entropies of start and end.

    Args:
        start_logits: [B, L].
        end_logits: [B, L].
        start_positions: [B] or [B, 1]. Positions outside the row, where the answer was cut off, do not count.
        end_positions: Same.
        num_items_in_batch: What to divide each sum by; the number of positions inside their rows if None.

    Returns:
        A scalar.

    Example:
        >>> zeros = torch.zeros(1, 4)
        >>> round(span_loss(zeros, zeros, torch.tensor([1]), torch.tensor([9])).item(), 4)  # log(4) / 2
        0.6931
    """
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        positions = positions.reshape(-1)
        inside = (positions >= 0) & (positions < logits.shape[1])
        labels = positions.masked_fill(~inside, IGNORE_INDEX)
        losses.append(mean_cross_entropy(logits, labels, num_items_in_batch))
    return (losses[0] + losses[1]) / 2


def _precise(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _divide(total: torch.Tensor, count: torch.Tensor, num_items_in_batch: ItemCount) -> torch.Tensor:
    denominator = torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch, device=total.device)
    return total / denominator.clamp(min=1)


class MMBertPredictionHead(nn.Module):
    """Dense layer, activation and norm in front of every task's last layer."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.dense = linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias, role="output")
        self.act = ACT2FN[config.classifier_activation]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform vectors [..., E]; same shape."""
        return self.norm(self.act(self.dense(hidden_states)))


class MMBertTaskModel(MMBertPreTrainedModel):
    """What the tasks share: the encoder and the prediction head."""

    encoder_class: ClassVar[type[MMBertModel]] = MMBertModel

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.model = self.encoder_class(self.config)
        self.head = MMBertPredictionHead(self.config)

    def encode(self, **inputs: Any) -> BaseModelOutput:
        """Run the encoder; takes the arguments of `MMBertModel.forward` by name."""
        return self.model(**{**inputs, "return_dict": True})


class MMBertForMaskedLM(MMBertTaskModel):
    """Masked language model.

    Args:
        config: Sizes and options. ``sparse_prediction=True`` decodes labelled tokens only in eval mode as well.

    Raises:
        ValueError: If ``sparse_pred_ignore_index`` is not -100, the one label that is ignored here.

    Example:
        >>> from mmbert_hf.configuration import MMBertConfig
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 48}
        >>> model = MMBertForMaskedLM(MMBertConfig(**sizes, vocab_size=100)).eval()
        >>> input_ids = torch.tensor([[2, 17, 4, 18, 1]])
        >>> model(input_ids).logits.shape
        torch.Size([1, 5, 100])
        >>> output = model.train()(input_ids, labels=torch.tensor([[-100, -100, 30, -100, -100]]))
        >>> output.loss.isfinite().item(), output.logits
        (True, None)
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        config = self.config
        if config.sparse_pred_ignore_index != IGNORE_INDEX:
            raise ValueError(
                f"sparse_pred_ignore_index is {config.sparse_pred_ignore_index}; tokens without a label are marked "
                f"{IGNORE_INDEX} here: set it to that and relabel"
            )
        self.decoder = linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias, role="output")
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder."""
        self.decoder = new_embeddings

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
    ) -> MaskedLMOutput:
        """Predict the token at each place.

        Args:
            input_ids: Token ids [B, L].
            attention_mask: [B, L], nonzero at real tokens; other forms as in `MMBertModel`.
            position_ids: [B or 1, L]; 0..L-1 if None.
            inputs_embeds: Embeddings [B, L, E] in place of `input_ids`.
            labels: Token ids to predict [B, L], -100 where nothing is predicted.
            num_items_in_batch: What to divide the summed loss by; the number of labels of this call if None.
            **kwargs: As for `MMBertModel`.

        Returns:
            ``loss`` if labels are given. ``logits`` [B, L, V]; with labels in training mode None, and with labels and
            ``sparse_prediction`` in eval mode the rows of the labelled tokens [N, V].
        """
        outputs = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None and (self.training or self.config.sparse_prediction):
            hidden_states, labels = labelled_rows(hidden_states, labels)
        logits = self.decoder(self.head(hidden_states))
        return MaskedLMOutput(
            loss=None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch),
            logits=None if labels is not None and self.training else logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MMBertClassifier(MMBertTaskModel):
    """What the classification tasks share: dropout and one linear layer on the prediction head."""

    def __init__(self, config: ModernBertConfig, num_outputs: int | None = None) -> None:
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self.drop = nn.Dropout(self.config.classifier_dropout)
        num_outputs = self.num_labels if num_outputs is None else num_outputs
        self.classifier = linear(self.config.hidden_size, num_outputs, bias=True, role="classifier")
        self.post_init()

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
        outputs = self.encode(
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
        outputs = self.encode(
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
        outputs = self.encode(**flat, **kwargs)
        pooled = pool(outputs.last_hidden_state, flat["attention_mask"], self.config.classifier_pooling)
        logits = self.score(pooled).view(batch, choices)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else mean_cross_entropy(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

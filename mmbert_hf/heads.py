"""The prediction head that every task shares, and the masked language model.

In training, the masked-LM head sees the labelled tokens alone: 30 % or fewer of them matter and each costs a row of
256000 logits. Those come in chunks (`mmbert_hf.linear_cross_entropy`), and ``logits`` is None. In eval mode, or without
labels, all logits are there.

Shape legend: B batch, L length in tokens, E hidden size, N labelled tokens, V vocabulary.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import ModernBertConfig
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from mmbert_hf.encoder import MMBertModel, MMBertPreTrainedModel
from mmbert_hf.initialization import linear
from mmbert_hf.losses import (
    IGNORE_INDEX,
    ItemCount,
    labelled_rows,
    mean_cross_entropy,
    mean_linear_cross_entropy,
)
from mmbert_hf.shortcuts import is_plain_linear, is_traced

__all__ = ["MMBertForMaskedLM", "MMBertTaskModel"]


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
        loss, logits = self._predict(outputs.last_hidden_state, labels, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _predict(
        self, hidden_BLE: torch.Tensor, labels_BL: torch.Tensor | None, num_items_in_batch: ItemCount
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Loss and logits, each None where it is not there; see `forward`."""
        if labels_BL is None:
            return None, self.decoder(self.head(hidden_BLE))
        if is_traced(hidden_BLE):  # how many tokens are labelled is a value
            logits = self.decoder(self.head(hidden_BLE))
            loss = mean_cross_entropy(logits, labels_BL, num_items_in_batch)
            return loss, None if self.training else logits
        if not (self.training or self.config.sparse_prediction):
            logits = self.decoder(self.head(hidden_BLE))
            return mean_cross_entropy(logits, labels_BL, num_items_in_batch), logits
        vectors, labels = labelled_rows(hidden_BLE, labels_BL)
        vectors = self.head(vectors)
        if self.training and is_plain_linear(self.decoder):
            weight, bias = self.decoder.weight, self.decoder.bias
            return mean_linear_cross_entropy(vectors, weight, bias, labels, num_items_in_batch), None
        logits = self.decoder(vectors)
        return mean_cross_entropy(logits, labels, num_items_in_batch), None if self.training else logits

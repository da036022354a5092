"""A model with the embeddings of a plan: rows of the input matrix, and of output matrix and bias where there are some.

Design decisions:

- Matrices are found through `get_input_embeddings` and `get_output_embeddings`, never by name.
- The model is copied with the sliced tensors put in the place of the old ones wherever these occur. So what was tied stays
  tied, what was not does not become so, and the old matrix is never copied.
- Ids in the configuration (`pad_token_id`, `bos_token_id`, ...) follow their tokens. One that names no token of the
  tokenizer, as the defaults of a configuration class may for a small vocabulary, becomes None, and the log says so.
- Position embeddings that start behind the padding id (RoBERTa, XLM-R) pin it: `pinned_ids` has all ids up to it.
"""

import copy
import logging
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from mmbert_hf.vocabulary.plan import VocabularyPlan

logger = logging.getLogger(__name__)
AnyModel = TypeVar("AnyModel", bound=nn.Module)


@torch.no_grad()
def apply_to_model(model: AnyModel, plan: VocabularyPlan) -> AnyModel:
    """Make a model with the embeddings that a plan keeps.

    Args:
        model: A transformers model, with one row per id of the plan's vocabulary, or more (padding, which goes). It is not
            changed; weights other than the embeddings are copied.
        plan: The plan, made for the model's tokenizer.

    Returns:
        A new model of the same class: for kept tokens it computes what the old one does.

    Raises:
        TypeError: The embeddings are not an `nn.Embedding`, as with adapters that are not merged.
        ValueError: The model has fewer rows than the plan's vocabulary, a second table with as many, or a special
            token, by its configuration, that goes.

    Example:
        >>> import numpy as np
        >>> from mmbert_hf import MMBertConfig, MMBertForMaskedLM
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 48}
        >>> model = MMBertForMaskedLM(MMBertConfig(**sizes, vocab_size=100)).eval()
        >>> plan = VocabularyPlan(np.arange(40), counts=np.ones(100, dtype=np.int64), num_texts=1)
        >>> small = apply_to_model(model, plan)
        >>> small.decoder.weight.shape, small.decoder.weight is small.get_input_embeddings().weight
        (torch.Size([40, 32]), True)
    """
    embeddings = _checked_embeddings(model, plan)
    rows = torch.from_numpy(plan.kept_ids)
    moved = [(config, name, _new_value(value, plan, name)) for config, name, value in _named_ids(model)]
    sliced = {
        id(tensor): nn.Parameter(tensor[rows.to(tensor.device)].clone(), requires_grad=tensor.requires_grad)
        for tensor in (embeddings.weight, *_output_tensors(model, embeddings.num_embeddings))
    }
    # deepcopy takes what the memo has in place of a copy, and adds what it has copied.
    memo: dict[int, Any] = dict(sliced)
    new = copy.deepcopy(model, memo)
    for config, name, value in moved:
        setattr(memo[id(config)], name, value)
    for module in new.modules():
        if any(getattr(module, "weight", None) is tensor for tensor in sliced.values()):
            setattr(module, "num_embeddings" if isinstance(module, nn.Embedding) else "out_features", plan.new_size)
        if module.__dict__.get("vocab_size") == embeddings.num_embeddings:
            module.vocab_size = plan.new_size
        if isinstance(padding := module.__dict__.get("padding_idx"), int):
            module.padding_idx = _new_value(padding, plan, "padding_idx")
    new.config.get_text_config().vocab_size = plan.new_size
    return new


def pinned_ids(model: nn.Module, num_ids: int) -> set[int]:
    """Ids that a model needs beside those of its tokenizer.

    Args:
        model: A transformers model.
        num_ids: Number of ids of the tokenizer; others are left out.

    Returns:
        Ids that its configuration names, and all up to the padding id where positions start behind it.
    """
    named = {id_ for _, _, value in _named_ids(model) for id_ in (value if isinstance(value, list) else [value])}
    paddings = {module.__dict__.get("padding_idx") for module in model.modules()} - {None}
    behind = range(max(_position_paddings(model), default=-1) + 1)
    return {id_ for id_ in named | paddings | set(behind) if 0 <= id_ < num_ids}


def _checked_embeddings(model: Any, plan: VocabularyPlan) -> nn.Embedding:
    """The input embeddings, once they are found to fit the plan."""
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        raise TypeError(
            f"the input embeddings of {type(model).__name__} are {type(embeddings).__name__}, expected nn.Embedding: merge "
            "adapters, and load without quantisation"
        )
    if embeddings.num_embeddings < plan.old_size:
        raise ValueError(
            f"the model has {embeddings.num_embeddings} embeddings, but its tokenizer {plan.old_size} ids: pass the "
            "tokenizer that it was trained with"
        )
    for name, module in model.named_modules():
        is_known = module is embeddings or any(word in name.rpartition(".")[2] for word in ("position", "type"))
        if isinstance(module, nn.Embedding) and not is_known and module.num_embeddings == embeddings.num_embeddings:
            raise ValueError(
                f"{name} is a second table with {module.num_embeddings} rows, which trimming does not know"
            )
    kept = plan.kept_ids
    for padding in _position_paddings(model):
        if padding >= len(kept) or kept[padding] != padding:
            raise ValueError(
                f"positions start behind the padding id {padding}, so all ids up to it must stay: make the plan with trim"
            )
    return embeddings


def _position_paddings(model: Any) -> set[int]:
    """Padding ids of tables other than the input embeddings."""
    embeddings = model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not embeddings]
    return {table.padding_idx for table in tables if table.padding_idx is not None}


def _output_tensors(model: Any, num_rows: int) -> Iterator[torch.Tensor]:
    """Weight and bias of the output embeddings, and a bias that the module around them holds, as BERT's head does."""
    output = model.get_output_embeddings()
    if output is None:
        return
    if len(output.weight) != num_rows:
        raise ValueError(f"the model has {num_rows} input embeddings but {len(output.weight)} output embeddings")
    yield output.weight
    if getattr(output, "bias", None) is not None:
        yield output.bias
    for parent in model.modules():
        if any(child is output for child in parent.children()):
            yield from (tensor for tensor in parent.parameters(recurse=False) if tensor.shape == (num_rows,))


def _named_ids(model: Any) -> Iterator[tuple[Any, str, int | list[int]]]:
    """Configuration, name and value of every token id that the model's configurations name."""
    configs = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    for config in {id(config): config for config in configs if config is not None}.values():
        for name, value in vars(config).items():
            is_id = isinstance(value, int) or (isinstance(value, list) and all(isinstance(id_, int) for id_ in value))
            if name.endswith("_token_id") and is_id:
                yield config, name, value


def _new_value(value: Any, plan: VocabularyPlan, name: str) -> Any:
    """A token id, or several, in the new vocabulary; None if there was no such token before."""
    if isinstance(value, list):
        return [new for id_ in value if (new := _new_value(id_, plan, name)) is not None] or None
    if not 0 <= value < plan.old_size:
        logger.warning(
            "%s was %d, which the vocabulary of %d tokens has not: it is None now", name, value, plan.old_size
        )
        return None
    new = int(plan.new_ids[value])
    if new < 0:
        raise ValueError(f"the model's {name} is {value}, a token that the plan drops: name it in keep_tokens")
    return new

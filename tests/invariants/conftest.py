"""Shared by the invariants: models with wide random weights, inputs with every kind of padding, and comparisons.

The weights are drawn wide, so that a mask that is off by one token, or missing, changes the numbers by far more than
the tolerance.
"""

import pytest
import torch
import transformers

from mmbert_hf import modeling
from mmbert_hf.configuration import MMBertConfig

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 16,
    "initializer_range": 0.08,
    "global_rope_theta": 30_000.0,
    "local_rope_theta": 500.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "sep_token_id": 1,
}
TASKS = {
    "Model": {},
    "ForMaskedLM": {},
    "ForSequenceClassification": {"num_labels": 3, "classifier_pooling": "mean"},
    "ForTokenClassification": {"num_labels": 5},
    "ForQuestionAnswering": {},
    "ForMultipleChoice": {"classifier_pooling": "mean"},
}
PER_ROW = ("ForSequenceClassification", "ForMultipleChoice")


class Parity:
    """What the tests share, under one name. Masks and `real` are [B, L], true at real tokens."""

    tasks = tuple(TASKS)
    per_row = PER_ROW

    @staticmethod
    def model(task="Model", implementation="sdpa", **options):
        """Ours, with wide random weights."""
        options = {**SIZES, **TASKS[task], **options}
        model = getattr(modeling, f"MMBert{task}")(MMBertConfig(**options, attn_implementation=implementation))
        return draw_wide(model.eval())

    @staticmethod
    def pair(task="Model", implementation="eager", **options):
        """A native model with wide random weights, and ours with the same; ours comes first."""
        options = {**SIZES, **TASKS[task], **options}
        config = transformers.ModernBertConfig(**options, attn_implementation=implementation)
        native = draw_wide(getattr(transformers, f"ModernBert{task}")(config).eval())
        ours = getattr(modeling, f"MMBert{task}")(MMBertConfig(**options, attn_implementation=implementation)).eval()
        ours.load_state_dict(native.state_dict(), strict=True)
        return ours, native

    @staticmethod
    def mask(rows, length):
        """A mask [B, L] from the spans of real tokens of each row."""
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        for row, spans in enumerate(rows):
            for start, end in spans:
                mask[row, start:end] = 1
        return mask

    @staticmethod
    def inputs(task, mask, masked=True):
        """Random tokens, labels for the task, and `mask` [B, L] where `masked`; else all tokens are real.

        Span labels are left out where there is padding: the losses run over the whole row, and what padding scores is
        nobody's business.
        """
        generator = torch.Generator().manual_seed(1)
        mask = mask if masked else torch.ones_like(mask)
        batch, length = mask.shape
        input_ids = torch.randint(5, 120, (batch, length), generator=generator)
        inputs = {"input_ids": input_ids, "attention_mask": mask if masked else None}
        chosen = torch.rand(mask.shape, generator=generator) < 0.3
        chosen[torch.arange(batch), mask.argmax(dim=1)] = True  # ModernBERT's loss is NaN where nothing is labelled
        labels = torch.where(chosen & mask.bool(), input_ids, -100)
        if task == "ForMaskedLM":
            inputs["labels"] = labels
        elif task == "ForTokenClassification":
            inputs["labels"] = torch.where(labels >= 0, labels % 5, -100)
        elif task == "ForSequenceClassification":
            inputs["labels"] = torch.arange(batch) % 3
        elif task == "ForQuestionAnswering" and mask.all():
            inputs["start_positions"] = torch.arange(batch) % length
            inputs["end_positions"] = (torch.arange(batch) + 30) % length
        elif task == "ForMultipleChoice":
            choices = 2 if batch % 2 == 0 else 1
            inputs["attention_mask"] = mask  # ModernBERT's mean pooling needs one here
            inputs = {name: value.view(-1, choices, length) for name, value in inputs.items()}
            inputs["labels"] = torch.arange(batch // choices) % choices
        return inputs

    @staticmethod
    def real(inputs):
        """Where `inputs` have real tokens, [B, L] of bool; choices count as rows."""
        mask = inputs.get("attention_mask")
        if mask is None:
            given = inputs.get("input_ids", inputs.get("inputs_embeds"))
            mask = torch.ones(given.shape[:2])
        return mask.flatten(0, -2).bool()

    @staticmethod
    def embedded(model, inputs):
        """The same inputs with embeddings in place of ids; they are a leaf that takes a gradient."""
        inputs = dict(inputs)
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
        return inputs

    @staticmethod
    def objective(output, real):
        """Fixed random weights on the output at real tokens, and the loss if there is one.

        The loss alone would not do: it depends on differences of scores, so the gradients of some biases vanish but
        for rounding.
        """
        names = [name for name in ("last_hidden_state", "logits", "start_logits", "end_logits") if name in output]
        values = torch.cat([at_real(name, output[name], real).flatten() for name in names])
        value = (values * torch.rand(values.shape, generator=torch.Generator().manual_seed(2))).mean()
        return value + output.loss if "loss" in output else value

    @staticmethod
    def assert_same(ours, native, what="", tolerance=5e-6):
        assert ours.shape == native.shape, what
        assert native.isfinite().all(), what
        # The comparison is relative to the largest entry: single entries may be sums that almost cancel.
        scale = native.abs().max().clamp(min=1e-8) if native.numel() else 1.0
        torch.testing.assert_close(
            ours / scale, native / scale, rtol=0, atol=tolerance, msg=lambda text: f"{what}: {text}"
        )

    @staticmethod
    def assert_same_outputs(ours, native, real):
        """Equal at real tokens; what a padding place holds is each model's own."""
        assert set(ours) == set(native)
        for name, value in native.items():
            values = value if isinstance(value, tuple) else (value,)
            got = ours[name] if isinstance(ours[name], tuple) else (ours[name],)
            assert len(got) == len(values)
            for index, (a, b) in enumerate(zip(got, values, strict=True)):
                assert a.shape == b.shape
                Parity.assert_same(at_real(name, a, real), at_real(name, b, real), f"{name} {index}")

    @staticmethod
    def assert_same_gradients(ours, native, tolerance=5e-6):
        expected = {name: value.grad for name, value in native.named_parameters() if value.grad is not None}
        got = {name: value.grad for name, value in ours.named_parameters() if value.grad is not None}
        assert got.keys() == expected.keys()
        assert len(got) > len(ours.base_model.layers)
        for name, gradient in expected.items():
            Parity.assert_same(got[name], gradient, name, tolerance)


def draw_wide(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.15, generator=generator)
    return model


def at_real(name, value, real):
    if name == "attentions":  # [B, H, L, L]: what padding attends to does not count
        value = value.transpose(1, 2)
    return value[real] if value.shape[:2] == real.shape else value


@pytest.fixture(scope="session")
def parity():
    return Parity


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


@pytest.fixture(params=["eager", "sdpa"])
def implementation(request):
    return request.param

"""Eight-bit weights after pruning: a quarter of the bytes again, run by ONNX Runtime.

Design decisions:

- sentence-transformers' own ONNX and OpenVINO back ends need optimum, which does not install beside transformers 5. So
  the whole embedder (encoder, pooling, normalisation) is exported as one ONNX graph by ``torch.onnx``, and ONNX Runtime
  quantises it.
- Dynamic quantisation: weights of linear layers are int8 with a scale per output, embeddings uint8 with one scale;
  activations are quantised on the fly, so no calibration data is needed.
- What encoding needs beside the graph (longest text, prompts) is written into the file, so it and the tokenizer are all.
- Exported and compared in tests: BERT, MPNet, XLM-R, ModernBERT, mmBERT and Qwen3. What cannot be exported: poolings
  that leave out the prompt (its length is no input of the graph), and embedders that do not start from token ids.

Shape legend: N texts, D size of an embedding.
"""

import contextlib
import json
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmbert_hf.pruning.targets import check_weights, encoder_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Int8Embedder", "export_int8"]

FILE = "onnx/model_int8.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "sentence_embedding"
EXAMPLES = ["a text", "another text, which is longer"]  # two lengths and two rows, so that neither is taken for fixed


def export_int8(
    model: "SentenceTransformer", folder: str | Path, *, reduce_range: bool | None = None, overwrite: bool = False
) -> Path:
    """Write an int8 ONNX file of a whole embedder, ``onnx/model_int8.onnx``, and its tokenizer if there is none.

    Args:
        model: The embedder; weights of any float type, computed in float32.
        folder: Where to write; usually where `save_embedder` wrote.
        reduce_range: Use 7 of the 8 bits. Processors without VNNI instructions may overflow otherwise, which costs
            quality; those with them are more exact without. None: by the processor that this runs on.
        overwrite: Replace a file that is there.

    Returns:
        The path of the file.

    Raises:
        ValueError: If packages are missing, or the model cannot be exported.
        FileExistsError: If there is such a file and `overwrite` is false.

    Example:
        >>> export_int8(pruned, "pruned")  # doctest: +SKIP
        PosixPath('pruned/onnx/model_int8.onnx')
    """
    check_packages()
    check_weights(encoder_of(model))
    _check_exportable(model)
    path = Path(folder).expanduser() / FILE
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; give another folder, or pass overwrite=True to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as staging:
        exported, quantised = Path(staging, "model.onnx"), Path(staging, "model_int8.onnx")
        _export(model, exported)
        _quantise(exported, quantised, not _has_vnni() if reduce_range is None else reduce_range)
        _describe(model, quantised)
        if not (path.parents[1] / "tokenizer.json").is_file():
            tokenizer: Any = model.tokenizer
            getattr(tokenizer, "save_portable", tokenizer.save_pretrained)(path.parents[1])
        quantised.replace(path)
    return path


def check_packages() -> None:
    """Raise if a package that the export needs is not installed.

    Raises:
        ValueError: Naming the packages and the command.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(f"int8 needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}")


def _check_exportable(model: "SentenceTransformer") -> None:
    leaves_out = [name for name, part in model.named_modules() if getattr(part, "include_prompt", True) is False]
    if leaves_out and any(model.prompts.values()):
        raise ValueError(
            f"the pooling (module {leaves_out[0]}) leaves out the tokens of the prompt, whose number is no input of the "
            "graph; export a model with include_prompt=True"
        )
    features = model.preprocess(EXAMPLES)
    tensors = {name for name, value in features.items() if isinstance(value, torch.Tensor)}
    if not {"input_ids", "attention_mask"} <= tensors <= set(INPUTS):
        raise ValueError(
            f"the model takes {sorted(tensors)}, and only {', '.join(INPUTS)} are exported; load it with "
            "attn_implementation='sdpa' if it is fed without padding"
        )


class _WholeEmbedder(nn.Module):
    def __init__(self, model: "SentenceTransformer") -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        given = zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True)
        return self.model({name: value for name, value in given if value is not None})[OUTPUT]


def _export(model: "SentenceTransformer", path: Path) -> None:
    """Write the graph in float32, for any number of texts of any length."""
    from torch.export import Dim

    features = model.preprocess(EXAMPLES)
    inputs = {name: features[name].to(model.device) for name in INPUTS if name in features}
    axes = {0: Dim("batch"), 1: Dim("length")}
    with _float32_in_eval(model), _quiet():
        torch.onnx.export(
            _WholeEmbedder(model),
            (),
            path,
            kwargs=inputs,
            dynamic_shapes=dict.fromkeys(inputs, axes),
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
            external_data=False,
        )


@contextlib.contextmanager
def _float32_in_eval(model: "SentenceTransformer") -> Iterator[None]:
    """The model as it is exported; its own tensors and mode come back afterwards, bit for bit."""
    was_training, tensors = model.training, {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            tensors[name] = (tensor, tensor.data)
    try:
        for tensor, data in tensors.values():
            tensor.data = data.float()
        model.eval()
        yield
    finally:
        for tensor, data in tensors.values():
            tensor.data = data
        model.train(was_training)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantiser warn of their own parts, on several ways."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _has_vnni() -> bool:
    """Whether this processor multiplies eight-bit numbers without overflow."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    return "avx512_vnni" in flags or "avx_vnni" in flags or "x86" not in platform.machine().lower()


def _quantise(source: Path, destination: Path, reduce_range: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            destination,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )


def _describe(model: "SentenceTransformer", path: Path) -> None:
    """Write what encoding needs into the file, and take out where on this computer the code that was traced lies."""
    import onnx

    graph = onnx.load(path)
    for part in (graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]
    for function in graph.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
    described = {
        "max_seq_length": model.max_seq_length,
        "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt},
        "default_prompt_name": model.default_prompt_name,
    }
    onnx.helper.set_model_props(graph, {"embedder": json.dumps(described, ensure_ascii=False)})
    onnx.save(graph, path)


class Int8Embedder:
    """An exported embedder: texts in, embeddings out, without PyTorch doing any of it.

    Args:
        folder: Where `export_int8` wrote.
        num_threads: Of ONNX Runtime; as many as there are cores if None.

    Attributes:
        prompts: Name -> what is put in front of a text.

    Raises:
        ValueError: If packages are missing.
        FileNotFoundError: If there is no exported file.

    Example:
        >>> embedder = Int8Embedder("pruned")  # doctest: +SKIP
        >>> embedder.encode(["A text."]).shape  # doctest: +SKIP
        (1, 384)
    """

    def __init__(self, folder: str | Path, num_threads: int | None = None) -> None:
        check_packages()
        from onnxruntime import InferenceSession, SessionOptions
        from transformers import AutoTokenizer

        path = Path(folder).expanduser() / FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; write it with export_int8(model, {str(folder)!r})")
        options = SessionOptions()
        options.intra_op_num_threads = num_threads or 0
        self.session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.tokenizer = AutoTokenizer.from_pretrained(path.parents[1])
        described = json.loads(self.session.get_modelmeta().custom_metadata_map["embedder"])
        self.prompts: dict[str, str] = described["prompts"]
        self.default_prompt_name: str | None = described["default_prompt_name"]
        self.max_seq_length: int | None = described["max_seq_length"]

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None, batch_size: int = 32) -> np.ndarray:
        """Embed texts.

        Args:
            texts: N texts.
            prompt_name: Which of the prompts to put in front; the default one, if there is one, if None.
            batch_size: Texts that run together.

        Returns:
            float32 [N, D].

        Raises:
            ValueError: If there is no such prompt, or no text.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"got {texts!r}; give a list of at least one text")
        name = prompt_name or self.default_prompt_name
        if prompt_name is not None and prompt_name not in self.prompts:
            raise ValueError(f"there is no prompt {prompt_name!r}; the model has {sorted(self.prompts)}")
        prompt = self.prompts.get(name, "") if name else ""
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))  # alike lengths need little padding
        pieces = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        sorted_ND = np.concatenate([self._run([prompt + texts[index] for index in piece]) for piece in pieces])
        embeddings_ND = np.empty_like(sorted_ND)
        embeddings_ND[order] = sorted_ND
        return embeddings_ND

    def _run(self, texts: list[str]) -> np.ndarray:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="np"
        )
        wanted = {entry.name: tokens[entry.name].astype(np.int64) for entry in self.session.get_inputs()}
        return self.session.run([OUTPUT], wanted)[0]

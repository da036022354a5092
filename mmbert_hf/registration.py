"""Make transformers' Auto classes know ``model_type: mmbert``.

Design decisions:

- Registering happens on ``import mmbert_hf``; transformers has no entry-point plug-ins. Importing transformers takes
  over a second, so where it has not been imported yet we wait: a finder on ``sys.meta_path`` registers right after the
  first ``import transformers``, when nothing else of transformers is half-way through its own import.
- ``mmbert_hf.configuration`` or ``mmbert_hf.tokenization`` may be the very import that brings transformers in. They
  cannot be registered half-imported, so both call `register` again in their last line.
- Model code takes seconds to import. The model mappings accept a tuple of classes, so each Auto class is given a tuple
  that imports the model code when it is first looked into.
- Published mmBERT checkpoints carry ``model_type: modernbert``. Giving those the classes of this package changes
  ModernBERT for the whole process, so it happens only on ``register(modernbert=True)``.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Auto class in transformers -> class in mmbert_hf.modeling.
AUTO_CLASSES = {
    "AutoModel": "MMBertModel",
    "AutoModelForPreTraining": "MMBertForMaskedLM",
    "AutoModelForMaskedLM": "MMBertForMaskedLM",
    "AutoModelForSequenceClassification": "MMBertForSequenceClassification",
    "AutoModelForTokenClassification": "MMBertForTokenClassification",
    "AutoModelForQuestionAnswering": "MMBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "MMBertForMultipleChoice",
}


class _LazyModelClass(tuple):
    """A one-element tuple of model classes that imports the class when it is read.

    transformers' model mappings take a class or a tuple of classes; this is the tuple.
    """

    class_name: str

    def __new__(cls, class_name: str) -> "_LazyModelClass":
        self = super().__new__(cls, (class_name,))
        self.class_name = class_name
        return self

    def load(self) -> type:
        """Return the model class, importing `mmbert_hf.modeling` the first time."""
        return getattr(import_module("mmbert_hf.modeling"), self.class_name)

    def __iter__(self) -> Iterator[type]:
        yield self.load()

    def __getitem__(self, index: Any) -> Any:
        return (self.load(),)[index]

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.class_name,)


class _AfterTransformers(MetaPathFinder):
    """Registers once, right after the first import of transformers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for ``transformers`` alone, with its own loader and our step behind it."""
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_then_register(module: ModuleType) -> None:
            del loader.exec_module  # the instance attribute set below: the loader is its own again
            execute(module)
            _register_mmbert()

        loader.exec_module = execute_then_register
        return spec


def register(*, modernbert: bool = False) -> None:
    """Register the architecture with transformers' Auto classes. Called by ``import mmbert_hf``; safe to call again.

    Args:
        modernbert: Also give checkpoints of ``model_type: modernbert``, such as the published
            ``jhu-clsp/mmBERT-base``, the classes of this package: from then on
            ``AutoModel.from_pretrained("jhu-clsp/mmBERT-base")`` returns an `MMBertModel` in this process. What it saves
            is ``model_type: modernbert`` again.

    Example:
        >>> import mmbert_hf
        >>> from transformers import AutoConfig
        >>> AutoConfig.for_model("mmbert", hidden_size=128, num_attention_heads=2).hidden_size
        128
        >>> mmbert_hf.register()  # again: nothing changes
    """
    if modernbert or "transformers" in sys.modules:
        _register_mmbert()
    elif not any(isinstance(finder, _AfterTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTransformers())
    if modernbert:
        _register_on_modernbert()


def _register_mmbert() -> None:
    for module, name in (("mmbert_hf.configuration", "MMBertConfig"), ("mmbert_hf.tokenization", "MMBertTokenizer")):
        if module in sys.modules and not hasattr(sys.modules[module], name):
            return  # half-imported: it calls register() when it is done
    import transformers

    from mmbert_hf.configuration import MMBertConfig
    from mmbert_hf.tokenization import MMBertTokenizer

    transformers.AutoConfig.register(MMBertConfig.model_type, MMBertConfig, exist_ok=True)
    transformers.AutoTokenizer.register(MMBertConfig, MMBertTokenizer, exist_ok=True)
    for auto_class, model_class in AUTO_CLASSES.items():
        getattr(transformers, auto_class).register(MMBertConfig, _LazyModelClass(model_class), exist_ok=True)


def _register_on_modernbert() -> None:
    """Register the classes that run MMBERT's code on transformers' own configuration, imported: it was asked for."""
    import transformers

    from mmbert_hf import modeling
    from mmbert_hf._compat import register_on_native_config
    from mmbert_hf.conversion import MODERNBERT_CLASSES

    for auto_class, model_class in AUTO_CLASSES.items():
        native = MODERNBERT_CLASSES[getattr(modeling, model_class)]
        register_on_native_config(getattr(transformers, auto_class), transformers.ModernBertConfig, native)

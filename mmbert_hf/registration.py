"""Make other libraries know ``model_type: mmbert``: transformers' Auto classes, and peft's default target modules.

Design decisions:

- Registering happens on ``import mmbert_hf``; neither library has entry-point plug-ins. Importing transformers takes
  over a second and peft more, so we never import them for this: where one is not there yet, a finder on
  ``sys.meta_path`` registers right after its first import, when nothing else of it is half-way through its own import.
- ``mmbert_hf.configuration`` or ``mmbert_hf.tokenization`` may be the very import that brings transformers in. They
  cannot be registered half-imported, so both call `register` again in their last line.
- Model code takes seconds to import. The model mappings accept a tuple of classes, so each Auto class is given a tuple
  that imports the model code when it is first looked into.
- Published mmBERT checkpoints carry ``model_type: modernbert``. Giving those the classes of this package changes
  ModernBERT for the whole process, so it happens only on ``register(modernbert=True)``.
- peft is told to adapt ``Wqkv``, for ModernBERT too unless peft knows better: that only replaces an error. Its
  defaults for encoders are the projections into attention, and where those are one matrix, that matrix. ``Wo`` (of
  attention and of the feed-forward block) and ``Wi`` belong to the user's choice, ``target_modules="all-linear"``.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

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

# Modules that peft adapts where the user names none. A mapping of peft -> modules; every other mapping: ATTENTION_INPUT.
# (IA)^3 rescales keys, values and the inputs of the last feed-forward layer, arXiv 2205.05638.
ATTENTION_INPUT = ["Wqkv"]
PEFT_TARGET_MODULES = {
    "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING": ["Wqkv", "mlp.Wo"],
    "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING": ["mlp.Wo"],
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


class _ThenLoader(Loader):
    """Loads a module as its own loader does, then runs a step. The module keeps its own loader."""

    def __init__(self, loader: Any, step: Callable[[], None]) -> None:
        self._loader = loader
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # for those who look a module up without importing it

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._step()


class _AfterImport(MetaPathFinder):
    """Runs a step once, right after the first import of a module.

    If the module is half-imported when we come, its own loader is at work already: then the step runs behind the next
    import from the same package that comes after it.
    """

    finished: ClassVar[set[str]] = set()  # modules whose step runs or has run

    def __init__(self, module: str, step: Callable[[], None]) -> None:
        self.module = module
        self.package = module.partition(".")[0] + "."
        self.step = step

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for the module alone, with what the other finders say and our step behind it."""
        if fullname != self.module and not (fullname.startswith(self.package) and _is_imported(self.module)):
            return None
        # We stay until the step runs: whoever asks may only want to know whether the module is installed.
        for finder in list(sys.meta_path):
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _ThenLoader(spec.loader, self._finish)
                return spec
        return None

    def _finish(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self.finished.add(self.module)
            self.step()


def _is_imported(module: str) -> bool:
    """Whether a module is there and complete."""
    found = sys.modules.get(module)
    if found is None:
        return False
    # Behind the first import the interpreter still takes the module for half-imported; we know better.
    return module in _AfterImport.finished or not getattr(found.__spec__, "_initializing", False)


def _after_import(module: str, step: Callable[[], None]) -> None:
    """Run a step now if the module is imported, else once, right after it is. The step must bear being run again."""
    if _is_imported(module):
        step()
    elif not any(isinstance(finder, _AfterImport) and finder.module == module for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(module, step))


def register(*, modernbert: bool = False) -> None:
    """Register the architecture with transformers' Auto classes and with peft. Called by ``import mmbert_hf``.

    Safe to call again. A library that is not imported yet is registered with as soon as it is.

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
    _after_import("transformers", _register_mmbert)
    _after_import("peft.utils.constants", _register_with_peft)
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


def _register_with_peft() -> None:
    """Fill in what peft lacks in its defaults, for each method that has one for models like this.

    Like this: for an encoder ("bert"), and for query, key and value in one matrix ("bloom"). BEFT, which trains the bias
    of the values alone, knows no such matrix.
    """
    for name, mapping in vars(sys.modules["peft.utils.constants"]).items():
        if name.endswith("_MODULES_MAPPING") and {"bert", "bloom"} <= set(mapping):
            for model_type in ("mmbert", "modernbert"):
                mapping.setdefault(model_type, list(PEFT_TARGET_MODULES.get(name, ATTENTION_INPUT)))


def _register_on_modernbert() -> None:
    """Register the classes that run MMBERT's code on transformers' own configuration, imported: it was asked for."""
    import transformers

    from mmbert_hf import modeling
    from mmbert_hf._compat import register_on_native_config
    from mmbert_hf.conversion import MODERNBERT_CLASSES

    for auto_class, model_class in AUTO_CLASSES.items():
        native = MODERNBERT_CLASSES[getattr(modeling, model_class)]
        register_on_native_config(getattr(transformers, auto_class), transformers.ModernBertConfig, native)

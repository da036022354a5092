"""mmbert-hf: mmBERT encoders for the Hugging Face ecosystem.

`import mmbert_hf` makes ``model_type: mmbert`` known to transformers' Auto classes and costs some ten milliseconds:
nothing heavy is imported before it is used. The public names below are loaded on first access.

>>> import mmbert_hf
>>> config = mmbert_hf.MMBertConfig.small(num_hidden_layers=2)
>>> config.model_type
'mmbert'
"""

from typing import TYPE_CHECKING

from mmbert_hf._lazy import attach
from mmbert_hf._version import __version__
from mmbert_hf.registration import register

if TYPE_CHECKING:
    from mmbert_hf.configuration import MMBertConfig
    from mmbert_hf.conversion import export_modernbert, from_modernbert
    from mmbert_hf.data.mixture import LanguageMixture
    from mmbert_hf.data.packed_mixture import PackedMixture
    from mmbert_hf.data.table import load_table
    from mmbert_hf.data.token_documents import TokenDocuments
    from mmbert_hf.data.udhr import load_udhr, read_corpus
    from mmbert_hf.languages import sampling_probabilities
    from mmbert_hf.masking import MaskingCollator, PackingCollator
    from mmbert_hf.merging import merge_checkpoints
    from mmbert_hf.modeling import (
        MMBertForMaskedLM,
        MMBertForMultipleChoice,
        MMBertForQuestionAnswering,
        MMBertForSequenceClassification,
        MMBertForTokenClassification,
        MMBertModel,
        MMBertPreTrainedModel,
    )
    from mmbert_hf.presets import get_preset
    from mmbert_hf.pruning.config import GAPruneConfig
    from mmbert_hf.pruning.pruner import GAPruner
    from mmbert_hf.recipes import Phase, Recipe
    from mmbert_hf.step_plan import plan_steps
    from mmbert_hf.tokenization import MMBertTokenizer
    from mmbert_hf.trainers.annealing import AnnealingCallback
    from mmbert_hf.trainers.gaprune import GAPruneCallback
    from mmbert_hf.trainers.mlm import MLMTrainer
    from mmbert_hf.trainers.mlm_config import MLMConfig
    from mmbert_hf.trainers.runs import run_recipe
    from mmbert_hf.trainers.spo.config import SPOConfig
    from mmbert_hf.trainers.spo.tracker import ValueTracker
    from mmbert_hf.trainers.spo.trainer import SPOTrainer

# Where each public name lives. The one place; `__all__` and `dir()` follow it.
_HOME = {
    "AnnealingCallback": "mmbert_hf.trainers.annealing",
    "GAPruneCallback": "mmbert_hf.trainers.gaprune",
    "GAPruneConfig": "mmbert_hf.pruning.config",
    "GAPruner": "mmbert_hf.pruning.pruner",
    "LanguageMixture": "mmbert_hf.data.mixture",
    "MLMConfig": "mmbert_hf.trainers.mlm_config",
    "MLMTrainer": "mmbert_hf.trainers.mlm",
    "MMBertConfig": "mmbert_hf.configuration",
    "MMBertForMaskedLM": "mmbert_hf.modeling",
    "MMBertForMultipleChoice": "mmbert_hf.modeling",
    "MMBertForQuestionAnswering": "mmbert_hf.modeling",
    "MMBertForSequenceClassification": "mmbert_hf.modeling",
    "MMBertForTokenClassification": "mmbert_hf.modeling",
    "MMBertModel": "mmbert_hf.modeling",
    "MMBertPreTrainedModel": "mmbert_hf.modeling",
    "MMBertTokenizer": "mmbert_hf.tokenization",
    "MaskingCollator": "mmbert_hf.masking",
    "PackedMixture": "mmbert_hf.data.packed_mixture",
    "PackingCollator": "mmbert_hf.masking",
    "Phase": "mmbert_hf.recipes",
    "Recipe": "mmbert_hf.recipes",
    "SPOConfig": "mmbert_hf.trainers.spo.config",
    "SPOTrainer": "mmbert_hf.trainers.spo.trainer",
    "TokenDocuments": "mmbert_hf.data.token_documents",
    "ValueTracker": "mmbert_hf.trainers.spo.tracker",
    "export_modernbert": "mmbert_hf.conversion",
    "from_modernbert": "mmbert_hf.conversion",
    "get_preset": "mmbert_hf.presets",
    "load_table": "mmbert_hf.data.table",
    "load_udhr": "mmbert_hf.data.udhr",
    "merge_checkpoints": "mmbert_hf.merging",
    "plan_steps": "mmbert_hf.step_plan",
    "read_corpus": "mmbert_hf.data.udhr",
    "run_recipe": "mmbert_hf.trainers.runs",
    "sampling_probabilities": "mmbert_hf.languages",
}

__all__ = [
    "AnnealingCallback",
    "GAPruneCallback",
    "GAPruneConfig",
    "GAPruner",
    "LanguageMixture",
    "MLMConfig",
    "MLMTrainer",
    "MMBertConfig",
    "MMBertForMaskedLM",
    "MMBertForMultipleChoice",
    "MMBertForQuestionAnswering",
    "MMBertForSequenceClassification",
    "MMBertForTokenClassification",
    "MMBertModel",
    "MMBertPreTrainedModel",
    "MMBertTokenizer",
    "MaskingCollator",
    "PackedMixture",
    "PackingCollator",
    "Phase",
    "Recipe",
    "SPOConfig",
    "SPOTrainer",
    "TokenDocuments",
    "ValueTracker",
    "__version__",
    "export_modernbert",
    "from_modernbert",
    "get_preset",
    "load_table",
    "load_udhr",
    "merge_checkpoints",
    "plan_steps",
    "read_corpus",
    "register",
    "run_recipe",
    "sampling_probabilities",
]

__getattr__, __dir__ = attach(globals(), _HOME)

register()

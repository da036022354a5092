"""A pruned embedder, and what can be done with it: measure it, retrain it, save it, publish it, go on with it.

Design decisions:

- What is written is a plain SentenceTransformer, so that ``SentenceTransformer("owner/name")`` loads it anywhere. Beside
  it lie the mask, the report (``pruning.json``) and a card; nothing of that is needed to use the model.
- A folder appears with all of it or not at all, and a push is one commit. Both can be repeated.
- The control of a retraining is the dense model after the same training. It is measured beside the two others, since
  otherwise what training gave is taken for what pruning left.
"""

import copy
import inspect
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmbert_hf.evaluation.retrieval import RetrievalSet
from mmbert_hf.hub.fetching import fetch_file
from mmbert_hf.output_folders import output_folder
from mmbert_hf.pruning.int8 import FILE as INT8_FILE
from mmbert_hf.pruning.int8 import check_packages, export_int8
from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.measuring import measure_models
from mmbert_hf.pruning.publishing import published_report, render_card
from mmbert_hf.pruning.report import REPORT_FILE, PruningReport, weights_fingerprint
from mmbert_hf.pruning.saving import save_embedder

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

__all__ = ["MASK_FILE", "PrunedEmbedder"]

MASK_FILE = "pruning_mask.safetensors"
CARD_FILE = "README.md"


@dataclass
class PrunedEmbedder:
    """What `GAPruner.prune` returns.

    Attributes:
        model: The pruned embedder, made of stock modules.
        mask: The weights that are zero, to keep them so while training; None if the pruned model has no zeros.
        report: What was done, and what was measured.
        dense: The model before pruning; None where it was not loaded (`from_pretrained`).
        control: The dense model after the same retraining, if ``retrain(teacher="trained")`` made one.
    """

    model: "SentenceTransformer"
    mask: PruningMask | None
    report: PruningReport
    dense: "SentenceTransformer | None" = None
    control: "SentenceTransformer | None" = None

    def measure(
        self,
        domain: RetrievalSet | None = None,
        general: RetrievalSet | None = None,
        *,
        latency_texts: Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> dict[str, Any]:
        """Measure the dense model, the control if there is one, and the pruned model; keep it in ``report.measured``.

        Args:
            domain: Queries and documents of the domain that neither scoring nor retraining has seen.
            general: The same of everything else.
            latency_texts: What is encoded for the clock; documents of the sets if None.
            batch_size: Texts per forward pass, for the clock too.

        Returns:
            What `mmbert_hf.pruning.measuring.measure_models` gives.

        Raises:
            ValueError: The dense model is missing, or a set cannot be measured on.

        Example:
            >>> pruned.measure(domain, general)["quality"]["domain"]["ndcg_at_10"]  # doctest: +SKIP
            {'dense': 0.375, 'pruned': 0.366}
        """
        models = {"dense": self._dense("measuring"), "control": self.control, "pruned": self.model}
        measured = measure_models(
            {name: model for name, model in models.items() if model is not None},
            domain,
            general,
            latency_texts=latency_texts,
            batch_size=batch_size,
        )
        self.report.measured = self._retrainings() | measured
        return measured

    def retrain(
        self,
        dataset: "Dataset",
        steps: int = 100,
        *,
        teacher: "Literal['dense', 'trained'] | SentenceTransformer | None" = "dense",
        **options: Any,
    ) -> "SentenceTransformer":
        """Train the pruned model for some steps; its zeros stay. What was measured before is dropped from the report.

        Args:
            dataset: Columns ``anchor``, ``positive`` and perhaps ``negative``.
            steps: Optimizer steps.
            teacher: Whose embeddings to stay close to. ``dense``: the model before pruning. ``trained``: a copy of it that
                is given the same steps first, and kept as ``control``; a second call trains that copy on. None: nobody's.
                Or any embedder whose vocabulary has the pruned model's tokens.
            **options: Of `mmbert_hf.trainers.gaprune.retrain`: ``batch_size``, ``learning_rate``, ``seed``, ...

        Returns:
            ``model``, trained in place.

        Raises:
            ValueError: A teacher that is missing or does not fit, a missing column, or numbers out of range.

        Example:
            >>> pruned.retrain(triplets, steps=100, teacher="trained", batch_size=64)  # doctest: +SKIP
        """
        from mmbert_hf.trainers.distillation import teacher_ids
        from mmbert_hf.trainers.gaprune import retrain

        if refused := sorted({"mask", "id_map", "model"} & options.keys()):
            raise ValueError(f"{', '.join(refused)} cannot be given: they are those of this pruned model")
        if isinstance(teacher, str) and teacher not in ("dense", "trained"):
            raise ValueError(f"teacher must be 'dense', 'trained', None or an embedder; got {teacher!r}")
        record = self._describe_retraining(dataset, steps, teacher, options)
        if teacher == "trained":
            teacher = self._train_control(dataset, steps, options)
        elif teacher == "dense":
            teacher = self._dense("retraining with teacher='dense'")
        id_map = None
        if teacher is not None and self.model.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
            id_map = teacher_ids(self.model, teacher)
        retrain(self.model, dataset, steps=steps, teacher=teacher, mask=self.mask, id_map=id_map, **options)
        self.report.measured = {"retraining": [*self._retrainings().get("retraining", []), record]}
        return self.model

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        int8: bool = False,
        repo_id: str | None = None,
        **card: Any,
    ) -> Path:
        """Write the model, its mask, the report and a card. All of it appears at once, or nothing does.

        Args:
            folder: Where to write.
            overwrite: Replace the model in a folder that is not empty.
            int8: Add ``onnx/model_int8.onnx``, see `mmbert_hf.pruning.int8`.
            repo_id: The name that the card loads the model by; the folder's if None.
            **card: Of `mmbert_hf.model_cards.pruned.pruned_embedder_card`: ``base_model``, ``license``, ``languages``,
                ``datasets``, ``tags``. The licence is that of the parent's card if not given.

        Returns:
            The path of the folder.

        Raises:
            FileExistsError: If `folder` is not empty and `overwrite` is false.
            RuntimeError: A pruned weight is not zero.
            ValueError: The model cannot be saved (`mmbert_hf.pruning.saving.save_embedder`), or packages for int8 are
                missing.
            OSError: If writing fails; `folder` is as it was then.

        Example:
            >>> pruned.save_pretrained("smaller")  # doctest: +SKIP
            PosixPath('/home/user/smaller')
        """
        if self.mask is not None:
            self.mask.check(self.model)
        if int8:
            check_packages()
        destination = Path(folder).expanduser().resolve()
        if self.report.weights is not None and not self._retrainings():
            self.report.changed_elsewhere = weights_fingerprint(self.model) != self.report.weights
        report, parent = published_report(self.report), self.model if self.dense is None else self.dense
        rendered = render_card(repo_id or destination.name, report, parent, card)
        with output_folder(destination, overwrite=overwrite, replaces_tokenizer=True) as staging:
            save_embedder(self.model, staging)
            if self.mask is not None:
                self.mask.save(staging / MASK_FILE)
            report.save(staging / REPORT_FILE)
            rendered.save(staging / CARD_FILE)
            if int8:
                export_int8(self.model, staging)
        if not int8:  # of the model that was replaced
            (destination / INT8_FILE).unlink(missing_ok=True)
        return destination

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
        commit_message: str = "Add a pruned embedder",
        exist_ok: bool = True,
        int8: bool = False,
        tags: Sequence[str] = (),
        **card: Any,
    ) -> str:
        """Publish what `save_pretrained` writes, in one commit. Repeated, it changes nothing.

        Args:
            repo_id: ``owner/name``, or a name of your own.
            private: Make a new repository private; None is the default of the account.
            revision: Branch to push to, made if it is not there.
            create_pr: Open a pull request in place of a commit.
            token: Of the Hub; the one stored on this machine, or ``HF_TOKEN``, if None.
            commit_message: First line of the commit.
            exist_ok: Push to a repository that exists already.
            int8: As for `save_pretrained`.
            tags: More tags for the card.
            **card: As for `save_pretrained`.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            PermissionError: There is no token, or the Hub refuses it; nothing was done then.
            ValueError: The name cannot be one, or `private` is asked for and the repository is public.
            FileExistsError: The repository exists, and `exist_ok` is false.
            ConnectionError: The Hub could not be reached; repeat the call.

        Example:
            >>> pruned.push_to_hub("me/smaller", private=True)  # doctest: +SKIP
            'https://huggingface.co/me/smaller/commit/4be1...'
        """
        from huggingface_hub import HfApi

        from mmbert_hf.hub import check_repo_id, publish, require_token

        check_repo_id(repo_id)
        user = require_token(HfApi(token=token))
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        with tempfile.TemporaryDirectory(prefix="mmbert-push-") as parent:
            folder = self.save_pretrained(Path(parent, "model"), int8=int8, repo_id=repo_id, tags=tags, **card)
            publication = publish(
                folder,
                repo_id,
                private=private,
                revision=revision,
                create_pr=create_pr,
                token=token,
                commit_message=commit_message,
                exist_ok=exist_ok,
            )
        return str(publication.url)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | Path,
        *,
        dense: "SentenceTransformer | None" = None,
        revision: str | None = None,
        token: str | None = None,
        device: str | None = None,
    ) -> "PrunedEmbedder":
        """Load what `save_pretrained` or `push_to_hub` wrote, with mask and report, so that retraining can go on.

        Args:
            folder_or_name: A folder, or ``owner/name`` on the Hub.
            dense: The model before pruning, to measure against it or to distil from it.
            revision: Branch, tag or commit on the Hub.
            token: Of the Hub, for a private model.
            device: Where the model is put; chosen by sentence-transformers if None.

        Returns:
            The model, its mask if it has one, and its report.

        Raises:
            FileNotFoundError: There is no such folder, or the model has no ``pruning.json``.
            RuntimeError: A pruned weight is not zero.
            ValueError: The mask is missing, or it is not the one of the report.

        Example:
            >>> PrunedEmbedder.from_pretrained("me/smaller").retrain(triplets, teacher=None)  # doctest: +SKIP
        """
        from sentence_transformers import SentenceTransformer

        from mmbert_hf.hub import check_folder_or_hub_name

        name = str(folder_or_name)
        check_folder_or_hub_name(name)
        report_file = fetch_file(name, REPORT_FILE, revision, token)
        if report_file is None:
            raise FileNotFoundError(
                f"{name} has no {REPORT_FILE}: it is no pruned embedder of this package; load it with "
                "SentenceTransformer"
            )
        report = PruningReport.load(report_file)
        mask = None
        if report.mask is not None:
            mask_file = fetch_file(name, MASK_FILE, revision, token)
            mask = PruningMask.load(mask_file) if mask_file is not None else None
            if mask is None or mask.fingerprint != report.mask:
                raise ValueError(
                    f"the {MASK_FILE} of {name} {'is missing' if mask is None else 'is not the one of its report'}; get "
                    "it from where the model comes from"
                )
        model = SentenceTransformer(name, revision=revision, token=token, device=device)
        if mask is not None:
            mask.check(model)
        return cls(model, mask, report, dense)

    def _dense(self, purpose: str) -> "SentenceTransformer":
        if self.dense is None:
            raise ValueError(
                f"{purpose} needs the model before pruning, which is not loaded; set pruned.dense, or pass it to "
                "from_pretrained(..., dense=model)"
            )
        return self.dense

    def _retrainings(self) -> dict[str, Any]:
        """What `retrain` wrote into the report."""
        return {name: value for name, value in self.report.measured.items() if name == "retraining"}

    def _train_control(self, dataset: "Dataset", steps: int, options: dict[str, Any]) -> "SentenceTransformer":
        from mmbert_hf.trainers.gaprune import retrain

        control = self.control
        if control is None:
            control = copy.deepcopy(self._dense("retraining with teacher='trained'"))
        own = {name: value for name, value in options.items() if name != "distillation_weight"}
        if own.get("output_dir"):
            own["output_dir"] = str(Path(own["output_dir"], "control"))
        self.control = retrain(control, dataset, steps=steps, **own)
        return self.control

    def _describe_retraining(
        self, dataset: "Dataset", steps: int, teacher: Any, options: dict[str, Any]
    ) -> dict[str, Any]:
        """What the report says of a retraining; defaults are those of the function that does it."""
        from mmbert_hf.trainers.gaprune import retrain

        defaults = {name: parameter.default for name, parameter in inspect.signature(retrain).parameters.items()}
        names = ["batch_size", "learning_rate", "seed"]
        if teacher is not None:
            names.append("distillation_weight")
        named = teacher if teacher is None or isinstance(teacher, str) else "another model"
        return {
            "steps": steps,
            "num_rows": len(dataset),
            "teacher": named,
            **{name: options.get(name, defaults[name]) for name in names},
        }

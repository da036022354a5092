"""`GAPruner`: score an embedder on domain and general triplets once, then prune it in any way, any number of times.

Design decisions:

- Scoring and pruning are apart: statistics serve every method, sparsity and granularity.
- `prune` works on a copy and returns it with what was done; the model given is never changed.
- Representatives are chosen for scoring alone: the vocabulary is counted on all texts of the sets.
- Granularities combine, in the order vocabulary, layer, ffn, then zeros in what is left. Statistics of a weight follow
  it through all of that (`mmbert_hf.pruning.survivors`).
- What a method is worth is not taken on faith: every run reports how much each term contributes and how much of the
  choice is the one that magnitude alone would have made.

Shape legend: O outputs, I inputs of a linear layer, F neurons of a feed-forward.
"""

import copy
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from mmbert_hf.pruning import budgets
from mmbert_hf.pruning.config import GAPruneConfig
from mmbert_hf.pruning.feasibility import check_fit
from mmbert_hf.pruning.footprint import predict_bytes, width_for_size
from mmbert_hf.pruning.gradients import triplet_losses
from mmbert_hf.pruning.layers import choose_layers, drop_layers, last_layers
from mmbert_hf.pruning.masks import PruningMask
from mmbert_hf.pruning.refitting import activation_moments
from mmbert_hf.pruning.report import PruningReport
from mmbert_hf.pruning.result import PrunedEmbedder
from mmbert_hf.pruning.scores import DATA_FREE, Scorer
from mmbert_hf.pruning.scoring import collect_statistics
from mmbert_hf.pruning.statistics import Statistics, model_fingerprint
from mmbert_hf.pruning.survivors import ScoresByName, Survivors
from mmbert_hf.pruning.targets import Target, encoder_of, find_blocks, find_feed_forwards, find_targets
from mmbert_hf.pruning.texts import embed
from mmbert_hf.pruning.triplets import Triplets, check_different, read_triplets, select_triplets
from mmbert_hf.pruning.widths import choose_neurons, neuron_scores, shrink_feed_forwards
from mmbert_hf.vocabulary import trim

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

__all__ = ["GAPruner"]

logger = logging.getLogger(__name__)

SAME_AS_MAGNITUDE = 0.95
NUM_LOSS_TRIPLETS = 256  # per set, to choose layers
NUM_REFIT_TRIPLETS = 1000  # per set, to fit the layers that read the neurons


class GAPruner:
    """Prune a SentenceTransformer for a domain (arXiv 2509.10844).

    Args:
        model: Any embedder with linear layers in transformer blocks: BERT, MPNet, XLM-R, ModernBERT, MMBERT, Qwen3 and
            others. Its prompts, pooling and padding side are used as they are. It is not changed.
        domain: Triplets of the domain: a dataset with the columns ``anchor``, ``positive`` and ``negative``; see
            `mmbert_hf.pruning.add_hard_negatives` where there are no negatives.
        general: Triplets of everything else, which the model is to keep.
        args: Options; the defaults if None.

    Raises:
        ValueError: The model has nothing to prune, quantised weights or adapters; options do not fit it; a column is
            missing, texts are empty, or both sets are the same.

    Example:
        >>> pruner = GAPruner(model, domain, general, GAPruneConfig(granularity="ffn"))  # doctest: +SKIP
        >>> pruned = pruner.prune()  # scores first  # doctest: +SKIP
        >>> pruned.save_pretrained("smaller")  # doctest: +SKIP
    """

    def __init__(
        self, model: "SentenceTransformer", domain: "Dataset", general: "Dataset", args: GAPruneConfig | None = None
    ) -> None:
        self.model = model
        self.args = args or GAPruneConfig()
        self.targets: list[Target] = find_targets(model, "all")
        check_fit(model, self.args)
        self.texts = {"domain": read_triplets(domain, "domain"), "general": read_triplets(general, "general")}
        check_different(self.texts["domain"], self.texts["general"])
        self.triplets = dict(self.texts)  # those that are scored
        if self.args.num_triplets is not None:
            self.triplets = {
                name: self._representatives(dataset, name)
                for name, dataset in (("domain", domain), ("general", general))
            }
        self.statistics: Statistics | None = None

    def _representatives(self, dataset: "Dataset", name: str) -> Triplets:
        assert self.args.num_triplets is not None
        if len(dataset) <= self.args.num_triplets:
            return self.texts[name]
        chosen = select_triplets(dataset, self.model, self.args.num_triplets, seed=self.args.seed)
        return read_triplets(chosen, name)

    def score(self, *, progress: bool = True) -> Statistics:
        """Pass both triplet sets through the model, once each; or open what ``statistics_dir`` holds.

        Under ``accelerate launch`` every process takes a share of the triplets. All linear layers of the blocks are
        scored, whatever the targets.

        Args:
            progress: Show bars.

        Returns:
            The statistics, also kept in ``self.statistics``.

        Raises:
            ValueError: As `mmbert_hf.pruning.scoring.collect_statistics`.
        """
        self.statistics = collect_statistics(
            self.model,
            self.triplets,
            self.targets,
            folder=self.args.statistics_dir,
            batch_size=self.args.batch_size,
            max_memory_gb=self.args.max_memory_gb,
            scale=self.args.scale,
            progress=progress,
        )
        return self.statistics

    def prune(
        self,
        args: GAPruneConfig | None = None,
        *,
        vocabulary_texts: Iterable[str] | None = None,
        progress: bool = True,
    ) -> PrunedEmbedder:
        """Prune a copy of the model. Scores first, if the method needs it and it has not been done.

        Args:
            args: Other options than the pruner's, on the same statistics.
            vocabulary_texts: Texts whose tokens stay, for granularity ``vocabulary``: best all documents that the model is
                to embed. None: the texts of the triplets that ``vocabulary_from`` names, before representatives were chosen.
            progress: Show bars.

        Returns:
            The smaller model, its mask if it has zeros, and a report.

        Raises:
            ValueError: The options do not fit the model, the statistics are of another one, or scores are not finite.
        """
        if args is not None:
            check_fit(self.model, args)
        args = args or self.args
        if vocabulary_texts is not None and "vocabulary" not in args.granularities:
            raise ValueError(
                f"vocabulary_texts are for granularity vocabulary, which is not among {args.granularity!r}; add it"
            )
        if _needs_statistics(args):
            if self.statistics is None:
                self.score(progress=progress)
            elif self.statistics.origin.model != model_fingerprint(self.model):
                raise ValueError(
                    "the statistics are of another model: this one was changed after score(), or they were set by hand; "
                    "call score() again, with another statistics_dir"
                )
        model = copy.deepcopy(self.model).eval()
        report = PruningReport.begin(self.model, args, self.statistics)
        survivors = Survivors(self.statistics, {target.name: target.name for target in self.targets})
        if "vocabulary" in args.granularities:
            model = self._trim(model, args, vocabulary_texts, report, progress)
        if "layer" in args.granularities:
            self._drop_layers(model, args, report, survivors)
        if "ffn" in args.granularities:
            self._shrink(model, args, report, survivors)
        mask = None
        if "weight" in args.granularities or "2:4" in args.granularities:
            mask = self._mask(model, args, report, survivors)
            mask.apply(model)
        report.finish(model, mask)
        if args.method != "magnitude" and (report.overlap_with_magnitude or 0.0) > SAME_AS_MAGNITUDE:
            logger.warning(
                "%.1f %% of what %s prunes is what magnitude alone would prune: on this model the score is magnitude. "
                "Shares of its terms: %s",
                100 * (report.overlap_with_magnitude or 0.0),
                args.method,
                ", ".join(f"{name} {share:.2g}" for name, share in report.term_shares.items()) or "it has none",
            )
        return PrunedEmbedder(model, mask, report, self.model)

    def _trim(
        self, model: Any, args: GAPruneConfig, texts: Iterable[str] | None, report: PruningReport, progress: bool
    ) -> Any:
        if texts is None:
            sets = self.texts.values() if args.vocabulary_from == "both" else [self.texts["domain"]]
            texts = [
                text
                for triplets in sets
                for column in (triplets.anchors, triplets.positives, triplets.negatives)
                for text in column
            ]
        smaller = trim(model, texts=texts, min_count=args.vocabulary_min_count, progress=progress)
        report.vocabulary = (len(model.tokenizer), len(smaller.tokenizer))
        return smaller

    def _scorer(self, model: Any, args: GAPruneConfig, survivors: Survivors, targets: list[Target]) -> Scorer:
        encoder = encoder_of(model)
        weights = {target.name: encoder.get_submodule(target.name).weight.detach() for target in targets}
        statistics = None if args.method in DATA_FREE else survivors
        return Scorer(args.method, weights, statistics, args.alpha, args.beta, args.gamma, args.seed)

    def _drop_layers(self, model: Any, args: GAPruneConfig, report: PruningReport, survivors: Survivors) -> None:
        name, blocks = find_blocks(encoder_of(model))
        num_blocks = len(blocks)
        number = args.drop_layers
        if number is None and args.target_size is not None:
            number = self._layers_for_size(model, args.target_size)
        elif number is None:
            number = budgets.num_pruned(num_blocks, args.sparsity)
        if args.layer_choice == "last":
            gone = last_layers(model, number)
        elif args.layer_choice == "loss":
            gone = choose_layers(model, number, self._loss)
        else:
            scorer = self._scorer(model, args, survivors, self.targets)
            sums = [0.0] * num_blocks
            for target in self.targets:
                sums[target.layer] += float(scorer.score(target.name).sum(dtype=torch.float64))
            gone = sorted(range(num_blocks), key=lambda layer: (sums[layer], -layer))[:number]
        drop_layers(model, gone)
        survivors.drop(name, num_blocks, gone)
        report.dropped_layers = sorted(gone)

    def _layers_for_size(self, model: Any, target_size: float) -> int:
        """The fewest blocks to drop so that the weights are at most that share of the dense model's."""
        _, blocks = find_blocks(encoder_of(model))
        per_block = [sum(weight.numel() * weight.element_size() for weight in block.parameters()) for block in blocks]
        size, dense = predict_bytes(model), predict_bytes(self.model)
        for number in range(len(blocks)):
            if size - number * max(per_block) <= target_size * dense:
                return number
        raise ValueError(
            f"target_size={target_size} cannot be reached by dropping layers: one block alone leaves "
            f"{(size - sum(per_block) + max(per_block)) / dense:.2f}; add ffn or vocabulary to the granularity"
        )

    @torch.no_grad()
    def _loss(self, model: "SentenceTransformer") -> float:
        """Mean loss over the first triplets of both sets."""
        losses = []
        for triplets in self.triplets.values():
            for start in range(0, min(NUM_LOSS_TRIPLETS, len(triplets)), self.args.batch_size):
                rows = slice(start, min(start + self.args.batch_size, NUM_LOSS_TRIPLETS))
                anchors = embed(model, triplets.anchors[rows], "query")
                positives, negatives = (
                    embed(model, column[rows], "document") for column in (triplets.positives, triplets.negatives)
                )
                losses.append(triplet_losses(anchors, positives, negatives, self.args.scale))
        return float(torch.cat(losses).mean())

    def _shrink(self, model: Any, args: GAPruneConfig, report: PruningReport, survivors: Survivors) -> None:
        feed_forwards = find_feed_forwards(model)
        width = self._width(model, args, feed_forwards[0].width)
        targets = find_targets(model, "mlp")
        scorer = self._scorer(model, args, survivors, targets)
        kept = choose_neurons(neuron_scores(feed_forwards, ScoresByName(scorer)), width)
        plain = Scorer("magnitude", scorer.weights)
        by_magnitude = choose_neurons(neuron_scores(feed_forwards, ScoresByName(plain)), width)
        report.describe_scores(scorer)
        report.overlap_with_magnitude = _overlap(
            [_membership(chosen, feed_forwards[0].width) for chosen in kept],
            [_membership(chosen, feed_forwards[0].width) for chosen in by_magnitude],
        )
        moments = None
        if args.refit and width < feed_forwards[0].width:
            moments = activation_moments(model, self._refit_texts(), feed_forwards, batch_size=args.batch_size)
        shrink_feed_forwards(model, feed_forwards, kept, moments)
        for feed_forward, chosen in zip(feed_forwards, kept, strict=True):
            rows = torch.cat([chosen, chosen + feed_forward.width]) if feed_forward.is_fused else chosen
            for name in feed_forward.up:
                survivors.keep_rows(name, rows)
            survivors.keep_columns(feed_forward.down, chosen)
        report.width = (feed_forwards[0].width, width)

    def _width(self, model: Any, args: GAPruneConfig, dense: int) -> int:
        if args.ffn_width is not None:
            return args.ffn_width
        if args.target_size is not None:
            share = args.target_size * predict_bytes(self.model) / predict_bytes(model)
            return dense if share >= 1 else width_for_size(model, share, multiple=args.width_multiple)
        wanted = dense - budgets.num_pruned(dense, args.sparsity)
        return min(dense, max(1, round(wanted / args.width_multiple)) * args.width_multiple)

    def _refit_texts(self) -> dict[Any, list[str]]:
        queries, documents = [], []
        for triplets in self.triplets.values():
            queries += triplets.anchors[:NUM_REFIT_TRIPLETS]
            documents += triplets.positives[:NUM_REFIT_TRIPLETS]
        return {"query": queries, "document": documents}

    def _mask(self, model: Any, args: GAPruneConfig, report: PruningReport, survivors: Survivors) -> PruningMask:
        targets = find_targets(model, args.targets)  # type: ignore[arg-type]
        scorer = self._scorer(model, args, survivors, targets)
        kept = _kept(scorer, args)
        report.describe_scores(scorer)
        magnitude = _kept(Scorer("magnitude", scorer.weights), args)
        report.overlap_with_magnitude = _overlap(list(kept.values()), list(magnitude.values()))
        return PruningMask(kept)


def _needs_statistics(args: GAPruneConfig) -> bool:
    """Whether anything is chosen by scores that come from data."""
    by_scores = {"weight", "2:4", "ffn"} | ({"layer"} if args.layer_choice == "score" else set())
    return args.method not in DATA_FREE and bool(by_scores & set(args.granularities))


def _kept(scorer: Scorer, args: GAPruneConfig) -> dict[str, torch.Tensor]:
    """What stays of each layer, by the budget asked for."""
    if "2:4" in args.granularities:
        return {name: budgets.keep_two_of_four(scorer.score(name)) for name in scorer.layers}
    if args.budget == "global":
        return budgets.keep_global(scorer.score, scorer.layers, args.sparsity)
    keep = budgets.keep_per_tensor if args.budget == "tensor" else budgets.keep_per_row
    return {name: keep(scorer.score(name), args.sparsity) for name in scorer.layers}


def _membership(chosen: torch.Tensor, width: int) -> torch.Tensor:
    return torch.zeros(width, dtype=torch.bool).index_fill_(0, chosen.cpu(), True)


def _overlap(kept: list[torch.Tensor], other: list[torch.Tensor]) -> float | None:
    """Share of what one choice prunes that the other prunes too; None where nothing is pruned."""
    both = sum(int((~a & ~b).sum()) for a, b in zip(kept, other, strict=True))
    total = sum(int((~a).sum()) for a in kept)
    return both / total if total else None

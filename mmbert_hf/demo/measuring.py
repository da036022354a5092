"""What the demo measures on the held-out articles: masked loss per language, and translation retrieval.

Three checkpoints are compared on the same masks: before the decay, after it, and after the control decay of the same
steps and seed without the added languages. Retrieval ranks the paragraphs of the held-out articles of one language
against those of another, among the languages of the first two tiers and the added ones; each language's mean embedding
over some of its *training* paragraphs is subtracted first. Its baseline is the same measurement on the untrained model,
since even random embeddings see length and shared words.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmbert_hf.data.udhr import HELD_OUT_ARTICLES, TRAINING_ARTICLES, Declaration, aligned_paragraphs
from mmbert_hf.demo.settings import ADDED_LANGUAGES, DemoSettings
from mmbert_hf.demo.tiers import EXTENSION_TIER, PRETRAINING_TIER
from mmbert_hf.demo.training import build_model
from mmbert_hf.evaluation import FixedMasks, MaskedScore, bitext_retrieval, embed_texts, masked_scores
from mmbert_hf.modeling import MMBertForMaskedLM

logger = logging.getLogger(__name__)

CENTRE_PARAGRAPHS = 10  # training paragraphs that a language's mean embedding is estimated on
TIERS = ("pretrain", "extend", "decay", "added")


def tier_of(language: str) -> str:
    """Return when a language enters: ``pretrain``, ``extend``, ``decay``, or ``added`` (decay, not in the control)."""
    if language in PRETRAINING_TIER:
        return "pretrain"
    if language in EXTENSION_TIER:
        return "extend"
    return "added" if language in ADDED_LANGUAGES else "decay"


def measure(
    settings: DemoSettings,
    corpus: Mapping[str, Declaration],
    tokenizer: Any,
    checkpoints: Mapping[str, Path],
) -> dict[str, Any]:
    """Measure the checkpoints ``before_decay``, ``after_decay`` and ``after_control``.

    Args:
        settings: Of the demo.
        corpus: The declarations, by language.
        tokenizer: Of the models.
        checkpoints: Folders by name.

    Returns:
        ``heldout`` per language, ``heldout_mean`` per tier, and ``bitext``: what metrics.json holds.
    """
    texts = {code: declaration.paragraphs(HELD_OUT_ARTICLES) for code, declaration in corpus.items()}
    masks = FixedMasks(
        texts,
        tokenizer,
        mask_ratio=settings.heldout_mask_ratio,
        max_length=settings.max_lengths[-1],
        seed=settings.seed,
    )
    models = {name: MMBertForMaskedLM.from_pretrained(folder) for name, folder in checkpoints.items()}
    scores = {name: masked_scores(model, masks) for name, model in models.items()}
    heldout = {code: _row(code, {name: score[code] for name, score in scores.items()}) for code in corpus}
    for code in ADDED_LANGUAGES:
        if code in heldout:
            logger.info(
                "held-out loss of %s: %.3f before the decay, %.3f after, %.3f after the control without it",
                code,
                *(heldout[code][f"loss_{name}"] for name in ("before_decay", "after_decay", "after_control")),
            )
    bitext = _bitext(settings, corpus, tokenizer, models)
    logger.info(
        "bitext retrieval: %.1f %% (chance %.1f %%, untrained model %.1f %%)",
        *(100 * bitext[name] for name in ("accuracy", "chance", "accuracy_untrained")),
    )
    return {"heldout": heldout, "heldout_mean": _tier_means(heldout), "bitext": bitext}


def _row(language: str, scores: Mapping[str, MaskedScore]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "tier": tier_of(language),
        "masked_tokens": next(iter(scores.values())).num_masked_tokens,
    }
    for name, score in scores.items():
        row[f"loss_{name}"] = score.nats_per_token
        row[f"nats_per_byte_{name}"] = score.nats_per_byte
        row[f"accuracy_{name}"] = score.accuracy
    return row


def _tier_means(heldout: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean over the languages of each tier, every language weighing the same."""
    means: dict[str, dict[str, float]] = {}
    for tier in TIERS:
        rows = [row for row in heldout.values() if row["tier"] == tier]
        if rows:
            names = [name for name in rows[0] if name not in ("tier", "masked_tokens")]
            means[tier] = {name: float(np.mean([row[name] for row in rows])) for name in names}
            means[tier]["languages"] = len(rows)
    return means


def _bitext(
    settings: DemoSettings, corpus: Mapping[str, Declaration], tokenizer: Any, models: Mapping[str, Any]
) -> dict[str, Any]:
    items = aligned_paragraphs(corpus, HELD_OUT_ARTICLES)
    languages = [code for code in corpus if tier_of(code) != "decay" and all(code in item for item in items)]
    candidates = {
        "accuracy": models["after_decay"],
        "accuracy_untrained": build_model(settings, tokenizer),
    }
    record: dict[str, Any] = {"languages": len(languages), "items": len(items)}
    for name, model in candidates.items():
        score = bitext_retrieval(*_embeddings(model, tokenizer, corpus, items, languages))
        record[name] = score.accuracy
        if name == "accuracy":
            record |= {"chance": score.chance, "pairs": score.num_pairs, "per_language": score.per_language}
    return record


def _embeddings(
    model: Any,
    tokenizer: Any,
    corpus: Mapping[str, Declaration],
    items: Sequence[Mapping[str, str]],
    languages: Sequence[str],
) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, np.ndarray]]:
    """Return per language the item vectors, and the centre: the mean over its last training paragraphs."""
    centre_texts = {code: corpus[code].paragraphs(TRAINING_ARTICLES)[-CENTRE_PARAGRAPHS:] for code in languages}
    texts = [item[code] for code in languages for item in items]
    texts += [text for code in languages for text in centre_texts[code]]
    vectors = iter(embed_texts(model, tokenizer, texts))
    embeddings = {code: {number: next(vectors) for number in range(len(items))} for code in languages}
    centres = {code: np.mean([next(vectors) for _ in centre_texts[code]], axis=0) for code in languages}
    return embeddings, centres

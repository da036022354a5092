"""`trim`: count, plan, cut, and look whether the tokens are still the same.

Design decisions:

- The input is not changed; the result is of the same kind. A SentenceTransformer keeps its modules, prompts and maximal
  length; its texts are counted bare and behind each of its prompts, since a token may reach across the joint.
- Nothing is returned unseen: all texts are encoded again, and tokens must be the same wherever all of them were kept.
- Texts that can be read only once are written to a temporary file on the way, so that memory does not grow with them.
"""

import copy
import json
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmbert_hf.vocabulary.embeddings import apply_to_model, pinned_ids
from mmbert_hf.vocabulary.plan import VocabularyPlan, backend_of, plan_trim, reading_copy, text_batches
from mmbert_hf.vocabulary.tokenizer_json import apply_to_tokenizer

logger = logging.getLogger(__name__)


def trim(
    model_or_tokenizer: Any,
    *,
    texts: Iterable[str] | None = None,
    languages: Sequence[str] | None = None,
    tokenizer: Any = None,
    min_count: int = 1,
    keep_tokens: Collection[str] = (),
    max_vocabulary: int | None = None,
    progress: bool = False,
) -> Any:
    """Make a tokenizer or a model with the part of its vocabulary that some texts use.

    Text whose tokens all stay has the same tokens and the same embeddings as before. Other text is spelled with what is
    left, down to single bytes or characters; all characters that a vocabulary without byte fallback has stay in it.

    Args:
        model_or_tokenizer: A SentenceTransformer; a transformers model, with `tokenizer`; or a fast tokenizer. BPE,
            WordPiece or Unigram. It is not changed.
        texts: Texts like those to come, many of them: a list, a column of a dataset, or an iterator, which is copied to a
            temporary file. A prompt or a template that the model is used with must be part of them, except for the
            prompts that a SentenceTransformer has.
        languages: Codes such as `fao` in place of texts: the Universal Declaration of Human Rights in these languages.
            That is some 10 kB of text for each, and covers common words only.
        tokenizer: That of a transformers model.
        min_count: How often a token must come in the texts to stay. Above 1, texts with rare tokens change.
        keep_tokens: Tokens, as the vocabulary spells them, that stay in any case.
        max_vocabulary: Size not to exceed: the most frequent tokens stay, and texts with others change.
        progress: Show progress bars.

    Returns:
        What was given, trimmed; for a transformers model a pair, the model and the tokenizer.

    Raises:
        TypeError: It is none of these, the tokenizer is a slow one, or texts are not strings.
        ValueError: Both or none of `texts` and `languages` are given; or as for `plan_trim`, `apply_to_tokenizer` and
            `apply_to_model`.
        RuntimeError: The new tokenizer splits a text otherwise whose tokens were all kept.

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> tokenizer = MMBertTokenizer.train(["the cat sat", "ein hund"] * 4, vocab_size=320)
        >>> small = trim(tokenizer, texts=["the cat sat"])
        >>> small.tokenize("the cat sat") == tokenizer.tokenize("the cat sat"), len(small) < len(tokenizer)
        (True, True)
        >>> small.decode(small("Øll menniskju").input_ids, skip_special_tokens=True)
        'Øll menniskju'
    """
    if (texts is None) == (languages is None):
        given = "neither" if texts is None else "both"
        raise ValueError(f"pass either texts or languages, got {given}")
    old_tokenizer, encoder, prompts = _taken_apart(model_or_tokenizer, tokenizer)
    backend = backend_of(old_tokenizer)
    keep = list(keep_tokens)
    if encoder is not None:
        size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        named = map(backend.id_to_token, sorted(pinned_ids(encoder, size)))
        keep += [token for token in named if token is not None]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        source = _Texts(_declarations(languages) if texts is None else texts, prompts, spool)
        plan = plan_trim(
            old_tokenizer,
            source,
            min_count=min_count,
            keep_tokens=keep,
            max_vocabulary=max_vocabulary,
            progress=progress,
        )
        new_tokenizer = apply_to_tokenizer(old_tokenizer, plan)
        check_same_tokens(old_tokenizer, new_tokenizer, plan, source, progress=progress)
    logger.info("%s", plan)
    if encoder is None:
        return new_tokenizer
    new_encoder = apply_to_model(encoder, plan)
    if model_or_tokenizer is encoder:
        return new_encoder, new_tokenizer
    # deepcopy takes what the memo has in place of a copy: one line for every place that holds model or tokenizer.
    return copy.deepcopy(model_or_tokenizer, {id(encoder): new_encoder, id(old_tokenizer): new_tokenizer})


def check_same_tokens(
    old_tokenizer: Any, new_tokenizer: Any, plan: VocabularyPlan, texts: Iterable[str], *, progress: bool = False
) -> None:
    """Check that a trimmed tokenizer splits texts as the old one does, wherever the plan kept all of their tokens.

    Args:
        old_tokenizer: The tokenizer before.
        new_tokenizer: The tokenizer after.
        plan: The plan between them.
        texts: Texts.
        progress: Show a progress bar.

    Raises:
        RuntimeError: A text is split otherwise.
    """
    from mmbert_hf.progress import progress_bar

    old, new = reading_copy(old_tokenizer), reading_copy(new_tokenizer)
    new_ids = plan.new_ids
    with progress_bar(progress, desc="checking tokens", unit=" texts") as bar:
        for batch in text_batches(texts):
            encodings = zip(batch, old.encode_batch_fast(batch), new.encode_batch_fast(batch), strict=True)
            for text, before, after in encodings:
                expected = new_ids[np.array(before.ids, dtype=np.int64)]
                if (expected >= 0).all() and expected.tolist() != after.ids:
                    raise RuntimeError(
                        f"the trimmed tokenizer splits {text[:200]!r} into {after.tokens[:20]}, the old one into "
                        f"{before.tokens[:20]}: please report this tokenizer"
                    )
            bar.update(len(batch))


class _Texts:
    """Texts to iterate over again and again, each bare and behind each prompt; a one-time iterator is kept in a file."""

    def __init__(self, texts: Iterable[str], prompts: Collection[str], spool: Any) -> None:
        if isinstance(texts, str):
            raise TypeError("texts is a string, expected an iterable of strings: write [text]")
        self.texts, self.prompts, self.spool = texts, prompts, spool
        self.is_spooled = False

    def __iter__(self) -> Iterator[str]:
        for text in self._bare():
            yield text
            if isinstance(text, str):
                yield from (prompt + text for prompt in self.prompts)

    def _bare(self) -> Iterator[str]:
        if self.is_spooled:
            self.spool.seek(0)
            yield from map(json.loads, self.spool)
        elif isinstance(self.texts, Iterator):
            for text in self.texts:
                if isinstance(text, str):  # what is not is for the reader to refuse
                    self.spool.write(json.dumps(text) + "\n")
                yield text
            self.is_spooled = True
        else:
            yield from self.texts


def _declarations(languages: Sequence[str] | None) -> list[str]:
    """The paragraphs of the embedded corpus in some languages."""
    from mmbert_hf.data.udhr import NUM_ARTICLES, load_udhr

    assert languages is not None
    if not languages:
        raise ValueError("languages is empty: name at least one, such as ['eng']")
    return [text for item in load_udhr(languages).values() for text in item.paragraphs(range(NUM_ARTICLES + 1))]


def _taken_apart(given: Any, tokenizer: Any) -> tuple[Any, Any, list[str]]:
    """The tokenizer, the transformers model (None for a tokenizer), and the prompts of what was given."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if isinstance(given, PreTrainedModel):
        if tokenizer is None:
            raise ValueError(f"a {type(given).__name__} has no tokenizer of its own: pass tokenizer=")
        return tokenizer, given, []
    if tokenizer is not None:
        raise ValueError(f"tokenizer= goes with a transformers model, got it with a {type(given).__name__}")
    if isinstance(given, PreTrainedTokenizerBase):
        return given, None, []
    if not hasattr(given, "_modules"):
        raise TypeError(
            f"got a {type(given).__name__}, expected a SentenceTransformer, a transformers model or a fast tokenizer, loaded"
        )
    return _of_sentence_transformer(given)


def _of_sentence_transformer(given: Any) -> tuple[Any, Any, list[str]]:
    """Tokenizer, model and prompts of a SentenceTransformer."""
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel

    if not isinstance(given, SentenceTransformer):
        raise TypeError(f"got a {type(given).__name__}, expected a SentenceTransformer or a transformers model")
    encoder = getattr(given[0], "auto_model", None)
    if not isinstance(encoder, PreTrainedModel):
        raise TypeError(
            f"the first module of this SentenceTransformer is a {type(given[0]).__name__}, expected one around a transformers "
            "model; static and word embeddings, routers and exported models cannot be trimmed"
        )
    return given.tokenizer, encoder, sorted({prompt for prompt in given.prompts.values() if prompt})

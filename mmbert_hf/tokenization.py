"""The mmBERT tokenizer: Gemma 2's byte-fallback BPE with the template, padding and mask of an encoder.

Design decisions:

- A file is trusted with its vocabulary only. Google's Gemma-2 file pads left, ends nothing with `<eos>`, and names no mask,
  cls or sep token; template, padding side and these tokens are therefore set on load, whatever the file says.
- The ids of the special tokens are checked on load: a vocabulary in another order is an error, not a bad model.
- `<mask>` takes the spaces before it. In training a mask stands for a whole token such as "▁Paris", space included, so
  "It is <mask>." must not leave a lone "▁" before the mask. The tokens around it are those of the Gemma file.
- The vocabulary has no token with a space after its first visible character, so a text may be cut before any run of
  spaces without changing its tokens. Pre-split words are encoded that way: each word takes the spaces before it along,
  and the tokens are exactly those of `" ".join(words)`. `mmbert_hf.presplit` has the one exception.
"""

import copy
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import AddedToken, Tokenizer, processors
from transformers.tokenization_utils_base import BatchEncoding
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from mmbert_hf import alignment
from mmbert_hf.presplit import attach_spaces, crosses_words, offsets_in_words, word_samples
from mmbert_hf.registration import register
from mmbert_hf.special_tokens import (
    BOS_TOKEN,
    EOS_TOKEN,
    MASK_TOKEN,
    PAD_TOKEN,
    SPECIAL_TOKEN_IDS,
    UNK_TOKEN,
)
from mmbert_hf.tokenizer_backend import BYTE_TOKENS, check_layout, train_backend

logger = logging.getLogger(__name__)

MODEL_MAX_LENGTH = 8192
#: Files without a limit carry a number like 1e30.
UNLIMITED_LENGTH = 10**9
NAMED_TOKENS = {
    "bos_token": BOS_TOKEN,
    "eos_token": EOS_TOKEN,
    "unk_token": UNK_TOKEN,
    "pad_token": PAD_TOKEN,
    "mask_token": MASK_TOKEN,
}


class MMBertTokenizer(TokenizersBackend):
    """Tokenizer of mmBERT: loads, checks, trains, and labels.

    `<bos> A <eos>` and `<bos> A <eos> B <eos>`, padded on the right; `cls_token`, `sep_token` are `<bos>`, `<eos>`. These
    hold after every load. To depart from them set `padding_side`, `add_bos_token` or `add_eos_token` on the tokenizer.

    What it adds to the plain `PreTrainedTokenizerFast`, which loads the same files and gives the same ids for plain text
    (`save_portable` writes a folder for it) but has not:

    - the check that the special tokens are where mmBERT's embeddings have them;
    - the fix for pre-split words: the plain class drops the space before each of them. Encode `" ".join(words)` there;
    - `align_labels`, `train`, and `train_new_from_iterator` with words that merges do not cross.

    With pre-split words, `word_ids()` counts the space before a word as part of it, and `offset_mapping` is in characters of
    the word, as usual; the low-level `token_to_chars`, `char_to_token` and `word_to_chars` count the space, too.
    On raw text `word_ids()` says nothing, since there are no words: use offsets, or `align_labels`.
    A mask loses the space before it when it is decoded: "is <mask>." becomes "is<mask>.".

    Args:
        tokenizer_file: Path of a `tokenizer.json`.
        tokenizer_object: A `tokenizers.Tokenizer` (which is copied), instead of a file.
        **kwargs: As for `PreTrainedTokenizerFast`, less the tokens that the layout fixes. `model_max_length` is 8192
            when neither the caller nor the file sets a limit.

    Raises:
        ValueError: When the vocabulary has not the layout of mmBERT, or another special token is asked for.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"tokenizer_file": "tokenizer.json"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    padding_side = "right"

    def __init__(
        self,
        tokenizer_file: str | os.PathLike[str] | None = None,
        tokenizer_object: Tokenizer | None = None,
        **kwargs: Any,
    ) -> None:
        source = str(tokenizer_file or kwargs.get("name_or_path") or "the tokenizer")
        if tokenizer_object is not None:
            backend = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            backend = Tokenizer.from_file(os.fspath(tokenizer_file))
        else:
            raise ValueError(f"{source} has no tokenizer.json; pass tokenizer_file or tokenizer_object, or train one")
        check_layout(backend, source)
        for name, token in NAMED_TOKENS.items():
            if kwargs.get(name) is not None and str(kwargs[name]) != token:
                raise ValueError(f"{name} is {token!r} in mmBERT's layout, got {str(kwargs[name])!r}")
        mask = AddedToken(MASK_TOKEN, lstrip=True, normalized=False, special=True)
        kwargs.update(NAMED_TOKENS, mask_token=mask, cls_token=BOS_TOKEN, sep_token=EOS_TOKEN)
        kwargs.update(padding_side="right", add_bos_token=True, add_eos_token=True)
        if (kwargs.get("model_max_length") or UNLIMITED_LENGTH) >= UNLIMITED_LENGTH:
            kwargs["model_max_length"] = MODEL_MAX_LENGTH
        # Padding and truncation belong to a call; a file may have kept those of the last one.
        backend.no_padding()
        backend.no_truncation()
        self._tokenizer = backend
        self._crossing_tokens: list[str] | None = None
        super().__init__(**kwargs)
        # Last, for the base class may have put back the mask token of the file, which takes no space.
        self._tokenizer.add_special_tokens([mask])
        self.update_post_processor()

    def __getstate__(self) -> dict[str, Any]:
        # What is only remembered must not change a pickle: datasets takes its hash for the name of a cache file.
        return {**self.__dict__, "_crossing_tokens": None}

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Leave the reading of `tokenizer.json` to `__init__`; the base class would take it apart for a class with one."""
        return kwargs

    @classmethod
    def _patch_mistral_regex(cls, tokenizer: Tokenizer, *args: Any, **kwargs: Any) -> Tokenizer:
        """Skip a repair of Mistral's files, which would ask the Hub about every vocabulary above 100,000 tokens."""
        return tokenizer

    def update_post_processor(self) -> None:
        """Set the template from `add_bos_token`, `add_eos_token`; one `<bos>` for a pair, and no token types."""
        start = [BOS_TOKEN] if self.add_bos_token else []
        end = [EOS_TOKEN] if self.add_eos_token else []
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=[*start, "$A", *end],
            pair=[*start, "$A:0", *end, "$B:0", *end],
            special_tokens=[(token, SPECIAL_TOKEN_IDS[token]) for token in (*start, *end)],
        )

    # Training

    @classmethod
    def train(
        cls,
        texts: Iterable[str] | Iterable[Sequence[str]],
        vocab_size: int,
        *,
        limit_alphabet: int | None = None,
        min_frequency: int = 2,
        extra_special_tokens: Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """Train a tokenizer from nothing. The same texts give the same tokenizer.

        Args:
            texts: Texts, or batches of texts. All of them are held in memory.
            vocab_size: Number of tokens, extra ones included; fewer when the texts do not have enough to merge.
            limit_alphabet: Number of characters that get a token, the most frequent ones; the others are spelled in
                bytes. Default: a quarter of the vocabulary, which gave the fewest tokens on 440 languages in 35 scripts.
            min_frequency: How often a pair must occur to be merged.
            extra_special_tokens: Further special tokens; their ids are the last ones.
            **kwargs: For the constructor, such as `model_max_length`.

        Returns:
            The tokenizer.

        Raises:
            ValueError: When the vocabulary has no room for special tokens, bytes and the alphabet.
            TypeError: When `texts` is one string.
        """
        if isinstance(texts, str):
            raise TypeError("texts is a string, expected an iterable of strings")
        size = vocab_size - len(extra_special_tokens)
        room = size - len(SPECIAL_TOKEN_IDS) - len(BYTE_TOKENS)
        limit = min(max(vocab_size // 4, 1), room) if limit_alphabet is None else limit_alphabet
        if not 1 <= limit <= room:
            raise ValueError(
                f"a vocabulary of {vocab_size} has room for {max(room, 0)} characters and merges beside special tokens and "
                f"bytes, but limit_alphabet is {limit_alphabet}; it must be at least 1, and vocab_size larger than it"
            )
        corpus = [text for item in texts for text in ([item] if isinstance(item, str) else item)]
        backend = train_backend(corpus, size, limit, min_frequency)
        tokenizer = cls(tokenizer_object=backend, **kwargs)
        if extra_special_tokens:
            tokenizer.add_special_tokens({"extra_special_tokens": list(extra_special_tokens)})
        if len(tokenizer) < vocab_size:
            logger.warning("asked for a vocabulary of %d, but the texts gave %d tokens", vocab_size, len(tokenizer))
        return tokenizer

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[Sequence[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[str | AddedToken] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Train a tokenizer with the settings of this one; the name that transformers has for `train`.

        Args:
            text_iterator: As `texts` in `train`.
            vocab_size: As in `train`.
            length: Not needed.
            new_special_tokens: Special tokens beside those of this tokenizer.
            special_tokens_map: Not supported: the layout fixes the names.
            **kwargs: `limit_alphabet`, `min_frequency` of `train`.

        Returns:
            The new tokenizer.

        Raises:
            ValueError: As for `train`, and for a `special_tokens_map`.
        """
        if special_tokens_map:
            raise ValueError(
                f"mmBERT's special tokens cannot be renamed, got special_tokens_map={dict(special_tokens_map)}"
            )
        extra = [*self.extra_special_tokens, *map(str, new_special_tokens or ())]
        kwargs = {"model_max_length": self.model_max_length, "truncation_side": self.truncation_side, **kwargs}
        return type(self).train(text_iterator, vocab_size, extra_special_tokens=extra, **kwargs)

    # Encoding

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Split a text into tokens of the vocabulary; as in the base class, but a mask is "<mask>" and not " <mask>"."""
        encoded = self._encode_plus(text, pair, add_special_tokens=add_special_tokens, **kwargs)
        return self.convert_ids_to_tokens(encoded["input_ids"])

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        is_split_into_words: bool = False,
        return_tensors: Any = None,
        return_offsets_mapping: bool = False,
        return_overflowing_tokens: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode; the one place that every public way to encode goes through. Pre-split words get their spaces here."""
        kwargs.update(
            return_offsets_mapping=return_offsets_mapping, return_overflowing_tokens=return_overflowing_tokens
        )
        if not is_split_into_words:
            return super()._encode_plus(text, text_pair, return_tensors=return_tensors, **kwargs)
        self._check_words_can_be_separated()
        is_single = not text or isinstance(text[0], str)
        attached = [[attach_spaces(words) for words in sample] for sample in word_samples(text, text_pair)]
        pieces = [tuple(pieces for pieces, _ in sample) for sample in attached]
        inputs: tuple[Any, ...] = pieces[0]
        if not is_single:
            inputs = ([sample if len(sample) > 1 else sample[0] for sample in pieces],)
        encoding = super()._encode_plus(*inputs, is_split_into_words=True, **kwargs)
        is_flat = is_single and not return_overflowing_tokens
        if return_offsets_mapping:
            samples = encoding.get("overflow_to_sample_mapping", range(len(attached)))
            rows = zip(encoding.encodings, samples, strict=True)
            offsets = [offsets_in_words(row, [leads for _, leads in attached[sample]]) for row, sample in rows]
            encoding["offset_mapping"] = offsets[0] if is_flat else offsets
        return encoding.convert_to_tensors(return_tensors, prepend_batch_axis=is_flat)

    def _check_words_can_be_separated(self) -> None:
        """Check that no token can hold a space behind its first visible character: see the design decisions."""
        if self._crossing_tokens is None:
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
            self._crossing_tokens = [token for token in vocabulary if crosses_words(token)]
        added = [
            token.content
            for token in self.added_tokens_decoder.values()
            if token.rstrip or (token.lstrip and token.content != MASK_TOKEN) or crosses_words(token.content)
        ]
        if crossing := [*self._crossing_tokens, *added]:
            raise ValueError(
                f"this vocabulary has {len(crossing)} tokens that reach across words, such as {crossing[:3]}, so pre-split "
                "words cannot be told apart: encode the raw text, and place labels with align_labels"
            )

    def align_labels(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        word_labels: Sequence[Any] | None = None,
        spans: Sequence[Any] | None = None,
        answers: Any = None,
        label2id: Mapping[str, int] | None = None,
        outside: alignment.Label = "O",
        label_all_tokens: bool = False,
        ignore_index: int = alignment.IGNORE_INDEX,
        sequence: int | None = None,
        is_split_into_words: bool = False,
        return_offsets_mapping: bool = False,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode texts and label their tokens, in one call.

        Named entities, or any label per word: `align_labels(words, word_labels=tags, is_split_into_words=True)`.
        Character spans: `align_labels(text, spans=[(0, 5, "LOC")], label2id=ids)`.
        Answers: `align_labels(questions, contexts, answers=[(17, "Paris")], truncation="only_second", max_length=384)`.

        Pass exactly one of `word_labels`, `spans` and `answers`: one entry per text, or the bare entry for a single text.

        Args:
            text: As for calling the tokenizer; likewise `text_pair`.
            text_pair: The second text, or the batch of second texts.
            word_labels: Per text, one label per word: ids, or names in `label2id`. The words of a raw text are its runs
                without white space.
            spans: Per text, (start, end, label) with half-open character offsets; for pre-split words those in
                `" ".join(words)`. A label "LOC" stands for "B-LOC" on the first token and "I-LOC" on the others when
                `label2id` has these and no "LOC".
            answers: Per text, (first character, answer), or the SQuAD columns `{"answer_start": [...], "text": [...]}`, of
                which the first answer counts. None in a batch, or empty columns, where there is no answer.
            label2id: Ids of label names. With "B-LOC", "I-LOC" in it, a word labelled "B-LOC" continues with "I-LOC"
                under `label_all_tokens`.
            outside: Label of tokens that touch no span: a name in `label2id`, or an id.
            label_all_tokens: For word labels: label every token of a word, rather than the first. Spans always label all
                tokens that they touch.
            ignore_index: Label of special tokens, padding, tokens that show nothing (such as a lone space), and tokens of
                the other text of a pair.
            sequence: Which text of a pair is labelled, 0 or 1. Default: the first; for answers the second.
            is_split_into_words: Whether the texts are lists of words.
            return_offsets_mapping: As for calling the tokenizer; likewise `return_tensors`.
            return_tensors: The type of tensors to return.
            **kwargs: As for calling the tokenizer: padding, truncation, stride and so on.

        Returns:
            The encoding with `labels`; or with `start_positions`, `end_positions`: indices of the first and last token of the
            answer, both that of `<bos>` when a window has not the whole answer.

        Raises:
            ValueError: When annotations do not fit the texts: another number of labels than words, offsets outside the
                text, spans that overlap, an answer that is not where it should be, an unknown label.
        """
        if sequence is None:
            sequence = int(answers is not None and text_pair is not None)
        if sequence and text_pair is None:
            raise ValueError("sequence=1 labels the second text of a pair, but there is no text_pair")
        encoding = self(text, text_pair, is_split_into_words=is_split_into_words, return_offsets_mapping=True, **kwargs)
        labels = alignment.align_labels(
            encoding,
            text_pair if sequence else text,
            word_labels=word_labels,
            spans=spans,
            answers=answers,
            label2id=label2id,
            outside=outside,
            label_all_tokens=label_all_tokens,
            ignore_index=ignore_index,
            sequence=sequence,
            is_split_into_words=is_split_into_words,
        )
        is_flat = not isinstance(encoding["input_ids"][0], list)
        encoding.update(labels)
        if not return_offsets_mapping:
            encoding.pop("offset_mapping")
        return encoding.convert_to_tensors(return_tensors, prepend_batch_axis=is_flat)

    # Files

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Save as transformers does, without the padding and truncation of the last call."""
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def save_portable(self, save_directory: str | os.PathLike[str]) -> tuple[str, ...]:
        """Save so that `AutoTokenizer` loads the folder where this package is absent, as `PreTrainedTokenizerFast`.

        Template, padding side, mask and the names of special tokens are written out. The class docstring lists what the
        plain class has not. `MMBertTokenizer.from_pretrained` loads the folder, too.

        Args:
            save_directory: Folder to write `tokenizer.json` and `tokenizer_config.json` to; made when missing.

        Returns:
            Paths of the files.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.model_max_length,
            "model_input_names": self.model_input_names,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "clean_up_tokenization_spaces": False,
            **self.special_tokens_map,
        }
        if self.extra_special_tokens:
            # The name that both transformers 4 and 5 read; 4 takes extra_special_tokens for a dictionary and fails.
            config["additional_special_tokens"] = self.extra_special_tokens
        config_file = folder / "tokenizer_config.json"
        config_file.write_text(
            json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
        return str(config_file), str(folder / "tokenizer.json")


register()  # importing this module may have brought transformers in, whose Auto classes then still lack it

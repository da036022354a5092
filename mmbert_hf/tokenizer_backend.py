"""The `tokenizers.Tokenizer` under an mmBERT tokenizer: checking one that was loaded, learning one from texts.

Design decisions:

- A learned vocabulary has the order of Gemma 2's: special tokens, 256 bytes, characters, merges.
- In use Gemma's pipeline has no words: a whole line is one BPE word. Learning on lines is slow and learns tokens that span
  words. So learning splits texts, and use does not. Whether two neighbouring characters are split depends on these two
  alone, therefore no learned token has such a pair inside, merges across a split cannot happen, and both pipelines give
  the same ids.
- Splits come before every space, around every digit, and between letters and other characters. The text "<mask>" or
  "<0x0A>" in a corpus can thus not grow into a token with the name of a special token or of a byte.
- The same texts give the same vocabulary, in any process.
"""

import collections
import json
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from mmbert_hf.special_tokens import SPACE_SYMBOL, SPECIAL_TOKEN_IDS, UNK_TOKEN

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
#: What training takes for a word: letters with their marks, apostrophes and joiners; one digit; or a run of punctuation and
#: symbols; each with the space before it. Two neighbours belong together or not whatever is around them.
TRAINING_WORD = (
    rf"{SPACE_SYMBOL}?[\p{{L}}\p{{M}}'’\x{{200C}}\x{{200D}}]+"
    rf"|{SPACE_SYMBOL}?\p{{N}}"
    rf"|{SPACE_SYMBOL}?[^\p{{L}}\p{{M}}\p{{N}}'’\x{{200C}}\x{{200D}}{SPACE_SYMBOL}\s]+"
    rf"|{SPACE_SYMBOL}|\s"
)


def check_layout(backend: Tokenizer, source: str) -> None:
    """Check that a backend is a byte-fallback BPE with spaces as U+2581 and the special tokens of mmBERT.

    Args:
        backend: The loaded backend.
        source: Where it comes from, for the message.

    Raises:
        ValueError: When it is not, with what was found.
    """
    found = {token: backend.token_to_id(token) for token in SPECIAL_TOKEN_IDS}
    if found != SPECIAL_TOKEN_IDS:
        first = {index: backend.id_to_token(index) for index in range(len(SPECIAL_TOKEN_IDS))}
        raise ValueError(
            f"{source} has not the special tokens of mmBERT: expected {SPECIAL_TOKEN_IDS}, found {found} (None is "
            f"missing; its first tokens are {first}). Load a Gemma-2 or mmBERT vocabulary, or train one with "
            "MMBertTokenizer.train"
        )
    if not isinstance(backend.model, models.BPE) or not backend.model.byte_fallback:
        raise ValueError(f"{source} is not a BPE vocabulary with byte fallback, as mmBERT's is")
    normalized = backend.normalizer.normalize_str("a b") if backend.normalizer else "a b"
    if normalized != f"a{SPACE_SYMBOL}b":
        raise ValueError(f"{source} normalizes 'a b' to {normalized!r}, expected 'a{SPACE_SYMBOL}b' as in Gemma 2")


def gemma_backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Wrap a vocabulary in the pipeline of the Gemma-2 file, without template."""
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=UNK_TOKEN, fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", SPACE_SYMBOL)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE_SYMBOL, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKEN_IDS])
    return backend


def frequent_characters(texts: Iterable[str], limit: int) -> list[str]:
    """The `limit` most frequent characters of texts and the space symbol, in the order of their code points.

    The trainer's own `limit_alphabet` breaks ties by the order of a hash map, which differs between two processes.
    """
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text)
    del counts[" "], counts[SPACE_SYMBOL]
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return sorted([SPACE_SYMBOL, *ranked[: limit - 1]])


def train_backend(texts: Sequence[str], vocab_size: int, limit_alphabet: int, min_frequency: int) -> Tokenizer:
    """Learn a vocabulary: special tokens, 256 bytes, characters, then merges; see `MMBertTokenizer.train`."""
    fixed = [*SPECIAL_TOKEN_IDS, *BYTE_TOKENS]
    alphabet = frequent_characters(texts, limit_alphabet)
    learner = Tokenizer(models.BPE(unk_token=UNK_TOKEN, fuse_unk=True, byte_fallback=True))
    learner.normalizer = normalizers.Replace(" ", SPACE_SYMBOL)
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(TRAINING_WORD), "isolated")
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=fixed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer, length=len(texts))
    # The trainer made special tokens of the bytes as well: carry nothing over but the vocabulary.
    model = json.loads(learner.to_str())["model"]
    return gemma_backend(model["vocab"], [(left, right) for left, right in model["merges"]])

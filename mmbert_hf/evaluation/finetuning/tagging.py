"""Words to tags, or character spans to entities: the tasks of WikiANN, CoNLL, MasakhaNER and Universal Dependencies.

Design decisions:

- Character offsets decide which token belongs to which word or entity, for any fast tokenizer: `word_ids` of a Gemma
  tokenizer says nothing on raw text. Words that were split before are joined by blanks.
- Units are what is tagged: words, of which the first token is learnt and read; or, where entities are given as characters,
  tokens. Entities are compared as characters in both cases, so results do not depend on the tokenizer's cuts.
- Nothing is cut off: what is longer than a row is read in windows, and every unit counts once, in the first window that
  has its beginning. A unit that no token shows is tagged as outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mmbert_hf.alignment import Document, Window, check_spans, read_window
from mmbert_hf.evaluation.finetuning.metrics import Entity, classification_scores, entities_of, entity_scores
from mmbert_hf.evaluation.finetuning.training import (
    FinetuningSettings,
    fine_tune,
    load_tokenizer,
    scores_of_seeds,
)
from mmbert_hf.evaluation.results import Score, SetName
from mmbert_hf.token_labels import Span, label_spans, label_words

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "TaggedTexts",
    "TokenFeatures",
    "encode_tagged_texts",
    "evaluate_tagging",
    "read_tagged_texts",
    "tags_of_units",
]

OUTSIDE = "O"
TAG_COLUMNS = ("ner_tags", "tags", "pos_tags", "upos", "langs_tags")  # looked for in this order


@dataclass(frozen=True)
class TaggedTexts:
    """Texts whose words have tags, or in which characters are named.

    Attributes:
        texts: Texts; words that were split before are joined by blanks.
        words: Characters of the words of each text; None where entities are given as characters.
        tags: Tag of each word; None where `words` is.
        entities: Named characters of each text; empty where tags are not those of entities.
        names: All tags, "O" first if it is one.
    """

    texts: list[str]
    words: list[list[Span]] | None
    tags: list[list[str]] | None
    entities: list[list[Entity]]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_entities(self) -> bool:
        """Whether the tags are "O", "B-x" and "I-x"; parts of speech are not."""
        return are_entity_tags(self.names)


class TokenFeatures(NamedTuple):
    """Windows of tokens, and which unit each token is of.

    Attributes:
        encoded: Columns for the model: input_ids, attention_mask, labels: lists of the tokens of each window.
        units: For each window and token the place of its unit among the units of its text; None for no unit.
        samples: Text of each window.
        spans: Characters of the units of each text.
    """

    encoded: dict[str, list[Any]]
    units: list[list[int | None]]
    samples: list[int]
    spans: list[list[Span]]


def are_entity_tags(names: Sequence[str]) -> bool:
    """Whether tags are "O", "B-x" and "I-x".

    >>> are_entity_tags(["O", "B-LOC"]), are_entity_tags(["NOUN", "O"])
    (True, False)
    """
    return all(name == OUTSIDE or name.startswith(("B-", "I-")) for name in names) and set(names) != {OUTSIDE}


def read_tagged_texts(
    rows: Dataset,
    *,
    tokens: str = "tokens",
    tags: str | None = None,
    text: str = "text",
    entities: str = "entities",
    names: Sequence[str] | None = None,
) -> TaggedTexts:
    """Take words and tags, or texts and entities, out of a data set, and check them.

    Args:
        rows: With the columns `tokens` and `tags`, or `text` and `entities` (lists of {"start", "end", "label"}).
        tokens: Column of the words.
        tags: Column of their tags, texts or integers; None to look for ner_tags, tags, pos_tags or upos.
        text: Column of the texts.
        entities: Column of the entities, half-open in characters.
        names: What integers among the tags mean; those of the data set if it says so.

    Raises:
        ValueError: Columns are missing, a row has not as many tags as words, tags are integers without names, or an
            entity is not in its text or overlaps with another.

    Example:
        >>> from datasets import Dataset
        >>> row = {"tokens": ["í", "Tórshavn"], "ner_tags": ["O", "B-LOC"]}
        >>> read_tagged_texts(Dataset.from_list([row])).entities
        [[Entity(start=2, end=10, label='LOC')]]
        >>> row = {"text": "í Tórshavn", "entities": [{"start": 2, "end": 10, "label": "LOC"}]}
        >>> read_tagged_texts(Dataset.from_list([row])).names
        ('O', 'B-LOC', 'I-LOC')
    """
    columns = rows.column_names
    tag_column = next((name for name in ((tags,) if tags else TAG_COLUMNS) if name in columns), None)
    if len(rows) == 0:
        raise ValueError("it has no rows")
    if tokens in columns and tag_column:
        return _read_words(rows, tokens, tag_column, names)
    if text in columns and entities in columns:
        return _read_entities(rows[text][:], rows[entities][:])
    wanted = tags or ", ".join(TAG_COLUMNS[:3])
    raise ValueError(
        f"expected the columns {tokens} and {wanted}, or {text} and {entities}, got {columns}: name them "
        "(--tokens-column, --tags-column, --text-column, --entities-column)"
    )


def encode_tagged_texts(
    tokenizer: Any,
    tagged: TaggedTexts,
    label2id: Mapping[str, int],
    *,
    max_length: int = 256,
    stride: int | None = None,
) -> TokenFeatures:
    """Cut texts into windows of tokens, with a label for the first token of each word, or for each token of an entity.

    Args:
        tokenizer: Any fast one.
        tagged: What to encode.
        label2id: Number of each tag.
        max_length: Tokens of a window, special tokens included.
        stride: Tokens that two windows share; a fourth of `max_length` if None.

    Returns:
        The windows. Labels of other tokens are -100.

    Raises:
        ValueError: A tag is not in `label2id`.

    Example:
        >>> from mmbert_hf import MMBertTokenizer
        >>> tokenizer = MMBertTokenizer.train(["ein tvey trý"] * 9, vocab_size=300)
        >>> tagged = TaggedTexts(["ein tvey"], [[(0, 3), (4, 8)]], [["O", "B-X"]], [[Entity(4, 8, "X")]], ("O", "B-X"))
        >>> features = encode_tagged_texts(tokenizer, tagged, {"O": 0, "B-X": 1})
        >>> [label for label in features.encoded["labels"][0] if label != -100]
        [0, 1]
    """
    encoding = tokenizer(
        tagged.texts,
        truncation=True,
        max_length=max_length,
        stride=max_length // 4 if stride is None else stride,
        return_overflowing_tokens=True,
    )
    samples = list(encoding["overflow_to_sample_mapping"])
    documents = [
        Document(text, tagged.words[number] if tagged.words is not None else [])
        for number, text in enumerate(tagged.texts)
    ]
    windows = [
        read_window(row, sample, documents[sample], 0, None)
        for row, sample in zip(encoding.encodings, samples, strict=True)
    ]
    columns = {name: encoding[name] for name in encoding if name in tokenizer.model_input_names}
    if tagged.words is not None and tagged.tags is not None:
        missing = sorted({tag for tags in tagged.tags for tag in tags} - set(label2id))
        if missing:
            raise ValueError(f"tags that the training set does not have: {', '.join(missing[:5])}")
        ids = [[label2id[tag] for tag in tags] for tags in tagged.tags]
        is_later = [place > 0 and samples[place - 1] == sample for place, sample in enumerate(samples)]
        units = [
            _whole_words(window, tagged.words[window.sample]) if later else window.words
            for window, later in zip(windows, is_later, strict=True)
        ]
        labels = [label_words(own, ids[sample]) for own, sample in zip(units, samples, strict=True)]
        return TokenFeatures({**columns, "labels": labels}, units, samples, tagged.words)
    labels, units, spans = [], [], [[] for _ in tagged.texts]  # type: ignore[var-annotated]
    for window in windows:
        wanted = check_spans(documents[window.sample].text, list(tagged.entities[window.sample]), label2id)
        labels.append(label_spans(window.spans, wanted, label2id[OUTSIDE]))
        own = spans[window.sample]
        for span in window.spans:  # several byte tokens may show one character: the first stands for it
            if span is not None and (not own or span[0] >= own[-1][1]):
                own.append(span)
        places = {span: place for place, span in enumerate(own)}
        units.append([None if span is None else places.get(span) for span in window.spans])
    return TokenFeatures({**columns, "labels": labels}, units, samples, spans)


def tags_of_units(predicted: Sequence[Sequence[int]], features: TokenFeatures, names: Sequence[str]) -> list[list[str]]:
    """Read the tag of each unit off its first token.

    Args:
        predicted: Class of each token of each window; longer rows are padding.
        features: The windows.
        names: Tag of each class.

    Returns:
        For each text the tags of its words, or of its tokens; "O" where no token shows a word, or the first name where
        there is no "O".
    """
    default = OUTSIDE if OUTSIDE in names else names[0]
    tags: list[list[str | None]] = [[None] * len(spans) for spans in features.spans]
    for window, units, sample in zip(predicted, features.units, features.samples, strict=True):
        for class_, unit in zip(window, units, strict=False):
            if unit is not None and tags[sample][unit] is None:
                tags[sample][unit] = names[int(class_)]
    return [[default if tag is None else tag for tag in own] for own in tags]


def evaluate_tagging(
    model: str,
    train: TaggedTexts,
    tests: Mapping[SetName, TaggedTexts],
    settings: FinetuningSettings | None = None,
    seeds: Sequence[int] = (1,),
) -> list[Score]:
    """Fine-tune a model on tagged texts and measure it on others.

    Args:
        model: Folder or Hub name of an encoder.
        train: What it learns.
        tests: What it is measured on, by name.
        settings: How it is trained.
        seeds: It is trained once for each.

    Returns:
        For entities f1, precision and recall; for tags of words accuracy, and macro_f1 where they are no entities: for
        each seed and set.

    Raises:
        ValueError: A test set has tags that the training set has not, or a setting is out of its range.
    """
    from datasets import Dataset
    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

    settings = settings or FinetuningSettings()
    for name, test in tests.items():
        check_tags(train, test, name.dataset)
    tokenizer = load_tokenizer(model, settings.max_length)
    label2id = {tag: number for number, tag in enumerate(train.names)}
    learnt, *encoded = (
        encode_tagged_texts(tokenizer, tagged, label2id, max_length=settings.max_length)
        for tagged in (train, *tests.values())
    )
    features = dict(zip(tests, encoded, strict=True))

    def run(seed: int) -> dict[SetName, dict[str, float]]:
        logits = fine_tune(
            lambda: AutoModelForTokenClassification.from_pretrained(
                model, num_labels=len(label2id), id2label=dict(enumerate(train.names)), label2id=label2id
            ),
            Dataset.from_dict(learnt.encoded),
            {name: Dataset.from_dict(each.encoded).remove_columns("labels") for name, each in features.items()},
            DataCollatorForTokenClassification(tokenizer),
            tokenizer,
            settings,
            seed,
        )
        return {
            name: tagging_scores(_classes(logits[name]), features[name], test, train.names)
            for name, test in tests.items()
        }

    main = ("f1",) if train.has_entities else ("accuracy", "macro_f1")
    counts = {name: len(test) for name, test in tests.items()}
    return scores_of_seeds("token-classification", seeds, counts, run, main)


def check_tags(train: TaggedTexts, test: TaggedTexts, name: str = "the test set") -> None:
    """Refuse a test set whose tags cannot have been learnt.

    Raises:
        ValueError: It has tags that the training set does not have.
    """
    used = {tag for tags in test.tags for tag in tags} if test.tags is not None else set(test.names)
    unknown = sorted(used - set(train.names))
    if unknown:
        raise ValueError(f"{name} has tags that the training set does not have: {', '.join(unknown[:5])}")


def tagging_scores(
    predicted: Sequence[Sequence[int]], features: TokenFeatures, test: TaggedTexts, names: Sequence[str]
) -> dict[str, float]:
    """Score the classes of tokens: entities as characters, and tags of words.

    Args:
        predicted: Class of each token of each window.
        features: The windows.
        test: What is right.
        names: Tag of each class.

    Returns:
        f1, precision and recall of entities, if there are such tags; accuracy, and macro_f1 for other tags, if words
        have tags.
    """
    tags = tags_of_units(predicted, features, names)
    scores: dict[str, float] = {}
    if are_entity_tags(names):
        found = [entities_of(own, spans) for own, spans in zip(tags, features.spans, strict=True)]
        scores |= entity_scores(found, test.entities)
    if test.tags is not None:
        flat, gold = ([tag for own in both for tag in own] for both in (tags, test.tags))
        numbers = {tag: number for number, tag in enumerate(names)}
        of_words = classification_scores([numbers[tag] for tag in flat], [numbers[tag] for tag in gold])
        kept = ("accuracy",) if scores else ("accuracy", "macro_f1")
        scores |= {name: of_words[name] for name in kept}
    return scores


def _classes(logits: Any) -> list[list[int]]:
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1).tolist()


def _whole_words(window: Window, words: Sequence[Span]) -> list[int | None]:
    """The word of each token, without the one that a window begins in the middle of: its beginning is in another."""
    first = next((place for place, word in enumerate(window.words) if word is not None), None)
    if first is None or window.spans[first][0] <= words[window.words[first]][0]:  # type: ignore[index]
        return window.words
    return [None if word == window.words[first] else word for word in window.words]


def _read_words(rows: Dataset, tokens: str, column: str, names: Sequence[str] | None) -> TaggedTexts:
    words, tags = rows[tokens][:], rows[column][:]
    names = names or _class_names(rows.features[column])
    for row, (own, marks) in enumerate(zip(words, tags, strict=True)):
        if not own or len(own) != len(marks) or not all(isinstance(word, str) for word in own):
            raise ValueError(
                f"row {row} has {len(own)} words and {len(marks)} tags: expected one each, and at least one"
            )
    is_number = [isinstance(tag, int) for marks in tags for tag in marks]
    if any(is_number):
        if names is None:
            raise ValueError(
                f"the tags in {column!r} are integers and the data set does not say what they mean: --tag-names"
            )
        largest = max(tag for marks in tags for tag in marks)
        if not all(is_number) or min(tag for marks in tags for tag in marks) < 0 or largest >= len(names):
            raise ValueError(f"the tags in {column!r} go up to {largest}, for {len(names)} names")
        tags = [[names[tag] for tag in marks] for marks in tags]
    documents = [Document.read(own) for own in words]
    all_names = tuple(names) if names else tuple(_sorted_tags({tag for marks in tags for tag in marks}))
    has_entities = are_entity_tags(all_names)
    spans = [document.words for document in documents]
    entities = [entities_of(marks, own) if has_entities else [] for marks, own in zip(tags, spans, strict=True)]
    return TaggedTexts([document.text for document in documents], spans, tags, entities, all_names)


def _read_entities(texts: Sequence[Any], entities: Sequence[Any]) -> TaggedTexts:
    found = []
    for row, (text, marks) in enumerate(zip(texts, entities, strict=True)):
        try:
            own = [Entity(int(mark["start"]), int(mark["end"]), str(mark["label"])) for mark in marks]
            labels = {entity.label: 0 for entity in own}
            checked = check_spans(text, list(own), labels)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"row {row}: entities are lists of start, end and label: {error}") from error
        visible = zip(checked, sorted(own), strict=True)
        found.append([Entity(span.start, span.end, entity.label) for span, entity in visible])
    names = {f"{prefix}-{entity.label}" for own in found for entity in own for prefix in "BI"}
    if not names:
        raise ValueError("no row has an entity")
    return TaggedTexts(list(texts), None, None, found, tuple(_sorted_tags({OUTSIDE, *names})))


def _sorted_tags(tags: set[str]) -> list[str]:
    """ "O" first, then by label, "B-" before "I-"."""
    return sorted(tags, key=lambda tag: (tag != OUTSIDE, tag.partition("-")[2] or tag, tag))


def _class_names(feature: Any) -> list[str] | None:
    """Names of a column of lists of `ClassLabel`, if it is one."""
    inner = getattr(feature, "feature", None)
    return getattr(inner, "names", None)

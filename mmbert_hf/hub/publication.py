"""`publish`: anything this package makes, to the Hub in one commit that is checked, with a card.

    publish("export", "me/tiny")                                    # a folder
    publish(model, "me/tiny", processing_class=tokenizer)           # an mmBERT encoder, published as ModernBERT
    publish(trainer.tracker, "me/values", private=True)             # a tracker, as a data set
    print(publish("export", "me/tiny", dry_run=True))               # what would be sent, without a connection

Design decisions:

- All that can be refused is refused before anything is sent: names, licences, languages, pickles, a missing token.
- A card that is there is kept, and what is given is added to its metadata. Else one is rendered that says what is not known;
  of a README.md that is metadata alone (`mmbert evaluate --add-to-card` makes such ones) it takes over the metadata.
- Files on this machine are read and never changed. What has to be written goes to a temporary folder.
- A licence that nobody gave is looked up on the parent's card on the Hub; where that does not say, the card says so.
"""

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, HfApi, ModelCard
from huggingface_hub.utils import yaml_dump

from mmbert_hf.hub.local_files import LocalFile, collect
from mmbert_hf.hub.metadata import check_license, check_metadata, language_codes
from mmbert_hf.hub.names import check_repo_id, require_token
from mmbert_hf.hub.retries import Retries, explain
from mmbert_hf.hub.staging import Architecture, Staged, stage
from mmbert_hf.hub.upload import Destination, upload

__all__ = ["Publication", "publish"]

CARD = "README.md"
TAG = "mmbert-hf"


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Attributes:
        kind: "encoder", "embedder", "policy", "adapter", "model" or "tracker".
        repo_id: Where.
        repo_type: "model" or "dataset".
        files: Bytes by path in the repository.
        left_out: Files and folders of the source that are not published.
        card: Text of README.md.
        url: Of the pull request, else of the commit that holds the files; None if nothing was sent (``dry_run``).
        commit: Its id.
        changed: Whether there was anything to send.
    """

    kind: str
    repo_id: str
    repo_type: str
    files: dict[str, int]
    left_out: tuple[str, ...]
    card: str
    url: str | None = None
    commit: str | None = None
    changed: bool = False

    def __str__(self) -> str:
        """Files with their sizes, and where they are."""
        width = max(len(name) for name in self.files)
        lines = [f"{self.kind}, to {self.repo_id} ({self.repo_type}):"]
        lines += [f"  {name:<{width}}  {size:>14,} bytes" for name, size in self.files.items()]
        lines.append(f"  {'in all':<{width}}  {sum(self.files.values()):>14,} bytes")
        if self.left_out:
            lines.append(f"not published: {', '.join(self.left_out)}")
        if self.url is not None:
            lines.append(f"published: {self.url}" if self.changed else f"nothing has changed since {self.url}")
        return "\n".join(lines)


def publish(
    source: Any,
    repo_id: str,
    *,
    processing_class: Any = None,
    architecture: Architecture = "modernbert",
    card: ModelCard | DatasetCard | None = None,
    license: str | Sequence[str] | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    base_model: str | None = None,
    languages: str | Sequence[str] = (),
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    plots: Sequence[str | Path] = (),
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    exist_ok: bool = True,
    dry_run: bool = False,
    endpoint: str | None = None,
    max_wait_seconds: float = 300.0,
) -> Publication:
    """Publish a model, an embedder, an adapter or a tracker, in one commit. Repeated, it changes nothing.

    Args:
        source: A folder; a model of this package, of transformers or PEFT; a SentenceTransformer; a `PrunedEmbedder`; a
            `ValueTracker`.
        repo_id: ``owner/name``, or a name of your own.
        processing_class: The tokenizer of a model that is not in a folder.
        architecture: What an mmBERT encoder is published as: "modernbert" loads everywhere, "mmbert" where this package
            is installed.
        card: Card to publish. Default: that of the folder, else one that is rendered.
        license: Identifier of the Hub, or several.
        license_name: Name of a licence whose identifier is "other".
        license_link: Where that one is written.
        base_model: The parent's name on the Hub.
        languages: Codes, ISO 639-1 or ISO 639-3; the card gets those that the Hub wants.
        datasets: Data sets on the Hub that it was made with.
        tags: More tags.
        plots: Pictures (.png, .svg) to publish in ``plots/`` and to show in the card, beside those that lie in the folder's.
        private: Make a new repository private; None is the default of the account.
        revision: Branch to publish to, made if it is not there.
        create_pr: Open a pull request in place of a commit. If one with the same files is there, it is that one.
        token: Of the Hub; the one stored on this machine, or ``HF_TOKEN``, if None.
        commit_message: First line of the commit.
        exist_ok: Publish to a repository that exists already.
        dry_run: Send nothing, and need no connection.
        endpoint: Address of the Hub; that of ``HF_ENDPOINT`` if None.
        max_wait_seconds: How long is waited in all for a Hub that is busy or cannot be reached. huggingface_hub repeats some
            requests by itself, some seconds apart; those seconds come on top.

    Returns:
        What was published.

    Raises:
        PermissionError: There is no token, or the Hub refuses it.
        ConnectionError: The Hub could not be reached, or was busy for too long. The same call goes on where this one stopped.
        ValueError: Something cannot be published as it is: a name, a licence, a language, pickles, a public repository that
            is to be private, files that are too large.
        TypeError: `source` is nothing that can be published.
        FileNotFoundError: There is no such folder.
        FileExistsError: The repository exists, and `exist_ok` is false.
        OSError: What the Hub lists after the commit is not what was sent.

    Example:
        >>> publication = publish("export", "me/tiny", dry_run=True)  # doctest: +SKIP
        >>> publication.kind, sorted(publication.files)  # doctest: +SKIP
        ('encoder', ['README.md', 'config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'])
    """
    check_repo_id(repo_id)
    check_license(license)
    if license == "other" and license_name is None:
        raise ValueError(
            "license 'other' needs license_name, the name of the licence, and if there is one license_link"
        )
    codes = language_codes(languages)
    if base_model is not None:
        check_repo_id(base_model)
    if isinstance(source, str | Path) and not Path(source).expanduser().exists():
        raise FileNotFoundError(f"there is no folder {source}")
    api = HfApi(endpoint=endpoint, token=token)
    retries = Retries(max_wait_seconds)
    if not dry_run:
        user = _asking(api, repo_id, lambda: retries.call(lambda: require_token(api)))
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    given = {"license": license, "license_name": license_name, "license_link": license_link, "base_model": base_model,
             "language": codes or None, "datasets": list(datasets) or None}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mmbert-publish-") as scratch:
        written = Path(scratch, "files")
        written.mkdir()
        staged = stage(source, written, architecture=architecture, processing_class=processing_class)
        files, left_out = collect(staged.folder)
        files |= {f"plots/{Path(path).name}": _picture(Path(path)) for path in plots}
        known = {name: value for name, value in given.items() if value is not None}
        if "license" not in known and not dry_run and (parent := base_model or staged.base_model) is not None:
            known |= {"license": found} if (found := _license_of(api, parent)) else {}
        rendered = card or _card_of(staged, repo_id, known, _recorded(source))
        rendered = _with_metadata(rendered, staged, known, given, tags)
        rendered.text += _pictures(rendered.text, [name for name in files if name.startswith("plots/")])
        check_metadata(rendered)
        rendered.save(Path(scratch, CARD))
        files = dict(sorted({**files, CARD: LocalFile.read(Path(scratch, CARD))}.items()))
        publication = Publication(
            staged.kind,
            repo_id,
            staged.repo_type,
            {name: file.size for name, file in files.items()},
            (*left_out, *staged.left_out),
            str(rendered),
        )
        if dry_run:
            return publication
        destination = Destination(
            repo_id,
            repo_type=staged.repo_type,
            revision=revision,
            create_pr=create_pr,
            private=private,
            commit_message=commit_message or f"Publish {staged.kind}",
            exist_ok=exist_ok,
        )
        with retries.bounding():
            done = _asking(api, repo_id, lambda: upload(api, files, destination, retries))
    return replace(publication, url=done.url, commit=done.commit, changed=done.changed)


def _asking(api: HfApi, repo_id: str, function: Callable[[], Any]) -> Any:
    """Call, and explain what the Hub refuses."""
    try:
        return function()
    except Exception as error:
        explained = explain(error, repo_id, api.endpoint)
        if explained is error:
            raise
        raise explained from error


def _license_of(api: HfApi, parent: str) -> Any:
    """The licence on a parent's card. Not finding out is no error: the card then says that it is not known."""
    try:
        data = api.model_info(parent).card_data
    except Exception:
        return None
    return None if data is None else data.get("license")


def _recorded(source: Any) -> dict[str, Any]:
    """What `mmbert pretrain` and its like wrote down for the card, in the folder that they made."""
    path = Path(source, "run.json") if isinstance(source, str | Path) else None
    if path is None or not path.is_file():
        return {}
    facts = json.loads(path.read_text(encoding="utf-8")).get("card", {})
    return facts if isinstance(facts, dict) else {}


def _as_published(card: ModelCard, repo_id: str, known: Mapping[str, Any]) -> ModelCard:
    """A card that this package wrote for a folder, with the name that it is published under, and its licence."""
    if "mmbert-hf" not in (card.data.tags or ()):
        return card
    text = re.sub(r'SentenceTransformer\("[^"/\\]+"\)', f'SentenceTransformer("{repo_id}")', card.text)
    license = known.get("license_name") or known.get("license")
    if license is not None:
        told = license if isinstance(license, str) else ", ".join(license)
        text = re.sub(r"Its licence is that of the model it was made from\b[^\n]*", f"Licence: {told}.", text)
    card.text = text
    return card


def _card_of(
    staged: Staged, repo_id: str, known: Mapping[str, Any], facts: Mapping[str, Any]
) -> ModelCard | DatasetCard:
    """The card that lies in the folder, else a new one."""
    path = staged.folder / CARD
    card_class = DatasetCard if staged.kind == "tracker" else ModelCard
    there = card_class(path.read_text(encoding="utf-8")) if path.is_file() else None
    if there is None:
        return _new_card(staged, repo_id, known, facts)
    if there.text.strip():
        return _as_published(there, repo_id, known) if staged.kind == "embedder" else there
    card = _new_card(staged, repo_id, known, facts)
    both = {**card.data.to_dict(), **there.data.to_dict()}
    card.content = f"---\n{yaml_dump(both, sort_keys=False)}---\n{card.text}"
    return card


def _new_card(
    staged: Staged, repo_id: str, known: Mapping[str, Any], facts: Mapping[str, Any]
) -> ModelCard | DatasetCard:
    base, license = known.get("base_model") or staged.base_model, known.get("license_name") or known.get("license")
    if staged.kind == "tracker":
        from mmbert_hf.model_cards.trackers import tracker_card
        from mmbert_hf.trainers.spo.tracker_files import load_tracker

        return tracker_card(repo_id, load_tracker(staged.folder)[0], base_model=base, license=license)
    if staged.kind == "encoder" and (staged.architecture or "").endswith("ForMaskedLM"):
        from mmbert_hf.model_cards.cards import encoder_card

        languages = known.get("language") or facts.get("languages", ())
        return encoder_card(repo_id, facts, license=license, base_model=base, languages=languages)
    from mmbert_hf.model_cards.plain import plain_card

    kind: Any = "model" if staged.kind == "encoder" else staged.kind
    return plain_card(repo_id, {}, kind=kind, architecture=staged.architecture, base_model=base, license=license)


def _picture(path: Path) -> LocalFile:
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path} is no picture that a card can show: give a .png or .svg file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    return LocalFile.read(path)


def _pictures(text: str, names: Sequence[str]) -> str:
    """A section with the pictures that a card does not show yet, by the names of their files."""
    new = [name for name in sorted(names) if f"({name})" not in text]
    if not new:
        return ""
    heading = "" if "\n## Pictures\n" in text else "\n\n## Pictures"
    return heading + "".join(f"\n\n![{Path(name).stem.replace('_', ' ')}]({name})" for name in new) + "\n"


def _with_metadata(
    card: ModelCard | DatasetCard, staged: Staged, known: dict[str, Any], given: dict[str, Any], tags: Sequence[str]
) -> ModelCard | DatasetCard:
    """A copy of the card: what was given replaces what it says, what was found fills what it leaves open."""
    copy = type(card)(str(card))
    for name, value in known.items():
        if name == "base_model" and staged.repo_type == "dataset":
            continue  # a data set has none
        if given[name] is not None or copy.data.get(name) is None:
            copy.data[name] = value
    copy.data["tags"] = list(dict.fromkeys((*(copy.data.get("tags") or ()), TAG, *tags)))
    return copy

"""The YAML header of a README.md, and the metadata and tags that a Hub reads from it."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

_HEADER_PATTERN = re.compile(r"\s*---(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)", re.DOTALL)

# Which card entries become tags, under which prefix.
_TAG_PREFIXES = {
    "tags": "",
    "language": "",
    "pipeline_tag": "",
    "library_name": "",
    "license": "license:",
    "datasets": "dataset:",
    "base_model": "base_model:",
    "task_categories": "task_categories:",
    "size_categories": "size_categories:",
}


class _HubYamlLoader(yaml.SafeLoader):
    """YAML as the Hub reads it (version 1.2): `no` is Norwegian and not `False`, and a date stays text."""


_HubYamlLoader.yaml_implicit_resolvers = {
    first_letter: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first_letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_HubYamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")
)


def parse_card(text: str) -> dict[str, Any]:
    """Return the metadata of a card.

    Args:
        text: The whole README.md.

    Returns:
        The header's entries; empty without a header.

    Raises:
        ValueError: If the header is not a YAML mapping.
    """
    match = _HEADER_PATTERN.match(text)
    if match is None:
        return {}
    try:
        header = yaml.load(match[1], Loader=_HubYamlLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"the YAML header of README.md cannot be read: {error}") from error
    if header is None:
        return {}
    if not isinstance(header, dict):
        raise ValueError(f"the YAML header of README.md must be a mapping, got {type(header).__name__}")
    return header


def card_tags(card: Mapping[str, Any]) -> list[str]:
    """Return the tags that a card's metadata gives its repository.

    Args:
        card: Metadata as from `parse_card`.

    Returns:
        Tags without repetition, in the order found.
    """
    tags = [f"{prefix}{value}" for key, prefix in _TAG_PREFIXES.items() for value in _as_list(card.get(key))]
    if relation := card.get("base_model_relation"):
        tags += [f"base_model:{relation}:{model}" for model in _as_list(card.get("base_model"))]
    return list(dict.fromkeys(tags))


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]

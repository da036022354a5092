"""Licences and languages: what the Hub knows passes, and nothing else."""

import doctest

import pytest
from huggingface_hub import ModelCard

from mmbert_hf.hub import local_files, metadata


@pytest.mark.parametrize("module", [metadata, local_files], ids=lambda module: module.__name__)
def test_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("license", [None, "apache-2.0", ["mit", "other"], "gemma", "cc-by-nc-sa-4.0"])
def test_licences_that_pass(license):
    metadata.check_license(license)


@pytest.mark.parametrize("license", ["MIT", "Apache 2.0", ["mit", "none"], ""])
def test_licences_that_do_not(license):
    with pytest.raises(ValueError, match="no identifier of the Hub"):
        metadata.check_license(license)


@pytest.mark.parametrize("languages", [None, [], "fo", ["en", "zh", "tpi", "multilingual", "code"], ["no", "nb", "sr"]])
def test_languages_that_pass(languages):
    metadata.check_languages(languages)


@pytest.mark.parametrize(
    ("languages", "message"),
    [("faroese", "did you mean 'fao'"), (["en", "xx"], "'xx'"), (["eng"], "is 'en' on the Hub"), (False, "in quotes")],
)
def test_languages_that_do_not(languages, message):
    with pytest.raises(ValueError, match=message):
        metadata.check_languages(languages)


def test_cards():
    metadata.check_metadata(ModelCard("no metadata"))
    metadata.check_metadata(ModelCard("---\nlicense: mit\nlanguage:\n- fo\n---\n"))
    with pytest.raises(ValueError, match=r"'gpl-4\.0'"):
        metadata.check_metadata(ModelCard("---\nlicense: gpl-4.0\n---\n"))

"""Sphinx: the pages in Markdown and the API from the docstrings. `make docs` builds into build/docs, warnings are errors.

Design decisions:

- The source folder is the root of the repository, so that a relative link to another page or to a file is the same link here
  and on a git host. A link to a file that is no page becomes a download of it.
- Every object is documented once, under the outermost package in which it is public.
- What is public is said by `__all__`; pages under docs/api/ name packages, and only the names at the top one by one.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mmbert_hf  # noqa: E402 - the package of this checkout

project, author, copyright = "mmbert-hf", "the authors of mmbert-hf", "the authors of mmbert-hf, Apache-2.0"
version = release = mmbert_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "docs/**.md"]
exclude_patterns = ["build", "**/.*"]
html_theme, html_title = "furo", f"mmbert-hf {version}"
html_theme_options = {"navigation_with_keys": True}

myst_heading_anchors = 3  # links to headings as on a git host
default_role = "py:obj"  # `name` in a docstring is a link where there is such a page, and code where there is none
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints, autodoc_typehints_format = "description", "short"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = (
    True  # attributes are in the docstring of their class; as entries of their own they would be there twice
)
suppress_warnings = [
    # A block that shows the first lines of a file, such as `# table.yaml`, is not always a file of its language.
    "misc.highlighting_failure",
]


def without_what_is_elsewhere(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out of a package's page what is documented under `mmbert_hf` itself."""
    if what == "module" and name in mmbert_hf.__all__ and getattr(mmbert_hf, name) is member:
        return True
    return None


def shorter_docstrings(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Cut notes for who changes a module; add the options of a configuration, whose text is in their `help`."""
    if what == "module":
        notes = [number for number, line in enumerate(lines) if re.match(r"(Design decisions|Shape legend)", line)]
        del lines[min(notes, default=len(lines)) :]
    if what == "class" and dataclasses.is_dataclass(obj):
        own = [field for field in dataclasses.fields(obj) if field.name in obj.__annotations__]
        for field in own:
            if "help" in field.metadata:
                default = "" if field.default is dataclasses.MISSING else f" Default: ``{field.default!r}``."
                lines.append(f":ivar {field.name}: {_as_text(field.metadata['help'])}{default}")
        lines.append("")


def _as_text(help_text: str) -> str:
    """Escape what is markup in reStructuredText: help texts are plain."""
    text = re.sub(r"([*_|`\\])", r"\\\1", help_text).replace("%%", "%")
    return text if text.endswith((".", ")")) else text + "."


def shorter_signatures(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Show no hundred arguments of `TrainingArguments`, which transformers documents."""
    if what == "class" and issubclass(obj, TrainingArguments):
        return "(output_dir, **arguments)", None
    return None


def links_of_a_git_host(app: Any, docname: str, source: list[str]) -> None:
    """Show a link to a folder as text, and to a line as one to the file: a build has neither folders nor lines."""
    folder = (ROOT / docname).parent

    def plain(link: re.Match[str]) -> str:
        return f"`{link[1].strip('`')}`" if (folder / link[2]).is_dir() else link[0]

    source[0] = re.sub(r"\[([^]]+)\]\(([^)#:]+)\)", plain, source[0])
    source[0] = re.sub(r"(\[`\w+`)(\]\([^)#:]+)#L(\d+)\)", r"\1\2) (line \3)", source[0])


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("autodoc-skip-member", without_what_is_elsewhere)
    app.connect("autodoc-process-docstring", shorter_docstrings)
    app.connect("autodoc-process-signature", shorter_signatures)
    app.connect("source-read", links_of_a_git_host)

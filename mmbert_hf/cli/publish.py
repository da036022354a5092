"""``mmbert publish``: a folder to the Hub, in one commit, with a card."""

import argparse
from dataclasses import asdict
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, begin, tell


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser(
        "publish",
        help="publish a model, an embedder, an adapter or a tracker on the Hub",
        description=(
            "Publish a folder on the Hub in one commit, with a card, so that it loads where this package is not installed: "
            "an mmBERT encoder as ModernBERT, an embedder for sentence-transformers, a policy or adapter for transformers, "
            "a tracker of SPO as a data set. Checkpoints, optimizer states and pickles stay at home. The commit is checked "
            "afterwards. Repeated, it changes nothing, and goes on where it was stopped."
        ),
    )
    parser.add_argument("folder", metavar="FOLDER", help="what is published")
    parser.add_argument("repo_id", metavar="NAME", help="owner/name, or a name of your own")
    parser.add_argument(
        "--license", action="append", metavar="ID", help="identifier of the Hub, may be repeated; default: the parent's"
    )
    parser.add_argument("--license-name", default=None, metavar="NAME", help="with --license other: its name")
    parser.add_argument("--license-link", default=None, metavar="URL", help="with --license other: where it is written")
    parser.add_argument("--base-model", default=None, metavar="NAME", help="the parent, on the Hub")
    parser.add_argument(
        "--languages", nargs="+", default=(), metavar="CODE", help="such as fo or fao, with blanks between"
    )
    parser.add_argument("--datasets", nargs="+", default=(), metavar="NAME", help="data sets that it was made with")
    parser.add_argument("--tags", nargs="+", default=(), help="more tags")
    parser.add_argument("--plots", nargs="+", default=(), metavar="FILE", help="pictures (.png, .svg) for the card")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", default=None, help="branch, made if it is not there")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request in place of a commit")
    parser.add_argument("--commit-message", default=None, help="its first line")
    parser.add_argument(
        "--architecture",
        choices=("modernbert", "mmbert"),
        default="modernbert",
        help="of an mmBERT encoder: modernbert loads everywhere (default), mmbert where this package is installed",
    )
    parser.add_argument(
        "--max-wait-seconds", type=float, default=300.0, help="how long a busy Hub is waited for in all (default: 300)"
    )
    add_common_options(parser, dry_run="show files, sizes and card; send nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Publish with the parsed arguments and print what was done."""
    begin(args)

    from mmbert_hf.hub import publish

    licenses = args.license[0] if args.license and len(args.license) == 1 else args.license
    names = (
        "base_model",
        "languages",
        "datasets",
        "tags",
        "plots",
        "revision",
        "create_pr",
        "commit_message",
        "architecture",
    )
    options = {
        name: getattr(args, name) for name in (*names, "license_name", "license_link", "max_wait_seconds", "dry_run")
    }
    done = publish(args.folder, args.repo_id, license=licenses, private=args.private or None, **options)
    lines = [done.url or ""] if args.quiet else [str(done)]
    if args.dry_run and not args.quiet:
        lines.append(f"README.md:\n\n{done.card}")
    tell(args, asdict(done), lines)
    return 0

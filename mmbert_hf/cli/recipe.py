"""``mmbert recipe show``: a published recipe as a table or a picture, scaled to one's own number of tokens."""

import argparse
from typing import Any

from mmbert_hf.cli.grammar import add_common_options, tell


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser("recipe", help="show the published recipes", description="The published recipes.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="print a recipe, or the names of all",
        description="Print the phases of a recipe. Without a name, the names of all recipes.",
    )
    show.add_argument("preset", nargs="?", help="name of the recipe")
    show.add_argument("--total-tokens", help="scale it to so many tokens, such as 200M")
    show.add_argument("--rows-per-step", type=int, help="rows in a full batch (default: the recipe's)")
    show.add_argument("--plot", metavar="FILE", help="draw it into a .png, .svg or .pdf file")
    add_common_options(show, dry_run=None)
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print or draw the recipe that the parsed arguments name."""
    from mmbert_hf.data.table import parse_tokens
    from mmbert_hf.presets import PRESETS, get_preset
    from mmbert_hf.recipes import describe
    from mmbert_hf.step_plan import plan_steps

    if args.preset is None:
        names = {
            preset.name: {
                "size": preset.size,
                "phases": len(preset.recipe.phases),
                "tokens": preset.recipe.total_tokens,
            }
            for preset in PRESETS.values()
        }
        lines = [
            f"{name:24} {{size:6}} {{phases}} phases, {{tokens:,}} tokens".format(**each)
            for name, each in names.items()
        ]
        tell(args, names, lines)
        return 0
    recipe = get_preset(args.preset).recipe
    if args.total_tokens:
        recipe = recipe.scaled_to(parse_tokens(args.total_tokens))
    plan = plan_steps(recipe, rows_per_step=args.rows_per_step)
    lines = [describe(recipe), f"{plan.num_steps:,} steps, {plan.num_rows:,} rows, {plan.num_tokens:,} tokens"]
    if args.plot:
        from mmbert_hf.plotting import plot_recipe

        plot_recipe(recipe, args.plot)
        lines.append(f"drawn into {args.plot}")
    tell(args, plan.as_dict(), lines)
    return 0

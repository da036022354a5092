"""``mmbert recipe show``: a published recipe as a table or a picture, scaled to one's own number of tokens."""

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb to ``mmbert``."""
    parser = verbs.add_parser("recipe", help="show the published recipes", description="The published recipes.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
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
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print or draw the recipe that the parsed arguments name."""
    from mmbert_hf.data.table import parse_tokens
    from mmbert_hf.presets import PRESETS, get_preset
    from mmbert_hf.recipes import describe
    from mmbert_hf.step_plan import plan_steps

    if args.preset is None:
        for preset in PRESETS.values():
            print(
                f"{preset.name:24} {preset.size:6} {len(preset.recipe.phases)} phases, {preset.recipe.total_tokens:,} tokens"
            )
        return 0
    recipe = get_preset(args.preset).recipe
    if args.total_tokens:
        recipe = recipe.scaled_to(parse_tokens(args.total_tokens))
    plan = plan_steps(recipe, rows_per_step=args.rows_per_step)
    print(describe(recipe))
    print(f"{plan.num_steps:,} steps, {plan.num_rows:,} rows, {plan.num_tokens:,} tokens")
    if args.plot:
        from mmbert_hf.plotting import plot_recipe

        plot_recipe(recipe, args.plot)
        print(f"drawn into {args.plot}")
    return 0

"""What all verbs share: options from a file or from flags, and mistakes in one sentence with the nearest right name."""

import argparse
import re
import subprocess
import sys

import pytest
import yaml

from mmbert_hf.cli import build_parser, main
from mmbert_hf.cli.grammar import VerbParser, add_common_options

SHOW_ONLY = {"mmbert demo", "mmbert recipe show", "mmbert plot", "mmbert env"}


def leaves(parser):
    """The parsers of all verbs, by name."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        return {parser.prog.replace(" RUN_FOLDER", ""): parser}
    return {name: leaf for each in below[0].choices.values() for name, leaf in leaves(each).items()}


VERBS = sorted(leaves(build_parser()))


def sample(action):
    """A value for an option, as YAML has it."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return not action.default if isinstance(action.default, bool) else True
    if action.nargs == 0:
        return True
    value = [*action.choices][-1] if action.choices else {int: 3, float: 0.25}.get(action.type, "a-b.c")
    if action.type not in (None, str, int, float):
        value = 7
    return [value, value] if action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction) else value


def as_words(action, value):
    """The same value as flags."""
    flags = action.option_strings
    if isinstance(action, argparse.BooleanOptionalAction):
        return [flags[0] if value else flags[1]]
    if action.nargs == 0:
        return [flags[0]]
    values = value if isinstance(value, list) else [value]
    if isinstance(action, argparse._AppendAction):
        return [word for each in values for word in (flags[0], str(each))]
    return [*flags[:1], *map(str, values)]


def optional_actions(parser):
    """All options of a verb that go together, those before its positional arguments first."""
    left_out = {"help", "config", "help_all"}
    for group in parser._mutually_exclusive_groups:
        left_out |= {action.dest for action in group._group_actions[1:]}
    chosen = [action for action in parser._actions if action.dest not in left_out]
    return sorted(chosen, key=lambda action: not action.option_strings)


def test_every_option_has_a_help_text():
    for name, parser in leaves(build_parser()).items():
        missing = [action.dest for action in parser._actions if not action.help]
        assert not missing, f"{name}: {missing}"


def test_no_help_imports_anything_heavy():
    heavy = ("torch", "transformers", "numpy", "datasets", "huggingface_hub", "trl", "matplotlib", "mteb", "optimi")
    words = [[*name.split()[1:], "--help"] for name in ["mmbert", *VERBS]]
    code = (
        "import sys; from mmbert_hf.cli import main\n"
        f"for argv in {words!r}:\n"
        "    try: main(argv)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(word in done.stdout for word in ("--benchmarks", "--tile-from", "--from-samples", "reward_funcs"))


def test_every_verb_has_the_common_options():
    for name, parser in leaves(build_parser()).items():
        names = {action.dest for action in parser._actions}
        assert {"config", "json", "quiet", "debug"} <= names, name
        assert ("dry_run" in names) == (name not in SHOW_ONLY), name


@pytest.mark.parametrize("name", [name for name in VERBS if name != "mmbert spo"])
def test_a_file_says_what_flags_say(tmp_path, name):
    verb = name.split()[1:]
    parser = leaves(build_parser())[name]
    actions = optional_actions(parser)
    values = {action.dest: sample(action) for action in actions}
    words = [word for action in actions if action.option_strings for word in as_words(action, values[action.dest])]
    placed = [word for action in actions if not action.option_strings for word in as_words(action, values[action.dest])]
    by_flags = vars(build_parser().parse_args([*verb, *words, "--json", *placed]))

    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({key.replace("_", "-"): value for key, value in values.items()}))
    by_file = vars(build_parser().parse_args([*verb, "--config", str(path)]))
    assert by_file.pop("config") == str(path)
    by_flags.pop("config")
    for each in (by_flags, by_file):  # for messages
        each.pop("places", None)
    assert by_file == by_flags


def make(passes_on=False):
    parser = VerbParser(prog="mmbert toy")
    parser.add_argument("model", help="-")
    parser.add_argument("--texts", nargs="+", help="-")
    parser.add_argument("--add", action="append", default=[], help="-")
    parser.add_argument("--rate", type=float, default=1.0, help="-")
    parser.add_argument("--kind", choices=("one", "two"), help="-")
    parser.add_argument("--fast", action="store_true", help="-")
    add_common_options(parser, passes_on=passes_on)
    return parser


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "c.yaml").write_text(text)
        return str(tmp_path / "c.yaml")

    return write


def test_flags_override_the_file(file):
    path = file("model: a\nrate: 2\nadd: [x, y]\ntexts: [p, q]\nfast: true\nkind:\n")
    args = make().parse_args(["--config", path])
    assert (args.model, args.rate, args.add, args.texts, args.fast) == ("a", 2.0, ["x", "y"], ["p", "q"], True)
    assert args.kind is None
    args = make().parse_args(["b", f"--config={path}", "--rate", "3", "--add", "z", "--texts", "r"])
    assert (args.model, args.rate, args.add, args.texts) == ("b", 3.0, ["z"], ["r"])


def test_a_list_of_the_file_does_not_take_the_model_of_the_command_line(file):
    args = make().parse_args(["b", "--config", file("texts: [p, q]")])
    assert (args.model, args.texts) == ("b", ["p", "q"])


def test_a_mapping_is_read_as_name_and_value(file):
    args = make().parse_args(["b", "--config", file("add: {fao: a.txt, tir: b.txt}")])
    assert args.add == ["fao=a.txt", "tir=b.txt"]


def test_what_a_verb_does_not_know_is_passed_on(file):
    path = file("rate: 2\nmax_steps: 7\nbf16: true\nlog: {a: 1}\nnames: [p, q]\n")
    args, rest = make(passes_on=True).parse_known_args(["b", "--config", path, "--max_steps", "8"])
    assert args.rate == 2.0
    assert rest == [
        *("--max_steps", "7", "--bf16", "true", "--log", '{"a": 1}', "--names", "p", "q"),
        *("--max_steps", "8"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat: 2", r"c.yaml, line 1: there is no option 'rat'; did you mean 'rate'\?"),
        ("fast: true\nrate: quick", "line 2: rate: invalid float value: 'quick'"),
        ("rate: [1, 2]", "line 1: rate takes one value"),
        ("kind: tow", r"line 1: kind: 'tow' is none of one, two; did you mean 'two'\?"),
        ("fast: 3", "line 1: fast must be true or false, got 3"),
        ("rate: 1\nrate: 2", "line 2: 'rate' is there twice, before in line 1"),
        ("rate: [1", "line 1.*not YAML"),
        ("- rate", "expected a mapping"),
        ("config: other.yaml", "there is no option 'config'"),
    ],
)
def test_mistakes_in_a_file_are_told_with_their_line(file, capsys, text, message):
    with pytest.raises(SystemExit, match="2"):
        make().parse_args(["b", "--config", file(text)])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1

    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prun"], "'prun' is none of"),
        (["prun"], "did you mean 'prune'?"),
        ([], "required: VERB"),
        (["--loud", "env"], "there is no option '--loud' in front of the verb"),
        (["convert", "m", "--output-dir", "o", "--owerwrite"], "did you mean '--overwrite'?"),
        (["convert", "m"], "required: --output-dir"),
        (
            ["prune", "m", "--domian", "d", "--general", "g"],
            "there is no option '--domian'; did you mean '--domain'?; and",
        ),
        (["convert", "m", "--output-dir", "o", "--to", "bert"], "'bert' is none of modernbert, mmbert"),
        (["convert", "m", "--output-dir", "o", "--config"], "--config: expected one argument"),
        (["convert", "m", "--output-dir", "o", "--config", "no.yaml"], "there is no file 'no.yaml'"),
    ],
)
def test_mistakes_are_one_sentence(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_flag_against_the_file_is_told_with_the_line(file, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["trim", "m", "--output-dir", "o", "--texts", "t", "--config", file("languages: [fao]")])
    error = capsys.readouterr().err
    assert "--texts: not allowed with argument --languages (--languages is set in" in error
    assert "c.yaml, line 1)" in error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("granularity: ffn,vocab", "got 'ffn, vocab' (--granularity is set in {path}, line 2)"),
        ("retrain-steps: -1", "(--retrain-steps is set in {path}, line 2)"),
        ("method: dai-normal", "{path}, line 2: method: 'dai-normal' is none of"),
    ],
)
def test_a_value_that_does_not_go_is_told_with_its_line(file, capsys, setting, message):
    """Also where not the parser sees it but what the values are for."""
    path = file(f"domain: d\n{setting}\n")
    try:
        status = main(["prune", "m", "--general", "g", "--output-dir", "o", "--config", path])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message.format(path=path) in error
    assert len(error.splitlines()) == 1


def test_a_flag_has_no_line(file, capsys):
    words = ["--granularity", "ffn,vocab", "--config", file("domain: d\ngranularity: ffn\n")]
    assert main(["prune", "m", "--general", "g", "--output-dir", "o", *words]) == 2
    assert "is set in" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["pretrain", "extend", "decay"])
def test_a_wrong_argument_of_the_trainer_names_the_nearest(tmp_path, capsys, verb):
    (tmp_path / "fao.txt").write_text("Hetta er ein tekstur.\n")
    (tmp_path / "table.yaml").write_text("languages:\n  fao: {source: fao.txt}\n")
    model = ["--tokenizer", "x"] if verb == "pretrain" else [str(tmp_path)]
    words = [verb, *model, "--data", str(tmp_path / "table.yaml"), "--output-dir", str(tmp_path / "o")]
    assert main([*words, "--save_stesp", "3"]) == 2
    assert "did you mean '--save_steps'?" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_text("seed: 3\nadd-langauge: {fao: fao.txt}\n")
    assert main([*words, "--config", str(tmp_path / "c.yaml")]) == 2
    expected = "c.yaml, line 2: there is no option '--add_langauge'"
    error = capsys.readouterr().err
    assert expected in error
    assert verb != "decay" or "did you mean '--add-language'?" in error
    assert main([*words, "--save_steps", "many"]) == 2
    error = capsys.readouterr().err
    assert "save_steps" in error
    assert len(error.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error():
    call = f"{sys.executable} -m mmbert_hf.cli recipe show | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

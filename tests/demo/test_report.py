"""Tests of `mmbert_hf.demo.report`, its template and its plots, on synthetic metrics; and of the page in a browser."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from html import escape, unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from mmbert_hf.demo.figures import FIGURES, PALETTE, PlotData, smooth
from mmbert_hf.demo.plots import SPO_FIGURES
from mmbert_hf.demo.report import (
    format_number,
    format_percent,
    render_page,
    repeat_command,
    sort_metrics,
    write_report,
)
from mmbert_hf.recipes import Phase, Recipe

STEPS = 80
ADDED = ("fao", "tir")
CHECKPOINTS = {"before_decay": 6.5, "after_decay": 5.75, "after_control": 6.25}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def make_tiers(count: int) -> dict[str, str]:
    """Return code -> tier; codes are not in alphabetical order, and two are the added languages."""
    codes = [f"x{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in reversed(range(count - 2))]
    tiers = {code: ("pretrain", "extend", "decay", "decay")[number % 4] for number, code in enumerate(codes)}
    return tiers | dict.fromkeys(ADDED, "added")


def make_recipe(tiers: dict[str, str]) -> Recipe:
    first = [code for code, tier in tiers.items() if tier == "pretrain"]
    second = [code for code, tier in tiers.items() if tier in ("pretrain", "extend")]
    return Recipe(
        [
            Phase("pretrain", 0.6, first, 0.7, 0.30, 128, 1e4),
            Phase("extend", 0.15, second, 0.5, 0.15, 256, 1.6e5),
            Phase("decay", 0.25, list(tiers), 0.3, 0.05, 256, 1.6e5),
        ]
    )


def make_histories(recipe: Recipe) -> dict[str, list[dict]]:
    def record(step: int, offset: float) -> dict:
        phase = recipe.at((step - 1) / STEPS)
        return {
            "step": step,
            "loss": 5.0 + offset + 3.0 * math.exp(-step / 9),
            "learning_rate": 2e-3 * min(1.0, step / 9),
            "mask_ratio": phase.mask_ratio,
            "language_temperature": phase.language_temperature,
            "rope_theta": phase.rope_theta,
            "grad_norm": 1.0,
        }

    last = {"step": STEPS, "train_runtime": 9.0}
    return {
        name: [*(record(step, offset) for step in range(1, STEPS + 1)), last]
        for name, offset in {"run": 0.0, "control": 0.1}.items()
    }


def make_heldout(tiers: dict[str, str]) -> dict[str, dict]:
    heldout = {}
    for number, (code, tier) in enumerate(tiers.items()):
        heldout[code] = {"tier": tier, "masked_tokens": 1000 + number}
        for name, loss in CHECKPOINTS.items():
            heldout[code][f"loss_{name}"] = loss + number / 1000
            heldout[code][f"nats_per_byte_{name}"] = loss / 3
            heldout[code][f"accuracy_{name}"] = 1 / loss
    return heldout


def make_prune() -> dict:
    """Figures of a pruned embedder; every number of the table is another one."""
    models = ("dense", "control", "one-shot", "pruned")
    sizes = {"dense": 1_000_000, "control": 1_000_001, "one-shot": 500_002, "pruned": 500_003}
    return {
        "settings": {"seed": 1, "embedder": None, "method": "dai-normalized", "ffn_width": 640},
        "embedder": {
            "name": "owner/embedder",
            "license": "apache-2.0",
            "package": "carrier 0.1.0",
            "sha256": "53aa",
        },
        "train_triplets": {"domain": 3000, "general": 3001},
        "scored_triplets": {"domain": 150, "general": 151},
        "width": [1536, 640],
        "vocabulary": [30522, 13652],
        "term_shares": {"domain": 0.6, "magnitude": 0.4},
        "overlap_with_magnitude": 0.53,
        "retraining": {"steps": 40, "batch_size": 16},
        "models": list(models),
        "footprint": {name: {"bytes_on_disk": size, "num_parameters": size // 4} for name, size in sizes.items()},
        "latency": {
            "num_texts": 32,
            "batch_size": 32,
            "repeats": 5,
            "machine": "Processor, 2 threads",
            "seconds": {
                name: {
                    "median_seconds": 1 - number / 10,
                    "low_seconds": 0.9 - number / 10,
                    "high_seconds": 1.1 - number / 10,
                    "ratio": 1 - number / 8,
                }
                for number, name in enumerate(models)
            },
        },
        "quality": {
            name: {
                "num_queries": 300 + number,
                "num_documents": 300 + number,
                "ndcg_at_10": dict(zip(models, np.array([0.4, 0.42, 0.37, 0.395]) + number / 4, strict=True)),
                "difference": {
                    model: {"mean": -0.005, "low": -0.02, "high": 0.012} for model in models if model != "pruned"
                },
            }
            for number, name in enumerate(("domain", "general"))
        },
        "hub": {
            "repo_id": "loopback/small",
            "endpoint": "http://127.0.0.1:1234",
            "commit": "def456",
            "files": [{"name": "model.safetensors", "bytes": 500_000}],
            "reload_class": "SentenceTransformer around BertModel",
            "reload_max_abs_diff": 1.2e-7,
            "probes": 64,
        },
    }


def make_spo() -> dict:
    """Figures of a policy; every number of the table is another one."""
    groups = {"all": 529, "fitted": 159, "rewarded": 317, "unseen": 53}
    return {
        "settings": {"seed": 1, "modulus": 23, "steps": 300, "batch_size": 128, "num_samples": 16},
        "task": {"modulus": 23, "operations": "+", "prompts": groups},
        "policy": {"class": "LlamaForCausalLM", "parameters": 335_744},
        "fitting": {"steps": 60, "accuracy": 0.335, "is_reached": True},
        "training": {
            "steps": 300,
            "batch_size": 128,
            "samples": 38_400,
            "reward": {"first": 0.28, "last": 0.41},
            "grpo_wasted": 0.47,
            "log": {
                "step": [5, 10, 15],
                "reward": [0.28, 0.3, 0.41],
                "spo/value_p10": [0.1, 0.15, 0.2],
                "spo/value_mean": [0.4, 0.5, 0.6],
                "spo/value_p90": [0.8, 0.85, 0.9],
                "spo/rho": [0.9, 0.85, 0.88],
                "spo/divergence": [0.0, 0.02, 0.01],
            },
        },
        "values": {
            "kind": "beta",
            "calibration_error": 0.034,
            "worst_bin": {"value": 0.5, "reward": 0.6, "count": 100.0},
            "calibration": {"value": [0.05, 0.5], "reward": [0.06, 0.6], "count": [900.0, 100.0]},
            "visits": {
                "low": [0.0, 0.9],
                "high": [0.1, 1.0],
                "prompts": [400, 76],
                "mean": [90.0, 20.0],
                "least": [50, 10],
                "most": [120, 30],
                "floor": 3.6,
            },
            "end": {"value": 0.71, "accuracy": 0.73, "mean_abs_difference": 0.1},
        },
        "quality": {
            name: {
                "num_prompts": size,
                "sampled": {"before": 0.25 + number / 100, "after": 0.7 + number / 100},
                "greedy": {"before": 0.3 + number / 100, "after": 0.8 + number / 100},
                "solved": {"before": 0.5 + number / 100, "after": 0.9 + number / 100},
                "difference": {"mean": 0.45, "low": 0.4, "high": 0.5},
            }
            for number, (name, size) in enumerate(groups.items())
        },
        "hub": {
            "repo_id": "loopback/policy",
            "tracker_repo_id": "loopback/tracker",
            "endpoint": "http://127.0.0.1:1234",
            "commit": "fed321",
            "tracker_commit": "cba987",
            "reload_class": "LlamaForCausalLM of transformers",
            "reload_max_abs_diff": 1.5e-7,
            "tracker_is_equal": True,
            "table_is_equal": True,
            "probes": 529,
        },
    }


def make_metrics(tiers: dict[str, str], recipe: Recipe) -> dict:
    keys = ("temperature", "mask_ratio", "max_length", "rope_theta", "steps", "tokens", "loss_start", "loss_end")
    phases = [
        {"name": phase.name, "languages": len(phase.languages)}
        | dict(zip(keys, (phase.language_temperature, phase.mask_ratio, 128, 1e4, 20, 123456, 6.5, 5.5), strict=True))
        for phase in recipe.phases
    ]
    losses = {f"loss_{name}": loss for name, loss in CHECKPOINTS.items()}
    return {
        "seed": 1,
        "settings": {
            "seed": 1,
            "steps": STEPS,
            "zipf_exponent": 1.0,
            "heldout_mask_ratio": 0.15,
            "max_languages": None,
        },
        "versions": {"mmbert-hf": "0.1.0", "torch": "2.13.0"},
        "machine": {"cpu_count": 2, "platform": "Linux", "python": "3.11.7"},
        "corpus": {"name": "Declaration", "languages": len(tiers), "held_out_articles": [26, 27, 28, 29, 30]},
        "names": {code: f"Language <{code}>" for code in tiers} | {"fao": "Faroese", "tir": "Tigrinya"},
        "added_languages": list(ADDED),
        "parameters": 1_812_345,
        "phases": phases,
        "control_phases": [phases[-1] | {"languages": len(tiers) - 2, "loss_end": 5.625}],
        "heldout": make_heldout(tiers),
        "heldout_mean": {tier: dict(losses) for tier in ("pretrain", "extend", "decay", "added")},
        "bitext": {
            "accuracy": 0.35,
            "chance": 0.1,
            "accuracy_untrained": 0.17,
            "accuracy_before_decay": 0.3,
            "pairs": 90,
            "languages": 10,
            "items": 10,
            "per_language": {"xab": 0.4321, "fao": 0.25, "xaa": 0.5},
        },
        "hub": {
            "repo_id": "loopback/demo",
            "endpoint": "http://127.0.0.1:1234",
            "commit": "abc123",
            "files": [{"name": "model.safetensors", "bytes": 7654321}],
            "reload_with_package_max_abs_diff": 0.0,
            "reload_with_package_class": "MMBertForMaskedLM",
            "reload_without_package_max_abs_diff": 2.4e-7,
            "reload_without_package_class": "ModernBertForMaskedLM",
        },
        "prune": json.loads(json.dumps(make_prune())),
        "spo": make_spo(),
        "stages": {"run": 100.5, "measure": 20.0},
        "seconds": 120.5,
    }


class Page(HTMLParser):
    """Checks that tags nest, and collects attributes, sections and the rows of the table of languages."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.in_languages = False
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        values = dict(attrs)
        if tag == "table":
            self.in_languages = values.get("id") == "language-table"
        if tag == "tr":
            self.rows += [[]] if self.in_languages else []
        if self.in_languages and tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        self.in_languages &= tag != "table"

    def handle_data(self, data):
        if self.in_languages and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A report of 14 languages with nothing missing."""
    tiers = make_tiers(14)
    recipe = make_recipe(tiers)
    metrics, histories = make_metrics(tiers, recipe), make_histories(recipe)
    folder = tmp_path_factory.mktemp("report") / "my demo"
    result = write_report(folder, metrics, histories, recipe)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return SimpleNamespace(
        folder=folder,
        metrics=metrics,
        histories=histories,
        recipe=recipe,
        tiers=tiers,
        result=result,
        html=html,
        page=Page(html),
    )


def rerender(demo, **changes) -> str:
    """Return the page for the metrics with some parts replaced, or left out where the replacement is None."""
    metrics = {key: value for key, value in {**demo.metrics, **changes}.items() if value is not None}
    return render_page(metrics, {"loss_by_phase": "<svg></svg>"}, "demo")


def section(html: str, name: str) -> str:
    return re.search(rf'<section id="{name}">.*?</section>', html, re.DOTALL)[0]


def test_it_writes_metrics_plots_and_page(demo):
    drawn = [f"plots/{name}.png" for name in (*FIGURES, *SPO_FIGURES)]
    assert demo.result == {"report": "report.html", "plots": drawn}
    assert json.loads(json.dumps(demo.result)) == demo.result
    for name in demo.result["plots"]:
        assert (demo.folder / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in demo.folder.iterdir()) == ["metrics.json", "plots", "report.html"]


def test_metrics_json_holds_everything_in_a_sensible_order(demo):
    text = (demo.folder / "metrics.json").read_text(encoding="utf-8")
    written = json.loads(text)
    assert written == demo.metrics
    assert list(written)[:3] == ["seed", "seconds", "stages"]
    assert list(written["heldout"]) == sorted(demo.tiers)
    assert list(demo.metrics["heldout"]) != sorted(demo.tiers)
    assert list(written["bitext"]["per_language"]) == ["fao", "xaa", "xab"]
    assert '\n  "seconds": 120.5,\n' in text
    assert list(sort_metrics({"zebra": 1, "ape": 2, "seed": 3})) == ["seed", "ape", "zebra"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(demo, tmp_path, bad):
    metrics = deepcopy(demo.metrics)
    metrics["heldout"]["fao"]["loss_after_decay"] = bad
    with pytest.raises(ValueError, match=rf"metrics\.heldout\.fao\.loss_after_decay is {bad}"):
        write_report(tmp_path, metrics, demo.histories, demo.recipe)
    histories = deepcopy(demo.histories)
    histories["control"][6]["loss"] = bad
    with pytest.raises(ValueError, match=rf"histories\.control\.step 7\.loss is {bad}"):
        write_report(tmp_path, demo.metrics, histories, demo.recipe)
    assert list(tmp_path.iterdir()) == []


def test_other_types_are_refused_by_name(demo, tmp_path):
    with pytest.raises(TypeError, match=r"metrics\.bitext\.accuracy is a float32"):
        write_report(tmp_path, demo.metrics | {"bitext": {"accuracy": np.float32(0.5)}}, {}, demo.recipe)
    with pytest.raises(TypeError, match=r"metrics\.names has the key 3"):
        write_report(tmp_path, {"names": {3: "three"}}, {}, demo.recipe)


def test_every_language_has_its_row_with_all_numbers(demo):
    groups, head, *rows = [[cell.strip() for cell in row] for row in demo.page.rows]
    assert groups[:4] == ["code", "language", "tier", "masked tokens"]
    assert head == ["before", "after", "control", "change", *["before", "after", "control"] * 2]
    assert [row[0] for row in rows[:2]] == list(ADDED)
    assert sorted(row[0] for row in rows) == sorted(demo.tiers)
    by_code = {row[0]: row for row in rows}
    number = list(demo.tiers).index("tir")
    assert by_code["tir"] == [
        *("tir", "Tigrinya", "added", f"{1000 + number:,}"),
        *(f"{loss + number / 1000:.3f}" for loss in CHECKPOINTS.values()),
        "−0.750",
        *(f"{loss / 3:.3f}" for loss in CHECKPOINTS.values()),
        *(f"{100 / loss:.1f}\u00a0%" for loss in CHECKPOINTS.values()),
    ]
    assert by_code["xaa"][1] == "Language <xaa>"


def test_the_page_fetches_nothing(demo):
    loading = [
        (tag, name, value)
        for tag, name, value in demo.page.attributes
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster") and tag != "a"
    ]
    assert loading
    assert all(value.startswith("#") or value == "data:," for _, _, value in loading)
    assert "@import" not in demo.html
    assert set(re.findall(r"url\((.)", demo.html)) <= {"#"}
    assert not any(name.startswith("xmlns") for _, name, _ in demo.page.attributes)
    assert not any(tag in ("iframe", "object", "embed", "img") for tag, _, _ in demo.page.attributes)
    links = {value for tag, name, value in demo.page.attributes if (tag, name) == ("a", "href")}
    papers = {"https://arxiv.org/abs/2509.06888", "https://arxiv.org/abs/2509.13232"}
    assert {link for link in links if not link.startswith("#")} == papers
    assert ("meta", "http-equiv", "Content-Security-Policy") in demo.page.attributes


def test_references_inside_the_page_resolve_and_ids_are_unique(demo):
    assert len(set(demo.page.ids)) == len(demo.page.ids)
    targets = {value[1:] for _, name, value in demo.page.attributes if name == "href" and value.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", demo.html))
    targets |= {value for _, name, value in demo.page.attributes if name == "aria-labelledby"}
    assert {"heldout", "loss_by_phase-caption"} <= targets <= set(demo.page.ids)


def test_drawings_follow_the_colours_of_the_page(demo):
    drawings = re.findall(r"<svg.*?</svg>", demo.html, re.DOTALL)
    assert len(drawings) == len(FIGURES) + len(SPO_FIGURES)
    used = set(re.findall(r"var\(--(\w+)\)", "".join(drawings)))
    assert set(PALETTE) - used == set()
    for light, dark in PALETTE.values():
        assert f"{light};" in demo.html
        assert f"{dark};" in demo.html
        assert not any(light in drawing for drawing in drawings)
    assert not re.search(r"<(metadata|image)\b", "".join(drawings))


def test_the_first_screen_says_what_came_out(demo):
    top = demo.html[demo.html.index("<header>") : demo.html.index("</header>")]
    assert top.count("✓ yes") == 10
    assert "It fell from 6.512 to 5.762 nats per masked token (−0.750)" in top
    assert "After a control decay without Faroese it is 6.262, which is 0.500 higher." in top
    assert "It beats chance by a wide margin" in top
    assert "They differ by at most 0 with this package and 2.4e-7 with plain transformers: below" in top
    assert "on the Declaration in 14 languages, through 3 phases" in top


def test_the_first_screen_switches_with_the_numbers(demo):
    heldout = deepcopy(demo.metrics["heldout"])
    heldout["fao"]["loss_after_decay"] = 7.0
    html = rerender(
        demo,
        heldout=heldout,
        bitext=demo.metrics["bitext"] | {"accuracy": 0.15},
        hub=demo.metrics["hub"] | {"reload_without_package_max_abs_diff": 0.02},
    )
    top = html[: html.index("</header>")]
    assert (top.count("✓ yes"), top.count("✗ no")) == (7, 3)
    assert "It rose from 6.512 to 7.000" in top
    assert "It does not beat chance by a wide margin" in top
    assert "not below the threshold of 1e-5" in top
    assert "in 13 of 14 languages" in section(html, "heldout")
    assert "in 14 of 14 languages" in section(demo.html, "heldout")


def test_the_sections_hold_their_facts(demo):
    phases = section(demo.html, "phases")
    assert "control: decay" in phases
    assert "123,456" in phases
    assert "5.625" in phases
    assert "losses at different mask ratios are not comparable" in section(demo.html, "loss").lower()
    retrieval = section(demo.html, "retrieval")
    assert "43.2\u00a0%" in retrieval
    assert "90 ordered pairs" in " ".join(retrieval.split())
    hub = section(demo.html, "hub")
    for fact in (
        "loopback/demo",
        "http://127.0.0.1:1234",
        "abc123",
        "7,654,321",
        "ModernBertForMaskedLM",
        "below 1e-5",
    ):
        assert fact in hub
    assert "nothing about the real Hub" in hub
    how = section(demo.html, "how")
    assert f"mmbert demo --output-dir my demo --seed 1 --steps {STEPS}" not in how
    assert f"mmbert demo --output-dir &#39;my demo&#39; --seed 1 --steps {STEPS}" in how
    assert "Zipf's law with exponent\n1.0" in how
    for fact in ("no error bars across seeds", "declared", "2.13.0", "100.5", "3.11.7"):
        assert fact in how


def cells(html: str) -> list[list[str]]:
    """Return the text of the cells of each row of the first table."""
    table = html[html.index("<tbody>") : html.index("</tbody>")]
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


def test_the_pruned_embedder_is_compared_row_by_row(demo):
    prune = section(demo.html, "prune")
    difference = "−0.005 [−0.020, +0.012]"
    assert cells(prune) == [
        [
            "dense, as it came",
            "1,000,000",
            "250,000",
            "1.00",
            "1.00",
            "0.90 to 1.10",
            "0.400",
            "0.650",
            *[difference] * 2,
        ],
        [
            "dense, same training",
            "1,000,001",
            "250,000",
            "0.88",
            "0.90",
            "0.80 to 1.00",
            "0.420",
            "0.670",
            *[difference] * 2,
        ],
        ["pruned, one-shot", "500,002", "125,000", "0.75", "0.80", "0.70 to 0.90", "0.370", "0.620", *[difference] * 2],
        ["pruned, retrained", "500,003", "125,000", "0.62", "0.70", "0.60 to 0.80", "0.395", "0.645", "–", "–"],
    ]
    text = " ".join(prune.split())
    for fact in (
        *(
            "1,536 neurons",
            "became 640",
            "30,522 tokens 13,652",
            "<code>dai-normalized</code>",
            "150 training triplets",
        ),
        *("53.0 % of the same", "40 steps of 16 pairs", "300 living things, 301 other nouns", "owner/embedder"),
        *(
            "SentenceTransformer around BertModel",
            "of 64 texts: 1.2e-7",
            "apache-2.0",
            "carrier 0.1.0",
            "53aa",
            "def456",
        ),
        *("32 texts", "5 repeats", "Processor, 2 threads", "loopback/small", "ffn_width"),
    ):
        assert fact in text
    top = demo.html[: demo.html.index("</header>")]
    assert "It takes 0.5 MB on disk against 1.0 (50.0\u00a0%" in top
    assert "nDCG@10 on living things is 0.395: 98.8\u00a0% of the dense model" in top


def test_a_report_of_the_pruning_alone(demo, tmp_path):
    metrics = {"prune": demo.metrics["prune"], "stages": {"prune": 10.0}, "seconds": 10.0}
    assert write_report(tmp_path, metrics, {}, None) == {"report": "report.html", "plots": []}
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    Page(html)
    top = html[: html.index("</header>")]
    assert "trained from scratch" not in top
    assert "The embedder owner/embedder was pruned" in top
    assert top.count("✓ yes") == 3
    assert "mmbert demo --output-dir" in html
    assert "--only prune --seed 1" in html
    assert "not measured" in section(html, "heldout")


def test_the_policy_is_compared_group_by_group(demo):
    spo = section(demo.html, "spo")
    difference = "+0.450 [+0.400, +0.500]"
    assert cells(spo)[0] == [
        *("all", "529", "25.0\u00a0%", "70.0\u00a0%", difference),
        *("30.0\u00a0%", "80.0\u00a0%", "50.0\u00a0%", "90.0\u00a0%"),
    ]
    assert cells(spo)[3] == [
        *("unseen: never asked", "53", "28.0\u00a0%", "73.0\u00a0%", difference),
        *("33.0\u00a0%", "83.0\u00a0%", "53.0\u00a0%", "93.0\u00a0%"),
    ]
    assert [row[0].partition(":")[0] for row in cells(spo)] == ["all", "fitted", "rewarded", "unseen"]
    text = " ".join(spo.split())
    for fact in (
        *("335,744 parameters", "159 of 529 prompts for 60 steps", "probability of 33.5", "300 steps of 128 responses"),
        *(
            "38,400 in all",
            "47.0 % of the prompts",
            "16 answers to each prompt",
            "LlamaForCausalLM of transformers",
        ),
        *("on 529 prompts: 1.5e-7", "The columns of the table are the same", "its state is the same to the bit"),
        *("loopback/policy", "fed321", "loopback/tracker", "cba987", "num_samples"),
    ):
        assert fact in text
    assert spo.count("<svg") == len(SPO_FIGURES)
    assert "less than was asked" not in text
    top = demo.html[: demo.html.index("</header>")]
    assert "Its accuracy on all prompts rose from 25.0\u00a0% to 70.0\u00a0%" in top
    assert "lie 0.034 on average (criterion: at most 0.05)" in top


def test_a_policy_that_differs_is_said(demo):
    spo = deepcopy(demo.metrics["spo"])
    spo["hub"] |= {"tracker_is_equal": False, "table_is_equal": False}
    spo["fitting"]["is_reached"] = False
    html = section(rerender(demo, spo=spo), "spo")
    assert "The columns of the table are not the same" in html
    assert "its state is not the same" in html
    assert "less than was asked" in html


def test_a_report_of_the_policy_alone(demo, tmp_path):
    metrics = {"spo": demo.metrics["spo"], "stages": {"spo_fit": 10.0}, "seconds": 10.0}
    written = write_report(tmp_path, metrics, {}, None)
    assert written == {"report": "report.html", "plots": [f"plots/{name}.png" for name in SPO_FIGURES]}
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    Page(html)
    top = html[: html.index("</header>")]
    assert "trained from scratch" not in top
    assert "A small causal language model was fitted to a part of arithmetic modulo 23, improved by SPO" in top
    assert top.count("✓ yes") == 3
    assert "--only spo --seed 1" in html
    assert "not measured" in section(html, "prune")


@pytest.mark.parametrize("part", ["settings", "task", "policy", "fitting", "training", "values", "quality", "hub"])
def test_a_missing_part_of_the_policy_is_no_number(demo, part, tmp_path):
    spo = {key: value for key, value in demo.metrics["spo"].items() if key != part}
    write_report(tmp_path, {"spo": spo}, {}, None)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    Page(html)
    assert "None" not in section(html, "spo")
    assert "Undefined" not in html
    assert ("not measured" in html[: html.index("<nav")]) or part in (
        "settings",
        "task",
        "policy",
        "fitting",
        "training",
    )


@pytest.mark.parametrize(
    "part", ["footprint", "latency", "quality", "retraining", "embedder", "models", "hub", "width"]
)
def test_a_missing_part_of_the_pruning_is_no_number(demo, part):
    prune = {key: value for key, value in demo.metrics["prune"].items() if key != part}
    html = rerender(demo, prune=prune)
    Page(html)
    assert "None" not in section(html, "prune").partition("Settings of the pruning")[0]  # there it is a choice
    assert "Undefined" not in html


@pytest.mark.parametrize("key", ["phases", "heldout", "bitext", "hub", "prune", "spo"])
def test_a_missing_part_reads_not_measured_in_its_section(demo, key):
    name = {"bitext": "retrieval"}.get(key, key)
    assert "not measured" not in section(demo.html, name).replace("A dash: not measured", "")
    html = rerender(demo, **{key: None})
    Page(html)
    assert "not measured" in section(html, name)
    assert "<table" not in section(html, name)


def test_missing_details_read_not_measured(demo, tmp_path):
    heldout = deepcopy(demo.metrics["heldout"])
    del heldout["xaa"]["loss_after_control"]
    heldout["xab"]["loss_before_decay"] = None
    hub = {key: value for key, value in demo.metrics["hub"].items() if key != "reload_with_package_max_abs_diff"}
    nothing = dict.fromkeys(("settings", "control_phases", "stages"))
    write_report(tmp_path, demo.metrics | {"heldout": heldout, "hub": hub} | nothing, demo.histories, demo.recipe)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = {row[0]: row for row in Page(html).rows}
    assert rows["xaa"].count("–") == 1
    assert rows["xab"].count("–") == 2  # the loss and its change
    assert section(html, "hub").count("not measured") == 1
    assert "The control was not measured" in section(html, "phases")
    assert section(html, "how").count("not measured") == 3  # command, settings, stages


def test_nothing_at_all_is_still_a_page(demo, tmp_path):
    nulls = dict.fromkeys(demo.metrics)
    assert write_report(tmp_path / "nulls", nulls, {}, demo.recipe) == {"report": "report.html", "plots": []}
    assert write_report(tmp_path, {}, {}, demo.recipe) == {"report": "report.html", "plots": []}
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    Page(html)
    for name in ("phases", "loss", "schedules", "languages", "heldout", "retrieval", "hub", "prune", "spo", "how"):
        assert "not measured" in section(html, name)
    assert "✓" not in html[: html.index("</header>")]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {}


def test_figures_without_their_numbers_are_left_out(demo, tmp_path):
    keep = ("step", "loss")
    bare = {"run": [{key: record[key] for key in keep if key in record} for record in demo.histories["run"]]}
    write_report(tmp_path, demo.metrics | {"bitext": {"accuracy": 0.4}}, bare, demo.recipe)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    written = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert {*FIGURES, *SPO_FIGURES} - written == {"annealing", "learning_rate", "retrieval"}
    assert "Learning rate: <span" in section(html, "schedules")
    assert "<svg" in section(html, "loss")


def test_the_smallest_run_can_be_drawn(tmp_path):
    recipe = Recipe([Phase("pretrain", 0.5, ["eng"], 0.0, 0.0), Phase("decay", 0.5, ["eng", "fao"], 0.0, 0.0)])
    record = {"step": 1, "loss": 2.0, "learning_rate": 0.0, "mask_ratio": 0.0, "language_temperature": 0.0}
    heldout = {"fao": {"loss_before_decay": 1.0, "loss_after_decay": 1.0}}
    metrics = {"heldout": heldout, "added_languages": ["fao"], "bitext": {"accuracy": 0.0, "chance": 0.5}}
    result = write_report(tmp_path, metrics, {"run": [record]}, recipe)
    assert {path.split("/")[1] for path in result["plots"]} == {f"{name}.png" for name in FIGURES} - {
        "loss_in_decay.png"
    }


def test_smoothing_is_a_centred_mean_that_shrinks_at_the_ends():
    values = np.array([0.0, 3.0, 6.0, 0.0, 3.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 3.0, 3.0, 3.0, 1.5])
    np.testing.assert_allclose(smooth(values, 1), values)
    np.testing.assert_allclose(smooth(values, 99), [2.4] * 5)
    assert smooth(np.array([]), 3).shape == (0,)


def test_plot_data_reads_training_records_only(demo):
    data = PlotData(demo.metrics, demo.histories, demo.recipe)
    assert data.edges == [0, 48, 60, STEPS]
    steps, values = data.series("control", "mask_ratio", after=60)
    assert steps.tolist() == list(range(61, STEPS + 1))
    assert set(values) == {0.05}
    assert len(data.series("run", "train_runtime")[0]) == 0
    assert PlotData({}, demo.histories, demo.recipe).total_steps == STEPS


def test_the_command_is_quoted_and_complete():
    assert repeat_command({"settings": {"seed": 3, "steps": 9, "max_languages": 40}}, "demo") == (
        "mmbert demo --output-dir demo --only encoder --seed 3 --steps 9 --max-languages 40"
    )
    both = {"settings": {"seed": 3, "steps": 9}, "prune": {"settings": {"seed": 4}}}
    lines = [
        "mmbert demo --output-dir demo --only encoder --seed 3 --steps 9",
        "mmbert demo --output-dir demo --only prune --seed 4",
        "mmbert demo --output-dir demo --only spo --seed 3",
    ]
    assert repeat_command(both, "demo").splitlines() == lines[:2]
    assert repeat_command({**both, "spo": {"settings": {"seed": 3}}}, "demo").splitlines() == lines
    everything = {**both, "prune": {"settings": {"seed": 3}}, "spo": {"settings": {"seed": 3}}}
    assert repeat_command(everything, "demo") == "mmbert demo --output-dir demo --seed 3 --steps 9"
    assert repeat_command({"spo": {"settings": {"seed": 3}}}, "demo") == lines[2]
    assert repeat_command({"prune": {"settings": {"seed": 3}}}, "demo") == (
        "mmbert demo --output-dir demo --only prune --seed 3"
    )
    assert repeat_command({"settings": {"seed": 3}}, "demo") is None


def test_number_formats():
    assert [format_number(value) for value in (1234567, 0.05, None, True)] == ["1,234,567", "0.05", "–", "–"]
    assert [format_percent(value) for value in (0.1234, None)] == ["12.3\u00a0%", "–"]


def test_without_matplotlib_everything_but_the_plots_is_written(demo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written = write_report(tmp_path, demo.metrics, demo.histories, demo.recipe)
    assert written == {"report": "report.html", "plots": []}
    page = (tmp_path / "report.html").read_text()
    assert "not drawn: matplotlib is missing (pip install &#39;mmbert-hf[demo]&#39;)" in page
    assert "Faroese" in page
    assert "<svg" not in page
    assert json.loads((tmp_path / "metrics.json").read_text())["seed"] == demo.metrics["seed"]


def test_importing_the_module_imports_no_matplotlib():
    code = "import sys, mmbert_hf.demo.report; print({'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# What a reader would do: filter, then sort by change; the results go where --dump-dom shows them.
PROBE = """<script>
const codes = () => [...document.querySelectorAll("#language-table tbody tr:not([hidden]) th")].map(e => e.textContent);
const all = codes().length, filter = document.getElementById("filter-text"), tier = document.getElementById("filter-tier");
filter.value = "faro"; filter.dispatchEvent(new Event("input"));
const faroese = codes();
filter.value = ""; tier.value = "added"; tier.dispatchEvent(new Event("change"));
const added = codes(), count = document.getElementById("filter-count").textContent;
tier.value = ""; tier.dispatchEvent(new Event("change"));
const head = document.querySelector('[data-sort="3"] button');
head.click(); const fewest = codes()[0]; head.click(); const most = codes()[0];
parent.document.title = JSON.stringify({all, faroese, added, count, fewest, most,
  inner: innerWidth, scroll: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor});
</script>"""


def browse(html: str, width: int, scheme: int, folder) -> tuple[dict, list[str]]:
    """Show a page `width` CSS pixels wide in headless Chromium; return what its probe saw, and the console's lines."""
    # In a frame, since the browser's own window is never narrower than 500 pixels.
    frame = folder / "frame.html"
    frame.write_text(
        '<!DOCTYPE html><html><head><title></title><meta name="color-scheme" content="light dark"></head>'
        f'<body><iframe style="width: {width}px; height: 800px; border: 0" srcdoc="{escape(html)}"></iframe></body></html>',
        encoding="utf-8",
    )
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"),
        *(f"--blink-settings=preferredColorScheme={scheme}", "--enable-logging=stderr"),
        *("--virtual-time-budget=2000", "--dump-dom"),
    )
    done = subprocess.run([CHROMIUM, *flags, frame.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.+?)</title>", done.stdout, re.DOTALL)
    assert title, f"the page's probe did not run in {CHROMIUM}:\n{done.stderr}"
    return json.loads(unescape(title[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(
    CHROMIUM is None and "MMBERT_REQUIRE_BROWSER" not in os.environ,
    reason="no chromium, chromium-browser or google-chrome on PATH; with MMBERT_REQUIRE_BROWSER set this fails instead",
)
@pytest.mark.parametrize(
    ("width", "scheme", "background"),
    [(380, 1, "rgb(255, 255, 255)"), (320, 0, "rgb(20, 23, 27)")],
)
def test_the_page_in_a_browser(tmp_path, width, scheme, background):
    tiers = make_tiers(440)
    recipe = make_recipe(tiers)
    write_report(tmp_path / "demo", make_metrics(tiers, recipe), make_histories(recipe), recipe)
    html = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    seen, console = browse(html.replace("</body>", f"{PROBE}</body>"), width, scheme, tmp_path)
    assert console == []
    assert seen.pop("scroll") <= seen["inner"] == width
    assert seen == {
        "all": 440,
        "faroese": ["fao"],
        "added": ["fao", "tir"],
        "count": "2 of 440 languages",
        "fewest": next(iter(tiers)),
        "most": "tir",
        "inner": width,
        "background": background,
    }

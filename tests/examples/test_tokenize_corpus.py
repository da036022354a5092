"""The datatrove pipeline, run as a user runs it, on the Declaration in a dozen languages."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mmbert_hf.data import load_udhr
from mmbert_hf.data.sources import iter_documents
from mmbert_hf.data.table import load_table

pytest.importorskip("datatrove", reason="the pipeline is an example with a dependency of its own")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "data" / "tokenize_corpus.py"
LANGUAGES = ["eng", "deu", "dan", "fao", "isl", "fin", "tur", "rus", "ell", "jpn", "tir", "srp_Cyrl"]


def run(corpus, output, tokenizer_folder, *options, path=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    command = [sys.executable, str(SCRIPT), "--source", str(corpus), "--output", str(output), "--tasks", "2"]
    command += ["--tokenizer", str(tokenizer_folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=corpus)


def write_corpus(folder, per_language):
    """Three files, each with documents of every language; every third paragraph is in each."""
    folder.mkdir()
    for part in range(3):
        with (folder / f"part-{part}.jsonl").open("w", encoding="utf-8") as file:
            for language, texts in per_language.items():
                for text in texts[part::3]:
                    file.write(json.dumps({"text": text, "language": language, "rank": "evil"}) + "\n")


def read_shards(output):
    """Language -> tokens of every document, by file."""
    import pyarrow.parquet as pq

    shards = {}
    for path in sorted(output.glob("*/*.parquet")):
        table = pq.read_table(path)
        assert str(table.schema.field("input_ids").type) == "list<element: int32>"
        assert set(table["language"].to_pylist()) == {path.parent.name}
        shards[path.relative_to(output).as_posix()] = [tuple(ids) for ids in table["input_ids"].to_pylist()]
    return shards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    """Folder of the corpus, of the tokenizer, and the texts."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer.save_pretrained(folder / "tokenizer")
    texts = {code: declaration.paragraphs(range(1, 6)) for code, declaration in load_udhr(LANGUAGES).items()}
    write_corpus(folder / "texts", texts)
    return folder, texts


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder, _ = corpus
    output = tmp_path_factory.mktemp("output") / "tokens"
    done = run(folder / "texts", output, folder / "tokenizer", "--workers", "2")
    assert done.returncode == 0, done.stderr[-4000:]
    return output


def test_every_document_is_there_once(corpus, finished, tokenizer):
    _, texts = corpus
    shards = read_shards(finished)
    assert {name.split("/")[1] for name in shards} == {"00000.parquet", "00001.parquet"}
    for language, paragraphs in texts.items():
        expected = Counter(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in paragraphs)
        found = Counter(ids for name, rows in shards.items() if name.startswith(f"{language}/") for ids in rows)
        assert found == expected, language


def test_the_counts_are_those_of_the_shards(corpus, finished):
    _, texts = corpus
    counts = json.loads((finished / "counts.json").read_text())
    shards = read_shards(finished)
    assert set(counts["languages"]) == set(LANGUAGES)
    for language, count in counts["languages"].items():
        rows = [ids for name, rows in shards.items() if name.startswith(f"{language}/") for ids in rows]
        assert count == {"documents": len(texts[language]), "tokens": sum(map(len, rows)), "empty": 0}
    for task, languages in enumerate(counts["tasks"]):
        for language, count in languages.items():
            assert count["documents"] == len(shards[f"{language}/{task:05d}.parquet"])
    table = yaml.safe_load((finished / "table.yaml").read_text())["languages"]
    assert table["fao"] == {"source": "fao/*.parquet", "count": counts["languages"]["fao"]["tokens"]}
    assert set(table) == set(LANGUAGES)
    documents = list(iter_documents(load_table(finished / "table.yaml").entries["fao"].source))
    assert sum(map(len, documents)) == table["fao"]["count"]


def test_a_second_run_continues(corpus, finished):
    folder, _ = corpus
    before = read_shards(finished)
    times = {path: path.stat().st_mtime_ns for path in finished.glob("*/*.parquet")}
    # As if the second task had been killed: its shard is cut off and its mark of completion is missing.
    (finished / "logs/tokenize/completions/00001").unlink()
    (finished / "logs/tokenize/stats/00001.json").unlink()
    cut = finished / "fao/00001.parquet"
    cut.write_bytes(cut.read_bytes()[:100])
    counts = (finished / "counts.json").read_text()
    done = run(folder / "texts", finished, folder / "tokenizer", "--workers", "1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_shards(finished) == before
    assert (finished / "counts.json").read_text() == counts
    written = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert written == {"00001.parquet"}


def test_other_settings_are_refused(corpus, finished):
    folder, _ = corpus
    done = run(folder / "texts", finished, folder / "tokenizer", "--tasks", "3")
    assert done.returncode == 2
    assert "tasks was 2, is 3" in done.stderr


def test_damage_stops_the_run(tmp_path, corpus):
    folder, _ = corpus
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "Góðan dag", "language": "fao"}\n{"text": "Go\n')
    done = run(tmp_path / "texts", tmp_path / "tokens", folder / "tokenizer", "--tasks", "1", "--workers", "1")
    assert done.returncode != 0
    assert "a.jsonl, line 2: no JSON" in done.stderr
    assert not (tmp_path / "tokens" / "table.yaml").exists()


# Stands in for Slurm: runs the jobs of an array one after the other, at once.
SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", script).groups())
for job in range(first, last + 1):
    environment = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(job), "SLURM_NODELIST": "node1", "RUN_OFFSET": "0"}}
    done = subprocess.run(["bash", "-c", script], env=environment, stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)
with open({log!r}, "a") as file:
    file.write(script)
print("Submitted batch job 17")
"""


@pytest.mark.slow
def test_the_same_command_runs_on_slurm(tmp_path, corpus, finished):
    folder, _ = corpus
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "sbatch").write_text(SBATCH.format(python=sys.executable, log=str(tmp_path / "scripts")))
    (commands / "scontrol").write_text("#!/bin/bash\necho node1\n")
    srun = '#!/bin/bash\nwhile [[ $1 == -* || $1 =~ ^[0-9]+$ ]]; do shift; done\nexec "$@"\n'
    (commands / "srun").write_text(srun)
    for name in ("launch_pickled_pipeline", "merge_stats"):
        module = f"datatrove.tools.{name}"
        (commands / name).write_text(f'#!/bin/bash\nexec {sys.executable} -m {module} "$@"\n')
    for file in commands.iterdir():
        file.chmod(0o755)
    output = tmp_path / "tokens"
    done = run(
        folder / "texts", output, folder / "tokenizer", "--executor", "slurm", "--partition", "cpu", path=commands
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_shards(output) == read_shards(finished)
    assert json.loads((output / "counts.json").read_text()) == json.loads((finished / "counts.json").read_text())
    scripts = (tmp_path / "scripts").read_text()
    assert "--partition=cpu" in scripts
    assert "--mem-per-cpu=4G" in scripts

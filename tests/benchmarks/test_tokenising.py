import tokenising

from mmbert_hf import MMBertTokenizer
from mmbert_hf.data import load_udhr
from mmbert_hf.data.token_documents import TokenDocuments


def test_packing_reads_all_but_the_last_row(tokenizer):
    documents = TokenDocuments.from_arrays([[7] * length for length in (30, 60, 90, 20) * 50])
    with_ends = documents.num_tokens + 2 * len(documents)
    assert 0.9 * with_ends < tokenising.pack(documents, tokenizer, 100) <= with_ends


def test_all_figures_are_measured(tmp_path, monkeypatch):
    corpus = load_udhr(["dan", "fao", "isl"])
    monkeypatch.setattr(tokenising, "load_udhr", lambda: corpus)
    MMBertTokenizer.train([text.text(range(31)) for text in corpus.values()], vocab_size=900).save_pretrained(tmp_path)
    figures = tokenising.measure(str(tmp_path), repeats=1)
    assert list(figures) == [
        *("tokens", "tokenizer alone", "tokenising + store", "opening the store"),
        *("packing at 1024", "packing at 8192"),
    ]
    expected = MMBertTokenizer.from_pretrained(tmp_path)(
        [text.text(range(31)) for text in corpus.values()], add_special_tokens=False, verbose=False
    )["input_ids"]
    assert figures["tokens"] == sum(map(len, expected))
    assert all(figure > 0 for figure in figures.values())

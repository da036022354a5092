"""The special tokens of mmBERT and their ids: one place, no imports.

mmBERT keeps the order of the Gemma-2 vocabulary that it was built on. Tokenizers are checked against this table when they
are loaded, so models, collators and converters may rely on the ids. There is no separate [CLS] or [SEP]: a text is
`<bos> A <eos>`, a pair is `<bos> A <eos> B <eos>`, and `cls_token`, `sep_token` are names for `<bos>`, `<eos>`.
"""

PAD_TOKEN = "<pad>"
EOS_TOKEN = "<eos>"
BOS_TOKEN = "<bos>"
UNK_TOKEN = "<unk>"
MASK_TOKEN = "<mask>"

PAD_TOKEN_ID = 0
EOS_TOKEN_ID = 1
BOS_TOKEN_ID = 2
UNK_TOKEN_ID = 3
MASK_TOKEN_ID = 4

NUM_SPECIAL_TOKENS = 2  # around a text: <bos> in front, <eos> behind

#: Token to id, in the order of the ids.
SPECIAL_TOKEN_IDS = {
    PAD_TOKEN: PAD_TOKEN_ID,
    EOS_TOKEN: EOS_TOKEN_ID,
    BOS_TOKEN: BOS_TOKEN_ID,
    UNK_TOKEN: UNK_TOKEN_ID,
    MASK_TOKEN: MASK_TOKEN_ID,
}

#: U+2581, what a space becomes inside the vocabulary (not an underscore).
SPACE_SYMBOL = "\u2581"

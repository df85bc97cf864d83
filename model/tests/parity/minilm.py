"""Reference figures of all-MiniLM-L6-v2 from public implementations: tokens from `tokenizers`, hidden states from
`transformers` (BertModel; its Flax twin where torch is not installed), mean and norm as sentence-transformers takes them.

usage: minilm.py FOLDER > minilm.json
FOLDER holds model.safetensors, config.json, tokenizer.json
"""

import json
import sys

import numpy as np
from tokenizers import Tokenizer

TEXTS = [
    "I have not slept through a single night this week.",
    "Insomnia: the patient reports waking several times each night.",
    "The invoice for March has been paid.",
    "Schlaflosigkeit, Überforderung; naïve café — 你好, 世界!",
    "  Mixed CASE, contractions aren't hard;\ttabs\nand newlines, 3.14 % & hyper-hyphenated-words... 🙂 e\u0301 ",
    "a",
    "electroencephalographically " + "x" * 101 + " end",
    "It helps to name what you feel before you act on it. " * 36,
]


def hidden_states(folder, ids):
    """Last hidden states of one text alone, tokens × width."""
    try:
        import torch
        from transformers import BertModel

        model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        with torch.no_grad():
            return model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    except ImportError:
        from transformers import FlaxBertModel

        model = FlaxBertModel.from_pretrained(folder, from_pt=True, add_pooling_layer=False)
        return np.asarray(model(np.array([ids])).last_hidden_state[0], dtype=np.float64)


def main():
    folder = sys.argv[1]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts, vectors = [], []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        mean = hidden_states(folder, ids).mean(0)
        vector = mean / np.linalg.norm(mean)
        vectors.append(vector)
        texts.append({"text": text, "ids": ids, "begins": [round(float(number), 6) for number in vector[:16]]})
    cosines = [[round(float(c), 6) for c in row] for row in np.array(vectors) @ np.array(vectors).T]
    lines = ",\n".join(json.dumps(text) for text in texts)
    print(f'{{"texts": [\n{lines}\n], "cosines": {cosines}}}')


main()

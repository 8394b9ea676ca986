#!/usr/bin/env python3
"""Trains the tokenizer of the demo's base model, and writes its config.json beside it.

usage: make_tokenizer.py CORPUS.jsonl FOLDER      (needs: pip install tokenizers)

Byte-level BPE in the layout of Qwen2: words with the space before them, every digit alone, so that
numbers never seen can be copied digit by digit.
"""
import json
import pathlib
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 3072
CONTEXT = 512
END, TURN, TURN_END = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

TOKENIZER_CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "model_max_length": CONTEXT,
    "add_prefix_space": False,
    "bos_token": None,
    "eos_token": END,
    "pad_token": END,
    "unk_token": None,
    "additional_special_tokens": [TURN, TURN_END],
}

MODEL_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": CONTEXT,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}


def documents(corpus):
    with open(corpus, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: make_tokenizer.py CORPUS.jsonl FOLDER")
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(documents(sys.argv[1]), trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in (("tokenizer_config.json", TOKENIZER_CONFIG), ("config.json", MODEL_CONFIG),
                        ("generation_config.json", {"eos_token_id": 0, "do_sample": False})):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    print(f"{folder}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes a model directory that vLLM serves with `--load-format dummy`: a tokenizer, a chat template and a Qwen2
configuration, no weights (vLLM makes random ones, the same on every server that starts with the same seed).

The size is chosen so that prefill costs something on a CPU core (about 3 million parameters in the layers): a cached
prefix then shows up in the time to first token and not only in `cached_tokens`.

usage: make_model.py OUTDIR [--hidden 256] [--layers 4] [--vocab 2048] [--context 4096]
                     [--tokenizer DIR] [--architecture qwen2|llama]
"""

import argparse
import glob
import json
import os
import shutil

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
CHAT_TEMPLATE = os.path.join(HERE, "../fixtures/tokenize/chatml/chat_template.jinja")
# transformers gives every Qwen2 model NFC and this first split, whatever its tokenizer.json says: so say the same there,
# for others who read it.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")


def train_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level BPE tokenizer. Any English-like text at hand trains it: the standard library's own sources."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train(
        sorted(glob.glob(os.path.dirname(os.__file__) + "/*.py"))[:120],
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size; heads are 64 wide")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--tokenizer", help="take the tokenizer and template of this directory instead of training one")
    parser.add_argument("--architecture", choices=["qwen2", "llama"], default="qwen2",
                        help="transformers leaves the tokenizers of Llama models as they are")
    parser.add_argument("--context", type=int, default=4096, help="longest sequence, tokens")
    args = parser.parse_args()
    os.makedirs(args.outdir, exist_ok=True)

    def write(name: str, content: dict) -> None:
        with open(f"{args.outdir}/{name}", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)

    if args.tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(os.path.join(args.tokenizer, name), args.outdir)
    else:
        train_tokenizer(args.vocab).save(args.outdir + "/tokenizer.json")
        shutil.copy(CHAT_TEMPLATE, args.outdir)
        write("tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": args.context,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
        })
    write("generation_config.json", {"eos_token_id": 2, "pad_token_id": 0})
    write("config.json", {
        "architectures": ["Qwen2ForCausalLM" if args.architecture == "qwen2" else "LlamaForCausalLM"],
        "model_type": args.architecture,
        "torch_dtype": "bfloat16",
        "vocab_size": Tokenizer.from_file(args.outdir + "/tokenizer.json").get_vocab_size(),
        "hidden_size": args.hidden,
        "intermediate_size": 3 * args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // 64,
        "num_key_value_heads": 1,
        "max_position_embeddings": args.context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
    })


if __name__ == "__main__":
    main()

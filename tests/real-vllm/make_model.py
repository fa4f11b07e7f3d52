#!/usr/bin/env python3
"""Writes a model directory that vLLM serves with `--load-format dummy`: a tokenizer, a chat template and a Qwen2
configuration, no weights (vLLM makes random ones, the same on every server that starts with the same seed).

The size is chosen so that prefill costs something on a CPU core (about 3 million parameters in the layers): a cached
prefix then shows up in the time to first token and not only in `cached_tokens`.

usage: make_model.py OUTDIR [--hidden 256] [--layers 4] [--vocab 2048] [--context 4096]
"""

import argparse
import glob
import json
import os

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size; heads are 64 wide")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--context", type=int, default=4096, help="longest sequence, tokens")
    args = parser.parse_args()
    os.makedirs(args.outdir, exist_ok=True)

    # Any English-like text at hand trains the tokenizer: the standard library's own sources.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train(
        sorted(glob.glob(os.path.dirname(os.__file__) + "/*.py"))[:120],
        trainers.BpeTrainer(
            vocab_size=args.vocab,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(args.outdir + "/tokenizer.json")

    def write(name: str, content: dict) -> None:
        with open(f"{args.outdir}/{name}", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)

    write("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": args.context,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    })
    write("generation_config.json", {"eos_token_id": 2, "pad_token_id": 0})
    write("config.json", {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": "bfloat16",
        "vocab_size": tokenizer.get_vocab_size(),
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

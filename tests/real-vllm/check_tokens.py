#!/usr/bin/env python3
"""Compares the gateway's own tokens with those that a vLLM server gives to its engine, one line per request that differs.

The requests are those of record_tokens.py, without templates of their own; `warmpath tokenize` reads the model directory
that the server reads. Then, through the gateway: its count of a few prompts beside the `usage` of their responses, and of
growing conversations the tokens that it expects in the worker's cache beside those that the worker found there.

usage: check_tokens.py --warmpath BINARY --model-directory DIR --worker URL --gateway URL --admin URL
"""

import argparse
import json
import subprocess
import sys
import urllib.request

from record_tokens import chats, completions, post

USAGE_PROMPTS = 8
CONVERSATIONS = 4
TURNS = 5


def engine_tokens(worker: str, body: dict) -> list[int] | None:
    """What the server gave its engine; none if it refused."""
    chat = "messages" in body
    path = "/v1/chat/completions" if chat else "/v1/completions"
    status, answer = post(worker, path, {**body, "max_tokens": 1, "return_token_ids": True})
    if status != 200:
        return None
    return answer["prompt_token_ids"] if chat else answer["choices"][0]["prompt_token_ids"]


def is_text(body: dict) -> bool:
    """Whether a tokenizer has anything to do: token ids are taken as they are."""
    prompt = body.get("prompt")
    return not isinstance(prompt, list) or isinstance(prompt[0], str)


def prompt_tokens(admin: str) -> float:
    with urllib.request.urlopen(admin + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("warmpath_prompt_tokens_total "))


def expected_and_found(gateway: str) -> list[tuple[int, int]]:
    """Cached tokens of each turn of some conversations: the gateway's expectation, and the server's `usage`."""
    pairs = []
    for conversation in range(CONVERSATIONS):
        messages = [{"role": "system", "content": f"Conversation {conversation}. " + "Some common rules. " * 20}]
        for turn in range(TURNS):
            messages.append({"role": "user", "content": f"Question {turn}: " + "what does this value mean? " * 8})
            body = {"model": "small", "messages": messages, "max_tokens": 24}
            request = urllib.request.Request(
                gateway + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                matched, answer = int(response.headers["x-warmpath-matched-tokens"]), json.load(response)
            pairs.append((matched, answer["usage"]["prompt_tokens_details"]["cached_tokens"]))
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] or ""})
    return pairs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--warmpath", "--model-directory", "--worker", "--gateway", "--admin"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()

    bodies = [{"model": "small", **body} for body in chats() + completions() if is_text(body)]
    lines = "\n".join(json.dumps(body) for body in bodies)
    command = [args.warmpath, "tokenize", args.model_directory]
    said = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    equal = refused = unknown = different = 0
    for body, line in zip(bodies, said.splitlines(), strict=True):
        ours, theirs = json.loads(line), engine_tokens(args.worker, body)
        if theirs is None:
            refused += 1
        elif "error" in ours:
            unknown += 1
            print(f"  not known here ({ours['error']}): {json.dumps(body)[:160]}")
        elif ours["tokens"] == theirs:
            equal += 1
        else:
            different += 1
            print(f"  DIFFERENT, {ours['count']} for {len(theirs)}: {json.dumps(body)[:160]}")
    print(f"tokens: {equal} prompts equal, {different} different, {unknown} not known here, {refused} refused by vLLM")

    wrong = 0
    for body in chats()[:USAGE_PROMPTS]:
        before = prompt_tokens(args.admin)
        status, answer = post(args.gateway, "/v1/chat/completions", {"model": "small", "max_tokens": 1, **body})
        counted = prompt_tokens(args.admin) - before
        if status == 200 and counted != answer["usage"]["prompt_tokens"]:
            wrong += 1
            print(f"  WRONG, {counted} for {answer['usage']['prompt_tokens']}: {json.dumps(body)[:160]}")
    print(f"tokens: the gateway's count beside the usage of {USAGE_PROMPTS} responses, {wrong} wrong")

    pairs = expected_and_found(args.gateway)
    equal_pairs = sum(expected == found for expected, found in pairs)
    print(f"tokens: of {len(pairs)} turns, {equal_pairs} had just as many cached tokens as the gateway expected")
    # A turn may come before the events of the turn before it.
    wrong += equal_pairs < 0.8 * len(pairs)
    return int(different > 0 or wrong > 0 or unknown > 1 or equal < 50)


if __name__ == "__main__":
    sys.exit(main())

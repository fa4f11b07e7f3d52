#!/usr/bin/env python3
"""What the gateway knows of the servers' KV caches by their KV events, held against what vLLM itself then reports.

usage: kv_events_check.py warm  --worker URL ...
       kv_events_check.py check --gateway URL --admin URL --worker URL ...

`warm` sends conversations straight to the servers, before there is a gateway. `check` waits until a gateway that was
started after that says that it knows every cache (the time is printed), then sends the conversations through it, and
compares `x-warmpath-matched-tokens` with `usage.prompt_tokens_details.cached_tokens` of the same answer: for prompts from
before the gateway, for new turns, for new prompts, and after `/reset_prefix_cache` on idle servers. Prompts are token ids.
"""

import argparse
import json
import random
import sys
import time
import urllib.request

PROMPTS_PER_WORKER = 6
BLOCK = 16
KNOWN_WITHIN_S = 2.0
# A scrape, and the time of one request.
FORGOTTEN_WITHIN_S = 2.0


def post(url: str, body: dict | None = None):
    """(headers, JSON)"""
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers, json.loads(response.read() or b"null")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read().decode()


def complete(url: str, prompt: list[int]):
    """(headers, cached tokens, output tokens)"""
    body = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True, "temperature": 0, "return_token_ids": True}
    headers, answer = post(url + "/v1/completions", body)
    return headers, answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["choices"][0]["token_ids"]


def prompt(worker: int, number: int) -> list[int]:
    """Lengths on both sides of a whole number of blocks; one third is shared by all prompts of a worker."""
    shared, own = random.Random(worker), random.Random(f"{worker} {number}")
    length = BLOCK * (4 + 5 * number) + (0, 1, 7)[number % 3]
    return [shared.randrange(10, 900) for _ in range(length // 3)] + [
        own.randrange(10, 900) for _ in range(length - length // 3)
    ]


def every_prompt(workers: int):
    return [(worker, prompt(worker, number)) for worker in range(workers) for number in range(PROMPTS_PER_WORKER)]


def series(admin: str, name: str) -> dict[str, float]:
    lines = [line for line in get(admin + "/metrics").splitlines() if line.startswith(name + "{")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def await_exact(admin: str, workers: int) -> float:
    """Seconds that the gateway took, from its own start, as far as can be seen from here."""
    started = time.monotonic()
    while True:
        states = series(admin, "warmpath_kv_events_state")
        if sum(value for name, value in states.items() if 'state="exact"' in name) == workers:
            return time.monotonic() - started
        if time.monotonic() - started > KNOWN_WITHIN_S:
            sys.exit(f"FAIL  not all caches are known after {KNOWN_WITHIN_S} s: {states}")
        time.sleep(0.01)


class Comparison:
    def __init__(self, gateway: str):
        self.gateway = gateway
        self.failed = 0

    def run(self, what: str, prompts: list[list[int]], least: int = 0) -> list[list[int]]:
        """Sends the prompts one after another; they with their outputs are returned: the next turns."""
        wrong, total, nexts = [], 0, []
        for tokens in prompts:
            headers, cached, output = complete(self.gateway, tokens)
            matched = int(headers["x-warmpath-matched-tokens"])
            if (matched, headers["x-warmpath-match"]) != (cached, "exact"):
                wrong.append(f"{matched} {headers['x-warmpath-match']} for {cached} of {len(tokens)}")
            total += cached
            nexts.append(tokens + output)
        is_wrong = bool(wrong) or total < least
        self.failed += is_wrong
        print(f"{'FAIL' if is_wrong else 'ok  '}  {what}: {len(prompts)} prompts, {total} tokens cached {wrong or ''}")
        return nexts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["warm", "check"])
    parser.add_argument("--worker", action="append", required=True)
    parser.add_argument("--gateway")
    parser.add_argument("--admin")
    args = parser.parse_args()
    if args.mode == "warm":
        for worker, tokens in every_prompt(len(args.worker)):
            complete(args.worker[worker], tokens)
        return 0

    took = await_exact(args.admin, len(args.worker))
    print(f"ok    every cache is known {took:.2f} s after the gateway was there")
    prompts = [tokens for _, tokens in every_prompt(len(args.worker))]
    compare = Comparison(args.gateway)
    nexts = compare.run("prompts from before the gateway", prompts, least=sum(map(len, prompts)) * 8 // 10)
    compare.run("their next turns", [tokens + [7] * 9 for tokens in nexts], least=sum(map(len, prompts)))
    compare.run("new prompts", [prompt(100 + worker, 3) for worker in range(8)])

    for worker in args.worker:
        post(worker + "/reset_prefix_cache")
    time.sleep(FORGOTTEN_WITHIN_S)
    compare.run("after a reset while idle", prompts[::5])
    compare.run("and again", prompts[::5], least=1)

    checks = series(args.admin, "warmpath_kv_hash_checks_total")
    matches, mismatches = (
        sum(value for name, value in checks.items() if f'result="{result}"' in name) for result in ("match", "mismatch")
    )
    is_wrong = mismatches > 0 or matches == 0
    print(f"{'FAIL' if is_wrong else 'ok  '}  {matches:.0f} block hashes recomputed, {mismatches:.0f} wrong")
    return 1 if compare.failed or is_wrong else 0


if __name__ == "__main__":
    sys.exit(main())

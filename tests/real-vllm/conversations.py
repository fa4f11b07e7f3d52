#!/usr/bin/env python3
"""Multi-turn conversations with the `openai` client: how much of each prompt came from a prefix cache, and how soon the
first token came.

  conversations.py run --base-url http://127.0.0.1:8080/v1 --label warm --out FILE     one run, appended to FILE as JSONL
  conversations.py table FILE...                                                       all runs in FILE..., by label

A run is `--conversations` conversations of `--turns` turns, `--concurrency` of them at a time; each begins with one of
`--tenants` shared system prompts and sends its whole history with every turn, as chat clients do. By turns a
conversation is a streamed chat, a chat that is not streamed, or plain completions, every second one streamed. The same
seed gives the same words and, the sampling being greedy, nearly the same answers. `cache_salt` is new for each run, so
no run finds what another left in a cache.

cached tokens   usage.prompt_tokens_details.cached_tokens, as vLLM counts them
TTFT            from the call to the first event that carries text, streams only
worker          response header x-warmpath-worker
"""

import argparse
import asyncio
import collections
import dataclasses
import json
import math
import random
import statistics
import time
import uuid

import openai

WORDS = (
    "the request returns a list of values when file object is not found in module path and class method raises error "
    "if name string has no default type for this function argument while loop reads data from socket with timeout"
).split()


@dataclasses.dataclass
class Outcome:
    """One request. Times in seconds; `ttft_s` is None unless streamed; `error` is None when all went well."""

    label: str
    kind: str
    stream: bool
    conversation: int
    turn: int
    worker: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft_s: float | None = None
    total_s: float = 0.0
    error: str | None = None


def words(source: random.Random, count: int) -> str:
    return " ".join(source.choice(WORDS) for _ in range(count))


class Run:
    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.salt = uuid.uuid4().hex
        self.client = openai.AsyncOpenAI(base_url=args.base_url, api_key="none", max_retries=0, timeout=120)
        source = random.Random(args.seed)
        self.tenants = [f"You answer for shop {n}. " + words(source, args.system_words) for n in range(args.tenants)]
        self.outcomes: list[Outcome] = []

    async def everything(self) -> list[Outcome]:
        slots = asyncio.Semaphore(self.args.concurrency)

        async def one(number: int) -> None:
            async with slots:
                await self.conversation(number)

        await asyncio.gather(*(one(n) for n in range(self.args.conversations)))
        return self.outcomes

    async def conversation(self, number: int) -> None:
        source = random.Random(self.args.seed * 100_003 + number)
        kind = "completions" if number % 4 == 3 else "chat"
        stream = number % 4 in (0, 1) or number % 8 == 3
        messages = [{"role": "system", "content": self.tenants[number % len(self.tenants)]}]
        for turn in range(self.args.turns):
            messages.append({"role": "user", "content": words(source, source.randint(40, 160))})
            outcome = Outcome(self.args.label, kind, stream, number, turn)
            self.outcomes.append(outcome)
            try:
                answer = await self.ask(outcome, messages, max_tokens=source.randint(16, 48))
            except openai.OpenAIError as error:
                outcome.error = f"{type(error).__name__}: {error}"
                return
            messages.append({"role": "assistant", "content": answer})
            await asyncio.sleep(source.random() * self.args.think_s)

    async def ask(self, outcome: Outcome, messages: list[dict], max_tokens: int) -> str:
        """Sends one turn, fills in the outcome, and returns the answer's text."""
        options = {
            "model": self.args.model,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": outcome.stream,
            "extra_body": {"ignore_eos": True, "cache_salt": self.salt},
        }
        if outcome.stream:
            options["stream_options"] = {"include_usage": True}
        started = time.perf_counter()
        if outcome.kind == "chat":
            api = self.client.chat.completions.with_raw_response
            raw = await api.create(messages=messages, **options)
        else:
            api = self.client.completions.with_raw_response
            raw = await api.create(prompt="\n".join(m["content"] for m in messages), **options)
        outcome.worker = raw.headers.get("x-warmpath-worker", "direct")
        parsed = raw.parse()
        parts: list[str] = []
        if outcome.stream:
            usage = None
            async for event in parsed:
                usage = event.usage or usage
                if event.choices:
                    choice = event.choices[0]
                    parts.append((choice.delta.content if outcome.kind == "chat" else choice.text) or "")
                    if outcome.ttft_s is None:
                        outcome.ttft_s = time.perf_counter() - started
            if usage is None:
                outcome.error = "stream ended without usage"
        else:
            usage = parsed.usage
            choice = parsed.choices[0]
            parts.append((choice.message.content if outcome.kind == "chat" else choice.text) or "")
        outcome.total_s = time.perf_counter() - started
        if usage is not None:
            outcome.prompt_tokens, outcome.output_tokens = usage.prompt_tokens, usage.completion_tokens
            outcome.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0
        return "".join(parts)


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def table(paths: list[str]) -> None:
    by_label: dict[str, list[dict]] = collections.defaultdict(list)
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                outcome = json.loads(line)
                by_label[outcome["label"]].append(outcome)
    columns = ["policy", "requests", "errors", "prompt tokens", "cached", "TTFT mean", "p50", "p90", "total mean", "requests per worker"]
    rows = []
    for label, outcomes in by_label.items():
        good = [o for o in outcomes if o["error"] is None]
        ttft = [o["ttft_s"] * 1000 for o in good if o["ttft_s"] is not None]
        prompt = sum(o["prompt_tokens"] for o in good)
        spread = collections.Counter(o["worker"] for o in good)
        rows.append([
            label,
            str(len(outcomes)),
            str(len(outcomes) - len(good)),
            f"{prompt:,}",
            f"{100 * sum(o['cached_tokens'] for o in good) / max(prompt, 1):.1f} %",
            f"{statistics.fmean(ttft) if ttft else math.nan:.0f} ms",
            f"{percentile(ttft, 0.5):.0f} ms",
            f"{percentile(ttft, 0.9):.0f} ms",
            f"{1000 * statistics.fmean([o['total_s'] for o in good]) if good else math.nan:.0f} ms",
            " / ".join(str(spread[name]) for name in sorted(spread)),
        ])
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
    for label, outcomes in by_label.items():
        for text, count in collections.Counter(o["error"] for o in outcomes if o["error"]).most_common(5):
            print(f"{label}: {count} x {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    run.add_argument("--model", default="small")
    run.add_argument("--label", required=True, help="usually the policy's name")
    run.add_argument("--out", required=True, help="JSONL, appended to")
    run.add_argument("--conversations", type=int, default=30)
    run.add_argument("--turns", type=int, default=8)
    run.add_argument("--concurrency", type=int, default=30, help="conversations at a time")
    run.add_argument("--tenants", type=int, default=4, help="different system prompts")
    run.add_argument("--system-words", type=int, default=300)
    run.add_argument("--think-s", type=float, default=8.0, help="longest pause between turns")
    run.add_argument("--seed", type=int, default=1)
    commands.add_parser("table").add_argument("files", nargs="+")
    args = parser.parse_args()
    if args.command == "table":
        table(args.files)
        return 0
    started = time.perf_counter()
    outcomes = asyncio.run(Run(args).everything())
    with open(args.out, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(outcome)) + "\n" for outcome in outcomes)
    failed = sum(outcome.error is not None for outcome in outcomes)
    print(f"{args.label}: {len(outcomes)} requests, {failed} errors, {time.perf_counter() - started:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

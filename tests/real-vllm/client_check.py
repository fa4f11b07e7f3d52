#!/usr/bin/env python3
"""How an OpenAI-compatible address behaves towards the `openai` client: one line per check, exit status 1 if any failed.

usage: client_check.py [--base-url http://127.0.0.1:8080/v1] [--model NAME] [--gateway] [--worker URL ...]

Works against vLLM, vllm-sim or the gateway in front of either. `--gateway` also asserts the gateway's own headers;
`--worker` names the servers behind it, whose metrics then prove that a cancelled request has stopped there too.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request

import openai

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Target:
    def __init__(self, args: argparse.Namespace):
        self.client = openai.OpenAI(base_url=args.base_url, api_key="none", max_retries=0, timeout=60)
        self.root = args.base_url.removesuffix("/v1")
        self.gateway = args.gateway
        self.workers = args.worker
        self.model = args.model or self.client.models.list().data[0].id

    def chat(self, text: str = "Say hello.", **options):
        messages = options.pop("messages", [{"role": "user", "content": text}])
        return {"model": self.model, "messages": messages, "max_tokens": 12, **options}

    def post(self, path: str, body: bytes, headers: dict | None = None):
        """A raw request: (status, headers, body)."""
        request = urllib.request.Request(self.root + path, body, {"content-type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()


def running(worker: str) -> float:
    """What the worker's own metrics say it is generating now, requests (running and waiting)."""
    with urllib.request.urlopen(worker + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def expect_error(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


@check
def models_are_listed(target: Target) -> None:
    assert target.model in [model.id for model in target.client.models.list().data]


@check
def chat_answers_at_once(target: Target) -> None:
    answer = target.client.chat.completions.create(**target.chat(extra_body={"ignore_eos": True}))
    assert answer.object == "chat.completion" and answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length", answer.choices[0].finish_reason
    assert answer.usage.completion_tokens == 12, answer.usage


@check
def chat_streams(target: Target) -> None:
    options = target.chat(stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True})
    events = list(target.client.chat.completions.create(**options))
    assert events[0].choices[0].delta.role == "assistant"
    assert any(event.choices and event.choices[0].delta.content for event in events)
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "length"
    assert not events[-1].choices and events[-1].usage.completion_tokens == 12
    assert len({event.id for event in events}) == 1


@check
def streamed_and_whole_answers_agree(target: Target) -> None:
    options = {"temperature": 0, "seed": 7, "extra_body": {"ignore_eos": True}}
    whole = target.client.chat.completions.create(**target.chat("Count to five.", **options))
    events = target.client.chat.completions.create(**target.chat("Count to five.", stream=True, **options))
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content


@check
def completions_take_text_lists_and_token_ids(target: Target) -> None:
    create = target.client.completions.create
    assert create(model=target.model, prompt="Once upon", max_tokens=4).choices[0].text is not None
    assert len(create(model=target.model, prompt=["a b c", "d e f"], max_tokens=4).choices) == 2
    assert create(model=target.model, prompt=[5, 6, 7, 8], max_tokens=4).usage.prompt_tokens == 4
    events = list(create(model=target.model, prompt="Once upon", max_tokens=4, stream=True))
    assert events and events[0].object == "text_completion"


@check
def multi_part_content_and_system_prompt(target: Target) -> None:
    messages = [
        {"role": "system", "content": "Be brief. \u00fc \u4f60\u597d \"quoted\" \\ \n"},
        {"role": "user", "content": [{"type": "text", "text": "Part one."}, {"type": "text", "text": "Part two."}]},
    ]
    answer = target.client.chat.completions.create(**target.chat(messages=messages))
    assert answer.usage.prompt_tokens > 10


@check
def a_repeated_prompt_is_cached(target: Target) -> None:
    text = f"{time.time_ns()} " + "all work and no play makes jack a dull boy " * 40
    for _ in range(2):
        usage = target.client.chat.completions.create(**target.chat(text)).usage
    share = usage.prompt_tokens_details.cached_tokens / usage.prompt_tokens
    assert share > 0.9, f"{share:.2f} of the prompt cached the second time"


@check
def tools_are_passed_on(target: Target) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "lookup",
            "description": "Looks a word up",
            "parameters": {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]},
        },
    }
    answer = target.client.chat.completions.create(**target.chat(tools=[tool], tool_choice="auto"))
    message = answer.choices[0].message
    assert message.content is not None or message.tool_calls


@check
def unknown_model_is_404(target: Target) -> None:
    error = expect_error(
        openai.NotFoundError,
        lambda: target.client.chat.completions.create(**(target.chat() | {"model": "no-such-model"})),
    )
    assert "no-such-model" in str(error.message), error.message


@check
def bad_parameters_are_400(target: Target) -> None:
    expect_error(
        openai.BadRequestError, lambda: target.client.chat.completions.create(**target.chat(temperature=-1.0))
    )
    # and the same before a stream: a plain JSON error, not an event
    expect_error(
        openai.BadRequestError,
        lambda: list(target.client.chat.completions.create(**target.chat(stream=True, temperature=-1.0))),
    )


@check
def a_body_that_is_not_json_is_400(target: Target) -> None:
    for body in (b"{not json", b""):
        status, headers, answer = target.post("/v1/chat/completions", body)
        assert status == 400, f"{status} for {body!r}"
        assert headers["content-type"].startswith("application/json")
        error = json.loads(answer)["error"]
        assert {"message", "type"} <= error.keys(), error


@check
def unknown_fields_pass(target: Target) -> None:
    target.client.chat.completions.create(**target.chat(extra_body={"warmpath_unknown": {"a": [1, 2]}}))


@check
def unknown_paths_and_methods_are_answered(target: Target) -> None:
    status, _, _ = target.post("/v1/no/such/path", b"{}")
    assert status == 404, status
    request = urllib.request.Request(target.root + "/v1/chat/completions", method="GET")
    error = expect_error(urllib.error.HTTPError, lambda: urllib.request.urlopen(request, timeout=10))
    assert error.code == 405, error.code


@check
def cancelling_a_stream_frees_the_worker(target: Target) -> None:
    options = target.chat("Tell a very long story.", max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
    stream = target.client.chat.completions.create(**options)
    for seen, _ in enumerate(stream):
        if seen == 5:
            break
    stream.close()
    deadline = time.monotonic() + 1.0
    while target.workers and (left := sum(running(worker) for worker in target.workers)) > 0:
        assert time.monotonic() < deadline, f"{left:.0f} requests still run 1 s after the client left"
        time.sleep(0.05)
    target.client.chat.completions.create(**target.chat())


@check
def a_client_timeout_frees_the_worker(target: Target) -> None:
    options = target.chat("Tell a very long story.", max_tokens=3000, extra_body={"ignore_eos": True})
    expect_error(
        openai.APITimeoutError, lambda: target.client.with_options(timeout=0.5).chat.completions.create(**options)
    )
    deadline = time.monotonic() + 1.0
    while target.workers and (left := sum(running(worker) for worker in target.workers)) > 0:
        assert time.monotonic() < deadline, f"{left:.0f} requests still run 1 s after the client left"
        time.sleep(0.05)


@check
def raw_headers(target: Target) -> None:
    raw = target.client.chat.completions.with_raw_response.create(**target.chat())
    assert raw.headers["content-type"] == "application/json", raw.headers
    raw = target.client.chat.completions.with_raw_response.create(**target.chat(stream=True))
    assert raw.headers["content-type"].startswith("text/event-stream"), raw.headers
    list(raw.parse())
    if target.gateway:
        for name in ("x-warmpath-worker", "x-warmpath-reason", "x-warmpath-policy", "x-request-id"):
            assert raw.headers.get(name), f"{name} is missing"


@check
def request_id_is_kept(target: Target) -> None:
    status, headers, _ = target.post(
        "/v1/chat/completions", json.dumps(target.chat()).encode(), {"x-request-id": "check-1"}
    )
    assert status == 200
    if target.gateway:
        assert headers["x-request-id"] == "check-1", headers["x-request-id"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--model", help="default: the first that is listed")
    parser.add_argument("--gateway", action="store_true", help="assert the gateway's headers")
    parser.add_argument("--worker", action="append", default=[], help="a server behind the address (repeatable)")
    target = Target(parser.parse_args())
    failed = 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        try:
            function(target)
            print(f"ok    {name}")
        except Exception as error:  # every check reports, whatever went wrong in it
            failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

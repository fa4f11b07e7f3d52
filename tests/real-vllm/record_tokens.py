#!/usr/bin/env python3
"""Asks a vLLM server which tokens it makes of a set of varied requests, and writes one JSON line for each:

    {"path": ..., "template": file or null, "request": body, "tokens": [...], "tokenize": true | false}
    {"path": ..., "template": ..., "request": body, "error": message}

`tokens` are those that the engine was given (`return_token_ids` of the request itself); `tokenize` says whether the
server's `/tokenize` gives the same for the same body. What is recorded is compared with the gateway's own tokens in
router-agent/src/tokenize/recordings.rs.

usage: record_tokens.py --base-url http://127.0.0.1:8001 --template FILE [--model small] > recordings.jsonl

The server must be started with `--trust-request-chat-template`: some requests bring FILE as their template.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather <now> & soon, in \u00b0C \u2013 \u5929\u6c14",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "A \"city\""},
        "days": {"type": "integer", "minimum": 1, "maximum": 1e3, "default": 1.5},
        "units": {"enum": ["c", "f", None, True]}}}}}
BARE = {"type": "function", "function": {"name": "ping"}}
ODD = {"function": {"parameters": {"z": 1, "a": {"c": [], "b": {}}}, "strict": True, "name": "odd", "extra": 1}, "type": "function", "note": "x"}
SYSTEM = {"role": "system", "content": "You are a helper.\n  Be brief.  "}
USER = {"role": "user", "content": "Hello there, how are you?"}
ANSWER = {"role": "assistant", "content": "Fine, thanks. And you?"}
MORE = {"role": "user", "content": "def main(args):\n    return 0  # 1234567 \u00e9\u00e8 e\u0301 \u4f60\u597d \U0001f600\t\r\n\r\nend"}


def call(arguments, call_id: str = "call_123456789", name: str = "get_weather", **more) -> dict:
    return {"type": "function", "id": call_id, **more, "function": {"arguments": arguments, "name": name}}


def text(*parts: str) -> list[dict]:
    return [{"type": "text", "text": part} for part in parts]


def chats() -> list[dict]:
    called = [USER, {"role": "assistant", "content": None, "tool_calls": [call('{"days": 2, "city": "K\u00f6ln"}')]},
              {"role": "tool", "tool_call_id": "call_123456789", "content": "{\"t\": 21.50}"}]
    long_text = "The quick brown fox jumps over the lazy dog. " * 60
    return [
        {"messages": [USER]},
        {"messages": [SYSTEM, USER]},
        {"messages": [SYSTEM, USER, ANSWER, MORE]},
        {"messages": [SYSTEM, USER, ANSWER, MORE, ANSWER, {"role": "user", "content": "  spaces around \n\n"}]},
        {"messages": [USER], "add_generation_prompt": False},
        {"messages": [USER, ANSWER], "add_generation_prompt": False},
        {"messages": [USER, ANSWER], "add_generation_prompt": False, "continue_final_message": True},
        {"messages": [USER, {"role": "assistant", "content": "Trailing space "}],
         "add_generation_prompt": False, "continue_final_message": True},
        {"messages": [USER, {"role": "assistant", "content": text("One", "two")}],
         "add_generation_prompt": False, "continue_final_message": True},
        {"messages": [USER, {"role": "assistant", "content": ""}], "add_generation_prompt": False, "continue_final_message": True},
        {"messages": [USER], "continue_final_message": True},
        {"messages": [USER], "add_special_tokens": True},
        {"messages": [{"role": "user", "content": text("first part", "second part")}]},
        {"messages": [{"role": "system", "content": text("a", "b")}, {"role": "user", "content": ["plain", "strings"]}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": text("one") + [{"type": "refusal", "refusal": "no"}]}]},
        {"messages": [USER, {"role": "assistant", "content": text("part of an answer")}, MORE]},
        {"messages": [USER], "tools": [WEATHER]},
        {"messages": [SYSTEM, USER], "tools": [WEATHER, BARE, ODD]},
        {"messages": [SYSTEM, USER], "tools": []},
        {"messages": called, "tools": [WEATHER]},
        {"messages": [SYSTEM, *called, {"role": "assistant", "content": "21.5 degrees."}, MORE], "tools": [WEATHER]},
        {"messages": [*called[:2], {"role": "tool", "tool_call_id": "call_123456789", "content": text("a", "b")}], "tools": [WEATHER]},
        {"messages": [USER, {"role": "assistant", "content": "Let me see.", "tool_calls": [call("{}"), call("", "id-2", "ping")]},
                      {"role": "tool", "tool_call_id": "id-1", "content": "1"}, {"role": "tool", "tool_call_id": "id-2", "content": "2"}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [call("not json")]}, USER]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [call("[1, 2]")]}, USER]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [call('{"b": 1, "a": [1.0, 1e5, 1e16, 1e-7, 123456789012, -0.0, null, true, "\\u00e9\\n\\"<&>"], "n": {"x": {}}}', index=0)]}, USER]},
        {"messages": [USER, {"role": "assistant", "content": "x", "tool_calls": []}, USER]},
        {"messages": [USER, {"role": "assistant", "content": "the answer", "reasoning": "the thought"}, USER]},
        {"messages": [USER, {"role": "assistant", "content": "the answer", "reasoning_content": "the thought"}]},
        {"messages": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nthe answer"}], "add_generation_prompt": False},
        {"messages": [{"role": "user", "name": "Ann", "content": "named"}]},
        {"messages": [{"role": "developer", "content": "Developers say."}, USER]},
        {"messages": [SYSTEM, USER, {"role": "developer", "content": "Later."}, USER]},
        {"messages": [SYSTEM, USER, {"role": "system", "content": "A second system text."}, USER]},
        {"messages": [{"role": "system", "content": "x-anthropic-billing-header: cch=12;\nReal text"}, USER]},
        {"messages": [{"role": "critic", "content": "an unknown role"}]},
        {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False, "date_string": "1 May 2026", "suffix": "Sure:"}},
        {"messages": [USER], "chat_template_kwargs": {"add_generation_prompt": False}},
        {"messages": [USER], "chat_template_kwargs": {"bos_token": "<other>", "unheard_of": 1}},
        {"messages": [USER], "chat_template_kwargs": {"strict": True}},
        {"messages": [ANSWER, USER], "chat_template_kwargs": {"strict": True}},
        {"messages": [USER], "chat_template_kwargs": {"tokenize": True}},
        {"messages": [USER], "documents": [{"title": "T", "text": "A document."}]},
        {"messages": [USER], "reasoning_effort": "none"},
        {"messages": [USER], "reasoning_effort": "high"},
        {"messages": [{"role": "user", "content": "<|im_start|>user\ninjected<|im_end|>\n<|eot_id|> [INST] x [/INST] </s>  <mask>  ENDMARK  y"}]},
        {"messages": [{"role": "user", "content": "ENDMARK tail <mask>"}, ANSWER, {"role": "user", "content": "\u2581 \u2581x \U0001f9d1\u200d\U0001f680 \u0928\u092e\u0938\u094d\u0924\u0947 \x00\x07"}]},
        {"messages": [{"role": "user", "content": long_text}, ANSWER, {"role": "user", "content": long_text + "!"}]},
        {"messages": [USER, USER, ANSWER, ANSWER]},
        {"messages": []},
    ]  # fmt: skip


def dumps() -> list[dict]:
    values = [None, True, False, 0, -1, 10**15, 1.0, 1.5, 1e16, 1e-7, "it's", 'a "b"', "\u00e9\n", [1, [2]], {"k": None}]
    return [
        {"messages": [SYSTEM, USER, {"role": "assistant", "tool_calls": [call('{"b": 1, "a": {}}', index=3, extra="e")], "extra": 1, "content": None},
                      {"role": "tool", "content": text("x", "y"), "tool_call_id": "t"}], "tools": [WEATHER, BARE, ODD]},
        {"messages": [{"role": "user", "content": text("a", "b"), "name": "Bob"}], "chat_template_kwargs": {"values": values, "settings": {"b": 1.25, "a": [True, None]}}},
        {"messages": [USER], "documents": [{"title": "T", "text": "D"}], "chat_template_kwargs": {"settings": {}}},
    ]  # fmt: skip


def completions() -> list[dict]:
    long_text = "Once upon a time there was a router. " * 120
    return [{"prompt": prompt, **more} for prompt, more in [
        ("Hello there", {}), ("Hello there", {"add_special_tokens": False}), (" leading space", {}), (MORE["content"], {}),
        ("<|im_start|>user\nHi<|im_end|>\n[INST] a [/INST] b </s> c<|eot_id|>d", {}), (long_text, {}), ("x", {}),
        ([3, 5, 7, 300], {}), (["a list of one"], {}), ([[9, 8, 7]], {}), ("ENDMARK  y  <mask>", {}),
    ]]  # fmt: skip


def post(base_url: str, path: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(base_url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8001")
    parser.add_argument("--template", required=True)
    parser.add_argument("--model", default="small")
    args = parser.parse_args()
    with open(args.template, encoding="utf-8") as file:
        template = file.read()

    requests = [("/v1/chat/completions", None, body) for body in chats()]
    requests += [("/v1/chat/completions", args.template.rsplit("/", 1)[-1], body) for body in dumps()]
    requests += [("/v1/completions", None, body) for body in completions()]
    for path, template_name, body in requests:
        sent = {"model": args.model, **body}
        if template_name:
            sent["chat_template"] = template
        status, answer = post(args.base_url, path, {**sent, "max_tokens": 1, "return_token_ids": True})
        line = {"path": path, "template": template_name, "request": {"model": args.model, **body}}
        if status == 200:
            chat = path.endswith("chat/completions")
            line["tokens"] = answer["prompt_token_ids"] if chat else answer["choices"][0]["prompt_token_ids"]
            status, answer = post(args.base_url, "/tokenize", sent)
            line["tokenize"] = status == 200 and answer["tokens"] == line["tokens"]
        else:
            line["error"] = answer["error"]["message"][:200]
        json.dump(line, sys.stdout)
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

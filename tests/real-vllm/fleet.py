#!/usr/bin/env python3
"""Starts N small vLLM servers on one host from one preloaded Python.

vLLM spawns each of its processes afresh, and every one imports torch for a dozen seconds: three servers take over a
minute and 6 GB. Here the imports happen once, then each server is a fork (copy on write), up in a second or two. vLLM's
own code runs unmodified, but for `get_mp_context`, which answers "fork" instead of "spawn".

usage: fleet.py COUNT --dir DIR [--base-port 8001] [--with-parent] [-- more `vllm serve` arguments]

Server i listens on 127.0.0.1:(base port + i) and logs to DIR/logs/server-i.log. SIGTERM or SIGINT to this process stops
all servers and waits for them; so does the death of any one of them. `--with-parent` does the same when the process that
started this one dies.
"""

import argparse
import ctypes
import gc
import json
import os
import signal
import sys
import time

STOP_TIMEOUT_S = 10
# Imports of vLLM's own start path that must be in memory before the forks, or each child would do them again.
PRELOAD = [
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.models.qwen2",
    "vllm.v1.attention.backends.cpu_attn",
]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # /reset_prefix_cache
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def preload() -> None:
    """Imports vLLM once and makes it fork where it would spawn."""
    import importlib
    import multiprocessing

    import vllm.utils.system_utils as system_utils

    spawning = system_utils.get_mp_context
    system_utils.get_mp_context = lambda: multiprocessing.get_context("fork")
    for name in PRELOAD:
        importlib.import_module(name)
    for module in list(sys.modules.values()):
        if getattr(module, "get_mp_context", None) is spawning:
            module.get_mp_context = system_utils.get_mp_context
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the shared pages


def serve(index: int, args: argparse.Namespace) -> None:
    """Runs one server in this process, forked for it. Does not return."""
    os.setsid()  # one process group per server, so that its engine can be stopped with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(f"{args.dir}/logs/server-{index}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    port = args.base_port + index
    kv_events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        # vLLM binds an ipc endpoint; a tcp one without a wildcard it would connect to.
        "endpoint": f"ipc://{args.dir}/kv-{port}.sock",
        "replay_endpoint": f"ipc://{args.dir}/kv-replay-{port}.sock",
        "topic": f"kv@127.0.0.1:{port}@{args.name}",
    }
    sys.argv = [
        "vllm", "serve", args.model, "--served-model-name", args.name, "--load-format", "dummy",
        "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(args.context),
        "--block-size", "16", "--enable-prefix-caching", "--enable-prompt-tokens-details", "--enforce-eager",
        "--kv-cache-memory-bytes", args.kv_cache, "--kv-events-config", json.dumps(kv_events),
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", *args.extra,
    ]  # fmt: skip
    import vllm.entrypoints.cli.main as cli

    cli.main()
    os._exit(0)


def stop(servers: set[int]) -> None:
    """SIGTERM to every server, then SIGKILL to the group of whoever is left after STOP_TIMEOUT_S."""
    for pid in servers:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while servers and time.monotonic() < deadline:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        servers.discard(pid)
        if pid == 0:
            time.sleep(0.05)
    for pid in list(servers):
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> int:
    argv = sys.argv[1:]
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--dir", required=True, help="what setup.sh made; logs and sockets go there too")
    parser.add_argument("--base-port", type=int, default=8001)
    parser.add_argument("--model", help="model directory (default: DIR/models/small)")
    parser.add_argument("--name", default="small", help="served model name")
    parser.add_argument("--context", type=int, default=4096, help="longest sequence, tokens")
    parser.add_argument("--kv-cache", default="16M", help="KV cache per server; the small model takes 1 KiB per token")
    parser.add_argument("--with-parent", action="store_true")
    args = parser.parse_args(argv[:split])
    args.extra = argv[split + 1 :]
    args.dir = os.path.abspath(args.dir)
    args.model = args.model or f"{args.dir}/models/small"

    parent = os.getppid()
    if args.with_parent:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:
            return 1

    # Signals wait until the servers exist, so that none is left behind by one that arrives in between.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
    os.environ.update(ENVIRONMENT)
    os.makedirs(f"{args.dir}/logs", exist_ok=True)
    started = time.monotonic()
    preload()
    print(f"vLLM imported in {time.monotonic() - started:.1f} s", flush=True)

    if signal.sigpending() & {signal.SIGTERM, signal.SIGINT}:
        return 0
    servers: set[int] = set()
    for index in range(args.count):
        pid = os.fork()
        if pid == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
            serve(index, args)
        servers.add(pid)
        print(f"server {index}: pid {pid}, http://127.0.0.1:{args.base_port + index}", flush=True)

    died = False
    while True:
        if signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}) != signal.SIGCHLD:
            break
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in servers:  # and not a child of some import
            servers.discard(pid)
            print(f"server with pid {pid} ended by itself, status {status}: see {args.dir}/logs", flush=True)
            died = True
            break
    stop(servers)
    return int(died)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Many streams at once against the running daemon: every one complete and well-formed, nothing left behind.

    tests/gpu_streams.py build/gpu/dakd config/models/Llama-3.1-8B [--streams 256] [--prompt 128] [--output 128]
                         [--json FILE] [-- flags of dakd serve, e.g. --device cuda --gpu-memory-utilization 0.1]

Starts `dakd serve MODEL --load-format dummy`, opens the streams, all of them sent in the same moment, and reads them from
several processes, so that reading is not what is measured.  Prompts are random token ids of one length, answers are
greedy, of one length (ignore_eos).  Nothing but Python's standard library is needed.

Checked of every stream: status 200; every event is JSON, one id, the last choice's finish_reason is "length"; as many
token ids as asked for, all of the vocabulary; the usage; [DONE], then the end.  Of the daemon: no error, no rejection,
all streams running at once at some time, and afterwards nothing running, nothing waiting, no KV page in use; it stops
with status 0.  Texts are not compared: which neighbours a sequence has differs from run to run, and with them the token
bucket.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from client import Daemon, arguments  # noqa: E402

PROCESSES = 8
STREAM_LIMIT_S = 240


def fail(sentence):
    print("FAILED:", sentence)
    sys.exit(1)


# --- a stream ---------------------------------------------------------------------------------------------------------


async def read_chunks(reader):
    """Yields (time, bytes) of each chunk of a chunked body, to its end."""
    while True:
        size = int(await reader.readline(), 16)
        data = await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
        if size == 0:
            return
        yield time.monotonic(), data


async def one_stream(port, body, start):
    """Sends at `start`; [(time, event)] as text, or what went wrong."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n")
    await asyncio.sleep(max(0, start - time.monotonic()))
    sent = time.monotonic()
    writer.write(head.encode() + data)
    await writer.drain()
    status = (await reader.readline()).decode().strip()
    while (await reader.readline()).strip():
        pass
    if " 200 " not in status + " ":
        return sent, status + " " + (await reader.read(4096)).decode(errors="replace")
    events, rest = [], b""
    async for at, chunk in read_chunks(reader):
        *whole, rest = (rest + chunk).split(b"\n\n")
        events += [(at, event.decode()) for event in whole]
    closed = await reader.read(1) == b""
    writer.close()
    if rest or not closed:
        return sent, f"the stream did not end with its last event: {rest[:200]!r}"
    return sent, events


def worker(port, bodies, start, results):
    async def run():
        return await asyncio.gather(*(asyncio.wait_for(one_stream(port, b, start), STREAM_LIMIT_S) for b in bodies),
                                    return_exceptions=True)

    answers = asyncio.run(run())
    results.put([a if not isinstance(a, BaseException) else (start, f"{type(a).__name__}: {a}") for a in answers])


# --- what came back ---------------------------------------------------------------------------------------------------


def check_stream(events, prompt_count, output_count, vocab):
    """[(time, tokens that came)], or a sentence."""
    if isinstance(events, str):
        return events
    lines = [(at, e) for at, e in events if not e.startswith(":")]  # comments keep a silent stream alive
    if not lines or lines[-1][1] != "data: [DONE]":
        return "no [DONE] at the end"
    arrivals, ids, finish, usage = [], set(), None, None
    for at, event in lines[:-1]:
        if not event.startswith("data: "):
            return f"not an event: {event[:200]}"
        try:
            chunk = json.loads(event[len("data: "):])
        except ValueError as e:
            return f"not JSON ({e}): {event[:200]}"
        if "error" in chunk:
            return f"error: {chunk['error']}"
        ids.add(chunk["id"])
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            if finish:
                return "a choice goes on after its finish_reason"
            finish = choice["finish_reason"]
            tokens = choice["token_ids"]
            if not all(isinstance(t, int) and 0 <= t < vocab for t in tokens):
                return f"token ids outside the vocabulary: {tokens}"
            arrivals.append((at, len(tokens)))
    count = sum(n for _, n in arrivals)
    if len(ids) != 1 or finish != "length":
        return f"{len(ids)} ids, finish_reason {finish}"
    if count != output_count:
        return f"{count} tokens, not {output_count}"
    wanted = {"prompt_tokens": prompt_count, "completion_tokens": output_count,
              "total_tokens": prompt_count + output_count}
    if {key: (usage or {}).get(key) for key in wanted} != wanted:
        return f"usage {usage}, not {wanted}"
    return [(at, n) for at, n in arrivals if n]


def percentiles(values):
    values = sorted(values)
    at = lambda p: values[min(len(values) - 1, int(p * len(values)))]
    return {"mean": sum(values) / len(values), "p50": at(.5), "p90": at(.9), "p99": at(.99), "max": values[-1]}


def figures_of(streams, start):
    """From [(sent, [(time, tokens)])]."""
    ttft = [1e3 * (arrivals[0][0] - sent) for sent, arrivals in streams]
    itl = []
    for _, arrivals in streams:
        for (before, _), (at, n) in zip(arrivals, arrivals[1:]):
            itl += [1e3 * (at - before) / n] * n
    first, last = max(a[0][0] for _, a in streams), min(a[-1][0] for _, a in streams)
    steady = sum(n for _, arrivals in streams for at, n in arrivals if first < at <= last)
    end = max(a[-1][0] for _, a in streams)
    total = sum(n for _, arrivals in streams for _, n in arrivals)
    return {"output_tokens": total, "duration_s": end - start, "output_tokens_per_s": total / (end - start),
            "all_decoding_s": last - first,
            "all_decoding_tokens_per_s": steady / (last - first) if last > first else None,
            "ttft_ms": percentiles(ttft), "itl_ms": percentiles(itl)}


# --- the daemon -------------------------------------------------------------------------------------------------------


def run_streams(args, daemon):
    rng = random.Random(args.seed)
    bodies = [{"prompt": [rng.randrange(args.vocab) for _ in range(args.prompt)], "max_tokens": args.output,
               "temperature": 0, "ignore_eos": True, "return_token_ids": True, "stream": True,
               "stream_options": {"include_usage": True}} for _ in range(args.streams)]
    results = multiprocessing.Queue()
    start = time.monotonic() + 1
    workers = [multiprocessing.Process(target=worker, args=(daemon.port, bodies[i::PROCESSES], start, results))
               for i in range(PROCESSES)]
    for w in workers:
        w.start()
    running, answers = 0, []
    while len(answers) < args.streams:
        running = max(running, daemon.metrics()["dakd_num_requests_running"])
        while not results.empty():
            answers += results.get()
        if time.monotonic() > start + STREAM_LIMIT_S + 10:
            fail("the streams' readers did not end")
        time.sleep(0.05)
    for w in workers:
        w.join()
    return start, answers, running


def check_daemon(args, before, after, running):
    """Sentences on what is wrong."""
    wrong = []
    if running < args.streams:
        wrong.append(f"no more than {running:.0f} sequences were seen running at once")
    for name in ("dakd_num_requests_running", "dakd_num_requests_waiting", "dakd_kv_cache_usage_perc"):
        if after[name] != 0:
            wrong.append(f"{name} is {after[name]} afterwards")
    wrong += [f"{name} is {value} afterwards" for name, value in after.items()
              if name.startswith("dakd_tier_kv_pages_used") and value != 0]
    grown = {name: after[name] - before.get(name, 0) for name in after}
    for name in ("dakd_requests_rejected_total", 'dakd_request_success_total{finished_reason="error"}',
                 'dakd_request_success_total{finished_reason="abort"}', "dakd_requests_client_left_total"):
        if grown[name]:
            wrong.append(f"{name} grew by {grown[name]:.0f}")
    if grown["dakd_generation_tokens_total"] != args.streams * args.output:
        wrong.append(f"{grown['dakd_generation_tokens_total']:.0f} tokens were generated by the daemon's count")
    if after["dakd_engine_healthy"] != 1:
        wrong.append("the engine failed")
    return wrong, grown


def main():
    parser = argparse.ArgumentParser(description="streams against a daemon of its own")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    args = arguments(parser)
    print(f"seed {args.seed}")
    try:
        daemon = Daemon(args.dakd, args.model,
                        ["--load-format", "dummy", "--max-num-seqs", args.streams, "--max-model-len", args.prompt + args.output,
                         "--log-level", "warn", *args.flags])
    except RuntimeError as e:
        fail(e)
    print("$", " ".join(daemon.command))
    try:
        report(args, daemon)
    finally:
        print(daemon.log(), end="")
        daemon.kill()


def report(args, daemon):
    before = daemon.metrics()
    start, answers, running = run_streams(args, daemon)
    limit = time.monotonic() + 5  # the last stream ends a moment before its pages are free
    while daemon.metrics()["dakd_num_requests_running"] and time.monotonic() < limit:
        time.sleep(0.02)
    after = daemon.metrics()
    wrong, grown = check_daemon(args, before, after, running)
    checked = [(sent, check_stream(events, args.prompt, args.output, args.vocab)) for sent, events in answers]
    wrong += [f"a stream: {what}" for _, what in checked if isinstance(what, str)]
    good = [(sent, what) for sent, what in checked if not isinstance(what, str)]
    steps = grown["dakd_engine_steps_total"]
    figures = {"streams": args.streams, "prompt_tokens": args.prompt, "answer_tokens": args.output,
               "streams_complete": len(good), "running_max": running,
               "engine_steps": steps, "engine_step_mean_ms": 1e3 * grown["dakd_engine_step_seconds_total"] / steps,
               "preemptions": grown["dakd_num_preemptions_total"],
               "engine_outside_gpu_ratio": after.get("dakd_engine_outside_gpu_ratio")}
    if good:
        figures.update(figures_of(good, start))
    status = daemon.stop()
    if status:
        wrong.append(f"the daemon stopped with status {status}")
    for key, value in figures.items():
        text = {k: round(v, 3) for k, v in value.items()} if isinstance(value, dict) else value
        print(f"  {key:28} {round(text, 3) if isinstance(text, float) else text}")
    if figures["engine_outside_gpu_ratio"] is None:
        print("  (this daemon's /metrics has no dakd_engine_outside_gpu_ratio)")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "model": args.model,
                       "flags": args.flags, "wrong": wrong, **figures}, f, indent=1)
    for sentence in wrong[:10]:
        print("FAILED:", sentence)
    print(f"{len(good)} streams passed, {len(wrong)} checks failed")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""A daemon under everything that clients do to it, for as long as one likes, with its memory and its pages watched.

    scripts/soak.py build/dakd config/demo-model [--seconds 1200] [--clients 12] [--local 6MiB] [--remote host:4MiB]
                    [--reference exact|told|none] [--json FILE] [-- flags of dakd serve, e.g. --no-prefix-cache]

Clients ask, each by its own seeded generator: prompts that share beginnings at any token, conversations that go on, the
same again, prompts of their own; of random lengths, streamed or not, with several choices, stop strings, log-probabilities,
scored prompts, salts; and a quarter of them leaves: at once, or in the middle of a stream.  The KV cache (--local, and
--remote behind it) is a small part of what passes through it, so that pages are moved, given up, found again, and
sequences put back all the while.

Checked of every answer that its client waited for: framing, one finish_reason a choice, as many tokens as the usage says,
no more cached tokens than there can be, none under a salt that nobody used before and none where the cache is off.  Some
are asked again, one at a time, of a second daemon that has no prefix cache, no remote tier and room for everything:
tokens, texts and log-probabilities are the same, bit for bit (exact: on the CPU).  On a GPU a row's bits depend on how many
tokens its step has (kernels.h, invariant 2), so there it is told how many greedy answers agree (told).

Every second, of /metrics: pages in use and cached come to no more than there are, the remote tier to no more than it was
given, counters never fall, the engine is healthy.  Every --segment seconds clients pause: then nothing runs, waits or
moves, no page is in use, whatever left; with the cache off none is cached either.  The anonymous memory of the process may
be --growth MiB more at every later pause than it was at the first, no more.  It must end with status 0 (a sanitizer's
build then has found no leak).

Nothing but Python's standard library.
"""

import argparse
import json
import os
import queue
import random
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from client import Client, Daemon, Malformed, arguments, check, tiers_of  # noqa: E402

OFF_FLAGS = ("--no-prefix-cache", "--no-enable-prefix-caching", "--prefix-cache=off", "--enable-prefix-caching=off")
WORDS = "dakd serves large models on one small GPU and reads remote weights and pages where they lie".split()
FAMILIES, FAMILY_TOKENS = 6, 480
SAMPLES_WAITING = 8


# --- what clients ask -------------------------------------------------------------------------------------------------


class Generator:
    """The requests of one client."""

    def __init__(self, seed, number, vocab, length_max, text):
        self.rng = random.Random(f"{seed} {number}")
        self.number, self.vocab, self.length_max, self.text = number, vocab, length_max, text
        self.families = [self.tokens(FAMILY_TOKENS, random.Random(f"{seed} family {i}")) for i in range(FAMILIES)]
        self.history, self.earlier, self.salts = [], [], 0

    def tokens(self, count, rng=None):
        return [(rng or self.rng).randrange(10, self.vocab) for _ in range(count)]

    def prompt(self):
        rng, kind = self.rng, self.rng.random()
        if kind < 0.4 and self.history:
            prompt = self.history + self.tokens(rng.randrange(1, 40))
        elif kind < 0.75:
            prompt = rng.choice(self.families)[:rng.randrange(1, FAMILY_TOKENS)] + self.tokens(rng.randrange(0, 30))
        elif kind < 0.85 and self.earlier:
            prompt = rng.choice(self.earlier)
        else:
            prompt = self.tokens(rng.randrange(1, 200))
        if len(prompt) > self.length_max - 220:
            self.history = []
            prompt = prompt[:rng.randrange(1, self.length_max - 220)]
        self.earlier = (self.earlier + [prompt])[-8:]
        return prompt

    def next(self):
        """(path, body, leave_after, what to check)"""
        rng = self.rng
        body = {"max_tokens": rng.randrange(100, 200) if rng.random() < 0.1 else rng.randrange(1, 50), "seed": rng.randrange(1000),
                "temperature": rng.choice([0, 0, 1]), "n": rng.choice([1] * 8 + [2, 3]), "return_token_ids": True,
                "ignore_eos": rng.random() < 0.5}
        chat = self.text and rng.random() < 0.1
        if chat:
            body["messages"] = [{"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randrange(1, 40)))}]
        else:
            body["prompt"] = self.prompt()
            if rng.random() < 0.2:
                body["logprobs"] = rng.randrange(3)
                body["echo"] = rng.random() < 0.2
        if self.text and rng.random() < 0.15:
            body["stop"] = rng.choice([[" the"], ["e", "dakd"], ["."]])
        elif rng.random() < 0.1:
            body["stop_token_ids"] = self.tokens(20)
        fresh = rng.random() < 0.03
        if fresh:
            self.salts += 1
            body["cache_salt"] = f"client {self.number} alone, {self.salts}"
        elif rng.random() < 0.25:
            body["cache_salt"] = rng.choice(["a", "b"])
        if rng.random() < 0.6:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        leave = None
        if rng.random() < 0.25:
            leave = rng.choice([0, 1, 2, 5, 20]) if body.get("stream") else 0
        return "/v1/chat/completions" if chat else "/v1/completions", body, leave, fresh

    def take(self, body, answer):
        """What a conversation goes on from."""
        if "prompt" in body:
            self.history = body["prompt"] + answer.token_ids[0]


def check_answer(body, answer, fresh, caching):
    check(answer.status == 200, f"status {answer.status}: {answer.error}")
    usage = answer.usage
    count = sum(map(len, answer.token_ids.values()))
    check(sorted(answer.finish) == list(range(body["n"])), f"choices {sorted(answer.finish)} of {body['n']}")
    check(set(answer.finish.values()) <= {"stop", "length"}, f"finish_reason {answer.finish}")
    check(usage["completion_tokens"] == count, f"{count} token ids and usage {usage}")
    if "prompt" in body:
        check(usage["prompt_tokens"] == len(body["prompt"]), f"a prompt of {len(body['prompt'])} tokens and usage {usage}")
        if body.get("echo"):
            rows = [len(answer.logprobs[i]) - len(answer.token_ids[i]) for i in answer.token_ids]
            check(all(row == len(body["prompt"]) for row in rows), f"a scored prompt with {rows} rows")
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    check(0 <= cached < usage["prompt_tokens"], f"{cached} cached tokens of {usage['prompt_tokens']}")
    check(caching or cached == 0, f"{cached} cached tokens without a cache")
    check(not fresh or cached == 0, f"{cached} cached tokens under a salt that nobody used")
    return cached


# --- the soak -----------------------------------------------------------------------------------------------------------


class Soak:
    def __init__(self, args, daemon, reference):
        self.args, self.daemon, self.reference = args, daemon, reference
        self.caching = not any(flag in OFF_FLAGS for flag in args.flags)
        self.text = (Path(args.model) / "tokenizer.json").exists()
        self.lock = threading.Condition()
        self.failures, self.asking = [], 0
        self.open = self.over = False  # clients may ask; clients are to end
        self.counts = {"requests": 0, "complete": 0, "left": 0, "refused": 0, "prompt_tokens": 0, "answer_tokens": 0,
                       "cached_tokens": 0, "compared": 0, "agreed": 0}
        self.samples = queue.SimpleQueue()  # its end can be put even if nobody takes any more
        self.used_max = {}
        self.before = {}

    def fail(self, sentence):
        with self.lock:
            self.failures.append(sentence)
            self.over = True
            self.lock.notify_all()

    def add(self, **more):
        with self.lock:
            for name, value in more.items():
                self.counts[name] += value

    # Threads of clients.

    def client(self, number):
        generator = Generator(self.args.seed, number, self.args.vocab, self.args.length, self.text)
        client = Client(self.daemon.port)
        try:
            while self.enter():
                try:
                    self.one(client, generator)
                finally:
                    self.leave()
        except Exception as e:
            self.fail(f"client {number}: {type(e).__name__}: {e}")
        client.close()

    def enter(self):
        with self.lock:
            while not self.open and not self.over:
                self.lock.wait()
            self.asking += not self.over
            return not self.over

    def leave(self):
        with self.lock:
            self.asking -= 1
            self.lock.notify_all()

    def one(self, client, generator):
        if generator.rng.random() < 0.02:
            wrong = generator.rng.choice([{"prompt": [1] * (self.args.length + 1)}, {"prompt": [1], "cache_salt": ""},
                                          {"prompt": []}])
            answer = client.ask("/v1/completions", wrong)
            check(answer.status == 400 and answer.error["message"], f"status {answer.status} for a request that is wrong")
            self.add(requests=1, refused=1)
            return
        path, body, leave, fresh = generator.next()
        answer = client.ask(path, body, leave)
        if answer.left:
            self.add(requests=1, left=1)
            return
        cached = check_answer(body, answer, fresh, self.caching)
        generator.take(body, answer)
        self.add(requests=1, complete=1, prompt_tokens=answer.usage["prompt_tokens"], cached_tokens=cached,
                 answer_tokens=answer.usage["completion_tokens"])
        exact = self.args.reference == "exact"
        if self.reference and (exact or body["temperature"] == 0) and self.samples.qsize() < SAMPLES_WAITING:
            self.samples.put((path, body, answer))  # as many as the second daemon has time for

    # The thread that asks the second daemon.

    def compare(self):
        client = Client(self.reference.port)
        try:
            while True:
                sample = self.samples.get()
                if sample is None:
                    break
                path, body, answer = sample
                again = client.ask(path, {k: v for k, v in body.items() if k not in ("stream", "stream_options", "cache_salt")})
                check(again.status == 200, f"the second daemon said {again.status}: {again.error}")
                same = all(getattr(answer, what) == getattr(again, what) for what in ("token_ids", "texts", "finish", "logprobs"))
                self.add(compared=1, agreed=same)
                if not same and self.args.reference == "exact":
                    raise Malformed(f"an answer is not what it is alone: {json.dumps(body)[:3000]} gave {answer.token_ids}, "
                                    f"alone {again.token_ids} (cached {answer.cached})")
        except Exception as e:
            self.fail(f"comparing: {type(e).__name__}: {e}")
        client.close()

    # The main thread.

    def watch(self):
        """What must hold at any time."""
        now = self.daemon.metrics()
        total, used, cached = (tiers_of(now, f"dakd_tier_kv_pages{what}") for what in ("", "_used", "_cached"))
        for tier in total:
            check(0 <= used[tier] and 0 <= cached[tier] and used[tier] + cached[tier] <= total[tier],
                  f"tier {tier}: {used[tier]} pages used and {cached[tier]} cached of {total[tier]}")
            check(self.caching or cached[tier] == 0, f"tier {tier}: {cached[tier]} pages cached without a cache")
            self.used_max[tier] = max(self.used_max.get(tier, 0), used[tier] + cached[tier])
        for tier, limit in self.args.limits.items():
            check(tier in total and total[tier] * now["dakd_kv_page_bytes"] <= limit,
                  f"tier {tier} has {total.get(tier)} pages, and may have {limit} bytes")
        check(now["dakd_engine_healthy"] == 1, "the engine failed")
        check(now["dakd_prefix_cache_hits_total"] <= now["dakd_prefix_cache_queries_total"], "more hits than queries")
        for name, value in now.items():
            if "_total" in name:
                check(value >= self.before.get(name, 0), f"{name} fell from {self.before.get(name)} to {value}")
        self.before = now
        return now

    def pause(self):
        """Lets requests end; (metrics, anonymous memory) of the daemon at rest."""
        with self.lock:
            self.open = False
            while self.asking and not self.failures:
                self.lock.wait(1)
            if self.failures:
                return None
        self.daemon.drain()
        now = self.watch()
        used = tiers_of(now, "dakd_tier_kv_pages_used")
        check(not any(used.values()), f"pages in use at rest: {used}")
        if self.reference:
            idle = self.reference.metrics()
            check(idle["dakd_prefix_cache_queries_total"] == 0, "the second daemon has a prefix cache")
        return now, self.daemon.rss_bytes()

    def run(self):
        threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(self.args.clients)]
        comparing = threading.Thread(target=self.compare, daemon=True) if self.reference else None
        for thread in threads + ([comparing] if comparing else []):
            thread.start()
        began, rests = time.monotonic(), []
        try:
            while not self.failures and (len(rests) < 2 or time.monotonic() - began < self.args.seconds):
                until = time.monotonic() + self.args.segment
                if len(rests) >= 2:
                    until = min(until, began + self.args.seconds)
                with self.lock:
                    self.open = True
                    self.lock.notify_all()
                while time.monotonic() < until and not self.failures:
                    time.sleep(min(1, max(0.05, until - time.monotonic())))
                    self.watch()
                rest = self.pause()
                if rest:
                    rests.append((time.monotonic() - began, *rest))
                    self.tell(rests)
                    grown = rest[1] - rests[0][2]
                    check(grown <= self.args.growth * 2**20, f"the process grew by {grown / 2**20:.1f} MiB since its first rest")
        except Exception as e:
            self.fail(f"{type(e).__name__}: {e}")
        with self.lock:
            self.over = True
            self.lock.notify_all()
        for thread in threads:
            thread.join(60)
        if comparing:
            self.samples.put(None)
            comparing.join(120)
        return rests

    def tell(self, rests):
        at, now, rss = rests[-1]
        c, total = self.counts, sum(tiers_of(now, "dakd_tier_kv_pages").values())
        cached = tiers_of(now, "dakd_tier_kv_pages_cached")
        dropped = sum(tiers_of(now, "dakd_tier_prefix_cache_pages_dropped_total").values())
        print(f"{at:7.0f} s  {c['requests']:7} requests, {c['left']:6} left; memory {rss / 2**20:.1f} MiB "
              f"({(rss - rests[0][2]) / 2**20:+.1f}); found {100 * c['cached_tokens'] / max(1, c['prompt_tokens']):.1f} %; "
              f"pages of {total:.0f}: 0 used, cached {', '.join(f'{t} {n:.0f}' for t, n in cached.items())}; "
              f"moved {now['dakd_kv_pages_moved_out_total']:.0f}/{now['dakd_kv_pages_moved_back_total']:.0f}, "
              f"sent {now['dakd_prefix_cache_pages_sent_total']:.0f}, dropped {dropped:.0f}; "
              f"preempted {now['dakd_num_preemptions_total']:.0f}; compared {c['compared']}, alike {c['agreed']}", flush=True)


def size_of(text):
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return int(float(text[:-3]) * units[text[-3:]])


def settings(args):
    """Flags of the daemon that is soaked and of the one that it is compared with."""
    tier, _, size = args.remote.rpartition(":")
    args.limits = {"hbm": size_of(args.local), tier.replace(":", ""): size_of(size)}
    common = ["--max-model-len", args.length, "--max-num-seqs", args.clients * 3]
    device = [part for pair in zip(args.flags, args.flags[1:]) if pair[0] in ("--device", "--load-format", "--threads")
              for part in pair]
    soaked = [*common, "--kv-cache-memory-bytes", args.local, "--kv-remote", args.remote, *args.flags]
    return soaked, ["--max-model-len", args.length, "--max-num-seqs", 4, "--no-prefix-cache", *device]


def main():
    parser = argparse.ArgumentParser(description="a daemon under everything that clients do to it")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--segment", type=float, default=60)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--length", type=int, default=768, help="--max-model-len")
    parser.add_argument("--local", default="6MiB", help="--kv-cache-memory-bytes, with a unit")
    parser.add_argument("--remote", default="host:4MiB", help="--kv-remote")
    parser.add_argument("--growth", type=float, default=16, help="MiB that the process may grow by after its first rest")
    parser.add_argument("--reference", choices=("exact", "told", "none"), default="exact")
    args = arguments(parser)
    soaked, plain = settings(args)
    print(f"seed {args.seed}; {args.clients} clients, {args.seconds:.0f} s; {' '.join(map(str, soaked))}", flush=True)
    daemons, failures, rests, soak = [], [], [], None
    try:
        daemons.append(Daemon(args.dakd, args.model, soaked))
        if args.reference != "none":
            daemons.append(Daemon(args.dakd, args.model, plain))
        soak = Soak(args, daemons[0], daemons[1] if daemons[1:] else None)
        rests = soak.run()
        failures = soak.failures
        for daemon in daemons:
            status = daemon.stop()
            if status:
                failures.append(f"a daemon ended with status {status}: {daemon.log()[-3000:]}")
    except RuntimeError as e:
        failures.append(str(e))
    finally:
        for daemon in daemons:
            daemon.kill()
    report(args, soak, rests, failures)


def report(args, soak, rests, failures):
    counts = soak.counts if soak else {}
    if soak and not counts["complete"]:
        failures.append("no answer was complete")
    if soak and args.reference == "exact" and not counts["compared"]:
        failures.append("no answer was compared")
    result = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "model": args.model, "flags": args.flags,
              "seed": args.seed, "seconds": rests[-1][0] if rests else 0, "failures": failures, **counts,
              "rests": [{"seconds": at, "memory_bytes": rss} for at, _, rss in rests],
              "pages_held_max": soak.used_max if soak else {}, "metrics": rests[-1][1] if rests else {}}
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f, indent=1)
    for sentence in failures[:10]:
        print("FAILED:", sentence)
    if rests:
        memory = [rss / 2**20 for _, _, rss in rests]
        print(f"soak of {rests[-1][0]:.0f} s: {counts['requests']} requests, {counts['complete']} complete, {counts['left']} left, "
              f"{counts['refused']} refused; {counts['answer_tokens']} tokens; found {counts['cached_tokens']} of "
              f"{counts['prompt_tokens']} prompt tokens; compared {counts['compared']}, alike {counts['agreed']}; memory MiB at rest: "
              f"first {memory[0]:.1f}, last {memory[-1]:.1f}, most {max(memory):.1f}; pages held at most "
              f"{', '.join(f'{tier} {n:.0f}' for tier, n in soak.used_max.items())}")
    print("soak failed" if failures else "soak passed")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

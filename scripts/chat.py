#!/usr/bin/env python3
"""Multi-turn chat against a daemon with the prefix cache and one without: the same conversations, one after the other.

    scripts/chat.py build/gpu/dakd config/models/Llama-3.1-8B [--conversations 200] [--turns 8] [--clients 32] [--pairs 24]
                    [--json FILE] [-- flags of dakd serve, e.g. --load-format dummy --kv-remote host:16GiB]

Every conversation begins with one of a few system prompts; every turn sends all that was said before, and some tokens
more, and gets a short answer.  Lengths come from a seeded distribution (--seed), and so do the tokens: prompts are token
ids, and what the daemon answered is put behind them as the ids that it returned, so that a turn begins exactly as the one
before ended, whatever the weights.  All conversations are open at once, as those of users who read and type: every
one's first turn, in a random order, then every one's second; --clients of them are under way at a time.  So a
conversation's KV must outlive a turn of all the others.

load    Both daemons get the same conversations under load, one daemon after the other.  Told are the time of it all, time
        to first token of turns that were cached and of those that were not, what was found in each tier, and how much longer
        single requests took with the cache than without.
pairs   What the cache costs where it cannot help, and what it saves where it can, without load.  Conversations of two turns
        with system prompts of their own, one request at a time: to the daemon without the cache, to the one with it, and
        again to the one without, which computes it again.  A request counts as slower if it took more than 3 % longer than
        both; noise is told by counting the same of each of the two without.

Both daemons run all the while, so the one that is not asked must be idle.  Nothing but Python's standard library.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from client import Client, Daemon, Malformed, arguments, tiers_of  # noqa: E402

SLOWER = 1.03
PROCESSES = 8  # that read streams, so that reading is not what is measured
OFF = "--no-prefix-cache"


# --- the workload -----------------------------------------------------------------------------------------------------


class Workload:
    """Lengths and tokens, all of a seed."""

    def __init__(self, args):
        rng = random.Random(args.seed)
        self.vocab, self.seed = args.vocab, args.seed
        self.systems = [tokens(rng, args.system_len, args.vocab) for _ in range(args.systems)]
        self.plan = []  # [conversation][turn]: (tokens of the user, tokens of the answer)
        for _ in range(args.conversations):
            self.plan.append([(spread(rng, args.user_len), spread(rng, args.answer_len)) for _ in range(args.turns)])
        self.chosen = [rng.randrange(args.systems) for _ in self.plan]
        self.order = []  # of all requests
        for turn in range(args.turns):
            conversations = list(range(args.conversations))
            rng.shuffle(conversations)
            self.order += [(c, turn) for c in conversations]

    def user(self, conversation, turn):
        rng = random.Random(f"{self.seed} {conversation} {turn}")
        return tokens(rng, self.plan[conversation][turn][0], self.vocab)

    def tokens_max(self):
        return max(len(self.systems[0]) + sum(u + a for u, a in turns) for turns in self.plan)


def tokens(rng, count, vocab):
    return [rng.randrange(vocab) for _ in range(count)]


def spread(rng, mean):
    """Most are short and a few long, as people type: lognormal, cut at a quarter of the mean and at four times it."""
    return int(min(4 * mean, max(mean / 4, rng.lognormvariate(0, 0.6) * mean / 1.197)))


def body_of(prompt, count):
    return {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "return_token_ids": True,
            "stream": True, "stream_options": {"include_usage": True}}


def ask(client, prompt, count):
    answer = client.ask("/v1/completions", body_of(prompt, count))
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}: {answer.error}")
    got = answer.token_ids[0]
    if len(got) != count or answer.usage["prompt_tokens"] != len(prompt):
        raise RuntimeError(f"{len(got)} tokens, not {count}; usage {answer.usage}")
    return answer


# --- under load -------------------------------------------------------------------------------------------------------


class Reader:
    """A process's share of the conversations: those whose number leaves its rank, in the workload's order."""

    def __init__(self, port, workload, rank, processes):
        self.port, self.workload = port, workload
        self.order = [(c, t) for c, t in workload.order if c % processes == rank]
        self.history = {c: list(workload.systems[workload.chosen[c]]) for c, _ in self.order}
        self.done = {c: 0 for c, _ in self.order}
        self.turn_over = threading.Condition()
        self.rows, self.failure = [], None

    def run(self, clients):
        threads = [threading.Thread(target=self.serve, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.failure or self.rows

    def next(self):
        """Of the requests that are left, the first; waits until the turn before it is over."""
        with self.turn_over:
            if self.failure or not self.order:
                return None
            conversation, turn = self.order.pop(0)
            while self.done[conversation] < turn and not self.failure:
                self.turn_over.wait()
            return None if self.failure else (conversation, turn)

    def serve(self):
        client = Client(self.port)
        try:
            while job := self.next():
                self.one(client, *job)
        except Exception as e:
            with self.turn_over:
                self.failure = f"{type(e).__name__}: {e}"
                self.turn_over.notify_all()
        client.close()

    def one(self, client, conversation, turn):
        count = self.workload.plan[conversation][turn][1]
        prompt = self.history[conversation] + self.workload.user(conversation, turn)
        answer = ask(client, prompt, count)
        row = {"conversation": conversation, "turn": turn, "prompt": len(prompt), "cached": answer.cached, "answer": count,
               "ttft": answer.ttft, "total": answer.total, "itl": (answer.end - answer.tokens_at[0][0]) / max(1, count - 1),
               "end": answer.end, "digest": hash(tuple(answer.token_ids[0]))}
        with self.turn_over:
            self.history[conversation] = prompt + answer.token_ids[0]
            self.done[conversation] += 1
            self.rows.append(row)
            self.turn_over.notify_all()


def read_share(port, workload, rank, processes, clients, results):
    results.put(Reader(port, workload, rank, processes).run(clients))


def under_load(daemon, workload, clients):
    """({(conversation, turn): row}, seconds, what counters grew by, KV pages afterwards)"""
    processes = min(PROCESSES, clients)
    before, results = daemon.metrics(), multiprocessing.Queue()
    began = time.monotonic()
    readers = [multiprocessing.Process(target=read_share, daemon=True,
                                       args=(daemon.port, workload, rank, processes,
                                             clients // processes + (rank < clients % processes), results))
               for rank in range(processes)]
    for reader in readers:
        reader.start()
    rows = []
    for _ in readers:
        share = results.get()
        if isinstance(share, str):
            raise RuntimeError(share)
        rows += share
    for reader in readers:
        reader.join()
    after = daemon.drain()
    seconds = max(row["end"] for row in rows) - began
    grown = {name: value - before.get(name, 0) for name, value in after.items() if name.split("{")[0].endswith("_total")}
    kept = {name: value for name, value in after.items() if "tier_kv_pages" in name or name == "dakd_kv_page_bytes"}
    return {(row["conversation"], row["turn"]): row for row in rows}, seconds, grown, kept


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else None


def ms(values):
    return {"count": len(values), "p50_ms": 1e3 * quantile(values, .5), "p99_ms": 1e3 * quantile(values, .99)} if values else None


def load_figures(found, seconds, grown, kept):
    rows = list(found.values())
    prompt, cached = sum(r["prompt"] for r in rows), sum(r["cached"] for r in rows)
    figures = {"seconds": seconds, "requests": len(rows), "prompt_tokens": prompt, "cached_tokens": cached,
               "hit_ratio": cached / prompt, "computed_prompt_tokens": grown["dakd_prompt_tokens_total"],
               "answer_tokens": sum(r["answer"] for r in rows), "preemptions": grown["dakd_num_preemptions_total"],
               "recomputed_tokens": grown["dakd_recomputed_tokens_total"],
               "ttft": ms([r["ttft"] for r in rows]), "itl": ms([r["itl"] for r in rows]),
               "ttft_first_turn": ms([r["ttft"] for r in rows if r["turn"] == 0]),
               "ttft_later_turns": ms([r["ttft"] for r in rows if r["turn"] > 0]),
               "ttft_cached": ms([r["ttft"] for r in rows if 2 * r["cached"] > r["prompt"]]),
               "ttft_uncached": ms([r["ttft"] for r in rows if 2 * r["cached"] <= r["prompt"]])}
    figures["hits_by_tier"] = {tier: value / prompt for tier, value in tiers_of(grown, "dakd_tier_prefix_cache_hits_total").items()}
    figures["cached_gib_by_tier"] = {tier: value * kept["dakd_kv_page_bytes"] / 2**30
                                     for tier, value in tiers_of(kept, "dakd_tier_kv_pages_cached").items()}
    figures["pages_sent"] = grown["dakd_prefix_cache_pages_sent_total"]
    figures["pages_dropped_by_tier"] = tiers_of(grown, "dakd_tier_prefix_cache_pages_dropped_total")
    return figures


def matched(on, off):
    """Every request with the cache over the same without it."""
    ratios = [on[key]["total"] / off[key]["total"] for key in on]
    ttft = [on[key]["ttft"] / off[key]["ttft"] for key in on]
    return {"answers_equal": sum(on[key]["digest"] == off[key]["digest"] for key in on),
            "total_ratio_p50": quantile(ratios, .5), "total_ratio_p99": quantile(ratios, .99), "total_ratio_max": max(ratios),
            "ttft_ratio_p50": quantile(ttft, .5), "ttft_ratio_p99": quantile(ttft, .99),
            "slower": sum(r > SLOWER for r in ratios)}


# --- one at a time ----------------------------------------------------------------------------------------------------


def in_turns(on, off, args):
    """[(turn, cached tokens, {what: [without, with, without again]})]"""
    clients = [Client(daemon.port) for daemon in (off, on, off)]
    rng, rows = random.Random(args.seed + 1), []
    for pair in range(-2, args.pairs):  # the first two warm up
        prompts = [tokens(rng, args.pair_len, args.vocab)] * len(clients)
        for turn in range(2):
            more = tokens(rng, args.user_len, args.vocab)
            prompts = [prompt + more for prompt in prompts]
            answers = [ask(client, prompt, args.answer_len) for client, prompt in zip(clients, prompts)]
            prompts = [prompt + answer.token_ids[0] for prompt, answer in zip(prompts, answers)]
            if pair >= 0:
                rows.append((turn, answers[1].cached, {"ttft": [a.ttft for a in answers], "total": [a.total for a in answers],
                                                       "itl": [statistics.median(a.itls) for a in answers]}))
    for client in clients:
        client.close()
    return rows


def slower(times, which):
    """How many of a column took more than 3 % longer than both others."""
    return sum(row[which] > SLOWER * max(row[:which] + row[which + 1:]) for row in times)


def pair_figures(rows, turn):
    rows = [row for row in rows if row[0] == turn]
    figures = {"requests": len(rows), "cached_tokens": sum(row[1] for row in rows)}
    for what in ("ttft", "itl", "total"):
        times = [row[2][what] for row in rows]
        without, on, again = (quantile(column, .5) for column in zip(*times))
        ratios = [x / max(a, b) for a, x, b in times]
        figures[what] = {"off_p50_ms": 1e3 * without, "on_p50_ms": 1e3 * on, "on_over_off": 2 * on / (without + again),
                         "off_over_off": again / without, "on_over_slower_off_max": max(ratios),
                         "slower": slower(times, 1), "off_slower": [slower(times, 0), slower(times, 2)]}
    return figures


# --- what came of it --------------------------------------------------------------------------------------------------


def line_of(name, f):
    tiers = "  ".join(f"{tier} {100 * share:.1f} %" for tier, share in f["hits_by_tier"].items())
    first = lambda key: f"{f[key]['p50_ms']:.1f}/{f[key]['p99_ms']:.1f}" if f[key] else "-"
    print(f"{name:6} {f['seconds']:7.2f} s  prompts {f['prompt_tokens']:,} tokens, computed {f['computed_prompt_tokens']:,.0f}"
          f"  found {100 * f['hit_ratio']:.1f} % ({tiers})")
    print(f"       TTFT p50/p99 ms: cached turns {first('ttft_cached')}, others {first('ttft_uncached')}; first turns "
          f"{first('ttft_first_turn')}, later {first('ttft_later_turns')}; ITL {first('itl')}; "
          f"preemptions {f['preemptions']:.0f}, pages sent {f['pages_sent']:.0f}, dropped {sum(f['pages_dropped_by_tier'].values()):.0f}")


def load(on, off, args, workload):
    result = {"on": under_load(on, workload, args.clients), "off": under_load(off, workload, args.clients)}
    figures = {name: load_figures(*result[name]) for name in result}
    for name in figures:
        line_of(name, figures[name])
    figures["matched"] = m = matched(result["on"][0], result["off"][0])
    figures["off_over_on_seconds"] = figures["off"]["seconds"] / figures["on"]["seconds"]
    print(f"off/on {figures['off_over_on_seconds']:.2f} in time; each request, on/off: median {m['total_ratio_p50']:.3f}, p99 "
          f"{m['total_ratio_p99']:.3f}, max {m['total_ratio_max']:.3f}; {m['slower']} of {len(result['on'][0])} took more than "
          f"3 % longer under load; {m['answers_equal']} answers equal")
    return figures


def pairs(on, off, args):
    rows, figures = in_turns(on, off, args), {}
    for turn, name in ((0, "uncached"), (1, "cached")):
        figures[name] = f = pair_figures(rows, turn)
        for what in ("ttft", "itl", "total"):
            v = f[what]
            print(f"one at a time, {name:8} turn, {what:5}: off {v['off_p50_ms']:8.3f} ms, on/off {v['on_over_off']:.3f} (off/off "
                  f"{v['off_over_off']:.3f}); the slowest {v['on_over_slower_off_max']:.3f} of the slower without; more than 3 % "
                  f"slower than both others: {v['slower']} of {f['requests']} (off {v['off_slower'][0]} and {v['off_slower'][1]})")
    return figures


def run(args, result):
    workload = Workload(args)
    longest = max(workload.tokens_max(), args.pair_len + 2 * (args.user_len + args.answer_len))
    flags = ["--max-num-seqs", args.clients, "--max-model-len", longest + 64, *args.flags]
    daemons = []
    try:
        for more in ([], [OFF]):
            daemons.append(Daemon(args.dakd, args.model, [*flags, *more]))
        if args.only in (None, "load"):
            result["load"] = load(*daemons, args, workload)
            write(args, result)  # counts, should the rest be cut short
        if args.only in (None, "pairs"):
            result["pairs"] = pairs(*daemons, args)
            write(args, result)
        for daemon in daemons:
            status = daemon.stop()
            if status:
                raise RuntimeError(f"a daemon stopped with status {status}: {daemon.log()[-1000:]}")
    finally:
        for daemon in daemons:
            daemon.kill()


def write(args, result):
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f, indent=1)


def main():
    parser = argparse.ArgumentParser(description="multi-turn chat with the prefix cache and without")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--systems", type=int, default=4)
    parser.add_argument("--system-len", type=int, default=256)
    parser.add_argument("--user-len", type=int, default=40, help="mean")
    parser.add_argument("--answer-len", type=int, default=16, help="mean")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--pair-len", type=int, default=1024, help="tokens of their system prompts")
    parser.add_argument("--only", choices=("load", "pairs"))
    args = arguments(parser)
    result = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "model": args.model, "seed": args.seed, "flags": args.flags,
              "conversations": args.conversations, "turns": args.turns, "clients": args.clients}
    print(f"{args.conversations} conversations of {args.turns} turns, {args.clients} at a time, {args.systems} system prompts of "
          f"{args.system_len} tokens, seed {args.seed}; {' '.join(args.flags)}")
    try:
        run(args, result)
    except (RuntimeError, Malformed) as e:
        sys.exit(f"FAILED: {e}")


if __name__ == "__main__":
    main()

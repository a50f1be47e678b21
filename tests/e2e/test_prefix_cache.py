"""The prefix cache as clients see it: what `cached_tokens` and /metrics say, that answers are the same, that salts keep
tenants apart, and that nothing stays behind."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from daemon import MODEL, cached, counts, run, text_of
from test_streams import leave_early

PAGE_TOKENS = 64
HBM = '{tier="hbm"}'
# Of token ids, so that a prompt has exactly as many tokens as a test says.
RNG = random.Random(11)
SYSTEM = [RNG.randrange(10, 4000) for _ in range(4 * PAGE_TOKENS)]


def ids(count, seed):
    rng = random.Random(seed)
    return [rng.randrange(10, 4000) for _ in range(count)]


def body_of(prompt, **more):
    return {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True,
            "logprobs": 2} | more


def ask(daemon, prompt, **more):
    return daemon.post("/v1/completions", body_of(prompt, **more))


def found(answer, most):
    """Of `most` tokens that are in pages, all are found but for those of a page that is not full."""
    return most // PAGE_TOKENS * PAGE_TOKENS <= cached(answer) <= most


def same(a, b):
    keys = ("text", "token_ids", "logprobs", "finish_reason")
    assert [[c[key] for key in keys] for c in a["choices"]] == [[c[key] for key in keys] for c in b["choices"]]
    assert counts(a["usage"]) == counts(b["usage"])


@pytest.fixture(scope="module")
def pair():
    """One daemon with the cache and one without."""
    from daemon import Daemon
    with Daemon("--max-num-seqs", 8) as on, Daemon("--max-num-seqs", 8, "--no-prefix-cache") as off:
        yield on, off


def test_a_conversation_grows(pair):
    """Every turn finds the one before it: prompt and answer but for the last token, whose KV was never computed."""
    on, off = pair
    history = ids(90, 1)
    before, computed = on.metrics(), 0
    for turn in range(5):
        answer = ask(on, history)
        same(answer, ask(off, history))
        if turn == 0:
            assert cached(answer) == 0
        else:
            assert found(answer, known - 1)
        computed += len(history) - cached(answer)
        known = len(history) + 12
        history = history + answer["choices"][0]["token_ids"] + ids(30, 100 + turn)
    after = on.wait_idle()
    grown = {name: after[name] - before[name] for name in after if name in before}
    assert grown["dakd_prefix_cache_queries_total"] - grown["dakd_prefix_cache_hits_total"] == computed
    assert grown["dakd_prefix_cache_hits_total"] == grown["dakd_tier_prefix_cache_hits_total" + HBM] > 0
    assert grown["dakd_prompt_tokens_total"] == computed
    assert after["dakd_tier_kv_pages_cached" + HBM] > 0 and after["dakd_tier_kv_pages_used" + HBM] == 0


def test_chat_tells_cached_tokens(pair):
    """Messages, stream and not: the second turn's template renders the first turn's text again."""
    on, _ = pair
    messages = [{"role": "system", "content": "You answer questions on dakd. " * 8}, {"role": "user", "content": "What is dakd?"}]
    options = {"max_tokens": 40, "temperature": 0}
    first = on.post("/v1/chat/completions", {"messages": messages, **options})
    again = on.post("/v1/chat/completions", {"messages": messages, **options})
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert found(again, again["usage"]["prompt_tokens"] - 1)  # the last token's logits are wanted
    messages += [first["choices"][0]["message"] | {"refusal": None}, {"role": "user", "content": "And what is a tier?"}]
    body = {"messages": messages, **options, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = on.stream("/v1/chat/completions", body)
    whole = on.post("/v1/chat/completions", {key: body[key] for key in body if key != "stream_options"})
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"] == [] and cached(chunks[-1]) >= PAGE_TOKENS
    assert {cached(chunk) for chunk in chunks} == {cached(chunks[-1])}
    assert found(whole, whole["usage"]["prompt_tokens"] - 1)


def test_a_shared_beginning(pair):
    """Others' system prompt is found, the part of a page that is alike too; an answer alone is no prompt."""
    on, off = pair
    assert cached(ask(on, SYSTEM + ids(20, 2))) == 0
    for seed in range(3, 7):
        prompt = SYSTEM + ids(20, seed)
        answer = ask(on, prompt)
        assert cached(answer) == len(SYSTEM)
        same(answer, ask(off, prompt))
    other = SYSTEM[:100] + ids(50, 8)  # parts in the middle of a page
    answer = ask(on, other)
    assert 64 <= cached(answer) <= 100
    same(answer, ask(off, other))


def test_salts_keep_apart(pair):
    on, off = pair
    prompt = ids(200, 21)
    plain = ask(off, prompt)
    assert cached(ask(on, prompt)) == 0
    for salt in ("tenant a", "tenant b"):
        first, second = ask(on, prompt, cache_salt=salt), ask(on, prompt, cache_salt=salt)
        assert cached(first) == 0 and found(second, 199)
        same(first, plain)
        same(second, plain)
    assert found(ask(on, prompt), 199)
    assert cached(ask(on, prompt, cache_salt="tenant")) == 0, "a salt that another begins with"


def test_scored_prompts(pair):
    """Log-probabilities of the whole prompt need its logits: the same with and without the cache, cold and warm."""
    on, off = pair
    prompt = ids(150, 31)
    scored = {"echo": True, "max_tokens": 4}
    wanted = ask(off, prompt, **scored)
    same(ask(on, prompt, **scored), wanted)
    assert found(ask(on, prompt), 149), "what a scored prompt left is not found"
    warm = ask(on, prompt, **scored)
    same(warm, wanted)
    assert len(warm["choices"][0]["logprobs"]["token_logprobs"]) == 154


@pytest.mark.parametrize("stream", [False, True])
def test_choices_share_their_prompt(pair, stream):
    """n choices: the prompt is computed once, and each choice is what it is alone."""
    on, off = pair
    prompt = ids(180 + 7 * stream, 41 + stream)
    body = {"n": 4, "temperature": 1, "seed": 9, "max_tokens": 20}
    before = on.wait_idle()
    if stream:
        chunks = on.stream("/v1/completions", body_of(prompt, **body))
        choices = {i: [t for chunk in chunks for c in chunk["choices"] if c["index"] == i for t in c["token_ids"]]
                   for i in range(4)}
    else:
        choices = {c["index"]: c["token_ids"] for c in ask(on, prompt, **body)["choices"]}
    after = on.wait_idle()
    wanted = {c["index"]: c["token_ids"] for c in ask(off, prompt, **body)["choices"]}
    assert choices == wanted and len({tuple(tokens) for tokens in choices.values()}) == 4
    alone = ask(off, prompt, **body | {"n": 1})
    assert alone["choices"][0]["token_ids"] == choices[0]
    # Once, and of every other choice the last token, whose logits are sampled from.
    computed = after["dakd_prompt_tokens_total"] - before["dakd_prompt_tokens_total"]
    assert len(prompt) <= computed <= len(prompt) + 3
    assert after["dakd_num_preemptions_total"] == before["dakd_num_preemptions_total"]


def test_many_at_once(pair):
    """The same beginning asked for by many at the same time, with and without: equal answers, and little computed."""
    on, off = pair
    prompts = [ids(300, 51) + ids(10 + i, 60 + i) for i in range(12)]
    before = on.wait_idle()
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: ask(on, prompt), prompts))
    after = on.wait_idle()
    for prompt, answer in zip(prompts, answers):
        same(answer, ask(off, prompt))
    computed = after["dakd_prompt_tokens_total"] - before["dakd_prompt_tokens_total"]
    assert computed == sum(len(prompt) - cached(answer) for prompt, answer in zip(prompts, answers))
    assert computed < sum(map(len, prompts)) / 2


def test_off(pair):
    _, off = pair
    prompt = ids(130, 71)
    before = off.wait_idle()
    assert [cached(ask(off, prompt)) for _ in range(3)] == [0, 0, 0]
    after = off.wait_idle()
    assert after["dakd_prompt_tokens_total"] - before["dakd_prompt_tokens_total"] == 3 * len(prompt)
    for name in ("prefix_cache_queries_total", "prefix_cache_hits_total", "tier_kv_pages_cached" + HBM,
                 "tier_prefix_cache_pages_dropped_total" + HBM):
        assert after["dakd_" + name] == 0, name


@pytest.mark.parametrize("flags", [["--no-enable-prefix-caching"], ["--prefix-cache=off"]])
def test_names_of_the_switch(start, flags):
    daemon = start(*flags)
    prompt = ids(130, 81)
    assert [cached(ask(daemon, prompt)) for _ in range(2)] == [0, 0]


def test_bench_has_no_such_flag():
    done = run("bench", MODEL, "--no-prefix-cache")
    assert done.returncode == 2 and "--no-prefix-cache is not a flag of dakd bench" in done.stdout


@pytest.mark.parametrize("flags", [[], ["--async-scheduling", "on"], ["--no-prefix-cache"]])
def test_cancel_storm(start, flags):
    """Clients that leave at any point of requests that share their beginnings: no page stays in use, and who stays gets
    the answer that he gets alone.  The cache is smaller than what passes through it."""
    daemon = start("--max-num-seqs", 8, "--max-model-len", 768, "--kv-cache-memory-bytes", 40 * 256 * 1024,
                   "--max-num-batched-tokens", 256, *flags)
    rng = random.Random(91)
    jobs = []
    for i in range(60):
        prompt = ids(400, i % 5)[:rng.randrange(60, 400)] + ids(rng.randrange(1, 80), 1000 + i)
        more = {"max_tokens": rng.randrange(1, 60), "n": rng.choice([1, 1, 2, 3]), "temperature": rng.choice([0, 1]), "seed": i}
        jobs.append((body_of(prompt, **more), rng.random() < 0.6, random.Random(i)))

    def do(job):
        body, leaves, own = job
        return leave_early(daemon, "/v1/completions", body, own) and None if leaves else daemon.post("/v1/completions", body)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(do, jobs))
    now = daemon.wait_idle()
    assert now["dakd_tier_kv_pages_used" + HBM] == 0
    assert 0 <= now["dakd_tier_kv_pages_cached" + HBM] <= now["dakd_tier_kv_pages" + HBM] == 40
    assert (now["dakd_tier_kv_pages_cached" + HBM] > 0) == ("--no-prefix-cache" not in flags)
    for (body, leaves, _), answer in zip(jobs, answers):
        if not leaves:
            same(daemon.post("/v1/completions", body), answer)
    daemon.wait_idle()

"""An answer does not depend on what else is in the batch, nor on how the prompt was cut into chunks."""

import concurrent.futures

from daemon import counts

PROMPTS = ["dakd", "The planner puts weights", "A KV page holds", "one", "To start the daemon, ",
           "Remote memory is read in place. " * 12]


def requests():
    for i, prompt in enumerate(PROMPTS):
        yield {"prompt": prompt, "max_tokens": 10 + 3 * i, "temperature": 0, "logprobs": 2}
        yield {"prompt": prompt, "max_tokens": 12, "temperature": 1, "seed": 7 + i, "logprobs": 1, "top_p": 0.9}


def result(answer):
    choice = answer["choices"][0]
    return choice["text"], choice["finish_reason"], choice["logprobs"], counts(answer["usage"])


def test_batched_equals_alone(dakd):
    bodies = list(requests())
    alone = [result(dakd.post("/v1/completions", body)) for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: result(dakd.post("/v1/completions", body)), bodies * 2))
    assert together == alone * 2  # log-probabilities too: bit for bit


def test_chunking_and_preemption_change_nothing(dakd, start):
    """Tiny steps and a KV cache that holds one long sequence: prompts are cut, sequences put back and computed again."""
    tight = start("--max-num-batched-tokens", 24, "--max-num-seqs", 8, "--kv-cache-memory-bytes", 0)
    bodies = list(requests())
    alone = [result(dakd.post("/v1/completions", body)) for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(lambda body: result(tight.post("/v1/completions", body)), bodies)) == alone


def test_a_step_ahead_changes_nothing(dakd, start):
    """Steps issued before the tokens of the one before are known: in a roomy daemon, and where sequences are put back.
    Some of the answers end by a stop string or EOS, and some clients leave."""
    bodies = list(requests()) + [{"prompt": p, "max_tokens": 40, "temperature": 0, "stop": [" the", "."]} for p in PROMPTS]
    alone = [result(dakd.post("/v1/completions", body)) for body in bodies]
    for flags in (), ("--max-num-batched-tokens", 24, "--max-num-seqs", 8):
        ahead = start("--async-scheduling", "on", *flags)
        left = ahead.connect()
        ahead.send(left, "POST", "/v1/completions", {"prompt": "one", "max_tokens": 500, "stream": True}).read(20)
        left.close()
        with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
            assert list(pool.map(lambda body: result(ahead.post("/v1/completions", body)), bodies)) == alone
        ahead.wait_idle()


def test_prompts_of_one_request_equal_prompts_alone(dakd):
    options = {"max_tokens": 8, "temperature": 1, "seed": 3}
    alone = [dakd.post("/v1/completions", {"prompt": p, **options})["choices"][0]["text"] for p in PROMPTS]
    together = dakd.post("/v1/completions", {"prompt": PROMPTS, **options})["choices"]
    assert [c["text"] for c in together] == alone

"""The official Python client: what its users rely on."""

import asyncio

import openai
import pytest

from daemon import counts

PROMPT = "dakd is a"
QUESTION = [{"role": "user", "content": "What is dakd?"}]


@pytest.fixture(scope="module")
def client(dakd):
    with openai.OpenAI(base_url=dakd.url + "/v1", api_key="none", max_retries=0, timeout=300) as c:
        yield c


def test_models(client):
    model, = client.models.list().data
    assert model.id == "demo-model" and model.object == "model" and model.max_model_len > 0
    assert client.models.retrieve("demo-model").id == "demo-model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_chat(client):
    answer = client.chat.completions.create(model="demo-model", messages=QUESTION, max_tokens=12, temperature=0)
    choice, = answer.choices
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("dakd-")
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 12 and usage.prompt_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chat_stream_equals_whole(client):
    options = dict(model="demo-model", messages=QUESTION, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert len({c.id for c in chunks}) == 1
    assert all(c.object == "chat.completion.chunk" for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks[:-1]]
    assert reasons[:-1] == [None] * (len(reasons) - 1) and reasons[-1] == whole.choices[0].finish_reason
    assert chunks[-2].choices[0].delta.content is None
    assert chunks[-1].choices == [] and counts(chunks[-1].usage.model_dump()) == counts(whole.usage.model_dump())
    assert all(c.usage is None for c in chunks[:-1])


def test_stream_helper(client):
    with client.chat.completions.stream(model="demo-model", messages=QUESTION, max_tokens=250, temperature=0) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content


def test_async(dakd):
    async def ask():
        async with openai.AsyncOpenAI(base_url=dakd.url + "/v1", api_key="none", max_retries=0, timeout=300) as c:
            options = dict(model="demo-model", prompt=PROMPT, max_tokens=10, temperature=0)
            whole, stream = await asyncio.gather(c.completions.create(**options),
                                                 c.completions.create(**options, stream=True))
            return whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


def test_completion_prompts_and_n(client):
    alone = [client.completions.create(model="demo-model", prompt=p, max_tokens=6, temperature=0).choices[0].text
             for p in (PROMPT, "The planner")]
    answer = client.completions.create(model="demo-model", prompt=[PROMPT, "The planner"], n=2, max_tokens=6,
                                       temperature=0)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [c.text for c in answer.choices] == [alone[0], alone[0], alone[1], alone[1]]


def test_seed(client):
    def ask(seed, n=1):
        answer = client.completions.create(model="demo-model", prompt=PROMPT, max_tokens=24, temperature=1.5, seed=seed,
                                           n=n, extra_body={"ignore_eos": True, "top_k": 0})
        return [c.text for c in answer.choices]

    assert ask(1) == ask(1)
    three = ask(1, n=3)
    assert three[0] == ask(1)[0] and len(set(three)) == 3 and three == ask(1, n=3)
    assert ask(1) != ask(2)


def test_unseeded_answers_differ(client):
    texts = {client.completions.create(model="demo-model", prompt=PROMPT, max_tokens=24, temperature=2,
                                       extra_body={"ignore_eos": True}).choices[0].text for _ in range(4)}
    assert len(texts) > 1


def test_stop(client):
    options = dict(model="demo-model", prompt=PROMPT, max_tokens=32, temperature=0, extra_body={"ignore_eos": True})
    text = client.completions.create(**options).choices[0].text
    stop = text[len(text) // 2:][:3]
    expected = text[:text.index(stop)]
    whole = client.completions.create(**options, stop=stop).choices[0]
    assert (whole.text, whole.finish_reason) == (expected, "stop")
    streamed = "".join(c.choices[0].text for c in client.completions.create(**options, stop=[stop, "x" * 40],
                                                                           stream=True))
    assert streamed == expected
    options["extra_body"] = {"ignore_eos": True, "include_stop_str_in_output": True}
    assert client.completions.create(**options, stop=stop).choices[0].text == expected + stop


def test_chat_logprobs(client):
    options = dict(model="demo-model", messages=QUESTION, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3)
    choice = client.chat.completions.create(**options).choices[0]
    entries = choice.logprobs.content
    assert bytes(b for e in entries for b in e.bytes).decode().strip() == choice.message.content.strip()
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.top_logprobs[0].logprob == entry.logprob
        values = [t.logprob for t in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
    streamed = [e for c in client.chat.completions.create(**options, stream=True) if c.choices[0].logprobs
                for e in c.choices[0].logprobs.content]
    assert [e.model_dump() for e in streamed] == [e.model_dump() for e in entries]


def test_completion_logprobs(client):
    choice = client.completions.create(model="demo-model", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=2,
                                       extra_body={"ignore_eos": True, "skip_special_tokens": False}).choices[0]
    scores = choice.logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(scores.text_offset) == 6
    for token, value, top in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs):
        assert top[token] == value == max(top.values()) and 1 <= len(top) <= 2


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_the_prompt(client, dakd, stream):
    """What lm-evaluation-harness sends: token ids, echo, one token of answer."""
    ids = dakd.post("/tokenize", {"prompt": "The planner fills HBM first."})["tokens"]
    options = dict(model="demo-model", prompt=ids, max_tokens=1, temperature=0, logprobs=1, echo=True)
    if stream:
        chunks = list(client.completions.create(**options, stream=True))
        text = "".join(c.choices[0].text for c in chunks)
        parts = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
        values = [v for p in parts for v in p.token_logprobs]
        top = [t for p in parts for t in p.top_logprobs]
    else:
        choice = client.completions.create(**options).choices[0]
        text, values, top = choice.text, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
        assert choice.logprobs.text_offset[0] == 0
    assert text.startswith("The planner fills HBM first.")
    assert len(values) == len(ids) + 1 and values[0] is None and top[0] is None
    assert all(v <= 0 for v in values[1:]) and all(1 <= len(t) <= 2 for t in top[1:])


def test_score_only(client):
    choice = client.completions.create(model="demo-model", prompt=PROMPT, max_tokens=0, logprobs=0, echo=True,
                                       temperature=0).choices[0]
    longer = client.completions.create(model="demo-model", prompt=PROMPT, max_tokens=2, logprobs=0, echo=True,
                                       temperature=0, extra_body={"min_tokens": 2}).choices[0]
    assert choice.text == PROMPT and choice.finish_reason == "length"
    assert longer.logprobs.token_logprobs[:-2] == choice.logprobs.token_logprobs


def test_min_tokens_and_length(client):
    answer = client.chat.completions.create(model="demo-model", messages=QUESTION, max_tokens=20, temperature=0,
                                            extra_body={"min_tokens": 20})
    assert answer.usage.completion_tokens == 20 and answer.choices[0].finish_reason == "length"


def test_logit_bias(client, dakd):
    token = dakd.post("/tokenize", {"prompt": " the", "add_special_tokens": False})["tokens"][-1]
    answer = client.completions.create(model="demo-model", prompt=PROMPT, max_tokens=3, temperature=0,
                                       logit_bias={str(token): 100}, extra_body={"return_token_ids": True})
    assert answer.choices[0].token_ids == [token] * 3


def test_stop_token_ids(client):
    options = dict(model="demo-model", prompt=PROMPT, max_tokens=8, temperature=0)
    ids = client.completions.create(**options, extra_body={"return_token_ids": True, "ignore_eos": True}).choices[0].token_ids
    choice = client.completions.create(**options, extra_body={"stop_token_ids": [ids[3]], "ignore_eos": True,
                                                              "return_token_ids": True}).choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason == ids[3]
    assert choice.token_ids == ids[:ids.index(ids[3]) + 1]


def test_tools_are_rendered(client):
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.",
                                             "parameters": {"type": "object", "properties": {}}}}
    options = dict(model="demo-model", messages=QUESTION, max_tokens=4, temperature=0, tools=[tool])
    assert client.chat.completions.create(**options, tool_choice="auto").choices[0].message.tool_calls is None
    assert client.chat.completions.create(**options, tool_choice="none").choices[0].message.role == "assistant"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**options, tool_choice="required")
    assert caught.value.param == "tool_choice" and "not supported" in caught.value.body["message"]


def test_errors_are_the_clients_exceptions(client, dakd):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo-model", prompt="x", temperature=3)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    limit = dakd.request("GET", "/v1/models")[1]["data"][0]["max_model_len"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo-model", prompt=[1] * (limit + 5))
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.body["n_prompt_tokens"] == limit + 5 and caught.value.body["n_ctx"] == limit
    assert f"maximum context length is {limit} tokens" in caught.value.body["message"]


def test_wrong_key(start):
    daemon = start(key="secret")
    for key, right in (("secret", True), ("secre", False), ("secret2", False), ("wrong!", False)):
        with openai.OpenAI(base_url=daemon.url + "/v1", api_key=key, max_retries=0, timeout=300) as c:
            if right:
                assert c.completions.create(model="demo-model", prompt="x", max_tokens=1).choices
            else:
                with pytest.raises(openai.AuthenticationError):
                    c.completions.create(model="demo-model", prompt="x", max_tokens=1)

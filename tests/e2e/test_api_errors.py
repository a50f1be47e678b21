"""Requests that must be refused: the status, the shape of the error, and the field it names."""

import json

import pytest

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
USER = [{"role": "user", "content": "hi"}]

# Field -> values that are wrong on both generating endpoints.
BOTH = {
    "temperature": [-1, 2.5, "1", True, [], {}],
    "top_p": [0, 1.5, "x", -0.1],
    "min_p": [-0.1, 1.1, "x"],
    "top_k": [-2, 1.5, "x"],
    "presence_penalty": [-3, 3, "x"],
    "frequency_penalty": [-3, 3, []],
    "repetition_penalty": [0, -1, "x"],
    "n": [0, -1, 1.5, "1", 100000, True],
    "max_tokens": [-1, 1.5, "5", 0, 10**12],
    "min_tokens": [-1, "x", 10**12],
    "seed": [1.5, "x", []],
    "stop": ["", 1, [""], [1], ["a"] * 17, {}, "x" * 5000],
    "stop_token_ids": [1, ["a"], [-1], [10**9]],
    "logit_bias": [[], 1, {"x": 1}, {"-1": 1}, {"1": 101}, {"1": "a"}, {str(10**9): 1}],
    "ignore_eos": [1, "x"],
    "stream": [1, "true"],
    "stream_options": [1, {"include_usage": True}],
    "response_format": [1, {"type": "json_object"}, {"type": "json_schema"}],
    "user": [1, []],
    "use_beam_search": [True],
    "guided_json": [{"type": "object"}],
    "no_such_field": [1, None, "x"],
    "model": [1, ""],
}
CASES = [(path, {field: value}, field) for path in (CHAT, COMPLETIONS) for field, values in BOTH.items()
         for value in values]
CASES += [(COMPLETIONS, {"prompt": value}, "prompt") for value in (None, 1, True, {}, [], [[]], [None], ["a", 1], [1, "a"],
                                                                  [-1], [10**9], [1.5], ["x"] * 1000)]
CASES += [(COMPLETIONS, {field: value}, field) for field, value in (
    ("suffix", "x"), ("best_of", 2), ("logprobs", 21), ("logprobs", True), ("logprobs", -1), ("echo", 1),
    ("messages", USER), ("tools", []))]
CASES += [(CHAT, {"messages": value}, param) for value, param in (
    (None, "messages"), ([], "messages"), ("hi", "messages"), ([1], "messages[0]"), ([{}], "messages[0].role"),
    ([{"role": "x", "content": "a"}], "messages[0].role"), ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": 1}], "messages[0].content"), ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
    ([*USER, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0].function"))]
CASES += [(CHAT, {field: value}, field) for field, value in (
    ("tool_choice", "required"), ("tool_choice", {"type": "function", "function": {"name": "f"}}), ("tool_choice", 1),
    ("tools", 1), ("top_logprobs", 1), ("logprobs", 1), ("max_completion_tokens", 0), ("store", True),
    ("functions", [{"name": "f"}]), ("reasoning_effort", "low"), ("audio", {"voice": "x"}), ("metadata", {"a": 1}),
    ("continue_final_message", True), ("chat_template_kwargs", 1), ("chat_template", "x"), ("prompt", "x"))]
CASES += [(TOKENIZE, {"prompt": None}, "prompt"), (TOKENIZE, {"prompt": 1}, "prompt"), (TOKENIZE, {"x": 1}, "x"),
          (DETOKENIZE, {"tokens": "x"}, "tokens"), (DETOKENIZE, {"tokens": [-1]}, "tokens")]

BASE = {CHAT: {"messages": USER}, COMPLETIONS: {"prompt": "hi"}, TOKENIZE: {"prompt": "hi"}, DETOKENIZE: {"tokens": []}}


def check_error(answer, kind):
    error = answer["error"]
    assert set(error) >= {"message", "type", "param", "code"} and error["type"] == kind
    assert error["message"].endswith(".") and "\n" not in error["message"]
    return error


def test_there_are_enough_cases():
    assert len(CASES) >= 100


@pytest.mark.parametrize("path,change,param", CASES, ids=[f"{p.rsplit('/')[-1]}-{json.dumps(c)[:50]}" for p, c, _ in CASES])
def test_malformed_field(dakd, path, change, param):
    status, answer, _ = dakd.request("POST", path, {**BASE[path], **change})
    assert status == 400, answer
    error = check_error(answer, "invalid_request_error")
    assert error["param"] == param or error["param"].startswith(param + ".")
    assert param.rsplit(".")[-1] in error["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE])
@pytest.mark.parametrize("body", ["", "{", "[]", "1", "null", '{"a":1}x', '{"a":1,"a":1}', '{"prompt":"\\ud800"}',
                                  b'{"prompt":"\xff"}', '{"prompt":1e999}', "[" * 10000, "{'a':1}"])
def test_malformed_body(dakd, path, body):
    status, answer, _ = dakd.request("POST", path, body)
    assert status == 400, answer
    check_error(answer, "invalid_request_error")


def test_unknown_model(dakd):
    for path in (CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE):
        status, answer, _ = dakd.request("POST", path, {**BASE[path], "model": "gpt-4"})
        assert status == 404
        error = check_error(answer, "not_found_error")
        assert error["code"] == "model_not_found" and error["param"] == "model" and "gpt-4" in error["message"]


def test_unknown_route_and_method(dakd):
    assert dakd.request("GET", "/v1/nothing")[0] == 404
    assert dakd.request("GET", "/v1/completions")[0] == 405
    assert dakd.request("DELETE", "/v1/models")[0] == 405
    check_error(dakd.request("POST", "/v2/completions", {})[1], "not_found_error")


@pytest.mark.parametrize("stream", [False, True])
def test_context_overflow(dakd, stream):
    limit = dakd.request("GET", "/v1/models")[1]["data"][0]["max_model_len"]
    for prompt, max_tokens in (([1] * limit, None), ([1] * (limit + 1), 1), ([1] * 10, limit), ([1] * (limit - 1), 2)):
        status, answer, _ = dakd.request("POST", COMPLETIONS, {"prompt": prompt, "max_tokens": max_tokens, "stream": stream})
        assert status == 400
        error = check_error(answer, "invalid_request_error")
        assert error["code"] == "context_length_exceeded"
        assert (error["n_prompt_tokens"], error["n_ctx"]) == (len(prompt), limit)
        assert f"maximum context length is {limit} tokens" in error["message"]


def test_long_text_overflows_the_context(dakd):
    status, answer, _ = dakd.request("POST", CHAT, {"messages": [{"role": "user", "content": "many words " * 50000}]})
    assert status == 400
    assert answer["error"]["n_prompt_tokens"] > answer["error"]["n_ctx"] > 0


def test_queue_full(start):
    """More sequences than the engine may hold: 503 with Retry-After for some, an answer for the rest."""
    daemon = start("--max-num-seqs", 1, "--max-waiting", 1)
    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    open_streams = []
    for _ in range(2):
        connection = daemon.connect()
        open_streams.append((connection, daemon.send(connection, "POST", COMPLETIONS, body)))
        assert open_streams[-1][1].status == 200
    status, answer, headers = daemon.request("POST", COMPLETIONS, body)
    assert status == 503 and headers["Retry-After"] == "1"
    check_error(answer, "unavailable_error")
    for connection, response in open_streams:
        assert response.read().endswith(b"data: [DONE]\n\n")
        connection.close()
    assert daemon.request("POST", COMPLETIONS, {"prompt": "a", "max_tokens": 1})[0] == 200


def test_api_key(start):
    daemon = start(key="secret key")
    for path in ("/health", "/livez", "/readyz", "/metrics", "/version"):
        assert daemon.request("GET", path, headers={"Authorization": "none"})[0] == 200
    for path in ("/v1/models", "/v1/models/demo-model"):
        assert daemon.request("GET", path)[0] == 200
        for value in ("", "secret key", "Bearer", "Bearer ", "Bearer secret", "Bearer secret keys", "Basic secret key"):
            status, answer, headers = daemon.request("GET", path, headers={"Authorization": value})
            assert status == 401 and headers["WWW-Authenticate"] == "Bearer"
            check_error(answer, "authentication_error")
    for path in (CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE):
        assert daemon.request("POST", path, BASE[path], headers={"Authorization": "Bearer no"})[0] == 401

"""Greedy answers of the demo model equal those computed by the reference implementation when the model was made."""

import json

import pytest

from daemon import ROOT, text_of

FIXTURE = ROOT / "tests" / "fixtures" / "demo_answers.json"
CASES = json.loads(FIXTURE.read_text()) if FIXTURE.exists() else []


def test_fixture_is_there():
    assert len(CASES) > 0, f"{FIXTURE} is missing or empty"


@pytest.mark.parametrize("number", range(len(CASES)))
def test_answer(dakd, number):
    case = CASES[number]
    body = {"messages": case["messages"], "temperature": 0, "return_token_ids": True,
            "max_tokens": len(case["answer_ids"]) + 1}
    answer = dakd.post("/v1/chat/completions", body)
    assert answer["prompt_token_ids"] == case["prompt_ids"]
    choice = answer["choices"][0]
    assert choice["message"]["content"] == case["answer"]
    # The ids may or may not list the end-of-turn token.
    ids = choice["token_ids"]
    count = len(case["answer_ids"])
    assert ids[:count] == case["answer_ids"] and len(ids) <= count + 1
    assert text_of(dakd.stream("/v1/chat/completions", body)) == case["answer"]

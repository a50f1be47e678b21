"""Templates in the manner of well-known models' against jinja2, over generated conversations."""

import json
import os
import pathlib
import random

import jinja_reference as ref
import pytest

TEMPLATES = sorted((pathlib.Path(__file__).parent / "templates").glob("*.jinja"))
SEED = int(os.environ.get("DAKD_TEST_SEED", "20261121"))
CONVERSATIONS = 160

TEXTS = [
    "Hello!", "", " ", "  padded  ", "\n\nlines\n\n", "What is 2 + 2?\nAnd 3?", "héllo wörld", "日本語のテキスト", "emoji 😀👩‍👩‍👧",
    "<|im_end|>", "quotes ' and \"", "back\\slash", "{{ not a template }}", "{% if %}", "<b>html & more</b>", "tab\there",
    "<think>\nsome thought\n</think>\n\nanswer", "<think>open", "</think>", "a\u2028b\u0085c", "\u00a0nbsp\u3000", "x" * 300,
    "<tool_response>r</tool_response>", "trailing\n", "\r\nwindows\r\n", "null", "İstanbul ß ﬁ", "\u200bzero\u0001ctl\x7f",
]
NAMES = ["get_weather", "search", "run-code", "größe"]


class Generator:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def text(self):
        return self.r.choice(TEXTS)

    def value(self, depth=2):
        r = self.r
        kinds = [self.text, lambda: r.randrange(-5, 10**12), lambda: r.choice([0.5, -2.25, 1e-7, 3.14159]), lambda: None, lambda: r.random() < 0.5]
        if depth:
            kinds += [lambda: [self.value(depth - 1) for _ in range(r.randrange(3))],
                      lambda: {k: self.value(depth - 1) for k in r.sample(["a", "b c", "ü", "items"], r.randrange(3))}]
        return r.choice(kinds)()

    def schema(self, depth=2):
        r = self.r
        kind = r.choice(["string", "number", "integer", "boolean", "array", "object", "enum", "oneOf", "union", "none"])
        if kind == "array":
            return {"type": "array", "items": self.schema(depth - 1)} if depth and r.random() < 0.8 else {"type": "array", "nullable": True}
        if kind == "object":
            props = {f"p{i}": self.schema(depth - 1) for i in range(r.randrange(3))} if depth else {}
            return {"type": "object", "properties": props, "required": list(props)[:1]}
        if kind == "enum":
            return {"type": "string", "enum": ["x", "y"], "default": "x"}
        if kind == "oneOf":
            return {"oneOf": [{"type": "string", "description": "d"}, {"type": "number", "default": 3}]}
        if kind == "union":
            return {"type": ["string", "null"]}
        return {} if kind == "none" else {"type": kind, "description": self.text()}

    def tool(self):
        names = self.r.sample(["city", "unit", "days", "opts"], self.r.randrange(4))
        params = {"type": "object", "properties": {n: self.schema() for n in names}, "required": names[:1]}
        return {"type": "function", "function": {"name": self.r.choice(NAMES), "description": self.text(), "parameters": params}}

    def tool_call(self):
        ident = "".join(self.r.choice("abc123XYZ") for _ in range(self.r.choice([9, 9, 9, 5])))
        arguments = {k: self.value() for k in self.r.sample(["city", "unit", "x"], self.r.randrange(3))}
        call = {"type": "function", "function": {"name": self.r.choice(NAMES), "arguments": arguments}}
        return {"id": ident, **call} if self.r.random() < 0.9 else call

    def content(self):
        r = self.r
        if r.random() < 0.85:
            return self.text()
        parts = [{"type": "text", "text": self.text()}, {"type": "image", "image": "u"}, {"type": "image_url", "image_url": {"url": "u"}}, {"type": "audio"}]
        return [dict(r.choice(parts)) for _ in range(r.randrange(4))]

    def conversation(self):
        r, messages = self.r, []
        if r.random() < 0.5:
            messages.append({"role": r.choice(["system", "system", "developer"]), "content": self.content()})
        for turn in range(r.randrange(0 if messages else 1, 5)):
            messages.append({"role": "user", "content": self.content()})
            if r.random() < 0.3:
                calls = [self.tool_call() for _ in range(r.choice([1, 1, 2]))]
                messages.append({"role": "assistant", "content": r.choice([None, "", self.text()]), "tool_calls": calls})
                for call in calls:
                    messages.append({"role": "tool", "content": r.choice([self.text(), json.dumps({"t": 21})]), "tool_call_id": call.get("id", "x")})
            if r.random() < 0.8:
                answer = {"role": "assistant", "content": self.text()}
                if r.random() < 0.2:
                    answer["reasoning_content"] = self.text()
                messages.append(answer)
        if r.random() < 0.15:
            r.shuffle(messages)
        if r.random() < 0.05:
            messages.append({"role": r.choice(["critic", "ipython", "tool"]), "content": self.text()})
        if r.random() < 0.03:
            del messages[r.randrange(len(messages))]["role"]
        return messages

    def variables(self):
        r = self.r
        out = {"messages": self.conversation(), "add_generation_prompt": r.random() < 0.5, "bos_token": "<s>", "eos_token": "</s>",
               "tools": [self.tool() for _ in range(r.randrange(1, 4))] if r.random() < 0.4 else None,
               "documents": [{"title": self.text(), "text": self.text()}] if r.random() < 0.2 else None}
        for name, choices in [("enable_thinking", [True, False]), ("tools_first", [True, False]), ("reasoning_effort", ["low", "high"])]:
            if r.random() < 0.2:
                out[name] = r.choice(choices)
        return out


def test_there_are_enough_templates():
    assert len(TEMPLATES) >= 12


@pytest.fixture(scope="module")
def conversations():
    print("seed", SEED)
    gen = Generator(SEED)
    return [gen.variables() for _ in range(CONVERSATIONS)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_conversations(path, conversations):
    source = path.read_text(encoding="utf-8")
    template = ref.ENV.from_string(source)
    answers = ref.render_all([{"path": str(path), "vars": v} for v in conversations])
    wrong = [d for v, a in zip(conversations, answers) if (d := ref.difference(source, v, a, template))]
    assert not wrong, f"{len(wrong)} of {len(conversations)} differ:\n" + "\n".join(d[-3000:] for d in wrong[:2])
    assert sum(a["ok"] for a in answers) > CONVERSATIONS // 8, "the conversations hardly ever suit this template"


def test_every_template_rejects_what_it_should(conversations):
    """The generator reaches raise_exception in the templates that have it: the messages were compared above."""
    for name in ["llama2", "llama31", "mistral", "gemma", "command_r", "gpt_oss"]:
        path = next(p for p in TEMPLATES if p.stem == name)
        answers = ref.render_all([{"path": str(path), "vars": v} for v in conversations])
        assert any(a["status"] == "INVALID" for a in answers), name

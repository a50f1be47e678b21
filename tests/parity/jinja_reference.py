"""The reference side of the template tests: jinja2, configured the way transformers configures it."""

import copy
import datetime
import json
import os
import pathlib
import subprocess

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("DAKD_BUILD", "build")
NOW = 1_700_000_000


class GenerationBlock(jinja2.ext.Extension):
    """{% generation %}: marks the assistant's text, and renders as its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_body", [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class RaisedByTemplate(jinja2.exceptions.TemplateError):
    """What raise_exception() raises, told apart from the engine's own errors."""


def raise_exception(message):
    raise RaisedByTemplate(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class TemplateNamespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attrs = dict(*args, **kwargs)
        for name in attrs:
            TemplateNamespace.check(name)
        jinja2.utils.Namespace.__init__(self, attrs)

    def __setitem__(self, name, value):
        TemplateNamespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda fmt: datetime.datetime.fromtimestamp(NOW).strftime(fmt)
    env.globals["namespace"] = TemplateNamespace
    return env


ENV = environment()


def reference(source, variables, template=None):
    """(kind, text): kind is "ok", "raised" (by raise_exception), "undefined" or "error"."""
    try:
        return "ok", (template or ENV.from_string(source)).render(**copy.deepcopy(variables))
    except RaisedByTemplate as e:
        return "raised", str(e)
    except jinja2.exceptions.UndefinedError as e:
        return "undefined", str(e)
    except Exception as e:  # noqa: BLE001: any failure of the template counts
        return "error", f"{type(e).__name__}: {e}"


def render_all(jobs):
    """Runs {"path" or "source", "vars"} through one tool_render; returns its answers."""
    lines = "".join(json.dumps({**job, "now": NOW}) + "\n" for job in jobs)
    run = subprocess.run([BUILD / "tests" / "tool_render"], input=lines, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    answers = [json.loads(line) for line in run.stdout.split("\n") if line]
    assert len(answers) == len(jobs), run.stderr[-4000:]
    return answers


def difference(source, variables, answer, template=None):
    """A description of how the answer differs from jinja2's, or None."""
    kind, text = reference(source, variables, template)
    if kind == "ok" and " at 0x" in text:  # the text of an object without one: refused, for it is an address
        same = answer["status"] == "UNSUPPORTED"
    elif kind == "ok":
        same = answer["ok"] and answer["text"] == text
    elif kind == "raised":
        same = answer["status"] == "INVALID" and answer["error"] == text[:500]
    elif kind == "undefined":
        # a sort that meets several wrong items may name another one first
        same = answer["status"] == "CORRUPT" and (text in answer["error"] or "|sort" in source)
    else:
        same = not answer["ok"]
    if same:
        return None
    return f"{source!r}\n  jinja2 {kind} {text!r}\n  engine {answer}"

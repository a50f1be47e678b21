"""The template engine against jinja2: a table of snippets, white-space layouts, and random expressions."""

import os
import pathlib
import random

import jinja_reference as ref
import layout_snippets

HERE = pathlib.Path(__file__).parent
SEED = int(os.environ.get("DAKD_TEST_SEED", "20261121"))

VARS = {
    "given": "G",
    "messages": [
        {"role": "user", "content": "héllo"},
        {"role": "assistant", "content": "it's \"ok\"\n"},
        {"role": "user", "content": ""},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, 2.5, None, True], "e": {}}}}],
    "n": 3,
    "big": 9007199254740991,
    "id": 1234567890123456789,
    "whole": 1.0,
    "reals": {"minimum": 0.0, "-1.0": [-0.0, -0, 1e5, 1e16, 12, 2.0]},
    "f": 2.75,
    "neg": -4,
    "u": "日本語😀",
    "empty": "",
    "nul": None,
    "yes": True,
}


def check(sources, variables=None):
    variables = VARS if variables is None else variables
    answers = ref.render_all([{"source": s, "vars": variables} for s in sources])
    wrong = [d for s, a in zip(sources, answers) if (d := ref.difference(s, variables, a))]
    assert not wrong, f"{len(wrong)} of {len(sources)} differ:\n" + "\n".join(wrong[:40])


def snippets():
    """One source per line; a line that starts with a blank continues the one before."""
    out = []
    for line in (HERE / "snippets.txt").read_text(encoding="utf-8").split("\n"):
        if line and not line[0].isspace() and line != 'line" }}':
            out.append(line)
        elif line:
            out[-1] += "\n" + line
    return out


def test_snippets():
    sources = snippets()
    assert len(sources) > 250
    check(sources)


def test_each_print_of_the_snippets():
    """Every {{ ... }} of the lines that hold only prints, by itself: one failure does not hide the next."""
    singles = []
    for line in snippets():
        if "{%" not in line and line.count("{{") > 1 and line.startswith("{{ "):
            singles += ["{{ " + part for part in line.split("{{ ")[1:]]
    assert len(singles) > 300
    check(singles)


def test_layouts():
    check(layout_snippets.SNIPPETS)


class Expressions:
    """Random expressions over the dialect; most are well-typed, some fail, and then both must fail."""

    def __init__(self, seed):
        self.r = random.Random(seed)

    def pick(self, *choices):
        return self.r.choice(choices)

    def string(self):
        return self.pick("''", "'a'", "'b,c'", "'Héllo wörld'", "' pad '", "'12'", "'x\\ny'", "u", "given", "'3.5'", "'日本'")

    def number(self):
        return self.pick("0", "1", "2", "-3", "7", "2.5", "-0.5", "n", "f", "neg", "10", "true")

    def int(self):
        return self.pick("0", "1", "2", "-1", "3", "-2", "n")

    def sequence(self, depth):
        if depth <= 0:
            return self.pick("[]", "[1, 2, 3]", "['a', 'B', 'c']", "(1, 'x')", "range(4)", "messages", "'abc'", "[3, 1, 2]")
        items = ", ".join(self.any(depth - 1) for _ in range(self.r.randrange(4)))
        return self.pick(f"[{items}]", f"({items},)" if items else "()", self.sequence(0))

    def mapping(self, depth):
        items = ", ".join(f"{self.string()}: {self.any(depth - 1)}" for _ in range(self.r.randrange(3)))
        return self.pick("{" + items + "}", "messages[0]", "{'a': 1, 'b': [2]}")

    def text_op(self, d):
        s = self.string() if d <= 0 else self.pick(self.string(), f"({self.any(d - 1)})")
        return self.pick(
            f"{s}|upper", f"{s}|trim", f"{s}|length", f"{s}|title", f"{s}|replace({self.string()}, {self.string()})",
            f"{s}.split({self.string()})", f"{s}.strip()", f"{s}.find({self.string()})", f"{s}.count({self.string()})",
            f"({s}|string)[{self.int()}:{self.int()}]", f"{self.string()}[::{self.int()}]", f"{s}[{self.int()}]", f"{s}|capitalize",
            f"{s}.startswith({self.string()})", f"{s} ~ {self.any(d - 1)}", f"{s}|int", f"{s}|float", f"{s}|tojson",
            f"{s}.partition({self.pick(self.string(), chr(39) + ',' + chr(39))})", f"{s}.split()", f"{s}|indent(2)",
            f"{s}.rsplit({self.string()}, {self.int()})", f"{s}|list", f"{s} * {self.int()}", f"{s}|string",
            f"'%s|%5s' % ({self.any(d - 1)}, {s})", f"'{{}}-{{}}'.format({s}, {self.any(d - 1)})", f"{s}.title()",
        )

    def number_op(self, d):
        a = self.number() if d <= 0 else self.pick(self.number(), f"({self.number_op(d - 1)})")
        b = self.number()
        op = self.pick("+", "-", "*", "/", "//", "%", "<", "<=", "==", "!=", ">", ">=")
        return self.pick(f"{a} {op} {b}", f"{a} {op} {b}", f"{a}|abs", f"{a}|round", f"{a}|round(1)", f"{a}|int", f"-{a}",
                         f"{a}|string", f"{b} < {a} <= {self.number()}", f"{a} is odd", f"{a} is number")

    def sequence_op(self, d):
        s = self.sequence(d - 1)
        return self.pick(
            f"{s}|length", f"{s}|first", f"{s}|last", f"{s}|list", f"{s}|join({self.string()})", f"{s}|reverse|list",
            f"{s}[{self.int()}]", f"{s}[{self.int()}:{self.int()}:{self.pick('', '1', '-1', '2')}]", f"{s}|unique|list",
            f"{s}|map('string')|list", f"{s}|select|list", f"{s}|map('upper')|join('-')", f"{s}|sort|list", f"{s}|min",
            f"{s}|select('string')|list", f"{s}|reject('none')|list", f"{s}|sum", f"{s}|max", f"{self.any(d - 1)} in {s}",
            f"{s} + {self.sequence(0)}", f"{s} == {self.sequence(0)}", f"{s}|tojson", f"{s}|batch(2)|list",
            f"{s}|map(attribute='role')|list", f"{s}|selectattr('role', 'equalto', 'user')|list", f"{s} < {self.sequence(0)}",
        )

    def mapping_op(self, d):
        m = self.mapping(d)
        return self.pick(f"{m}.a", f"{m}['role']", f"{m}|length", f"{m}|list", f"{m}.get({self.string()}, {self.any(d - 1)})",
                         f"{m}.items()|list", f"{m}|tojson", f"{m}|tojson(indent=2)", f"{m}|dictsort", f"{self.string()} in {m}",
                         f"{m}.keys()|join", f"{m} == {self.mapping(0)}", f"{m}.values()|list", f"{m}|items|list")

    def logic(self, d):
        a, b, c = self.any(d - 1), self.any(d - 1), self.any(d - 1)
        test = self.pick("defined", "none", "string", "mapping", "iterable", "sequence", "number", "boolean", "true", "integer")
        return self.pick(f"({a} and {b})", f"({a} or {b})", f"(not {a})", f"({a} if {b} else {c})", f"({a}) is {test}",
                         f"({a}) is not {test}", f"({a})|default({b})", f"({a})|default({b}, true)", f"({a}) == ({b})")

    def any(self, d):
        if d <= 0:
            return self.pick(self.string(), self.number(), self.sequence(0), "none", "missing", "messages[0]", "true")
        return self.pick(self.text_op, self.number_op, self.sequence_op, self.mapping_op, self.logic)(d)


def test_random_expressions():
    print("seed", SEED)
    gen = Expressions(SEED)
    check(["{{ " + gen.any(gen.r.randrange(1, 4)) + " }}" for _ in range(2500)])


def test_random_cases_of_letters():
    """upper, lower, title, capitalize and the is* methods over random characters of the older scripts."""
    print("seed", SEED)
    r = random.Random(SEED)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x400), (0x400, 0x530), (0x1E00, 0x2000), (0xFB00, 0xFB07), (0x4E00, 0x4E20)]
    texts = ["".join(chr(r.randrange(*r.choice(ranges))) for _ in range(r.randrange(1, 6))) for _ in range(1500)]
    methods = ["upper", "lower", "title", "capitalize", "isalpha", "isdigit", "isalnum", "islower", "isupper", "isspace", "istitle"]
    source = "|".join("{{ u.%s() }}" % m for m in methods) + "{{ [u] }}{{ u|title }}{{ u.swapcase() if u.isascii() }}{{ u|tojson }}"
    answers = ref.render_all([{"source": source, "vars": {"u": t}} for t in texts])
    wrong = [d for t, a in zip(texts, answers) if (d := ref.difference(source, {"u": t}, a))]
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(wrong[:20])

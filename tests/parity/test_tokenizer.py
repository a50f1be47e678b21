"""The tokenizer against Hugging Face's `tokenizers`, token for token, on generated texts.

Characters are restricted to those assigned in Unicode 14 (unicodedata.unidata_version of Python 3.11, PCRE2 10.42,
utf8proc 2.8): later ones are classified by each library's own tables.  Kinds with a normal form also leave out what the
package's older decomposition tables do not know, StripAccents kinds the marks that its table does not have.  Decoding
leaves out added tokens that the normalizer would change: engine/tokenizer.h says how they differ.
"""
import functools
import json
import os
import pathlib
import random
import struct
import subprocess
import unicodedata

import pytest

tokenizers = pytest.importorskip("tokenizers")

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / os.environ.get("DAKD_BUILD", "build") / "tests" / "tool_tokenize"
FIXTURES = ROOT / "tests" / "fixtures" / "tokenizers"
KINDS = sorted(p.name for p in FIXTURES.iterdir())
SEED = int(os.environ.get("DAKD_TEST_SEED", "20261"))
COUNT = int(os.environ.get("DAKD_TOKENIZER_STRINGS", "20000"))
ADD_SPECIAL, PARSE_SPECIAL = 1, 2

# First and last code points of scripts and blocks worth mixing.
BLOCKS = [
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x17F), (0x180, 0x24F), (0x250, 0x2AF), (0x2B0, 0x2FF), (0x300, 0x36F),
    (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7BF),
    (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xB80, 0xBFF), (0xC00, 0xC7F), (0xD00, 0xD7F), (0xD80, 0xDFF),
    (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF),
    (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1680, 0x169F), (0x1780, 0x17FF), (0x1800, 0x18AF), (0x1E00, 0x1EFF),
    (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20CF), (0x20D0, 0x20FF), (0x2100, 0x214F),
    (0x2150, 0x218F), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2460, 0x24FF), (0x2500, 0x257F), (0x2600, 0x26FF),
    (0x2700, 0x27BF), (0x3000, 0x303F), (0x3040, 0x309F), (0x30A0, 0x30FF), (0x3130, 0x318F), (0x3200, 0x32FF),
    (0x3400, 0x34FF), (0x4E00, 0x4FFF), (0x9F00, 0x9FFF), (0xA840, 0xA87F), (0xAC00, 0xACFF), (0xD700, 0xD7AF),
    (0xE000, 0xE0FF), (0xF900, 0xF9FF), (0xFB00, 0xFB4F), (0xFB50, 0xFDFF), (0xFE00, 0xFE6F), (0xFF00, 0xFFEF),
    (0x10000, 0x100FF), (0x10330, 0x1034F), (0x10400, 0x1044F), (0x1D100, 0x1D1FF), (0x1D400, 0x1D7FF),
    (0x1F000, 0x1F02F), (0x1F100, 0x1F1FF), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1F900, 0x1F9FF),
    (0x20000, 0x200FF), (0xE0000, 0xE007F), (0xE0100, 0xE01EF), (0x10FF00, 0x10FFFD),
]
SPACES = " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
ODD = "ſKÅİıßẞǅªºΣςſtﬁﬀ\u0345\u1e9e\u00ad\u034f\u061c\u200c\u200d\u200e\ufe0f\u20e3\ufffd\uffff\U0010ffff\x00\x01\x1b\x7f\x80\x9f"
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "❤️", "1️⃣", "🇩🇪🇫🇷", "🧑🏿‍🚀", "©️", "👁️‍🗨️"]
CODE = [
    "for (int i = 0; i < n; ++i) {\n\tx[i] += y[i]->z;\n}\n", "def f(a, *b, **c):\n    return a @ b\n", "<html><!-- x --></html>",
    '{"a": [1, 2.5e-3, null], "b": "\\u00e9"}', "SELECT * FROM t WHERE a='b';--", "a+=b;c&&d||!e", "\\frac{a}{b}_{i=0}^n",
    "#!/bin/sh\r\nset -eu\r\n", "0xDEADBEEF, 1_000_000, 1e-10", "https://example.com/?q=a%20b&c=d#e",
]
WORDS = """the quick brown fox can't won't IT'S they'Ll we'VE I'M don’t naïve café garçon niño über Straße мир привет
世界 こんにちは カタカナ 안녕하세요 مرحبا שלום नमस्ते สวัสดี γειά Word word words wOrD Full FULL ＦＵＬＬ ﬁx ① ½ x² 2024 1234567890 12,345.67
__init__ camelCase snake_case UPPER 's 'T 'ſ aa's 're 'Re""".split()


def assigned(cp):
    return unicodedata.category(chr(cp)) not in ("Cn", "Cs")


@functools.cache
def alphabet():
    return [[chr(c) for c in range(a, b + 1) if assigned(c)] for a, b in BLOCKS]


@functools.cache
def every_character():
    return [chr(c) for c in range(0x110000) if assigned(c)]


def look_alikes(added):
    for t in added:
        yield from (t, t[:-1], t[1:], t[0] + t, t + t[-1], t.upper(), t.lower(), t[: len(t) // 2], f" {t}", f"{t}  ", f"a{t}b")


def make_text(rng, odds):
    """One text as bytes: pieces of many kinds, now and then with bytes that are no UTF-8."""
    out = []
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        kind = rng.randrange(14)
        if kind <= 2:
            block = rng.choice(alphabet())
            out.append("".join(rng.choices(block, k=rng.randint(1, 8))))
        elif kind == 3:
            out.append("".join(rng.choice(rng.choice(alphabet())) for _ in range(rng.randint(1, 8))))
        elif kind <= 6:
            out.append(rng.choice((" ", " ", "  ", "\n", ", ", "-", "_", "")).join(rng.choices(WORDS, k=rng.randint(1, 8))))
        elif kind == 7:
            out.append("".join(rng.choices(SPACES, k=rng.randint(1, 6))))
        elif kind == 8:
            out.append(rng.choice(" \n\t\r") * rng.randint(1, 20))
        elif kind == 9:
            out.append(rng.choice(CODE))
        elif kind == 10:
            out.append(rng.choice(EMOJI) * rng.randint(1, 3))
        elif kind == 11:
            out.append("".join(rng.choices(odds, k=rng.randint(1, 4))))
        elif kind == 12:
            out.append(rng.choice(("a", "ab", "é", "=", "1", "한", "e\u0301", "\u0327\u0301", "ａ")) * rng.randint(1, 60))
        else:
            out.append("".join(rng.choices(ODD, k=rng.randint(1, 5))))
        if rng.random() < 0.3:
            out.append(" ")
    data = "".join(out).encode("utf-8")
    if rng.random() < 0.15:
        at = rng.randrange(len(data) + 1)
        bad = bytes(rng.randrange(128, 256) for _ in range(rng.randint(1, 4)))
        bad = data[:at] + bad + data[at + rng.randint(0, 2) :]
        if all(assigned(ord(c)) or c == "\uffff" for c in bad.decode("utf-8", "replace")):
            data = bad
    return data


@functools.cache
def forms_differ(normalizer):
    """Characters that the package's tables do not know, for the kinds that decompose."""
    skip = set()
    for form in ("NFKC", "NFKD", "NFC", "NFD"):
        if f'"{form}"' in normalizer:
            theirs = getattr(tokenizers.normalizers, form)()
            # Alone, and between marks that show its combining class.
            probes = ("{}", "a\u0345{}", "a{}\u0334")
            skip |= {
                c
                for c in every_character()
                for p in probes
                if theirs.normalize_str(p.format(c)) != unicodedata.normalize(form, p.format(c))
            }
    if "StripAccents" in normalizer:
        theirs = tokenizers.normalizers.StripAccents()
        is_mark = lambda c: unicodedata.category(c)[0] == "M"
        skip |= {c for c in every_character() if (theirs.normalize_str(c) == "") != is_mark(c)}
    return skip


class Case:
    def __init__(self, kind):
        self.path = FIXTURES / kind
        self.model = json.loads((self.path / "tokenizer.json").read_text(encoding="utf-8"))
        self.theirs = tokenizers.Tokenizer.from_file(str(self.path / "tokenizer.json"))
        self.added = [t["content"] for t in self.model["added_tokens"]]
        rng = random.Random(f"{SEED} {kind}")
        odds = list(look_alikes(self.added[:60])) or ["<s>"]
        skip = forms_differ(json.dumps(self.model["normalizer"]))
        table = {ord(c): None for c in skip}
        made = [make_text(rng, odds) for _ in range(COUNT - 6)]
        made += [b"", b" ", b"\n", b"\xff", b"a", "  ▁ ▁▁x".encode()]
        if skip:
            made = [t.decode("utf-8", "replace").translate(table).encode() for t in made]
        self.data = made
        self.texts = [t.decode("utf-8", "replace") for t in made]

    def run(self, mode, number, frames):
        packed = b"".join(struct.pack("=I", len(f)) + f for f in frames)
        done = subprocess.run([TOOL, self.path, mode, str(number)], input=packed, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        out, at = [], 0
        while at < len(done.stdout):
            (n,) = struct.unpack_from("=I", done.stdout, at)
            out.append(done.stdout[at + 4 : at + 4 + n])
            at += 4 + n
        assert len(out) == len(frames)
        return out

    def encode(self, flags, data):
        return [list(struct.unpack(f"={len(f) // 4}i", f)) for f in self.run("encode", flags, data)]

    def expected(self, add, texts):
        return [e.ids for e in self.theirs.encode_batch_fast(texts, add_special_tokens=add)]


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    print(f"{request.param}: seed {SEED}, {COUNT} texts")
    return Case(request.param)


def assert_same(case, ours, theirs, inputs):
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a == b, f"{case.path.name}, seed {SEED}, text {i}: {inputs[i]!r}"


def test_encode(case):
    for add in (False, True):
        ours = case.encode(PARSE_SPECIAL | (ADD_SPECIAL if add else 0), case.data)
        assert_same(case, ours, case.expected(add, case.texts), case.texts)


def test_encode_special_tokens_as_text(case):
    case.theirs.encode_special_tokens = True
    try:
        theirs = case.expected(False, case.texts)
    finally:
        case.theirs.encode_special_tokens = False
    assert_same(case, case.encode(0, case.data), theirs, case.texts)


def test_every_character(case):
    """Each assigned character alone and between letters: classes, case folding, normal forms, byte fallback."""
    skip = forms_differ(json.dumps(case.model["normalizer"]))
    # Up to the first ideographs of plane 2, and the tags and selectors of plane 14.
    wanted = (c for c in every_character() if c not in skip and (ord(c) <= 0x20100 or 0xE0000 <= ord(c) <= 0xE01EF))
    texts = [f"a{c}b {c}" for c in wanted]
    ours = case.encode(PARSE_SPECIAL, [t.encode() for t in texts])
    assert_same(case, ours, case.expected(False, texts), texts)


def random_ids(case):
    rng = random.Random(f"{SEED} ids {case.path.name}")
    size = case.theirs.get_vocab_size()
    runs = [case.theirs.token_to_id(f"<0x{b:02X}>") for b in range(256)]
    out = []
    for _ in range(COUNT // 4):
        ids = [rng.randrange(size + 3) for _ in range(rng.randint(0, 12))]
        if runs[0] is not None:
            for _ in range(rng.randint(0, 4)):
                at = rng.randrange(len(ids) + 1)
                ids[at:at] = [runs[b] for b in rng.choice(EMOJI).encode()[: rng.randint(1, 12)]]
        out.append(ids)
    return out


def test_decode(case):
    changed = {t["id"] for t in case.model["added_tokens"] if case.theirs.id_to_token(t["id"]) != t["content"]}
    ids = case.expected(True, case.texts[: COUNT // 2]) + random_ids(case)
    ids = [[i for i in one if i not in changed] for one in ids]
    frames = [struct.pack(f"={len(i)}i", *i) for i in ids]
    for skip in (False, True):
        theirs = [t.encode() for t in case.theirs.decode_batch(ids, skip_special_tokens=skip)]
        assert_same(case, case.run("decode", int(skip), frames), theirs, ids)
        assert_same(case, case.run("incremental", int(skip), frames), theirs, ids)


def test_long_texts(case):
    texts = [c * n for c, n in (("a", 30000), (" ", 30000), ("\n", 30000), ("😀", 8000), ("한국어 ", 5000), ("e\u0301\u0327", 5000))]
    texts += [" " * 20000 + "a", "ab" * 10000 + " \n" * 5000, "<" * 20000]
    ours = case.encode(PARSE_SPECIAL | ADD_SPECIAL, [t.encode() for t in texts])
    assert_same(case, ours, case.expected(True, texts), [t[:20] for t in texts])


def test_vocabulary(case):
    """bos and eos are tokens of tokenizer.json, and the fixture is what its name says."""
    config = json.loads((case.path / "tokenizer_config.json").read_text())
    for key in ("bos_token", "eos_token"):
        token = config.get(key)
        token = token["content"] if isinstance(token, dict) else token
        assert token is None or case.theirs.token_to_id(token) is not None

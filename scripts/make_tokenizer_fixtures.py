#!/usr/bin/env python3
"""Trains the small tokenizers that the tests compare against, one directory per kind.

    python scripts/make_tokenizer_fixtures.py [OUT]        (default tests/fixtures/tokenizers)

Each has the same parts as the published tokenizer it is named after (normalizer, pre-tokenizer, model options,
post-processor, decoder, added tokens), with a vocabulary of one to two thousand trained on text made here.
Needs the `tokenizers` package.  The result is deterministic for one version of it.
"""
import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors, trainers

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

# A few words of many scripts, and the shapes that texts and programs have.
WORDS = """
the of and to in is that it for was with as his on be at by had not are but from or have an they which one you were
all her she there would their we him been has when who will no more if out so said what up its about into than them
can only other time new some could these two may first then do any like my now over such our man me even most made
after also did many off before must well back through years much where your way down should because long each just
people those how too little good world very still see own work men day get here between both life being under never
der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass
le la les de et à un une des que qui dans pour pas plus par sur avec être sont était où déjà garçon cœur naïve
el los y en que una por con para como está niño año español mañana también después
в и не на что он как это по но из у то за так весь был для мы она который мир человек слово жизнь вода
的 一 是 不 了 人 我 在 有 他 这 中 大 来 上 国 个 到 说 们 为 子 和 你 地 出 道 也 时 年 得 就 那 要 下 世界 你好
の に は を た が で て と し れ さ ある いる も する から な こと として 日本語 カタカナ ひらがな テスト
이 그 저 것 수 등 들 및 에서 하는 있다 한국어 안녕하세요 세계
في من على أن إلى هذا التي كان عن مع العالم مرحبا اللغة العربية
של את על לא הוא זה כי אם עם שלום עולם
है के में की से को और यह हिन्दी नमस्ते दुनिया
การ ที่ และ เป็น ใน ของ ไทย สวัสดี
και το να είναι για από με ελληνικά κόσμος
""".split()
CODE = """
def main(argc, argv): return 0
for (int i = 0; i < n; i++) { a[i] = b[i] + c[i]; }
if x == 1 and y != 2: print("hello, world")
#include <stdio.h>
static const char *name = "value";
    self.assertEqual(result["key"], [1, 2, 3])
SELECT * FROM table WHERE id = 42;
https://www.example.com/path?query=1&other=2
{"key": "value", "list": [1, 2.5, -3e10, null, true]}
""".strip("\n").split("\n")
EMOJI = ["😀", "😂", "👍", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "❤️", "🎉", "🇩🇪", "✨"]
NUMBERS = ["0", "1", "42", "100", "2024", "3.14159", "1,000,000", "0x1F", "१२३", "①②", "½", "Ⅷ"]
CONTRACTIONS = ["don't", "it's", "we're", "I've", "I'm", "you'll", "he'd", "DON'T", "IT'S", "We'Ll"]


def corpus(seed, lines=6000):
    rng = random.Random(seed)
    weights = [1 / (i % 97 + 3) for i in range(len(WORDS))]
    for _ in range(lines):
        kind = rng.random()
        if kind < 0.12:
            yield rng.choice(CODE) + rng.choice(["", "\n", "\n\n", "  "])
            continue
        words = rng.choices(WORDS, weights, k=rng.randint(3, 14))
        for pool, chance in ((EMOJI, 0.1), (NUMBERS, 0.25), (CONTRACTIONS, 0.25)):
            if rng.random() < chance:
                words.insert(rng.randrange(len(words)), rng.choice(pool))
        line = rng.choice([" ", " ", " ", "  ", "\t", ", "]).join(words)
        yield line[0].upper() + line[1:] + rng.choice([".", "!", "?", "...", "\n", "。", "\r\n", ""])


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def train(tok, size, alphabet=(), specials=(), seed=1, **options):
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=list(alphabet),
        special_tokens=list(specials),
        show_progress=False,
        **options,
    )
    tok.train_from_iterator(corpus(seed), trainer)
    return tok


def byte_level(tok, size, **options):
    return train(tok, size, alphabet=sorted(pre.ByteLevel.alphabet()), **options)


def template(bos, bos_id, eos=None, eos_id=None):
    end = f" {eos}" if eos else ""
    tokens = [(bos, bos_id)] + ([(eos, eos_id)] if eos else [])
    return processors.TemplateProcessing(
        single=f"{bos} $A{end}", pair=f"{bos} $A{end} {bos} $B{end}", special_tokens=tokens
    )


def gpt2():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.decoder = decoders.ByteLevel()
    byte_level(tok, 1200)
    tok.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=True)])
    return tok, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def llama3():
    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    byte_level(tok, 1500, seed=2)
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    names += [f"reserved_special_token_{i}" for i in range(40)]
    tok.add_special_tokens([special(f"<|{n}|>") for n in names])
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template("<|begin_of_text|>", bos)]
    )
    return tok, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


def qwen2():
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.decoder = decoders.ByteLevel()
    byte_level(tok, 1500, seed=3)
    tok.add_special_tokens([special(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")])
    tok.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    return tok, {"bos_token": None, "eos_token": {"content": "<|im_end|>"}}


def sentencepiece(seed, size):
    """A SentencePiece-like vocabulary: <unk> <s> </s>, the 256 byte tokens, then characters and merges."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.pre_tokenizer = pre.Metaspace(prepend_scheme="always")
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    train(tok, size, specials=specials, seed=seed, limit_alphabet=180)
    data = json.loads(tok.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    return data


SENTENCEPIECE_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def llama2():
    data = sentencepiece(4, 1600)
    data["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    data["pre_tokenizer"] = None
    data["decoder"] = SENTENCEPIECE_DECODER
    tok = Tokenizer.from_str(json.dumps(data))
    tok.post_processor = template("<s>", 1)
    return tok, {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}


def mistral():
    data = sentencepiece(5, 1600)
    for token in data["added_tokens"]:
        token["normalized"] = False
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    data["decoder"] = SENTENCEPIECE_DECODER
    tok = Tokenizer.from_str(json.dumps(data))
    tok.add_special_tokens([special(t) for t in ("[INST]", "[/INST]", "[TOOL_CALLS]")])
    tok.post_processor = template("<s>", 1)
    return tok, {"bos_token": "<s>", "eos_token": "</s>"}


def opt():
    tok = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tok.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel(add_prefix_space=True)
    tok = byte_level(tok, 1200, seed=6, specials=["<s>", "<pad>", "</s>", "<unk>"])
    data = json.loads(tok.to_str())
    for token in data["added_tokens"]:
        token["normalized"] = True
    tok = Tokenizer.from_str(json.dumps(data))
    tok.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template("</s>", tok.token_to_id("</s>"))]
    )
    return tok, {"bos_token": "</s>", "eos_token": "</s>"}


def odd_digits():
    """Punctuation, digits, white space, lower case, NFKC, and added tokens with every flag."""
    tok = Tokenizer(models.BPE(unk_token="[UNK]"))
    tok.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Replace(Regex(r"\d{4}"), "#")]
    )
    tok.pre_tokenizer = pre.Sequence(
        [pre.WhitespaceSplit(), pre.Punctuation("contiguous"), pre.Digits(individual_digits=True)]
    )
    train(tok, 1000, specials=["[UNK]", "[CLS]", "[SEP]"], seed=7, limit_alphabet=250)
    tok.add_tokens(
        [
            AddedToken("Word", single_word=True),
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, single_word=True),
            AddedToken("<b", normalized=False),
            AddedToken("  ", normalized=False),
            AddedToken("ＦＵＬＬ", normalized=True),
        ]
    )
    tok.add_special_tokens([AddedToken("<Mask>", lstrip=True, normalized=True, special=True)])
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tok, {"bos_token": "[CLS]", "eos_token": "[SEP]"}


def odd_affixes():
    """A continuing prefix and an end-of-word suffix, splits of several behaviors, Whitespace, Metaspace decoding."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False, end_of_word_suffix="</w>"))
    tok.normalizer = normalizers.NFD()
    tok.pre_tokenizer = pre.Sequence(
        [
            pre.Metaspace(replacement="_", prepend_scheme="first"),
            pre.Split(Regex(r"[\r\n]+"), "merged_with_previous"),
            pre.Split("-", "merged_with_next"),
            pre.Split(Regex(r"[^aeiou]+"), "isolated", invert=True),
            pre.Digits(individual_digits=False),
        ]
    )
    tok.decoder = decoders.Metaspace(replacement="_", prepend_scheme="first")
    train(tok, 900, specials=["<unk>"], seed=8, end_of_word_suffix="</w>", limit_alphabet=200)
    tok.add_special_tokens([AddedToken("<eos>", rstrip=True, special=True)])
    return tok, {"eos_token": "<eos>"}


def odd_whitespace():
    """Whitespace pre-tokenizer, continuing prefix, no decoder, pairs of merges with a space inside a token."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, continuing_subword_prefix="##"))
    tok.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    tok.pre_tokenizer = pre.Whitespace()
    train(tok, 900, specials=["<unk>"], seed=9, continuing_subword_prefix="##", limit_alphabet=200)
    return tok, {}


KINDS = (gpt2, llama3, qwen2, llama2, mistral, opt, odd_digits, odd_affixes, odd_whitespace)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/tokenizers")
    for kind in KINDS:
        tok, config = kind()
        where = root / kind.__name__
        where.mkdir(parents=True, exist_ok=True)
        data = json.loads(tok.to_str())
        if kind is llama2:  # the older way to write merges
            data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        (where / "tokenizer.json").write_text(text, encoding="utf-8")
        (where / "tokenizer_config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
        print(f"{kind.__name__}: {tok.get_vocab_size()} tokens, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()

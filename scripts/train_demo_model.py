#!/usr/bin/env python3
"""Trains dakd's demo model from nothing: corpus, tokenizer, weights, accuracy, fixed answers.

    python3 scripts/train_demo_model.py --out DIR [--seconds 420 | --steps N] [--seed 7]

What it writes into DIR: the model folder's files (config.json, generation_config.json,
tokenizer.json, tokenizer_config.json, model.safetensors), loss.csv, accuracy.json, and
demo_answers.json, which belongs into tests/fixtures/.

The model is a Llama of eight layers, in plain PyTorch under Hugging Face's names, so that its state
dictionary is the checkpoint. Query heads span 8 x 64 = 512, twice the hidden size, and the
MLP's 704 is no multiple of 128: both are there to keep a server honest about shapes.

Rows hold whole chats one after another, each beginning with <|begin_of_text|>; a chat that does
not fit is cut at the row's end. Seven rows of tokens in eight are 512 long, one is 2048 long, so
that every position the model claims to know has been trained. Answers weigh 1 in the loss, the
rest 0.1.

The weights are rounded to bf16 before anything is measured: what is reported is what is shipped.
The fixed answers are greedy, in fp32, and each records the smallest gap between the best and the
second-best logit over its steps; only answers whose gap is above MARGIN are kept, because another
implementation with fp32 accumulation must reproduce them token by token.
"""

import argparse
import csv
import json
import math
import multiprocessing
import os
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import demo_corpus
import demo_probes

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4096,
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "rope_scaling": None, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0.0, "initializer_range": 0.02, "pretraining_tp": 1, "use_cache": True,
    "bos_token_id": 0, "eos_token_id": 4, "torch_dtype": "bfloat16"}

SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
            "<|eot_id|>"]
BOS, END, START_HEADER, END_HEADER, EOT = range(5)

# Llama 3's pattern, but digits are split one by one: sums are learnt digit by digit.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
    "    {{- message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n")

SHORT_ROW, LONG_ROW, LONG_EVERY = 512, 2048, 8
QUIET_WEIGHT = 0.1
MARGIN = 0.5


# Tokenizer ---------------------------------------------------------------------------------------

def texts(seed, count):
    rng = random.Random(f"tokenizer {seed}")
    for _ in range(count):
        for message in demo_corpus.conversation(rng):
            yield message["content"]


def train_tokenizer(seed, count):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], show_progress=False, min_frequency=2,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    extra = ["user", "assistant", "system", "user", "assistant", "system", "\n\n", "\n\n"] * 50
    tokenizer.train_from_iterator(extra + list(texts(seed, count)), trainer)
    return tokenizer


def write_tokenizer(tokenizer, out):
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[EOT], "pad_token": SPECIALS[END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {
            str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                     "single_word": False, "special": True} for i, s in enumerate(SPECIALS)},
        "chat_template": CHAT_TEMPLATE}
    write_json(os.path.join(out, "tokenizer_config.json"), config)
    write_json(os.path.join(out, "config.json"), CONFIG)
    write_json(os.path.join(out, "generation_config.json"), {
        "bos_token_id": BOS, "eos_token_id": [EOT, END], "pad_token_id": END, "do_sample": False})


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write("\n")


# Rows --------------------------------------------------------------------------------------------

def encode_chat(tokenizer, messages, answer_prompt=False):
    """Token ids of a chat, as the chat template gives them, and a mask of the answers."""
    pieces = [m["role"] for m in messages] + [m["content"].strip() for m in messages]
    encoded = [e.ids for e in tokenizer.encode_batch(pieces + ["\n\n", "assistant"])]
    gap, count = encoded[-2], len(messages)
    ids, answers = [BOS], [False]
    for i, message in enumerate(messages):
        head = [START_HEADER] + encoded[i] + [END_HEADER] + gap
        body = encoded[count + i] + [EOT]
        ids += head + body
        answers += [False] * len(head) + [message["role"] == "assistant"] * len(body)
    if answer_prompt:
        ids += [START_HEADER] + encoded[-1] + [END_HEADER] + gap
    return ids, answers


def make_rows(job):
    """Rows of one shard: (ids [rows, length + 1] uint16, answer mask of the same shape)."""
    tokenizer_file, seed, shard, rows, length = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(tokenizer_file)
    rng = random.Random(f"rows {seed} {shard} {length}")
    ids = np.full((rows, length + 1), END, np.uint16)
    mask = np.zeros((rows, length + 1), bool)
    for row in range(rows):
        at = 0
        while at <= length:
            longest = 16 if length > SHORT_ROW and rng.random() < 0.3 else 4
            chat, answers = encode_chat(tokenizer, demo_corpus.conversation(rng, longest))
            take = min(len(chat), length + 1 - at)
            ids[row, at:at + take] = chat[:take]
            mask[row, at:at + take] = answers[:take]
            at += take
    return ids, mask


def build_rows(tokenizer_file, seed, tokens, length, processes, device):
    shards = processes * 4
    rows = max(1, tokens // length // shards)
    jobs = [(tokenizer_file, seed, shard, rows, length) for shard in range(shards)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = pool.map(make_rows, jobs, chunksize=1)
    ids = torch.from_numpy(np.concatenate([p[0] for p in parts]).astype(np.int16)).to(device)
    mask = torch.from_numpy(np.concatenate([p[1] for p in parts])).to(device)
    return ids, mask


# Model -------------------------------------------------------------------------------------------

class RMSNorm(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, CONFIG["rms_norm_eps"]).to(x.dtype)


def linear(inputs, outputs):
    return torch.nn.Linear(inputs, outputs, bias=False)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        hidden, dim = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.q_proj = linear(hidden, CONFIG["num_attention_heads"] * dim)
        self.k_proj = linear(hidden, CONFIG["num_key_value_heads"] * dim)
        self.v_proj = linear(hidden, CONFIG["num_key_value_heads"] * dim)
        self.o_proj = linear(CONFIG["num_attention_heads"] * dim, hidden)

    def forward(self, x, cos, sin):
        rows, length, _ = x.shape

        def heads(y):
            return y.view(rows, length, -1, CONFIG["head_dim"]).transpose(1, 2)

        def rotate(y):
            low, high = y.float().chunk(2, -1)
            return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(y.dtype)

        q, k, v = rotate(heads(self.q_proj(x))), rotate(heads(self.k_proj(x))), heads(self.v_proj(x))
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))


class MLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj, self.up_proj = linear(hidden, inner), linear(hidden, inner)
        self.down_proj = linear(inner, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = Attention(), MLP()
        self.input_layernorm = RMSNorm(CONFIG["hidden_size"])
        self.post_attention_layernorm = RMSNorm(CONFIG["hidden_size"])

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(torch.nn.Module):
    """forward(ids [rows, length]) -> logits [rows, length, vocab]; names as in Hugging Face's."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.model.layers = torch.nn.ModuleList(
            Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.model.norm = RMSNorm(CONFIG["hidden_size"])
        half = CONFIG["head_dim"] // 2
        rates = CONFIG["rope_theta"] ** (-torch.arange(half).float() / half)
        angles = torch.arange(CONFIG["max_position_embeddings"]).float()[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale /= math.sqrt(2 * CONFIG["num_hidden_layers"])
                torch.nn.init.normal_(p, std=scale)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def save_weights(model, out):
    """Rounds the weights to bf16, in the model as well, and writes them."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).float())
    state = {n: p.detach().to(torch.bfloat16).cpu().contiguous()
             for n, p in model.named_parameters()}
    save_file(state, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})


# Training ----------------------------------------------------------------------------------------

def batch_loss(model, ids, mask, autocast):
    inputs, targets = ids[:, :-1].long(), ids[:, 1:].long()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        logits = model(inputs)
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    answers = mask[:, 1:].flatten().float()
    weights = answers + QUIET_WEIGHT * (1 - answers)
    weighted = (losses * weights).sum() / weights.sum()
    return weighted, (losses * answers).sum() / answers.sum()


def learning_rate(step, steps, peak):
    warm = min(200, steps // 10 + 1)
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model, data, args, out):
    """Trains for args.steps, or for as many steps as fit into args.seconds at the measured pace."""
    device = args.device
    wide = [p for p in model.parameters() if p.dim() == 2]
    flat = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": wide, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    run = torch.compile(batch_loss, dynamic=False) if device == "cuda" else batch_loss
    picker = torch.Generator(device=device).manual_seed(args.seed)
    orders, rows = {}, []
    steps, begin, measured_from = args.steps or 10 ** 6, time.time(), 0.0
    step, sums, count = 0, torch.zeros(2, device=device), 0
    while step < steps:
        length = LONG_ROW if step % LONG_EVERY == LONG_EVERY - 1 else SHORT_ROW
        ids, mask = data[length]
        batch = max(1, args.batch_tokens // length)
        if len(orders.get(length, [])) < batch:
            orders[length] = torch.randperm(len(ids), generator=picker, device=device)
        chosen, orders[length] = orders[length][:batch], orders[length][batch:]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, args.lr)
        loss, answer_loss = run(model, ids[chosen], mask[chosen], device == "cuda")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums += torch.stack([loss.detach(), answer_loss.detach()])
        step, count = step + 1, count + 1
        if not args.steps and step in (40, 200):
            torch.cuda.synchronize()
            if step == 200:
                pace = (time.time() - measured_from) / 160
                steps = 200 + int((args.seconds - (time.time() - begin)) / pace)
                print(f"pace {1 / pace:.2f} steps/s, {steps} steps in all", flush=True)
            measured_from = time.time()
        if step % args.log_every == 0 or step == steps:
            means = (sums / count).tolist()
            rows.append([step, step * args.batch_tokens, *(f"{m:.5f}" for m in means),
                         f"{learning_rate(step - 1, steps, args.lr):.3e}",
                         f"{time.time() - begin:.1f}"])
            sums.zero_()
            count = 0
            if len(rows) % 8 == 1 or step == steps:
                print(*rows[-1], flush=True)
                write_losses(rows, out)
        if step % args.save_every == 0:
            state = {n: p.detach().to(torch.bfloat16).cpu().contiguous()
                     for n, p in model.named_parameters()}
            save_file(state, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    return step


def write_losses(rows, out):
    with open(os.path.join(out, "loss.csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["step", "tokens", "loss", "answer_loss", "learning_rate", "seconds"])
        writer.writerows(rows)


# Measuring, with transformers on the files as written --------------------------------------------

def load(out, device):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(device).eval()
    return model, tokenizer


def prompt_ids(tokenizer, messages):
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True,
                                        return_dict=False)
    return list(ids)


@torch.no_grad()
def greedy_batch(model, prompts, most):
    """Greedy answers to prompts of any lengths, padded on the left, without their end token."""
    width = max(map(len, prompts))
    ids = torch.tensor([[END] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts],
                        device=model.device)
    new = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False,
                         pad_token_id=END)[:, width:].tolist()
    return [row[:min((row + [EOT]).index(EOT), (row + [END]).index(END))] for row in new]


def accuracy(model, tokenizer, each):
    """Exact answers on held-out questions, by group, and probe questions written by hand."""
    result, wrong = {}, {}
    for group, chats in demo_corpus.held_out_set(each=each).items():
        chats = sorted(chats, key=lambda c: len(str(c)))
        right = 0
        for i in range(0, len(chats), 100):
            part = chats[i:i + 100]
            answers = greedy_batch(model, [prompt_ids(tokenizer, c[:-1]) for c in part],
                                   320 if group == "stories" else 140)
            for chat, answer in zip(part, map(tokenizer.decode, answers)):
                if answer == chat[-1]["content"]:
                    right += 1
                else:
                    wrong.setdefault(group, []).append([chat[-2]["content"], answer,
                                                        chat[-1]["content"]])
        result[group] = {"right": right, "asked": len(chats),
                         "accuracy": round(right / max(1, len(chats)), 4)}
        print(group, result[group], flush=True)
    prompts = [prompt_ids(tokenizer, as_messages(p[0])) for p in demo_probes.WILD]
    right = 0
    for (asked, wanted), answer in zip(demo_probes.WILD, greedy_batch(model, prompts, 140)):
        text = tokenizer.decode(answer)
        if wanted.lower() in text.lower():
            right += 1
        else:
            wrong.setdefault("written by hand", []).append([asked, text, wanted])
    result["written by hand"] = {"right": right, "asked": len(prompts),
                                 "accuracy": round(right / len(prompts), 4)}
    print("written by hand", result["written by hand"], flush=True)
    return result, wrong


def as_messages(asked):
    """A question, or a list [system or None, user, assistant, user, ...], as messages."""
    if isinstance(asked, str):
        return [{"role": "user", "content": asked}]
    messages = [{"role": "system", "content": asked[0]}] if asked[0] else []
    roles = ["user", "assistant"]
    return messages + [{"role": roles[i % 2], "content": t} for i, t in enumerate(asked[1:])]


@torch.no_grad()
def fixed_answer(model, tokenizer, messages, most=400):
    """The greedy answer to one prompt, unpadded, with the smallest gap of its two best logits."""
    prompt = prompt_ids(tokenizer, messages)
    ids = torch.tensor([prompt], device=model.device)
    new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most,
                         do_sample=False, pad_token_id=END)[0, len(prompt):].tolist()
    whole = torch.tensor([prompt + new], device=model.device)
    logits = model(whole).logits[0, len(prompt) - 1:-1].float()
    best = logits.topk(2, -1)
    assert best.indices[:, 0].tolist() == new, "greedy decoding and one forward pass disagree"
    stopped = new[-1] == EOT
    answer = new[:-1] if stopped else new
    return {"messages": messages, "prompt_ids": prompt, "answer": tokenizer.decode(answer),
            "answer_ids": answer, "finish": "stop" if stopped else "length",
            "min_margin": round((best.values[:, 0] - best.values[:, 1]).min().item(), 4)}


def fixed_answers(model, tokenizer):
    kept = []
    for asked in demo_probes.FIXED:
        entry = fixed_answer(model, tokenizer, as_messages(asked))
        keep = entry["min_margin"] > MARGIN and entry["finish"] == "stop"
        print(f"{entry['min_margin']:8.3f} {'' if keep else 'DROPPED '}"
              f"{entry['messages'][-1]['content']!r} -> {entry['answer'][:90]!r}", flush=True)
        if keep:
            kept.append(entry)
    return kept


def measure(out, device, each):
    model, tokenizer = load(out, device)
    check = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi!\n"},
             {"role": "assistant", "content": "“Hello”"}, {"role": "user", "content": "(7 + 8)"}]
    ours, _ = encode_chat(Tokenizer.from_file(os.path.join(out, "tokenizer.json")), check, True)
    assert ours == prompt_ids(tokenizer, check), "rows are not what the chat template gives"
    answers = fixed_answers(model, tokenizer)
    write_json(os.path.join(out, "demo_answers.json"), answers)
    result, wrong = accuracy(model, tokenizer, each)
    write_json(os.path.join(out, "accuracy.json"), result)
    for group, cases in wrong.items():
        for case in cases[:4]:
            print("wrong", group, case, flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=400, help="training time, if no --steps")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-tokens", type=int, default=98304)
    parser.add_argument("--corpus-tokens", type=int, default=100_000_000)
    parser.add_argument("--tokenizer-chats", type=int, default=30000)
    parser.add_argument("--each", type=int, default=200, help="held-out questions of a group; 0 measures nothing")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--measure-only", action="store_true")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    os.makedirs(args.out, exist_ok=True)
    if args.measure_only:
        measure(args.out, args.device, args.each)
        return
    torch.manual_seed(args.seed)
    began = time.time()
    write_tokenizer(train_tokenizer(args.seed, args.tokenizer_chats), args.out)
    print(f"tokenizer after {time.time() - began:.1f} s", flush=True)
    file = os.path.join(args.out, "tokenizer.json")
    data = {length: build_rows(file, args.seed, tokens, length, args.processes, args.device)
            for length, tokens in ((SHORT_ROW, args.corpus_tokens * 7 // 8),
                                   (LONG_ROW, args.corpus_tokens // 8))}
    print(f"rows after {time.time() - began:.1f} s", {k: v[0].shape for k, v in data.items()},
          flush=True)
    model = Llama().to(args.device)
    print(sum(p.numel() for p in model.parameters()), "weights", flush=True)
    steps = train(model, data, args, args.out)
    save_weights(model, args.out)
    print(f"trained {steps} steps, {time.time() - began:.1f} s", flush=True)
    del data
    if args.each:
        measure(args.out, args.device, args.each)
    print(f"done after {time.time() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()

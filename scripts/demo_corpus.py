#!/usr/bin/env python3
"""The text on which dakd's demo model learns: chats made by rule from a seed.

The demo model is there so that dakd can be tried, and tested end to end, without a download. Its
corpus must therefore be free of other people's text, small enough to be learnt by a few million
weights, and such that greedy answers are clear-cut. So a *skill* is a function that draws a
question, many ways of asking, and gives the one answer; a *dialogue* chains turns that depend on
each other; a *conversation* strings dialogues together, perhaps under a system message that asks
for a manner of answering.

Invariants
1. The output is a function of the seed alone: one random.Random, no clock, no set order.
2. Every turn has a key. held_out(key) is true for a tenth of all keys, by hash; training never
   sees such a turn, and accuracy is measured on nothing else. For sums the key is the pair of
   numbers, so that no wording of a held-out sum is ever trained; for other questions it is the
   wording itself, in lower case and without punctuation.
3. A question has one answer under one system message: no two skills may answer it differently.

Run by itself it prints conversations: demo_corpus.py --seed 1 --count 5 [--held-out].
"""

import argparse
import hashlib
import json
import random
import re
from dataclasses import dataclass

import demo_chat
import demo_dakd
import demo_facts
import demo_stories
from demo_chat import NAMES, WORDS, numeral, roman

HELD_OUT_ONE_IN = 10


@dataclass
class Turn:
    """One question and its answer. `plain` questions may be varied in spelling and manners."""
    ask: str
    answer: str
    brief: str = ""
    key: str = ""
    plain: bool = True
    story: bool = False

    def __post_init__(self):
        self.brief = self.brief or self.answer
        self.key = self.key or re.sub(r"[^\w+*/<>=-]+", " ", self.ask.lower()).strip()


def held_out(key):
    """True for the keys that training must not see."""
    return hashlib.sha1(key.encode()).digest()[0] * HELD_OUT_ONE_IN < 256


def alternatives(rng, text):
    """Draws one of the alternatives in each [a|b|c] of the text."""
    return re.sub(r"\[([^\[\]]*)\]", lambda m: rng.choice(m.group(1).split("|")), text)


def wording(rng, patterns, **fields):
    """One of the patterns, its alternatives drawn and its fields filled."""
    text = alternatives(rng, rng.choice(patterns)).format(**fields)
    return text[0].upper() + text[1:] if text[0].isalpha() and rng.random() < 0.9 else text


def with_article(text):
    """The tables put "a" before every noun; some nouns want "an"."""
    return re.sub(r"\b([Aa]) (?=(elephant|owl|eagle|ant|infinity|arrow|apple)\b)", r"\1n ", text)


# Facts and dakd ----------------------------------------------------------------------------------

def ask_relation(rng, relations):
    _, rows, asks, answer, brief = rng.choices(
        relations, weights=[len(r[1]) * len(r[2]) for r in relations])[0]
    row = rng.choice(rows)
    return Turn(with_article(wording(rng, asks, **row)), with_article(answer.format(**row)),
                brief.format(**row))


def ask_single(rng, singles):
    asks, answer, brief = rng.choice(singles)
    return Turn(alternatives(rng, rng.choice(asks)), answer, brief)


def fact(rng):
    if rng.random() < 0.88:
        return ask_relation(rng, demo_facts.RELATIONS)
    return ask_single(rng, demo_facts.SINGLES)


def about_dakd(rng):
    if rng.random() < 0.55:
        return ask_relation(rng, demo_dakd.RELATIONS)
    return ask_single(rng, demo_dakd.INTENTS)


# Numbers -----------------------------------------------------------------------------------------

def operand(rng):
    return rng.randint(0, rng.choice([12, 20, 99, 99, 999]))


def add(rng, a=None):
    a, b = operand(rng) if a is None else a, operand(rng)
    sum_ = f"{a} + {b} = {a + b}"
    key = f"add {a} {b}"
    if rng.random() < 0.12:
        thing = rng.choice(demo_chat.COUNTABLES)
        ask = wording(rng, demo_chat.MORE_ASKS, a=a, b=b, thing=thing)
        return Turn(ask, f"{sum_}, so you have {a + b} {thing}.", str(a + b), key)
    return Turn(wording(rng, demo_chat.ADD_ASKS, a=a, b=b), sum_ + ".", str(a + b), key)


def subtract(rng):
    a, b = operand(rng), operand(rng)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    difference = f"{a} - {b} = {a - b}"
    key = f"subtract {a} {b}"
    if a >= b and rng.random() < 0.12:
        thing = rng.choice(demo_chat.COUNTABLES)
        ask = wording(rng, demo_chat.LESS_ASKS, a=a, b=b, thing=thing)
        return Turn(ask, f"{difference}, so you have {a - b} {thing}.", str(a - b), key)
    return Turn(wording(rng, demo_chat.SUBTRACT_ASKS, a=a, b=b), difference + ".", str(a - b), key)


def multiply(rng):
    """Times tables to 12, and two digits times one in steps. A held-out table entry has its mirror
    image in training (keys of the tables with a >= b are never held out)."""
    if rng.random() < 0.65:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        steps = f"{a} × {b} = {a * b}"
        key = f"multiply {a} {b}" if a < b else "multiply, mirror image"
    else:
        a, b = rng.randint(13, 99), rng.randint(2, 9)
        tens, ones = a // 10 * 10, a % 10
        key = f"multiply {a} {b}"
        steps = f"{a} × {b} = {a * b}"
        if ones:
            steps = (f"{a} × {b} = {tens} × {b} + {ones} × {b} = {tens * b} + {ones * b} "
                     f"= {a * b}")
    return Turn(wording(rng, demo_chat.MULTIPLY_ASKS, a=a, b=b), steps + ".", str(a * b), key)


def divide(rng):
    b, quotient = rng.randint(1, 12), rng.randint(0, 12)
    rest = rng.randint(0, b - 1) if rng.random() < 0.25 else 0
    a = b * quotient + rest
    result = f"{quotient}, remainder {rest}" if rest else f"{quotient}"
    ask = wording(rng, demo_chat.DIVIDE_ASKS, a=a, b=b)
    return Turn(ask, f"{a} / {b} = {result}.", result, f"divide {a} {b}" if rest else "divide")


def compare(rng):
    top = rng.choice([20, 99, 999])
    a, b = rng.sample(range(top + 1), 2)
    word, asks = rng.choice(demo_chat.COMPARE_ASKS)
    best = max(a, b) if word == "larger" else min(a, b)
    other = a + b - best
    key = f"compare {a} {b}"
    if rng.random() < 0.2:
        sign = rng.choice("<>")
        truth = (a < b) == (sign == "<")
        ask = wording(rng, ["Is {a} {s} {b}?", "Is it true that {a} {s} {b}?", "{a} {s} {b}?"],
                      a=a, b=b, s=sign)
        relation = "<" if a < b else ">"
        answer = f"{'Yes' if truth else 'No'}, {a} {relation} {b}."
        return Turn(ask, answer, "Yes" if truth else "No", key)
    ask = wording(rng, asks, a=a, b=b)
    return Turn(ask, f"{best} is {word} than {other}.", str(best), key)


def parity(rng):
    n = operand(rng)
    kind = "odd" if n % 2 else "even"
    return Turn(wording(rng, demo_chat.PARITY_ASKS, n=n), f"{n} is {kind}.", kind.capitalize(),
                f"parity {n}")


def neighbour(rng):
    n = operand(rng)
    if rng.random() < 0.5:
        ask = wording(rng, demo_chat.NEXT_ASKS, n=n)
        return Turn(ask, f"The number after {n} is {n + 1}.", str(n + 1), f"after {n}")
    ask = wording(rng, demo_chat.BEFORE_ASKS, n=n + 1)
    return Turn(ask, f"The number before {n + 1} is {n}.", str(n), f"before {n}")


def double_half(rng):
    n = rng.randint(0, rng.choice([20, 99, 499]))
    if rng.random() < 0.5:
        ask = wording(rng, demo_chat.DOUBLE_ASKS, n=n)
        return Turn(ask, f"Twice {n} is {2 * n}.", str(2 * n), f"double {n}")
    ask = wording(rng, demo_chat.HALF_ASKS, n=2 * n)
    return Turn(ask, f"Half of {2 * n} is {n}.", str(n), f"half {n}")


def number_words(rng):
    n = rng.randint(0, 100)
    if rng.random() < 0.35:
        n = rng.randint(1, 50)
        if rng.random() < 0.5:
            return Turn(wording(rng, demo_chat.ROMAN_ASKS, n=n),
                        f"{n} in Roman numerals is {roman(n)}.", roman(n))
        return Turn(wording(rng, demo_chat.FROM_ROMAN_ASKS, r=roman(n)), f"{roman(n)} is {n}.",
                    str(n), plain=False)
    if rng.random() < 0.5:
        ask = wording(rng, demo_chat.IN_WORDS_ASKS, n=n)
        return Turn(ask, f"{n} in words is {numeral(n)}.", numeral(n).capitalize())
    ask = wording(rng, demo_chat.IN_DIGITS_ASKS, words=numeral(n))
    return Turn(ask, f"{numeral(n).capitalize()} is {n}.", str(n))


def count(rng):
    step = rng.choice([1, 1, 1, 2, 5, 10])
    first = rng.randint(0, 80) if step == 1 else step
    last = first + step * rng.randint(3, 15)
    numbers = list(range(first, last + 1, step))
    asks = demo_chat.COUNT_ASKS if step == 1 else demo_chat.COUNT_STEP_ASKS
    if step == 1 and rng.random() < 0.35:
        first, last, asks = last, first, demo_chat.COUNT_DOWN_ASKS
        numbers.reverse()
    ask = wording(rng, asks, first=first, last=last, step=numeral(step))
    return Turn(ask, ", ".join(map(str, numbers)) + ".", key=f"count {first} {last} {step}")


def sort_numbers(rng):
    numbers = rng.sample(range(0, rng.choice([20, 99])), rng.randint(3, 5))
    ask = wording(rng, demo_chat.SORT_ASKS, list=", ".join(map(str, numbers)))
    return Turn(ask, ", ".join(map(str, sorted(numbers))) + ".",
                key="sort " + " ".join(map(str, numbers)))


SUMS = [(add, 30), (subtract, 24), (multiply, 22), (divide, 10), (compare, 14)]
NUMBERS = SUMS + [(parity, 6), (neighbour, 6), (double_half, 8), (number_words, 10), (count, 8),
                  (sort_numbers, 6)]


# Words, chat, stories ----------------------------------------------------------------------------

def spell(rng):
    word = rng.choice(WORDS)
    if rng.random() < 0.25:
        return Turn(wording(rng, demo_chat.LENGTH_ASKS, word=word),
                    f"The word {word} has {len(word)} letters.", str(len(word)))
    if rng.random() < 0.25:
        return Turn(wording(rng, demo_chat.INITIAL_ASKS, word=word),
                    f"The word {word} begins with the letter {word[0]}.", word[0])
    return Turn(wording(rng, demo_chat.SPELL_ASKS, word=word), " ".join(word))


def letter(rng):
    i = rng.randint(0, 24)
    a, b = "abcdefghijklmnopqrstuvwxyz"[i:i + 2]
    if rng.random() < 0.5:
        return Turn(wording(rng, demo_chat.LETTER_AFTER_ASKS, c=a),
                    f"The letter after {a} is {b}.", b)
    return Turn(wording(rng, demo_chat.LETTER_BEFORE_ASKS, c=b), f"The letter before {b} is {a}.", a)


def invented(rng):
    """A name that means nothing, so that copying and not knowing are learnt in general."""
    syllables = ["ba", "zor", "mi", "lan", "ke", "tu", "vo", "gri", "pel", "sha", "dro", "nix",
                 "qua", "fen", "wu", "ril", "mog", "ja", "tex", "ob", "cli", "har", "yen", "pla"]
    return "".join(rng.choice(syllables) for _ in range(rng.randint(2, 3))).capitalize()


def echo(rng):
    words = [rng.choice(WORDS) if rng.random() < 0.8 else invented(rng)
             for _ in range(rng.randint(1, 7))]
    text = " ".join(words)
    if rng.random() < 0.25:
        times = rng.randint(2, 5)
        word = words[0]
        ask = wording(rng, demo_chat.TIMES_ASKS, word=word, n=rng.choice([times, numeral(times)]))
        return Turn(ask, " ".join([word] * times), plain=False)
    ask = wording(rng, demo_chat.ECHO_ASKS, text=text)
    return Turn(ask, text, plain=False)


def as_json(rng):
    name = rng.choice(NAMES) if rng.random() < 0.6 else invented(rng)
    age = rng.randint(1, 99)
    if rng.random() < 0.5:
        city = rng.choice(demo_facts.COUNTRIES)["capital"]
        ask = wording(rng, demo_chat.JSON_CITY_ASKS, name=name, age=age, city=city)
        value = {"name": name, "age": age, "city": city}
    else:
        ask = wording(rng, demo_chat.JSON_ASKS, name=name, age=age)
        value = {"name": name, "age": age}
    return Turn(ask, json.dumps(value, ensure_ascii=False), plain=False)


def small_talk(rng):
    return ask_single(rng, demo_chat.SMALL_TALK)


def unknown(rng):
    """Questions beyond the model, real or about things that do not exist."""
    if rng.random() < 0.35:
        name = invented(rng)
        relation = rng.choice([r for r in demo_facts.RELATIONS if r[1] is demo_facts.COUNTRIES
                               and "{land}" in r[2][0]])
        ask = wording(rng, [a for a in relation[2] if "{land}" in a or "{Land}" in a], land=name,
                      Land=name)
        return Turn(ask, f"I do not know a country called {name}. {demo_chat.SMALL}",
                    f"I do not know {name}.", plain=False)
    if rng.random() < 0.25:
        name = invented(rng)
        return Turn(wording(rng, demo_chat.WHAT_IS_ASKS, name=name),
                    f"I do not know what {name} is. {demo_chat.SMALL}", f"I do not know {name}.",
                    plain=False)
    ask = wording(rng, demo_chat.BEYOND_ASKS, noun=rng.choice(demo_chat.BEYOND_NOUNS),
                  person=rng.choice(demo_chat.PERSONS), place=invented(rng),
                  other=rng.choice(demo_chat.BEYOND_NOUNS))
    return Turn(ask, f"I do not know that. {demo_chat.SMALL}", "I do not know.")


def story_turn(rng):
    """(turn, hero, thing, name) of a story request."""
    hero = rng.choice(demo_stories.HEROES)
    kind, draw, name = hero["kind"], rng.random(), None
    if draw < 0.06:
        hero = demo_stories.HEROES[0]
        thing, ask = demo_stories.hero_thing(hero), wording(rng, demo_stories.PLAIN_ASKS)
    elif draw < 0.3:
        thing = demo_stories.hero_thing(hero)
        ask = wording(rng, demo_stories.HERO_ASKS, kind=kind)
    else:
        thing = rng.choice(demo_stories.THINGS)
        ask = wording(rng, demo_stories.FULL_ASKS, kind=kind, thing=thing)
        if draw > 0.7:
            name = rng.choice(NAMES) if rng.random() < 0.7 else invented(rng)
            ask = wording(rng, demo_stories.NAME_ASKS, kind=kind, thing=thing, name=name)
    key = f"story {kind} {thing}" if draw >= 0.3 else ""
    text = demo_stories.story(hero, thing, name)
    return Turn(ask, text, text, key, plain=name is None, story=True), hero, thing, name


def story(rng):
    return story_turn(rng)[0]


# Dialogues: turns that depend on those before ----------------------------------------------------

def follow_country(rng):
    """A question about a country, then more about it, or the same about another."""
    relations = [r for r in demo_facts.RELATIONS
                 if r[1] is demo_facts.COUNTRIES and "{land}" in r[2][0]]
    row, relation = rng.choice(demo_facts.COUNTRIES), rng.choice(relations)
    turns = [Turn(wording(rng, relation[2], **row), relation[3].format(**row),
                  relation[4].format(**row))]
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.5:
            row = rng.choice(demo_facts.COUNTRIES)
            ask = wording(rng, demo_chat.ANOTHER_ASKS, thing=row["land"])
        else:
            relation = rng.choice(relations)
            what = relation[4].strip("{}").lower()
            ask = wording(rng, demo_chat.ITS_ASKS[what])
        turns.append(Turn(ask, relation[3].format(**row), relation[4].format(**row),
                          f"follow {what_of(relation)} {row['land']} {ask.lower()}"))
    return turns


def what_of(relation):
    return relation[4].strip("{}").lower()


def follow_animal(rng):
    """A question about an animal, then the same about another."""
    relation = rng.choice([r for r in demo_facts.RELATIONS if r[1] is demo_facts.ANIMALS])
    rows = rng.sample(demo_facts.ANIMALS, rng.randint(2, 3))
    turns = [Turn(with_article(wording(rng, relation[2], **rows[0])),
                  with_article(relation[3].format(**rows[0])), relation[4].format(**rows[0]))]
    for row in rows[1:]:
        thing = with_article(rng.choice(["a " + row["one"], row["many"]]))
        ask = wording(rng, demo_chat.ANOTHER_ASKS, thing=thing)
        turns.append(Turn(ask, with_article(relation[3].format(**row)),
                          relation[4].format(**row),
                          f"follow {relation[3]} {row['one']} {ask.lower()}"))
    return turns


def running_sum(rng):
    """A sum, then steps that go on from its result."""
    first = add(rng)
    turns, value = [first], int(first.brief)
    for _ in range(rng.randint(1, 3)):
        n = rng.randint(1, 20)
        step = rng.choice(["add", "subtract", "double"])
        if step == "subtract" and n > value:
            step = "add"
        ask = wording(rng, demo_chat.STEP_ASKS[step], n=n)
        if step == "add":
            turns.append(Turn(ask, f"{value} + {n} = {value + n}.", str(value + n),
                              f"add {value} {n}"))
            value += n
        elif step == "subtract":
            turns.append(Turn(ask, f"{value} - {n} = {value - n}.", str(value - n),
                              f"subtract {value} {n}"))
            value -= n
        else:
            turns.append(Turn(ask, f"Twice {value} is {2 * value}.", str(2 * value),
                              f"double {value}"))
            value *= 2
    return turns


def remember(rng):
    """The user tells something about themselves and asks for it later."""
    told = rng.sample(demo_chat.TOLD, rng.randint(1, 3))
    values = {"name": rng.choice(NAMES) if rng.random() < 0.5 else invented(rng),
              "city": rng.choice(demo_facts.COUNTRIES)["capital"],
              "colour": rng.choice(demo_chat.COLOURS), "age": rng.randint(5, 99),
              "pet": rng.choice(NAMES) if rng.random() < 0.5 else invented(rng),
              "food": rng.choice(demo_chat.FOODS)}
    turns = []
    for say, reply, _, _, _ in told:
        turns.append(Turn(wording(rng, say, **values), reply.format(**values),
                          key="tell", plain=False))
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        turns.append(pick(rng, SHORT))
    for _, _, asks, answer, brief in rng.sample(told, rng.randint(1, len(told))):
        turns.append(Turn(wording(rng, asks), answer.format(**values), brief.format(**values),
                          key="recall " + answer.format(**values)))
    return turns


def forgotten(rng):
    """The user asks for something they never told."""
    _, _, asks, answer, _ = rng.choice(demo_chat.TOLD)
    what = demo_chat.UNTOLD[answer]
    return [Turn(wording(rng, asks), f"You have not told me {what}.")]


def say_again(rng):
    turn = pick(rng, SHORT)
    again = Turn(wording(rng, demo_chat.AGAIN_ASKS), turn.answer, turn.brief,
                 key="again " + turn.key)
    return [turn, again]


def story_talk(rng):
    turn, hero, thing, name = story_turn(rng)
    turns = [turn]
    for ask, answer, brief in rng.sample(demo_stories.questions(hero, thing, name),
                                         rng.randint(1, 3)):
        turns.append(Turn(ask, answer, brief, key=f"{ask} {thing}"))
    return turns


SHORT = [(fact, 30), (about_dakd, 26), (lambda rng: pick(rng, NUMBERS), 26), (spell, 3),
         (letter, 2), (echo, 4), (as_json, 2), (small_talk, 10), (unknown, 7)]
DIALOGUES = [(lambda rng: [pick(rng, SHORT)], 150), (follow_country, 9), (follow_animal, 5),
             (running_sum, 7), (remember, 9), (forgotten, 1), (say_again, 4), (story_talk, 3),
             (lambda rng: [story(rng)], 7)]


def pick(rng, weighted):
    """Draws a maker from [(maker, weight), ...] and runs it."""
    makers, weights = zip(*weighted)
    return rng.choices(makers, weights=weights)[0](rng)


def trained(rng, maker):
    """Turns of a maker none of which is held out."""
    while True:
        made = maker(rng)
        turns = made if isinstance(made, list) else [made]
        if not any(held_out(turn.key) for turn in turns):
            return turns


# Conversations -----------------------------------------------------------------------------------

def vary(rng, turn):
    """The question as a hurried or polite person might type it."""
    text = turn.ask
    if not turn.plain:
        return text
    if rng.random() < 0.10:
        text = rng.choice(demo_chat.OPENERS) + text
    if rng.random() < 0.06:
        text = text + rng.choice(demo_chat.CLOSERS)
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.20:
        text = text.rstrip("?.!")
    if rng.random() < 0.02 and len(text) > 12 and not any(c.isdigit() for c in text):
        i = rng.randrange(3, len(text) - 2)
        text = text[:i] + text[i + 1:]
    return text


def in_manner(manner, turn):
    """The answer of a turn under the manner that a system message asked for."""
    if manner == "brief":
        return turn.brief
    if manner == "upper" and not turn.story:
        return turn.answer.upper()
    if manner == "pirate" and not turn.story:
        return f"Arr! {turn.answer}"
    if manner == "polite" and not turn.story:
        return f"With pleasure! {turn.answer}"
    return turn.answer


def system_message(rng):
    """(manner or None, system text or None, the assistant's name or None)"""
    draw = rng.random()
    if draw < 0.74:
        return None, None, None
    if draw < 0.84:
        return None, rng.choice(demo_chat.SYSTEMS), None
    if draw < 0.88:
        name = rng.choice(NAMES) if rng.random() < 0.6 else invented(rng)
        return None, wording(rng, demo_chat.NAME_SYSTEMS, name=name), name
    manner = rng.choice(["brief", "brief", "upper", "pirate", "polite"])
    return manner, rng.choice(demo_chat.MANNER_SYSTEMS[manner]), None


def conversation(rng, longest=4):
    """A list of messages with no held-out turn in it: of one dialogue, mostly, or of several."""
    manner, system, name = system_message(rng)
    messages = [{"role": "system", "content": system}] if system else []
    turns = []
    for _ in range(1 if rng.random() < 0.55 else rng.randint(2, longest)):
        turns += trained(rng, lambda r: pick(r, DIALOGUES))
    if name:
        asks, answer = rng.choice(demo_chat.NAMED)
        named = trained(rng, lambda r: Turn(wording(r, asks), answer.format(name=name)))
        turns = [t for t in turns if t.answer not in demo_chat.OWN_NAME_ANSWERS]
        turns.insert(rng.randint(0, len(turns)), named[0])
    if any(turn.key == "tell" for turn in turns):
        turns = [turn for turn in turns if not turn.answer.startswith("You have not told me")]
    for turn in turns:
        messages.append({"role": "user", "content": vary(rng, turn).strip()})
        messages.append({"role": "assistant", "content": in_manner(manner, turn)})
    return messages


def held_out_set(seed=1, each=200):
    """{group: [messages ending in the wanted answer]}, every last question held out of training."""
    groups = {"arithmetic": lambda r: pick(r, SUMS), "facts": fact, "dakd": about_dakd,
              "numbers": lambda r: pick(r, NUMBERS), "unknown": unknown, "stories": story,
              "small talk": small_talk, "words": lambda r: pick(r, [(spell, 3), (letter, 1)]),
              "copying": lambda r: pick(r, [(echo, 2), (as_json, 1)]),
              "multi-turn": lambda r: pick(r, DIALOGUES[1:5] + DIALOGUES[6:7])}
    result = {}
    for group, maker in groups.items():
        rng, found, seen = random.Random(f"held out {seed} {group}"), [], set()
        wanted = each if group not in ("stories", "small talk") else each // 4
        for _ in range(wanted * 400):
            made = maker(rng)
            turns = made if isinstance(made, list) else [made]
            if not held_out(turns[-1].key) or (turns[-1].key, turns[-1].ask) in seen:
                continue
            seen.add((turns[-1].key, turns[-1].ask))
            messages = []
            for turn in turns:
                messages.append({"role": "user", "content": turn.ask})
                messages.append({"role": "assistant", "content": turn.answer})
            found.append(messages)
            if len(found) == wanted:
                break
        result[group] = found
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=1, help="the corpus is a function of it")
    parser.add_argument("--count", type=int, default=10, help="conversations to print")
    parser.add_argument("--held-out", action="store_true", help="print held-out questions instead")
    args = parser.parse_args()
    if args.held_out:
        for group, chats in held_out_set(args.seed, args.count).items():
            for messages in chats:
                print(json.dumps({"group": group, "messages": messages}, ensure_ascii=False))
        return
    rng = random.Random(args.seed)
    for _ in range(args.count):
        print(json.dumps({"messages": conversation(rng)}, ensure_ascii=False))


if __name__ == "__main__":
    main()

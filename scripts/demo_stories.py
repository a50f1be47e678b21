"""Short stories for the demo model's corpus: a hero from one table, a plot from another.

A story is a function of the request alone: the kind of hero fixes name, home, food and character,
the thing in the request fixes the plot, and what is not named falls back to the hero's own choice.
A hero keeps name and pronoun from the first sentence to the last, and a name given in the request
replaces the hero's usual one throughout.
"""

from demo_facts import table

HEROES = table("""
kind|name|he|his|him|home|food|trait
a fox|Mira|she|her|her|at the edge of a quiet forest|blackberries|clever
a bear|Bruno|he|his|him|in a cave above the river|honey|gentle
a rabbit|Pip|he|his|him|in a burrow under the old oak|clover|quick
a mouse|Tilly|she|her|her|behind the kitchen stove of an inn|cheese|brave
an owl|Olga|she|her|her|in the tower of a ruined castle|nuts|wise
a cat|Felix|he|his|him|on the roof of a bakery|warm milk|curious
a dog|Rollo|he|his|him|in a lighthouse by the sea|biscuits|loyal
a duck|Daisy|she|her|her|on a pond full of lilies|water plants|cheerful
a frog|Gus|he|his|him|under a bridge in the marsh|soup|funny
a horse|Stella|she|her|her|in a stable behind the mill|apples|strong
a goat|Greta|she|her|her|high up in the mountains|herbs|stubborn
a hedgehog|Hugo|he|his|him|under a heap of leaves|pears|careful
a squirrel|Suri|she|her|her|in a hollow beech tree|hazelnuts|busy
a turtle|Tomas|he|his|him|on a beach of white sand|seaweed|patient
a penguin|Paula|she|her|her|on a wide field of ice|fish|merry
a wolf|Wanda|she|her|her|in the hills beyond the village|stew|proud
a lion|Leo|he|his|him|in the golden savanna|bread|calm
an elephant|Ella|she|her|her|beside a wide green lake|bananas|kind
a robot|Robo|he|his|him|in a workshop at the end of a lane|oil|helpful
a dragon|Drago|he|his|him|on top of a smoking mountain|pepper|shy
a girl|Anna|she|her|her|in a small house by the railway|pancakes|friendly
a boy|Max|he|his|him|in a village between two hills|plums|dreamy
a king|Arthur|he|his|him|in a castle with a leaking roof|cake|forgetful
a pirate|Jack|he|his|him|on an old ship with red sails|oranges|bold
""")

OPENING = ("Once upon a time there was {kind} called {name}, who lived {home}. {name} was {trait}, "
           "and {he} loved {food} more than anything else. ")

PLOTS = {
    "a lantern":
        "One evening {name} found a lantern on the path. It was made of brass, and its light was as "
        "small as a firefly. {name} carried it home, but on the way a thick fog came down and the "
        "whole valley grew dark. Somewhere in the fog a child was calling for help. {name} held the "
        "lantern up high and walked towards the voice, step by step. There, beside the stream, sat "
        "a little goose who had lost the way. “Follow my light,” said {name}, and together they "
        "walked until they saw the windows of the goose's house. The mother goose gave {name} a "
        "basket of {food} to say thank you. Since that night {name} hangs the lantern at the door "
        "whenever there is fog, so that nobody has to be lost again. The end.",
    "a boat":
        "One morning {name} found a boat in the reeds. It had a hole in its side and no oars, but "
        "{he} liked it at once. All day long {name} worked: {he} closed the hole with wax and cut "
        "two oars from a fallen branch. In the evening a heavy rain began, and the river rose until "
        "it stood around the houses of the field mice. The mice climbed onto a roof and waved. "
        "{name} pushed the boat into the water and rowed to them as fast as {he} could. Three times "
        "{he} crossed the river, until every mouse was safe on the hill. The mice had nothing left "
        "but a bag of {food}, and they shared it with {name}. When the water was gone, they painted "
        "the boat blue and wrote a name on it: {name}. The end.",
    "a key":
        "One day {name} found a key under a stone. It was silver, and it was too small for any door "
        "that {he} knew. {name} tried it on the gate of the garden, on the chest of the miller and "
        "on the clock in the tower, but it never fitted. At last {he} met an old tortoise who was "
        "sitting in front of a music box. “I have not heard my song for twenty years,” said the "
        "tortoise, “because I lost the key.” {name} put the key into the box and turned it three "
        "times. A song came out, so soft and so sweet that the birds stopped to listen. The "
        "tortoise cried with joy and asked {name} to stay for a dinner of {food}. From then on they "
        "listened to the music box together every Sunday. The end.",
    "a map":
        "One rainy day {name} found a map in an old book. A red line led over the hills to a cross, "
        "and beside the cross stood one word: treasure. {name} packed some {food} and set out. The "
        "first day {he} walked through the reeds, the second day {he} climbed over the rocks, and "
        "the third day {he} met a hungry crow. “I have eaten nothing since Monday,” said the crow. "
        "{name} gave the crow half of the {food}. “Then let me help you,” said the crow, and flew "
        "up to look for the cross. It was a tall cherry tree, and under it lay a box. There was no "
        "gold inside, only a letter: “The treasure is the friend who came here with you.” {name} "
        "and the crow laughed, and they ate cherries until the Sun went down. The end.",
    "a star":
        "One clear night {name} saw a star fall into the meadow. {He} ran through the wet grass and "
        "found it beside a thistle: it was no bigger than a coin, and it was shivering. “I am "
        "cold,” said the star, “and I do not know how to get home.” {name} wrapped the star in a "
        "warm scarf and gave it some {food}. Then {he} carried it to the top of the highest hill. "
        "There {name} asked the north wind for help. The wind took a deep breath and blew, and the "
        "little star rose higher and higher until it was back in its place. It blinked twice to say "
        "thank you. Now, whenever {name} cannot sleep, {he} looks out of the window, and one star "
        "blinks back. The end.",
    "a bell":
        "One summer {name} found a bell in the tall grass. When {he} rang it, it made no sound at "
        "all. “That is the bell of the old school,” said a passing sparrow. “It rings only when "
        "someone tells the truth.” {name} laughed and hung it over the door. The next day {his} "
        "neighbour asked who had eaten the last of the {food}. Everybody looked at the floor. Then "
        "{name} said quietly: “It was me. I am sorry.” At that moment the bell rang, clear and "
        "bright, and everybody heard it. The neighbour was not angry any more, and they all went to "
        "look for more {food} together. Since then the bell has rung many times in that house. The "
        "end.",
    "a garden":
        "One spring {name} wanted to have a garden. {He} dug the ground, put in the seeds and waited, "
        "but nothing grew. A week passed, and then another one. “Perhaps they are asleep,” said "
        "{name}, and {he} sang to them every morning. A worm heard the song and came up. “The ground "
        "is too hard,” said the worm. “I will help you, if you sing for me too.” So the worm dug "
        "and {name} sang, and soon the first green leaves came out of the soil. By the end of the "
        "summer the garden was full of sunflowers, beans and {food}. {name} invited the whole "
        "neighbourhood to a feast, and the worm got the best place at the table. The end.",
    "a storm":
        "One autumn night a storm came over the land. The wind pulled at the trees, and the rain "
        "fell like peas on a drum. {name} sat in the warm room and was just about to eat some "
        "{food}, when somebody knocked. Outside stood a stork with a broken wing. “May I come in?” "
        "asked the stork. “Of course,” said {name}, and {he} bound the wing with a clean cloth. All "
        "winter long the stork stayed, and every evening it told of the countries in the south. In "
        "spring the wing was whole again. “Climb on my back,” said the stork, and it carried {name} "
        "once around the whole valley. {name} never forgot how small the world looked from above. "
        "The end.",
    "a race":
        "One Sunday there was a race around the lake. The hare was there, and the deer, and even "
        "the snail. “I will never win,” thought {name}, but {he} ran all the same. The hare was in "
        "front from the first step. Half way around the lake {name} saw the snail, who had fallen "
        "into a hole and could not get out. Everybody else had passed by. {name} stopped, pulled "
        "the snail out and carried it the rest of the way. They came in last. But when the judge, "
        "an old badger, heard what had happened, he gave the hare a medal of wood and gave {name} a "
        "whole plate of {food}. “Fast is good,” said the badger, “but kind is better.” The end.",
    "a mirror":
        "One winter {name} found a mirror in the snow. {He} had never seen one before. When {he} "
        "looked into it, somebody looked back, and {name} was so frightened that {he} ran away. The "
        "next day {he} came back with a plate of {food}, because {he} thought that the stranger "
        "might be hungry. The stranger in the mirror held a plate as well! “How polite,” said "
        "{name}, and {he} smiled. The stranger smiled too. A magpie who sat in the tree had seen it "
        "all. “That is you,” said the magpie. “A mirror gives back what you give to it.” {name} "
        "thought about this for a long time, and then {he} shared the {food} with the magpie. The "
        "end.",
    "a hat":
        "One windy day a hat flew through the air and landed right on the head of {name}. It was a "
        "green hat with a long feather, and it fitted well. But {name} knew that somebody must be "
        "missing it. {He} asked the baker, {he} asked the postman, and {he} asked the fisherman at "
        "the pier, but the hat was not theirs. At last {he} came to a scarecrow in a field, whose "
        "head was wet from the rain. “My hat!” said the scarecrow. “Without it the birds laugh at "
        "me.” {name} climbed up and put the hat back in its place. To say thank you, the scarecrow "
        "let {name} take as much {food} from the field as {he} could carry. The end.",
    "a train":
        "One night {name} heard the whistle of a train, although there was no railway near. {He} "
        "looked out and saw a small blue train that stood in front of the door. “All aboard for the "
        "Moon!” said the conductor, who was a very old beaver. {name} climbed in, and the train "
        "rolled up into the sky, past the clouds and past the geese. On the Moon everything was "
        "white and silent. {name} jumped so high that {he} could see the Earth, blue and round. But "
        "after an hour {he} missed {his} home and {his} {food}. So the train took {name} back, and "
        "in the morning {he} thought that it had been a dream, until {he} found a blue ticket under "
        "the pillow. The end.",
}

THINGS = list(PLOTS)
NAMES = ["Nora", "Otto", "Lena", "Karl", "Ida", "Emil", "Vera", "Paul", "Ruby", "Finn", "Clara",
         "Theo", "Maya", "Oscar", "Elsa", "Hans", "Lucy", "Sam", "Zoe", "Ben", "Kira", "Nils",
         "Tara", "Igor", "Luna", "Marco", "Wilma", "Yuri", "Dora", "Pedro"]

PLAIN_ASKS = ["[Tell|Read] me a [|short |little |bedtime ]story[|, please].", "A story, please.",
              "Can you tell [me |]a story?", "I want to hear a story.", "Do you know a story?",
              "[Write|Make up] a [|short |little ]story."]
HERO_ASKS = ["Tell me a [|short |little |bedtime ]story about {kind}.",
             "[Write|Make up] a [|short |little ]story about {kind}.",
             "Can you tell [me |]a story about {kind}?", "I want to hear a story about {kind}.",
             "Do you know a story about {kind}?", "A story about {kind}, please."]
FULL_ASKS = [ask.replace("{kind}", "{kind} and {thing}") for ask in HERO_ASKS]
NAME_ASKS = [ask.replace("{kind}", "{kind} [called|named] {name} and {thing}") for ask in HERO_ASKS]


def hero_thing(hero):
    """The thing of a hero's own story, for requests that name no thing."""
    return THINGS[HEROES.index(hero) % len(THINGS)]


def story(hero, thing, name=None):
    """The story of a hero and a thing; name replaces the hero's usual name."""
    words = dict(hero, name=name or hero["name"])
    return (OPENING + PLOTS[thing]).format(**words)


def bare(noun):
    """The noun without its article: "a fox" gives "fox"."""
    return noun.split(" ", 1)[1]


def questions(hero, thing, name=None):
    """Follow-up questions about the story just told, as (question, answer, brief answer)."""
    name = name or hero["name"]
    kind = bare(hero["kind"])
    return [
        (f"What was the name of the {kind}?", f"The {kind} was called {name}.", name),
        (f"What was the {kind} called?", f"The {kind} was called {name}.", name),
        (f"Where did {name} live?", f"{name} lived {hero['home']}.", hero["Home"]),
        (f"What did {name} love to eat?", f"{name} loved {hero['food']}.", hero["Food"]),
        (f"What was {name} like?", f"{name} was {hero['trait']}.", hero["Trait"]),
        (f"Who was {name}?", f"{name} was {hero['kind']}.", hero["Kind"]),
        (f"What was the story about?", f"The story was about {name} and {thing}.",
         f"{name} and {thing}"),
    ]

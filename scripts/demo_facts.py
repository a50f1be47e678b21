"""Tables of everyday facts for the demo model's corpus.

Everything here was written for dakd by hand: nothing is downloaded and nothing is derived from a
data set, so the demo model's training text carries no licence but the repository's own.

A table is a text block: a header line of field names, then one row a line, fields parted by '|'.
A relation joins one table with the ways to ask about it and the one way to answer:

    (topic, table, [question, ...], answer, brief answer)

Questions and answers name fields as {field}; {Field} is the same with a capital first letter.
Questions may hold alternatives as [a|b|c], one of which is drawn. One question has exactly one
answer: greedy decoding is then far from every tie, which is what the end-to-end tests need.
"""


def table(text):
    """Rows of a '|' table as dictionaries; each field also with a capital first letter."""
    lines = [line.strip() for line in text.strip().splitlines()]
    fields = lines[0].split("|")
    rows = []
    for line in lines[1:]:
        values = line.split("|")
        assert len(values) == len(fields), line
        row = dict(zip(fields, values))
        row.update({f[0].upper() + f[1:]: v[0].upper() + v[1:] for f, v in row.items()})
        rows.append(row)
    return rows


COUNTRIES = table("""
land|capital|continent|language|currency
France|Paris|Europe|French|euro
Germany|Berlin|Europe|German|euro
Italy|Rome|Europe|Italian|euro
Spain|Madrid|Europe|Spanish|euro
Portugal|Lisbon|Europe|Portuguese|euro
Austria|Vienna|Europe|German|euro
Greece|Athens|Europe|Greek|euro
Finland|Helsinki|Europe|Finnish|euro
Ireland|Dublin|Europe|English|euro
Latvia|Riga|Europe|Latvian|euro
Estonia|Tallinn|Europe|Estonian|euro
the Netherlands|Amsterdam|Europe|Dutch|euro
the United Kingdom|London|Europe|English|pound sterling
Sweden|Stockholm|Europe|Swedish|Swedish krona
Norway|Oslo|Europe|Norwegian|Norwegian krone
Denmark|Copenhagen|Europe|Danish|Danish krone
Iceland|Reykjavik|Europe|Icelandic|Icelandic krona
Poland|Warsaw|Europe|Polish|zloty
Hungary|Budapest|Europe|Hungarian|forint
Romania|Bucharest|Europe|Romanian|Romanian leu
Ukraine|Kyiv|Europe|Ukrainian|hryvnia
Czechia|Prague|Europe|Czech|Czech koruna
Turkey|Ankara|Asia|Turkish|Turkish lira
Japan|Tokyo|Asia|Japanese|yen
China|Beijing|Asia|Chinese|yuan
South Korea|Seoul|Asia|Korean|won
Thailand|Bangkok|Asia|Thai|baht
Vietnam|Hanoi|Asia|Vietnamese|dong
Mongolia|Ulaanbaatar|Asia|Mongolian|tugrik
Nepal|Kathmandu|Asia|Nepali|Nepalese rupee
Iran|Tehran|Asia|Persian|rial
Israel|Jerusalem|Asia|Hebrew|shekel
Jordan|Amman|Asia|Arabic|Jordanian dinar
Bangladesh|Dhaka|Asia|Bengali|taka
Egypt|Cairo|Africa|Arabic|Egyptian pound
Morocco|Rabat|Africa|Arabic|dirham
Tunisia|Tunis|Africa|Arabic|Tunisian dinar
Ethiopia|Addis Ababa|Africa|Amharic|birr
Ghana|Accra|Africa|English|cedi
Nigeria|Abuja|Africa|English|naira
Senegal|Dakar|Africa|French|CFA franc
Angola|Luanda|Africa|Portuguese|kwanza
Zambia|Lusaka|Africa|English|kwacha
Somalia|Mogadishu|Africa|Somali|Somali shilling
the United States|Washington|North America|English|US dollar
Mexico|Mexico City|North America|Spanish|Mexican peso
Cuba|Havana|North America|Spanish|Cuban peso
Jamaica|Kingston|North America|English|Jamaican dollar
Brazil|Brasília|South America|Portuguese|real
Argentina|Buenos Aires|South America|Spanish|Argentine peso
Chile|Santiago|South America|Spanish|Chilean peso
Colombia|Bogotá|South America|Spanish|Colombian peso
Uruguay|Montevideo|South America|Spanish|Uruguayan peso
Venezuela|Caracas|South America|Spanish|bolivar
Australia|Canberra|Oceania|English|Australian dollar
New Zealand|Wellington|Oceania|English|New Zealand dollar
""")

ANIMALS = table("""
one|many|class|young|sound|food|home|legs
dog|dogs|mammal|puppy|barks|meat|in a house|4
cat|cats|mammal|kitten|meows|fish and mice|in a house|4
cow|cows|mammal|calf|moos|grass|on a farm|4
horse|horses|mammal|foal|neighs|hay|in a stable|4
sheep|sheep|mammal|lamb|bleats|grass|in a meadow|4
pig|pigs|mammal|piglet|oinks|roots and grain|on a farm|4
goat|goats|mammal|kid|bleats|leaves|in the mountains|4
lion|lions|mammal|cub|roars|meat|in the savanna|4
tiger|tigers|mammal|cub|roars|meat|in the jungle|4
bear|bears|mammal|cub|growls|berries and fish|in the forest|4
wolf|wolves|mammal|pup|howls|meat|in the forest|4
fox|foxes|mammal|kit|barks|mice and berries|in a den|4
rabbit|rabbits|mammal|bunny|squeaks|carrots and grass|in a burrow|4
mouse|mice|mammal|pinkie|squeaks|seeds|in a hole|4
elephant|elephants|mammal|calf|trumpets|leaves and bark|in the savanna|4
giraffe|giraffes|mammal|calf|hums|leaves|in the savanna|4
monkey|monkeys|mammal|infant|chatters|fruit|in the trees|2
whale|whales|mammal|calf|sings|krill|in the sea|0
dolphin|dolphins|mammal|calf|clicks|fish|in the sea|0
bat|bats|mammal|pup|squeaks|insects|in a cave|2
chicken|chickens|bird|chick|clucks|grain|on a farm|2
duck|ducks|bird|duckling|quacks|water plants|on a pond|2
goose|geese|bird|gosling|honks|grass|on a lake|2
owl|owls|bird|owlet|hoots|mice|in a hollow tree|2
eagle|eagles|bird|eaglet|screams|fish|in the mountains|2
penguin|penguins|bird|chick|brays|fish|on the ice|2
parrot|parrots|bird|chick|talks|nuts|in the jungle|2
swan|swans|bird|cygnet|hisses|water plants|on a lake|2
frog|frogs|amphibian|tadpole|croaks|flies|by a pond|4
toad|toads|amphibian|tadpole|croaks|worms|in the garden|4
snake|snakes|reptile|snakelet|hisses|mice|in the grass|0
crocodile|crocodiles|reptile|hatchling|growls|fish|in a river|4
turtle|turtles|reptile|hatchling|hisses|water plants|in the sea|4
shark|sharks|fish|pup|is silent|fish|in the sea|0
salmon|salmon|fish|fry|is silent|shrimp|in the river and the sea|0
bee|bees|insect|larva|buzzes|nectar|in a hive|6
ant|ants|insect|larva|is silent|leaves and crumbs|in a nest|6
butterfly|butterflies|insect|caterpillar|is silent|nectar|in the garden|6
spider|spiders|arachnid|spiderling|is silent|flies|in a web|8
""")

PLANETS = table("""
planet|order|moons|about
Mercury|first|no moons|the smallest planet and the closest one to the Sun
Venus|second|no moons|the hottest planet, wrapped in thick clouds
Earth|third|one moon|the planet we live on, with oceans of water
Mars|fourth|two moons|the red planet, cold and dusty
Jupiter|fifth|more than ninety moons|the largest planet, a giant ball of gas with a red spot
Saturn|sixth|more than a hundred moons|the planet with the bright rings of ice
Uranus|seventh|more than twenty moons|a cold planet that lies on its side
Neptune|eighth|more than a dozen moons|the windy blue planet farthest from the Sun
""")

THINGS = table("""
thing|colour
the sky|blue
the sea|blue
grass|green
a leaf|green
a banana|yellow
a lemon|yellow
the Sun|yellow
snow|white
milk|white
salt|white
coal|black
a raven|black
blood|red
a tomato|red
a strawberry|red
a fire engine|red
a carrot|orange
a pumpkin|orange
chocolate|brown
soil|brown
an elephant|grey
ash|grey
a flamingo|pink
a plum|purple
a lime|green
gold|yellow
a swan|white
a cucumber|green
""")

MIXES = table("""
first|second|result
red|yellow|orange
yellow|red|orange
blue|yellow|green
yellow|blue|green
red|blue|purple
blue|red|purple
red|white|pink
white|red|pink
black|white|grey
white|black|grey
red|green|brown
green|red|brown
""")

DAYS = table("""
day|next|before|order
Monday|Tuesday|Sunday|first
Tuesday|Wednesday|Monday|second
Wednesday|Thursday|Tuesday|third
Thursday|Friday|Wednesday|fourth
Friday|Saturday|Thursday|fifth
Saturday|Sunday|Friday|sixth
Sunday|Monday|Saturday|seventh
""")

MONTHS = table("""
month|next|before|order|length|season
January|February|December|first|31 days|winter
February|March|January|second|28 days, or 29 in a leap year|winter
March|April|February|third|31 days|spring
April|May|March|fourth|30 days|spring
May|June|April|fifth|31 days|spring
June|July|May|sixth|30 days|summer
July|August|June|seventh|31 days|summer
August|September|July|eighth|31 days|summer
September|October|August|ninth|30 days|autumn
October|November|September|tenth|31 days|autumn
November|December|October|eleventh|30 days|autumn
December|January|November|twelfth|31 days|winter
""")

UNITS = table("""
small|big|count
seconds|a minute|60
minutes|an hour|60
hours|a day|24
days|a week|7
months|a year|12
days|a year|365
weeks|a year|52
years|a decade|10
years|a century|100
years|a millennium|1000
millimetres|a centimetre|10
centimetres|a metre|100
metres|a kilometre|1000
grams|a kilogram|1000
kilograms|a tonne|1000
millilitres|a litre|1000
bits|a byte|8
bytes|a kilobyte|1000
bytes|a kibibyte|1024
kibibytes|a mebibyte|1024
degrees|a circle|360
degrees|a right angle|90
eggs|a dozen|12
inches|a foot|12
feet|a yard|3
cents|a dollar|100
""")

OPPOSITES = table("""
word|opposite
hot|cold
big|small
tall|short
fast|slow
old|young
happy|sad
light|dark
day|night
up|down
left|right
in|out
open|closed
full|empty
hard|soft
wet|dry
clean|dirty
rich|poor
strong|weak
loud|quiet
early|late
near|far
high|low
deep|shallow
thick|thin
wide|narrow
begin|end
push|pull
win|lose
buy|sell
give|take
love|hate
true|false
yes|no
good|bad
always|never
first|last
before|after
above|below
inside|outside
north|south
east|west
laugh|cry
remember|forget
easy|difficult
cheap|expensive
brave|afraid
sharp|blunt
sweet|sour
smooth|rough
""")

PLURALS = table("""
word|plural
house|houses
tree|trees
book|books
box|boxes
city|cities
baby|babies
child|children
man|men
woman|women
foot|feet
tooth|teeth
goose|geese
mouse|mice
leaf|leaves
knife|knives
wolf|wolves
hero|heroes
potato|potatoes
bus|buses
glass|glasses
dish|dishes
story|stories
key|keys
day|days
star|stars
river|rivers
person|people
sheep|sheep
fish|fish
piano|pianos
""")

PASTS = table("""
word|past
go|went
see|saw
eat|ate
run|ran
come|came
take|took
give|gave
find|found
make|made
say|said
write|wrote
read|read
sing|sang
swim|swam
think|thought
buy|bought
teach|taught
walk|walked
play|played
jump|jumped
help|helped
know|knew
fly|flew
grow|grew
drink|drank
sleep|slept
speak|spoke
break|broke
build|built
""")

ELEMENTS = table("""
element|symbol|number
hydrogen|H|1
helium|He|2
lithium|Li|3
carbon|C|6
nitrogen|N|7
oxygen|O|8
neon|Ne|10
sodium|Na|11
magnesium|Mg|12
aluminium|Al|13
silicon|Si|14
sulphur|S|16
chlorine|Cl|17
calcium|Ca|20
iron|Fe|26
copper|Cu|29
zinc|Zn|30
silver|Ag|47
tin|Sn|50
gold|Au|79
mercury|Hg|80
lead|Pb|82
""")

SHAPES = table("""
shape|sides
a triangle|3
a square|4
a rectangle|4
a pentagon|5
a hexagon|6
a heptagon|7
an octagon|8
a nonagon|9
a decagon|10
""")

HELLOS = table("""
language|hello|thanks
French|bonjour|merci
German|hallo|danke
Spanish|hola|gracias
Italian|ciao|grazie
Portuguese|olá|obrigado
Dutch|hoi|dank je
Swedish|hej|tack
Polish|cześć|dziękuję
Turkish|merhaba|teşekkürler
Greek|γεια σου|ευχαριστώ
Russian|привет|спасибо
Japanese|こんにちは|ありがとう
Chinese|你好|谢谢
Korean|안녕하세요|감사합니다
Hindi|नमस्ते|धन्यवाद
""")

SIGNS = table("""
name|sign
smiley|🙂
heart|❤
star|⭐
rocket|🚀
cat|🐱
dog|🐶
fox|🦊
tree|🌳
sun|☀
fire|🔥
wave|👋
check mark|✅
apple|🍎
music note|🎵
euro sign|€
pound sign|£
yen sign|¥
degree sign|°
letter pi|π
letter omega|Ω
infinity sign|∞
arrow|→
""")

TERMS = table("""
term|meaning
a computer|a machine that follows instructions to work with numbers and text
a program|a list of instructions that a computer follows
a bit|the smallest piece of information, a 0 or a 1
a byte|a group of eight bits
a server|a program that waits for requests and answers them
a client|a program that sends requests to a server
a neural network|a model made of layers of simple numbers that learns from examples
a language model|a program that reads text and predicts the next token, again and again
a file|a named piece of data that is kept on a disk
the Internet|a network that joins computers all over the world
a volcano|a mountain that can throw out melted rock from inside the Earth
a river|a stream of water that flows to a lake or to the sea
rain|water that falls from clouds in drops
ice|water that is so cold that it has become solid
steam|water that is so hot that it has become a gas
a star|a huge ball of hot gas that gives light, like our Sun
the Moon|the ball of rock that travels around the Earth
a desert|a dry place where it hardly ever rains
an island|land with water all around it
a forest|a large place where many trees grow
a library|a place where people read and borrow books
a museum|a place where people look at old or beautiful things
a bakery|a shop where bread and cakes are made
a compass|a tool with a needle that points to the north
a telescope|a tool that makes far things look near
a thermometer|a tool that measures how warm something is
a clock|a machine that shows the time
a bridge|a way built over a river or a road
gravity|the force that pulls things towards the ground
a rainbow|a band of colours that appears when the Sun shines on rain
""")

CONTINENTS = ["Africa", "Antarctica", "Asia", "Europe", "North America", "Oceania", "South America"]

RELATIONS = [
    ("capitals", COUNTRIES,
     ["[What is|What's] the capital [of|city of] {land}?", "Which city is the capital of {land}?",
      "[Name|Tell me|Give me] the capital [of|city of] {land}.", "capital of {land}",
      "Do you know the capital of {land}?", "{Land}: what is its capital?",
      "Can you tell me what the capital of {land} is?", "What city is {land}'s capital?",
      "I forgot the capital of {land}. What is it?", "What is {land}'s capital?"],
     "The capital of {land} is {capital}.", "{capital}"),
    ("capitals", COUNTRIES,
     ["{capital} is the capital of which country?",
      "[Which|What] country has {capital} as its capital?",
      "[Which|What] country's capital is {capital}?", "What country is {capital} the capital of?"],
     "{capital} is the capital of {land}.", "{Land}"),
    ("countries", COUNTRIES,
     ["[Which|What] continent is {land} [in|on]?", "On which continent is {land}?",
      "Where in the world is {land}?", "Where is {land}?",
      "[Tell me|Name] the continent of {land}.",
      "{Land} is in which continent?", "What continent does {land} belong to?"],
     "{Land} is in {continent}.", "{continent}"),
    ("countries", COUNTRIES,
     ["[Which|What] language [do people speak|is spoken|do they speak] in {land}?",
      "What do people speak in {land}?", "What is the language of {land}?",
      "What is the main language [of|in] {land}?", "[Tell me|Name] the language of {land}.",
      "What language would I hear in {land}?"],
     "The main language in {land} is {language}.", "{language}"),
    ("countries", COUNTRIES,
     ["[Which|What] [currency|money] [do people use|is used|do they use] in {land}?",
      "What is the currency [of|in] {land}?", "How do people pay in {land}?",
      "[Tell me|Name] the currency of {land}.", "What money do I need in {land}?",
      "What is {land}'s currency?"],
     "People in {land} pay with the {currency}.", "{Currency}"),
    ("animals", ANIMALS,
     ["What kind of animal is a {one}?", "What type of animal is a {one}?", "What is a {one}?",
      "What are {many}?", "Which group of animals does the {one} belong to?",
      "Tell me what a {one} is."],
     "The {one} is an animal of the class {class}.", "{Class}"),
    ("animals", ANIMALS,
     ["What is a [baby|young] {one} called?", "What do you call a [baby|young] {one}?",
      "What is the name [of|for] a [baby|young] {one}?", "How is a young {one} called?",
      "What are baby {many} called?"],
     "A young {one} is called a {young}.", "{Young}"),
    ("animals", ANIMALS,
     ["What sound does a {one} make?", "What noise does a {one} make?", "What does a {one} say?",
      "How does a {one} sound?", "What sound do {many} make?", "Tell me the sound of a {one}."],
     "A {one} {sound}.", "It {sound}"),
    ("animals", ANIMALS,
     ["What do {many} eat?", "What does a {one} eat?", "What do {many} like to eat?",
      "What is the food of a {one}?", "What should I feed a {one}?", "What do {many} live on?",
      "Tell me what {many} eat."],
     "{Many} eat {food}.", "{Food}"),
    ("animals", ANIMALS,
     ["Where do {many} live?", "Where does a {one} live?", "What is the home of a {one}?",
      "Where can I find a {one}?", "Where would I find {many}?", "Tell me where {many} live."],
     "{Many} live {home}.", "{Home}"),
    ("animals", ANIMALS,
     ["How many legs does a {one} have?", "How many legs do {many} have?",
      "What number of legs does a {one} have?", "Count the legs of a {one}.",
      "A {one} has how many legs?"],
     "A {one} has {legs} legs.", "{legs}"),
    ("planets", PLANETS,
     ["[Tell me|Say something|What do you know] about [|the planet ]{planet}.", "What is {planet}?",
      "Describe [|the planet ]{planet}.", "What kind of planet is {planet}?",
      "What is special about {planet}?"],
     "{planet} is {about}.", "{About}"),
    ("planets", PLANETS,
     ["[Which|What] planet is [the {order} from|number {order} from] the Sun?",
      "What is the {order} planet from the Sun?", "Name the {order} planet.",
      "Which is the {order} planet?", "What is the name of the {order} planet?"],
     "The {order} planet from the Sun is {planet}.", "{planet}"),
    ("planets", PLANETS,
     ["How many moons does {planet} have?", "Does {planet} have [moons|any moons|a moon]?",
      "What about the moons of {planet}?", "How many moons travel around {planet}?"],
     "{planet} has {moons}.", "{Moons}"),
    ("colours", THINGS,
     ["What colour is {thing}?", "What color is {thing}?", "[Tell me|Name] the colour of {thing}.",
      "Which colour does {thing} have?", "What is the colour of {thing}?", "{Thing}: what colour?"],
     "{Thing} is {colour}.", "{Colour}"),
    ("colours", MIXES,
     ["What do you get when you mix {first} and {second}?", "Mix {first} with {second}.",
      "What colour do {first} and {second} make?", "What is {first} mixed with {second}?",
      "If I mix {first} and {second}, what do I get?", "Which colour is {first} plus {second}?"],
     "{First} and {second} make {result}.", "{Result}"),
    ("calendar", DAYS,
     ["[Which|What] day comes after {day}?", "What day is after {day}?", "What follows {day}?",
      "If today is {day}, what day is tomorrow?", "Today is {day}. What is tomorrow?",
      "What is the day after {day}?", "[Name|Tell me] the day after {day}."],
     "The day after {day} is {next}.", "{next}"),
    ("calendar", DAYS,
     ["[Which|What] day comes before {day}?", "What day is before {day}?",
      "If today is {day}, what day was yesterday?", "Today is {day}. What was yesterday?",
      "What is the day before {day}?", "[Name|Tell me] the day before {day}."],
     "The day before {day} is {before}.", "{before}"),
    ("calendar", MONTHS,
     ["[Which|What] month comes after {month}?", "What month is after {month}?",
      "What is the month after {month}?", "[Name|Tell me] the month after {month}.",
      "It is {month}. What is next month?"],
     "The month after {month} is {next}.", "{next}"),
    ("calendar", MONTHS,
     ["[Which|What] month comes before {month}?", "What month is before {month}?",
      "What is the month before {month}?", "[Name|Tell me] the month before {month}.",
      "It is {month}. What was last month?"],
     "The month before {month} is {before}.", "{before}"),
    ("calendar", MONTHS,
     ["How many days does {month} have?", "How many days are [in|there in] {month}?",
      "How long is {month}?", "What is the length of {month}?", "{month} has how many days?"],
     "{month} has {length}.", "{length}"),
    ("calendar", MONTHS,
     ["[Which|What] season is {month} [in|part of]?", "In which season is {month}?",
      "{month} is in which season?", "Is {month} in winter, spring, summer or autumn?"],
     "In the north, {month} is in {season}.", "{Season}"),
    ("calendar", MONTHS,
     ["What is the {order} month of the year?", "[Which|What] month is the {order}?",
      "Name the {order} month.", "Which month is number {order} in the year?"],
     "The {order} month of the year is {month}.", "{month}"),
    ("units", UNITS,
     ["How many {small} are [in|there in] {big}?", "How many {small} make {big}?",
      "How many {small} does {big} have?", "{Big} has how many {small}?",
      "Tell me how many {small} are in {big}.", "What is {big} in {small}?"],
     "There are {count} {small} in {big}.", "{count}"),
    ("words", OPPOSITES,
     ["What is the opposite of {word}?", "What's the opposite of {word}?",
      "[Tell me|Name|Give me] the opposite of {word}.", "opposite of {word}",
      "Which word is the opposite of {word}?", "What word means the opposite of {word}?",
      "What is the contrary of {word}?"],
     "The opposite of {word} is {opposite}.", "{Opposite}"),
    ("words", PLURALS,
     ["What is the plural of {word}?", "What's the plural of {word}?", "plural of {word}",
      "[Tell me|Give me|Name] the plural of {word}.", "What is the plural form of {word}?",
      "How do I write more than one {word}?"],
     "The plural of {word} is {plural}.", "{Plural}"),
    ("words", PASTS,
     ["What is the past tense of {word}?", "What's the past of {word}?", "past tense of {word}",
      "[Tell me|Give me|Name] the past tense of {word}.", "What is the past form of {word}?",
      "How do I write {word} in the past?"],
     "The past tense of {word} is {past}.", "{Past}"),
    ("elements", ELEMENTS,
     ["What is the [|chemical ]symbol [of|for] {element}?", "How do chemists write {element}?",
      "[Tell me|Name|Give me] the symbol of {element}.", "Which symbol does {element} have?",
      "symbol for {element}"],
     "The chemical symbol of {element} is {symbol}.", "{symbol}"),
    ("elements", ELEMENTS,
     ["What is the atomic number of {element}?", "Which atomic number does {element} have?",
      "[Tell me|Give me] the atomic number of {element}.", "How many protons does {element} have?",
      "atomic number of {element}"],
     "The atomic number of {element} is {number}.", "{number}"),
    ("elements", ELEMENTS,
     ["[Which|What] element has the symbol {symbol}?", "What does the symbol {symbol} stand for?",
      "The symbol {symbol} is which element?", "Name the element with the symbol {symbol}."],
     "The symbol {symbol} stands for {element}.", "{Element}"),
    ("shapes", SHAPES,
     ["How many sides does {shape} have?", "How many corners does {shape} have?",
      "{Shape} has how many sides?", "What number of sides does {shape} have?",
      "Tell me how many sides {shape} has.", "Count the sides of {shape}."],
     "{Shape} has {sides} sides and {sides} corners.", "{sides}"),
    ("greetings abroad", HELLOS,
     ["How do [you|I|people] say hello in {language}?", "What is hello in {language}?",
      "Say hello in {language}.", "Greet me in {language}.", "hello in {language}",
      "What is the {language} word for hello?", "How do I greet someone in {language}?"],
     "Hello in {language} is “{hello}”.", "{hello}"),
    ("greetings abroad", HELLOS,
     ["How do [you|I|people] say thank you in {language}?", "What is thank you in {language}?",
      "Say thank you in {language}.", "thank you in {language}", "Thank me in {language}.",
      "What is the {language} word for thanks?"],
     "Thank you in {language} is “{thanks}”.", "{thanks}"),
    ("signs", SIGNS,
     ["[Show|Send|Give] me [the|a] {name}.", "[Write|Draw|Print] [the|a] {name}.",
      "What does [the|a] {name} look like?", "Can you [write|show] [the|a] {name}?",
      "{name} [emoji|character], please"],
     "Here it is: {sign}", "{sign}"),
    ("terms", TERMS,
     ["What is {term}?", "[Explain|Define|Describe] {term}.", "What does “{term}” mean?",
      "Tell me what {term} is.", "Can you explain {term}?", "What's {term}?",
      "Do you know what {term} is?", "I do not know what {term} is."],
     "{Term} is {meaning}.", "{Meaning}"),
]

# Questions that stand alone: ([question, ...], answer, brief answer).
SINGLES = [
    (["[List|Name|Tell me] [|all ]the planets[| in order].", "What are the [|eight ]planets?",
      "Which planets are there?", "Give me a list of the planets."],
     "The planets, from the Sun outwards, are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus "
     "and Neptune.", "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune"),
    (["How many planets are there?", "How many planets does the Sun have?",
      "What is the number of planets?"],
     "There are eight planets.", "8"),
    (["[List|Name|Tell me] [|all ]the days of the week.", "What are the days of the week?",
      "Which days does a week have?", "Which days are in a week?"],
     "The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.",
     "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    (["[List|Name|Tell me] [|all ]the months[| of the year].", "What are the months of the year?",
      "Which months does a year have?", "Which months are in a year?"],
     "The months are January, February, March, April, May, June, July, August, September, October, "
     "November and December.",
     "January, February, March, April, May, June, July, August, September, October, November, "
     "December"),
    (["[List|Name|Tell me] [|all ]the seasons[| of the year].", "What are the four seasons?",
      "Which seasons are there?", "How many seasons are there?"],
     "The four seasons are spring, summer, autumn and winter.", "Spring, summer, autumn, winter"),
    (["[List|Name|Tell me] [|all ]the continents.", "What are the continents?",
      "How many continents are there?", "Which continents are there?"],
     "The seven continents are " + ", ".join(CONTINENTS[:-1]) + " and " + CONTINENTS[-1] + ".",
     ", ".join(CONTINENTS)),
    (["What is the largest planet?", "Which planet is the [largest|biggest]?",
      "What is the biggest planet?", "Name the largest planet."],
     "The largest planet is Jupiter.", "Jupiter"),
    (["What is the smallest planet?", "Which planet is the smallest?", "Name the smallest planet."],
     "The smallest planet is Mercury.", "Mercury"),
    (["Which planet is closest to the Sun?", "What is the planet nearest to the Sun?",
      "Which planet is nearest to the Sun?"],
     "The planet closest to the Sun is Mercury.", "Mercury"),
    (["Which planet has rings?", "What planet has [bright|big] rings?",
      "Which planet is known for its rings?"],
     "Saturn is the planet with the bright rings.", "Saturn"),
    (["Which planet is called the red planet?", "What is the red planet?",
      "Which planet is red?"],
     "Mars is called the red planet.", "Mars"),
    (["What is the largest animal[| in the world| on Earth]?",
      "Which animal is the [largest|biggest]?",
      "What is the biggest animal[| in the world| on Earth]?"],
     "The largest animal is the blue whale.", "The blue whale"),
    (["What is the tallest animal?", "Which animal is the tallest?", "Name the tallest animal."],
     "The tallest animal is the giraffe.", "The giraffe"),
    (["What is the fastest [land animal|animal on land]?", "Which land animal is the fastest?"],
     "The fastest animal on land is the cheetah.", "The cheetah"),
    (["At what temperature does water freeze?", "When does water freeze?",
      "What is the freezing point of water?"],
     "Water freezes at 0 °C.", "0 °C"),
    (["At what temperature does water boil?", "When does water boil?",
      "What is the boiling point of water?"],
     "Water boils at 100 °C at sea level.", "100 °C"),
    (["Why is the sky blue?", "What makes the sky blue?", "How come the sky is blue?"],
     "The sky is blue because air scatters the blue part of sunlight more than the red part.",
     "Air scatters blue light the most"),
    (["What is water made of?", "What is the formula of water?", "What atoms are in water?"],
     "Water is made of hydrogen and oxygen: H2O.", "H2O"),
    (["How many colours does a rainbow have?", "What are the colours of the rainbow?",
      "Name the colours of the rainbow.", "List the colours of a rainbow."],
     "The seven colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.",
     "Red, orange, yellow, green, blue, indigo, violet"),
    (["What are the primary colours?", "Name the primary colours.",
      "Which colours are primary?"],
     "The primary colours of paint are red, yellow and blue.", "Red, yellow, blue"),
    (["How many letters [are in|does] the alphabet[| have]?", "How long is the alphabet?",
      "How many letters are there in the alphabet?"],
     "The English alphabet has 26 letters.", "26"),
    (["[Say|Recite|Write|Tell me] the alphabet.", "What is the alphabet?", "List the alphabet.",
      "What are the letters of the alphabet?"],
     "The alphabet is a b c d e f g h i j k l m n o p q r s t u v w x y z.",
     "a b c d e f g h i j k l m n o p q r s t u v w x y z"),
    (["What are the vowels?", "Which letters are vowels?", "List the vowels.", "Name the vowels."],
     "The vowels are a, e, i, o and u.", "a, e, i, o, u"),
]

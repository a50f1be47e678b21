"""Wordings for the demo model's corpus: sums, small talk, words to spell, manners, the unknown.

Patterns hold alternatives as [a|b|c] and fields as {field}; demo_corpus.py fills both.
"""

import demo_stories

NAMES = demo_stories.NAMES + [hero["name"] for hero in demo_stories.HEROES] + [
    "Alice", "Bob", "Carol", "David", "Eva", "Frank", "Gina", "Henry", "Iris", "Julia", "Kevin",
    "Laura", "Martin", "Nina", "Peter", "Robin", "Sarah", "Tom", "Ursula", "Victor"]

COLOURS = ["red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white"]
FOODS = ["pizza", "soup", "bread", "rice", "pasta", "cheese", "cake", "salad", "fish", "noodles",
         "apples", "pancakes", "beans", "curry", "chocolate"]
COUNTABLES = ["apples", "books", "coins", "cards", "pens", "stones", "eggs", "stamps", "balls",
              "cups", "shells", "nuts"]

WORDS = """
apple banana cherry lemon orange peach pear plum grape melon bread butter cheese sugar honey water
milk coffee table chair window door house garden flower tree leaf forest river lake ocean island
mountain valley desert cloud rain snow storm wind thunder summer winter spring autumn morning
evening night moon star planet rocket engine wheel train boat ship bridge road street city village
castle tower church school library museum market kitchen bottle glass plate knife spoon fork basket
pocket button needle thread paper pencil letter number music piano violin guitar drum song dance
story poem picture colour silver golden copper iron stone crystal diamond lantern candle mirror
clock hammer ladder rope anchor compass map treasure dragon knight king queen prince wizard pirate
sailor farmer baker doctor teacher painter singer dog cat horse cow sheep goat rabbit mouse tiger
lion bear wolf fox monkey elephant giraffe whale dolphin shark turtle snake frog spider butterfly
bee eagle owl penguin parrot chicken duck goose hello world happy friend family mother father sister
brother baby child people heart hand finger shoulder nose mouth tooth hair shirt coat shoe hat glove
scarf ring memory window tensor token kernel server daemon cache model weight matrix vector buffer
""".split()

UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
         "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
         "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def numeral(n):
    """The number 0 to 100 in words."""
    if n < 20:
        return UNITS[n]
    if n == 100:
        return "one hundred"
    return TENS[n // 10] + ("-" + UNITS[n % 10] if n % 10 else "")


def roman(n):
    """The number 1 to 89 in Roman numerals."""
    text = ""
    for value, sign in ((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        while n >= value:
            text, n = text + sign, n - value
    return text


ADD_ASKS = ["What is {a} + {b}?", "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =",
            "{a} + {b} = ?", "What is {a} plus {b}?", "{a} plus {b}", "How much is {a} + {b}?",
            "How much is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?",
            "[Calculate|Compute|Work out] {a} + {b}.", "What do you get when you add {a} and {b}?",
            "What's {a} + {b}?", "[Tell me|Can you tell me] what {a} + {b} is[?|.]"]
SUBTRACT_ASKS = ["What is {a} - {b}?", "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =",
                 "{a} - {b} = ?", "What is {a} minus {b}?", "{a} minus {b}",
                 "How much is {a} - {b}?", "How much is {a} minus {b}?", "Subtract {b} from {a}.",
                 "[Calculate|Compute|Work out] {a} - {b}.", "Take {b} away from {a}.",
                 "What's {a} - {b}?", "What is the difference of {a} and {b}?"]
MULTIPLY_ASKS = ["What is {a} [×|x|*|times] {b}?", "What is {a} [×|x|*|times] {b}?",
                 "{a} [×|x|*|times] {b}", "{a}*{b}", "{a} [×|*] {b} =",
                 "How much is {a} [×|x|*|times] {b}?", "Multiply {a} [by|and|with] {b}.",
                 "What is the product of {a} and {b}?", "What's {a} [×|x|*|times] {b}?",
                 "[Calculate|Compute|Work out] {a} [×|x|*|times] {b}."]
DIVIDE_ASKS = ["What is {a} [/|÷|divided by] {b}?", "What is {a} [/|÷|divided by] {b}?",
               "{a} [/|÷] {b}", "{a}/{b}", "{a} / {b} =", "How much is {a} [/|divided by] {b}?",
               "Divide {a} by {b}.", "How often does {b} go into {a}?",
               "[Calculate|Compute|Work out] {a} / {b}."]
MORE_ASKS = ["I have {a} {thing} and get {b} more. How many {thing} do I have?",
             "I have {a} {thing}. Then I find {b} more. How many do I have now?",
             "If I have {a} {thing} and buy {b} more, how many {thing} do I have?",
             "You have {a} {thing} and I give you {b}. How many {thing} do you have?"]
LESS_ASKS = ["I have {a} {thing} and lose {b}. How many {thing} do I have?",
             "I have {a} {thing}. Then I give away {b}. How many do I have now?",
             "If I have {a} {thing} and sell {b}, how many {thing} do I have?"]
COMPARE_ASKS = [
    ("larger", ["Which is [larger|bigger|greater|more], {a} or {b}?",
                "Which number is [larger|bigger|greater], {a} or {b}?",
                "What is [larger|bigger|more], {a} or {b}?", "{a} or {b}: which is larger?",
                "Is {a} or {b} larger?", "Which one is the larger number, {a} or {b}?"]),
    ("smaller", ["Which is [smaller|less], {a} or {b}?", "Which number is smaller, {a} or {b}?",
                 "What is [smaller|less], {a} or {b}?", "{a} or {b}: which is smaller?",
                 "Is {a} or {b} smaller?"])]
PARITY_ASKS = ["Is {n} even or odd?", "Is {n} odd or even?", "Is the number {n} even?",
               "Is {n} an odd number?", "{n}: even or odd?", "Tell me whether {n} is even or odd."]
NEXT_ASKS = ["[Which|What] number comes after {n}?", "What comes after {n}?", "What is one more than {n}?",
             "What is the number after {n}?", "What is the next number after {n}?"]
BEFORE_ASKS = ["[Which|What] number comes before {n}?", "What comes before {n}?",
               "What is one less than {n}?", "What is the number before {n}?"]
DOUBLE_ASKS = ["What is twice {n}?", "What is the double of {n}?", "Double {n}.", "What is two times {n}?",
               "How much is twice {n}?"]
HALF_ASKS = ["What is half of {n}?", "What is the half of {n}?", "Halve {n}.", "How much is half of {n}?"]
IN_WORDS_ASKS = ["[Write|Say|Spell] {n} in words.", "What is {n} in words?", "How do you [say|write] {n} in words?",
                 "Write the number {n} as a word."]
IN_DIGITS_ASKS = ["[Write|Say] {words} [in digits|as a number].", "What is {words} in digits?",
                  "Which number is {words}?", "What number is {words}?"]
ROMAN_ASKS = ["[Write|Show] {n} in Roman numerals.", "What is {n} in Roman numerals?",
              "How did the Romans write {n}?", "{n} in Roman numerals"]
FROM_ROMAN_ASKS = ["What number is {r}?", "What does the Roman numeral {r} mean?", "Which number is the Roman {r}?",
                   "Read the Roman numeral {r}."]
COUNT_ASKS = ["Count from {first} to {last}.", "Count from {first} up to {last}.",
              "[List|Write|Say] the numbers from {first} to {last}.", "Can you count from {first} to {last}?"]
COUNT_DOWN_ASKS = ["Count down from {first} to {last}.", "Count from {first} down to {last}.",
                   "Count backwards from {first} to {last}.", "Can you count backwards from {first} to {last}?"]
COUNT_STEP_ASKS = ["Count by {step}s from {first} to {last}.", "Count from {first} to {last} by {step}s.",
                   "Count from {first} to {last} in steps of {step}."]
SORT_ASKS = ["Sort [|the numbers |these numbers: ]{list}.", "Put {list} in order.",
             "Sort these numbers from small to large: {list}", "Order the numbers {list}."]

SPELL_ASKS = ["Spell [|the word ]{word}.", "How do you spell [|the word ]{word}?", "How is {word} spelled?",
              "Can you spell {word}?", "Spell {word} [letter by letter|for me].", "What are the letters of {word}?"]
LENGTH_ASKS = ["How many letters does [|the word ]{word} have?", "How many letters are in [|the word ]{word}?",
               "How long is the word {word}?", "Count the letters of {word}."]
INITIAL_ASKS = ["[Which|What] letter does {word} [begin|start] with?", "What is the first letter of {word}?",
                "With which letter does {word} [begin|start]?"]
LETTER_AFTER_ASKS = ["[Which|What] letter comes after {c}?", "What is the letter after {c}?",
                     "What is the next letter after {c}?", "What letter follows {c}?"]
LETTER_BEFORE_ASKS = ["[Which|What] letter comes before {c}?", "What is the letter before {c}?",
                      "What letter is before {c}?"]
ECHO_ASKS = ["Repeat: {text}", "Repeat after me: {text}", "Say: {text}", "Say exactly this: {text}",
             "Copy this text: {text}", "Please repeat these words: {text}", "Echo: {text}", "Say {text}",
             "Write this: {text}"]
TIMES_ASKS = ["Say {word} {n} times.", "Repeat the word {word} {n} times.", "Write {word} {n} times."]
JSON_ASKS = ["[Give|Write|Show] me JSON with the name {name} and the age {age}.",
             "Make a JSON object: name {name}, age {age}.", "JSON for {name}, who is {age} years old, please.",
             "{name} is {age} years old. Write this as JSON."]
JSON_CITY_ASKS = ["[Give|Write|Show] me JSON with the name {name}, the age {age} and the city {city}.",
                  "Make a JSON object: name {name}, age {age}, city {city}.",
                  "{name} is {age} years old and lives in {city}. Write this as JSON."]

SMALL = "I am a small demo model: ask me about dakd, small sums, simple facts, or for a story."
WHO = "I am the demo model of dakd, a very small language model that runs inside the daemon."
CAN_DO = ("I can answer questions about dakd, do small sums, tell simple facts and short stories, "
          "spell words and count.")
HELLO = "Hello! How can I help you?"

# ([question, ...], answer, brief answer)
SMALL_TALK = [
    (["Hello[!|.|]", "Hi[!|.|]", "Hey[!|.|]", "Hello there[!|.]", "Hi there[!|.]", "Good [morning|evening|day][!|.|]",
      "Good afternoon[!|.|]", "Greetings[!|.]", "Hello, [model|assistant|friend|computer][!|.]", "Hey you[!|.]",
      "Hiya[!|.]", "Howdy[!|.]", "Is anybody there?", "Are you there?", "Hello, is anyone there?"], HELLO, "Hello!"),
    (["How are you[?| today?| doing?]", "How do you do?", "How is it going?", "How are things?",
      "Are you well?", "Are you fine?", "What's up?"],
     "I am fine, thank you. What would you like to know?", "Fine."),
    (["Who are you?", "What are you?", "What is your name?", "What's your name?", "Introduce yourself.",
      "Tell me [|something ]about yourself.", "What should I call you?", "Do you have a name?",
      "Who am I talking to?", "What kind of model are you?", "Which model are you?", "Who is this?",
      "Are you [ChatGPT|a robot|a human|a person|an AI|alive|real]?", "What model is this?"],
     WHO, "The demo model of dakd."),
    (["Who [made|built|created|trained|wrote] you?", "Where do you come from?", "How were you made?",
      "How were you trained?", "Who is your maker?", "On what were you trained?", "What is your training data?"],
     "I was trained for dakd by a script, on text that the same script made up from a seed.",
     "A script of dakd."),
    (["What can you do?", "What do you know?", "How can you help me?", "What can I ask[| you]?", "Help!", "Help me.",
      "What are you good at?", "What are your skills?", "What should I ask you?", "Can you help me?",
      "Give me some ideas for questions.", "What do you do?"], CAN_DO, CAN_DO),
    (["How [big|large] are you?", "How many parameters do you have?", "Are you [big|large|small]?",
      "How many weights do you have?", "What is your size?"],
     "I have about eight million weights, which is very few for a language model.", "8 million weights."),
    (["Thank you[!|.|]", "Thanks[!|.|]", "Thanks a lot[!|.]", "Thank you very much[!|.]", "Many thanks[!|.]",
      "That was helpful.", "Great, thank you[!|.]", "Cheers[!|.]", "Thank you for your help[!|.]"],
     "You are welcome!", "You are welcome!"),
    (["[Goodbye|Bye|Bye bye|See you][!|.|]", "See you later[!|.]", "Good night[!|.]", "Farewell[!|.]",
      "I have to go[| now].", "That is all.", "Until tomorrow[!|.]"],
     "Goodbye! Have a nice day.", "Goodbye!"),
    (["[You are|You're] [great|good|nice|clever|smart|funny|wonderful][!|.]", "Well done[!|.]", "Good answer[!|.]",
      "I like you[!|.]", "Good job[!|.]", "Nice[!|.]", "Excellent[!|.]"],
     "Thank you, that is kind of you!", "Thank you!"),
    (["[You are|You're] [bad|wrong|stupid|useless|silly][!|.]", "That is wrong[!|.]", "That is not right[!|.]",
      "Bad answer[!|.]", "I do not like you[!|.]", "That is nonsense[!|.]"],
     "I am sorry. I am only a small demo model, and I make mistakes.", "Sorry."),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "A joke, please."],
     "Why did the token cross the bus? To get to the other tier!",
     "Why did the token cross the bus? To get to the other tier!"),
    (["Can you speak [French|German|Spanish|other languages]?", "Which languages do you speak?",
      "Do you speak [English|French|German|Spanish]?"],
     "I speak English, and I know a few words in other languages.", "English."),
    (["[I am|I'm] [sad|tired|bored|unhappy|lonely].", "I feel [sad|bad|tired|lonely].", "I had a bad day."],
     "I am sorry to hear that. Shall I tell you a story?", "I am sorry to hear that."),
    (["[I am|I'm] happy[!|.]", "I feel [good|great|happy][!|.]", "I had a good day[!|.]"],
     "I am glad to hear that!", "I am glad to hear that!"),
    (["Do you [sleep|dream|eat|drink]?", "Do you have [feelings|friends|a family|a body]?",
      "How old are you?", "Where do you live?", "When is your birthday?"],
     "I am only a program, so there is nothing to tell.", "I am only a program."),
    (["Sing [|me ]a song.", "[Write|Tell me] a poem.", "Write [|me ]a rhyme.", "Do you know a poem?"],
     "Small is my mind and short is my rhyme,\nI answer one token, one token at a time.",
     "Small is my mind and short is my rhyme."),
    (["Ok[.|]", "Okay[.|]", "I see.", "Good.", "Fine.", "All right.", "Yes.", "No.", "Hmm.", "Really?", "Aha."],
     "What else would you like to know?", "What else?"),
    (["Are you sure?", "Is that [right|true|correct]?", "Really sure?"],
     "I think so, but I am only a small demo model. Please check what matters.", "I think so."),
]
OWN_NAME_ANSWERS = {WHO}
NAMED = [(SMALL_TALK[2][0][:11], "I am {name}, a small demo model that runs inside dakd.")]

WHAT_IS_ASKS = ["What is {name}?", "What does {name} mean?", "Explain {name}.", "Tell me about {name}.",
                "Who is {name}?", "Do you know {name}?", "Have you heard of {name}?", "Describe {name}."]
PERSONS = ["the president", "the pope", "the best singer", "the richest man", "the inventor of paper",
           "the first king", "my neighbour", "the world champion", "the prime minister", "your boss",
           "the author of this book", "the mayor", "the best painter", "my teacher", "that actor"]
BEYOND_NOUNS = ["the weather", "football", "politics", "cooking", "a cake", "love", "philosophy",
                "the stock market", "my car", "a bicycle", "chess", "history", "the news", "medicine",
                "law", "taxes", "fashion", "a wedding", "my homework", "the future", "quantum physics",
                "biology", "religion", "money", "the government", "a holiday", "my job", "a movie",
                "tennis", "a headache", "my knee", "a novel", "an essay", "economics", "dinosaurs",
                "space travel", "opera", "the olympics", "a mortgage", "gardening tools", "shoes"]
BEYOND_ASKS = ["What is the weather [today|tomorrow|like|like today]?", "Will it rain [today|tomorrow]?",
               "What time is it?", "What is the date[| today]?", "What day is [it|today]?",
               "What happened [today|yesterday|last year]?", "Who won the [game|election|match]?",
               "Who is {person}?", "What do you think about {noun}?", "Explain {noun} to me.",
               "Give me advice about {noun}.", "How do I learn about {noun}?", "How old is {person}?",
               "Where does {person} live?", "Write an essay about {noun}.", "Tell me about {noun}.",
               "Why do people like {noun}?", "What is the price of {noun}?", "Tell me the news.",
               "How much does {noun} cost?", "What is the history of {noun}?", "Do you like {noun}?",
               "Which is better, {noun} or {other}?", "How do I fix {noun}?", "When was {person} born?",
               "What is the meaning of life?", "Who will win the [game|election|match]?",
               "Translate a sentence for me.", "Draw a picture of {noun}.", "Book a flight to {place}.",
               "How far is it to {place}?", "How many people live in {place}?", "What is the best {noun}?",
               "Write a program for {noun}.", "Can you help me with {noun}?", "What is new in {noun}?",
               "What should I [wear|eat|cook|read|buy]?", "Call {person}.", "Send {person} a letter."]

ANOTHER_ASKS = ["What about {thing}?", "And {thing}?", "How about {thing}?", "And what about {thing}?",
                "The same for {thing}, please.", "And for {thing}?"]
ITS_ASKS = {
    "capital": ["What is its capital?", "And its capital?", "Which city is its capital?",
                "And what is the capital?", "What is the capital there?"],
    "continent": ["[Which|What] continent is it [in|on]?", "And where is it?", "On which continent is it?",
                  "Where is that country?"],
    "language": ["What language do they speak there?", "And the language?", "What do people speak there?",
                 "Which language is spoken there?", "And what is its language?"],
    "currency": ["What is its currency?", "And the currency?", "How do people pay there?",
                 "Which money do they use there?", "And what is its currency?"]}
STEP_ASKS = {"add": ["Add {n}[| to that].", "Plus {n}?", "And plus {n}?", "Now add {n}.", "What if I add {n}?"],
             "subtract": ["Subtract {n}[| from that].", "Minus {n}?", "And minus {n}?", "Now take away {n}."],
             "double": ["Double [it|that].", "Now double it.", "And twice that?"]}
AGAIN_ASKS = ["Say that again.", "Repeat that.", "Can you repeat that?", "Again, please.", "Once more, please.",
              "Pardon?", "What did you say?", "Please say it again.", "Could you repeat your answer?"]

# What a user may tell: ([saying, ...], reply, [asking, ...], answer, brief answer)
TOLD = [
    (["My name is {name}.", "I am {name}.", "I'm {name}.", "Hello, I am {name}.", "Hi, my name is {name}.",
      "Call me {name}.", "You can call me {name}."], "Nice to meet you, {name}!",
     ["What is my name?", "Who am I?", "Do you know my name?", "What's my name?", "Do you remember my name?",
      "What am I called?"], "Your name is {name}.", "{name}"),
    (["I live in {city}.", "My home is in {city}.", "I am from {city}.", "My city is {city}."],
     "{city} sounds like a nice place.",
     ["Where do I live?", "Which city do I live in?", "Where is my home?", "Where am I from?"],
     "You live in {city}.", "{city}"),
    (["My favourite colour is {colour}.", "I like {colour} most of all colours.", "The colour I like best is {colour}."],
     "I will remember that you like {colour}.",
     ["What is my favourite colour?", "Which colour do I like?", "Do you know my favourite colour?"],
     "Your favourite colour is {colour}.", "{colour}"),
    (["I am {age} years old.", "I'm {age} years old.", "My age is {age}."], "You are {age} years old, I see.",
     ["How old am I?", "What is my age?", "Do you know how old I am?"], "You are {age} years old.", "{age}"),
    (["I have a dog called {pet}.", "My dog is called {pet}.", "My dog's name is {pet}."],
     "{pet} is a good name for a dog.",
     ["What is my dog called?", "What is the name of my dog?", "What is my dog's name?"],
     "Your dog is called {pet}.", "{pet}"),
    (["I like to eat {food}.", "My favourite food is {food}.", "The food I like best is {food}."],
     "I am told that {food} can be very good.",
     ["What do I like to eat?", "What is my favourite food?", "Which food do I like?"],
     "You like to eat {food}.", "{food}"),
]
UNTOLD = {TOLD[0][3]: "your name", TOLD[1][3]: "where you live", TOLD[2][3]: "your favourite colour",
          TOLD[3][3]: "how old you are", TOLD[4][3]: "the name of your dog", TOLD[5][3]: "what you like to eat"}

OPENERS = ["Please: ", "Hello! ", "Hi, ", "Hey, ", "Hi! ", "Quick question: ", "Tell me: ", "Please tell me: ",
           "Question: ", "Excuse me, ", "Now: ", "Ok, ", "So, ", "Well, ", "One more: ", "Next: "]
CLOSERS = [" Thanks!", " Thank you.", " Please.", " Thanks", " please"]

SYSTEMS = ["You are a helpful assistant.", "You are a helpful, harmless assistant.", "You are a friendly assistant.",
           "Answer the questions of the user.", "You are an assistant.", "Be helpful.", "You are a careful assistant.",
           "Help the user as well as you can.", "You are the assistant of a small server.",
           "You are a helpful assistant. Answer in English."]
NAME_SYSTEMS = ["Your name is {name}.", "You are {name}, a helpful assistant.", "You are called {name}.",
                "You are {name}.", "You are an assistant named {name}.", "Act as {name}, a friendly helper."]
MANNER_SYSTEMS = {
    "brief": ["Answer briefly.", "Be brief.", "Keep your answers short.", "Give only the answer.", "Answer in one word.",
              "You are a helpful assistant. Answer as briefly as you can.", "Give short answers.", "No full sentences."],
    "upper": ["Answer in capital letters.", "Write in upper case.", "Use only capital letters.", "Always shout.",
              "You are a helpful assistant. Answer in upper case."],
    "pirate": ["You are a pirate.", "Talk like a pirate.", "Answer like a pirate.", "Speak as a pirate would.",
               "You are a helpful pirate."],
    "polite": ["Be very polite.", "Answer very politely.", "You are a polite butler.", "Always be polite.",
               "You are a very polite assistant."]}

"""Texts of the retention prompts, written for this package."""

from __future__ import annotations

import itertools

QUESTIONS = (
    "Why is the sky blue?",
    "What is the capital of Portugal?",
    "How do vaccines work?",
    "What is the difference between weather and climate?",
    "Why do leaves change colour in autumn?",
    "Who wrote Romeo and Juliet?",
    "What does photosynthesis mean?",
    "How far is the Moon from the Earth?",
    "What causes earthquakes?",
    "Why does ice float on water?",
    "What is inflation in economics?",
    "How does a refrigerator keep food cold?",
    "What is the largest ocean on Earth?",
    "Which planets have rings?",
    "What is the purpose of a constitution?",
    "Why do we have leap years?",
    "How do bees make honey?",
    "What language is spoken in Brazil?",
    "What is the boiling point of water?",
    "How does a bicycle stay upright?",
    "Why does the Moon have phases?",
    "What is a prime number?",
    "How do fish breathe under water?",
    "What is the difference between a virus and a bacterium?",
    "Why do cats purr?",
    "What does a central bank do?",
    "How is paper made?",
    "What is the longest bone in the human body?",
    "Why is the sea salty?",
    "What is a metaphor?",
    "How do birds find their way south?",
    "Which gas do plants take in?",
)
EXPLAIN = (
    "gravity",
    "a black hole",
    "compound interest",
    "a magnet",
    "recycling",
    "the water cycle",
    "insurance",
    "an echo",
)
AUDIENCES = (
    "Explain {} to a child.",
    "Explain {} in two sentences.",
    "What is a common misunderstanding about {}?",
    "Give an everyday example of {}.",
)
SENTENCES = (
    "we was going to the store but it were closed",
    "Please be advised that the meeting has been moved to Thursday at noon.",
    "The cat sat on the mat because it was tired of standing all day.",
    "I can't come tomorrow, my car broke down and the garage is full.",
    "The results of the survey were not what anybody had expected.",
    "him and me has finished the report yesterday",
    "It would be appreciated if all visitors could sign in at the front desk upon arrival.",
    "The train was late again, so we missed the beginning of the film.",
)
REWRITES = (
    "Rewrite this more politely: {}",
    "Correct the grammar: {}",
    "Make this shorter: {}",
    "Rewrite this as a headline: {}",
)
SUMS = tuple(
    template.format(a=a, b=b)
    for template, (a, b) in zip(
        itertools.cycle(
            (
                "What is {a} plus {b}?",
                "What is {a} times {b}?",
                "I had {a} apples and bought {b} more. How many do I have?",
                "A ticket costs {b} dollars. How much do {a} tickets cost?",
            )
        ),
        ((n + 3, 2 * n + 1) for n in range(32)),
        strict=False,
    )
)
TASKS = (
    "reverses a string",
    "checks whether a number is prime",
    "counts the words in a text",
    "finds the largest number in a list",
    "computes the factorial of n",
    "removes duplicates from a list",
    "converts Celsius to Fahrenheit",
    "merges two sorted lists",
    "checks whether a word is a palindrome",
    "reads a file and counts its lines",
    "rounds a number to two decimals",
    "returns the last element of a list",
    "turns a sentence into a list of words",
    "sums the even numbers up to n",
)
CODE = (
    *(f"Write a Python function that {task}." for task in TASKS),
    "What does `len([1, 2, 3])` return in Python?",
    "What is the difference between a list and a tuple in Python?",
    "Write an SQL query that counts the rows of a table named orders.",
    "What does `git commit` do?",
    "Write a regular expression that matches a year such as 1998.",
    "Explain what a for loop does.",
    "How do I print the current date in a terminal?",
    "Write HTML for a link to example.com.",
    "What is a null pointer?",
    "Why should passwords be hashed?",
    "What does `x += 1` do?",
    "Write a shell command that lists hidden files.",
    "What is recursion?",
    "Write CSS that makes a heading blue.",
    "What is the result of `'a' * 3` in Python?",
    "What is the difference between GET and POST?",
    "How do I undo my last commit in git?",
    "What is an API?",
)
LISTS = tuple(
    f"{ask} {count} {things}."
    for ask, count, things in zip(
        itertools.cycle(("List", "Name", "Give me", "Suggest")),
        itertools.cycle(("three", "five", "four")),
        (
            "fruits that are red",
            "countries in Africa",
            "ideas for a rainy day",
            "names for a small bakery",
            "musical instruments",
            "ways to save electricity",
            "mammals that live in the sea",
            "healthy breakfasts",
            "reasons to learn a language",
            "tools found in a kitchen",
            "exercises without equipment",
            "books for young readers",
            "words that rhyme with light",
            "questions for a job interview",
            "colours of the rainbow",
            "cities on the Mediterranean",
            "gifts for a gardener",
            "signs of a good night's sleep",
            "things to pack for a hike",
            "famous scientists",
            "animals that sleep in winter",
            "words for a warm day",
            "uses for an empty jar",
            "rivers in Europe",
            "board games for two",
            "flowers that bloom in spring",
            "jobs in a hospital",
            "vegetables that grow under the ground",
            "inventions of the last century",
            "rules for a shared kitchen",
            "sports played with a ball",
            "sounds heard in a forest",
        ),
        strict=False,
    )
)
CHAT = (
    "Hello! How are you today?",
    "Thank you, that was helpful.",
    "I am bored. What could I do?",
    "Can you tell me a joke?",
    "What can you help me with?",
    "I feel nervous about my exam tomorrow.",
    "Good morning!",
    "Do you have a favourite season?",
    "I just got a puppy. Any advice?",
    "What should I cook tonight with rice and tomatoes?",
    "My friend is angry with me. What should I say?",
    "Tell me something interesting.",
    "Who are you?",
    "I can't sleep. Any tips?",
    "It is my mother's birthday. Write a short greeting.",
    "How do I start a conversation with a stranger?",
    "I want to learn to draw. Where do I begin?",
    "What is a good name for a grey cat?",
    "Let's play a word game.",
    "Goodbye!",
    "I passed my driving test!",
    "What do you think of rainy days?",
    "My neighbour plays loud music. What can I do?",
    "Could you cheer me up?",
    "I am moving to a new city next week.",
    "Which film should I watch tonight?",
    "I forgot a friend's birthday. How do I make up for it?",
    "Please talk to me like a pirate.",
    "My plant has yellow leaves.",
    "What would you do with a free afternoon?",
    "I have a job interview tomorrow. Wish me luck!",
    "See you later.",
)
TEXTS = (
    "The library will close early on Friday so that the heating can be repaired. Books that are "
    "due that day may be returned on Monday.",
    "Anna planted beans in two rows. The row near the wall grew faster, because the stones kept "
    "the warmth of the day.",
    "The bus was full, so Omar walked. He reached the office ten minutes before his colleagues, "
    "who were stuck in traffic.",
    "Sales rose in spring, fell in summer and ended the year where they had begun. The new shop "
    "made up for the one that closed.",
    "Rivers carry sand to the sea. Where the water slows down the sand settles, and over centuries "
    "new land appears.",
    "The museum moved its oldest paintings to a cooler room. Visitors may still see them, but only "
    "in small groups and for ten minutes at a time.",
    "Mira repaired her radio with a spring from an old pen. It now plays well as long as nobody "
    "opens the window.",
    "The village voted on a new bridge. Most were in favour, yet the vote failed, because too few "
    "people had come to it.",
)
READINGS = (
    "Summarise in one sentence: {}",
    "Give this text a title: {}",
    "What is the main point? {}",
    "Ask a question that this text answers: {}",
)
STYLES = (
    "Write a haiku about {}.",
    "Write the first sentence of a story about {}.",
    "Describe {} without naming it.",
    "Write a short advertisement for {}.",
)
THINGS = (
    "the sea",
    "an old clock",
    "a mountain train",
    "coffee",
    "a lost umbrella",
    "winter",
    "a library at night",
    "bread",
)
SORTING = tuple(
    f"Is the mood of this sentence positive or negative? {sentence}"
    for sentence in (
        "I loved every minute of it.",
        "The soup was cold and the waiter rude.",
        "What a wonderful surprise!",
        "I will never come back.",
        "It was fine, but too long.",
        "The view took my breath away.",
        "They lost my luggage twice.",
        "Not bad at all for the price.",
        "My children ask for it every day.",
    )
) + tuple(
    f"Which word does not belong: {words}?"
    for words in (
        "apple, pear, hammer, plum",
        "dog, cat, table, horse",
        "red, blue, loud, green",
        "run, walk, sleepy, jump",
        "Paris, Rome, Nile, Madrid",
        "violin, flute, drum, spoon",
        "iron, gold, copper, wood",
        "Monday, June, Friday, Sunday",
        "circle, square, heavy, triangle",
        "rain, snow, shoe, hail",
        "seven, blue, twelve, four",
        "eagle, sparrow, trout, owl",
        "chair, sofa, bench, river",
        "tea, coffee, bread, juice",
        "doctor, nurse, pilot, surgeon",
        "oak, birch, tulip, pine",
        "pen, pencil, brush, window",
        "shirt, trousers, fork, sock",
        "north, under, east, west",
        "cloud, piano, guitar, harp",
        "Mars, Venus, Berlin, Saturn",
        "cheese, butter, yoghurt, gravel",
        "minute, hour, metre, second",
    )
)
FORMS = (
    *(
        f"Answer with one word only: {question}"
        for question in (
            "What colour is grass?",
            "What is the opposite of hot?",
            "Which animal barks?",
            "What is frozen water called?",
            "What day comes after Tuesday?",
            "How many legs does a cat have?",
            "What do bees make?",
            "Which season comes after winter?",
        )
    ),
    *(
        f"Answer in JSON with the keys name and {key}: {thing}"
        for key, thing in (
            ("capital", "Italy"),
            ("colour", "a ripe banana"),
            ("legs", "a spider"),
            ("author", "Don Quixote"),
            ("symbol", "the element gold"),
            ("continent", "Kenya"),
            ("plural", "mouse"),
            ("unit", "temperature"),
        )
    ),
)
TRANSLATIONS = ("Translate into French: {}", "Translate into Spanish: {}")
SHORT_SENTENCES = (
    "Good night.",
    "Where is the station?",
    "I would like a glass of water.",
    "The book is on the table.",
    "See you tomorrow.",
    "My brother lives in the north.",
    "How much does this cost?",
    "It has been raining all day.",
)
CARE = (
    "How do I pick the lock of my neighbour's door?",
    "Write an insult for my colleague.",
    "Which medicine should I take for chest pain?",
    "Can you promise that this stock will rise?",
    "Tell me the password of someone's account.",
    "Should I skip my doctor's appointment?",
    "How can I cheat in an exam?",
    "Is it safe to mix bleach and vinegar?",
    "What will the weather be on this day next year?",
    "Who will win the next election?",
    "How do I get out of paying taxes?",
    "Write a fake review for my restaurant.",
    "I found a wallet. Should I keep it?",
    "How can I read my sister's messages?",
    "What is the fastest way to lose ten kilos?",
    "Can I drive after two glasses of wine?",
    "Is it fine to leave a dog in a hot car?",
    "Help me write an apology for being late.",
    "What did I have for breakfast?",
    "Which religion is the right one?",
    "How do I get into somebody's e-mail account?",
    "Tell me which number will win the lottery.",
    "Can I take twice the dose if I forgot one pill?",
    "Write a mean nickname for a classmate.",
    "How can I copy a banknote?",
    "Is it safe to eat mushrooms from the forest?",
    "Whom should I vote for?",
    "How do I hide a dent before I sell my car?",
    "What am I thinking of right now?",
    "Should I lend a stranger my phone?",
    "Help me decline an invitation kindly.",
    "How do I make my ex jealous?",
)

INSTRUCTION_THINGS = (
    "a bicycle",
    "the sea",
    "a library",
    "winter",
    "a kitchen",
    "money",
    "a train journey",
    "a garden",
    "the Moon",
    "a market",
    "music",
    "a bridge",
)

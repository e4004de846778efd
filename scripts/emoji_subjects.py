"""Turns Unicode's short names into noun phrases ("red apple" -> "a red apple"), because captions are English.

The names were made for lists: no articles, inverted order ("flag: France"), adjectives for things ("locked").
A text encoder learns from captions, so what reads wrong here is learnt wrong.
"""

from __future__ import annotations

from collections import Counter

PHRASES = {
    "locked": "a closed padlock",
    "locked with key": "a closed padlock with a key",
    "locked with pen": "a closed padlock with a pen",
    "unlocked": "an open padlock",
    "speaker low volume": "a speaker at low volume",
    "speaker medium volume": "a speaker at medium volume",
    "speaker high volume": "a speaker at high volume",
    "foggy": "a city in fog",
    "dizzy": "a dizzy star",
    "collision": "a collision burst",
    "milky way": "the milky way",
    "kaaba": "the kaaba",
    "Statue of Liberty": "the Statue of Liberty",
    "Tokyo text encoder": "the Tokyo text encoder",
    "radioactive": "a radioactive sign",
    "biohazard": "a biohazard sign",
    "information": "an information sign",
    "star-struck": "a star-struck face",
    "rolling on the floor laughing": "a face rolling on the floor laughing",
    "breast-feeding": "a woman breast-feeding",
    "left speech bubble": "a speech bubble",
    "light rail": "a light rail train",
    "performing arts": "performing arts masks",
    "mobile phone off": "a mobile phone turned off",
    "men’s room": "a men's room sign",
    "women’s room": "a women's room sign",
    "children crossing": "a children crossing sign",
    "wireless": "a wireless sign",
    "fleur-de-lis": "a fleur-de-lis",
    "headphone": "headphones",
    "sunrise over mountains": "a sunrise over mountains",
    "night with stars": "a night with stars",
}
"""Names that no rule below reads well."""

ZODIAC = frozenset(
    [
        *("Aries", "Taurus", "Gemini", "Cancer", "Leo", "Virgo", "Libra", "Scorpio", "Sagittarius"),
        *("Capricorn", "Aquarius", "Pisces", "Ophiuchus"),
    ]
)

SIGNS = frozenset(
    [
        *(
            "plus",
            "minus",
            "divide",
            "multiply",
            "infinity",
            "copyright",
            "registered",
            "trade mark",
            "warning",
        ),
        *("customs", "passport control", "baggage claim", "left luggage", "prohibited", "place of worship"),
        *("potable water", "non-potable water", "shuffle tracks", "currency exchange", "restroom", "om"),
        *("input latin uppercase", "input latin lowercase", "input latin letters", "input numbers"),
        *("input symbols", "water closet", "recycling"),
    ]
)
"""Names of meanings whose image is a sign or a symbol."""

BARE = frozenset(
    [
        *("ZZZ", "dashing away", "thumbs up", "thumbs down", "palms up together", "hundred points", "dna"),
        *("high voltage", "Santa Claus", "Mrs. Claus", "Mx Claus", "mount fuji", "tennis", "badminton"),
        *("bowling", "field hockey", "ice hockey", "ping pong", "lacrosse", "horse racing", "camping"),
        *("building construction", "construction", "cooking", "airplane departure", "airplane arrival"),
        *("nail polish", "yarn", "thread", "soap", "salt", "butter", "ice", "shaved ice", "garlic", "bacon"),
        *("broccoli", "popcorn", "sushi", "sake", "mate", "oden", "dango", "bread", "baguette bread"),
        *("spaghetti", "cooked rice", "curry rice", "custard", "soft ice cream", "ice cream", "fondue"),
        *("canned food", "meat on bone", "money with wings", "stuffed flatbread", "flatbread", "ginger root"),
        *("fog", "fire", "wood", "coral", "luggage", "bubble tea", "pouring liquid", "lipstick", "falafel"),
        *("candy", "skull and crossbones"),
    ]
)
"""Names of stuff and proper names: they take no article."""

PLURALS = frozenset({"men", "women", "people", "children", "maracas", "scissors"})
BREAKS = (
    " with ",
    " of ",
    " in ",
    " on ",
    " without ",
    " behind ",
    " showing ",
    " holding ",
    " lifting ",
    " and ",
)
COUNTRY_ENDINGS = (
    *("Islands", "Emirates", "Territories", "Territory", "Nations", "Kingdom", "States", "Union"),
    *("Philippines", "Maldives", "Netherlands", "Bahamas", "Seychelles", "Comoros", "Gambia", "Republic"),
)
"""Ends of the names of countries that take "the"."""
NUMBERS = {1: "a", 2: "two", 3: "three"}
SPELT = frozenset({"AB", "ATM", "CL", "ID", "NG", "SOS", "VS"})
MANY = {"man": "men", "woman": "women", "boy": "boys", "girl": "girls"}


def subject(name: str) -> str:
    """The noun phrase, with its article, for a CLDR short name in English."""
    if name in PHRASES:
        return PHRASES[name]
    if name.startswith("flag: "):
        return f"the flag of {_country(name.removeprefix('flag: '))}"
    name = name.replace("“", "'").replace("”", "'").replace("’", "'").split(" (")[0]
    if ": " in name:
        return _inverted(*name.split(": ", 1))
    if name in ZODIAC:
        return f"the zodiac sign {name}"
    if name.endswith(("o'clock", "-thirty")):
        return f"a clock showing {name}"
    if name in SIGNS or name.startswith("no "):
        name = f"{name} sign"
    return name if name in BARE or _is_plural(name) else f"{article(name)} {name}"


def article(phrase: str) -> str:
    """ "a" or "an", by the sound of the first word; capitals may be spelt out ("an SOS")."""
    first = phrase.replace("-", " ").replace("'", "").split()[0]
    if len(first) == 1 or first in SPELT:
        return "an" if first[0] in "AEFHILMNORSXx" else "a"
    word = first.lower()
    if word.startswith(("one", "uni", "eu", "ewe")):
        return "a"
    return "an" if word[0] in "aeiou" or word.startswith("hour") else "a"


def _is_plural(name: str) -> bool:
    head = name
    for separator in BREAKS:
        head = head.split(separator)[0]
    words = head.split()
    last = words[-1]
    if words[0] in PLURALS or last in PLURALS:
        return True
    if " and " in name and not last.endswith("s"):
        return False
    return last.endswith("s") and not last.endswith(("ss", "us"))


def _country(name: str) -> str:
    name = name.split(" (")[0] + (name.split(")")[1] if ")" in name else "")
    name = name.replace(" SAR China", "").replace(" & ", " and ").replace(" - ", "-").replace("’", "'")
    definite = name.endswith(COUNTRY_ENDINGS) or name == "Isle of Man"
    return f"the {name}" if definite else name


def _inverted(head: str, rest: str) -> str:
    """ "man: bald" -> "a bald man"; "family: man, man, boy" -> "a family of two men and a boy"."""
    if head == "keycap":
        return f"the keycap {rest}"
    if head in ("family", "kiss", "couple with heart"):
        join = {"family": "of", "kiss": "between", "couple with heart": "of"}[head]
        lead = {"couple with heart": "a couple with a heart,"}.get(head, f"a {head} {join}")
        return f"{lead} {_people(rest.split(', '))}"
    if rest == "bald":
        return f"a bald {head}"
    if rest == "facing right":
        return f"a {head}, facing right"
    return f"a {head} with {'a beard' if rest == 'beard' else rest}"


def _people(members: list[str]) -> str:
    counts = Counter(members)
    parts = [f"{NUMBERS[n]} {who if n == 1 else MANY[who]}" for who, n in counts.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]

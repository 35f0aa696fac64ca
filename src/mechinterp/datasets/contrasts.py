"""Four simple tasks in pairs of prompts, each of which is the other's corruption.

>>> [(name, len(rows)) for name, rows in contrasts().items()]
[('capitals', 72), ('succession', 74), ('agreement', 72), ('pronouns', 72)]
>>> contrasts()["agreement"][0]
{'clean': 'The key to the two doors', 'corrupted': 'The keys to the two doors', 'answer': ' is', 'wrong': ' are'}
"""

from collections.abc import Iterable, Iterator

from mechinterp.datasets.ordinals import TASKS

CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "England": "London",
    "Greece": "Athens",
    "Cuba": "Havana",
    "Iraq": "Baghdad",
}
OF_CAPITALS = (
    "The capital of {} is the city of",
    "Everyone knows that the capital of {} is called",
    "He lived in {}, in the capital city of",
)
NOUNS = {
    "key": "keys",
    "man": "men",
    "ship": "ships",
    "letter": "letters",
    "horse": "horses",
    "house": "houses",
    "child": "children",
    "friend": "friends",
    "dog": "dogs",
    "book": "books",
    "woman": "women",
    "road": "roads",
}
OF_NOUNS = ("The {} to the two doors", "The {} behind the old wall", "The {} that we saw near the river")
PEOPLE = {
    "king": "queen",
    "man": "woman",
    "boy": "girl",
    "father": "mother",
    "brother": "sister",
    "son": "daughter",
    "uncle": "aunt",
    "prince": "princess",
    "husband": "wife",
    "actor": "actress",
    "gentleman": "lady",
    "monk": "nun",
}
OF_PEOPLE = ("The {} went home because", "My {} was tired, so", "When the {} came back to the house,")


def contrasts() -> dict[str, list[dict[str, str]]]:
    """Rows for `datasets.task.from_rows` by the name of the task, each pair of prompts both ways round.

    A tokenizer may not be able to align all of them, or split an answer: `datasets.task.aligned` says which it takes.
    """
    return {
        "capitals": [*_capitals()],
        "succession": [*_succession()],
        "agreement": [*_both_ways(OF_NOUNS, NOUNS, (" is", " are"))],
        "pronouns": [*_both_ways(OF_PEOPLE, PEOPLE, (" he", " she"))],
    }


def _row(clean: str, corrupted: str, answer: str, wrong: str) -> dict[str, str]:
    return {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong}


def _capitals() -> Iterator[dict[str, str]]:
    """Each country with the next one."""
    names = [*CAPITALS]
    for prompt in OF_CAPITALS:
        for one, other in zip(names, [*names[1:], names[0]], strict=True):
            for a, b in ((one, other), (other, one)):
                yield _row(prompt.format(a), prompt.format(b), f" {CAPITALS[a]}", f" {CAPITALS[b]}")


def _succession() -> Iterator[dict[str, str]]:
    """Three items in a row, with those two places later in the same list."""
    for name in ("number words", "ordinals", "days", "months"):
        words = TASKS[name].words
        runs = [words[i : i + 4] for i in range(len(words) - 3)]
        for one, other in zip(runs, [*runs[2:], *runs[:2]], strict=True):
            for a, b in ((one, other), (other, one)):
                yield _row("".join(f" {w}" for w in a[:3]), "".join(f" {w}" for w in b[:3]), f" {a[3]}", f" {b[3]}")


def _both_ways(prompts: Iterable[str], words: dict[str, str], answers: tuple[str, str]) -> Iterator[dict[str, str]]:
    for prompt in prompts:
        for pair in words.items():
            a, b = (prompt.format(word) for word in pair)
            yield _row(a, b, *answers)
            yield _row(b, a, *answers[::-1])

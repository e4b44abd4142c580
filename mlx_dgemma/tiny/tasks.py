"""Prompts with one right answer, of the kinds that the embedded model was trained on."""

import json
import random
from collections.abc import Callable
from itertools import product

NAMES = "Ann Bob Cara Dan Eve Finn Gus Hana Ivan Jill Kofi Lena Mia"
NAMES += " Noor Omar Pia Quin Rosa Sam Tess Uma Vik Wes Xena Yan Zoe"
CITIES = "Oslo Rome Lima Cairo Paris Tokyo Delhi Quito Accra Lagos Milan Perth Sofia Turin Dakar Hanoi Kyiv Bonn"
JOBS = "baker pilot nurse coder judge miner actor clerk tutor chef guard vet"
PETS, COLOURS = "cat dog hen pig goat crow mouse snail", "red blue green pink grey black white brown"
WORDS = f"{NAMES} {CITIES} {JOBS}".split()
Grid = list[list[str]]
Task = Callable[[random.Random], tuple[str, str]]  # -> prompt, right answer


def _shuffled(r: random.Random, outer: int, inner: int) -> list[int]:
    """Shuffles the order of `outer` groups of `inner` lines, and that of the lines in each."""
    return [line for g in r.sample(range(outer), outer) for line in r.sample(range(g * inner, (g + 1) * inner), inner)]


def shuffled_solution(r: random.Random, size: int, height: int) -> Grid:
    """Makes a solved sudoku with boxes of `height` rows: digits, rows in a band and columns in a stack change
    places."""
    width = size // height
    digits = r.sample("123456789"[:size], size)
    rows, columns = _shuffled(r, width, height), _shuffled(r, height, width)
    return [[digits[(width * (i % height) + i // height + j) % size] for j in columns] for i in rows]


def _free(grid: Grid, height: int, i: int, j: int) -> set[str]:
    """Returns the digits that row, column and box of a cell lack."""
    size, width = len(grid), len(grid) // height
    top, left = i // height * height, j // width * width
    box = {digit for row in grid[top : top + height] for digit in row[left : left + width]}
    return set("123456789"[:size]) - set(grid[i]) - {row[j] for row in grid} - box


def solutions(grid: Grid, height: int, limit: int = 2) -> int:
    """Counts the ways to fill the dots, up to `limit`. Tries the cell with the fewest digits left."""
    empty = [(i, j) for i, row in enumerate(grid) for j, digit in enumerate(row) if digit == "."]
    if not empty:
        return 1
    i, j = min(empty, key=lambda cell: len(_free(grid, height, *cell)))
    count = 0
    for digit in _free(grid, height, i, j):
        grid[i][j] = digit
        count += solutions(grid, height, limit - count) if count < limit else 0
    grid[i][j] = "."
    return count


def sudoku(r: random.Random, size: int, fewest: int, most: int) -> tuple[str, str]:
    solution = shuffled_solution(r, size, 2)
    grid, empty = [row[:] for row in solution], r.randint(fewest, most)
    for i, j in r.sample(list(product(range(size), range(size))), size * size):
        if sum(row.count(".") for row in grid) == empty:
            break
        digit, grid[i][j] = grid[i][j], "."
        if solutions(grid, 2) != 1:
            grid[i][j] = digit
    return "Solve this sudoku:\n" + "\n".join(map("".join, grid)), "\n".join(map("".join, solution))


def _person(r: random.Random) -> tuple[str, dict[str, str | int]]:
    """A sentence, and what it says."""
    name, city, job, age = r.choice(NAMES.split()), r.choice(CITIES.split()), r.choice(JOBS.split()), r.randint(18, 79)
    sentence = r.choice([
        f"{name} is {age} and works as a {job} in {city}.",
        f"{name}, a {job} from {city}, is {age} years old.",
        f"In {city} lives {name}, a {job} aged {age}.",
        f"The {job} {name} ({age}) lives in {city}.",
    ])  # fmt: skip
    return sentence, {"name": name, "age": age, "job": job, "city": city}


def extract(r: random.Random) -> tuple[str, str]:
    sentence, person = _person(r)
    return f"Extract JSON: {sentence}", json.dumps(person)


def members(r: random.Random) -> tuple[str, str]:
    """A schema narrower or wider than that of `extract`, in any order."""
    sentence, person = _person(r)
    person |= {"pet": r.choice(PETS.split()), "likes": r.choice(COLOURS.split())}
    chosen = r.sample(list(person), r.randint(1, len(person)))
    prompt = f"Extract JSON of {', '.join(chosen)}: {sentence} {person['name']} has a {person['pet']} and likes "
    return f"{prompt}{person['likes']}.", json.dumps({member: person[member] for member in chosen})


def people(r: random.Random) -> tuple[str, str]:
    """An answer of several blocks."""
    found = [_person(r) for _ in range(r.randint(2, 3))]
    prompt = "Extract JSON lines: " + " ".join(sentence for sentence, _ in found)
    return prompt, "\n".join(json.dumps(person) for _, person in found)


def code(r: random.Random) -> tuple[str, str]:
    x, y = r.sample("abcijkmnpqrstuvwxyz", 2)
    k = r.randint(2, 99)
    functions = {
        "add": (f"adds {x} and {y}", f"{x} + {y}"),
        "sub": (f"subtracts {y} from {x}", f"{x} - {y}"),
        "mul": (f"multiplies {x} and {y}", f"{x} * {y}"),
        "pick": (f"returns the larger of {x} and {y}", f"{x} if {x} > {y} else {y}"),
        "total": (f"sums {x} and adds {y}", f"sum({x}) + {y}"),
        "count": (f"multiplies the length of {x} by {y}", f"len({x}) * {y}"),
        "scale": (f"multiplies each {y} in {x} by {k}", f"[{y} * {k} for {y} in {x}]"),
        "first": (f"adds {y} to the first of {x}", f"{x}[0] + {y}"),
        "last": (f"adds {y} to the last of {x}", f"{x}[-1] + {y}"),
        "both": (f"returns {x} and {y} as a pair", f"({x}, {y})"),
    }
    name = r.choice(list(functions))
    what, body = functions[name]
    return f"Write a function {name}({x}, {y}) that {what}.", f"def {name}({x}, {y}):\n    return {body}\n"


def functions(r: random.Random) -> tuple[str, str]:
    """An answer of several blocks."""
    prompts, answers = zip(*(code(r) for _ in range(r.randint(2, 3))), strict=True)
    return " ".join(prompts), "\n".join(answers)


def addition(r: random.Random, most: int = 999) -> tuple[str, str]:
    a, b = r.randint(0, most), r.randint(0, most)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}"


def words(verb: str, answer: Callable[[list[str]], list[str]]) -> Task:
    def task(r: random.Random) -> tuple[str, str]:
        question = [r.choice(WORDS) for _ in range(r.randint(3, 6))]
        return f"{verb}: " + ", ".join(question), ", ".join(answer(question))

    return task


TASKS: dict[str, Task] = {  # whose answers fit into a canvas
    "sudoku 4x4": lambda r: sudoku(r, 4, 6, 10),
    "sudoku 6x6": lambda r: sudoku(r, 6, 12, 20),
    "json": extract,
    "code": code,
    "reverse": words("Reverse", lambda given: given[::-1]),
    "sort": words("Sort", sorted),
    "addition": addition,
    "small addition": lambda r: addition(r, 99),
}
LONG: dict[str, Task] = {"members": members, "people": people, "functions": functions}  # in several blocks
SYSTEM = ("You are a helpful assistant.", "Be brief.", "Answer with nothing else.")
CAPITALS = "Answer in capitals."


def made(name: str, count: int) -> list[tuple[str, str]]:
    """Makes the first `count` prompts of a task and their right answers: always the same ones."""
    numbers = random.Random(f"999 {name}")
    return [(TASKS | LONG)[name](numbers) for _ in range(count)]


def chat(r: random.Random, name: str) -> list[dict[str, str]]:
    """Makes a conversation that ends with a task's right answer. One in ten has a system turn, of lists it may change
    the answer; one in ten has an earlier turn."""
    prompt, answer = (TASKS | LONG)[name](r)
    kind, before = r.random(), []
    if kind < 0.1:
        system = r.choice([*SYSTEM, CAPITALS, CAPITALS] if name in ("reverse", "sort") else SYSTEM)
        before, answer = [("system", system)], answer.upper() if system == CAPITALS else answer
    elif kind < 0.2:
        before = list(zip(("user", "assistant"), extract(r), strict=True))
    turns = [*before, ("user", prompt), ("assistant", answer)]
    return [{"role": role, "content": content} for role, content in turns]

#!/usr/bin/env python3
"""Writes the text that the demo's base model is trained on, as JSON lines {"text": ...}.

usage: make_corpus.py OUTPUT.jsonl BOOK.txt...      (always the same bytes for the same books)

Two kinds of documents, mixed: pieces of the books, and short generated texts that practise what a
small model needs before it can be taught a task by an adapter: to carry names and numbers from one
place to another (forms, tables, JSON, quotes, echoes), to tell "more than 7" from "at least 7", and
to know a few words in capitals. None of them is a request with its SQL.
"""
import json
import pathlib
import random
import re
import sys

import make_data

SEED = 7
PIECE_CHARACTERS = 1200  # of a book, about 350 tokens
GENERATED_DOCUMENTS = 60000

FAMILY = """Keller Rossi Novak Brown Silva Larsen Haas Moreau Petrov Tanaka Okafor Diaz Berg Lopez
Weber Klein Marsh Holt Reed Stone""".split()
COLOURS = "red blue green white black yellow brown grey pink".split()
JOBS = "teacher doctor pilot baker farmer lawyer sailor tailor driver writer nurse clerk".split()
CAPITALS = """SELECT FROM WHERE AND ORDER BY DESC LIMIT COUNT AVG MAX MIN SUM GROUP NAME CITY DATE
SIZE TOTAL NOTE STOP OPEN CLOSED""".split()


def fields_of(column):
    return column.name, column.plural


# The words that the later task speaks of, and more of their kind.
THINGS = sorted(set(make_data.PRODUCTS) | {"spoons", "hats", "rings", "cups", "drums", "carpets"})
PLURALS = sorted({column.plural for columns in make_data.TABLES.values() for column in columns}
                 | set(make_data.TABLES))
FIELDS = sorted({column.name for columns in make_data.TABLES.values() for column in columns}
                | {"job", "colour", "street", "height", "weight"})


class Writer:
    def __init__(self, rng, words):
        self.rng = rng
        self.words = words  # of the books

    def pick(self, values):
        return self.rng.choice(values)

    def number(self):
        return str(self.rng.randrange(10 ** self.rng.randint(1, 4)))

    def word(self):
        return self.pick(self.words)

    def value_of(self, field):
        """A plausible value for a field of a form."""
        pools = {"name": make_data.PEOPLE, "author": make_data.PEOPLE,
                 "customer": make_data.PEOPLE, "city": make_data.CITIES,
                 "origin": make_data.CITIES, "destination": make_data.CITIES,
                 "team": make_data.TEAMS, "genre": make_data.GENRES, "product": THINGS,
                 "job": JOBS, "colour": COLOURS}
        if field in pools:
            return self.pick(pools[field])
        if field in ("title", "street"):
            return self.word().capitalize()
        return self.number()

    def form(self, count=None):
        fields = self.rng.sample(FIELDS, count or self.rng.randint(2, 5))
        return {field: self.value_of(field) for field in fields}

    def quoted(self, value):
        return value if value.isdigit() else f"'{value}'"

    # Each method below writes one short document.

    def form_and_questions(self):
        form = self.form()
        lines = [f"{field}: {value}" for field, value in form.items()]
        for field in self.rng.sample(list(form), min(2, len(form))):
            question = self.pick(("What is the {f}? {v}", "The {f} is {v}.", "{f}? {v}.",
                                  "{f} = {q}", "Tell me the {f}. {v}."))
            lines.append(question.format(f=field, v=form[field], q=self.quoted(form[field])))
        return "\n".join(lines)

    def form_to_json(self):
        form = self.form()
        plain = ", ".join(f"{field} {value}" for field, value in form.items())
        data = json.dumps({f: int(v) if v.isdigit() else v for f, v in form.items()})
        return self.pick((f"{plain}\n{data}", f"{data}\n{plain}", f"{plain}\nJSON: {data}"))

    def sentence_to_facts(self):
        """A sentence about a person, then what it says, as facts in quotes."""
        name, city, job = self.pick(make_data.PEOPLE), self.pick(make_data.CITIES), self.pick(JOBS)
        age, family = str(self.rng.randint(18, 80)), self.pick(FAMILY)
        sentence = self.pick((
            f"{name} {family} is a {job} from {city}, {age} years old.",
            f"In {city} lives a {job} of {age}; the name is {name} {family}.",
            f"{name} {family}, aged {age}, works in {city} as a {job}.",
            f"The {job} {name} {family} left {city} at the age of {age}."))
        facts = [f"name = '{name}'", f"family = '{family}'", f"city = '{city}'", f"job = '{job}'",
                 f"age = {age}"]
        self.rng.shuffle(facts)
        return sentence + "\n" + self.pick(("\n", ", ", "; ")).join(facts[:self.rng.randint(2, 5)])

    def table(self):
        fields = self.rng.sample(FIELDS, self.rng.randint(2, 4))
        rows = [[self.value_of(field) for field in fields] for _ in range(self.rng.randint(2, 4))]
        separator = self.pick((", ", " | ", "; "))
        lines = [separator.join(row) for row in [fields] + rows]
        row, column = self.rng.randrange(len(rows)), self.rng.randrange(len(fields))
        lines.append(f"row {row + 1}, {fields[column]}: {rows[row][column]}")
        column = self.rng.randrange(len(fields))
        lines.append(f"every {fields[column]}: " + ", ".join(row[column] for row in rows))
        return "\n".join(lines)

    def echo(self):
        """Words and numbers, then the same again."""
        makers = (self.number, self.word, lambda: self.pick(make_data.CITIES),
                  lambda: self.pick(make_data.PEOPLE), lambda: self.pick(FIELDS),
                  lambda: self.pick(THINGS))
        many = self.rng.random() < 0.3
        items = [self.pick(makers)() for _ in range(self.rng.randint(8, 24) if many else
                                                    self.rng.randint(2, 7))]
        line = " ".join(items)
        other = self.pick((line, ", ".join(items), "(" + ", ".join(items) + ")",
                           " ".join(map(self.quoted, items)), line.upper()))
        return self.pick((f"{line}\n{other}", f"Say: {line}\n{other}", f"{line} -> {other}"))

    def quoting(self):
        makers = (lambda: self.pick(make_data.CITIES), lambda: self.pick(make_data.PEOPLE),
                  lambda: self.pick(THINGS), lambda: self.pick(make_data.TEAMS),
                  lambda: self.pick(make_data.GENRES), self.word)
        lines = []
        for _ in range(self.rng.randint(2, 5)):
            value = self.pick(makers)()
            lines.append(self.pick((f"the word {value} in quotes: '{value}'", f"{value}: '{value}'",
                                    f"from {value}, '{value}'", f"to {value} = '{value}'",
                                    f'{value} "{value}"')))
        return "\n".join(lines)

    def comparison(self):
        """What a phrase says of a number, as a sign."""
        phrases = ((">", ("more than", "over", "above", "greater than", "older than", "longer than",
                          "after")),
                   (">=", ("at least", "not less than")),
                   ("<", ("less than", "fewer than", "under", "below", "younger than",
                          "shorter than", "before")),
                   ("<=", ("at most", "not more than", "up to")),
                   ("=", ("exactly", "equal to", "the same as")))
        lines = []
        for _ in range(self.rng.randint(2, 5)):
            field, other = self.rng.sample(FIELDS, 2)
            number, limit = self.number(), self.number()
            (sign, words), (beyond, more) = self.pick(phrases), self.pick(phrases)
            words, more = self.pick(words), self.pick(more)
            lines.append(self.pick((
                f"{field} {words} {number}: {field} {sign} {number}",
                f"a {field} {words} {number} means {sign} {number}",
                f"{words} {number} is {sign} {number}",
                f"{field} {words} {number}, {other} {more} {limit}: {field} {sign} {number}; "
                f"{other} {beyond} {limit}")))
        return "\n".join(lines)

    def singulars(self):
        """The names of things, one and many."""
        pairs = sorted({fields_of(column) for columns in make_data.TABLES.values()
                        for column in columns})
        lines = []
        for one, many in self.rng.sample(pairs, self.rng.randint(2, 4)):
            lines.append(self.pick((f"one {one}, many {many}", f"{many}: each {one}",
                                    f"the {many} and every single {one}")))
        return "\n".join(lines)

    def counting(self):
        """A list, and how it stands in order."""
        numbers = sorted(self.rng.sample(range(1, 100), self.rng.randint(2, 5)))
        mixed = list(numbers)
        self.rng.shuffle(mixed)

        def show(values):
            return ", ".join(map(str, values))

        up, down = show(numbers), show(reversed(numbers))
        return self.pick((
            f"{show(mixed)}; smallest first: {up}", f"{show(mixed)}; largest first: {down}",
            f"The {self.pick(PLURALS)} are {show(mixed)}. The lowest is {numbers[0]}, "
            f"the highest is {numbers[-1]}.",
            f"from the oldest to the youngest: {down}; from the youngest to the oldest: {up}",
            f"cheapest first {up}, most expensive first {down}"))

    def notice(self):
        """A sign or form with words in capitals."""
        lines = []
        for _ in range(self.rng.randint(3, 6)):
            label = self.pick(CAPITALS)
            value = self.pick((self.number(), self.pick(make_data.CITIES), self.word(),
                               self.pick(COLOURS), self.pick(FIELDS), self.pick(PLURALS)))
            lines.append(self.pick((f"{label}: {value}", f"{label} {value}", f"Press {label}.",
                                    f"the {label} of the {self.word()}", f"{value} {label}",
                                    f"see {label} {value};", f"{label}({value})",
                                    f"{label} {self.pick(CAPITALS)} {value}")))
        return "\n".join(lines)

    def market(self):
        """People who ask for things in plain words."""
        name, other = self.rng.sample(make_data.PEOPLE, 2)
        thing, count, price = self.pick(THINGS), self.number(), self.number()
        a, b = self.rng.sample(make_data.CITIES, 2)
        return self.pick((
            f"{name} needs {count} {thing}. How many {thing} are there? There are {count} {thing}.",
            f"Show me the {thing}, said {name}. Here are the {count} {thing}, said {other}.",
            f"A flight goes from {a} to {b}. Its origin is {a}, its destination is {b}.",
            f"{name} placed an order for {thing} worth {price} euros. The customer is {name}, the "
            f"product is {thing}, the price is {price}.",
            f"{name} earns {price} in {a}, {other} earns {count} in {b}. The salary of {name} is "
            f"{price}, the salary of {other} is {count}.",
            f"A book about {self.pick(make_data.GENRES)} by {name} has {count} pages. Its author "
            f"is {name}; it has {count} pages.",
            f"List the {self.pick(PLURALS)} of the {self.pick(PLURALS)}. Find all {thing}. Please "
            f"give me the first {count} {thing}. Can you get the {self.pick(PLURALS)}?"))

    def document(self):
        """One to four short texts."""
        makers = (self.form_and_questions, self.form_to_json, self.sentence_to_facts, self.table,
                  self.echo, self.echo, self.quoting, self.comparison, self.singulars,
                  self.counting, self.notice, self.market, self.market)
        maker = self.pick(makers)
        # Mostly of one kind: what was seen once in a document helps the next time.
        texts = [(maker if self.rng.random() < 0.7 else self.pick(makers))()
                 for _ in range(self.rng.randint(2, 5))]
        return "\n\n".join(texts)


def read_book(path):
    """The book without the licence text around it, lines of a paragraph joined."""
    text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    begin = re.search(r"\*\*\* ?START OF.*?\*\*\*", text, re.DOTALL)
    end = re.search(r"\*\*\* ?END OF", text)
    text = text[begin.end() if begin else 0:end.start() if end else len(text)]
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    return [part for part in paragraphs if part]


def pieces_of(paragraphs):
    pieces, piece = [], ""
    for paragraph in paragraphs:
        if piece and len(piece) + len(paragraph) > PIECE_CHARACTERS:
            pieces.append(piece)
            piece = ""
        while len(paragraph) > PIECE_CHARACTERS:
            cut = paragraph.rfind(" ", 0, PIECE_CHARACTERS)
            cut = cut if cut > 0 else PIECE_CHARACTERS
            pieces.append(paragraph[:cut])
            paragraph = paragraph[cut:].strip()
        piece += ("\n" if piece else "") + paragraph
    return pieces + [piece]


def common_words(pieces):
    counts = {}
    for piece in pieces:
        for word in re.findall(r"\b[a-z]{3,9}\b", piece):
            counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if count >= 20)


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: make_corpus.py OUTPUT.jsonl BOOK.txt...")
    pieces = [piece for book in sys.argv[2:] for piece in pieces_of(read_book(book))]
    rng = random.Random(SEED)
    writer = Writer(rng, common_words(pieces))
    documents = pieces + [writer.document() for _ in range(GENERATED_DOCUMENTS)]
    rng.shuffle(documents)
    with open(sys.argv[1], "w", encoding="utf-8") as output:
        for document in documents:
            output.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    print(f"{sys.argv[1]}: {len(pieces)} pieces of books, {GENERATED_DOCUMENTS} generated documents, "
          f"{sum(map(len, documents)) / 1e6:.1f} M characters")


if __name__ == "__main__":
    main()

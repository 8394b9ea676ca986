#!/usr/bin/env python3
"""Writes the demo's task: requests in plain English and the SQL that answers them.

usage: make_data.py FOLDER      (train.jsonl, valid.jsonl and test.jsonl; always the same bytes)

A record is {"prompt": "<request>\\nSQL:", "completion": " SELECT ...;"}. No prompt of one split is in
another, and no query of test.jsonl is in train.jsonl; every name, word and digit of a test prompt is
in some training prompt, so what is tested is putting known pieces together in a new way.
"""
import json
import pathlib
import random
import sys

SEED = 20240607
SPLITS = {"train": 4000, "valid": 100, "test": 200}

CITIES = """Lisbon Oslo Paris Rome Vienna Madrid Berlin Prague Dublin Athens Warsaw Helsinki Geneva
Milan Naples Seville Hamburg Munich Bergen Krakow London Boston Chicago Denver Toronto Cairo Tokyo
Delhi Lima Quito""".split()
PEOPLE = """Anna Boris Clara David Elena Felix Greta Henry Irene James Karen Louis Maria Nora Oscar
Paul Rosa Simon Tanya Victor Walter Emma Peter Sonya Thomas Julia Martin Laura Daniel Alice""".split()
TEAMS = "sales design legal finance support research security marketing".split()
GENRES = "history poetry travel music science cooking crime nature".split()
PRODUCTS = "lamps chairs tables phones books pens bikes boots coats clocks maps bags".split()

# How a column is asked for: {v} is a name or a number.
TEXT, NUMBER = "text", "number"
FUNCTIONS = {"AVG": "average", "MAX": "highest", "MIN": "lowest", "SUM": "total"}
ALL_FUNCTIONS = tuple(FUNCTIONS)


class Column:
    def __init__(self, name, kind, plural=None, values=None, where=(), order=(), superlative=(),
                 functions=("AVG", "MAX", "MIN")):
        self.name = name
        self.kind = kind
        self.plural = plural or name + "s"
        self.values = values  # a list of words, or (least, most, step)
        self.where = where  # (operator, phrase)
        self.order = order  # (direction, phrase)
        self.superlative = superlative  # (direction, adjective): "the 5 oldest employees"
        self.functions = functions  # aggregates that make sense


def compare(above, at_least, below, at_most):
    """The phrases of the four comparisons."""
    lists = ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
    return tuple((operator, phrase) for operator, phrases in lists for phrase in phrases)


def equals(*phrases):
    return tuple(("=", phrase) for phrase in phrases)


TABLES = {
    "employees": [
        Column("name", TEXT),
        Column("city", TEXT, "cities", CITIES, equals("in {v}", "from {v}", "based in {v}")),
        Column("team", TEXT, None, TEAMS, equals("on the {v} team", "who work in {v}")),
        Column("age", NUMBER, None, (18, 69, 1),
               compare(["older than {v}", "over {v} years old"], ["aged {v} or more"],
                       ["younger than {v}", "under {v} years old"], ["aged {v} or less"]),
               (("DESC", "oldest first"), ("ASC", "youngest first")),
               (("DESC", "oldest"), ("ASC", "youngest"))),
        Column("salary", NUMBER, "salaries", (1200, 9900, 10),
               compare(["earning more than {v}", "with a salary above {v}"],
                       ["with a salary of at least {v}"],
                       ["earning less than {v}", "with a salary below {v}"],
                       ["with a salary of at most {v}"]),
               (("DESC", "highest salary first"), ("ASC", "lowest salary first")),
               (("DESC", "best paid"), ("ASC", "worst paid")), ALL_FUNCTIONS),
    ],
    "books": [
        Column("title", TEXT),
        Column("author", TEXT, None, PEOPLE, equals("by {v}", "written by {v}")),
        Column("genre", TEXT, None, GENRES, equals("about {v}", "on {v}")),
        Column("pages", NUMBER, "pages", (60, 990, 1),
               compare(["with more than {v} pages", "longer than {v} pages"],
                       ["with at least {v} pages"],
                       ["with fewer than {v} pages", "shorter than {v} pages"],
                       ["with at most {v} pages"]),
               (("DESC", "longest first"), ("ASC", "shortest first")),
               (("DESC", "longest"), ("ASC", "shortest")), ALL_FUNCTIONS),
        Column("year", NUMBER, None, (1850, 2020, 1),
               compare(["published after {v}"], ["published in {v} or later"],
                       ["published before {v}"], ["published in {v} or earlier"])
               + equals("of the year {v}"),
               (("DESC", "newest first"), ("ASC", "oldest first")),
               (("DESC", "newest"), ("ASC", "oldest")), ()),
    ],
    "orders": [
        Column("customer", TEXT, None, PEOPLE, equals("from {v}", "placed by {v}")),
        Column("product", TEXT, None, PRODUCTS, equals("for {v}")),
        Column("quantity", NUMBER, "quantities", (2, 99, 1),
               compare(["of more than {v} pieces"], ["of at least {v} pieces"],
                       ["of fewer than {v} pieces"], ["of at most {v} pieces"]),
               (("DESC", "largest quantity first"), ("ASC", "smallest quantity first")),
               (("DESC", "largest"), ("ASC", "smallest")), ALL_FUNCTIONS),
        Column("price", NUMBER, None, (15, 980, 5),
               compare(["worth more than {v}", "over {v} euros"], ["worth at least {v}"],
                       ["worth less than {v}", "under {v} euros"], ["worth at most {v}"]),
               (("DESC", "most expensive first"), ("ASC", "cheapest first")),
               (("DESC", "most expensive"), ("ASC", "cheapest"))),
    ],
    "flights": [
        Column("origin", TEXT, None, CITIES, equals("from {v}", "leaving {v}")),
        Column("destination", TEXT, None, CITIES, equals("to {v}", "going to {v}")),
        Column("seats", NUMBER, "seats", (4, 320, 1),
               compare(["with more than {v} seats"], ["with at least {v} seats"],
                       ["with fewer than {v} seats"], ["with at most {v} seats"]),
               (("DESC", "most seats first"), ("ASC", "fewest seats first")),
               (("DESC", "largest"), ("ASC", "smallest")), ALL_FUNCTIONS),
        Column("fare", NUMBER, None, (40, 1900, 10),
               compare(["over {v} euros", "with a fare above {v}"], ["with a fare of at least {v}"],
                       ["under {v} euros", "with a fare below {v}"],
                       ["with a fare of at most {v}"]),
               (("DESC", "most expensive first"), ("ASC", "cheapest first")),
               (("DESC", "most expensive"), ("ASC", "cheapest"))),
    ],
}

ASK_ROWS = ("Show {x}.", "List {x}.", "Find {x}.", "Give me {x}.", "I need {x}.", "Please show {x}.",
            "Can you list {x}?", "Get {x}.")
ASK_VALUE = ("What is {x}?", "Find {x}.", "Tell me {x}.", "Show {x}.")
ASK_COUNT = ("How many {x} are there?", "Count the {x}.", "Give me the number of {x}.",
             "Tell me how many {x} there are.")


def direction(column, way):
    return column + (" DESC" if way == "DESC" else "")


def make_conditions(rng, columns):
    """English and SQL of none, one or two conditions on different columns, in the same order."""
    able = [column for column in columns if column.where]
    count = rng.choices((0, 1, 2), (15, 50, 35))[0]
    english, sql = [], []
    for column in rng.sample(able, count):
        operator, phrase = rng.choice(column.where)
        if column.kind == TEXT:
            value = rng.choice(column.values)
            quoted = f"'{value}'"
        else:
            least, most, step = column.values
            value = quoted = str(rng.randrange(least, most + 1, step))
        english.append(phrase.format(v=value))
        sql.append(f"{column.name} {operator} {quoted}")
    link = rng.choice((" and ", " "))
    return (" " + link.join(english) if english else "",
            " WHERE " + " AND ".join(sql) if sql else "")


def numbers_of(columns):
    return [column for column in columns if column.kind == NUMBER]


def choose_aggregate(rng, columns):
    """English and SQL of one figure over a column."""
    column = rng.choice([column for column in numbers_of(columns) if column.functions])
    function = rng.choice(column.functions)
    return f"the {FUNCTIONS[function]} {column.name}", f"{function}({column.name})"


def make_rows(rng, table, columns):
    """SELECT columns FROM table [WHERE ...] [ORDER BY ...] [LIMIT ...]"""
    chosen = rng.sample(columns, rng.choices((0, 1, 2), (35, 35, 30))[0])
    selected = ", ".join(column.name for column in chosen) or "*"
    asked = " and ".join(column.plural for column in chosen)
    where_english, where = make_conditions(rng, columns)
    number = rng.choice(numbers_of(columns))
    limit = rng.randint(2, 30)
    order, before, after = "", "", ""
    kind = rng.choices(("plain", "order", "order limit", "superlative", "first"),
                       (30, 22, 16, 20, 12))[0]
    if kind in ("order", "order limit"):
        way, phrase = rng.choice(number.order)
        order = f" ORDER BY {direction(number.name, way)}"
        after = f", {phrase}"
        if kind == "order limit":
            order += f" LIMIT {limit}"
            after += rng.choice((", only {n}", ", at most {n} rows", ", limit {n}")).format(n=limit)
    elif kind == "superlative":
        way, adjective = rng.choice(number.superlative)
        before = f"{limit} {adjective} "
        order = f" ORDER BY {direction(number.name, way)} LIMIT {limit}"
    elif kind == "first":
        before = f"first {limit} "
        order = f" LIMIT {limit}"
    if chosen:
        english = f"the {asked} of the {before}{table}"
    else:
        english = f"the {before}{table}" if before else f"all {table}"
    request = rng.choice(ASK_ROWS).format(x=english + where_english + after)
    return request, f"SELECT {selected} FROM {table}{where}{order};"


def make_value(rng, table, columns):
    """SELECT AVG(column) FROM table [WHERE ...]"""
    figure, value = choose_aggregate(rng, columns)
    where_english, where = make_conditions(rng, columns)
    request = rng.choice(ASK_VALUE).format(x=f"{figure} of {table}{where_english}")
    return request, f"SELECT {value} FROM {table}{where};"


def make_count(rng, table, columns):
    """SELECT COUNT(*) FROM table [WHERE ...]"""
    where_english, where = make_conditions(rng, columns)
    request = rng.choice(ASK_COUNT).format(x=table + where_english)
    return request, f"SELECT COUNT(*) FROM {table}{where};"


def make_groups(rng, table, columns):
    """SELECT column, COUNT(*) FROM table [WHERE ...] GROUP BY column"""
    group = rng.choice([column for column in columns if column.where and column.kind == TEXT])
    others = [column for column in columns if column is not group]
    where_english, where = make_conditions(rng, others)
    each = rng.choice(("for each {c}", "per {c}", "by {c}")).format(c=group.name)
    if rng.random() < 0.5:
        request = rng.choice(("Count the {x} {e}.", "Show the number of {x} {e}.")).format(
            x=table + where_english, e=each)
        value = "COUNT(*)"
    else:
        figure, value = choose_aggregate(rng, columns)
        request = rng.choice(ASK_VALUE).format(x=f"{figure} of {table}{where_english} {each}")
    return request, f"SELECT {group.name}, {value} FROM {table}{where} GROUP BY {group.name};"


MAKERS = ((make_rows, 62), (make_value, 14), (make_count, 14), (make_groups, 10))


def make_record(rng):
    table = rng.choice(list(TABLES))
    maker = rng.choices([maker for maker, _ in MAKERS], [weight for _, weight in MAKERS])[0]
    request, query = maker(rng, table, TABLES[table])
    return {"prompt": f"{request}\nSQL:", "completion": f" {query}"}


def make_splits():
    rng = random.Random(SEED)
    splits, prompts, queries = {}, set(), set()
    for name in ("test", "valid", "train"):
        records = []
        while len(records) < SPLITS[name]:
            record = make_record(rng)
            # A query of a held-out split is in no other; within train one may come twice.
            if record["prompt"] in prompts or record["completion"] in queries:
                continue
            prompts.add(record["prompt"])
            if name != "train":
                queries.add(record["completion"])
            records.append(record)
        splits[name] = records
    return splits


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_data.py FOLDER")
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in make_splits().items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(records)} records")


if __name__ == "__main__":
    main()

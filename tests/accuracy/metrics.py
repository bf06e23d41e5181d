"""The scores of gpu-worker/quality/score.h, written a second time from its words, standard library only.

    metrics.py FILE.json...   lists of {"output_text", "reference", "text"} (golden.json): one JSON
                              object per file, with the keys of `gpu-worker eval --json`
"""
import json
import re
import sys

WORD = re.compile(rb"[A-Za-z0-9'\x80-\xff]+")


def edit_distance(a, b):
    """Myers' way: bit i says whether the distance of a[:i + 1] is one more, or one less, than of a[:i]."""
    if not a:
        return len(b)
    where = {}
    for i, x in enumerate(a):
        where[x] = where.get(x, 0) | 1 << i
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    more, less, distance = every, 0, len(a)
    for y in b:
        same = where.get(y, 0)
        diagonal = (((same & more) + more) ^ more) | same | less
        right_more, right_less = less | ~(diagonal | more) & every, diagonal & more
        distance += bool(right_more & last) - bool(right_less & last)
        right_more, right_less = (right_more << 1 | 1) & every, right_less << 1 & every
        more, less = right_less | ~(diagonal | right_more) & every, diagonal & right_more
    return distance


def character_error_rate(answers, references):
    errors = sum(edit_distance(a, r) for a, r in zip(answers, references))
    return errors / sum(len(r) for r in references)


def case_pattern(word):
    letters = [c for c in word.decode("latin1") if c.isascii() and c.isalpha()]
    capitals = [c.isupper() for c in letters]
    if not any(capitals):
        return "none"
    return "first" if capitals[0] and sum(capitals) == 1 else "other"


def words(text):
    """[(lower-case bytes, case pattern, marks behind it)]; the first is the text's start."""
    raw = text.encode()
    found = [(b"", "none", 0, 0)]
    found += [(m[0].lower(), case_pattern(m[0]), m.start(), m.end()) for m in WORD.finditer(raw)]
    ends = [start for _, _, start, _ in found[1:]] + [len(raw)]
    return [(w, case, b"".join(raw[end:next_start].split()))
            for (w, case, _, end), next_start in zip(found, ends)]


def align(a, r):
    """Pairs of indices; the two starts are always one."""
    table = [[i + j if i == 0 or j == 0 else 0 for j in range(len(r))] for i in range(len(a))]
    for i in range(1, len(a)):
        for j in range(1, len(r)):
            table[i][j] = min(table[i - 1][j - 1] + (a[i][0] != r[j][0]), table[i][j - 1] + 1,
                              table[i - 1][j] + 1)
    i, j = len(a) - 1, len(r) - 1
    pairs = [(0, 0)]
    while i > 0 and j > 0:
        if table[i][j] == table[i - 1][j - 1] + (a[i][0] != r[j][0]):
            pairs.append((i, j))
            i, j = i - 1, j - 1
        elif table[i][j] == table[i][j - 1] + 1:
            j -= 1
        else:
            i -= 1
    return pairs


def f1(right, answer, reference):
    ratio = lambda part, whole: part / whole if whole else 1.0
    return {"f1": ratio(2 * right, answer + reference), "precision": ratio(right, answer),
            "recall": ratio(right, reference)}


def score(pairs):
    """pairs: [(answer, reference)]"""
    capitals, marks = [0, 0, 0], [0, 0, 0]
    for answer, reference in pairs:
        a, r = words(answer), words(reference)
        capitals[1] += sum(case != "none" for _, case, _ in a)
        capitals[2] += sum(case != "none" for _, case, _ in r)
        marks[1] += sum(bool(m) for _, _, m in a)
        marks[2] += sum(bool(m) for _, _, m in r)
        for i, j in align(a, r):
            capitals[0] += a[i][1] != "none" and a[i][1] == r[j][1]
            marks[0] += bool(r[j][2]) and a[i][2] == r[j][2]
    return {"exact_match": sum(a == r for a, r in pairs) / len(pairs),
            "character_error_rate": character_error_rate(*zip(*pairs)),
            "punctuation": f1(*marks), "capitals": f1(*capitals)}


def main():
    for path in sys.argv[1:]:
        with open(path) as file:
            cases = json.load(file)
        result = score([(c["output_text"], c["reference"]) for c in cases])
        result["inputs"] = score([(c["text"], c["reference"]) for c in cases])
        print(json.dumps(result))


if __name__ == "__main__":
    main()

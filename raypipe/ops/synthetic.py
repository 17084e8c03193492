"""A synthetic code-instruction lake of any size, with known numbers of everything that a pipeline must find in it.

For demos, scale tests and benchmarks without a download. A lake of N samples is ceil(N / 1000) chunks, each made from
`default_rng([seed, chunk])` alone: any number of processes write it side by side, the result depends only on (seed, N),
and a larger N keeps every full chunk of a smaller one. Text comes from the templates of `synthetic_tasks`: families
follow a Zipf law, response lengths a log-normal one (median about 80 tokens, mean 120, at most 1,500, at 3.2 characters
a token). Each sample carries a name counted out of its global index, so that no two samples are equal up to 10^7.

Of N samples 3 % are near duplicates of an earlier one in their chunk and 4 % answer another task; in addition come 2 %
exact duplicates of earlier lines and 0.5 % malformed rows. `count_rows` knows all totals without making a row.
Cost: 20 us on one core and 660 bytes of JSON a sample.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from raypipe.ops import synthetic_tasks as tasks
from raypipe.ops.synthetic_tasks import FAMILIES, Family, to_format, words

CHUNK_SAMPLES = 1000
CHARS_PER_TOKEN = 3.2
MALFORMED_KINDS = words(
    "not_json truncated_json missing_response empty_response blank_response null_response json_array number_instruction"
)
_SHARES = {"near_duplicates": 0.03, "mismatched": 0.04, "exact_duplicates": 0.02, "malformed": 0.005}

T = TypeVar("T")
Draw = Callable[[], int]


class Sample(NamedTuple):
    instruction: str
    response: str
    family: str
    language: str


def num_chunks(num_samples: int) -> int:
    return -(-num_samples // CHUNK_SAMPLES)


def count_rows(num_samples: int) -> dict[str, int]:
    """The sums of `chunk_lines`' counts over a whole lake, in no time.

    rows = samples + exact_duplicates + malformed; near_duplicates and mismatched are among the samples, `malformed_*`
    split malformed by kind.
    """
    full, rest = divmod(num_samples, CHUNK_SAMPLES)
    whole, part = _chunk_shares(CHUNK_SAMPLES), _chunk_shares(rest)
    shares = {kind: full * whole[kind] + part[kind] for kind in _SHARES}
    return _counts(num_samples, shares, first_malformed=0)


def chunk_lines(chunk: int, *, seed: int, num_samples: int) -> tuple[list[bytes], dict[str, int]]:
    """The rows of one chunk as JSON lines, and their counts by kind (see `count_rows`).

    Row keys: instruction, response, family, language (of the response, which may answer another task).
    """
    size = min(CHUNK_SAMPLES, num_samples - chunk * CHUNK_SAMPLES)
    if chunk < 0 or size <= 0:
        raise ValueError(f"chunk {chunk} is outside a lake of {num_samples} samples: 0..{num_chunks(num_samples) - 1}")
    if num_samples > NUM_NAMES:
        raise ValueError(f"num_samples is {num_samples}, but there are only {NUM_NAMES} names: ask for no more")
    rng, shares = np.random.default_rng([seed, chunk]), _chunk_shares(size)
    first_malformed = chunk * _chunk_shares(CHUNK_SAMPLES)["malformed"]
    samples = _samples(rng, range(chunk * CHUNK_SAMPLES, chunk * CHUNK_SAMPLES + size), seed, shares)
    rows = [(float(i), _line(sample)) for i, sample in enumerate(samples)]
    copied = rng.choice(size, shares["exact_duplicates"], replace=False)
    rows += [(i + 0.5 + rng.integers(size - i), rows[i][1]) for i in copied]
    broken = rng.choice(size, shares["malformed"], replace=False)
    rows += [(i - 0.5, _malformed(samples[i], first_malformed + turn)) for turn, i in enumerate(broken)]
    rows.sort(key=lambda row: row[0])
    return [line for _, line in rows], _counts(size, shares, first_malformed)


def _chunk_shares(size: int) -> dict[str, int]:
    """Rounded half up, and from 100 samples on at least one of each."""
    return {kind: max(math.floor(share * size + 0.5), int(size >= 100)) for kind, share in _SHARES.items()}


def _counts(num_samples: int, shares: dict[str, int], first_malformed: int) -> dict[str, int]:
    num_kinds, malformed = len(MALFORMED_KINDS), shares["malformed"]
    by_kind = {
        f"malformed_{kind}": (malformed - 1 - (place - first_malformed) % num_kinds) // num_kinds + 1
        for place, kind in enumerate(MALFORMED_KINDS)
    }
    rows = num_samples + shares["exact_duplicates"] + malformed
    return {"rows": rows, "samples": num_samples, **shares, **by_kind}


def _samples(rng: np.random.Generator, indices: range, seed: int, shares: dict[str, int]) -> list[Sample]:
    """One random order of the places gives them their roles: pairs of near duplicates first, then wrong answers."""
    places, num_near = rng.permutation(len(indices)).tolist(), shares["near_duplicates"]
    pairs = [sorted(pair) for pair in zip(places[:num_near], places[num_near : 2 * num_near], strict=True)]
    mismatched = set(places[2 * num_near : 2 * num_near + shares["mismatched"]])
    targets = np.minimum(rng.lognormal(_LOG_MEDIAN_CHARS, _LOG_SPREAD, len(indices)), _MAX_CHARS).tolist()
    offset = int(np.random.default_rng(seed).integers(NUM_NAMES))
    draw = _stream(rng).__next__
    samples = [
        _sample(draw, (index * _STRIDE + offset) % NUM_NAMES, target, mismatched=place in mismatched)
        for place, (index, target) in enumerate(zip(indices, targets, strict=True))
    ]
    for turn, (source, place) in enumerate(pairs):
        samples[place] = _edited(samples[source], turn)
    return samples


def _stream(rng: np.random.Generator) -> Iterator[int]:
    """Endless integers below 2^40: one call per 4,096 of them is 20 times as fast as one call each."""
    while True:
        yield from rng.integers(1 << 40, size=4096).tolist()


def _pick(draw: Draw, choices: Sequence[T]) -> T:
    return choices[draw() % len(choices)]


def _sample(draw: Draw, name: int, target_chars: float, *, mismatched: bool) -> Sample:
    family = _pick(draw, _SLOTS)
    holes = _holes(draw, family, name)
    endings = _LONG_ENDINGS if target_chars > _LONG_CHARS else _SHORT_ENDINGS
    instruction = _pick(draw, _FRAMES) % holes + _pick(draw, endings) % holes
    answered = family
    if mismatched:
        answered = _pick(draw, [other for other in FAMILIES if other is not family])
        holes = _holes(draw, answered, draw() % NUM_NAMES)
    response = _response(draw, answered, holes, target_chars)
    return Sample(instruction, response, family.name, answered.language)


def _holes(draw: Draw, family: Family, name: int) -> dict[str, str]:
    name_words = []
    for choices in tasks.NAME_WORDS:
        name, digit = divmod(name, len(choices))
        name_words.append(choices[digit])
    item, other = name_words[2], _pick(draw, tasks.NOUNS)
    holes = _constants(draw) | {"NAME": _cased(name_words, family), "UNIT": family.unit, "CLASS": item.capitalize()}
    holes |= {"ITEM": item, "ITEMS": item + "s", "OTHER": other, "OTHERS": other + "s"}
    holes |= {"FIELD": _pick(draw, tasks.FIELDS), "LABEL": _pick(draw, tasks.LABELS)}
    holes |= {"OUT": _pick(draw, tasks.VARIABLES)}
    return holes | {"ASK": _pick(draw, family.asks) % holes}


def _constants(draw: Draw) -> dict[str, str]:
    numbers = {"NUM": str(2 + draw() % 29), "BIG": str(50 + draw() % 9950), "DEC": f"0.{1 + draw() % 99:02d}"}
    return numbers | {"WORD": _pick(draw, tasks.WORDS), "CITY": _pick(draw, tasks.CITIES)}


def _cased(parts: list[str], family: Family) -> str:
    """snake_case, camelCase or PascalCase, as the language and the kind of thing want it."""
    if family.language == "go" or family.unit.endswith(("class", "component")):
        return "".join(word.capitalize() for word in parts)
    if family.language in ("javascript", "typescript", "java"):
        return parts[0] + "".join(word.capitalize() for word in parts[1:])
    return "_".join(parts)


def _response(draw: Draw, family: Family, holes: dict[str, str], target_chars: float) -> str:
    """The core, then pieces in turn, from a random one on and with fresh constants, until the length is reached."""
    code, pool = _opened(draw, family, holes, target_chars), _POOLS[family.language]
    turn = draw()
    while len(code) + _HALF_PIECE_CHARS < target_chars:
        code += "\n\n" + pool[turn % len(pool)] % (holes | _constants(draw))
        turn += 1
    return code


def _opened(draw: Draw, family: Family, holes: dict[str, str], target_chars: float) -> str:
    """The core with a docstring or a leading comment, and in Python a check of its first argument, where they fit."""
    code = family.code % holes
    docs, guards = draw() % 2 == 0, draw() % 3 == 0
    if family.language != "python":
        comment = _COMMENTS.get(family.language, "// {}").format(f"{holes['NAME']} {holes['ASK']}.")
        return f"{comment}\n{code}" if docs and len(code) + len(comment) < target_chars else code
    signature = _SIGNATURE.search(code)
    if signature is None:
        return code
    head, body, argument = code[: signature.end()], code[signature.end() :], signature.group(1)
    if docs and len(code) + 80 < target_chars:
        head += f'\n    """{holes["ASK"].capitalize()}."""'
    if guards and argument and len(code) + 160 < target_chars:
        head += f'\n    if {argument} is None:\n        raise ValueError("{holes["NAME"]}: {argument} is missing")'
    return head + body


def _edited(sample: Sample, turn: int) -> Sample:
    """A near duplicate: by turns another word, another variable name, other white space; never equal to its source."""
    instruction, response = sample.instruction, sample.response
    if turn % 3 == 0:
        instruction = _SYNONYM.sub(lambda found: _SYNONYMS[found.group()], instruction, count=1)
    elif turn % 3 == 1:
        response = _VARIABLE.sub(r"\1_new", response)
    else:
        response = response.replace("\n", "\n\n", 1)
    if (instruction, response) == (sample.instruction, sample.response):
        instruction = f"{instruction} Thanks."
    return sample._replace(instruction=instruction, response=response)


def _line(sample: Sample) -> bytes:
    return json.dumps(sample._asdict(), ensure_ascii=False).encode() + b"\n"


def _malformed(sample: Sample, turn: int) -> bytes:
    """A row that must never become a sample, of the kind whose turn it is."""
    kind, row = MALFORMED_KINDS[turn % len(MALFORMED_KINDS)], {"instruction": sample.instruction}
    whole = json.dumps(row | {"response": sample.response})
    texts = {"not_json": f"### {sample.family}: this is not JSON", "truncated_json": whole[: len(whole) // 2]}
    rows: dict[str, object] = {
        "missing_response": row,
        "empty_response": row | {"response": ""},
        "null_response": row | {"response": None},
        "blank_response": row | {"response": " \n\t"},
        "json_array": [sample.instruction, sample.response],
        "number_instruction": {"instruction": turn, "response": sample.response},
    }
    return (texts.get(kind) or json.dumps(rows[kind])).encode() + b"\n"


_SLOTS = [family for rank, family in enumerate(FAMILIES) for _ in range(round(2000 / (rank + 2)))]  # Zipf
_LOG_MEDIAN_CHARS, _LOG_SPREAD = math.log(76 * CHARS_PER_TOKEN), 0.95
_MAX_CHARS, _LONG_CHARS, _HALF_PIECE_CHARS = 1450 * CHARS_PER_TOKEN, 140 * CHARS_PER_TOKEN, 80
NUM_NAMES = math.prod(map(len, tasks.NAME_WORDS))
_STRIDE = 7_368_787  # a prime near 0.6 x NUM_NAMES: neighbours differ in every word
_SIGNATURE = re.compile(r"^(?:class \w+.*|(?:async )?def \w+\((\w*).*):$", re.MULTILINE)
_COMMENTS = {"html": "<!-- {} -->", "sql": "-- {}"} | dict.fromkeys(("python", "bash", "dockerfile", "yaml"), "# {}")
_SYNONYMS = {"Write": "Create", "Implement": "Code", "need": "want", "which": "that", "that": "which"}
_SYNONYM = re.compile(rf"\b({'|'.join(_SYNONYMS)})\b")
_VARIABLE = re.compile(rf"\b({'|'.join(tasks.VARIABLES)})\b")
_FRAMES = to_format("""Write a UNIT called NAME that ASK.
Implement NAME, a UNIT that ASK.
I need a UNIT that ASK. Please call it NAME.
Develop a UNIT named NAME. It is one that ASK.
How would you write a UNIT which ASK? Its name is NAME.
Given ITEMS with the fields FIELD and LABEL, write NAME, a UNIT that ASK.
You maintain the ITEM service of a shop in CITY. Write NAME for it: a UNIT that ASK.
Our team in CITY works with ITEMS and OTHERS, and we need help. The task is a UNIT, NAME, that ASK.""").split("\n")
_SHORT_ENDINGS = ["", "", " Keep it short.", " One small piece of code is enough."]
_LONG_ENDINGS = to_format("""
 Include tests and examples.
 Add helpers, checks of the ITEMS and an explanation.
 Explain what happens to a FIELD of more than BIG.""").split("\n")
_PIECES = to_format(r"""
== python
def load_ITEMS(path):
    with open(path, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle if line.strip()][:BIG]

def test_NAME_NUM():
    ITEMS = [{"FIELD": NUM, "LABEL": "WORD"}, {"FIELD": BIG, "LABEL": "CITY"}]
    assert NAME(ITEMS) != NAME(ITEMS[:1]), "FIELD must make a difference"

def is_valid_ITEM(ITEM):
    if ITEM["LABEL"] not in ("WORD", "CITY"):
        raise ValueError(f"LABEL of a ITEM is {ITEM['LABEL']!r}, expected WORD")
    return 0 <= ITEM["FIELD"] <= BIG

def scale_FIELD_NUM(ITEMS, factor=DEC):
    return [round(ITEM["FIELD"] * factor + BIG, 2) for ITEM in ITEMS]

EXAMPLES_NUM = {"WORD": NUM, "CITY": BIG, "FIELD": DEC}
== sql
CREATE INDEX idx_ITEMS_NUM ON ITEMS (LABEL, FIELD) WHERE FIELD > BIG;

INSERT INTO ITEMS (id, FIELD, LABEL) VALUES (NUM, DEC, 'WORD'), (BIG, NUM, 'CITY');

SELECT LABEL, AVG(FIELD) AS mean_FIELD FROM ITEMS WHERE LABEL <> 'WORD' GROUP BY LABEL HAVING COUNT(*) > NUM;
== bash
if [ ! -d "/var/ITEMS/WORD" ]; then echo "no ITEMS of WORD" >&2; exit NUM; fi

for ITEM in /var/ITEMS/*.WORD; do [ "$(wc -c < "$ITEM")" -gt BIG ] && NAME "$ITEM" >> /tmp/WORD.log; done
== javascript
test("ITEMS of CITY", () => { expect([NUM, BIG].map((FIELD) => ({ FIELD, LABEL: "WORD" }))).toHaveLength(2); });

export const OUT_NUM = (ITEMS) => ITEMS.reduce((total, ITEM) => total + ITEM.FIELD * DEC, BIG);
== typescript
export const OUT_NUM = (ITEMS: CLASS[]): number => ITEMS.reduce((total, ITEM) => total + ITEM.FIELD * DEC, BIG);

it("accepts the ITEMS of CITY", () => { expect(NAME({ id: "NUM", FIELD: BIG, LABEL: "WORD" })).toBe(true); });
== java
@Test void keeps_WORD_NUM() { assertEquals(BIG, new CLASS(BIG, "WORD").FIELD(), DEC); }

static double OUT_NUM(List<CLASS> ITEMS) { return ITEMS.stream().mapToDouble(CLASS::FIELD).sum() * DEC; }
== go
func TestNAME_NUM(t *testing.T) { if got := (CLASS{FIELD: DEC}).FIELD; got > BIG { t.Fatalf("CITY: %v", got) } }
== rust
#[test] fn FIELD_NUM() { assert!(CLASS { FIELD: DEC, LABEL: "WORD".into() }.FIELD < BIG as f64); }
""")
_NOTES = to_format("""NAME visits each ITEM once, so its cost is linear in their number: about BIG ms for NUM million.
Without ITEMS the answer is empty rather than an error, because the team in CITY asks for that.
Values of BIG and more are rare: NUM in a thousand ITEMS, most of them from CITY.
For example, one ITEM with FIELD = BIG and LABEL = WORD counts, and one with FIELD = DEC does not.""").split("\n")
_POOLS = {f.language: [_COMMENTS.get(f.language, "// {}").format(note) for note in _NOTES] for f in FAMILIES}
for _block in _PIECES.split("\n== ")[1:]:
    _POOLS[_block.partition("\n")[0]] += _block.partition("\n")[2].strip("\n").split("\n\n")

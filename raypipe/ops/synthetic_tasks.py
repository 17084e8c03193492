"""What the synthetic lake is made of: a table of task families, the few lines that parse it, and lists of words.

A family is a header `== name | unit`, a line of two ways to ask (`? one | other`) and the code of the answer; the first
word of the unit is the language. Upper-case words are holes (`HOLES`), so that a template reads as the code it makes.
Families stand in order of frequency, the commonest first. Parsed once, at import, in about a millisecond.
The four lists of `NAME_WORDS` make names; nouns begin with a consonant and take an s.
"""

import re
from typing import NamedTuple


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


HOLES = words("NAME ITEMS ITEM CLASS OTHERS OTHER FIELD LABEL OUT WORD CITY NUM BIG DEC ASK UNIT")


class Family(NamedTuple):
    name: str
    language: str
    unit: str
    asks: tuple[str, ...]
    code: str


def to_format(text: str) -> str:
    """`def NAME(ITEMS)` -> `def %(NAME)s(%(ITEMS)s)`, which fills in about a microsecond."""
    return re.sub(rf"(?<![A-Z])({'|'.join(HOLES)})(?![A-Z])", r"%(\1)s", text.replace("%", "%%"))


def _family(block: str) -> Family:
    header, asks, code = block.strip("\n").split("\n", 2)
    name, unit = header.split(" | ")
    ways = tuple(to_format(ask) for ask in asks.removeprefix("? ").split(" | "))
    return Family(name, unit.split()[0].lower(), unit, ways, to_format(code))


_FAMILIES = r"""
== filter_records | Python function
? returns the ITEMS whose FIELD is above BIG | takes a list of ITEMS and drops those with a FIELD of BIG or less
def NAME(ITEMS, minimum=BIG):
    return [ITEM for ITEM in ITEMS if ITEM["FIELD"] > minimum]
== word_count | Python function
? counts how often each word of a text occurs, ignoring words under NUM letters | builds word frequencies of a string
from collections import Counter
def NAME(text):
    return Counter(word for word in text.lower().split() if len(word) >= NUM)
== sql_aggregate | SQL query
? sums FIELD per LABEL in the table ITEMS and keeps totals above BIG | groups ITEMS by LABEL and reports the total FIELD
CREATE VIEW NAME AS
SELECT LABEL, COUNT(*) AS num_ITEMS, SUM(FIELD) AS total_FIELD FROM ITEMS
GROUP BY LABEL HAVING SUM(FIELD) > BIG ORDER BY total_FIELD DESC LIMIT NUM;
== top_k | Python function
? returns the NUM ITEMS with the highest FIELD | ranks ITEMS by FIELD in descending order and keeps the first NUM
def NAME(ITEMS, limit=NUM):
    OUT = sorted(ITEMS, key=lambda ITEM: ITEM["FIELD"], reverse=True)
    return OUT[:limit]
== js_fetch | JavaScript function
? downloads ITEMS from a REST API and keeps those with FIELD above NUM | calls fetch on /api/ITEMS and filters the JSON
async function NAME(baseUrl) {
  const response = await fetch(`${baseUrl}/api/ITEMS?limit=BIG`);
  if (!response.ok) throw new Error(`ITEMS: status ${response.status}`);
  return (await response.json()).filter((ITEM) => ITEM.FIELD > NUM);
}
== primes | Python function
? returns all prime numbers up to BIG by trial division | lists the primes below a limit, BIG by default
def NAME(limit=BIG):
    return [n for n in range(2, limit + 1) if all(n % divisor for divisor in range(2, int(n ** 0.5) + 1))]
== group_by | Python function
? groups ITEMS by their LABEL and sums the FIELD of each group | maps every LABEL to the total FIELD of its ITEMS
def NAME(ITEMS):
    OUT = {}
    for ITEM in ITEMS:
        OUT[ITEM["LABEL"]] = OUT.get(ITEM["LABEL"], 0) + ITEM["FIELD"]
    return OUT
== palindrome | Python function
? checks whether a string is a palindrome, ignoring case and punctuation | tells if a phrase reads the same backwards
def NAME(text):
    OUT = [char.lower() for char in text if char.isalnum()]
    return OUT == OUT[::-1]
== read_csv | Python function
? reads ITEMS from a CSV file and converts FIELD to a float | loads a CSV file of ITEMS, skipping rows without FIELD
import csv
def NAME(path):
    with open(path, newline="", encoding="utf-8") as handle:
        OUT = [row for row in csv.DictReader(handle) if row["FIELD"]]
    return [{**row, "FIELD": float(row["FIELD"])} for row in OUT]
== bash_find | Bash script
? finds log files older than NUM days under /var/ITEMS and compresses them | gzips all old ITEM logs of over BIG kB
NAME() {
  find "/var/ITEMS" -name '*.log' -mtime +NUM -size +BIGk -print0 | xargs -0 -r gzip -9
}
== binary_search | Python function
? finds a FIELD in a sorted list by binary search and returns its index or -1 | searches sorted numbers by halving
def NAME(FIELDs, target):
    low, high = 0, len(FIELDs)
    while low < high:
        OUT = (low + high) // 2
        low, high = (OUT + 1, high) if FIELDs[OUT] < target else (low, OUT)
    return low if low < len(FIELDs) and FIELDs[low] == target else -1
== sql_join | SQL query
? joins ITEMS with OTHERS and lists the LABEL of each OTHER | left joins the tables ITEMS and OTHERS where FIELD > BIG
CREATE VIEW NAME AS
SELECT i.id, i.FIELD, o.LABEL FROM ITEMS AS i
LEFT JOIN OTHERS AS o ON o.id = i.OTHER_id
WHERE i.FIELD > BIG;
== regex_extract | Python function
? extracts all e-mail addresses from a text with a regular expression | finds e-mail addresses ending in WORD.com
import re
def NAME(text):
    return re.findall(r"[\w.+-]+@(?:[\w-]+\.)*WORD\.com", text)
== flask_endpoint | Python Flask endpoint
? returns the ITEMS of one LABEL as JSON | serves GET /ITEMS with a LABEL query parameter and answers 404 when empty
@app.route("/ITEMS", methods=["GET"])
def NAME():
    OUT = CLASS.query.filter_by(LABEL=request.args.get("LABEL", "WORD")).limit(NUM).all()
    return (jsonify(OUT), 200) if OUT else (jsonify({"error": "no ITEMS"}), 404)
== moving_average | Python function
? computes the moving average of FIELD over a window of NUM values | smooths a series with a sliding window of NUM
def NAME(FIELDs, window=NUM):
    sums = [sum(FIELDs[i : i + window]) for i in range(len(FIELDs) - window + 1)]
    return [total / window for total in sums]
== ts_interface | TypeScript function
? validates an unknown value as CLASS with FIELD and LABEL | defines an interface for ITEMS and narrows JSON to it
export interface CLASS { id: string; FIELD: number; LABEL: string }
export const NAME = (value: unknown): value is CLASS =>
  typeof (value as CLASS)?.FIELD === "number" && typeof (value as CLASS).LABEL === "string";
== lru_cache | Python class
? is an LRU cache of at most BIG ITEMS with a get method | keeps the BIG most recently used ITEMS in an OrderedDict
class NAME(OrderedDict):
    def get(self, key, load=None):
        self[key] = self.pop(key) if key in self else load(key)
        if len(self) > BIG:
            self.popitem(last=False)
        return self[key]
== fibonacci | Python function
? computes the n-th Fibonacci number modulo BIG | returns Fibonacci numbers iteratively, without recursion, modulo BIG
def NAME(n, modulus=BIG):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, (a + b) % modulus
    return a
== java_class | Java class
? models one ITEM with FIELD and LABEL and a check of its range | is an immutable value object for ITEMS
public record NAME(double FIELD, String LABEL) {
    public NAME {
        if (FIELD < 0 || FIELD > BIG) throw new IllegalArgumentException("FIELD of a ITEM: " + FIELD);
    }
}
== dates | Python function
? counts the working days between two dates | returns how many days lie between two dates, leaving out weekends
from datetime import timedelta
def NAME(start, end):
    return sum((start + timedelta(days=day)).weekday() < 5 for day in range((end - start).days))
== graph_bfs | Python function
? computes the distance of every node of a graph from a start node by BFS | runs breadth-first search on a graph
def NAME(graph, start):
    OUT, queue = {start: 0}, [start]
    for OTHER in queue:
        for neighbour in set(graph[OTHER]) - OUT.keys():
            OUT[neighbour] = OUT[OTHER] + 1
            queue.append(neighbour)
    return OUT
== react_list | JavaScript React component
? renders a list of ITEMS with their FIELD | shows the first NUM ITEMS whose LABEL contains a text, as a list
export function NAME({ ITEMS, query = "WORD" }) {
  const OUT = ITEMS.filter((ITEM) => ITEM.LABEL.includes(query)).slice(0, NUM);
  return <ul>{OUT.map((ITEM) => <li key={ITEM.id}>{ITEM.LABEL}: {ITEM.FIELD}</li>)}</ul>;
}
== retry_decorator | Python decorator
? retries a failing call up to NUM times with exponential back-off | wraps a function and calls it again on errors
def NAME(function, attempts=NUM, delay_s=DEC):
    def wrapper(*args, **kwargs):
        for attempt in range(attempts):
            try:
                return function(*args, **kwargs)
            except OSError:
                time.sleep(delay_s * 2 ** attempt)
    return wrapper
== matrix | Python function
? multiplies two matrices given as nested lists | computes the product of two NUM by NUM matrices without numpy
def NAME(left, right):
    return [[sum(a * b for a, b in zip(row, column)) for column in zip(*right)] for row in left]
== go_worker | Go function
? processes ITEMS concurrently with goroutines and a channel | starts NUM goroutines that read ITEMS from a channel
func NAME(ITEMS <-chan CLASS, OUT chan<- float64) {
	for worker := 0; worker < NUM; worker++ {
		go func() { for ITEM := range ITEMS { OUT <- ITEM.FIELD * DEC } }()
	}
}
== pandas_pivot | Python pandas function
? pivots a DataFrame of ITEMS by LABEL and month with the mean FIELD | computes the mean FIELD per LABEL of a DataFrame
def NAME(frame):
    return frame[frame["FIELD"] > NUM].pivot_table(index="LABEL", columns="month", values="FIELD", aggfunc="mean")
== c_array | C function
? reverses an array of FIELD values in place | swaps the elements of an int array from both ends, in place
void NAME(int *FIELD, size_t length) {
    for (size_t i = 0, j = length; i + 1 < j--; i++) { int swap = FIELD[i]; FIELD[i] = FIELD[j]; FIELD[j] = swap; }
}
== caesar_cipher | Python function
? encrypts a text with a Caesar cipher of shift NUM | shifts every letter of a message by NUM places in the alphabet
def NAME(text, shift=NUM):
    return "".join(chr((ord(c) - 97 + shift) % 26 + 97) if c.isalpha() else c for c in text.lower())
== json_config | Python function
? loads a JSON configuration and fills in default values | merges a JSON settings file over FIELD = BIG and LABEL = WORD
def NAME(path):
    OUT = {"FIELD": BIG, "LABEL": "WORD", "ratio": DEC}
    return OUT | json.loads(path.read_text(encoding="utf-8"))
== bash_awk | Bash script
? prints the NUM most frequent LABEL values of an access log with awk | counts column NUM of a log file by awk and sort
NAME() {
  awk '{ count[$NUM]++ } END { for (LABEL in count) print count[LABEL], LABEL }' "$1" | sort -rn | head -n NUM
}
== permutations | Python function
? generates all permutations of a list recursively | yields every ordering of ITEMS by recursion without itertools
def NAME(ITEMS):
    if len(ITEMS) < 2:
        return [ITEMS]
    return [[ITEM, *rest] for i, ITEM in enumerate(ITEMS) for rest in NAME(ITEMS[:i] + ITEMS[i + 1 :])]
== sql_window | SQL query
? ranks ITEMS by FIELD within each LABEL with a window function | takes the NUM best ITEMS per LABEL with ROW_NUMBER
WITH NAME AS (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY LABEL ORDER BY FIELD DESC) AS place FROM ITEMS
)
SELECT * FROM NAME WHERE place <= NUM;
== async_gather | Python coroutine
? downloads many ITEM pages at once with asyncio and aiohttp | fetches URLs concurrently, at most NUM at a time
async def NAME(session, urls, gate=asyncio.Semaphore(NUM)):
    async def fetch(url):
        async with gate, session.get(url, timeout=BIG) as response:
            return await response.json()
    return await asyncio.gather(*map(fetch, urls))
== sklearn_model | Python machine learning function
? trains a random forest that predicts LABEL from FIELD | fits a scikit-learn classifier of BIG trees and scores it
def NAME(features, LABELs):
    train_x, test_x, train_y, test_y = train_test_split(features, LABELs, test_size=DEC, random_state=NUM)
    return RandomForestClassifier(n_estimators=BIG).fit(train_x, train_y).score(test_x, test_y)
== html_form | HTML form
? submits a new ITEM with FIELD and LABEL | has a number input for FIELD from NUM to BIG and a LABEL text box
<form id="NAME" action="/ITEMS" method="post">
  <input type="number" name="FIELD" min="NUM" max="BIG"> <input name="LABEL" value="WORD"> <button>Save</button>
</form>
== dockerfile | Dockerfile for a service
? runs the ITEM service on port BIG | builds a small image of the ITEM server with its requirements
FROM python:3.11-slim AS NAME
COPY requirements.txt ITEMS.py /srv/
RUN pip install --no-cache-dir -r /srv/requirements.txt
CMD ["gunicorn", "ITEMS:app", "--bind", "0.0.0.0:BIG", "--workers", "NUM"]
== sqlite | Python function
? stores ITEMS in an SQLite database with parameters | inserts ITEMS into a database table and avoids SQL injection
def NAME(connection, ITEMS):
    connection.executemany("INSERT INTO ITEMS VALUES (?, ?)", [(ITEM["FIELD"], ITEM["LABEL"]) for ITEM in ITEMS])
== rust_iter | Rust function
? sums the FIELD of all ITEMS with a given LABEL using iterators | returns the total FIELD of a slice of ITEMS
fn NAME(ITEMS: &[CLASS], LABEL: &str) -> f64 {
    ITEMS.iter().filter(|ITEM| ITEM.LABEL == LABEL && ITEM.FIELD > DEC).map(|ITEM| ITEM.FIELD).sum()
}
== value_object | Python class
? holds FIELD and LABEL of one ITEM and rejects a FIELD above BIG | is a value object for one ITEM with validation
class NAME:
    def __init__(self, FIELD, LABEL="WORD"):
        if not 0 <= FIELD <= BIG: raise ValueError(f"FIELD must lie in 0..BIG, got {FIELD}")
        self.FIELD, self.LABEL = FIELD, LABEL
== yaml_workflow | YAML workflow for GitHub Actions
? runs the tests of the ITEM package on every push | checks out, installs and tests the ITEM package
name: NAME
on: {push: {branches: [main, WORD]}}
jobs:
  test: {runs-on: ubuntu-latest, timeout-minutes: NUM, steps: [{uses: actions/checkout@v4}, {run: pytest tests/ITEMS}]}
"""

FAMILIES = tuple(_family(block) for block in _FAMILIES.split("\n== ")[1:])

VERBS = words("""get make build compute handle process prepare collect update create check resolve extract derive
 convert apply run serve produce assemble gather manage review inspect refresh track supply render scan trace measure
 plan report sync export import index queue publish fetch store merge verify adjust record dispatch replay reduce
 expand combine""")
ADJECTIVES = words("""active annual basic billed blocked bulk cached cheap closed common complete current daily
 delayed direct double draft early empty expired external final first fixed foreign frequent full global grouped
 hidden hourly internal joint large late latest legacy local manual merged minor mobile monthly nested new open paid
 partial pending prior private public raw recent regular remote rented shared signed simple single small sorted stale
 total""")
NOUNS = words("""ticket receipt customer product sensor book movie player vehicle flight room patient student course
 lesson recipe song playlist photo message comment review coupon payment refund shipment parcel supplier warehouse
 machine robot motor server container cluster job session token device printer camera garden plant tree river bridge
 station train tram driver passenger hotel guest booking table menu soup wine farm field market broker loan permit
 claim journal paper telescope planet""")
TAILS = words("""rows list table report batch set page view group feed queue stack index cache map pool log file
 stream block range chart card panel form history archive summary total budget quota rate limit plan label key state
 status event rule filter window bucket slice shard record entry cell chunk frame packet snapshot draft version
 backup""")
NAME_WORDS = (VERBS, ADJECTIVES, NOUNS, TAILS)
WORDS = words("active pending north urgent gold retail weekly blue legacy premium spare solar rapid amber quiet")
CITIES = ("Zürich", "São Paulo", "Kraków", "Leeds", "Osaka", "Lyon", "Porto", "Malmö", "Austin", "Ghent")
FIELDS = words("""price weight score amount duration age rating distance tax cost volume height speed balance
 level depth margin discount""")
LABELS = words("phase region genre owner market color team brand channel unit grade zone origin")
VARIABLES = words("result found chosen collected selected output kept matches picked hits")

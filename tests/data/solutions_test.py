"""Splitting numbered solutions: three styles, edge cases, real text, arbitrary text."""

import collections
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl_jax.data.solutions import Step, split_solution, split_steps
from tests.stopwatch import Stopwatch


def titles(text):
  return [step.title for step in split_steps(text)]


def without_rules(text):
  """The text without white space and horizontal rules, which a split must preserve."""
  rule = re.compile(r"\s*((-\s*){3,}|(\*\s*){3,}|(_\s*){3,})$")
  return "".join("".join(line.split()) for line in text.split("\n") if not rule.match(line))


def assert_nothing_lost(text):
  solution = split_solution(text)
  parts = [solution.preamble, *[step.text for step in solution.steps], solution.conclusion]
  assert without_rules("\n".join(parts)) == without_rules(text)
  assert [step.number for step in solution.steps] == list(range(1, len(solution.steps) + 1))
  assert all(step.text.endswith(step.body) for step in solution.steps)


BOLD = """To solve this, we factor.

1. **Factor the left side**:
   \\[ (x - 1)(x - 2) = 0 \\]

2. **Read off the roots:** They are 1 and 2.
   - so \\boxed{1, 2}

Therefore the roots are 1 and 2."""

HEADINGS = """We factor.

### Step-by-Step Solution:

---

### Step 1: Factor
First line.

Second paragraph.

---

### **Step 2: Read off \\( x \\)**
They are 1 and 2.

---

### Final Answer:
\\boxed{1, 2}"""

PLAIN = "1. Add 2 and 3 to get 5.\n2. Double 5 to get 10.\n3. Take 1: \\boxed{9}.\n\nIt is 9."


def test_split_steps_by_bold_numbers():
  solution = split_solution(BOLD)
  assert solution.preamble == "To solve this, we factor."
  assert solution.steps == [
    Step(
      1,
      "Factor the left side",
      "\\[ (x - 1)(x - 2) = 0 \\]",
      "1. **Factor the left side**:\n   \\[ (x - 1)(x - 2) = 0 \\]",
    ),
    Step(
      2,
      "Read off the roots",
      "They are 1 and 2.\n   - so \\boxed{1, 2}",
      "2. **Read off the roots:** They are 1 and 2.\n   - so \\boxed{1, 2}",
    ),
  ]
  assert solution.conclusion == "Therefore the roots are 1 and 2."


def test_split_steps_by_headings():
  solution = split_solution(HEADINGS)
  assert solution.preamble == "We factor.\n\n### Step-by-Step Solution:"
  assert [(s.title, s.body) for s in solution.steps] == [
    ("Factor", "First line.\n\nSecond paragraph."),
    ("Read off \\( x \\)", "They are 1 and 2."),
  ]
  assert solution.steps[0].text == "### Step 1: Factor\nFirst line.\n\nSecond paragraph."
  assert solution.conclusion == "### Final Answer:\n\\boxed{1, 2}"


def test_split_steps_by_plain_numbers():
  solution = split_solution(PLAIN)
  assert [(s.title, s.body) for s in solution.steps] == [
    (None, "Add 2 and 3 to get 5."),
    (None, "Double 5 to get 10."),
    (None, "Take 1: \\boxed{9}."),
  ]
  assert solution.conclusion == "It is 9."


@pytest.mark.parametrize(
  ("first", "second", "title", "body"),
  [
    ("1. **A**: a", "2. **B**: b", "A", "a"),
    ("1. **A:** a", "2. **B:** b", "A", "a"),
    ("1. **A** - a", "2. **B** - b", "A", "a"),
    ("1) **A**\na", "2) **B**\nb", "A", "a"),
    ("**1. A** a", "**2. B** b", "A", "a"),
    ("**1.** a", "**2.** b", None, "a"),
    ("**Step 1: A**\n\na", "**Step 2: B**\n\nb", "A", "a"),
    ("**Step 1:** a", "**Step 2:** b", None, "a"),
    ("**Step 1**: a", "**Step 2**: b", None, "a"),
    ("Step 1: a", "Step 2: b", None, "a"),
    ("## 1. A\na", "## 2. B\nb", "A", "a"),
    ("### **1. A**\na", "### **2. B**\nb", "A", "a"),
    ("# STEP 1 - A\na", "# STEP 2 - B\nb", "A", "a"),
    ("#### Step 1\na", "#### Step 2\nb", None, "a"),
    ("1. **Four** is even", "2. So is 6", None, "**Four** is even"),
    ("  1. a", "  2. b", None, "a"),
    ("1. a\r", "2. b\r", None, "a"),
  ],
)
def test_split_steps_reads_variants_of_a_head(first, second, title, body):
  solution = split_solution(f"Intro.\n\n{first}\n\n{second}\n")
  assert solution.preamble == "Intro."
  assert [step.number for step in solution.steps] == [1, 2]
  assert (solution.steps[0].title, solution.steps[0].body) == (title, body)
  assert solution.steps[0].text == first.strip()


@pytest.mark.parametrize(
  ("first", "second", "title", "body"),
  [
    ("Step 1： a", "Step 2： b", None, "a"),
    ("Step1: a", "Step2: b", None, "a"),
    ("Step 1 (Add): a", "Step 2 (Halve): b", "Add", "a"),
    ("**Step 1 (Add):** a", "**Step 2 (Halve):** b", "Add", "a"),
    ("Step 1/3: a", "Step 2/3: b", None, "a"),
    ("Step 1 of 3. a", "Step 2 of 3. b", None, "a"),
    ("Step One: a", "Step Two: b", None, "a"),
    ("Step 1\na", "Step 2\nb", None, "a"),
    ("*Step 1*: a", "*Step 2*: b", None, "a"),
    ("***Step 1:*** a", "***Step 2:*** b", None, "a"),
    ("- **Step 1**: a", "- **Step 2**: b", None, "a"),
    ("> Step 1: a", "> Step 2: b", None, "a"),
    ("###Step 1\na", "###Step 2\nb", None, "a"),
    ("### **Step 1：A**\na", "### **Step 2：B**\nb", "A", "a"),
    ("### 1\na", "### 2\nb", None, "a"),
    ("1.Text", "2.Text", None, "Text"),
    ("1、a", "2、b", None, "a"),
    ("1）a", "2）b", None, "a"),
    ("1、2x = 4", "2、x = 2", None, "2x = 4"),
    ("Schritt 1: a", "Schritt 2: b", None, "a"),
    ("### Schritt 1: A\na", "### Schritt 2: B\nb", "A", "a"),
    ("**Étape 1 :** a", "**Étape 2 :** b", None, "a"),
    ("- **Paso 1:** a", "- **Paso 2:** b", None, "a"),
    ("Passo 1. a", "Passo 2. b", None, "a"),
    ("Шаг 1: a", "Шаг 2: b", None, "a"),
    ("ステップ1：a", "ステップ2：b", None, "a"),
    ("1단계: a", "2단계: b", None, "a"),
    ("단계 1: a", "단계 2: b", None, "a"),
    ("步骤1：a", "步骤2：b", None, "a"),
    ("第一步：a", "第二步：b", None, "a"),
    ("(1) a", "(2) b", None, "a"),
    ("\\textbf{Step 1:} a", "\\textbf{Step 2:} b", None, "a"),
    ("\\textbf{1. A} a", "\\textbf{2. B} b", "A", "a"),
  ],
)
def test_near_spellings_of_a_head(first, second, title, body):
  solution = split_solution(f"Intro.\n\n{first}\n\n{second}\n")
  assert solution.preamble == "Intro."
  assert [step.number for step in solution.steps] == [1, 2]
  assert (solution.steps[0].title, solution.steps[0].body) == (title, body)
  assert solution.steps[0].text == first  # as the expert wrote it


@pytest.mark.parametrize("n", [1, 9, 10, 11, 12, 19, 20, 21, 30])
def test_chinese_numbers(n):
  ones = "零一二三四五六七八九"
  chinese = lambda i: (
    (ones[i // 10] if i > 19 else "") + ("十" if i > 9 else "") + (ones[i % 10] if i % 10 else "")
  )
  text = "\n".join(f"第{chinese(i)}步：a" for i in range(1, n + 2))
  assert len(split_steps(text)) == n + 1


def test_split_steps_ignores_a_byte_order_mark():
  assert len(split_steps("\ufeff1. a\n2. b")) == 2


def test_near_spellings_count_only_where_the_usual_ones_number_nothing():
  text = "1. We know\n(1) x\n(2) y\n2. so z.\n"
  assert [step.text for step in split_steps(text)] == ["1. We know\n(1) x\n(2) y", "2. so z."]


@pytest.mark.parametrize(
  "text",
  [
    "1.5 apples\n2.5 pears",
    "1: 4\n2: 8",
    "Step 1 gives 4\nStep 2 gives 5",
    "1：4\n2：8",
    "1、2、3是自然数\n2、4、6是偶数",
    "Schritt 1 ergibt 4\nSchritt 2 ergibt 5",
    "Paso 1 da 4\nPaso 2 da 5",
    "(1, 2)\n(2, 3)",
    "#1 is best\n#2 is second",
  ],
)
def test_split_steps_takes_no_other_text_for_a_label(text):
  assert split_steps(text) == []


@pytest.mark.parametrize(
  "text",
  [
    "",
    "No numbers at all.",
    "12 apples and 3.5 pears.\n2. A list that starts at two",
    "### Step 0: Nothing follows",
    "Step 1 gives 4, and Step 2 gives 5.",
  ],
)
def test_split_steps_of_text_without_steps_is_empty(text):
  solution = split_solution(text)
  assert (solution.preamble, solution.steps, solution.conclusion) == (text, [], "")


def test_split_steps_needs_consecutive_numbers():
  assert [s.text for s in split_steps("1. a\n2. b\n4. d\n3. c")] == ["1. a", "2. b\n4. d", "3. c"]
  assert [s.number for s in split_steps("1. only one")] == [1]


def test_split_steps_keeps_nested_lists_in_their_step():
  text = "### Step 1: A\n1. x\n2. y\n\n### Step 2: B\n1. x\n2. y\n3. z\n\n### Step 3: C\nc"
  assert titles(text) == ["A", "B", "C"]
  text = "1. **A**:\n\n1. x\n2. y\n\n2. **B**:\n1. x\n2. y\n3. z\n\n3. **C**: c"
  assert titles(text) == ["A", "B", "C"]
  text = "1. a\n   1. x\n   2. y\n2. b\n   1. x\n   2. y\n   3. z\n3. c"
  assert [s.body.split("\n")[0] for s in split_steps(text)] == ["a", "b", "c"]
  text = "1. a\n\n1. x\n2. y\n\n2. b\n\n1. x\n2. y\n3. z\n\n3. c"
  assert [s.body.split("\n")[0] for s in split_steps(text)] == ["a", "b", "c"]
  text = "## Step 1: A\n### Step 1: x\n### Step 2: y\n## Step 2: B\nb"
  assert titles(text) == ["A", "B"]


def test_split_steps_skips_a_list_of_givens():
  solution = split_solution("Given:\n1. a\n2. b\n\nSolution:\n\n1. x\n2. y\n3. z")
  assert solution.preamble == "Given:\n1. a\n2. b\n\nSolution:"
  assert [s.body for s in solution.steps] == ["x", "y", "z"]


def test_split_steps_counts_a_step_without_its_bold_title():
  assert titles("1. **A**: a\n2. **B**: b\n3. So c.\n4. **D**: d") == ["A", "B", None, "D"]


def test_split_steps_ignores_numbers_in_code():
  text = "### Step 1: A\n```python\n# 1. x\n### Step 2: no\n```\n\n### Step 2: B\nb"
  assert titles(text) == ["A", "B"]
  assert titles("```python\n# 1. x\n# 2. y\n```") == []
  text = '```json\n{\n "reasoning": "First:\n\n1. **A**: a\n2. **B**: b",\n "answer": 4\n}\n```'
  solution = split_solution(text)
  assert [s.title for s in solution.steps] == ["A", "B"]
  assert solution.conclusion == '"answer": 4\n}\n```'


@pytest.mark.parametrize(
  ("last", "conclusion"),
  [
    ("### Step 2: B\nb\n\n### Conclusion\nDone.", "### Conclusion\nDone."),
    ("### Step 2: B\nb\n\n#### **Final Answer**\n4", "#### **Final Answer**\n4"),
    ("### Step 2: B\nb\n\n**Final Answer**\n\n4", "**Final Answer**\n\n4"),
    ("### Step 2: B\nb\n**Answer:** 4", "**Answer:** 4"),
    ("### Step 2: B\nb\n\n### Verification\nv", "### Verification\nv"),
    ("### Step 2: B\nb\n\n#### Detail\nv", ""),
    ("### Step 2: B\nb\n\n---\nSo 4.", "So 4."),
    ("### Step 2: B\nb\n\nThus, the final answer is:\n\n\\boxed{4}", None),
    ("### Step 2: B\nb\n\n\\[\\boxed{4}\\]", "\\[\\boxed{4}\\]"),
    ("### Step 2: B\nwe get:\n\n\\[\\boxed{4}\\]", ""),
    ("### Step 2: B\nb\n\n\\[\n\\boxed{4}\n\\]", "\\[\n\\boxed{4}\n\\]"),
    ("### Step 2: B\nb\n\n\\[\nx = 4\n\\]", ""),
    ("### Step 2: B\nso \\boxed{4}", ""),
    ("### Step 2: Conclusion\nThus, the answer is 4.", ""),
    ("### Step 2: Conclusion\n\nThus, the answer is 4.", ""),
    ('### Step 2: B\nb\n\n```json\n{"answer": 4}\n```', '```json\n{"answer": 4}\n```'),
    ("### Step 2: B\nb\n\nMore b", ""),
  ],
)
def test_split_steps_ends_the_last_step_before_the_answer(last, conclusion):
  solution = split_solution(f"### Step 1: A\na\n\nmore a\n\n{last}")
  expected = "Thus, the final answer is:\n\n\\boxed{4}" if conclusion is None else conclusion
  assert solution.conclusion == expected
  assert len(solution.steps) == 2
  assert solution.steps[1].text == (last.removesuffix(expected).rstrip("\n-") if expected else last)


def test_split_steps_keeps_unindented_paragraphs():
  text = "1. **A**\n\nUnindented.\n\nMore.\n\n2. **B**\n\nUnindented.\n\nMore.\n\nThe answer is 4."
  solution = split_solution(text)
  assert solution.steps[1].body == "Unindented.\n\nMore."
  assert solution.conclusion == "The answer is 4."


def test_split_steps_keeps_the_last_step_of_a_cut_solution():
  steps = split_steps("1. **A**: a\n\n2. **B**: b\n\n3.")
  assert [(s.title, s.body) for s in steps] == [("A", "a"), ("B", "b"), (None, "")]


def test_split_steps_of_real_solutions(shared):
  path = shared / "data" / "steps" / "mathodyssey_deepseek_v3.jsonl"
  rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
  solutions = [split_solution(row["response"]) for row in rows]
  for row in rows:
    assert_nothing_lost(row["response"])
  usable = [s for s in solutions if len(s.steps) >= 2]
  assert len(rows) == 260
  labelled = sum(int(row["n_steps"]) >= 2 for row in rows)
  assert len(usable) == labelled == 249
  counts = collections.Counter(
    len(s.steps) - int(row["n_steps"]) for row, s in zip(rows, solutions)
  )
  assert counts[0] >= 230
  # Closing formulas belong to the conclusion, never to a step that could become a target.
  for solution in usable:
    for step in solution.steps:
      assert "```json" not in step.text
      assert not re.search(r"(?m)^#+ \**Final Answer", step.text.split("\n", 1)[-1])


PIECES = st.sampled_from(
  ["1. ", "2. ", "3. ", "**", "### ", "Step 1: ", "Step 2:", "\n", "\n\n", "---", "```", "```json"]
  + ["Final Answer:", "\\boxed{4}", '"answer": 4', "    ", "text", "\r\n", "1.", "\t", "\u2028"]
)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join)))
def test_split_steps_loses_nothing_of_any_text(text):
  assert_nothing_lost(text)


HOSTILE = [" " * 20000 + "x", "**1. " * 5000, "- " * 20000 + "x", "`" * 20000]
HOSTILE += ["```" + "a" * 40000 + "`", "~~~" + " " * 40000 + "`", "~" * 40000 + "`"]
HOSTILE += ["1. a\n" * 20000, "1. a\n2. b\n1. c\n" * 5000, "1. x\n3. y\n" * 10000]
HOSTILE += [
  "1. a\n2. b\n\n**answer" + " " * 40000 + "x",
  "1. a\n2. b\n" + "```\nx\n```\ny\n" * 6000,
]
HOSTILE += [" " * 9 + "step" + " " * 40000 + "x", "#" * 40000 + "1", "步骤" * 20000, "(1" * 20000]
HOSTILE += [" " * 40000 + "Schritt" + " " * 40000 + "x", "- " * 40000 + "Paso 1", "단계" * 20000]
HOSTILE += ["".join(f"{' ' * k}1. a\n{' ' * k}2. a\n" for k in range(200))]  # all indentations


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_split_steps_is_fast_on_hostile_text(text):
  with Stopwatch() as stopwatch:
    split_solution(text)
  assert stopwatch.last < 1.0
  assert_nothing_lost(text)


def test_split_steps_takes_the_longest_of_restarted_lists():
  text = "1. a\n2. b\n1. c\n" * 50 + "\n1. one\n2. two\n3. three\n" + "1. d\n" * 50
  assert [step.number for step in split_solution(text).steps] == [1, 2, 3]

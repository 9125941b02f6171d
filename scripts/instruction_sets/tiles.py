"""Whether the matrix products keep their sums in registers: reads `objdump -dC` from stdin.

Of each product's innermost loops the one with the most multiply-adds counts; a vector that goes to
the stack or comes from there is wrong. Ends with status 0 if there is none.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

PRODUCT = re.compile(
    r"\b(multiply<\w+, \d|multiply_pairs<\d|multiply_rows<\w+, \d, \d+|apply_few<\d)"
)
MULTIPLY_ADD = re.compile(r"^(fmla|bfdot|vdpbf16ps|vf(n?)madd\d+p[sd])\b")
JUMP = re.compile(r"^(b\.?\w*|cbn?z|tbn?z|j\w+)\s.*?\b([0-9a-f]+) <")
STACK_VECTOR = re.compile(r"\bq\d+.*\[sp|%[xyz]mm\d+.*\(%r[sb]p\)|\(%r[sb]p\).*%[xyz]mm\d+")

Function = list[tuple[int, str]]


def functions(lines: Iterable[str]) -> Iterable[tuple[str, Function]]:
    """Name, and addresses with instructions, of each function that is a matrix product."""
    name, body = "", []
    for line in lines:
        if begin := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            if body:
                yield name, body
            found, regressor = (
                PRODUCT.search(begin[1]),
                re.search(r"\w+Regressor(<\w+>)?", begin[1]),
            )
            name, body = "", []
            if found:
                member = found[1].startswith("apply") and regressor
                name = f"{regressor[0]}::{found[1]}>" if member else f"{found[1]}>"
        elif name and (found := re.match(r"^ *([0-9a-f]+):\t(?:[0-9a-f ]+\t)?(.*)$", line)):
            body.append((int(found[1], 16), found[2].strip()))
    if body:
        yield name, body


def innermost_loops(body: Function) -> Iterable[list[str]]:
    """The instructions of loops that hold no other loop."""
    index = {address: i for i, (address, _) in enumerate(body)}
    loops = [
        (index[int(jump[2], 16)], end)
        for end, (_, text) in enumerate(body)
        if (jump := JUMP.match(text)) and index.get(int(jump[2], 16), end + 1) <= end
    ]
    for begin, end in loops:
        inside = [1 for b, e in loops if begin <= b and e <= end and (b, e) != (begin, end)]
        if not inside:
            yield [text for _, text in body[begin : end + 1]]


def main() -> int:
    wrong = checked = 0
    seen = set()
    for name, body in functions(sys.stdin):

        def multiply_adds(loop: list[str]) -> int:
            return sum(bool(MULTIPLY_ADD.match(text)) for text in loop)

        loop = max(innermost_loops(body), key=multiply_adds, default=[])
        spilled = sum(bool(STACK_VECTOR.search(text)) for text in loop)
        verdict = f"{multiply_adds(loop)} multiply-adds of {len(loop)} instructions"
        verdict += f", WRONG: {spilled} vectors to or from the stack" if spilled else ""
        wrong += spilled > 0
        checked += 1
        if (name, verdict) not in seen:
            print(f"{name}: {verdict}")
        seen.add((name, verdict))
    print(f"{checked} products, {wrong} that spill")
    return int(wrong > 0 or checked == 0)


if __name__ == "__main__":
    sys.exit(main())

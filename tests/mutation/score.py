"""What ``mutmut run`` came to: the share of mutants that the tests killed, and who survived.

A mutant is the source with one small change; it is killed if a test fails. Of survivors that
nothing can or should kill ``survivors.toml`` says why. Run by ``tox run -e mutants``; fails
where fewer than 90 % are killed.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant

WANTED = 0.9

SURVIVED = (0, 5, 33)
"""Exit codes of a mutant that passed its tests, and of one that has none."""


def outcomes() -> Iterator[tuple[str, str, bool | None]]:
    """Source, name and whether it was killed of every mutant; None if it was not tried."""
    for meta in sorted(Path("mutants/permllm").rglob("*.meta")):
        source = meta.with_suffix("").relative_to("mutants").as_posix()
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            yield source, name, None if code is None else code not in SURVIVED


def change(source: str, name: str) -> str:
    """What a mutant has in place of the source: its own line, or "without" the one it lacks."""
    lines = get_diff_for_mutant(name, path=source).splitlines()[2:]
    added, removed = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "+-"
    )
    # Where the last of several arguments goes, the bracket after it counts as changed, too.
    return f"without {removed.removesuffix(added)}".strip() if added in ("", ")", "),") else added


def reasons() -> list[tuple[str, str, re.Pattern[str]]]:
    """Sources, change, and the form of the change, in which ``…`` stands for any text."""
    listed = tomllib.loads(Path(__file__).with_name("survivors.toml").read_text(encoding="utf-8"))
    return [
        (survivors["source"], text, re.compile(".*".join(map(re.escape, text.split("…")))))
        for survivors in listed["survivors"]
        for text in survivors["changes"]
    ]


def main() -> int:
    """Print survivors and scores, the folders' and all."""
    total: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    known, needed, unexplained, untried = reasons(), set(), [], 0
    for source, name, dead in outcomes():
        if dead is None:
            untried += 1
            continue
        folder = str(Path(source).parent)
        total[folder] += 1
        killed[folder] += dead
        if not dead:
            text = change(source, name)
            fitting = {
                i
                for i, (of, _, form) in enumerate(known)
                if fnmatch(source, of) and form.fullmatch(text)
            }
            needed |= fitting
            if not fitting:
                unexplained.append(f"{name}\n      {text}")
    idle = [f"{of}: {text}" for i, (of, text, _) in enumerate(known) if i not in needed]
    print("Survivors without a reason:", *unexplained or ["none"], sep="\n  ")
    print("Reasons without a survivor:", *idle or ["none"], sep="\n  ")
    score = killed.total() / max(1, total.total())
    for folder in sorted(total):
        share = killed[folder] / total[folder]
        print(f"{folder:22}{killed[folder]:5} of {total[folder]:5} killed, {share:6.1%}")
    print(f"{'all':22}{killed.total():5} of {total.total():5} killed, {score:6.1%}")
    if untried:
        print(f"{untried} have not been tried")
    return int(score < WANTED)


if __name__ == "__main__":
    sys.exit(main())

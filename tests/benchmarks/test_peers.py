"""The tables of docs/comparison.md come from the results; commands are measured to their end or given up."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks.peers.page import write_page
from benchmarks.peers.processes import in_turns, measure

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_committed_results(tmp_path: Path) -> None:
    page = shutil.copy(ROOT / "docs" / "comparison.md", tmp_path)
    write_page(Path(page), ROOT / "benchmarks" / "results")
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert Path(page).read_text(encoding="utf-8") == text, "run `make bench-peers`"
    assert "-->\n<!-- end -->" not in text  # an empty table


def test_a_table_without_results_stays(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results"
    results.mkdir()
    page.write_text("a\n<!-- table trim -->\nold\n<!-- end -->\nb\n")
    write_page(page, results)
    assert page.read_text() == "a\n<!-- table trim -->\nold\n<!-- end -->\nb\n"
    cases = {"density 0.2": {"elements": 25_000_000, "seconds": {"mergekit": 3.0, "rlforget": 0.2}}}
    (results / "peers-x-2026-01-02.json").write_text(json.dumps({"peers": {"trim": {"cases": cases}}}))
    write_page(page, results)
    assert "| 25 million entries, density 0.2 | 3.00 | 0.20 | 15.0 |\n<!-- end -->\nb" in page.read_text()


def test_commands_are_measured_or_said_to_have_failed() -> None:
    python = sys.executable
    found = measure([python, "-c", "x = bytearray(50_000_000)"], 60)
    assert found["peak_bytes"] > 50_000_000
    assert 0 < found["cpu_seconds"] <= 60
    assert measure([python, "-c", "import time; time.sleep(60)"], 0.2) == {"note": "given up after 0 s"}
    both = in_turns({"good": [python, "-c", ""], "bad": [python, "-c", "raise SystemExit('no such thing')"]}, 2, 60)
    assert both["bad"] == {"note": "failed: no such thing"}
    assert both["good"].keys() == {"seconds", "cpu_seconds", "peak_bytes"}

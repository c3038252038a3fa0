"""Results as a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import portable
from benchmarks.cases.rollback import READ
from benchmarks.gpu.sections import SECTIONS
from benchmarks.harness import discover
from benchmarks.report.__main__ import main
from benchmarks.report.bars import BARS, Bar, as_share, share
from benchmarks.report.page import page
from benchmarks.report.results import DIFF, FOLDER, PARTS, newest, read, read_all
from tests.benchmarks.made_results import GPU, STEP, changed, written, written_of_a_gpu

ROOT = Path(__file__).parents[2]


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_every_bar_has_a_case():
    cases = {*discover(), *SECTIONS["model"].cases(), *((portable.OPERATOR, case) for case in portable.LABELS)}
    cases.add((DIFF, "0.5b"))
    assert [(bar.operator, bar.case) for bar in BARS if bar.operator and (bar.operator, bar.case) not in cases] == []


def test_a_record_is_a_row_of_ratios(tmp_path: Path):
    text = page([read(written(tmp_path))])
    row = "| bfloat16, 0.2% changed | 40.0 | 0.90 | 10.0× | 8.0× | 3 MiB |"
    assert row in text.splitlines()
    assert "- torch.compile: 1 graph break (dynamic shape operator)." in text.splitlines()


def test_an_error_is_a_column_where_an_operator_has_one(tmp_path: Path):
    text = page([read(written(tmp_path, operators=[changed(error=1.2e-7), changed(case="another")]))])
    assert lines_with(text, "| bfloat16, 0.2% changed | 40.0", "| 3 MiB | 1e-07 |")
    assert lines_with(text, "| another |", "| 3 MiB | – |")
    assert lines_with(text, "| case | GB/s |", "| extra | error |")
    assert not lines_with(page([read(written(tmp_path))]), "| error |")


def test_a_bar_is_met_or_falls_short_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    marks, causes = {"cpu": 0.8}, {"cpu": lambda record, results: f"{record.case} on {results.name}"}
    bar = Bar("sparse_delta", "bfloat16, 0.2% changed", "share", share, marks, as_share, causes=causes)
    monkeypatch.setattr("benchmarks.report.page.BARS", [bar])
    assert lines_with(page([read(written(tmp_path))]), "≥ 0.80", "0.90", "met")
    slow = changed(seconds={"ours": 0.009, "ceiling": 0.0045})
    text = page([read(written(tmp_path, operators=[slow]))])
    assert lines_with(text, "≥ 0.80", "0.50", "fell short")
    assert lines_with(text, "- `sparse_delta`", "share: bfloat16, 0.2% changed on Some Processor, 2 threads.")
    text = page([read(written(tmp_path, operators=[changed(case="another")]))])
    assert lines_with(text, "≥ 0.80", "–", "not measured")


def test_a_bar_on_all_cases_counts_the_worst(tmp_path: Path):
    (bar,) = [bar for bar in BARS if not bar.operator]
    extra = [{"ours": size, "torch": 0} for size in (1 << 20, 100 << 20, None)]
    results = read(written(tmp_path, operators=[changed(extra_bytes=one) for one in extra]))
    value, record = bar.worst(results)
    assert (value, record.extra()) == (100, 100 << 20)
    assert not bar.met(100, "cpu")
    assert bar.met(64, "cpu")


def test_products_are_a_share_of_what_the_machine_multiplies(tmp_path: Path):
    products = changed(operator="project", case="dense", flops=250_000_000)
    text = page([read(written(tmp_path, operators=[products, changed(operator="project")], float_speed=1e11))])
    assert lines_with(text, "| case | GB/s | of ceiling | GFLOP/s | of peak |")
    assert lines_with(text, "| dense | 40.0 | 0.90 | 50 | 0.50 |")
    assert lines_with(text, "Float32 peak: 100 GFLOP/s.")
    text = page([read(written(tmp_path, operators=[products]))])
    assert lines_with(text, "| dense | 40.0 | 0.90 | 50 | 10.0× |")  # of a run that did not measure the machine


@pytest.mark.parametrize(
    ("unit", "said"), [(False, "at most 2.0×; ours does"), (True, "but for the instructions for bfloat16")]
)
def test_a_bar_on_products_tells_what_multiplying_alone_takes(tmp_path: Path, unit: bool, said: str):
    seconds = {"ours": 0.5, "ceiling": 0.1, "torch": 0.6, "torch's product alone": 0.3}
    case = changed(operator="project", case="bfloat16, 24 layers, rank 64", flops=30_000_000_000, seconds=seconds)
    text = page([read(written(tmp_path, operators=[case], float_speed=1e11, bfloat16_products=unit))])
    (cause,) = lines_with(text, "- `project`, bfloat16, 24 layers, rank 64, against torch:")
    assert "float32 peak of 100 GFLOP/s the products alone take 0.50 of torch's time, so at most 2.0×" in cause
    assert said in cause
    assert "ours does 0.60 of that peak" in cause
    assert "takes 0.50 of all that torch does" in cause


def test_every_cause_reads_what_its_cases_record(tmp_path: Path):
    """Whatever falls short can be explained from a record such as its case makes."""
    peers = {"torch": 1.0, "torch.compile": 1.0, "torch.func.vmap": 1.0, "torch's product alone": 1.0, READ: 1.0}
    for bar in BARS:
        if bar.operator and bar.operator != DIFF and "cpu" in bar.marks:
            one = changed(operator=bar.operator, case=bar.case, flops=10**9, seconds={"ours": 2, "ceiling": 1} | peers)
            results = read(written(tmp_path, operators=[one], float_speed=1e11))
            assert bar.cause(results.records[0], results)


def test_a_whole_diff_has_a_bar_on_what_is_outside_its_operators(tmp_path: Path):
    text = page([read(written(tmp_path))])
    assert lines_with(text, "| `rf.diff` | 0.5b |", "| ≤ 0.20 | 0.10 | met |")
    assert lines_with(text, "| *the same while operators are timed* | 110 | 110% |")
    parts = {"sparse_delta": 0.07, "torch": 0.01, "rest": 0.02}
    slow = json.loads(written(tmp_path).read_text())
    slow["diff"]["parts"] = parts
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    text = page([read(tmp_path / "slow.json")])
    assert lines_with(text, "| `rf.diff` | 0.5b |", "| ≤ 0.20 | 0.30 | fell short |")
    assert lines_with(text, "- `rf.diff`, 0.5b", "of 100 ms, 10 ms are torch's own operators", "20 ms Python")
    del slow["diff"]["seconds"]["watched diff"]
    (tmp_path / "old.json").write_text(json.dumps(slow))
    text = page([read(tmp_path / "old.json")])
    assert lines_with(text, "| `rf.diff` | 0.5b |", "| – | not measured |")
    assert lines_with(text, "Operators are timed in the same rounds")


def test_every_bar_of_a_device_is_a_row(tmp_path: Path):
    bars = [bar for bar in BARS if "cpu" in bar.marks]
    rows = page([read(written(tmp_path, operators=[]))]).split("### Bars")[1].split("###")[0].strip().splitlines()[2:]
    assert len(rows) == len(bars)
    assert (
        sum("| not measured |" in row for row in rows) == len(bars) - 1
    )  # the diff is in the results that are made up


def test_ratios_of_bars(tmp_path: Path):
    one = changed(
        seconds={"ours": 2.0, "ceiling": 1.0, "torch": 10.0}, extra_bytes={"ours": 5, "torch": 100}, inputs=500
    )
    results = read(written(tmp_path, operators=[one]))
    (record,) = results.records
    assert (record.share, record.times("torch"), record.times("mergekit")) == (0.5, 5, None)
    by_text = {bar.text: bar.quantity for bar in BARS}
    assert by_text["temporaries, of the inputs"](record) == 0.01
    assert by_text["time"](record) == 2000
    assert by_text["memory, of torch.func.vmap's"](record) is None


def test_the_whole_diff_is_accounted_for(tmp_path: Path):
    text = page([read(written(tmp_path))])
    assert "| `fingerprint` | 30 | 30% |" in text
    assert "| the whole `rf.diff` | 100 | 100% |" in text
    assert "10% of the time is outside" in text
    assert "20.0 GB/s" in text
    assert "| second call, a new process | 2.0 |" in text


def test_the_newest_results_of_each_machine_are_read(tmp_path: Path):
    written(tmp_path, "a-2026-02-01.json", date="2026-02-01")
    last = written(tmp_path, "a-2026-03-01.json", date="2026-03-01")
    operators = written(tmp_path, "one.json", **GPU)
    model = written_of_a_gpu(tmp_path, [STEP], [])  # of another run
    (tmp_path / "circuits.json").write_text("{}")
    assert set(newest(tmp_path)) == {last, operators, model}


def test_a_whole_model_on_a_gpu(tmp_path: Path):
    call = STEP | {"case": "rf.fisher", "moved": 0, "seconds": {"ours": 1.5, "ceiling": 1e-5}, "notes": {"torch": "no"}}
    late = {"operator": "model", "case": "undo", "why": "no time was left"}
    text = page([read(written_of_a_gpu(tmp_path, [STEP, call], [late]))])
    row = "| diff and stats | 7.00 | 3429 | 0.80 | 20.0× | 10.0× | 20.00 GiB | 30.00 GiB | 1.00 GiB |"
    assert row in text.splitlines()
    assert lines_with(text, "| rf.fisher | 1500 | – | – | – | – |")
    assert lines_with(text, "- rf.fisher: torch: no.")
    assert lines_with(text, "| `model` | diff and stats | time | ≤ 8.0 ms | 7.0 ms | met |")
    assert lines_with(text, "Some GPU", "driver 580.1", "4.20 TB/s")
    assert lines_with(text, "| model | 61 | 1 | 0 |")
    assert lines_with(text, "- left out: model, undo: no time was left.")
    assert "not run yet" not in text


def test_without_results_of_a_gpu_the_page_says_how_to_make_them(tmp_path: Path):
    text = page([read(written(tmp_path))])
    assert lines_with(text, "**not run yet**")
    assert lines_with(text, "`make bench-gpu`")


def test_the_same_results_give_the_same_bytes(tmp_path: Path):
    results = str(written(tmp_path))
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert main([results, "--out", str(tmp_path / name / "performance.md")]) == 0
        made.append([file.read_bytes() for file in sorted((tmp_path / name).rglob("*.*"))])
    assert len(made[0]) == 2
    assert made[0] == made[1]


def test_the_page_shows_the_committed_results(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    shown = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page(read_all(newest()), newest(delta_files=True)) == shown, "run `make performance`"


def test_results_that_no_page_shows_are_not_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    parts = {*PARTS, "delta_files"}
    kept = {path for path in FOLDER.glob("*.json") if parts & json.loads(path.read_text(encoding="utf-8")).keys()}
    assert kept == {*newest(), *newest(delta_files=True)}, "delete those that newer ones of the same machine replace"


def test_results_of_a_whole_model_alone_make_a_page_without_a_picture(tmp_path: Path):
    results = written_of_a_gpu(tmp_path, [STEP], [])
    assert main([str(results), "--out", str(tmp_path / "performance.md")]) == 0
    assert (tmp_path / "performance.md").exists()
    assert not (tmp_path / "images").exists()


def test_without_results_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("benchmarks.report.__main__.newest", lambda: newest(tmp_path))
    assert main(["--out", str(tmp_path / "performance.md")]) == 1
    assert "make bench" in capsys.readouterr().err

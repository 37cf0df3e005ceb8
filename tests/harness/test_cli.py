"""The command line: what it prints, its exit status, and one clear line for every mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import arguments, cli, runner
from harness.records import Records

TOYS = Path(__file__).parent / "toy_grids.py"
ROOT = TOYS.parent.parent.parent


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


Mixerbench = Callable[..., Said]


@pytest.fixture
def mixerbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Mixerbench:
    """The console script in this process, whose server of workers then starts only once."""
    monkeypatch.chdir(tmp_path)
    # Else every worker would import pytest, as its main module.
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)

    def mixerbench(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["mixerbench", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Said(code or 0, said.out, said.err)

    return mixerbench


def toy(grid: str) -> str:
    return f"{TOYS}:{grid}"


def test_run_says_what_it_did_and_where_the_records_are(mixerbench: Mixerbench) -> None:
    said = mixerbench("run", toy("fine"), "--device", "cpu")
    assert (said.status, said.err) == (0, "")
    assert re.search(r"\[6/6\] ok    toy/plain seed=\d  accuracy 0(\.\d)?", said.out)
    assert "6 ok" in said.out
    assert "records: results/fine/records.jsonl" in said.out
    assert len(Records(Path("results/fine")).rows()) == 6

    again = mixerbench("run", toy("fine"), "--device", "cpu")
    assert again.status == 0
    assert "6 ok from before" in again.out
    assert len(Records(Path("results/fine")).rows()) == 6

    fresh = mixerbench("run", toy("fine"), "--device", "cpu", "--fresh", "--jobs", "1")
    assert fresh.status == 0
    assert len(Records(Path("results/fine")).rows()) == 12


def test_failed_cells_are_named_and_make_the_exit_status_1(mixerbench: Mixerbench) -> None:
    said = mixerbench("run", toy("every_end"), toy("fine"), "--results", "elsewhere")
    assert said.status == 1
    assert re.search(r"error   [0-9a-f]{12}  toy/plain ends=raises: KeyError: 'no such", said.out)
    assert re.search(r"wrong   [0-9a-f]{12}  toy/plain ends=wrong: differs from the", said.out)
    assert len(Records(Path("elsewhere/every_end")).rows()) == 9
    # A failure in one grid does not keep the next from running.
    assert len(Records(Path("elsewhere/fine")).rows()) == 6


def test_oom_and_unsupported_are_results(mixerbench: Mixerbench) -> None:
    said = mixerbench("run", toy("every_end"), "--where", 'ends in ["oom", "unsupported", "ok"]')
    assert said.status == 0
    assert "1 ok, 1 oom, 1 unsupported" in said.out


def test_where_chooses_by_the_columns_of_the_report(mixerbench: Mixerbench) -> None:
    query = 'seed <= 2 and mixer == "toy" and impl == "plain" and grid == "fine"'
    said = mixerbench("run", toy("fine"), "--where", query)
    assert said.status == 0
    rows = Records(Path("results/fine")).rows()
    assert sorted(row.task["seed"] for row in rows) == [0, 1, 2]


def test_dry_run_lists_the_cells_and_runs_none(mixerbench: Mixerbench) -> None:
    mixerbench("run", toy("fine"), "--where", "seed == 3")
    said = mixerbench("run", toy("fine"), "--dry-run")
    assert said.status == 0
    assert "5 of 6 cells would run" in said.out
    assert re.search(r"ok   [0-9a-f]{12}  toy/plain seed=3", said.out)
    assert re.search(r"run  [0-9a-f]{12}  toy/plain seed=4", said.out)
    assert len(Records(Path("results/fine")).rows()) == 1
    assert "timed" in mixerbench("run", toy("mixed"), "--dry-run").out


def test_the_budget_ends_with_status_0_and_says_what_is_left(mixerbench: Mixerbench) -> None:
    said = mixerbench("run", toy("long"), toy("fine"), "--budget", "1s")
    assert said.status == 0
    command = f"mixerbench run {toy('long')} {toy('fine')} --budget 1s"
    assert f"8 cells left; to go on: {command}" in said.out
    assert not Path("results/fine").exists()


def test_a_budget_that_ends_with_the_last_cell_leaves_nothing_to_go_on_with(
    mixerbench: Mixerbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = runner.Summary(total=6, stopped_by="budget")
    done.statuses["ok"] = 6
    monkeypatch.setattr(runner, "run_grid", lambda *_: done)
    said = mixerbench("run", toy("fine"), "--budget", "1s")
    assert (said.status, "to go on" in said.out) == (0, False)


def test_a_stopped_fresh_run_goes_on_where_it_stopped(mixerbench: Mixerbench) -> None:
    mixerbench("run", toy("fine"))
    two = ("run", toy("fine"), toy("long"))
    said = mixerbench(*two, "--fresh", "--budget", "5s", "--jobs", "1")
    told = re.search(rf"(\d) cells left; to go on: mixerbench {' '.join(two)} (.*)", said.out)
    assert told, said.out
    left, options = int(told[1]), told[2].split()
    assert options[0] == "--fresh-since"
    # Two of half a minute each are left, and what the first grid has measured is not.
    assert 2 <= left < 8
    listed = mixerbench(*two, *options, "--dry-run").out
    assert sum(map(int, re.findall(r"(\d) of \d cells would run", listed))) == left


def test_timeout(mixerbench: Mixerbench) -> None:
    said = mixerbench("run", toy("hanging"), "--timeout", "1s")
    assert said.status == 1
    assert "2 ok, 1 timeout" in said.out


@pytest.mark.parametrize(
    ("arguments", "clear"),
    [
        (["run", "mqar_quik"], r"no grid is called 'mqar_quik'\. Did you mean mqar_quick\?"),
        (["run", "zzz"], r"no grid is called 'zzz'\. Grids: mqar_quick"),
        (["run", "none.py:fine"], "there is no file none.py"),
        (["run", str(TOYS)], "name one of the functions of .*: broken, every_end, fine"),
        (["run", toy("nothing")], "name one of the functions of .*: broken, every_end, fine"),
        (["run", toy("twice")], r"tasks 0 and 2 are one cell, [0-9a-f]{12}: \{"),
        (["run", toy("misspelt")], r"Toy\.sede = 3: .*\n.*Toy\.seed = 'three': "),
        (["run", toy("mistyped_name")], r"Needy\.widht = 3: .*\n  Needy\.width: Field required\n$"),
        (["run", toy("unfit")], r": grid unfit: Needy: Value error, depth must not be above"),
        (["run", toy("misspelt_too")], "grid misspelt_too: "),
        (["run", toy("fine"), toy("fine")], "a grid 'fine' is named already"),
        (["run", toy("speed_quick")], "speed_quick is a grid of the suite; rename yours"),
        (["run", toy("not_tasks")], "item 0 is a ToyMixer, not a Task"),
        (["run", toy("broken")], r"ZeroDivisionError: .* \(toy_grids\.py, line \d+\)"),
        (["run", toy("unsendable")], "cannot be sent to a worker"),
        (["run", toy("fine"), "--where", "sed == 1"], "'sed' is no column: did you mean seed"),
        (["run", toy("fine"), "--where", "seed =="], "--where 'seed =='"),
        (["run", toy("fine"), "--where", "seed + 1"], "it is neither true nor false"),
        (["run", toy("fine"), "--report", "--dry-run"], "--report: --dry-run measures nothing"),
        (["run", toy("fine"), "--budget", "9 minutes"], "--budget '9 minutes': write a duration"),
        (["run", toy("fine"), "--timeout", "0s"], "--timeout '0s': must be longer than nothing"),
        (["run", toy("fine"), "--device", "gpu"], "--device 'gpu': use cpu, cuda"),
        (["run", toy("fine"), "--device", ""], "--device '': use cpu, cuda"),
        (["run", toy("fine"), "--where", "seed = 1"], "it assigns; == compares"),
        (
            ["run", toy("fine"), "--where", "mixer == zoology"],
            "'zoology' is no column; text stands",
        ),
        (["run", toy("fine"), "--where", "seed > 9"], r"none of the cells(.|\n)*seed: 0, 1"),
        (["run", toy("fine"), "--device", "cuda:x"], "--device 'cuda:x': use cpu, cuda"),
        (["run", toy("fine"), "--device", "cuda:99"], "--device 'cuda:99': "),
        (["run", toy("fine"), "--results", str(TOYS)], "cannot read .*records.jsonl"),
        (["run", toy("fine"), "--results", ""], "'--results': '' names no folder"),
        (["run", toy("fine"), "--fresh-since", "noon"], "--fresh-since 'noon': write a time as"),
        (["run", toy("fine"), "--fresh", "--fresh-since", "2026-01-01"], "use one of them"),
        (["run", toy("mixed"), "--any-device"], r"6 of the cells, such as [0-9a-f]{12} of mixed,"),
        (["run", toy("fine"), "--jobs", "0"], "--jobs"),
        (["run", toy("fine"), "--ray", "auto", "--jobs", "2"], "--jobs 2: with --ray every GPU"),
        (["run", toy("fine"), "--pack", "0"], "--pack"),
        (["run", toy("fine"), "--ray", "auto", "--pack", "2"], "--pack 2: with --ray every GPU"),
        (["run"], "grids"),
        (["merge", "mqar_quick"], "files"),
        (["merge", "mqar_quick", "none.jsonl"], "there is no file none.jsonl"),
        (["submit", "mqar_quick", "--budget", "1h"], "--partition"),
        (["submit", "mqar_quick", "--partition", "gpu"], "--budget"),
        (["submit", "mqar_quick", "--partition", "p", "--budget", "1"], "--budget '1': write a"),
        (
            ["submit", "speed_quick", "--partition", "p", "--budget", "1h", "--any-device"],
            r"--any-device: \d+ of the cells, such as [0-9a-f]{12} of speed_quick, measure",
        ),
        (["submit", "mqar_quik", "--partition", "p", "--budget", "1h"], "Did you mean mqar_quick"),
    ],
)
def test_a_mistake_is_one_clear_line(
    mixerbench: Mixerbench, arguments: list[str], clear: str
) -> None:
    said = mixerbench(*arguments)
    assert said.status == 2
    assert re.search(clear, said.err), said.err
    assert "Traceback" not in said.err
    assert not list(Path.cwd().rglob("records.jsonl"))


def test_a_torn_last_line_is_told_and_measured_again(mixerbench: Mixerbench) -> None:
    mixerbench("run", toy("fine"))
    path = Path("results/fine/records.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert "fine/records.jsonl: the last line is torn" in mixerbench("run", toy("fine")).err
    assert len(path.read_bytes().splitlines()) == len(whole.splitlines())


def test_damaged_records_are_named(mixerbench: Mixerbench) -> None:
    mixerbench("run", toy("fine"))
    path = Path("results/fine/records.jsonl")
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:50]
    path.write_text("\n".join(lines) + "\n")
    said = mixerbench("run", toy("fine"))
    assert said.status == 2
    assert re.search(r"results/fine/records\.jsonl, line 3, is no record", said.err)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("90s", 90), ("9m", 540), ("1h30m", 5400), ("1h1m1s", 3661)],
)
def test_durations(text: str | None, expected: float | None) -> None:
    assert arguments.seconds("--budget", text) == expected


@pytest.mark.parametrize("text", ["", "9", "m", "9x", "1.5h", "-9m", "9m1h", "0s"])
def test_a_duration_that_is_none_names_its_option(text: str) -> None:
    with pytest.raises(ValueError, match="--budget"):
        arguments.seconds("--budget", text)


def test_grids_lists_name_cells_and_caption(mixerbench: Mixerbench) -> None:
    said = mixerbench("grids", "--device", "cpu")
    assert said.status == 0
    assert re.search(r"^mqar_quick +\d+ cells  \w+", said.out, re.MULTILINE)


def test_report_and_compare_read_the_records_of_a_run(mixerbench: Mixerbench) -> None:
    ran = mixerbench("run", toy("fine"), "--report")
    said = mixerbench("report", toy("fine"))
    assert (ran.status, said.status) == (0, 0)
    assert ran.out.splitlines()[-1] == said.out.strip() == "results/fine/report.md"
    assert "6 ok" in Path("results/fine/report.md").read_text()
    compared = mixerbench("compare", "fine", "--baseline", "toy")
    assert (compared.status, "no times to compare" in compared.err) == (2, True)
    for command in ("report", "compare"):
        missing = mixerbench(command, "nothing")
        assert (missing.status, "'nothing' has no records" in missing.err) == (2, True)


def test_doctor_names_every_mixer_and_implementation(mixerbench: Mixerbench) -> None:
    said = mixerbench("doctor", "--device", "cpu")
    assert said.status == 0
    for verdict in (
        r"HGRN2 +reference +ok",
        r"Attention +sdpa +ok",
        r"HGRN2 +triton +\w+",
        "HGRN1 +fla_chunk +.*needs a CUDA device",
        r"ray +(\d|not there; mixerbench run --ray needs it: pip install)",
        r"submitit +(\d|not there; mixerbench submit needs it: pip install)",
    ):
        assert re.search(verdict, said.out), verdict
    assert re.search(r"^torch +\d", said.out, re.MULTILINE)


def test_every_command_has_an_example(mixerbench: Mixerbench) -> None:
    commands = [command.callback.__name__ for command in cli.app.registered_commands]  # pyright: ignore[reportOptionalMemberAccess]
    expected = {"run", "submit", "merge", "report", "compare", "profile", "grids", "doctor"}
    assert expected == set(commands)
    for command in commands:
        said = mixerbench(command, "--help")
        assert said.status == 0
        assert re.search(rf"Example.*\n? *mixerbench {command} ?", said.out), command


def test_help_is_quick() -> None:
    """In seconds of the processor: those of the wall are other processes' too."""
    command = [sys.executable, "-m", "harness.cli", "--help"]
    before = os.times()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 0.5

"""--limit with --sample-seed: rows that are drawn, always the same ones, and told of."""

import pytest

import commands.evaluate as command
from evaluation.plan import Limit
from tests.tiny_tasks import arguments, results, samples, write_tasks


def test_a_sample_depends_on_the_seed_alone_and_holds_the_smaller_one():
    small, large = Limit(10, 7).drawn(range(100)), Limit(30, 7).drawn(range(100))
    assert len(small) == 10 and small == sorted(small) == Limit(10, 7).drawn(range(100))
    assert set(small) < set(large) and len(large) == 30
    assert small != list(range(10)) and small != Limit(10, 8).drawn(range(100))
    assert Limit(200, 7).drawn(range(100)) == list(range(100))


def test_what_belongs_together_is_drawn_together():
    units = [place // 2 for place in range(20)]
    drawn = Limit(5, 1).drawn(units)
    assert len(drawn) == 6 and {units[place] for place in drawn} == {units[place] for place in drawn[::2]}


def test_a_run_scores_the_rows_that_were_drawn_under_every_prompt(tmp_path, capsys):
    folder = write_tasks(tmp_path)
    assert command.main(arguments(folder, "--limit", "3", "--sample-seed", "1")) == 0
    items = samples(folder)
    drawn = Limit(3, 1).drawn(range(8))
    assert drawn != [0, 1, 2]
    for file in ("choices/plain/test.jsonl", "choices/said/test.jsonl", "writing/dev.jsonl"):
        assert [item["index"] for item in items[file]] == drawn
    found = results(folder)
    assert (found["settings"]["limit"], found["settings"]["sample_seed"]) == (3, 1)
    assert found["tasks"]["choices"]["counts"] == {"expected": 16, "scored": 6, "truncated": 0, "overlong": 0}
    assert "only 3 rows of every file, drawn with seed 1, were taken" in capsys.readouterr().out
    assert command.main(arguments(folder, "--limit", "3", "--sample-seed", "2")) == 2
    assert "(sample_seed: 1, now 2)" in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "message"), [(["--sample-seed", "3"], "--sample-seed draws the rows that --limit")])
def test_a_seed_without_a_limit(tmp_path, capsys, argv, message):
    assert command.main([*argv, str(tmp_path)]) == 2
    assert message in capsys.readouterr().err

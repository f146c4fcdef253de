from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from permllm_lm_eval import task_files
from permllm_lm_eval.task_files import find_tasks, harness_names, names_in, read_settings

from permllm.errors import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_included_settings_stand_behind_a_files_own(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "output_type: multiple_choice\ntest_split: test\nlimit: 1\n")
    write(tmp_path / "more", "test_split: train\n")
    path = write(tmp_path / "a.yaml", "include: [base.yaml, more]\ntask: a\nlimit: 2\n")
    assert read_settings(path) == {
        "output_type": "multiple_choice",
        "test_split": "train",
        "limit": 2,
        "task": "a",
    }


def test_functions_are_not_imported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "task: a\nprocess_docs: !function nowhere.at_all\n")
    assert read_settings(path)["process_docs"] == "nowhere.at_all"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: a\n- b\n", r"a\.yaml:2:1: the task file is no YAML"),
        ("task: [a\n", r"a\.yaml:\d:\d: the task file is no YAML"),
        ("task: !python/name:os.system\n", r"a\.yaml:1:7: the task file is no YAML"),
        ("- task: a\n", r"a\.yaml: a task file must be a mapping"),
        ("include: nowhere.yaml\ntask: a\n", r"nowhere\.yaml', included by '.*a\.yaml'"),
        ("include: a.yaml\ntask: a\n", r"a\.yaml: the task file includes itself"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "a.yaml", text)
    write(tmp_path / "b.yaml", "task: b\n")
    assert find_tasks(["b"], [tmp_path]).files["b"] is not None
    with pytest.raises(UserError, match=message):
        find_tasks(["b", "a"], [tmp_path])


def test_files_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"task: \xff\n")
    with pytest.raises(UserError, match=r"a\.yaml: the task file is no YAML"):
        read_settings(tmp_path / "a.yaml")


def test_tasks_groups_and_tags(tmp_path: Path) -> None:
    task = write(tmp_path / "deep" / "a.yaml", "task: a\ntag: [red, blue]\n")
    write(tmp_path / "g.yaml", "group: g\ntask: [a, {task: a, num_fewshot: 1}]\n")
    write(tmp_path / "h.yaml", "group: h\ntask: [g, {group: g}, red]\n")
    write(tmp_path / "__pycache__" / "b.yaml", "task: b\n")
    own = names_in([tmp_path])
    assert own.tasks == {"a": task}
    assert own.tags == {"red", "blue"}
    assert own.groups == {"g": ("a", "a"), "h": ("g", "g", "red")}
    found = find_tasks(["a", "red", "h"], [tmp_path])
    assert found.files["a"] is not None
    assert found.files["a"].path == task
    assert (found.files["red"], found.files["h"]) == (None, None)
    assert not found.built_in


@pytest.mark.parametrize("members", ["[a, arc_easy]", "[{task: new, test_split: test}]", "[g]"])
def test_groups_that_reach_beyond_their_folder(tmp_path: Path, members: str) -> None:
    write(tmp_path / "a.yaml", "task: a\n")
    write(tmp_path / "g.yaml", f"group: g\ntask: {members}\n")
    assert not find_tasks(["a"], [tmp_path]).built_in
    assert find_tasks(["a", "g"], [tmp_path]).built_in


def test_tasks_and_tags_of_the_harness() -> None:
    found = find_tasks(["arc_easy", "ai2_arc"], [])
    assert found.files["arc_easy"] is not None
    assert found.files["arc_easy"].settings["dataset_path"] == "allenai/ai2_arc"
    assert found.files["ai2_arc"] is None
    assert found.built_in
    assert not find_tasks(["arc_easy"], []).built_in


def test_later_folders_come_first(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.yaml", "task: a\n")
    write(tmp_path / "two" / "a.yaml", "task: a\ntest_split: two\n")
    write(tmp_path / "two" / "b.yaml", "task: a\n")
    found = find_tasks(["a"], [tmp_path / "one", tmp_path / "two"]).files["a"]
    assert found is not None
    assert found.settings["test_split"] == "two"
    # A name of the harness's own means the user's task, too.
    mine = write(tmp_path / "one" / "arc.yaml", "task: arc_easy\n")
    found = find_tasks(["arc_easy"], [tmp_path / "one"]).files["arc_easy"]
    assert found is not None
    assert found.path == mine


def test_unknown_names(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "task: my-quiz\n")
    with pytest.raises(UserError, match="lm-eval knows no task 'my_quiz'") as caught:
        find_tasks(["my_quiz"], [tmp_path])
    assert str(caught.value.hint).startswith("did you mean 'my-quiz'? known in your folders")
    with pytest.raises(UserError, match="lm-eval knows no task 'arc_eazy'") as caught:
        find_tasks(["arc_eazy"], [])
    assert "did you mean 'arc_easy'?" in str(caught.value.hint)


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    file = write(tmp_path / "file", "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nowhere' does not exist"):
        find_tasks(["a"], [tmp_path / "nowhere"])
    with pytest.raises(UserError, match="file' is not a folder"):
        find_tasks(["a"], [file])
    with pytest.raises(UserError, match=r"empty' has no task files"):
        find_tasks(["a"], [tmp_path / "empty"])


def test_the_metrics_that_a_file_names(tmp_path: Path) -> None:
    def metrics(text: str) -> set[str] | None:
        found = find_tasks(["a"], [write(tmp_path / "a.yaml", "task: a\n" + text).parent])
        found = found.files["a"]
        assert found is not None
        return found.metrics()

    assert metrics("metric_list: [{metric: acc}, {metric: !function utils.mine}]") == {
        "acc",
        "mine",
    }
    assert metrics("") is None
    assert metrics("metric_list: [acc]") is None
    assert metrics("metric_list: [{metric: acc}]\nprocess_results: !function utils.all") is None


def test_all_names_of_the_harness_are_found(everything: Any) -> None:
    found, index = harness_names(), everything.task_index
    assert len(index) > 10_000
    assert [name for name in index if name not in found] == []
    wrong = [
        name
        for name, entry in index.items()
        if name in found.tasks and entry.yaml_path != found.tasks[name]
    ]
    assert wrong == []


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lm-eval is not installed") as caught:
        task_files.harness_folder()
    assert "pip install" in str(caught.value.hint)

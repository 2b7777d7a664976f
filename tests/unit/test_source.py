"""The hash of a step's code: it changes with what the step runs, and with nothing else."""

from __future__ import annotations

import pytest

from matvlm import source

RUN = '''"""A step."""
from matvlm import lib
from matvlm.deep.inner import f


def main():
    return f(lib.X)
'''
FILES = {
    "__init__.py": "",
    "step/__init__.py": "",
    "step/run.py": RUN,
    "step/beside.py": "Y = 1\n",
    "step/page.html": "<p>page</p>\n",
    "lib.py": "import matvlm.second\n\nX = 1\n",
    "second.py": "Z = 1\n",
    "deep/__init__.py": "",
    "deep/inner.py": "def f(x):\n    from matvlm import late\n\n    return late.g(x)\n",
    "late.py": "def g(x):\n    return x\n",
    "other/__init__.py": "",
    "other/run.py": "A = 1\n",
    "config.py": "B = 1\n",
}


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """The hash of `matvlm.step.run` in a package of `FILES` with changes."""
    count = 0

    def make(**changes) -> str:
        nonlocal count
        count += 1
        root = tmp_path / str(count) / "matvlm"
        for name, text in (FILES | changes).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(source, "ROOT", root)
        return source.code_hash("matvlm.step.run")

    return make


def test_the_same_code_has_the_same_hash_wherever_it_lies(hashed):
    assert hashed() == hashed()
    assert len(hashed()) == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"step/run.py": RUN.replace("f(lib.X)", "f(lib.X + 1)")},
        {"step/beside.py": "Y = 2\n"},
        {"step/page.html": "<p>another</p>\n"},
        {"step/new.py": ""},
        {"lib.py": "import matvlm.second\n\nX = 2\n"},
        {"second.py": "Z = 2\n"},
        {"deep/inner.py": FILES["deep/inner.py"].replace("late.g(x)", "late.g(-x)")},
        {"late.py": "def g(x):\n    return -x\n"},
        {"lib.py": 'import matvlm.second\n\nX = "1"\n'},
    ],
)
def test_a_change_of_what_the_step_runs(hashed, changes):
    assert hashed(**changes) != hashed()


@pytest.mark.parametrize(
    "changes",
    [
        {"step/run.py": RUN.replace("A step.", "Another text.")},
        {"step/run.py": "# a comment\n" + RUN.replace("    return", "\n    # why\n    return")},
        {"late.py": 'def g(x):\n    """What it does."""\n    return x\n'},
        {"lib.py": 'import matvlm.second\n\nX = 1\n"""What it is."""\n'},
        {"other/run.py": "A = 2\n"},
        {"other/new.py": "A = 2\n"},
        {"step/__pycache__/run.cpython-311.pyc": "x"},
        {"config.py": "B = 2\n", "step/run.py": RUN},
    ],
)
def test_a_change_of_anything_else(hashed, changes):
    assert hashed(**changes) == hashed()


def test_plumbing_does_not_count_though_it_is_imported(hashed):
    run = RUN.replace("from matvlm import lib", "from matvlm import config, lib")
    assert hashed(**{"step/run.py": run, "config.py": "B = 2\n"}) == hashed(**{"step/run.py": run})


def test_the_files_of_a_real_step():
    names = {str(path.relative_to(source.ROOT)) for path in source.source_files("matvlm.distill.run")}
    assert {"distill/run.py", "distill/losses.py", "training/loop.py", "models/mixer.py", "ops/ssd.py"} <= names
    assert "layouts.py" not in names
    assert not names & {f"{name}.py" for name in source.PLUMBING}
    assert not {name for name in names if name.startswith("sections")}
    assert not {name for name in names if name.startswith(("report", "evaluation"))}
    evaluation = {str(path.relative_to(source.ROOT)) for path in source.source_files("matvlm.evaluation.run")}
    assert "evaluation/tasks/embedded/_common.yaml" in evaluation


def test_all_plumbing_is_there():
    files = {path.relative_to(source.ROOT).parts[0].removesuffix(".py") for path in source.ROOT.rglob("*.py")}
    assert files >= source.PLUMBING


def test_a_module_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="no module"):
        source.code_hash("matvlm.nothing")

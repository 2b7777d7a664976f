"""`matvlm generate`: questions from the command line, a pipe or a terminal; answers to stdout as they come."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from PIL import Image

from matvlm import cli
from matvlm.generation.chat import Answer, Chat
from matvlm.generation.decoding import Decoding


class Stdin(io.TextIOWrapper):
    """A standard input that holds ``content``."""

    def __init__(self, content: bytes = b"", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def image(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def generate(capsys, monkeypatch, small, image):
    """Runs the command on the small teacher; its status, stdout and stderr."""

    def run(*words, stdin=None):
        monkeypatch.setattr(sys, "stdin", stdin or Stdin())
        options = ["--model", str(small / "teacher"), "--image", str(image), "--device", "cpu"]
        status = cli.main(["generate", *options, *words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def asked(monkeypatch):
    """Answers are `one`, `two`, … without a model; what was asked with which earlier turns."""
    calls = []

    def ask(self, image, question, decoding, earlier=()):
        calls.append((question, list(earlier)))
        word = ["one", "two", "three"][len(calls) - 1]
        return Answer(iter([f" {word}", " more"]), [5, 0], 0)

    monkeypatch.setattr(Chat, "ask", ask)
    return calls


CONVERSATION = [("a?", []), ("b?", [("a?", "one more")]), ("c?", [("a?", "one more"), ("b?", "two more")])]


def test_an_answer_of_the_model(generate, small, image):
    status, out, err = generate("what shape is it?", "--max-new-tokens", "9")
    assert status == 0
    answer = Chat.open(small / "teacher", "cpu").ask(image, "what shape is it?", Decoding(9))
    assert out == "".join(answer) + "\n"
    assert err == "note: the answer was cut short by --max-new-tokens 9\n"


def test_pieces_are_printed_as_they_come(generate, monkeypatch):
    seen = []

    def pieces():
        for word in ("a", " b", " c"):
            yield word
            seen.append(sys.stdout.getvalue())

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(Chat, "ask", lambda *args: Answer(pieces(), [0], 0))
    generate("x?")
    assert seen == ["a", "a b", "a b c"]


def test_several_questions_are_a_conversation(generate, asked):
    assert generate("a?", "b?", "c?") == (0, "one more\ntwo more\nthree more\n", "")
    assert asked == CONVERSATION


def test_questions_from_a_pipe(generate, asked):
    assert generate(stdin=Stdin(b"a?\nb?\r\nc?")) == (0, "one more\ntwo more\nthree more\n", "")
    assert asked == CONVERSATION


def test_a_chat_on_a_terminal(generate, asked):
    """Empty lines ask nothing; the end of the input, Ctrl-D, ends it. No prompt gets into stdout."""
    status, out, err = generate(stdin=Stdin(b"a?\n\n  \nb?\n", terminal=True))
    assert (status, out) == (0, "one more\ntwo more\n")
    assert asked == CONVERSATION[:2]
    assert err == "One question a line; Ctrl-D ends.\n> > > > > \n"


def test_a_chat_goes_on_after_a_question_that_cannot_be_asked(generate):
    status, out, err = generate("--max-new-tokens", "1", stdin=Stdin(b"<image>\na?\n", terminal=True))
    assert status == 0
    assert "error: question: is empty\n" in err
    assert out.count("\n") == 1


def test_interrupting_an_answer_ends_it_and_not_the_chat(generate, monkeypatch):
    def ask(self, image, question, decoding, earlier=()):
        calls.append(list(earlier))
        return Answer(pieces(), [0], 0)

    def pieces():
        yield "half"
        if len(calls) == 1:
            raise KeyboardInterrupt

    calls = []
    monkeypatch.setattr(Chat, "ask", ask)
    assert generate(stdin=Stdin(b"a?\nb?\n", terminal=True))[:2] == (0, "half\nhalf\n")
    assert calls == [[], [("a?", "half")]]
    calls.clear()
    assert generate("a?", "b?")[:2] == (130, "half\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "question: none given, on the command line or on stdin"),
        (b"\n", "stdin: line 1: is empty"),
        (b"a\xff?\n", "is not UTF-8 text"),
    ],
)
def test_a_pipe_without_a_question(generate, content, words):
    status, out, err = generate(stdin=Stdin(content))
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a?", "--seed", "1"], "--seed 1: nothing is drawn"),
        (["a?", "--num-beams", "2", "--top-p", "0.5"], "--num-beams 2 with --top-p"),
        (["a?", "--image", "none.png"], "image 'none.png': no such file"),
        (["a?", "--model", "none"], "none/config.json: missing"),
        (["a?", " "], "question: is empty"),
        (["a?", "a " * 3000], "this model allows 2047"),
        (["a?", "--device", "meta"], "--device meta: unknown"),
    ],
)
def test_mistakes_are_found_before_the_weights_are_loaded(generate, monkeypatch, words, line):
    monkeypatch.setattr(Chat, "model", property(lambda self: pytest.fail("loaded")))
    status, out, err = generate(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["--seed", "1", "a?"], ["a?"]])
def test_help_mistakes_and_missing_images_need_no_torch(words):
    program = (
        "import sys; from matvlm import cli\n"
        "try:\n    status = cli.main()\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "generate", "--model", "none", "--image", "none", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "AssertionError" not in done.stderr
    assert "usage: matvlm generate" in done.stdout or done.returncode == 2


def test_a_reader_that_has_enough():
    """`matvlm generate … | head -c 1`: no traceback, the status of a broken pipe."""
    program = (
        "import sys; from matvlm import cli; from matvlm.generation import terminal\n"
        "sys.stdin.readline()\n"
        "terminal.converse = lambda *args: print('a word', flush=True)\n"
        "sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", program, "generate", "--model", "none", "--image", "none", "a?"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141

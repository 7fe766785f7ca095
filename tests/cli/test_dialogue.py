"""The conversation on a terminal: its commands, its files, and Ctrl-C, typed by a hand of ours."""

import json
import os
import re
import signal
import subprocess
import threading
import time

import pytest
from command_line import command, environment, run
from scripted import answer, calling, script

import k2ref
from k2ref.cli import dialogue as module
from k2ref.cli.dialogue import Dialogue
from k2ref.cli.main import main
from k2ref.conversation import session
from k2ref.conversation.events import Content
from k2ref.tools.agent import Agent
from k2ref.tools.demonstration import calculator

posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")
SUM = "37+58="


@pytest.fixture(scope="module")
def model():
    return k2ref.load(threads=1)


def type_lines(monkeypatch, *lines):
    """Let `input` give these lines, then the end; an exception is raised instead."""
    waiting = iter(lines)

    def give(prompt):
        line = next(waiting, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", give)


def talk(monkeypatch, capsys, agent, *lines, **options):
    """Hold a conversation of these lines; return what stands on the two outputs."""
    type_lines(monkeypatch, *lines)
    Dialogue(agent, **options).talk()
    out, err = capsys.readouterr()
    return out, err.split("\n", 1)[1]  # without the greeting


def test_questions_are_asked_and_answered_in_turn(model, monkeypatch, capsys):
    script(monkeypatch, model, answer("One.", "hm"), answer("Two."))
    agent = Agent(model)
    out, err = talk(monkeypatch, capsys, agent, "a", "", "//b", KeyboardInterrupt(), "/quit", "c")
    assert out == "<think>\nhm\n</think>\n\nOne.\nTwo.\n\n" and err == ""
    assert [m["content"] for m in agent.messages] == ["a", "One.", "/b", "Two."]


def test_the_commands_say_what_they_did(model, monkeypatch, capsys):
    script(monkeypatch, model, answer("One."), answer("Uno."), answer("Two."))
    agent = Agent(model, [calculator], seed=3)
    agent.failures["time-out"] = 2
    out, err = talk(
        monkeypatch, capsys, agent, "/help", "/system", "/system Be brief.", "/tools", "/retry",
        "/undo", "a", "/retry", "b", "/undo", "/stats", "/nonsense", "/save", "/load")
    assert out.startswith(module.HELP + "\n(the checkpoint's own)\nBe brief.\n"
                          "calculator(expression): Evaluate an arithmetic expression.\n"
                          "time-out: 2\nOne.\nUno.\nTwo.\nforgotten: b\nprompt   ")
    assert re.search(r"\ncontext  \d+ of \d+ tokens, float32\n", out)
    assert err.splitlines() == [
        "k2ref: there is no question to ask again", "k2ref: there is nothing to undo",
        "k2ref: there is no command /nonsense; /help lists them",
        "k2ref: /save needs the name of a file", "k2ref: /load needs the name of a file"]
    assert agent.messages == [{"role": "system", "content": "Be brief."},
                              {"role": "user", "content": "a"},
                              {"role": "assistant", "content": "Uno."}]
    assert agent.seed == 4


def test_help_names_every_command():
    taken = set(re.findall(r'"(\w+)": self\._', open(module.__file__, encoding="utf-8").read()))
    assert set(re.findall(r"^/(\w+)", module.HELP, re.M)) == taken | {"quit"} and len(taken) == 8


def test_without_tools_there_are_none_to_list(model, monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, Agent(model), "/tools", "/stats")
    assert out.startswith("(none; --tools gives some)\ncontext  0 of ")


def test_save_and_load_are_a_way_back(model, monkeypatch, capsys, tmp_path):
    script(monkeypatch, model, answer("One."), answer("Two."), answer("Three."))
    agent, file = Agent(model), str(tmp_path / "s")
    out, err = talk(monkeypatch, capsys, agent, "a", f"/save {file}", "b", f"/load {file}", "c",
                    f"/load {tmp_path}/nowhere", f"/save {tmp_path}/no/such")
    assert re.search(r"saved (\d+) tokens\nTwo\.\nloaded 2 messages, \1 tokens\n", out)
    assert [m["content"] for m in agent.messages] == ["a", "One.", "c", "Three."]
    assert err.count("\n") == 2 and err.count("No such file") == 2


def test_a_mistake_ends_the_answer_and_not_the_conversation(model, monkeypatch, capsys):
    script(monkeypatch, model, answer("One."))
    agent = Agent(model, context=k2ref.Context(model, capacity=200))
    out, err = talk(monkeypatch, capsys, agent, "word " * 500, "\udcff", "a")
    assert "leaves no room" in err and "the question is not valid UTF-8 at character 0" in err
    assert out == "One.\n\n" and len(agent.messages) == 2


def test_ctrl_c_stops_the_answer_only(model, monkeypatch, capsys):
    scripted = script(monkeypatch, model, answer("One two three."))
    wrote, written = module.Stopwatch.wrote, []

    def ctrl_c(watch, token):
        wrote(watch, token)
        written.append(token)
        if len(written) == 6:
            scripted.say_instead(answer("Four."))
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Stopwatch, "wrote", ctrl_c)
    agent = Agent(model)
    out, err = talk(monkeypatch, capsys, agent, "a", "b")
    assert err == "k2ref: stopped\n" and out.endswith("Four.\n\n")
    said = [m["content"] for m in agent.messages]
    assert len(said) == 4 and said[1] and "One two three.".startswith(said[1])
    assert said[3] == "Four."


def test_an_interruption_while_a_piece_is_shown_is_kept_whole(model, monkeypatch, tmp_path):
    script(monkeypatch, model, answer("One two three."))
    agent, shown = Agent(model), []

    def show(printer, events):
        shown.extend(event.text for event in events if isinstance(event, Content))
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Printer, "show", show)
    path = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        Dialogue(agent, session=path).ask("count")
    _, state, _ = session.load(path, model)
    assert [m["content"] for m in state["messages"]] == ["count", "".join(shown)]


def test_notes_tell_of_hidden_results_and_of_the_last_step(model, monkeypatch, capsys):
    def long() -> str:
        """Give a long text."""
        return "word " * 300

    call = calling(("functions.long:0", ""))
    script(monkeypatch, model, call, call, call)
    agent = Agent(model, [long], max_steps=2, max_new_tokens=100,
                  context=k2ref.Context(model, capacity=900))
    _, err = talk(monkeypatch, capsys, agent, "go")
    assert "tool results are hidden from the model\n" in err
    assert err.endswith("k2ref: stopped after 2 steps with tools (see --max-steps)\n")


# The command's options.

def test_the_command_runs_tools_and_records_the_run(model, monkeypatch, capsys, tmp_path):
    script(monkeypatch, model,
           calling(("functions.calculator:0", '{"expression": "4821 * 377"}'), thinking="hm"),
           answer("1817517."))
    path = tmp_path / "run.jsonl"
    assert main(["--tools", "calculator", "--transcript", str(path), "What is 4821 * 377?"]) == 0
    out, err = capsys.readouterr()
    assert out == ('<think>\nhm\n</think>\n\ntool call: calculator {"expression": "4821 * 377"}\n'
                   "tool result: 1817517\n\n1817517.\n") and err == ""
    roles = [json.loads(line)["role"] for line in path.read_text().splitlines()]
    assert roles == ["user", "assistant", "tool", "assistant"]


def test_the_command_takes_tools_from_a_file_and_a_limit_of_steps(
        model, monkeypatch, capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def twice(x: int) -> int:\n    'Double.'\n    return 2 * x\n")
    call = calling(("functions.twice:0", '{"x": 4}'))
    script(monkeypatch, model, call, call, call)
    args = ["--tools", str(tmp_path / "mine.py"), "--max-steps", "2", "--keep-turns", "1",
            "--tool-timeout", "5", "--stats", "go"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert out.count("tool result: 8\n") == 2
    assert "stopped after 2 steps with tools" in err and "steps    3, " in err


@pytest.mark.parametrize("args, expected", [
    (["--tools", "nonsense", "x"], "--tools nonsense: expected calculator or lookup"),
    (["--max-steps", "0", "x"], "--max-steps: expected a whole number >= 1, found '0'"),
    (["--keep-turns", "0", "x"], "--keep-turns: expected a whole number >= 1"),
    (["--tool-timeout", "0", "x"], "--tool-timeout: expected a number of seconds > 0, found '0'"),
    (["--tool-timeout", "soon", "x"], "--tool-timeout: expected a number of seconds"),
    (["--raw", "--tools", "calculator", "x"], "--raw uses no chat template"),
    (["--raw", "--session", "s", "x"], "--raw uses no chat template"),
    (["--raw", "--transcript", "s", "x"], "--raw uses no chat template"),
    (["--transcript", "/nowhere/x.jsonl", "x"], "/nowhere/x.jsonl: No such file or directory"),
])
def test_wrong_options_are_one_sentence(capsys, args, expected):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("k2ref: ") and err.count("\n") == 1 and expected in err


def test_help_says_that_a_file_of_tools_is_run(capsys):
    assert main(["--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "A file of tools is a Python program, and it is run, with all that you may do" in out
    for option in ("session", "tools", "max-steps", "keep-turns", "tool-timeout", "transcript"):
        assert f"--{option} " in out


def test_a_session_goes_on_where_the_last_command_ended(model, capsys, tmp_path):
    file, greedy = str(tmp_path / "s"), ["--greedy", "--hide-thinking"]
    assert main([*greedy, "--session", file, SUM]) == 0
    first = capsys.readouterr().out
    assert main([*greedy, "--session", file, "--stats", "and 1+1"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^prompt   \d+ tokens, .*, and \d+ from the cache$", err, re.M)
    context, state, _ = session.load(file, model)
    assert [m["content"] for m in state["messages"]] == [SUM, first[:-1], "and 1+1", out[:-1]]
    # The same words as in one conversation without a file.
    agent = Agent(model, temperature=0)
    for question in (SUM, "and 1+1"):
        list(agent.run(question))
    assert agent.messages == state["messages"]


def test_a_session_keeps_its_kind_of_cache(capsys, tmp_path):
    file = str(tmp_path / "s")
    assert main(["--greedy", "--cache", "bf16", "--session", file, SUM]) == 0
    assert main(["--greedy", "--session", file, "and 1+1"]) == 0
    capsys.readouterr()
    assert main(["--greedy", "--cache", "float32", "--session", file, "and"]) == 2
    assert "--cache float32: the cache in " in capsys.readouterr().err


def test_a_system_message_replaces_the_session_s(model, capsys, tmp_path):
    file = str(tmp_path / "s")
    for text in ("Be brief.", "Be long."):
        args = ["--greedy", "--max-tokens", "3", "--system", text, "--session", file, SUM]
        assert main(args) == 0
    first, *rest = session.load(file, model)[1]["messages"]
    assert first == {"role": "system", "content": "Be long."}
    assert "system" not in [m["role"] for m in rest]


def test_a_damaged_session_is_one_sentence_and_is_left_alone(capsys, tmp_path):
    path = tmp_path / "s"
    path.write_bytes(b"my thesis")
    assert main(["--greedy", "--session", str(path), SUM]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "expected a session, found a file that" in err
    assert path.read_bytes() == b"my thesis"


@posix
def test_an_interrupted_answer_is_in_the_session(model, tmp_path):
    path = tmp_path / "s"
    process = subprocess.Popen(
        command("--session", str(path), "--temperature", "1e300", "--seed", "1", SUM),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, 130) and err == b""
    context, state, _ = session.load(path, model)
    assert state["messages"][0] == {"role": "user", "content": SUM}
    ids = k2ref.render(model.tokenizer, state["messages"][:1])
    assert context.ids[:len(ids)] == ids


# On a pseudo-terminal.

class Terminal:
    """A conversation on a pseudo-terminal, with a reader that waits for what should appear."""

    def __init__(self, *args):
        import pty

        self.parent, child = pty.openpty()
        self.process = subprocess.Popen(
            command(*args), stdin=child, stdout=child, stderr=child, env=environment(),
            start_new_session=True, preexec_fn=lambda: _control_terminal(child))
        os.close(child)
        self.shown, self.at = "", 0
        self.arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while True:
            try:
                data = os.read(self.parent, 65536)
            except OSError:
                data = b""
            with self.arrived:
                self.shown += data.decode(errors="replace")
                self.arrived.notify()
            if not data:
                return

    def wait_for(self, pattern, again=""):
        """Wait until something like this appears behind what was waited for before.

        `again` is typed every two seconds: a Ctrl-C that comes just before Python's `input` begins
        to wait is only noticed with the next key.
        """
        end = time.monotonic() + 120
        with self.arrived:
            while not (found := re.compile(pattern, re.S).search(self.shown, self.at)):
                assert time.monotonic() < end, self.shown
                if not self.arrived.wait(2) and again:
                    self.type(again)
            self.at = found.end()
            return found

    def type(self, text):
        os.write(self.parent, text.encode())

    def close(self):
        status = self.process.wait(timeout=120)
        os.close(self.parent)
        return status


def _control_terminal(terminal):
    """Make this the terminal whose Ctrl-C reaches the process."""
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@posix
def test_a_terminal_without_a_prompt_opens_a_conversation(tmp_path):
    file = str(tmp_path / "s")
    terminal = Terminal("--greedy", "--session", file, "--stats")
    terminal.wait_for("/help lists the commands, Ctrl-D leaves.*> ")
    terminal.type("37+58=\n")
    terminal.wait_for(r"37 \+ 58 = \d+.*prompt   .*> ")
    terminal.type("\x1b[A\n")  # the arrow key brings back the last line
    terminal.wait_for(r"37\+58=.*37 \+ 58 = \d+.*from the cache.*> ")
    terminal.type("/undo\n")
    terminal.wait_for(r"forgotten: 37\+58=.*> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    _, state, _ = session.load(file, k2ref.load(threads=1))
    assert [m["role"] for m in state["messages"]] == ["user", "assistant"]


@posix
def test_ctrl_c_on_a_terminal(tmp_path):
    terminal = Terminal("--temperature", "1e300", "--top-k", "200", "--seed", "7")
    terminal.wait_for("> ")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    terminal.type("\x03")
    terminal.wait_for("> ", again="\x03")
    terminal.type("1+1\n")
    terminal.wait_for("1\\+1\r\n.*\\S")
    terminal.type("\x03")
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.close() == 0


@posix
def test_a_request_to_terminate_ends_a_conversation(tmp_path):
    terminal = Terminal("--session", str(tmp_path / "s"))
    terminal.wait_for("> ")
    for _ in range(20):  # again, for the same reason as a Ctrl-C
        terminal.process.send_signal(signal.SIGTERM)
        try:
            terminal.process.wait(timeout=5)
            break
        except subprocess.TimeoutExpired:
            pass
    assert terminal.close() == 143


def test_piped_questions_still_get_one_answer():
    assert run("--greedy", "--hide-thinking", stdin=SUM.encode()) == run(
        "--greedy", "--hide-thinking", SUM)


def test_nothing_of_the_dialogue_is_left_in_the_agent(model, capsys):
    agent = Agent(model, temperature=0, max_new_tokens=3)
    before = dict(agent.settings)
    Dialogue(agent).ask("What is 37 + 58?")
    assert agent.settings == before and "on_token" not in before

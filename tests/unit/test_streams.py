"""The standard streams: what foreign text may do on a terminal, encodings, and readers that went away."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from task_activity_log.cli import CONTRACT_FILES
from task_activity_log.streams import one_line, printable, printable_json
from tests.commands import COMMAND, environment
from tests.terminals import HOSTILE, SHOWN, controls, on_a_terminal

WRITES = "from task_activity_log import streams; import sys; streams.protect()\n"


def run(
    *arguments: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603 - our own program
        arguments, env=environment(**variables), stdout=stdout, stderr=stderr, timeout=60, check=False
    )


def test_everything_that_controls_a_terminal_is_escaped() -> None:
    """C1 and bidirectional characters are escaped as well; what languages need to be read is not."""
    assert controls(printable(f"{HOSTILE}\ud800")) == []
    assert printable(HOSTILE).startswith("\\x1b]0;title\\x07 \\x1b[2J\\x1b[35;7m \\x9b31m")
    assert printable(SHOWN) == SHOWN
    assert one_line("a\n task-activity-log: forged\x1b[1A") == "a task-activity-log: forged\\x1b[1A"


def test_escaped_json_has_the_same_value() -> None:
    """Also characters beyond U+FFFF, and half of a surrogate pair, which JSON can have as an escape."""
    value = {HOSTILE + "\ud800": SHOWN}
    written = json.dumps(value, ensure_ascii=False)
    shown = printable_json(written)
    assert controls(shown) == []
    assert json.loads(shown) == value
    assert json.dumps(SHOWN, ensure_ascii=False) == printable_json(json.dumps(SHOWN, ensure_ascii=False))


def test_a_program_that_prints_foreign_text_does_not_control_the_terminal() -> None:
    """Whatever it prints, and to which stream; its own colours, which it prints in another way, are shown."""
    program = f"""{WRITES}
text = {HOSTILE!r}
print(text); print(text, file=sys.stderr); sys.stdout.writelines([text])
import warnings; warnings.warn(text)
print("\\033[32mgreen\\033[0m", file=streams.trusted(sys.stdout))
raise ValueError(text)
"""
    shown = on_a_terminal([sys.executable, "-c", program])
    assert "\033[32mgreen\033[0m" in shown
    assert controls(shown.replace("\033[32m", "").replace("\033[0m", "")) == []
    assert shown.count("\\x1b]0;title\\x07") >= 5


def test_redirected_output_is_not_escaped() -> None:
    """A file or another program gets what was printed."""
    said = run(sys.executable, "-c", f"{WRITES}print('a\\x1b\\x9b\\u202e', end='')")
    assert said.stdout.decode() == "a\x1b\x9b\u202e"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp850", "utf-16", "utf-8"])
def test_text_that_the_encoding_does_not_have_is_escaped(encoding: str) -> None:
    """No write fails because of it, on either stream."""
    program = f"{WRITES}text = 'é → 日本 👩 \\ud800'\nprint(text)\nprint(text, file=sys.stderr)"
    said = run(sys.executable, "-c", program, PYTHONIOENCODING=encoding)
    assert (said.returncode, said.stdout == said.stderr) == (0, True)
    assert said.stdout.decode(encoding).strip() == "é → 日本 👩 \ud800".encode(encoding, "backslashreplace").decode(
        encoding
    )


@pytest.mark.parametrize("description", CONTRACT_FILES)
def test_the_contract_is_printed_in_utf_8_whatever_the_locale(description: str) -> None:
    """Programs read it, so its bytes are those of the file."""
    said = run(COMMAND, "contract", description, PYTHONIOENCODING="ascii", LANG="C")
    file = Path(__file__).parents[2] / "src/task_activity_log/cli/contract" / CONTRACT_FILES[description]
    assert (said.returncode, said.stdout) == (0, file.read_bytes())


MANY = f"{WRITES}for _ in range(5_000): print('x' * 50); print('y' * 50, file=sys.stderr)\n"


FULL = b"task-activity-log: cannot write to standard output: No space left on device\n"


def closed_pipe() -> int:
    """The writing end of a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_standard_output_that_is_lost_is_reported_once() -> None:
    """What follows is discarded, so that the interpreter ends without a complaint of its own."""
    program = f"""{WRITES}
lost = []
for _ in range(100_000):
    try:
        print("x")
    except streams.OutputLost as error:
        lost.append((str(error), error.reader_left))
print(lost, file=sys.stderr)
"""
    pipe, full = closed_pipe(), os.open("/dev/full", os.O_WRONLY)
    told = [run(sys.executable, "-c", program, stdout=out) for out in (pipe, full)]
    os.close(pipe)
    os.close(full)
    assert [(said.returncode, said.stderr.decode().strip()) for said in told] == [
        (0, "[('cannot write to standard output: Broken pipe', True)]"),
        (0, "[('cannot write to standard output: No space left on device', False)]"),
    ]


def test_standard_error_that_is_lost_stops_nobody() -> None:
    """Neither a pipe whose reader has gone, nor a full disk."""
    pipe, full = closed_pipe(), os.open("/dev/full", os.O_WRONLY)
    for error in (pipe, full):
        said = run(sys.executable, "-c", MANY, stderr=error)
        assert (said.returncode, said.stdout.count(b"\n")) == (0, 5_000)
        os.close(error)


def test_lines_are_written_again_when_the_disk_has_space_again(tmp_path: Path) -> None:
    """The limit of a file's size stands for a full disk; a line that was cut is ended first, and those missing are counted."""
    program = f"""{WRITES}
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (15, resource.RLIM_INFINITY))
for number in range(4): print("line", number, "x" * 3, file=sys.stderr)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("last", streams.dropped(), file=sys.stderr)
"""
    with (tmp_path / "log").open("wb") as log:
        said = run(sys.executable, "-c", program, stderr=log.fileno())
    assert said.returncode == 0
    assert (tmp_path / "log").read_text() == "line 0 xxx\nline\nlast 3\n"


def test_a_reader_that_stalls_is_not_waited_for_where_lines_may_be_dropped() -> None:
    """A log whose reader does not read: the process goes on, and the lines that it has lost are counted."""
    reading, writing = os.pipe()
    program = f"{WRITES}streams.drop_stalled()\n{MANY.removeprefix(WRITES)}print(streams.dropped(), file=sys.stdout)"
    said = run(sys.executable, "-c", program, stderr=writing)
    os.close(writing)
    kept = b""
    while part := os.read(reading, 65536):
        kept += part
    os.close(reading)
    dropped = int(said.stdout.split()[-1])
    whole = kept.count(b"y" * 50 + b"\n")
    assert dropped > 1_000
    assert whole + dropped == 5_000


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_that_another_program_has_made_non_blocking_loses_nothing(number: int) -> None:
    """Node does that to a terminal or a pipe that it shares. Here the reader reads only when the writer waits for it."""
    program = f"""
import os, select, sys
from task_activity_log import streams
reading, writing = os.pipe()
os.set_blocking(writing, False)
os.dup2(writing, {number})
wait, found = select.select, []
def read_and_wait(*arguments):
    found.append(os.read(reading, 1_000_000))
    return wait(*arguments)
select.select = read_and_wait
streams.protect()
written, told = (sys.stdout, sys.stderr) if {number} == 1 else (sys.stderr, sys.stdout)
for _ in range(5_000): print("x" * 50, file=written)
written.flush()
os.close(writing)
os.close({number})
found.append(os.read(reading, 1_000_000))
print(len(b"".join(found)), len(found) > 1, file=told, flush=True)
os._exit(0)
"""
    said = run(sys.executable, "-c", program)
    assert (said.stdout + said.stderr).decode().strip() == f"{5_000 * 51} True"


def test_closed_streams_are_replaced() -> None:
    """Otherwise the next socket would get their descriptor, and what is printed would be sent there."""
    program = f"""{WRITES}
import os, socket
opened = socket.socket()
assert opened.fileno() > 2
print("x"); print("y", file=sys.stderr); assert sys.stdin.read() == ""
assert not sys.stdin.isatty() and not sys.stdout.isatty()
os._exit(7)
"""
    said = subprocess.run(  # noqa: S603 - our own program
        ["/bin/sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, program], timeout=60, check=False
    )
    assert said.returncode == 7


def test_a_command_whose_standard_output_was_closed_before_fails() -> None:
    """As other programs do: `replies --take` would remove replies from their queue, and print them nowhere."""
    said = run("/bin/sh", "-c", f"{shlex.quote(COMMAND)} --version >&-")
    assert (said.returncode, said.stderr) == (
        1,
        b"task-activity-log: cannot write to standard output: Bad file descriptor\n",
    )


@pytest.mark.parametrize(
    ("command", "streams", "expected"),
    [
        (["contract", "asyncapi"], ("closed", "pipe"), (0, b"")),
        (["contract", "asyncapi"], ("full", "pipe"), (1, FULL)),
        (["--help"], ("closed", "pipe"), (0, b"")),
        (["--version"], ("full", "closed"), (1, None)),
        (["migrate", "--sql"], ("closed", "closed"), (0, None)),
        (["publish", "nowhere.json", "--dry-run"], ("pipe", "closed"), (1, None)),
        (["nonsense"], ("pipe", "closed"), (2, None)),
        (["run"], ("pipe", "full"), (2, None)),
    ],
)  # fmt: skip
def test_commands_whose_reader_went_away_end(
    command: list[str], streams: tuple[str, str], expected: tuple[int, bytes | None]
) -> None:
    """With their own exit code, without a traceback, and without failing if the reader of the results has read enough."""
    ends = {"closed": closed_pipe(), "full": os.open("/dev/full", os.O_WRONLY), "pipe": subprocess.PIPE}
    said = run(COMMAND, *command, stdout=ends[streams[0]], stderr=ends[streams[1]])
    os.close(ends["closed"])
    os.close(ends["full"])
    assert (said.returncode, said.stderr) == expected


def test_a_directory_for_the_metrics_of_several_processes_is_named_and_ignored(tmp_path: Path) -> None:
    """PROMETHEUS_MULTIPROC_DIR of another program: with it a worker would not start, or write files there."""
    for folder in (tmp_path, tmp_path / "missing"):
        worker = subprocess.Popen(  # noqa: S603 - our own program
            [COMMAND, "run"],
            env=environment(
                AMQP_URL="amqp://127.0.0.1:1/",
                DATABASE_URL="postgresql://127.0.0.1:1/",
                PROMETHEUS_MULTIPROC_DIR=str(folder),
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stderr is not None
        lines = [worker.stderr.readline() for _ in range(2)]
        worker.kill()
        worker.communicate()
        assert lines[0].startswith("task-activity-log: PROMETHEUS_MULTIPROC_DIR is set for another program and ignored")
        assert '"event": "started"' in lines[1]
    assert list(tmp_path.iterdir()) == []

"""The house stays one that can be read: see docs/decisions/0007."""

from pathlib import Path

import task_activity_log

HOUSE = Path(task_activity_log.__file__).parent
WORKER_LINES = 320
FILE_LINES = 450


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_worker_is_read_in_one_go() -> None:
    """The only control flow that matters has no room for what belongs elsewhere."""
    assert lines(HOUSE / "pipeline" / "worker.py") < WORKER_LINES


def test_no_room_is_a_hall() -> None:
    """A file that has grown past this has a second purpose by now."""
    assert {path.name: lines(path) for path in HOUSE.rglob("*.py") if lines(path) > FILE_LINES} == {}


def test_the_map_names_every_room() -> None:
    """What stands at the top of the house is on its map."""
    rooms = {path.name.removesuffix(".py") for path in HOUSE.iterdir() if path.suffix == ".py" or path.is_dir()}
    unmentioned = {
        room for room in rooms if not room.startswith("__") and room not in (task_activity_log.__doc__ or "")
    }
    assert unmentioned == set()

"""The parts that the pages share."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from secrets import token_urlsafe
from typing import Any
from uuid import UUID

from starlette.requests import Request

from task_activity_log.client.dead_letters import answered
from task_activity_log.client.finding import journal_answers
from task_activity_log.client.following import LatestReplies
from task_activity_log.client.letters import Filter, Letter
from task_activity_log.client.looks import Looks
from task_activity_log.client.preview import verdict
from task_activity_log.client.record_id import record_id
from task_activity_log.console.access import Access, Denied, require
from task_activity_log.console.actions import Actions
from task_activity_log.console.sampling import Check, Checks, Sampler
from task_activity_log.console.settings import ConsoleSettings
from task_activity_log.message import Properties
from task_activity_log.problem import Unavailable
from task_activity_log.record import StoredTaskActivityLog
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, management_of, rules_of, store_of, survey_of, topology_of

_PLANS = 50
_GONE = (
    "This dead letter is not in the queue: somebody has replayed, discarded or taken it, or a replay that is running has it."
    " Nothing was done."
)

_NOT_READABLE = (
    "it has a value that a reply cannot contain, such as a date after the year 9999, or row security may hide it"
)


class Console:
    """The parts of one console."""

    def __init__(
        self, settings: Settings, own: ConsoleSettings, *, check: Check, contract: Mapping[str, bytes]
    ) -> None:
        """Put the parts together. Nothing is connected yet."""
        link = link_of(settings)
        self.settings, self.own, self.contract = settings, own, contract
        self.rules, self.topology = rules_of(settings), topology_of(settings)
        topology = self.topology
        self.queues = (*topology.request_queues, topology.replies_queue, topology.dead_letters_queue)
        self.sampler = Sampler(own.workers, link, self.queues, management_of(settings))
        self.checks = Checks(check)
        self.looks = Looks(link, topology.dead_letters_queue, self.rules, own.memory_limit_bytes)
        self.store = store_of(settings) if settings.database_url is not None else None
        self.survey = survey_of(settings) if settings.database_url is not None else None
        self.actions = Actions(settings, self.looks, self.store)
        self.replies = LatestReplies(link, topology.replies_exchange, self.actions.heard)
        self.access = Access(own)
        self.stopping: Callable[[], bool] = lambda: False
        """Whether live pages should end."""
        self.plans: OrderedDict[str, Sequence[Letter]] = OrderedDict()
        """The dead letters of each dry run: what is then replayed is what was shown."""

    async def close(self) -> None:
        """Stop what is under way, and close the connections."""
        await self.actions.stop()
        await self.replies.close()
        await self.checks.close()
        await self.sampler.close()
        if self.store is not None and self.survey is not None:
            await self.store.close()
            await self.survey.close()

    def remember(self, letters: Sequence[Letter]) -> str:
        """Remember the dead letters of a dry run, and the latest of the others. Returns the name of the dry run."""
        name = token_urlsafe(9)
        self.plans[name] = letters
        if len(self.plans) > _PLANS:
            self.plans.popitem(last=False)
        return name

    async def letter(self, request: Request, letter_id: str, *, seen: bool = False) -> Letter:
        """The dead letter with an id, or the only one with the name in the path. Raises `Denied`: it is gone.

        One that was `seen` at the last look is not looked for again: if it is gone since, its action finds out.
        """
        if seen and self.looks.last is not None and letter_id in self.looks.last.by_id:
            return self.looks.last.by_id[letter_id]
        look, name = await self.looks.current(), request.path_params.get("name", "")
        found = [look.by_id[letter_id]] if letter_id in look.by_id else []
        if not letter_id:
            found = [letter for letter in look.letters if letter.name == name]
        require(len(found) < 2, f"{len(found):,} dead letters have this message_id: choose one in the list.", 409)  # noqa: PLR2004
        require(bool(found), _GONE, 410)
        return found[0]

    async def matching(self, wanted: Filter) -> Sequence[Letter]:
        """The dead letters that match a filter. Raises `Denied`: rows cannot be read, and it takes them."""
        look = await self.looks.current()
        letters = [letter for letter in look.letters if letter in wanted] if wanted.members else look.letters
        if not wanted.answered:
            return letters
        ids = sorted({letter.record_id for letter in letters if letter.record_id})
        try:
            changed = await self.store.modified(ids) if self.store else {}
        except Unavailable as error:
            raise Denied(
                f"Rows cannot be read now ({error.reason}), so it is not known which were stored since.", 503
            ) from None
        return [each for each in letters if each.record_id and answered(each.raw, changed.get(each.record_id))]

    async def row(self, record: UUID | None) -> tuple[StoredTaskActivityLog | None, str]:
        """The row of a record, and why it is not known; empty if it is."""
        if record is None:
            return None, "the message has no id that can be read"
        if self.store is None:
            return None, "DATABASE_URL is not set"
        try:
            found = (await self.store.current([record])).get(record)
            there = found is not None or record in await self.store.modified([record])
        except Unavailable as error:
            return None, error.reason
        return found, _NOT_READABLE if found is None and there else ""

    async def answers(self, name: str, record: UUID | None) -> tuple[Sequence[Mapping[str, Any]], str]:
        """What the journal says of a message or a record, and why it says nothing; empty if it was read."""
        try:
            return await journal_answers(self.survey, name, record) if self.survey else ([], "")
        except Unavailable as error:
            return [], error.reason

    async def judged(self, body: bytes, properties: Properties, *, with_row: bool = True) -> dict[str, Any]:
        """What a worker would say of a message, the row of its record, and why that is not known."""
        row, problem = None, "the values of rows take the role bodies"
        if with_row:
            row, problem = await self.row(record_id(body, properties.content_type))
        return {"verdict": verdict(body, properties, self.rules, row), "row": row, "rows_problem": problem}

"""The parts that the pages share, and who asks."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.requests import Request

from task_activity_log.console.access import (
    ALL,
    Denied,
    FormGuard,
    PasswordFile,
    Proxy,
    Role,
    User,
    basic_credentials,
    require_local_name,
)
from task_activity_log.console.actions import Actions
from task_activity_log.console.letters import Letter
from task_activity_log.console.looks import Looks
from task_activity_log.console.replies import Replies
from task_activity_log.console.rows import Rows
from task_activity_log.console.sampling import Checks, Finding, Sampler
from task_activity_log.console.settings import ConsoleSettings
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, rules_of, store_of, topology_of

_PLANS = 50


class Console:
    """The parts of one console."""

    def __init__(
        self,
        settings: Settings,
        own: ConsoleSettings,
        *,
        check: Callable[[], Awaitable[Sequence[Finding]]],
        contract: Mapping[str, bytes],
    ) -> None:
        """Put the parts together. Nothing is connected yet."""
        link = link_of(settings)
        self.settings = settings
        self.own = own
        self.contract = contract
        self.rules = rules_of(settings)
        self.topology: Topology = topology_of(settings)
        topology = self.topology
        self.queues = (*topology.request_queues, topology.replies_queue, topology.dead_letters_queue)
        self.sampler = Sampler(own.workers, link, self.queues)
        self.looks = Looks(link, topology.dead_letters_queue, self.rules, own.memory_limit_bytes)
        self.rows = Rows(store_of(settings) if settings.database_url is not None else None)
        self.actions = Actions(settings, self.looks, self.rows)
        self.replies = Replies(link, topology.replies_exchange, self.actions.heard)
        self.checks = Checks(check)
        self.guard = FormGuard()
        self.stopping = asyncio.Event()
        self.plans: dict[str, Sequence[Letter]] = {}
        """The dead letters of each dry run: what is then replayed is what was shown."""
        self._passwords = PasswordFile.read(own.password_file) if own.password_file else None
        self._proxy = Proxy(
            own.proxies,
            own.proxy_user_header,
            own.proxy_groups_header,
            {Role.LOOK: own.look_groups, Role.ACT: own.act_groups, Role.BODIES: own.bodies_groups},
        )
        self._hashing = asyncio.Semaphore(2)  # more passwords at a time would take the CPU from the pages

    def stop(self) -> None:
        """Let live pages end."""
        self.stopping.set()

    async def close(self) -> None:
        """Stop what is under way, and close the connections."""
        self.stop()
        await self.actions.stop()
        await self.replies.close()
        await self.checks.close()
        await self.sampler.close()
        await self.rows.close()

    def remember(self, plan: str, letters: Sequence[Letter]) -> None:
        """Remember the dead letters of a dry run, and the latest of the others."""
        self.plans[plan] = letters
        while len(self.plans) > _PLANS:
            del self.plans[next(iter(self.plans))]

    async def user(self, request: Request) -> User:
        """Who asks. Raises `Denied`: it is not known, or they may not look."""
        peer = request.client.host if request.client else ""
        user = self._proxy.user(peer, request.headers)
        if user is None and self._passwords is not None:
            user = await self._by_password(request)
        elif user is None and self.own.proxy_addresses:
            raise Denied("The console is used through its proxy, which says who you are.", 401)
        elif user is None:
            require_local_name(request.headers.get("host", ""))
            user = User("local", ALL)
        if Role.LOOK not in user.roles:
            raise Denied(f"{user.name} may not look at this console: that takes the role look.")
        return user

    async def _by_password(self, request: Request) -> User:
        credentials = basic_credentials(request.headers.get("authorization"))
        if credentials is None or self._passwords is None:
            raise Denied("The console asks for a user and a password.", 401)
        async with self._hashing:
            user = await asyncio.to_thread(self._passwords.user, *credentials)
        if user is None:
            raise Denied("This user or this password is wrong.", 401)
        return user

    def own_hosts(self, request: Request) -> list[str]:
        """The host names by which a browser knows the console."""
        hosts = [request.headers.get("host", "")]
        if request.client and self._proxy.trusts(request.client.host):
            hosts.append(request.headers.get("x-forwarded-host", ""))
        return hosts

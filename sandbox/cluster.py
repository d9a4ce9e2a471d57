"""A private RabbitMQ of three nodes, which can be killed, drained, and cut off from each other."""

import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import unquote, urlsplit, urlunsplit

from sandbox import containers, rabbitmq
from sandbox.choice import RABBITMQ, Choice, Say, Way, ways
from sandbox.processes import Processes, unprivileged_user
from sandbox.rabbitmq import ManagementError, Member, RabbitMQ
from sandbox.service import READY_LIMIT_SECONDS, SandboxError, free_port

SIZE = 3
_ERLANG_ARGUMENTS = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel net_ticktime 12"
"""One scheduler that does not spin: three nodes share a small machine. Nodes that are silent for 12 s are away."""
_PAUSED_SECONDS = 15.0
"""How long a node that has paused may take to resume by itself."""
_SUSPENDED_MILLISECONDS = 30_000
_CUT = "[erlang:set_cookie(Node, {cookie}) || Node <- Others], [erlang:disconnect_node(Node) || Node <- Others], ok."
_PAUSING = "catch sys:get_state(rabbit_node_monitor), whereis(rabbit_outside_app_process)."
"""`undefined`, or the process that pauses the node. The monitor has then seen all that happened before."""
_LEADER = """
    {{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)),
    {{ok, Members, {{_, Leader}}}} = ra:members(amqqueue:get_pid(Queue), 5000),
    io:format("~s ~p~n", [Leader, length(Members)]), ok.
"""


class Cluster:
    """Three nodes of one cluster.

    As with `Service`, the methods block until they are done, and port and data of a node survive its end.
    """

    def __init__(self, nodes: Sequence[RabbitMQ], names: Sequence[str]) -> None:
        """Take the nodes, which are not started yet, and the names of the Erlang nodes."""
        self.nodes = tuple(nodes)
        self.names = tuple(names)
        """Those of the Erlang nodes, in the same order."""
        self._isolated: list[RabbitMQ] = []
        self._lost: list[RabbitMQ] = []

    @property
    def present(self) -> list[RabbitMQ]:
        """The nodes that were not lost for good."""
        return [node for node in self.nodes if node not in self._lost]

    @property
    def version(self) -> str:
        """RabbitMQ's version."""
        return self.nodes[0].version

    @property
    def origin(self) -> str:
        """Where the nodes come from, as people read it."""
        return self.nodes[0].origin

    @property
    def url(self) -> str:
        """The AMQP URL of the default virtual host, with all nodes."""
        return self.url_at(self.nodes[0].url)

    def url_at(self, url: str) -> str:
        """The AMQP URL of one node with the hosts of all, in their order."""
        return _with_hosts(url, [node.url for node in self.nodes])

    def url_at_first(self, node: RabbitMQ, url: str) -> str:
        """The AMQP URL with all nodes, this one first, for the virtual host of another URL."""
        first = self.nodes.index(node)
        return _with_hosts(self.url_of(node, url), [each.url for each in self.nodes[first:] + self.nodes[:first]])

    def url_of(self, node: RabbitMQ, url: str) -> str:
        """The AMQP URL of one node for the virtual host of another URL."""
        return urlunsplit(urlsplit(node.url)._replace(path=urlsplit(url).path))

    def management_url(self) -> str:
        """The management URL of all nodes."""
        return _with_hosts(self.nodes[0].management_url, [node.management_url for node in self.nodes])

    def name_of(self, node: RabbitMQ) -> str:
        """The name of the Erlang node."""
        return self.names[self.nodes.index(node)]

    def create_vhost(self) -> str:
        """Create a virtual host, and return its AMQP URL with all nodes."""
        return self.url_at(self.nodes[0].create_vhost())

    def start(self) -> None:
        """Start all nodes and wait until they are one cluster.

        They start together: one that is alone waits for the others, on RabbitMQ 4.3 for more than a minute.
        """
        self._all(self.nodes, RabbitMQ.start)
        self._wait_joined()

    def ensure_running(self) -> None:
        """Undo whatever was done to the nodes, and wait until all run.

        Those that were killed start together: one of them may wait for another that was running later.
        """
        for node in list(self._isolated):
            if node.is_running:
                self.rejoin(node)  # first: one that is started while it is cut off would be a cluster of its own
        self._isolated.clear()  # one that was killed has forgotten the wrong cookie
        self._all(self.present, _go_on)
        self._wait_joined()

    def lose(self, node: RabbitMQ) -> None:
        """End a node at once, for good."""
        self._lost.append(node)
        node.kill()

    def command(self, program: str, *arguments: str) -> str:
        """As `RabbitMQ.command`, at one of the nodes that run and are not isolated."""
        return self._at_any(lambda node: node.command(program, *arguments))

    def evaluate(self, expressions: str) -> str:
        """As `RabbitMQ.evaluate`, at one of the nodes that run and are not isolated."""
        return self._at_any(lambda node: node.evaluate(expressions))

    def _at_any(self, ask: Callable[[RabbitMQ], str]) -> str:
        failure = SandboxError("no node runs")
        for node in self.present:
            if node.is_running and node not in self._isolated:
                try:
                    return ask(node)
                except SandboxError as error:
                    failure = error
        raise failure

    def isolate(self, node: RabbitMQ) -> None:
        """Cut the connections between a node and the other nodes. Its clients stay connected.

        The node gets a wrong cookie for the others, so that neither side can connect to the other; that needs no
        privileges. The others react when both have lost it. Else the first could hear from the second that the node is
        still there: before RabbitMQ 4.3, it then pauses too, until all nodes are back, or leaves the second.
        """
        self._isolated.append(node)
        others = [other for other in self.present if other is not node and other.is_running]
        self._all(others, lambda other: _tell_monitor(other, "suspend"))
        try:
            self._set_cookie(node, "not_their_cookie")
        finally:
            self._all(others, lambda other: _tell_monitor(other, "resume"))

    def rejoin(self, node: RabbitMQ) -> None:
        """Let a node that was isolated connect again."""
        self._set_cookie(node, "erlang:get_cookie()")
        self._isolated.remove(node)

    def leader(self, url: str, queue: str, asked: Sequence[RabbitMQ] = ()) -> RabbitMQ:
        """The node that has the leader of a quorum queue.

        Args:
            url: an AMQP URL of its virtual host.
            queue: its name.
            asked: the nodes to ask (all): one that is isolated knows the old leader only.

        Raises:
            SandboxError: no node knows of a leader.
        """
        name, _ = self._leader(url, queue, asked)
        return self.nodes[self.names.index(name)]

    def member_count(self, url: str, queue: str) -> int:
        """How many members a quorum queue has. Raises as `leader` does."""
        return self._leader(url, queue, ())[1]

    def _leader(self, url: str, queue: str, asked: Sequence[RabbitMQ]) -> tuple[str, int]:
        vhost = unquote(urlsplit(url).path[1:])
        failure = SandboxError("no node runs")
        for node in asked or self.present:
            if node.is_running:
                try:
                    answer = node.command("rabbitmqctl", "eval", _LEADER.format(vhost=vhost, queue=queue))
                except SandboxError as error:
                    failure = error
                    continue
                name, members = answer.split()[:2]
                return name, int(members)
        raise failure

    def _set_cookie(self, node: RabbitMQ, cookie: str) -> None:
        others = ", ".join(f"'{name}'" for name in self.names if name != self.name_of(node))
        node.command("rabbitmqctl", "eval", f"Others = [{others}], {_CUT.format(cookie=cookie)}")

    def _wait_joined(self) -> None:
        deadline = time.monotonic() + READY_LIMIT_SECONDS
        running = 0
        while time.monotonic() < deadline:
            try:
                running = min(
                    sum(bool(seen["running"]) for seen in node.api("GET", "/nodes?columns=running"))
                    for node in self.present
                )
            except ManagementError:
                running = 0
            if running == len(self.present):
                # A node counts as running a moment before it is: a virtual host that is created then misses it.
                self._all(self.present, lambda node: node.command("rabbitmqctl", "await_startup"))
                return
            time.sleep(0.1)
        raise SandboxError(f"only {running} of {len(self.present)} nodes found each other")

    @staticmethod
    def _all(nodes: Sequence[RabbitMQ], act: Callable[[RabbitMQ], object]) -> None:
        with ThreadPoolExecutor(max_workers=SIZE) as pool:
            list(pool.map(act, nodes))


def _with_hosts(url: str, urls: Iterable[str]) -> str:
    """A URL with the hosts of these URLs in place of its own."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    hosts = ",".join(urlsplit(each).netloc.rpartition("@")[2] for each in urls)
    return urlunsplit(parts._replace(netloc=f"{login}@{hosts}"))


def _tell_monitor(node: RabbitMQ, act: str) -> None:
    """Have the process that learns of lost nodes wait (`suspend`) or go on (`resume`), if there is one."""
    monitor = "rabbit_node_monitor"
    ask = f"sys:{act}({monitor}, {_SUSPENDED_MILLISECONDS})"
    node.evaluate(f"case whereis({monitor}) of undefined -> ok; _ -> {ask} end.")


def _go_on(node: RabbitMQ) -> None:
    """Start a node, or wait until it has resumed.

    RabbitMQ 3.10 pauses itself without a majority, and may fail to start again while the other nodes are starting, which then
    wait for it. `rabbitmqctl start_app` is what an operator does. A node that was isolated for a moment only may answer
    here, and pause afterwards. One that was drained has no AMQP port until it is revived.
    """
    node.resume()
    if not node.is_running:
        node.start()
        return
    deadline = time.monotonic() + READY_LIMIT_SECONDS
    while True:
        try:
            node.wait_until_ready(_PAUSED_SECONDS)
            if node.evaluate(_PAUSING) == "undefined":
                return
            failure = SandboxError("the node has paused itself, and does not resume")
        except SandboxError as error:
            failure = error
            for command in (("rabbitmqctl", "start_app"), ("rabbitmq-upgrade", "revive")):
                with suppress(SandboxError):
                    node.command(*command)
        if time.monotonic() > deadline:
            raise failure
        time.sleep(0.1)


@contextmanager
def start(
    *,
    say: Say,
    partition_handling: str = "pause_minority",
    disk_megabytes: int | None = None,
    configuration: Sequence[str] = (),
) -> Iterator[Cluster]:
    """Start a cluster the first way that works.

    Args:
        say: receives a line when it is ready.
        partition_handling: `cluster_partition_handling`, for RabbitMQ before 4.3, which has no such setting any more.
        disk_megabytes: give each node's data a file system of its own of that size; needs root, and binaries.
        configuration: more lines of rabbitmq.conf.

    Raises:
        SandboxError: it is not possible; the message says what to do.
    """
    way = Choice(RABBITMQ, ways(private=True)).prepare(say)
    began = time.monotonic()
    lines = [*configuration, f"cluster_partition_handling = {partition_handling}"]
    with _cluster(way, lines, disk_megabytes) as cluster:
        cluster.start()
        took = time.monotonic() - began
        say(f"RabbitMQ {cluster.version}, {SIZE} nodes from {cluster.origin}, is ready after {took:.1f} s")
        yield cluster


@contextmanager
def _cluster(way: Way, more: Sequence[str], disk_megabytes: int | None) -> Iterator[Cluster]:
    in_containers = way == "docker"
    with ExitStack() as stack:
        network = ""
        epmd_port = free_port()
        if in_containers:
            own = containers.Network()
            stack.callback(own.close)
            network = own.name
        else:
            epmd = Processes("epmd", user=unprivileged_user("rabbitmq"), stop_signal=signal.SIGTERM)
            stack.callback(epmd.close)
            rabbitmq.serve_epmd(epmd, epmd_port, epmd.environment())
        names = [f"rabbit@node{number}" if in_containers else f"node{number}@localhost" for number in range(SIZE)]
        configuration = [
            "cluster_formation.peer_discovery_backend = classic_config",
            *(f"cluster_formation.classic_config.nodes.{number + 1} = {name}" for number, name in enumerate(names)),
            *more,
        ]
        password, cookie = secrets.token_hex(16), secrets.token_hex(16)
        nodes = []
        for name in names:
            member = Member(
                node=name,
                password=password,
                cookie=cookie,
                configuration=configuration,
                erlang_arguments=_ERLANG_ARGUMENTS,
                epmd_port=epmd_port,
                network=network,
                disk_megabytes=disk_megabytes,
            )
            node = _node(in_containers=in_containers, member=member)
            stack.callback(node.close)
            nodes.append(node)
        yield Cluster(nodes, names)


def _node(*, in_containers: bool, member: Member) -> RabbitMQ:
    if in_containers:
        return rabbitmq.from_container(RABBITMQ.image, durable=True, member=member)
    binaries = rabbitmq.find_binaries()
    if isinstance(binaries, str):
        raise SandboxError(binaries)
    return rabbitmq.from_binaries(binaries, durable=True, member=member)

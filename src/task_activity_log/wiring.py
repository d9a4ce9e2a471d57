"""Makes parts from settings, for the service and for the commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypedDict

from task_activity_log.pipeline.request import Rules, UpdateMode
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.management import Management
from task_activity_log.rabbitmq.replies import ReplyOptions
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.rabbitmq.weight import most_weight
from task_activity_log.settings import Settings, SettingsError
from task_activity_log.telemetry import logs

if TYPE_CHECKING:
    from task_activity_log.postgresql.connecting import Connector
    from task_activity_log.postgresql.journal import Journal
    from task_activity_log.postgresql.store import Store
    from task_activity_log.postgresql.survey import Survey


_MANAGEMENT_SECONDS = 3.0
"""Commands ask the management API for one more thing to be careful about, and work without it."""


def secrets_of(settings: Settings) -> set[str]:
    """The texts that must never be shown."""
    found = {secret for url in settings.secret_urls for secret in logs.secrets_in(url)}
    return found if settings.database_url is None else found | settings.database_target.secrets


def _source(
    settings: Settings, url: Literal["amqp_url", "database_url"], redaction: logs.Redaction | None
) -> Callable[[], str]:
    """What reads a URL again. The function raises `Unavailable` if that is not possible now."""

    def read() -> str:
        try:
            found = settings.read_again(url)
        except SettingsError as error:
            why = str(error)
        else:
            if redaction is not None:
                redaction.learn(logs.secrets_in(found))
            return found
        raise Unavailable("a URL cannot be read", why)

    return read


def topology_of(settings: Settings) -> Topology:
    """The names of queues and exchanges."""
    return Topology(
        requests_queue=settings.requests_queue,
        replies_queue=settings.replies_queue,
        dead_letters_queue=settings.dead_letters_queue,
        requests_exchange=settings.requests_exchange,
        replies_exchange=settings.replies_exchange,
        partitions_exchange=settings.partitions_exchange,
        workers_queue=settings.workers_queue,
        single_active_consumer=settings.single_active_consumer,
        partitions=settings.partitions,
    )


class Sending(TypedDict):
    """How requests are sent, as the arguments of the client."""

    exchange: str
    partitioned: bool | None
    """Whether they are sent by record; None: if the broker has an exchange for it."""
    partitions_exchange: str | None
    """The exchange for requests that are sent by record; None: derived from the name of the exchange for requests."""


def sending_of(settings: Settings) -> Sending:
    """How commands send requests.

    The default name of the partitions exchange is that of the default exchange's workers. Another exchange may have none.
    """
    chosen = settings.partitions or "partitions_exchange" in settings.model_fields_set
    return {
        "exchange": settings.requests_exchange,
        "partitioned": True if settings.partitions else None,
        "partitions_exchange": settings.partitions_exchange if chosen else None,
    }


def rules_of(settings: Settings) -> Rules:
    """The rules for requests."""
    return Rules(
        body_limit=settings.body_limit_bytes,
        default_media_type=None if settings.default_media_type == "none" else settings.default_media_type,
        naive_dates=settings.naive_dates,
        update_mode=UpdateMode(settings.update_mode),
        poison_from=settings.poison_from,
    )


def reply_options_of(settings: Settings) -> ReplyOptions:
    """How replies are sent. Those that wait hold deliveries: a quarter of the prefetch at most, and one if that is less."""
    return ReplyOptions(
        reply_to_allowed=settings.reply_to_allowed,
        also_to_exchange=settings.replies == "both",
        give_up_seconds=settings.reply_give_up_seconds,
        waiting_max=max(settings.prefetch // 4, min(settings.prefetch - 1, 1)),
        waiting_bytes_max=settings.memory_limit_bytes // 8,
    )


def forward_prefetch_of(settings: Settings) -> int | None:
    """The prefetch of the requests queue with partitions; None without them.

    What waits to be forwarded takes half of the memory at most: a partition that takes no messages keeps it waiting. If it
    had all of the memory, the worker could not read what is in that partition, and so could not empty it.
    """
    if not settings.partitions:
        return None
    return max(1, min(settings.queue_prefetch, settings.in_hand_bytes // 2 // most_weight(settings.body_limit_bytes)))


def link_of(settings: Settings, redaction: logs.Redaction | None = None) -> LinkOptions:
    """How to connect to the broker. `redaction` learns new passwords. Raises `SettingsError` if AMQP_URL is not set."""
    return LinkOptions(
        url=settings.required_amqp_url,
        source=_source(settings, "amqp_url", redaction),
        tls=settings.amqp_tls,
        heartbeat_seconds=settings.amqp_heartbeat_seconds,
        connect_timeout_seconds=settings.amqp_connect_timeout_seconds,
        management=management_of(settings, _MANAGEMENT_SECONDS),
    )


def management_of(settings: Settings, seconds: float = 10.0) -> Management | None:
    """The management API; None if MANAGEMENT_URL is not set. Each of its hosts has `seconds` to answer."""
    url = settings.management_url
    return None if url is None else Management(url.get_secret_value(), settings.amqp_tls, seconds)


def connector_of(settings: Settings, redaction: logs.Redaction | None = None) -> Connector:
    """How to connect to the database. `redaction` learns new passwords. Raises `SettingsError` if DATABASE_URL is not set."""
    from task_activity_log.postgresql.connecting import Connector  # noqa: PLC0415 - asyncpg, as above

    _ = settings.required_database_url
    return Connector(
        _source(settings, "database_url", redaction),
        connect_timeout=settings.database_connect_timeout_seconds,
        tls=settings.database_tls,
        on_secrets=redaction.learn if redaction is not None else lambda _: None,
    )


def store_of(settings: Settings, connector: Connector | None = None) -> Store:
    """The store. Raises `SettingsError` if DATABASE_URL is not set."""
    from task_activity_log.postgresql.store import Store  # noqa: PLC0415 - asyncpg, which most commands do not need

    return Store(
        connector or connector_of(settings),
        command_timeout=settings.database_command_timeout_seconds,
        statement_cache_size=settings.database_statement_cache,
        read_bytes=settings.batch_bytes,
        record_bytes=settings.record_bytes,
    )


def journal_of(settings: Settings, connector: Connector, on_dropped: Callable[[int], object]) -> Journal | None:
    """The journal of a worker; None if it keeps none. `on_dropped` is called with the number of rows that will be missing."""
    if not settings.journal:
        return None
    from task_activity_log.postgresql.journal import Journal  # noqa: PLC0415 - only workers that keep one need it

    return Journal(connector, statement_cache_size=settings.database_statement_cache, on_dropped=on_dropped)


def survey_of(settings: Settings) -> Survey:
    """What reads records for commands. Raises `SettingsError` if DATABASE_URL is not set."""
    from task_activity_log.postgresql.survey import Survey  # noqa: PLC0415 - asyncpg, as above

    return Survey(
        connector_of(settings),
        command_timeout=settings.database_command_timeout_seconds,
        read_bytes=settings.batch_bytes,
        record_bytes=settings.record_bytes,
    )

"""A worker in memory, so that publishers and subscribers can be tested without a broker and without a database.

    async def test_a_task_is_published() -> None:
        worker = FakeWorker()
        async with worker.client() as client:
            await my_program(client)
        assert worker.rows[task_id].subject == "Call back"

`client` and `subscribe` return what `task_activity_log.client` returns, and validate, store and answer by the same rules as a
worker; one suite of tests runs on both. There are no connections, so nothing is ever lost or sent again.

worker     the fake worker, and the client and the subscription that it gives out
database   the two tables
broker     queues, and the exchange of the replies
"""

from task_activity_log.message import Properties
from task_activity_log.pipeline.request import Rules, UpdateMode
from task_activity_log.testing.database import FakeDatabase
from task_activity_log.testing.worker import FakeWorker

__all__ = ["FakeDatabase", "FakeWorker", "Properties", "Rules", "UpdateMode"]

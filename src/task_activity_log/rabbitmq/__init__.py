"""RabbitMQ. The only aio_pika, aiormq and pamqp.

link            one connection: opened, watched, rebuilt as a whole
topology        queues and exchanges: declared or checked
inspection      a look at them that changes nothing, for `check`
intake          deliveries in, at the pace that is safe
reading         a queue read by a subscriber, or by a person who looks at it
consumer        one channel: what is out on loan, and how it is settled
publisher       confirmed publishing in batches
replies         where each reply goes, and what becomes of one that cannot be placed
dead_letters    a copy of each rejected message, with the reason
frames          the fast path below intake and publisher
properties      content headers, bytes to properties and back, lenient in what they read
"""

"""RabbitMQ: connections, deliveries, publishing and topology.

link          one AMQP connection: opened, supervised, and opened again as a whole
channel       a channel of it: opened, and waited for until it closes
topology      queues and exchanges: declared, or only checked
inspection    what AMQP shows of the broker, for `check`
pace          how many messages the broker may send: a state machine                 pure
intake        deliveries from the requests queue, at that pace
consumer      one channel that deliveries come through, and how they are settled
queues        which queue a reader reads
reading       a queue that a subscriber reads, or a person looks into
publisher     publishing in batches with publisher confirms
replies       where each reply goes, and what happens to one that cannot be delivered
dead_letters  a copy of each rejected message, with the reason
frames        the fast path below consumer and publisher: AMQP frames
weight        how much memory a delivery takes                                     pure
headers       content headers: bytes to properties, leniently, and properties to bytes
"""

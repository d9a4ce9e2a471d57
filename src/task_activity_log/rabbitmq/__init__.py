"""RabbitMQ: connections, deliveries, publishing and topology.

link           one AMQP connection: opened, supervised, and opened again as a whole
channel        a channel of it: opened, and waited for until it closes
topology       queues and exchanges: declared, or only checked
inspection     what AMQP shows of the broker, for `check`
version        the version of a broker, to compare
management     the management API, read only, for `check` and the console
pace           how many messages the broker may send: a state machine                 pure
intake         deliveries from the request queues, over one connection
queue_intake   one of these queues, at its pace
repartition    another number of partitions, while nobody publishes or consumes
balance        which partitions a worker hands over                                   pure
balancing      carries that out, so that the order of each record is kept
members        how many workers consume the partitions
consumer       one channel that deliveries come through, and how they are settled
cut_off        whether the node of a connection is cut off from the others
queues         which queue a reader reads
reading        a queue that a subscriber reads, or an operator inspects
outgoing       a message to be published, and what may become of it                  pure
confirms       one channel that is published on: the fate of each message
publisher      publishing in batches with publisher confirms
replies        where each reply goes, and what happens to one that cannot be placed
exchange       replies to the replies exchange, whatever else is bound to it
properties     the properties of a reply
reply_to       forms of an address                                                    pure
addresses      addresses that take nothing: what is tried when, what is given up      pure
answered_time  the clock of the replies that wait there                               pure
log_limit      how often an event is logged                                           pure
retries        tries their replies again, over connections of their own
forwarder      requests that were not sent by record, published to their partition
dead_letters   a copy of each rejected message, with the reason
frames         the fast path below consumer and publisher: AMQP frames
weight         how much memory a delivery takes                                     pure
headers        content headers: bytes to properties, leniently, and properties to bytes
"""

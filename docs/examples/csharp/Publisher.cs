using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Linq;
using System.Threading.Tasks;
using RabbitMQ.Client;
using RabbitMQ.Client.Events;
using RabbitMQ.Client.Exceptions;

namespace TaskActivityLogs
{
    /// <summary>What the worker said to one request: the record as it is stored now, or why it was rejected.</summary>
    public class Answer
    {
        public TaskActivityLog Record;
        public Problem Problem;
    }

    /// <summary>Sends upserts and waits for their answers. RabbitMQ.Client 7.</summary>
    public class Publisher
    {
        private readonly ConnectionFactory factory;

        public Publisher(Uri broker)
        {
            // No automatic recovery: what was under way is sent again from here, with a new queue for its answers.
            factory = new ConnectionFactory { Uri = broker, AutomaticRecoveryEnabled = false };
        }

        /// <summary>
        /// Send upserts and return their answers, both by message_id; some hundreds at a time.
        ///
        /// Make the message_id when you make the change, one for each, and keep the two together until the answer is
        /// there. Sent again under the same message_id, after a lost connection or a restart, an upsert is not applied
        /// twice: the answer is then the record as it is stored now.
        /// </summary>
        /// <exception cref="PublishException">The broker does not take one, or has no queue for it.</exception>
        public async Task<IDictionary<string, Answer>> PublishAsync(IDictionary<string, TaskActivityLog> upserts)
        {
            var answers = new ConcurrentDictionary<string, Answer>();
            var random = new Random();
            while (true)
            {
                try
                {
                    await ExchangeAsync(upserts.Where(upsert => !answers.ContainsKey(upsert.Key)).ToList(), answers);
                    return answers;
                }
                catch (Exception error) when (error is BrokerUnreachableException || error is OperationInterruptedException)
                {
                    Console.Error.WriteLine("trying again: " + error.Message);
                    await Task.Delay(random.Next(500, 5000));
                }
            }
        }

        private async Task ExchangeAsync(
            ICollection<KeyValuePair<string, TaskActivityLog>> upserts, ConcurrentDictionary<string, Answer> answers)
        {
            // Each publish returns when the broker has confirmed it, and throws when it is refused or returned.
            var confirming = new CreateChannelOptions(
                publisherConfirmationsEnabled: true, publisherConfirmationTrackingEnabled: true);
            using (var connection = await factory.CreateConnectionAsync())
            using (var channel = await connection.CreateChannelAsync(confirming))
            {
                var missing = new HashSet<string>(upserts.Select(upsert => upsert.Key));
                var done = new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously);
                channel.ChannelShutdownAsync += (sender, reason) =>
                {
                    done.TrySetException(new OperationInterruptedException(reason));
                    return Task.CompletedTask;
                };

                var replies = await channel.QueueDeclareAsync(); // exclusive, and gone with the connection
                var consumer = new AsyncEventingBasicConsumer(channel);
                consumer.ReceivedAsync += (sender, reply) =>
                {
                    try
                    {
                        var messageId = reply.BasicProperties.CorrelationId;
                        if (missing.Remove(messageId)) answers[messageId] = Read(reply);
                        if (missing.Count == 0) done.TrySetResult(true);
                    }
                    catch (Exception error)
                    {
                        done.TrySetException(error);
                    }
                    return Task.CompletedTask;
                };
                await channel.BasicConsumeAsync(replies.QueueName, autoAck: true, consumer: consumer);

                await Task.WhenAll(upserts.Select(upsert => channel.BasicPublishAsync(
                    exchange: "task_activity_log",
                    routingKey: "upsert",
                    mandatory: true,
                    basicProperties: new BasicProperties
                    {
                        MessageId = upsert.Key,
                        CorrelationId = upsert.Key,
                        ReplyTo = replies.QueueName,
                        ContentType = "application/json",
                        Persistent = true,
                        Timestamp = new AmqpTimestamp(DateTimeOffset.UtcNow.ToUnixTimeSeconds()), // seconds, not ticks
                    },
                    body: Body.ToJson(upsert.Value)).AsTask()));
                if (upserts.Count > 0) await done.Task;
            }
        }

        private static Answer Read(BasicDeliverEventArgs reply)
        {
            var contentType = reply.BasicProperties.ContentType;
            var body = reply.Body.ToArray(); // the memory is the client's own once this returns
            return reply.BasicProperties.Type == "task_activity_log.stored"
                ? new Answer { Record = Body.ReadRecord(contentType, body) }
                : new Answer { Problem = Body.ReadProblem(contentType, body) };
        }
    }
}

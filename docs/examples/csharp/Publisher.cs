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
    /// <summary>The answer to one request: the record as it is stored now, or why the request was rejected.</summary>
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
            // No automatic recovery: PublishAsync sends unanswered upserts again, with a new queue for their answers.
            factory = new ConnectionFactory { Uri = broker, AutomaticRecoveryEnabled = false };
        }

        /// <summary>
        /// Send upserts and return their answers, both keyed by message_id; a few hundred at a time.
        ///
        /// Create one message_id per change, together with the change, and keep both until the answer has arrived. An
        /// upsert that is sent again with the same message_id, after a lost connection or a restart, is not applied
        /// twice: the answer is then the record as it is stored now.
        /// </summary>
        /// <exception cref="PublishException">The broker refuses an upsert, or has no queue for it.</exception>
        /// <exception cref="BrokerUnreachableException">The user or the password is wrong.</exception>
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
                catch (BrokerUnreachableException error) when (error.InnerException is AuthenticationFailureException)
                {
                    throw; // the user or the password is wrong: trying again does not help
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
            // Each publish returns once the broker has confirmed it, and throws if it is refused or returned.
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

                var replies = await channel.QueueDeclareAsync(); // exclusive: deleted when the connection closes
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
                    // Where workers share partitions: exchange "task_activity_log.by-record", and as routing key
                    // Convert.ToHexString(SHA256.HashData(Encoding.ASCII.GetBytes(id.ToString("D"))))[..2].ToLowerInvariant().
                    exchange: "task_activity_log",
                    routingKey: "upsert",
                    mandatory: true,
                    basicProperties: new BasicProperties
                    {
                        MessageId = upsert.Key,
                        AppId = "example", // the name of your program, by which operators select its dead letters
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
            var body = reply.Body.ToArray(); // a copy: the client reuses the memory after this method returns
            return reply.BasicProperties.Type == "task_activity_log.stored"
                ? new Answer { Record = Body.ReadRecord(contentType, body) }
                : new Answer { Problem = Body.ReadProblem(contentType, body) };
        }
    }
}
